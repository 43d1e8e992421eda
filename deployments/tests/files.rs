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

/// The problems of an environment when a further file is laid over it.
fn with(environment: &str, over: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("over.yaml");
    std::fs::write(&file, over).unwrap();
    match Project::with(&entry(environment), &[file], &Settings::new()) {
        Ok(project) => listed(&validate::compose(&project, &schema(), environment)),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_mistake_has_a_message_that_names_it() {
    for (environment, over, message) in [
        ("dev", "services: {rag: {helthcheck: {}}}", "helthcheck"),
        ("dev", "services: {rag: {networks: [nowhere]}}", "uses networks `nowhere`, which is not declared"),
        ("dev", "networks: {lonely: {}}", "networks `lonely`: is declared and no service uses it"),
        ("dev", "services: {rag: {secrets: [no_such]}}", "uses secrets `no_such`, which is not declared"),
        ("dev", "configs: {own_volumes: {file: ../nope}}", "its file `../nope` does not exist"),
        ("dev", "services: {core: {depends_on: {ghost: {condition: service_healthy}}}}", "waits for `ghost`"),
        ("dev", "services: {core: {depends_on: [tika]}}", "which says nothing about its state"),
        ("dev", "services: {core: {depends_on: {init: {condition: service_healthy}}}}", "which has no health check"),
        ("dev", "services: {core: {depends_on: {tika: {condition: service_completed_successfully}}}}", "is not a job"),
        (
            "dev",
            "services: {tika: {depends_on: {rag: {condition: service_healthy}}, networks: [app]}, rag: {depends_on: {tika: {condition: service_healthy}}}}",
            "a cycle: rag -> tika -> rag",
        ),
        (
            "dev",
            "services: {tika: {ports: [\"127.0.0.1:8000:9998\"]}}",
            "publishes port 8000, which `core` publishes too",
        ),
        ("dev", "services: {tika: {ports: [\"127.0.0.1:98000:9998\"]}}", "which is not a port, 1 to 65535"),
        ("dev", "services: {tika: {ports: [\"9998:9998\"]}}", "publishes port 9998 on every address"),
        ("prod", "services: {tika: {ports: [\"127.0.0.1:9998:9998\"]}}", "is not in the network `edge`"),
        ("test", "services: {core: {ports: [\"127.0.0.1:8000:8000\"]}}", "publishes the fixed port 8000"),
        ("prod", "services: {tika: {image: apache/tika}}", "its image has no tag, or `latest`"),
        ("prod", "services: {tika: {image: \"apache/tika:latest\"}}", "its image has no tag, or `latest`"),
        ("prod", "services: {tika: {user: tika}}", "its user is not numeric"),
        ("prod", "services: {tika: {user: \"0:0\"}}", "runs as root"),
        ("prod", "services: {tika: {read_only: false}}", "its root file system is writable"),
        ("prod", "services: {tika: {cap_add: [NET_ADMIN]}}", "is given capabilities"),
        (
            "prod",
            "services: {tika: {environment: {NO_SUCH: x}}}",
            "sees `NO_SUCH`, which env/schema.toml does not describe",
        ),
        ("prod", "services: {rag: {environment: {OLLAMA_URL: \"http://olama:11434\"}}}", "`olama` is no service"),
        (
            "prod",
            "services: {rag: {environment: {OLLAMA_URL: \"http://postgres:5432\"}}}",
            "`postgres` shares no network",
        ),
        (
            "prod",
            "services: {rag: {environment: {OLLAMA_URL: \"http://ollama:80\"}}}",
            "`ollama` does not offer port 80",
        ),
        (
            "prod",
            "services: {rag: {environment: {LOG_LEVEL: \"${NEW_NAME:-x}\"}}}",
            "is used by the compose files and not described",
        ),
        (
            "prod",
            "services: {rag: {environment: {LOG_LEVEL: \"${LOG_LEVEL:?say it}\"}}}",
            "`LOG_LEVEL` must be set: say it",
        ),
        ("prod", "services: {rag: {environment: {LOG_LEVEL: \"${LOG_LEVEL\"}}}", "is not a variable"),
        ("prod", "volumes: {data: {}}", "is not called AREA-CONTENT"),
        ("prod", "volumes: {rag-vault: {labels: {obelisk.backup: ftp}}}", "has no label obelisk.backup of"),
        ("prod", "services: [", "line 1"),
    ] {
        let said = with(environment, over);
        assert!(said.contains(message), "{over}\nsaid: {said}\nwanted: {message}");
    }
}
