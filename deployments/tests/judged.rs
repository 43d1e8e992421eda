//! The deployment files, judged by the tools that read them: Docker Compose, kustomize, Kubernetes' schemas, shellcheck,
//! promtool and Caddy. A missing tool fails a test and says what to install.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

mod common;

use common::{entry, project, root, schema};
use deployments::compose::{Condition, dotenv};
use deployments::kubernetes::Manifests;
use deployments::{ENVIRONMENTS, backup};
use serde_json::Value;

/// Runs a tool in an empty environment and returns what it prints; `text` goes to its input.
fn run(tool: &str, arguments: &[&str], text: &str) -> String {
    let mut command = Command::new(tool);
    command.args(arguments).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["PATH", "HOME", "DOCKER_CONFIG"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    let mut child =
        command.spawn().unwrap_or_else(|error| panic!("{tool}: {error}; `tests/tools target/tests` installs it"));
    child.stdin.take().unwrap().write_all(text.as_bytes()).ok();
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{tool} {}: {}\n{out}\n{err}", arguments.join(" "), output.status);
    out.into_owned()
}

fn compose(environment: &str, arguments: &[&str]) -> String {
    let file = entry(environment);
    let mut all = vec!["compose", "-f", file.to_str().unwrap(), "--profile", "*", "config"];
    all.extend(arguments);
    run("docker", &all, "")
}

#[test]
fn real_compose_merges_and_interpolates_as_we_do() {
    for environment in ENVIRONMENTS {
        let theirs: Value = serde_json::from_str(&compose(environment, &["--format", "json"])).unwrap();
        let ours = project(environment);
        assert_eq!(theirs["name"], ours.name);
        let services = ours.services();
        let theirs = theirs["services"].as_object().unwrap();
        assert_eq!(theirs.keys().collect::<Vec<_>>(), services.keys().collect::<Vec<_>>(), "{environment}");
        for (name, service) in &services {
            let at = format!("{environment}: {name}");
            let it = &theirs[name];
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            assert_eq!(it["image"], service.image, "{at}");
            assert_eq!(it["user"].as_str(), service.user.as_deref(), "{at}");
            assert_eq!(it["restart"].as_str(), service.restart.as_deref(), "{at}");
            assert_eq!(it["read_only"].as_bool().unwrap_or(false), service.read_only, "{at}");
            let mapping = |value: &Value| -> BTreeMap<String, String> {
                value.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
            };
            assert_eq!(mapping(&it["environment"]), service.environment, "{at}");
            assert_eq!(mapping(&it["labels"]), service.labels, "{at}");
            let names: BTreeSet<String> =
                it["networks"].as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect();
            assert_eq!(names, service.networks, "{at}");
            let waits: BTreeMap<String, Condition> = it["depends_on"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(on, value)| {
                    let condition = match value["condition"].as_str().unwrap() {
                        "service_healthy" => Condition::Healthy,
                        "service_completed_successfully" => Condition::Completed,
                        _ => Condition::Started,
                    };
                    (on.clone(), condition)
                })
                .collect();
            assert_eq!(waits, service.depends_on, "{at}");
            let list = |value: &Value| -> Vec<Value> { value.as_array().cloned().unwrap_or_default() };
            let health: Vec<String> = list(&it["healthcheck"]["test"]).iter().map(text).collect();
            // Compose prints a dollar sign as it is written in a file.
            let ours: Vec<String> = service.health.iter().map(|word| word.replace('$', "$$")).collect();
            assert_eq!(health, ours, "{at}");
            let ports: Vec<(Option<u16>, u64)> = list(&it["ports"])
                .iter()
                .map(|port| {
                    (port["published"].as_str().and_then(|it| it.parse().ok()), port["target"].as_u64().unwrap())
                })
                .collect();
            let ours: Vec<(Option<u16>, u64)> =
                service.ports.iter().map(|port| (port.host, u64::from(port.container))).collect();
            assert_eq!(ports, ours, "{at}");
            let mounts: BTreeSet<(String, bool)> = list(&it["volumes"])
                .iter()
                .map(|it| (it["target"].as_str().unwrap().to_owned(), it["read_only"].as_bool().unwrap_or(false)))
                .collect();
            let ours: BTreeSet<(String, bool)> =
                service.mounts.iter().map(|mount| (mount.target.clone(), mount.read_only)).collect();
            assert_eq!(mounts, ours, "{at}");
            let secrets: BTreeSet<String> = list(&it["secrets"]).iter().map(|it| text(&it["source"])).collect();
            assert_eq!(secrets, service.secrets, "{at}");
        }
    }
}

#[test]
fn real_compose_knows_no_variable_that_the_schema_lacks() {
    let schema = schema();
    for environment in ENVIRONMENTS {
        let table = compose(environment, &["--variables"]);
        let names: Vec<&str> = table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
        assert!(names.len() > 50, "{environment}: {table}");
        for name in names {
            let known = schema.variable(name).is_some_and(|variable| variable.is_setting());
            assert!(known, "{environment}: compose reads `{name}`, env/schema.toml does not know it as a setting");
        }
    }
}

/// Files of settings, and whether we refuse what Compose takes: nobody means it.
const ENVIRONMENT_FILES: &[(&str, bool)] = &[
    ("A=1", false),
    ("export A=1\n export  B = 2 \nexport\tC=3", false),
    ("A=a b  \nB=a # c\nC=a#c\nD=#c\nE= # c\nF=x #\nG=x\t# y", false),
    ("A=\"x # y\" # z\nB='x # y' # z\nC=\"x\"# y\nD=x\"y\"z\nE=it's\nF=\"a'b\"\nG='a\"b'", false),
    (
        r#"A="a\nb|\t|\r|\\|\a|\v|\q|\c"
B='a\nb'
C="a\"b"
D='a\'b'
E=a\nb
F=a\ b
G=\"x
H=x\"#,
        false,
    ),
    ("B=2\nA=$B\nC=${B}x\nD='$B'\nE=\"$B\"\nF=$B$B-$G\nG=1", false),
    ("A=$$b\nB=\"a$$b\"\nC='$$'\nD=5$\nE=$(x)\nF=$1\nG=\"\\$B\"\nH=\\$B", false),
    ("A=${Z:-d}\nB=${Z-d}\nC=\"${Z:-d e}\"\nD=\nE=${D:-d}\nF=${D-d}\nG=${A:+y}${Z:+n}\nH=${Z:-${A}}", false),
    ("A=${OUTSIDE}\nB=$OUTSIDE\nOUTSIDE=inside\nC=$OUTSIDE", false),
    ("A=1\nA=2\nB=1\nB=\nC=\nC=1", false),
    ("A=\nB=\"\"\nC=''\nD= \nE=\t", false),
    ("A=1\r\nB=\"2\"\r\nC='3' # x\r\n# d\r\nD=4 # x\r\n\r\nE=$B\r\n", false),
    ("\u{feff}A=1", false),
    ("A=\"line1\nline2\"\nB='l1\nl2'\nC=3", false),
    ("# c\n  # d\n\n  A=1\n\tB=2\n", false),
    ("A: 1\nB:\"x\"\nC : 3", false),
    ("A=1;B=2\nC=a=b=c\nD=`x`\nE=\u{65e5}\u{672c}\nF=a\tb\nG=\u{a0}1", false),
    ("A=\"x\" B=2\nC='y'D=3", false),
    ("1A=2\nA-B=1\nA.B=1\nA[0]=1\nA=3", false),
    ("exporting=1\nA=2", false),
    ("A", false),
    ("=x", false),
    ("A B=1", false),
    ("A+=1", false),
    ("A=\"x", false),
    ("A='x\nB=1", false),
    ("A=\"x\"y", false),
    ("A='a''b'", false),
    ("A=\"x\" y # z", false),
    ("A=${B", false),
    ("A=${Z:?must}", false),
    ("A=\"${B:-\"q\"}\"", false),
    ("A\nB=1", true),
    ("export A\nB=1", true),
    ("A=\"\\0101\"", true),
];

#[test]
fn real_compose_reads_environment_files_as_we_do() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let names = ["A", "B", "C", "D", "E", "F", "G", "H"];
    let lines: String = names.iter().map(|name| format!("      {name}: '<${{{name}-unset}}>'\n")).collect();
    let file = write("c.yaml", &format!("name: x\nservices:\n  s:\n    image: i\n    environment:\n{lines}"));
    for (text, refused) in ENVIRONMENT_FILES {
        let path = write("e.env", text);
        let mut compose = Command::new("docker");
        compose.args(["compose", "--env-file"]).arg(&path).arg("-f").arg(&file).args(["config", "--format", "json"]);
        for name in names {
            compose.env_remove(name);
        }
        let output = compose.env("OUTSIDE", "o").output().unwrap();
        let theirs = output.status.success().then(|| {
            let model: Value = serde_json::from_slice(&output.stdout).unwrap();
            // Compose prints a dollar sign as it is written in a file.
            let value = |name: &str| model["services"]["s"]["environment"][name].as_str().unwrap().replace("$$", "$");
            names.map(value)
        });
        let ours = dotenv(&path, text, &|name| (name == "OUTSIDE").then(|| "o".to_owned()));
        let ours = ours.map(|it| names.map(|name| it.get(name).map_or("<unset>".into(), |value| format!("<{value}>"))));
        match (ours, theirs) {
            (Ok(ours), Some(theirs)) => assert_eq!(ours, theirs, "{text:?}"),
            (Err(_), None) => {}
            (Err(error), Some(theirs)) => assert!(*refused, "{text:?}: {error}, Compose reads {theirs:?}"),
            (Ok(ours), None) => panic!("{text:?}: {ours:?}, Compose: {}", String::from_utf8_lossy(&output.stderr)),
        }
        assert!(!refused || dotenv(&path, text, &|_| None).is_err(), "{text:?} is not refused");
    }
}

