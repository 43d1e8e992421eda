//! The configuration files that a project mounts into its services, by the rules of the services that read them.
//!
//! What a service would only say when it starts, or never: LiteLLM refuses a fallback with two names, Milvus ignores a
//! section that it does not know, Prometheus scrapes a host that does not exist for ever. Each rule stands where its
//! source is named.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::Problem;
use crate::compose::{Project, Service};
use crate::validate::unreachable;
use crate::yaml;

/// Top-level keys of LiteLLM's class `ConfigYAML` and the file's own `include`.
const LITELLM: [&str; 6] =
    ["environment_variables", "general_settings", "include", "litellm_settings", "model_list", "router_settings"];

/// Keys of LiteLLM's whose value is a secret.
const LITELLM_SECRETS: [&str; 4] = ["api_key", "database_url", "master_key", "salt_key"];

/// Sections of Milvus' `configs/milvus.yaml`, 2.5 and 2.6.
const MILVUS: [&str; 30] = [
    "autoIndex",
    "common",
    "dataCoord",
    "dataNode",
    "etcd",
    "gpu",
    "grpc",
    "indexCoord",
    "indexNode",
    "internaltls",
    "kafka",
    "knowhere",
    "localStorage",
    "log",
    "metastore",
    "minio",
    "mixCoord",
    "mq",
    "natsmq",
    "proxy",
    "pulsar",
    "queryCoord",
    "queryNode",
    "quotaAndLimits",
    "rocksmq",
    "rootCoord",
    "streaming",
    "tikv",
    "tls",
    "trace",
];

/// Everything that is wrong with the files that a project's `configs` name.
pub fn check(project: &Project) -> Vec<Problem> {
    let services = project.services();
    let folder = project.files.first().and_then(|entry| entry.parent()).unwrap_or(Path::new("."));
    let mut problems = Vec::new();
    for (name, value) in project.top("configs") {
        let Some(file) = value.get("file").and_then(Value::as_str) else { continue };
        let path = folder.join(file);
        // A missing file is reported with the references.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let users: Vec<&Service> = services.values().filter(|it| it.configs.contains_key(&name)).collect();
        let read = Read { path: &path, text: &text, users: &users, services: &services };
        problems.extend(read.problems());
    }
    problems.sort();
    problems.dedup();
    problems
}

/// A file, and who reads it.
struct Read<'a> {
    path: &'a Path,
    text: &'a str,
    users: &'a [&'a Service],
    services: &'a BTreeMap<String, Service>,
}

