//! The deployment files of this repository, judged by this crate.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead as _, Read as _};

use common::{entry, listed, project, root, schema};
use deployments::compose::{Project, Settings};
use deployments::schema::JsonSchema;
use deployments::{ENVIRONMENTS, backup, config, env, graph, render, validate};
use serde_json::{Value, json};

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
    // What makes a site of the vault at its start is of the vault that was put back.
    assert_eq!(plan.readers, ["core"]);
    let (backup, restore) = (plan.text(false), plan.text(true));
    assert!(backup.contains(". stop open-webui, rag, milvus\n") && !backup.contains("core"), "{backup}");
    assert!(restore.contains(". stop core, open-webui, rag, milvus\n"), "{restore}");
    assert!(restore.contains(". start rag, open-webui, core again\n"), "{restore}");
    let text = plan.text(false);
    let (stop, etcd) = (text.find("stop open-webui").unwrap(), text.find("vector-etcd-data").unwrap());
    let script = plan.restore_script();
    assert!(script.contains(r#"-v "${project}_$1:/volume""#) && !script.contains("obelisk_"), "{script}");
    assert!(!script.contains("chmod -R") && script.matches("  volume \"$").count() == 2, "{script}");
    assert!(stop < etcd, "Milvus' stores must be read while nobody writes:\n{text}");
    // There the chat is in a profile and has volumes that others have, too.
    let plan = backup::plan(&project("test")).unwrap();
    let saved: Vec<&str> = plan.items.iter().map(|item| item.volume.as_str()).collect();
    assert_eq!(saved, expected.into_iter().filter(|it| *it != "ui-openwebui-data").collect::<Vec<_>>());
    assert_eq!(plan.writers, ["rag", "milvus"]);
    assert!(plan.left_out.iter().any(|it| it == "ui-openwebui-data"), "{:?}", plan.left_out);
}

/// What settings say is a word in a script and never a command.
#[test]
fn settings_do_not_become_commands_of_a_script() {
    let evil = "x'y;touch${IFS}/tmp/PWN;#";
    let mut plan = backup::plan(&project("prod")).unwrap();
    plan.helper_image = format!("{evil}/init:{evil}");
    plan.entry = format!("{evil}}}.yaml");
    plan.project = format!("obelisk\ntouch {evil}");
    let word = r"'x'\''y;touch${IFS}/tmp/PWN;#";
    for script in [plan.backup_script(), plan.restore_script()] {
        assert!(script.contains(&format!("\nimage={word}/init:{}'\n", &word[1..])), "{script}");
        assert!(script.contains(&format!("|| entry={word}}}.yaml'\n")), "{script}");
        assert_eq!(script.matches("PWN").count(), 4, "{script}");
        assert!(!script.contains("\ntouch"), "{script}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("script");
        std::fs::write(&file, script).unwrap();
        assert!(std::process::Command::new("bash").arg("-n").arg(file).status().unwrap().success());
    }
}

/// A step of a restore that fails, whichever: what was stopped is started again, and the old database is gone only once the
/// new one is whole.
#[test]
fn a_restore_that_fails_starts_everything_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let docker =
        "#!/bin/bash\necho \"$*\" >> log\ncase \"$*\" in *' config') echo 'name: p' ;; *\"$FAILS\"*) exit 7 ;; esac\n";
    std::fs::write(path.join("docker"), docker).unwrap();
    std::fs::write(path.join("restore.sh"), backup::plan(&project("prod")).unwrap().restore_script()).unwrap();
    std::fs::create_dir_all(path.join("saved/vector-minio-data")).unwrap();
    for name in ["complete", "SHA256SUMS", "llm-postgres-data.dump", "vector-etcd-data.db", "data"] {
        std::fs::write(path.join("saved").join(name), "").unwrap();
    }
    for name in ["init-tokens", "rag-vault", "ui-openwebui-data", "vector-milvus-data"] {
        std::fs::write(path.join("saved").join(format!("{name}.tar")), "").unwrap();
    }
    let sums = std::process::Command::new("sha256sum").arg("data").current_dir(path.join("saved")).output().unwrap();
    std::fs::write(path.join("saved/SHA256SUMS"), sums.stdout).unwrap();
    assert!(std::process::Command::new("chmod").arg("+x").arg(path.join("docker")).status().unwrap().success());
    let run = |fails: &str| {
        let _ = std::fs::remove_file(path.join("log"));
        let search = format!("{}:{}", path.display(), std::env::var("PATH").unwrap());
        let mut bash = std::process::Command::new("bash");
        let done =
            bash.args(["restore.sh", "saved"]).current_dir(path).env("PATH", search).env("FAILS", fails).output();
        let done = done.unwrap();
        let log = std::fs::read_to_string(path.join("log")).unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap(), log)
    };
    let started = |log: &str| -> Vec<String> {
        let ups = log.lines().filter(|line| line.contains(" up --detach "));
        ups.filter_map(|line| line.rsplit(' ').next()).map(str::to_owned).collect()
    };
    let (status, said, log) = run("nothing of this");
    assert!(status == Some(0) && said.contains("restored from") && !said.contains("half"), "{said}");
    assert_eq!(started(&log), ["postgres", "litellm", "etcd", "milvus", "rag", "open-webui", "core"]);
    // What lacks something, as the backup of another environment does, is refused before anything is touched.
    let (chats, aside) = (path.join("saved/ui-openwebui-data.tar"), path.join("aside"));
    std::fs::rename(&chats, &aside).unwrap();
    let (status, said, log) = run("nothing of this");
    assert!(status == Some(1) && said.contains("saved has no ui-openwebui-data.tar"), "{said}");
    assert!(log.lines().all(|line| line.ends_with(" config")), "{log}");
    std::fs::rename(&aside, &chats).unwrap();
    let everything = ["postgres", "etcd", "litellm", "milvus", "rag", "open-webui", "core"];
    for fails in [
        "pg_restore",
        "stop litellm",
        "RENAME",
        "stop core",
        "etcdutl",
        "mirror",
        "cp - ",
        "run --rm -T --no-deps init",
    ] {
        let (status, said, log) = run(fails);
        assert!(status == Some(7) && said.contains("error: half restored: run it again"), "{fails}: {status:?} {said}");
        assert!(started(&log).ends_with(&everything.map(str::to_owned)), "{fails}: {log}");
        assert_eq!(
            log.contains("drop \"$POSTGRES_DB\""),
            !["pg_restore", "stop litellm"].contains(&fails),
            "{fails}: {log}"
        );
    }
    // While another script is at work Docker is told nothing.
    std::fs::write(path.join("entry.yaml"), "").unwrap();
    std::fs::remove_file(path.join("log")).unwrap();
    let piped = || std::process::Stdio::piped();
    let mut flock = std::process::Command::new("flock");
    let flock = flock.args(["entry.yaml", "sh", "-c", "echo held; read it"]).current_dir(path);
    let mut other = flock.stdin(piped()).stdout(piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(other.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    let mut bash = std::process::Command::new("bash");
    bash.args(["restore.sh", "saved"])
        .current_dir(path)
        .env("COMPOSE_ENTRY", "entry.yaml")
        .env("FAILS", "nothing of this");
    bash.env("PATH", format!("{}:{}", path.display(), std::env::var("PATH").unwrap()));
    let mut waiting = bash.stderr(piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut said = std::io::BufReader::new(waiting.stderr.take().unwrap());
    line.clear();
    said.read_line(&mut line).unwrap();
    assert!(line.ends_with(" another backup or restore is at work: waiting for its end\n"), "{line}");
    assert!(!path.join("log").exists());
    drop(other.stdin.take());
    other.wait().unwrap();
    said.read_to_string(&mut line).unwrap();
    assert!(waiting.wait().unwrap().success() && line.contains("restored from"), "{line}");
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

/// Each variable of a limit changes the limit of the services that it is for, and no other, in every environment.
#[test]
fn every_limit_follows_its_variable_in_every_environment() {
    let schema = schema();
    let is_limit = |name: &str| name.ends_with("_CPU_LIMIT") || name.ends_with("_MEMORY_LIMIT");
    let mut changed = 0;
    for environment in ENVIRONMENTS {
        let limits = |settings: &Settings| -> Vec<(String, &'static str, String)> {
            let project = Project::with(&entry(environment), &[], settings, &|_| None).unwrap();
            let services = project.services().into_values();
            services
                .flat_map(|it| {
                    ["cpus", "memory"]
                        .map(|kind| (it.name.clone(), kind, it.limits.get(kind).cloned().unwrap_or_default()))
                })
                .collect()
        };
        let before = limits(&Settings::new());
        assert!(before.iter().all(|(name, kind, limit)| !limit.is_empty() || panic!("{environment}: {name} {kind}")));
        let variables = schema.variables.iter().filter(|it| is_limit(&it.name) && it.is_known_in(environment));
        for variable in variables {
            let kind = if variable.name.ends_with("_CPU_LIMIT") { "cpus" } else { "memory" };
            let value = if kind == "cpus" { "0.123" } else { "123m" };
            let after = limits(&Settings::from([(variable.name.clone(), value.to_owned())]));
            let differ: Vec<&(String, &str, String)> =
                after.iter().zip(&before).filter(|(now, then)| now != then).map(|(now, _)| now).collect();
            assert!(!differ.is_empty(), "{environment}: {} changes nothing", variable.name);
            assert!(differ.iter().all(|(_, of, limit)| *of == kind && limit == value), "{}: {differ:?}", variable.name);
            changed += differ.len();
        }
    }
    assert!(changed > 60, "{changed}");
    // What differs: the stand-ins of the tests need a fraction of what models need, and a whole processor to start at once.
    let limit =
        |environment: &str, service: &str, kind: &str| project(environment).services()[service].limits[kind].clone();
    for (service, kind, test, prod) in [
        ("ollama", "cpus", "1.0", "4.0"),
        ("ollama", "memory", "1g", "8g"),
        ("milvus", "memory", "1g", "4g"),
        ("postgres", "cpus", "1.0", "0.5"),
    ] {
        assert_eq!((limit("test", service, kind), limit("prod", service, kind)), (test.to_owned(), prod.to_owned()));
    }
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

/// The problems of an environment when a further file is laid over it.
fn with(environment: &str, over: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("over.yaml");
    std::fs::write(&file, over).unwrap();
    match Project::with(&entry(environment), &[file], &Settings::new(), &|_| None) {
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
        ("prod", "services: {tika: {cap_add: [NET_BIND_SERVICE]}}", "service `tika`: is given capabilities"),
        ("prod", "services: {proxy: {cap_add: [NET_ADMIN]}}", "service `proxy`: is given capabilities"),
        ("prod", "services: {tika: {volumes: [\"/var/run/docker.sock:/x:ro\"]}}", "mounts the engine's socket"),
        (
            "prod",
            "services: {tika: {volumes: [\"init-rag:/x:ro\"], depends_on: {init: {condition: service_completed_successfully}}}}",
            "volumes `init-rag`: holds secrets, and rag and tika have all of them\n  hint: give each a volume with its own",
        ),
        ("prod", "services: {llm-storage: {cap_add: [SYS_ADMIN]}}", "service `llm-storage`: is given capabilities"),
        ("prod", "services: {tika: {privileged: true}}", "service `tika`: shares the host (`privileged: true`)"),
        (
            "prod",
            "services: {tika: {use_api_socket: true}}",
            "service `tika`: shares the host (`use_api_socket: true`)",
        ),
        ("prod", "services: {llm-storage: {pid: host}}", "service `llm-storage`: shares the host (`pid: host`)"),
        ("prod", "services: {tika: {ipc: host}}", "service `tika`: shares the host (`ipc: host`)"),
        ("prod", "services: {tika: {uts: host}}", "service `tika`: shares the host (`uts: host`)"),
        ("prod", "services: {tika: {cgroup: host}}", "service `tika`: shares the host (`cgroup: host`)"),
        ("prod", "services: {tika: {userns_mode: host}}", "service `tika`: shares the host (`userns_mode: host`)"),
        (
            "prod",
            "services: {llm-storage: {network_mode: host}}",
            "`llm-storage`: shares the host (`network_mode: host`)",
        ),
        (
            "prod",
            "services: {tika: {devices: [\"/dev/kvm:/dev/kvm\"]}}",
            "shares the host (`devices: /dev/kvm:/dev/kvm`)",
        ),
        ("prod", "services: {tika: {devices: [{source: /dev/sda}]}}", "shares the host (`devices: /dev/sda`)"),
        ("prod", "services: {tika: {device_cgroup_rules: [\"a *:* rwm\"]}}", "`device_cgroup_rules: a *:* rwm`"),
        ("prod", "services: {tika: {security_opt: [\"seccomp:unconfined\"]}}", "(`security_opt: seccomp:unconfined`)"),
        ("prod", "services: {tika: {security_opt: [apparmor=unconfined]}}", "(`security_opt: apparmor=unconfined`)"),
        ("prod", "services: {tika: {security_opt: [\"label:disable\"]}}", "(`security_opt: label:disable`)"),
        (
            "prod",
            "services: {tika: {post_start: [{command: [x], privileged: true}]}}",
            "service `tika`: shares the host (`post_start: privileged: true`)",
        ),
        ("prod", "services: {tika: {volumes: [\"/:/host\"]}}", "service `tika`: mounts `/` of the host"),
        ("prod", "services: {tika: {volumes: [\"/etc:/x:ro\"]}}", "service `tika`: mounts `/etc` of the host"),
        ("prod", "services: {tika: {volumes: [\"/etc/shadow:/x:ro\"]}}", "mounts `/etc/shadow` of the host"),
        ("dev", "services: {tika: {volumes: [\"/proc:/x\"]}}", "service `tika`: mounts `/proc` of the host"),
        ("test", "services: {tika: {volumes: [\"/sys/fs:/x\"]}}", "service `tika`: mounts `/sys/fs` of the host"),
        ("prod", "services: {tika: {volumes: [{type: bind, source: /var, target: /x}]}}", "mounts `/var` of the host"),
        (
            "prod",
            "services: {tika: {volumes: [\"/run/podman/podman.sock:/x\"]}}",
            "`/run/podman/podman.sock` of the host",
        ),
        ("prod", "services: {tika: {volumes: [\"/srv/../var/run:/x\"]}}", "mounts `/srv/../var/run` of the host"),
        (
            "prod",
            "services: {tika: {volumes: [\"../../../../../../../../../../../../etc:/x\"]}}",
            "mounts `../../../../../../../../../../../../etc` of the host",
        ),
        (
            "prod",
            "volumes: {rag-vault: {driver_opts: {type: none, o: bind, device: /etc}}}",
            "volumes `rag-vault`: is `/etc` of the host",
        ),
        ("prod", "services: {tika: {healthcheck: {retries: 0}}}", "`tika`: its health check has no retries"),
        (
            "prod",
            "services: {tika: {healthcheck: {test: [CMD, \"true\"]}}}",
            "`tika`: its health check: `true` is always true",
        ),
        (
            "prod",
            "services: {tika: {healthcheck: {test: exit 0}}}",
            "`tika`: its health check: `exit 0` is always true",
        ),
        (
            "prod",
            "services: {tika: {healthcheck: {test: [CMD-SHELL, \":\"]}}}",
            "`tika`: its health check: `:` is always true",
        ),
        (
            "prod",
            "services: {tika: {healthcheck: {test: \"curl -f http://127.0.0.1:9998 || true\"}}}",
            "`tika`: its health check: `curl -f http://127.0.0.1:9998 || true` is always true: it asks the service nothing",
        ),
        ("prod", "services: {tika: {healthcheck: {disable: true}}}", "service `tika`: has no health check"),
        (
            "prod",
            "services: {litellm: {healthcheck: {test: [CMD, curl, -f, \"http://127.0.0.1:4000/health\"]}}}",
            "`litellm`: its health check: `/health` of LiteLLM needs its key and calls every model: ask /health/liveliness",
        ),
        (
            "test",
            "services: {litellm-proxy: {healthcheck: {test: [CMD, curl, -f, \"http://127.0.0.1:4000/health/live\"]}}}",
            "`litellm-proxy`: its health check: `/health/live` does not say whether LiteLLM is well",
        ),
        ("prod", "services: {tika: {image: \"apache/tika:3.1@sha256:0\"}}", "`tika`: its image's digest is none"),
        ("dev", "services: {core: {read_only: true}}", "service `core`: is read-only, and `develop.watch` copies"),
        ("dev", "services: {core: {user: \"10001:10001\"}}", "service `core`: `develop.watch` copies files into it"),
        ("dev", "services: {core: {user: games}}", "service `core`: its user is not numeric"),
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
        (
            "prod",
            "services:\n  rag:\n    depends_on: !override\n      tika: {condition: service_healthy}\n",
            "reads `init-rag` and does not wait for the end of `init`",
        ),
        ("prod", "services: {tika: {restart: \"no\"}}", "`tika`: has a health check and is not started again"),
        ("prod", "services: {tika: {healthcheck: {interval: fifteen}}}", "`fifteen` is no time (30s, 1m30s): interval"),
        ("prod", "services: {tika: {stop_grace_period: 5 s}}", "`5 s` is no time (30s, 1m30s): stop_grace_period"),
        ("prod", "services: {tika: {deploy: {resources: {limits: {memory: lots}}}}}", "its limit of memory is none"),
        ("prod", "services: {tika: {deploy: {resources: {limits: {cpus: many}}}}}", "its limit of cpus is none"),
        (
            "prod",
            "services: {tika: {depends_on: {proxy: {condition: service_healthy}}}}",
            "waits for `proxy`, which is in the profile tls and may not be there",
        ),
        ("dev", "services: {tika: {ports: [\"0.0.0.0:9998:9998\"]}}", "publishes port 9998 on every address"),
        (
            "dev",
            "services: {tika: {ports: [\"127.0.0.1:9999:9999\"]}}",
            "publishes port 9999 of its container, which it does not offer",
        ),
        ("prod", "volumes: {data: {}}", "is not called AREA-CONTENT"),
        ("prod", "volumes: {rag-vault: {labels: {obelisk.backup: ftp}}}", "has no label obelisk.backup of"),
        ("prod", "services: [", "line 1"),
    ] {
        let said = with(environment, over);
        assert!(said.contains(message), "{over}\nsaid: {said}\nwanted: {message}");
    }
}

/// What is legitimate: folders of one's own, memory as a volume, and the graphics card of the override for it.
#[test]
fn folders_of_ones_own_and_a_graphics_card_are_not_the_host() {
    for over in [
        "services: {tika: {volumes: [\"/srv/vault:/x:ro\", \"/variable:/y\", \"../config:/z\"]}}",
        "volumes: {rag-vault: {driver_opts: {type: tmpfs, device: tmpfs}}}",
        "volumes: {rag-vault: {driver_opts: {type: none, o: bind, device: /srv/vault}}}",
    ] {
        assert_eq!(with("prod", over), "", "{over}");
    }
    let gpu = root().join("docker/compose/overrides/gpu.yaml");
    let gpu = Project::with(&entry("prod"), &[gpu], &Settings::new(), &|_| None).unwrap();
    assert_eq!(gpu.services()["ollama"].host, [""; 0]);
    let said = listed(&validate::compose(&gpu, &schema(), "prod"));
    assert!(!said.contains("of the host") && !said.contains("shares the host"), "{said}");
}

#[test]
fn what_a_service_of_ours_is_told_is_what_it_reads() {
    let read = |path: &str| std::fs::read_to_string(root().join("../images").join(path)).unwrap();
    let all = |paths: &[&str]| paths.iter().map(|path| read(path)).collect::<String>();
    let config = read("obelisk/src/obelisk/rag/config.py");
    let init = ["common", "init-sequence", "generate-tokens", "download-models", "configure-services"];
    let init = all(&init.map(|name| format!("init/{name}.sh")).each_ref().map(String::as_str));
    let core = all(&["core/entrypoint.sh", "core/serve.py", "obelisk/mkdocs.yml"]);
    let word = |text: &str, name: &str| {
        text.lines().filter(|line| !line.trim_start().starts_with('#')).any(|line| {
            line.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').any(|it| it == name)
        })
    };
    let reads = |service: &str, name: &str| match service {
        // Where the file is stands before all settings.
        "rag" if name == "OBELISK_CONFIG" => config.contains("environ.get(\"OBELISK_CONFIG\")"),
        // Each setting is a line of one table; a secret may be told as a file.
        "rag" => [name, name.strip_suffix("_FILE").unwrap_or(name)].iter().enumerate().any(|(at, it)| {
            config.lines().skip_while(|line| !line.starts_with("class Settings")).any(|line| {
                line.starts_with(&format!(
                    "    {}: {}",
                    it.to_lowercase(),
                    if at == 1 && *it != name { "Secret" } else { "" }
                ))
            })
        }),
        "init" => {
            let secret = name.strip_suffix("_FILE").is_some_and(|it| init.contains(&format!("secret {it}\n")));
            secret || word(&init, name)
        }
        // The C library reads TZ.
        "core" => name == "TZ" || word(&core, name),
        other => panic!("{other}"),
    };
    assert!(!reads("init", "WAIT_TIMEOUTS") && !reads("rag", "CHUNK") && !reads("rag", "OLLAMA_URL_FILE"));
    let mut seen = 0;
    for environment in ENVIRONMENTS {
        let services = project(environment).services();
        for service in ["rag", "init", "core"] {
            for name in services[service].environment.keys() {
                assert!(reads(service, name), "{environment}: `{service}` is told `{name}` and does not read it");
                seen += 1;
            }
        }
    }
    assert!(seen > 100, "{seen}");
}

/// What init writes for the retrieval service is what it uses: no variable of its container, of compose or of its image, says
/// something else.
#[test]
fn nothing_wins_over_what_init_writes_for_rag() {
    let read = |path: &str| std::fs::read_to_string(root().join("../images").join(path)).unwrap();
    let init = read("init/configure-services.sh");
    let written = init.split_once("write 0444 rag/rag.yaml").unwrap().1;
    let settings = written.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(": "));
    let names: BTreeSet<String> = settings.map(|(name, _)| name.to_uppercase()).collect();
    assert!(names.len() >= 7 && names.contains("MILVUS_URI") && names.contains("OLLAMA_MODEL"), "{names:?}");
    let image = read("src/rag.rs");
    for environment in ENVIRONMENTS {
        let rag = &project(environment).services()["rag"];
        assert_eq!(rag.environment["OBELISK_CONFIG"], "/app/config/rag.yaml");
        for name in &names {
            let told = rag.environment.get(name).map(String::as_str);
            let of_image = image.contains(&format!(".env(\"{name}\""));
            assert!(
                told == Some("") || (told.is_none() && !of_image),
                "{environment}: {name}: {told:?}, image: {of_image}"
            );
        }
    }
}

/// What is read and is no setting of the deployments: the service, the variable, why.
const INTERNAL: [(&str, &str, &str); 21] = [
    ("init", "OBELISK_LIB", "where common.sh is: its tests run the scripts from another place"),
    ("init", "OLLAMA_API_BASE", "follows OLLAMA_API_URL; differs where LiteLLM reaches Ollama by another address"),
    ("init", "TOKENS_DIR", "the image says where its volume is"),
    ("init", "CONFIG_DIR", "the image says where its volume is"),
    ("init", "TOKENS_GID", "who reads tokens here runs as the job's own group"),
    ("init", "INIT_DEADLINE_SECONDS", "an older name of WAIT_TIMEOUT"),
    ("init", "LITELLM_MASTER_KEY", "given as a file"),
    ("init", "OPENAI_API_KEY", "given as a file"),
    ("rag", "API_TOKEN", "given as a file"),
    ("rag", "MILVUS_TOKEN", "given as a file"),
    ("rag", "OPENAI_API_KEY", "given as a file"),
    ("rag", "LITELLM_API_KEY", "given as a file"),
    ("rag", "TOKENS_FILE", "LITELLM_API_KEY_FILE says it"),
    ("rag", "MILVUS_HOST", "an older form of MILVUS_URI, which wins"),
    ("rag", "MILVUS_PORT", "an older form of MILVUS_URI, which wins"),
    ("rag", "EMBEDDING_MODEL", "in the file that init writes"),
    ("rag", "OLLAMA_MODEL", "in the file that init writes"),
    ("rag", "LITELLM_API_URL", "in the file that init writes"),
    ("core", "API_PORT", "the image says its port"),
    ("core", "MKDOCS_CONFIG", "the image says where the file is"),
    ("core", "SITE_DIR", "the entry point says where the site is built"),
];

/// Variables that scripts of the shell read from outside: those that get a default or are never given a value.
fn read_by_shell(text: &str) -> BTreeSet<String> {
    let is_name = |letter: char| letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '_';
    let take = |text: &str| text.chars().take_while(|letter| is_name(*letter)).collect::<String>();
    let (mut read, mut wanted, mut given) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for line in text.lines().map(str::trim_start).filter(|line| !line.starts_with('#')) {
        for (at, _) in line.match_indices('$') {
            let rest = line[at + 1..].trim_start_matches(['{', '!', '#']);
            let name = take(rest);
            let is_default = rest[name.len()..].starts_with(":=") && line[at..].starts_with("${");
            if is_default { &mut read } else { &mut wanted }.insert(name);
        }
        if let Some(name) = line.strip_prefix("secret ").map(take).filter(|name| !name.is_empty()) {
            read.extend([name.clone(), format!("{name}_FILE")]);
        }
        for word in line.split(|letter: char| letter.is_whitespace() || "({;!".contains(letter)) {
            let name = take(word);
            let behind = &word[name.len()..];
            let declared = behind.is_empty()
                && ["readonly ", "local ", "export ", "declare "].iter().any(|it| line.starts_with(it));
            if behind.starts_with(['=', '[']) || behind.starts_with("+=") || declared {
                given.insert(name);
            }
        }
    }
    read.extend(wanted.difference(&given).cloned());
    // `$1`, what the shell itself knows, and jq's `$ARGS`.
    let shell = ["ARGS", "BASH_REMATCH", "EPOCHSECONDS", "LINENO", "RANDOM"];
    read.retain(|name| name.starts_with(|letter: char| letter.is_ascii_uppercase()) && !shell.contains(&name.as_str()));
    read
}

#[test]
fn every_variable_that_our_services_read_is_described() {
    let read = |path: &str| std::fs::read_to_string(root().join("../images").join(path)).unwrap();
    let scripts = |paths: &[&str]| paths.iter().map(|path| read(path)).collect::<String>();
    let names = ["common", "init-sequence", "generate-tokens", "download-models", "configure-services"];
    let init = read_by_shell(&scripts(&names.map(|name| format!("init/{name}.sh")).each_ref().map(String::as_str)));

    let mut rag = read_by_shell(&read("rag/entrypoint.sh"));
    let code = read("obelisk/src/obelisk/rag/config.py");
    let options =
        code.lines().skip_while(|line| !line.starts_with("class Settings")).take_while(|line| !line.contains("def "));
    for line in options.filter(|line| line.contains(" = _option(")) {
        let (name, kind) = line.trim().split_once(": ").unwrap();
        rag.insert(name.to_uppercase());
        rag.extend(kind.starts_with("Secret").then(|| format!("{}_FILE", name.to_uppercase())));
    }
    let asked = |text: &str, before: &str| -> Vec<String> {
        let after = text.split(before).skip(1).filter_map(|rest| rest.strip_prefix(['"', '\'']));
        after.filter_map(|rest| rest.split(['"', '\'']).next()).map(str::to_owned).collect()
    };
    let code = code + &read("obelisk/src/obelisk/cli.py");
    rag.extend([asked(&code, "environ.get("), asked(&code, "environ[")].concat());

    let mut core = read_by_shell(&read("core/entrypoint.sh"));
    let site = read("obelisk/mkdocs.yml");
    core.extend(site.split("!ENV [").skip(1).filter_map(|rest| rest.split([',', ']']).next()).map(str::to_owned));
    let serve = read("core/serve.py");
    core.extend([asked(&serve, "environ.get("), asked(&serve, "environ[")].concat());

    let (schema, mut internal) = (schema(), BTreeSet::new());
    for (service, names) in [("init", init), ("rag", rag), ("core", core)] {
        assert!(names.len() >= if service == "core" { 4 } else { 25 }, "{service}: {names:?}");
        for name in names.into_iter().filter(|name| name != "HOME") {
            let described =
                schema.variable(&name).is_some_and(|it| it.is_seen() && it.services.iter().any(|of| of == service));
            let excused = INTERNAL.iter().any(|(of, it, _)| *of == service && *it == name);
            assert!(described != excused, "`{service}` reads `{name}`: described {described}, internal {excused}");
            internal.extend(excused.then_some((service, name)));
        }
    }
    let gone: Vec<_> = INTERNAL.iter().filter(|(of, it, _)| !internal.contains(&(*of, (*it).to_owned()))).collect();
    assert!(gone.is_empty(), "nobody reads {gone:?} any more");
}

/// Every way to break a value at one place: another type, a missing, misspelt or doubled entry.
fn broken(value: &Value) -> Vec<Value> {
    let mut all =
        vec![json!(null), json!(true), json!(-1), json!(1.5), json!("every_1x"), json!([]), json!({}), json!([{}])];
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                all.extend(broken(item).into_iter().map(|other| {
                    let mut items = items.clone();
                    items[index] = other;
                    Value::Array(items)
                }));
            }
            all.push(Value::Array(items.iter().chain(items.first()).cloned().collect()));
        }
        Value::Object(entries) => {
            for (name, inner) in entries {
                all.extend(broken(inner).into_iter().map(|other| {
                    let mut entries = entries.clone();
                    entries.insert(name.clone(), other);
                    Value::Object(entries)
                }));
                let mut without = entries.clone();
                without.remove(name);
                let mut misspelt = without.clone();
                misspelt.insert(format!("{name}x"), inner.clone());
                let mut extended = entries.clone();
                extended.insert(format!("x-{name}"), json!(1));
                all.extend([without, misspelt, extended].map(Value::Object));
            }
        }
        _ => {}
    }
    all
}

/// Parts of compose files that these deployments do not use and the schema describes.
const MORE: &str = r#"{
    "name": "x",
    "include": ["a.yaml", {"path": ["b.yaml"], "env_file": "e", "project_directory": "."}],
    "services": {"s": {
        "build": {"context": ".", "args": {"A": 1}, "ssh": ["default"]}, "pull_policy": "every_1d", "gpus": "all",
        "ulimits": {"nofile": {"soft": 1, "hard": 2}, "nproc": 3}, "extra_hosts": ["a:b"], "container_name": "ab",
        "depends_on": {"t": {"condition": "service_healthy", "restart": true, "required": false}},
        "devices": ["/dev/x", {"source": "a", "target": "b", "permissions": "r"}], "scale": 2, "profiles": ["p"],
        "develop": {"watch": [{"path": ".", "action": "sync", "target": "/x", "ignore": ["a"]}]},
        "blkio_config": {"weight": 10, "device_read_bps": [{"path": "/x", "rate": "1m"}]},
        "volumes": ["a:/b", {"type": "tmpfs", "target": "/t", "tmpfs": {"size": "1m", "mode": 448}}],
        "healthcheck": {"test": "x", "disable": false, "interval": "1s", "retries": 3},
        "networks": {"n": {"aliases": ["b"], "ipv4_address": "10.0.0.2", "priority": 1}},
        "deploy": {"replicas": 2, "resources": {"reservations": {"devices": [{"capabilities": ["gpu"], "count": "all"}]}}},
        "post_start": [{"command": ["x"], "user": "y", "privileged": false, "environment": ["A=1"]}],
        "oom_score_adj": 5, "pids_limit": 3, "stop_grace_period": "1s", "tmpfs": "/x", "cpus": 1.5}},
    "models": {"m": {"model": "x", "context_size": 1}},
    "networks": {"n": {"internal": true, "ipam": {"config": [{"subnet": "10.0.0.0/8"}]}, "labels": ["a=b"]}},
    "volumes": {"a": null}, "secrets": {"s": {"file": "x"}}, "configs": {"c": {"content": "x"}}, "x-y": 1
}"#;

