//! The deployment files of this repository, judged by this crate.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

mod backups;
#[path = "../common/mod.rs"]
mod common;
mod configuration;
mod mistakes;
mod specification;
mod variables;

use common::{listed, project, root, schema};
use deployments::{ENVIRONMENTS, env, graph, render, validate};

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
fn images_of_ours_are_pinned_and_others_left_alone() {
    let project = project("prod");
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let pin = |name: &str| render::Pin {
        image: name.into(),
        repository: format!("ghcr.io/you/obelisk/{name}"),
        tag: "1.2.3".into(),
        digest: Some(digest.clone()),
    };
    let text = render::compose(&project, &["core", "rag", "init"].map(pin)).unwrap();
    assert!(text.contains(&format!("  rag:\n    image: ghcr.io/you/obelisk/rag:1.2.3@{digest}\n")), "{text}");
    assert!(text.contains("  llm-storage:\n") && !text.contains("milvusdb"), "{text}");
    let error = render::compose(&project, &["core", "rag"].map(pin)).unwrap_err().to_string();
    assert!(error.contains("runs the image `init`, which is not among the pinned ones: core, rag"), "{error}");
}

/// Folders that the plan names, and what each is for; the images' is the top-level one.
#[test]
fn the_folders_of_the_plan_are_there() {
    for (folder, holds) in [
        ("docker/compose", "dev.yaml"),
        ("docker/compose/base", "core.yaml"),
        ("docker/compose/base", "rag.yaml"),
        ("docker/compose/base", "vector-db.yaml"),
        ("docker/compose/overrides", "prod.yaml"),
        ("docker/config/litellm", "config.yaml"),
        ("docker/config/milvus", "user.yaml"),
        ("docker/config/ollama", "README.md"),
        ("docker/config/openwebui", "start.sh"),
        ("docker/env", "schema.toml"),
        ("kubernetes/base", "kustomization.yaml"),
        ("kubernetes/overlays/dev", "kustomization.yaml"),
        ("kubernetes/overlays/prod", "kustomization.yaml"),
        ("../images", "images.lock"),
        ("../images/core", "entrypoint.sh"),
        ("../images/rag", "entrypoint.sh"),
        ("../images/init", "init-sequence.sh"),
    ] {
        assert!(root().join(folder).join(holds).is_file(), "{folder}/{holds}");
    }
    // Nothing of the old layout, and nothing beside the parts that the README names.
    let mut parts: Vec<String> = std::fs::read_dir(root().join("docker"))
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    parts.sort();
    assert_eq!(parts, ["compose", "config", "env", "secrets"]);
}

#[test]
fn development_logs_everything_and_has_its_tools() {
    let (dev, prod) = (project("dev").services(), project("prod").services());
    for (service, variable, loud, quiet) in [
        ("rag", "LOG_LEVEL", "DEBUG", "INFO"),
        ("init", "LOG_LEVEL", "DEBUG", "INFO"),
        ("litellm", "LITELLM_LOG", "DEBUG", "INFO"),
        ("ollama", "OLLAMA_DEBUG", "1", "0"),
        ("open-webui", "GLOBAL_LOG_LEVEL", "DEBUG", "INFO"),
        ("open-webui", "ENV", "dev", "prod"),
    ] {
        assert_eq!(dev[service].environment[variable], loud, "{service}");
        assert_eq!(prod[service].environment[variable], quiet, "{service}");
    }
    // A shell in every network that a service answers in, and every service of interest at a port of this machine.
    let tools = &dev["tools"];
    assert_eq!(tools.profiles.iter().collect::<Vec<_>>(), ["debug"]);
    for service in ["rag", "litellm", "ollama", "open-webui", "milvus", "tika"] {
        assert!(!dev[service].networks.is_disjoint(&tools.networks), "{service}");
    }
    for service in ["core", "rag", "litellm", "ollama", "open-webui", "milvus"] {
        assert!(
            dev[service].ports.iter().all(|it| it.address == "127.0.0.1") && !dev[service].ports.is_empty(),
            "{service}"
        );
    }
    assert!(!prod.contains_key("tools") && prod["rag"].ports.is_empty());
}

/// Nothing of the tests outlives `down -v` (which `real_a_backup_is_put_back_byte_for_byte` runs): each volume is the
/// project's own, no service writes into a folder of the machine, nothing is started again and no port is fixed.
#[test]
fn the_test_environment_keeps_nothing() {
    let test = project("test");
    let volumes = test.top("volumes");
    assert!(volumes.len() >= 8, "{volumes:?}");
    for (name, volume) in &volumes {
        for elsewhere in ["external", "name", "driver", "driver_opts"] {
            assert!(volume.get(elsewhere).is_none(), "{name}: {elsewhere}");
        }
    }
    for service in test.services().values() {
        assert!(service.mounts.iter().all(|it| !it.bind || it.read_only), "{}", service.name);
        assert_eq!(service.restart.as_deref(), Some("no"), "{}", service.name);
        assert!(service.ports.iter().all(|port| port.host.is_none()), "{}", service.name);
    }
}

#[test]
fn what_is_generated_is_as_the_schema_says() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let again = "run `imgbuild env example` or `imgbuild env docs` and put it there";
    assert_eq!(read("docker/compose/.env.example"), env::example(&schema(), None), "{again}");
    assert!(read("../docs/deployments/configuration.md").contains(&env::docs(&schema())), "{again}");
    let picture = graph::of(&project("prod"), &Default::default()).svg();
    let again = "run `imgbuild deploy graph --env prod --format svg` and put it there";
    assert_eq!(read("../docs/deployments/graph.svg"), picture, "{again}");
}
