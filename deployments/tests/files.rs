//! The deployment files of this repository, judged by this crate.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

mod common;

use common::{entry, project, root, schema};
use deployments::compose::{Project, Settings};
use deployments::kubernetes::Manifests;
use deployments::schema::JsonSchema;
use deployments::{ENVIRONMENTS, backup, config, env, graph, render, validate};
use serde_json::{Value, json};

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
        ("prod", "services: {tika: {cap_add: [NET_BIND_SERVICE]}}", "service `tika`: is given capabilities"),
        ("prod", "services: {proxy: {cap_add: [NET_ADMIN]}}", "service `proxy`: is given capabilities"),
        ("prod", "services: {tika: {volumes: [\"/var/run/docker.sock:/x:ro\"]}}", "mounts the engine's socket"),
        ("prod", "services: {tika: {healthcheck: {retries: 0}}}", "`tika`: its health check has no retries"),
        ("prod", "services: {tika: {image: \"apache/tika:3.1@sha256:0\"}}", "`tika`: its image's digest is none"),
        ("dev", "services: {core: {read_only: true}}", "service `core`: is read-only, and `develop.watch` copies"),
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

/// Manifests of one workload that keep every rule.
const MANIFESTS: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: store}
spec:
  serviceName: store
  selector: {matchLabels: {app.kubernetes.io/name: store}}
  template:
    metadata: {labels: {app.kubernetes.io/name: store, obelisk.network/data: "true"}}
    spec:
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: store
          image: example/store:1.0
          ports: [{name: store, containerPort: 5432}]
          readinessProbe: {tcpSocket: {port: store}}
          livenessProbe: {tcpSocket: {port: store}}
          resources: {requests: {cpu: 1m, memory: 1Mi}, limits: {memory: 1Mi}}
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
          volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates: [{metadata: {name: data}}]
---
apiVersion: v1
kind: Service
metadata: {name: store}
spec: {clusterIP: None, selector: {app.kubernetes.io/name: store}, ports: [{port: 5432}]}
---
kind: NetworkPolicy
metadata: {name: default-deny}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
kind: NetworkPolicy
metadata: {name: dns}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
    - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
      ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
---
kind: NetworkPolicy
metadata: {name: network-data}
spec:
  podSelector: {matchLabels: {obelisk.network/data: "true"}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {obelisk.network/data: "true"}}}]}]
  egress: [{to: [{podSelector: {matchLabels: {obelisk.network/data: "true"}}}]}]
"#;

#[test]
fn every_mistake_in_manifests_has_a_message_that_names_it() {
    let problems = |text: &str| listed(&Manifests::parse(text).unwrap().problems(&Default::default()));
    assert_eq!(problems(MANIFESTS), "");
    for (from, to, message) in [
        (
            "mountPath: /data}",
            "mountPath: /data, subPath: x}",
            "StatefulSet `store`, container `store`: mounts a subPath of `data`, which the kubelet makes as root",
        ),
        ("serviceName: store", "serviceName: other", "serviceName `other` is not a headless Service"),
        ("drop: [ALL]", "drop: []", "keeps capabilities"),
        ("{protocol: UDP, port: 53}, ", "", "NetworkPolicy: none lets every pod look up names"),
        ("egress: [{to: [", "egress: [{}, {to: [", "`network-data`: egress: a rule without `to` is every destination"),
        (
            "ingress: [{from: [",
            "ingress: [{}, {from: [",
            "`network-data`: ingress: a rule without `from` is every source",
        ),
        (
            "ingress: [{from: [",
            "ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}, ",
            "`network-data`: ingress: `0.0.0.0/0` is every source, pods included",
        ),
        (
            "egress: [{to: [",
            "egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}, ",
            "`network-data`: egress: `0.0.0.0/0` is every destination, pods included",
        ),
        (
            "ingress: [{from: [",
            "ingress: [{from: [{namespaceSelector: {}}, ",
            "`network-data`: ingress: `namespaceSelector: {}` is every namespace",
        ),
    ] {
        assert!(MANIFESTS.contains(from), "{from}");
        let said = problems(&MANIFESTS.replacen(from, to, 1));
        assert!(said.contains(message), "{from} -> {to}\nsaid: {said}\nwanted: {message}");
    }
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
        ("milvus/user.yaml", "metastore:", "metastores:", "`metastores` is no section that Milvus knows"),
        ("milvus/user.yaml", "  useSSL: false", "  accessKeyID: x", "minio/accessKeyID: a secret is written"),
        ("milvus/user.yaml", "/var/lib/milvus/rdb_data", "/data/rdb", "`/data/rdb` is in no volume"),
        ("milvus/user.yaml", "port: 19530", "port: 19531", "`milvus` does not expose 19531"),
        ("milvus/user.yaml", "etcd:", "etcd: [", "line "),
        ("prometheus/prometheus.yaml", "rag:8000", "rga:8000", "job `rag`: `rga:8000`: `rga` is no service"),
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