#[test]
fn the_specification_is_read_as_the_crate_jsonschema_reads_it() {
    let text = std::fs::read_to_string(root().join("vendor/compose-spec/compose-spec.json")).unwrap();
    let ours = JsonSchema::parse(&text).unwrap();
    let theirs = jsonschema::validator_for(&serde_json::from_str(&text).unwrap()).unwrap();
    let files: std::collections::BTreeSet<_> = ENVIRONMENTS.iter().flat_map(|it| project(it).files).collect();
    let files = files.iter().map(|path| deployments::value(path, &std::fs::read_to_string(path).unwrap()).unwrap());
    // Of our files every ninth mistake is enough: most are the same mistake in another service.
    let values = [(serde_json::from_str(MORE).unwrap(), 1)].into_iter().chain(files.map(|value| (value, 9)));
    let (mut valid, mut invalid) = (0, 0);
    for (value, step) in values {
        assert_eq!(ours.misfits(&value), [], "the files themselves are valid");
        for other in broken(&value).into_iter().step_by(step) {
            let wrong = ours.misfits(&other);
            assert_eq!(wrong.is_empty(), theirs.is_valid(&other), "{wrong:?}\n{other:#}");
            *if wrong.is_empty() { &mut valid } else { &mut invalid } += 1;
        }
    }
    assert!(valid > 200 && invalid > 2000, "{valid} valid, {invalid} invalid");
}