#[test]
fn real_compose_parses_each_base_file_with_what_it_stands_on() {
    let base = |name: &str| root().join(format!("docker/compose/base/{name}.yaml")).display().to_string();
    let (core, vectors, rag) = (base("core"), base("vector-db"), base("rag"));
    run("docker", &["compose", "-f", &core, "config", "--quiet"], "");
    run("docker", &["compose", "-f", &vectors, "config", "--quiet"], "");
    run("docker", &["compose", "-f", &core, "-f", &vectors, "-f", &rag, "config", "--quiet"], "");
    let (dev, gpu) = (entry("dev"), root().join("docker/compose/overrides/gpu.yaml"));
    let text = run("docker", &["compose", "-f", dev.to_str().unwrap(), "-f", gpu.to_str().unwrap(), "config"], "");
    assert!(text.contains("driver: nvidia") && !text.contains("runtime:"), "{text}");
}

fn rendered(overlay: &str) -> String {
    let folder = root().join("kubernetes/overlays").join(overlay);
    run("kubectl", &["kustomize", folder.to_str().unwrap()], "")
}

#[test]
fn real_kustomize_renders_manifests_that_keep_the_rules_and_equal_compose() {
    let schema = schema();
    let secrets: BTreeSet<String> = schema.secrets.iter().map(|secret| secret.name.clone()).collect();
    for overlay in ["dev", "prod"] {
        let manifests = Manifests::parse(&rendered(overlay)).unwrap();
        let mut problems = manifests.problems(&secrets);
        problems.extend(manifests.compared(&project(overlay)));
        let listed: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        assert_eq!(listed, "", "{overlay}");
        assert!(manifests.len() > 35, "{overlay}: {}", manifests.len());
        // The jobs that save reach what they save, and a job that is in no network nothing.
        if overlay == "prod" {
            assert!(
                manifests.reaches("backup-postgres", "postgres", 5432)
                    && !manifests.reaches("backup-postgres", "etcd", 2379)
            );
            assert!(
                manifests.reaches("backup-vector", "etcd", 2379) && manifests.reaches("backup-vector", "minio", 9000)
            );
            assert!(manifests.reaches("prometheus", "rag", 8000) && !manifests.reaches("prometheus", "postgres", 5432));
            // The chat knows the address that the Ingress gives it, and the pages say how the first account is made.
            let env = "/spec/template/spec/containers/0/env";
            let told = manifests.of("StatefulSet")["open-webui"].pointer(env).unwrap().to_string();
            for setting in [
                r#"{"name":"WEBUI_URL","value":"https://chat.example.com"}"#,
                r#"{"name":"ENABLE_SIGNUP","value":"false"}"#,
            ] {
                assert!(told.contains(setting), "{told}");
            }
            let page = std::fs::read_to_string(root().join("../docs/deployments/quick-start-prod.md")).unwrap();
            assert!(page.contains("kubectl -n obelisk set env statefulset/open-webui ENABLE_SIGNUP=true"));
            // What the jobs run is in the ConfigMap, and is what the test of these scripts runs.
            let scripts = root().join("docker/config/backup");
            let mut ran = Vec::new();
            for (name, job) in manifests.of("CronJob") {
                let spec = job.pointer("/spec/jobTemplate/spec/template/spec").unwrap();
                assert_eq!(job["spec"]["suspend"] == true, name.starts_with("restore-"), "{name}");
                for list in ["initContainers", "containers"] {
                    for container in spec.get(list).and_then(Value::as_array).into_iter().flatten() {
                        let words: Vec<&str> =
                            container["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
                        let script = words[1].strip_prefix("/etc/backup/").unwrap();
                        assert!(scripts.join(script).is_file(), "{name}: {words:?}");
                        ran.push(format!("{} {script} {}", words[0], words[2]));
                    }
                }
            }
            let each = |verb: &str| {
                ["python3 files.py", "sh postgres.sh", "sh etcd.sh", "sh buckets.sh"].map(|it| format!("{it} {verb}"))
            };
            assert_eq!(ran, [each("save"), each("restore")].concat());
        }
    }
}

fn all_names(all: &[Value], kind: &str) -> Vec<String> {
    let of_kind = all.iter().filter(|it| it["kind"] == kind);
    of_kind.map(|it| it["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// The page's way to name another backup than the newest: in the job, and there in every container.
#[test]
fn real_a_backup_that_is_named_reaches_every_container_of_the_job() {
    let manifests = Manifests::parse(&rendered("prod")).unwrap();
    let page = std::fs::read_to_string(root().join("../docs/deployments/backup.md")).unwrap();
    let line = page.lines().find(|line| line.contains("kubectl set env --local")).unwrap();
    let words: Vec<&str> = line.split(" | ").nth(1).unwrap().split_whitespace().collect();
    for name in ["restore-postgres", "restore-vector", "restore-files"] {
        // What `create job --from=cronjob/NAME --dry-run=client` prints.
        let spec = &manifests.of("CronJob")[name]["spec"]["jobTemplate"]["spec"];
        let job =
            serde_json::json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec});
        let named = run(words[0], &words[1..], &job.to_string());
        let named = deployments::value("job".as_ref(), &named).unwrap();
        let pod = &named["spec"]["template"]["spec"];
        let containers =
            ["initContainers", "containers"].map(|it| pod[it].as_array().cloned().unwrap_or_default()).concat();
        assert_eq!(containers.len(), if name == "restore-vector" { 2 } else { 1 }, "{name}");
        for container in containers {
            let wanted = serde_json::json!([{"name": "BACKUP", "value": "/backup/vector-20260102T024500Z"}]);
            assert_eq!(container["env"], wanted, "{name}: {}", container["name"]);
        }
    }
}

/// Whoever may write into a claim that is put back is stopped first, and the page waits until its pods are gone, before it
/// starts a job; each is started again, and init runs anew.
#[test]
fn real_the_page_of_a_restore_stops_whoever_writes() {
    let manifests = Manifests::parse(&rendered("prod")).unwrap();
    let page = std::fs::read_to_string(root().join("../docs/deployments/backup.md")).unwrap();
    let at = |what: &str| page.find(what).unwrap_or_else(|| panic!("the page does not say `{what}`"));
    let named = |what: &str| -> BTreeSet<&str> {
        let lines = page.lines().filter(|line| line.starts_with("kubectl -n obelisk scale ") && line.ends_with(what));
        lines.flat_map(str::split_whitespace).filter_map(|word| Some(word.split_once('/')?.1)).collect()
    };
    let (stopped, started) = (named("--replicas=0"), &named("--replicas=1") | &named("--replicas=2"));
    let (_, waited) = page.split_once("app.kubernetes.io/name in (").unwrap();
    let waited: BTreeSet<&str> = waited.split(')').next().unwrap().split(", ").collect();
    assert_eq!(waited, &stopped | &BTreeSet::from(["init"]));
    // The pod through which documents are put is there while one wants it.
    assert_eq!(started, &stopped - &BTreeSet::from(["vault"]));
    let claims = |pod: &Value, own: Vec<String>| -> BTreeSet<String> {
        let volumes = pod["volumes"].as_array().cloned().unwrap_or_default();
        let name = |it: &Value| it.as_str().map(str::to_owned);
        let containers =
            ["initContainers", "containers"].map(|it| pod[it].as_array().cloned().unwrap_or_default()).concat();
        let mounts = containers.iter().flat_map(|it| it["volumeMounts"].as_array().cloned().unwrap_or_default());
        let written: BTreeSet<String> =
            mounts.filter(|it| it["readOnly"] != true).filter_map(|it| name(&it["name"])).collect();
        let claimed = volumes.iter().filter(|it| name(&it["name"]).is_some_and(|it| written.contains(&it)));
        claimed.filter_map(|it| name(&it["persistentVolumeClaim"]["claimName"])).chain(own).collect()
    };
    let put_back: BTreeSet<String> = ["restore-vector", "restore-files"]
        .iter()
        .flat_map(|name| {
            claims(&manifests.of("CronJob")[name]["spec"]["jobTemplate"]["spec"]["template"]["spec"], Vec::new())
        })
        .filter(|claim| claim != "backup")
        .collect();
    let expected = ["data-etcd-0", "data-milvus-0", "data-open-webui-0", "init-tokens", "rag-vault"].map(str::to_owned);
    assert_eq!(put_back, BTreeSet::from(expected));
    let mut writers = 0;
    for kind in ["Deployment", "StatefulSet", "Job"] {
        for (name, workload) in manifests.of(kind) {
            let templates = workload["spec"]["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
            let own =
                templates.iter().map(|it| format!("{}-{name}-0", it["metadata"]["name"].as_str().unwrap())).collect();
            if !claims(&workload["spec"]["template"]["spec"], own).is_disjoint(&put_back) {
                assert!(waited.contains(name), "{kind} `{name}` writes into what is put back and is not waited for");
                writers += 1;
            }
        }
    }
    assert!(writers >= 6, "{writers}");
    // The jobs of the night are suspended first, those at work ended, all of them, and applying the manifests resumes them.
    let nightly: Vec<&str> = manifests.of("CronJob").into_keys().filter(|it| it.starts_with("backup-")).collect();
    let suspended: Vec<String> = nightly.iter().map(|it| format!("cronjob/{it}")).collect();
    let patch = page.lines().find(|line| line.contains(" patch ")).unwrap();
    let words: Vec<&str> = patch.split_whitespace().filter(|it| it.starts_with("cronjob/")).collect();
    assert!(words == suspended && patch.ends_with("--patch '{\"spec\":{\"suspend\":true}}'"), "{patch}");
    for name in nightly {
        let labels = &manifests.of("CronJob")[name]["spec"]["jobTemplate"]["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/component"], "backup", "{name}");
    }
    let order = [
        " patch ",
        "delete job --selector app.kubernetes.io/component=backup",
        "--replicas=0",
        "delete job/init",
        "wait --for=delete pod",
        "create job --from=cronjob/restore-postgres",
        "wait --for=condition=complete job/restore-postgres",
        "--replicas=1",
        "kubectl apply -k deployments/kubernetes/overlays/prod",
        "wait --for=condition=complete job/init",
    ];
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{order:?}");
}

#[test]
fn real_damage_to_the_manifests_is_named() {
    let whole = deployments::documents("rendered".as_ref(), &rendered("prod")).unwrap();
    let project = project("prod");
    let find = |all: &mut Vec<Value>, kind: &str, name: &str| -> usize {
        all.iter().position(|it| it["kind"] == kind && it["metadata"]["name"] == name).unwrap()
    };
    // Changes the scrape configuration, whose ConfigMap is called after its content.
    let scrape = |all: &mut Vec<Value>, from: &str, to: &str| {
        let at = all.iter().position(|it| it.pointer("/data/prometheus.yaml").is_some()).unwrap();
        let text = all[at]["data"]["prometheus.yaml"].as_str().unwrap();
        assert!(text.contains(from), "{text}");
        all[at]["data"]["prometheus.yaml"] = text.replacen(from, to, 1).into();
    };
    type Damage<'a> = (&'a dyn Fn(&mut Vec<Value>), &'a str);
    let pods = "/spec/template/metadata/labels";
    let damages: &[Damage<'_>] = &[
        (
            &|all| {
                let at = find(all, "NetworkPolicy", "network-data");
                all.remove(at);
            },
            "litellm and postgres: share a network in compose, no policy lets them talk",
        ),
        (
            &|all| {
                let at = find(all, "NetworkPolicy", "network-data");
                all[at]["spec"]["ingress"][0]["ports"] = serde_json::json!([{"port": 5433}]);
            },
            "`litellm`: the policies do not let it reach `postgres` at port 5432, compose does",
        ),
        (
            &|all| {
                let at = find(all, "NetworkPolicy", "network-data");
                let everybody =
                    serde_json::json!([{"key": "app.kubernetes.io/part-of", "operator": "In", "values": ["obelisk"]}]);
                all[at]["spec"]["podSelector"] = serde_json::json!({"matchExpressions": everybody});
                all[at]["spec"]["ingress"][0]["from"][0]["podSelector"] =
                    serde_json::json!({"matchExpressions": everybody});
                all[at]["spec"]["egress"][0]["to"][0]["podSelector"] =
                    serde_json::json!({"matchExpressions": everybody});
            },
            "core and postgres: may talk by policy and share no network in compose",
        ),
        (
            &|all| {
                let at = find(all, "StatefulSet", "postgres");
                all[at].pointer_mut(pods).unwrap()["obelisk.network/llm"] = "true".into();
            },
            "ollama and postgres: may talk by policy and share no network in compose",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "rag");
                all[at]["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = "1.1.1.1".into();
            },
            "Deployment `rag`: sees LOG_FORMAT=`1.1.1.1`, compose sets `json`",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "rag");
                all[at]["spec"]["template"]["spec"]["containers"][0]["image"] = "obelisk/rag:9".into();
            },
            "Deployment `rag`: runs obelisk/rag:9, compose runs obelisk/rag:0.1.0",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "rag");
                all[at]["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] =
                    false.into();
            },
            "Deployment `rag`, container `rag`: its root file system is writable (readOnlyRootFilesystem: true)\n  hint: in compose \
             it is read_only",
        ),
        (
            &|all| {
                let at = find(all, "CronJob", "backup-files");
                let container = "/spec/jobTemplate/spec/template/spec/containers/0/securityContext";
                all[at].pointer_mut(container).unwrap().as_object_mut().unwrap().remove("readOnlyRootFilesystem");
            },
            "CronJob `backup-files`, container `archive`: its root file system is writable (readOnlyRootFilesystem: true)",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "rag");
                all[at]["spec"]["template"]["spec"]["initContainers"][0]["securityContext"]["runAsUser"] = 0.into();
            },
            "Deployment `rag`, container `wait-for-init`: runs as root (runAsUser: 0)",
        ),
        (
            &|all| {
                let at = find(all, "NetworkPolicy", "network-data");
                let out = serde_json::json!({"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}]});
                all[at]["spec"]["egress"].as_array_mut().unwrap().push(out);
            },
            "network `data`: goes out by policy and is internal in compose",
        ),
        (
            &|all| {
                let at = find(all, "StatefulSet", "postgres");
                all[at]["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = 5433.into();
            },
            "StatefulSet `postgres`: offers the ports {5433}, compose {5432}",
        ),
        (
            &|all| {
                let at = find(all, "Service", "obelisk-rag");
                all.remove(at);
            },
            "Service `obelisk-rag`: has no port 8000, which others use in compose",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "rag");
                all[at]["spec"]["template"]["spec"]["initContainers"][0]["args"] = serde_json::json!(["--alive"]);
            },
            "Deployment `rag`: no init container waits for the end of `init` (its image, `--wait`)",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "rag");
                let mounts = &mut all[at]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"];
                mounts.as_array_mut().unwrap().retain(|it| it["mountPath"] != "/app/vault");
            },
            "Deployment `rag`: mounts nothing at /app/vault, compose does",
        ),
        (
            &|all| {
                let at = find(all, "StatefulSet", "open-webui");
                let volumes = &mut all[at]["spec"]["template"]["spec"]["volumes"];
                volumes.as_array_mut().unwrap().retain(|it| it["name"] != "secrets");
            },
            "StatefulSet `open-webui`: mounts the secrets {}, compose {\"milvus_token\"}",
        ),
        (
            &|all| {
                let at = find(all, "HorizontalPodAutoscaler", "rag");
                all[at]["spec"]["maxReplicas"] = 2.into();
            },
            "HorizontalPodAutoscaler `rag`: maxReplicas is not above minReplicas: nothing would be scaled",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "tika");
                all.remove(at);
            },
            "service `tika`: is in compose and has no workload",
        ),
        (
            &|all| {
                let at = find(all, "PersistentVolumeClaim", "rag-vault");
                all.remove(at);
            },
            "Deployment `rag`: claims `rag-vault`, which does not exist",
        ),
        (
            &|all| {
                let at = find(all, "Service", "rag");
                all[at]["spec"]["ports"][0]["targetPort"] = "grpc".into();
            },
            "Service `rag`: no container offers its target port \"grpc\"",
        ),
        (
            &|all| {
                let at = find(all, "Job", "init");
                let items = "/spec/template/spec/volumes";
                let volumes = all[at].pointer_mut(items).unwrap().as_array_mut().unwrap();
                let secrets = volumes.iter_mut().find(|it| it["name"] == "secrets").unwrap();
                secrets["secret"]["items"][0]["key"] = "no_such".into();
            },
            "Job `init`: mounts the secret `no_such`, which env/schema.toml does not know",
        ),
        (
            &|all| {
                let at = find(all, "Ingress", "obelisk");
                all[at]["spec"]["rules"][1]["host"] = "talk.example.com".into();
            },
            "StatefulSet `open-webui`: WEBUI_URL is `https://chat.example.com`, and people open it at \
             `http://talk.example.com` (Ingress `obelisk`)",
        ),
        (
            &|all| scrape(all, "dns_sd_configs:", "static_configs: [{targets: [\"rag:8000\"]}]\n    x-unused:"),
            "ConfigMap `prometheus-config`, job `rag`: `rag:8000` is one address for up to 6 pods: each time another one \
             answers\n  hint: name a headless Service (clusterIP: None) in dns_sd_configs, with type A and the port",
        ),
        (
            &|all| scrape(all, "[rag-pods]", "[rag]"),
            "ConfigMap `prometheus-config`, job `rag`: `rag` is not headless: its name has one address, not one for each pod\n  \
             hint: name a headless Service (clusterIP: None) in dns_sd_configs, with type A and the port",
        ),
        (&|all| scrape(all, "[rag-pods]", "[rga]"), "ConfigMap `prometheus-config`, job `rag`: `rga` is no Service"),
        (
            &|all| scrape(all, "port: 8000", "port: 8001"),
            "ConfigMap `prometheus-config`, job `rag`: `rag-pods` does not offer port 8001",
        ),
        (
            &|all| {
                let at = find(all, "StatefulSet", "prometheus");
                let labels = all[at].pointer_mut(pods).unwrap().as_object_mut().unwrap();
                labels.remove("obelisk.network/app");
                labels.remove("obelisk.network/vector");
            },
            "ConfigMap `prometheus-config`, job `rag`: the policies do not let StatefulSet `prometheus` reach `rag-pods` at port 8000",
        ),
        (
            &|all| {
                let at = find(all, "CronJob", "backup-files");
                let spec = all[at].pointer_mut("/spec/jobTemplate/spec/template/spec").unwrap();
                spec.as_object_mut().unwrap().remove("affinity");
            },
            "PersistentVolumeClaim `data-open-webui-0`: is ReadWriteOnce, and is mounted by StatefulSet `open-webui` and \
             CronJob `backup-files`: those on another node would never start\n  hint: make it ReadWriteMany, or have the \
             others follow the pod that has it: a required podAffinity by kubernetes.io/hostname",
        ),
        (
            &|all| {
                let at = find(all, "PersistentVolumeClaim", "init-rag");
                all[at]["spec"]["accessModes"] = serde_json::json!(["ReadWriteOnce"]);
            },
            "PersistentVolumeClaim `init-rag`: is ReadWriteOnce, and is mounted by Deployment `rag` and Job `init`: those on another node would never start\n  hint: make it ReadWriteMany, or \
             have the others follow the pod that has it: a required podAffinity by kubernetes.io/hostname",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "litellm");
                all[at]["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"]["path"] =
                    "/health".into();
            },
            "Deployment `litellm`, container `litellm`: its liveness probe: `/health` of LiteLLM needs its key and calls \
             every model: ask /health/liveliness, or /health/readiness where the database counts",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "rag");
                let mounts = &mut all[at]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"];
                let mount = serde_json::json!({"name": "init-tokens", "mountPath": "/app/tokens", "readOnly": true});
                mounts.as_array_mut().unwrap().push(mount);
            },
            "Deployment `rag`: mounts `init-tokens` at /app/tokens, compose nothing",
        ),
        (
            &|all| {
                let at = find(all, "CronJob", "backup-files");
                all[at]["spec"].as_object_mut().unwrap().remove("suspend");
            },
            "CronJob `backup-files`: does not say `suspend: false`: applied again, it would stay suspended after a restore",
        ),
        (
            &|all| {
                let at = find(all, "CronJob", "restore-files");
                all[at]["spec"].as_object_mut().unwrap().remove("suspend");
            },
            "CronJob `restore-files`: puts data back by the clock (suspend: true)",
        ),
        (
            &|all| {
                let at = find(all, "CronJob", "backup-files");
                all[at]["spec"]["schedule"] = "15 25 * * *".into();
            },
            "CronJob `backup-files`: its schedule `15 25 * * *` is none: minute, hour, day, month, day of the week",
        ),
    ];
    let secrets: BTreeSet<String> = schema().secrets.iter().map(|secret| secret.name.clone()).collect();
    // The hash that kustomize puts behind a generated name.
    let hashed = all_names(&whole, "ConfigMap");
    let short = |text: &str| {
        let mut text = text.to_owned();
        for name in &hashed {
            let (bare, _) = name.rsplit_once('-').unwrap();
            text = text.replace(name, bare);
        }
        text
    };
    for (damage, message) in damages {
        let mut all = whole.clone();
        damage(&mut all);
        let text: String = all.iter().map(|it| format!("---\n{it}\n")).collect();
        let manifests = Manifests::parse(&text).unwrap();
        let said: Vec<String> = [manifests.problems(&secrets), manifests.compared(&project)]
            .concat()
            .iter()
            .map(|it| short(&it.to_string()))
            .collect();
        assert!(said.iter().any(|it| it == message), "wanted: {message}\nsaid: {said:#?}");
    }
}

