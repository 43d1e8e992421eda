//! The deployment files of this repository, judged by this crate.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use std::path::{Path, PathBuf};

use deployments::compose::{Project, Settings};
use deployments::env::Schema;
use deployments::{ENVIRONMENTS, backup, graph, render, validate};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn entry(environment: &str) -> PathBuf {
    root().join(format!("docker/compose/{environment}.yaml"))
}

fn project(environment: &str) -> Project {
    Project::open(&entry(environment), &Settings::new()).unwrap()
}

fn schema() -> Schema {
    Schema::open(&root().join("docker/env/schema.toml")).unwrap()
}

fn listed<T: ToString>(problems: &[T]) -> String {
    problems.iter().map(|problem| format!("{}\n", problem.to_string())).collect()
}

#[test]
fn every_environment_is_valid() {
    for environment in ENVIRONMENTS {
        let problems = validate::compose(&project(environment), &schema(), environment);
        assert_eq!(listed(&problems), "", "{environment}");
    }
}

#[test]
fn nothing_waits_in_a_cycle_and_applications_wait_for_init() {
    for environment in ENVIRONMENTS {
        let graph = graph::of(&project(environment), &Default::default());
        assert_eq!(graph.cycle(), None, "{environment}");
        for service in ["rag", "open-webui"].iter().filter(|name| graph.services.contains_key(**name)) {
            assert!(graph.waits.iter().any(|(who, on, _)| who == service && on == "init"), "{environment}: {service}");
        }
    }
}

#[test]
fn the_environments_run_the_same_services() {
    let names = |environment: &str| -> Vec<String> {
        let services = project(environment).services();
        services.into_values().filter(|it| it.profiles.is_empty()).map(|it| it.name).collect()
    };
    assert_eq!(names("dev"), names("prod"));
}

#[test]
fn every_volume_with_state_is_backed_up() {
    let plan = backup::plan(&project("prod")).unwrap();
    let saved: Vec<&str> = plan.items.iter().map(|item| item.volume.as_str()).collect();
    let expected = [
        "llm-postgres-data",
        "vector-etcd-data",
        "vector-minio-data",
        "init-tokens",
        "rag-vault",
        "ui-openwebui-data",
        "vector-milvus-data",
    ];
    assert_eq!(saved, expected);
    assert_eq!(plan.writers, ["open-webui", "rag", "milvus"]);
    let text = plan.text(false);
    let (stop, etcd) = (text.find("stop open-webui").unwrap(), text.find("vector-etcd-data").unwrap());
    assert!(stop < etcd, "Milvus' stores must be read while nobody writes:\n{text}");
}

#[test]
fn images_of_ours_are_pinned_and_others_left_alone() {
    let project = project("prod");
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let pin = |name: &str| render::Pin {
        image: name.into(),
        repository: format!("ghcr.io/you/obelisk/{name}"),
        tag: "1.2.3".into(),
        digest: digest.clone(),
    };
    let text = render::compose(&project, &["core", "rag", "init"].map(pin)).unwrap();
    assert!(text.contains(&format!("  rag:\n    image: ghcr.io/you/obelisk/rag:1.2.3@{digest}\n")), "{text}");
    assert!(text.contains("  llm-storage:\n") && !text.contains("milvusdb"), "{text}");
    let error = render::compose(&project, &["core", "rag"].map(pin)).unwrap_err().to_string();
    assert!(error.contains("runs the image `init`, which is not among the pinned ones: core, rag"), "{error}");
}
