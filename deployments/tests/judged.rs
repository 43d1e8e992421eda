//! The deployment files, judged by the tools that read them: Docker Compose, kustomize, Kubernetes' schemas, shellcheck,
//! promtool and Caddy. A missing tool fails a test and says what to install.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

mod common;

use common::{entry, project, root, schema};
use deployments::compose::Condition;
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
    for script in ["own-volumes.sh", "litellm/start.sh", "milvus/start.sh", "openwebui/start.sh"] {
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