impl Read<'_> {
    fn problem(&self, what: impl Into<String>) -> Problem {
        Problem::new(self.path.display().to_string(), what)
    }

    fn problems(&self) -> Vec<Problem> {
        let ends = |name: &str| self.path.ends_with(name);
        let extension = self.path.extension().and_then(|it| it.to_str()).unwrap_or_default();
        match extension {
            "sh" if !self.text.starts_with("#!/") => {
                vec![self.problem("does not begin with `#!/`: no program is named for it")]
            }
            "json" => match serde_json::from_str::<Value>(self.text) {
                Ok(_) => Vec::new(),
                Err(error) => vec![self.problem(format!("is not JSON: {error}"))],
            },
            "yaml" => match yaml::value(self.path, self.text) {
                Err(error) => vec![Problem::new(error.to_string(), "cannot be read")],
                Ok(value) if ends("litellm/config.yaml") => self.litellm(&value),
                Ok(value) if ends("milvus/user.yaml") => self.milvus(&value),
                Ok(value) if ends("prometheus/prometheus.yaml") => self.prometheus(&value),
                Ok(_) => Vec::new(),
            },
            _ if ends("Caddyfile") => self.caddy(),
            _ => Vec::new(),
        }
    }

    fn sections(&self, value: &Value, known: &[&str], whose: &str) -> Vec<Problem> {
        let Some(sections) = value.as_object() else { return vec![self.problem("is not a mapping")] };
        let unknown = sections.keys().filter(|name| !known.contains(&name.as_str()));
        unknown.map(|name| self.problem(format!("`{name}` is no section that {whose} knows"))).collect()
    }

    fn litellm(&self, value: &Value) -> Vec<Problem> {
        let mut problems = self.sections(value, &LITELLM, "LiteLLM");
        for (index, model) in list(value.get("model_list")).enumerate() {
            let at = format!("model_list/{index}");
            let name = model.get("model_name").and_then(Value::as_str);
            let target = model.pointer("/litellm_params/model").and_then(Value::as_str);
            if name.is_none_or(str::is_empty) {
                problems.push(self.problem(format!("{at}: `model_name` is missing")));
            }
            if target.is_none_or(str::is_empty) {
                problems.push(self.problem(format!("{at}: `litellm_params.model` is missing")));
            }
        }
        for (section, key) in ["fallbacks", "context_window_fallbacks", "content_policy_fallbacks"]
            .iter()
            .flat_map(|key| [("litellm_settings", key), ("router_settings", key)])
        {
            for (index, one) in list(value.pointer(&format!("/{section}/{key}"))).enumerate() {
                // The proxy ends at start: "Dictionary must have exactly one key".
                let names = one.as_object().map_or(0, serde_json::Map::len);
                if names != 1 {
                    problems.push(self.problem(format!(
                        "{section}/{key}/{index}: names {names} models; each entry must be one model with its list"
                    )));
                }
            }
        }
        let start = self.path.with_file_name("start.sh");
        let exported = std::fs::read_to_string(start).unwrap_or_default();
        leaves(value, &mut Vec::new(), &mut |path, leaf| {
            let at = path.join("/");
            let Some(text) = leaf.as_str() else { return };
            if let Some(variable) = text.strip_prefix("os.environ/") {
                let seen = self.users.iter().all(|service| service.environment.contains_key(variable))
                    || exported
                        .lines()
                        .any(|line| line.starts_with("export ") && line.split(' ').any(|it| it == variable));
                if !seen {
                    problems.push(
                        self.problem(format!("{at}: `{variable}` is a variable that no service with this file sees")),
                    );
                }
            } else if path.last().is_some_and(|key| LITELLM_SECRETS.contains(&key.as_str())) {
                problems.push(
                    self.problem(format!("{at}: a secret is written into the file"))
                        .hint("write `os.environ/NAME` and give the value as a secret"),
                );
            }
        });
        problems
    }

    fn milvus(&self, value: &Value) -> Vec<Problem> {
        let mut problems = self.sections(value, &MILVUS, "Milvus");
        for secret in ["accessKeyID", "secretAccessKey"] {
            if value.pointer(&format!("/minio/{secret}")).is_some() {
                problems.push(self.problem(format!("minio/{secret}: a secret is written into the file")));
            }
        }
        for path in ["/localStorage/path", "/rocksmq/path"] {
            let Some(folder) = value.pointer(path).and_then(Value::as_str) else { continue };
            let mounted = |service: &&&Service| service.mounts.iter().any(|mount| folder.starts_with(&mount.target));
            if self.users.iter().filter(mounted).count() != self.users.len() {
                problems.push(
                    self.problem(format!("{}: `{folder}` is in no volume: it is lost with the container", &path[1..])),
                );
            }
        }
        if let Some(port) = value.pointer("/proxy/port").and_then(Value::as_u64) {
            for service in self.users.iter().filter(|it| !it.expose.iter().any(|open| u64::from(*open) == port)) {
                problems.push(self.problem(format!("proxy/port: `{}` does not expose {port}", service.name)));
            }
        }
        problems
    }

    fn prometheus(&self, value: &Value) -> Vec<Problem> {
        let mut problems = Vec::new();
        for job in list(value.get("scrape_configs")) {
            let name = job.get("job_name").and_then(Value::as_str).unwrap_or_default();
            let targets = list(job.get("static_configs")).flat_map(|it| list(it.get("targets")));
            for target in targets.filter_map(Value::as_str) {
                problems
                    .extend(self.reaches(target).map(|why| self.problem(format!("job `{name}`: `{target}`: {why}"))));
            }
        }
        problems
    }

    fn caddy(&self) -> Vec<Problem> {
        let lines = self.text.lines().filter_map(|line| line.trim().strip_prefix("reverse_proxy "));
        let targets = lines.flat_map(|rest| rest.split_whitespace().filter(|word| word.contains(':')));
        targets
            .filter_map(|target| {
                self.reaches(target).map(|why| self.problem(format!("reverse_proxy `{target}`: {why}")))
            })
            .collect()
    }

    /// Why a reader of the file cannot reach `HOST:PORT`; itself it always can.
    fn reaches(&self, target: &str) -> Option<String> {
        let Some((host, port)) = target.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)))
        else {
            return Some("is not HOST:PORT".into());
        };
        if host == "localhost" {
            return None;
        }
        self.users.iter().find_map(|service| unreachable(self.services, service, host, port))
    }
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn leaves(value: &Value, path: &mut Vec<String>, visit: &mut impl FnMut(&[String], &Value)) {
    let mut inner = |key: String, value: &Value, path: &mut Vec<String>| {
        path.push(key);
        leaves(value, path, visit);
        path.pop();
    };
    match value {
        Value::Array(items) => items.iter().enumerate().for_each(|(index, item)| inner(index.to_string(), item, path)),
        Value::Object(entries) => entries.iter().for_each(|(key, item)| inner(key.clone(), item, path)),
        leaf => visit(path, leaf),
    }
}