#[test]
fn real_components_change_what_they_are_for() {
    let folder = tempfile::tempdir_in(root().join("kubernetes/overlays")).unwrap();
    let text = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../base]\n\
                components: [../../components/gpu, ../../components/openai]\n";
    std::fs::write(folder.path().join("kustomization.yaml"), text).unwrap();
    let rendered = run("kubectl", &["kustomize", folder.path().to_str().unwrap()], "");
    let manifests = Manifests::parse(&rendered).unwrap();
    let limits = "/spec/template/spec/containers/0/resources/limits";
    assert_eq!(manifests.of("StatefulSet")["ollama"].pointer(limits).unwrap()["nvidia.com/gpu"], 1);
    let environment = manifests.of("Job")["init"].pointer("/spec/template/spec/containers/0/env").unwrap().to_string();
    assert!(environment.contains(r#"{"name":"USE_OPENAI","value":"true"}"#), "{environment}");
}

#[test]
fn real_kubernetes_schemas_accept_every_manifest() {
    for overlay in ["dev", "prod"] {
        let text = rendered(overlay);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let said = run("kubernetes-validate", &["-k", "1.32", "--strict", file.path().to_str().unwrap()], "");
        let passed = said.lines().filter(|line| line.starts_with("INFO") && line.contains(" passed ")).count();
        assert_eq!(
            passed,
            Manifests::parse(&text).unwrap().len(),
            "{overlay}: a kind without a schema is no success\n{said}"
        );
    }
}

#[test]
fn real_shellcheck_accepts_every_script() {
    let config = root().join("docker/config");
    let backup = ["backup/postgres.sh", "backup/etcd.sh", "backup/buckets.sh"];
    let starts = ["own-volumes.sh", "litellm/start.sh", "milvus/start.sh", "openwebui/start.sh"];
    for script in starts.into_iter().chain(backup) {
        run("shellcheck", &[config.join(script).to_str().unwrap()], "");
    }
    for image in ["litellm", "milvus", "postgres", "s3"] {
        run("shellcheck", &[root().join("../images/stack").join(image).join("start.sh").to_str().unwrap()], "");
    }
    for environment in ["prod", "test"] {
        let plan = backup::plan(&project(environment)).unwrap();
        // SC2016: what is in single quotes is meant for the shell in the container. SC2094: the sums are written beside the
        // files that they are of. SC2154: functions get these variables before their names.
        run("shellcheck", &["--exclude=SC2016,SC2094,SC2154", "-"], &plan.backup_script());
        run("shellcheck", &["--exclude=SC2016,SC2094,SC2154", "-"], &plan.restore_script());
    }
}

/// The script of the jobs that save files and put them back: an archive that is cut off, wherever, changes nothing.
#[test]
fn real_files_are_put_back_only_from_a_whole_archive() {
    let folder = tempfile::tempdir().unwrap();
    let [data, backup] = ["data", "backup"].map(|name| folder.path().join(name));
    std::fs::create_dir_all(data.join("vault")).unwrap();
    std::fs::create_dir(&backup).unwrap();
    let files = || -> Vec<(String, Vec<u8>)> {
        let all = std::fs::read_dir(data.join("vault")).unwrap().map(|it| it.unwrap().path());
        let mut all: Vec<_> = all.map(|it| (it.display().to_string(), std::fs::read(it).unwrap())).collect();
        all.sort();
        all
    };
    let python = |verb: &str, archive: &str| {
        let mut command = std::process::Command::new("python3");
        command.arg(root().join("docker/config/backup/files.py")).arg(verb);
        command.env("BACKUP_FOLDER", &backup).env("SOURCES", &data).env("BACKUP", archive).output().unwrap()
    };
    for name in ["a", "b", "c"] {
        std::fs::write(data.join("vault").join(name), name.repeat(3000)).unwrap();
    }
    let saved = files();
    assert!(python("save", "").status.success());
    let archive = std::fs::read_dir(&backup).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&archive).unwrap();
    std::fs::write(data.join("vault/later"), "later").unwrap();
    std::fs::write(data.join("vault/a"), "changed").unwrap();
    let now = files();
    let cut = backup.join("cut");
    // Where the data of a file of 3000 equal letters is: its header is before it, and before that one what PAX adds.
    let data_of = |letter: u8| whole.windows(16).position(|it| it == [letter; 16]).unwrap();
    let (before, last, end) = (data_of(b'b') + 3072, data_of(b'c'), data_of(b'c') + 3072);
    assert!(whole[end..].iter().all(|byte| *byte == 0) && whole.len() >= end + 1024);
    // In the data of a file, between two files, in a header, between two headers of a file, before the end; nothing at all.
    for length in [data_of(b'b') + 1000, before, before + 100, last - 512, last, end - 1, end, end + 512, 0] {
        std::fs::write(&cut, &whole[..length]).unwrap();
        let said = python("restore", cut.to_str().unwrap());
        let text = String::from_utf8(said.stderr).unwrap();
        assert!(
            !said.status.success() && text.contains("cannot be read, and nothing was changed: "),
            "{length}: {text}"
        );
        assert!(files() == now, "{length}: {text}");
    }
    // Headers that rotted.
    for at in [before + 3, last - 512 + 3] {
        let mut rotten = whole.clone();
        rotten[at] ^= 1;
        std::fs::write(&cut, rotten).unwrap();
        assert!(!python("restore", cut.to_str().unwrap()).status.success() && files() == now, "{at}");
    }
    assert!(python("restore", "").status.success() && files() == saved);
}

#[test]
fn real_promtool_accepts_the_scrape_configuration_and_the_alerts() {
    let folder = root().join("docker/config/prometheus");
    run("promtool", &["check", "rules", folder.join("rules.yaml").to_str().unwrap()], "");
    run("promtool", &["check", "config", "--syntax-only", folder.join("prometheus.yaml").to_str().unwrap()], "");
}

#[test]
fn real_caddy_accepts_the_proxy_configuration() {
    let file = root().join("docker/config/caddy/Caddyfile");
    let adapted = run("caddy", &["adapt", "--config", file.to_str().unwrap(), "--adapter", "caddyfile"], "");
    assert!(adapted.contains("core:8000") && adapted.contains("open-webui:8080"), "{adapted}");
}
