//! The configuration files of services, and mistakes in them.

use deployments::compose::{Project, Settings};
use deployments::{ENVIRONMENTS, config};

use super::common::{listed, project, root};

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