/// The problems of the configuration files when one of them says something else.
fn with_config(environment: &str, file: &str, from: &str, to: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp").arg("-r").arg(root().join("docker")).arg(folder.path()).status();
    assert!(copied.unwrap().success());
    let path = folder.path().join("docker/config").join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} does not say {from}");
    std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
    let entry = folder.path().join(format!("docker/compose/{environment}.yaml"));
    listed(&config::check(&Project::open(&entry, &Settings::new()).unwrap()))
}

#[test]
fn every_configuration_file_says_what_its_service_understands() {
    for environment in ENVIRONMENTS {
        assert_eq!(listed(&config::check(&project(environment))), "", "{environment}");
    }
    for (file, from, to, message) in [
        (
            "litellm/config.yaml",
            "router_settings:",
            "router_setings:",
            "`router_setings` is no section that LiteLLM knows",
        ),
        ("litellm/config.yaml", "  - model_name: ollama/*", "  - name: x", "model_list/1: `model_name` is missing"),
        ("litellm/config.yaml", "allowed_fails: 3", "fallbacks: [{a: [b], c: [d]}]", "fallbacks/0: names 2 models"),
        (
            "litellm/config.yaml",
            "os.environ/LITELLM_MASTER_KEY",
            "sk-1234",
            "general_settings/master_key: a secret is written",
        ),
        (
            "litellm/config.yaml",
            "os.environ/OLLAMA_API_BASE",
            "os.environ/OLLAMA",
            "`OLLAMA` is a variable that no service",
        ),
        (
            "litellm/config.yaml",
            "  num_retries: 2 ",
            "  num_retrys: 2 ",
            "litellm_settings/num_retrys: is not known\n  hint: did you mean `num_retries`?",
        ),
        ("litellm/config.yaml", "allowed_fails:", "allow_fails:", "router_settings/allow_fails: is not known"),
        (
            "milvus/user.yaml",
            "  rootPath: by-dev",
            "  rootPth: by-dev",
            "etcd/rootPth: is not known\n  hint: did you mean `rootPath`?",
        ),
        ("milvus/user.yaml", "memProtection", "memProtektion", "quotaAndLimits/memProtektion: is not known"),
        (
            "prometheus/prometheus.yaml",
            "scrape_configs:",
            "scrape_config:",
            "`scrape_config` is no section that Prometheus knows",
        ),
        ("prometheus/rules.yaml", "expr: up", "exr: up", "rule `ServiceDown`: `exr` is no key of a rule"),
        ("prometheus/rules.yaml", "expr: up", "exr: up", "rule `ServiceDown`: has no name, or no `expr`"),
        ("caddy/Caddyfile", "encode gzip", "encod gzip", "`encod` is no directive of Caddy"),
        ("milvus/user.yaml", "metastore:", "metastores:", "`metastores` is no section that Milvus knows"),
        ("milvus/user.yaml", "  useSSL: false", "  accessKeyID: x", "minio/accessKeyID: a secret is written"),
        ("milvus/user.yaml", "/var/lib/milvus/rdb_data", "/data/rdb", "`/data/rdb` is in no volume"),
        ("milvus/user.yaml", "port: 19530", "port: 19531", "`milvus` does not expose 19531"),
        ("milvus/user.yaml", "etcd:", "etcd: [", "line "),
        ("prometheus/prometheus.yaml", "[rag-pods]", "[rga]", "job `rag`: `rga:8000`: `rga` is no service"),
        (
            "prometheus/prometheus.yaml",
            "port: 8000",
            "port: 80",
            "job `rag`: `rag-pods:80`: `rag-pods` does not offer port 80",
        ),
        ("prometheus/prometheus.yaml", "type: A, ", "", "job `rag`: dns_sd_configs: names have addresses here"),
        ("prometheus/prometheus.yaml", "milvus:9091", "milvus:9092", "`milvus` does not offer port 9092"),
        ("prometheus/prometheus.yaml", "etcd:2379", "postgres:5432", "`postgres` shares no network"),
        ("caddy/Caddyfile", "core:8000", "core:80", "reverse_proxy `core:80`: `core` does not offer port 80"),
        ("grafana/dashboards/obelisk.json", "{", "", "is not JSON"),
        ("own-volumes.sh", "#!/bin/bash", "", "does not begin with `#!/`"),
    ] {
        let said = with_config("prod", file, from, to);
        assert!(
            said.contains(message) && said.contains(file),
            "{file}: {from} -> {to}\nsaid: {said}\nwanted: {message}"
        );
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

#[test]
fn every_option_of_a_configuration_file_has_a_comment() {
    for file in ["litellm/config.yaml", "milvus/user.yaml"] {
        let text = std::fs::read_to_string(root().join("docker/config").join(file)).unwrap();
        let (mut explained, mut before) = (std::collections::BTreeSet::new(), "");
        for line in text.lines() {
            let bare = line.trim_start().trim_start_matches("- ");
            if let Some((key, value)) = bare.split_once(": ").filter(|(key, _)| !key.starts_with('#')) {
                let comment = value.contains("# ") || before.trim_start().starts_with('#');
                assert!(comment || explained.contains(key), "{file}: `{key}` is not explained: {line}");
                explained.insert(key);
            }
            before = line;
        }
        assert!(explained.len() > 8, "{file}: {explained:?}");
    }
}
