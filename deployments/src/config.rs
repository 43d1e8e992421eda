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
use crate::env;
use crate::validate::unreachable;
use crate::yaml;

/// Top-level keys of LiteLLM's class `ConfigYAML` and the file's own `include`.
const LITELLM: [&str; 6] =
    ["environment_variables", "general_settings", "include", "litellm_settings", "model_list", "router_settings"];

/// Settings of LiteLLM by section, so that a misspelt one is told; there are more. A test looks each up in LiteLLM's package.
pub const LITELLM_SETTINGS: [(&str, &[&str]); 3] = [
    (
        "litellm_settings",
        &[
            "allowed_fails",
            "cache",
            "callbacks",
            "content_policy_fallbacks",
            "context_window_fallbacks",
            "default_fallbacks",
            "drop_params",
            "failure_callback",
            "fallbacks",
            "force_ipv4",
            "json_logs",
            "modify_params",
            "num_retries",
            "redact_user_api_key_info",
            "request_timeout",
            "set_verbose",
            "ssl_verify",
            "success_callback",
            "turn_off_message_logging",
        ],
    ),
    (
        "router_settings",
        &[
            "allowed_fails",
            "allowed_fails_policy",
            "content_policy_fallbacks",
            "context_window_fallbacks",
            "cooldown_time",
            "debug_level",
            "default_fallbacks",
            "default_max_parallel_requests",
            "enable_pre_call_checks",
            "fallbacks",
            "max_fallbacks",
            "model_group_alias",
            "num_retries",
            "redis_host",
            "redis_password",
            "redis_port",
            "redis_url",
            "retry_after",
            "retry_policy",
            "routing_strategy",
            "set_verbose",
            "stream_timeout",
            "timeout",
        ],
    ),
    (
        "general_settings",
        &[
            "alerting",
            "background_health_checks",
            "database_connection_pool_limit",
            "database_url",
            "global_max_parallel_requests",
            "health_check_interval",
            "infer_model_from_keys",
            "master_key",
            "max_parallel_requests",
            "max_request_size_mb",
            "max_response_size_mb",
            "pass_through_endpoints",
            "store_model_in_db",
            "store_prompts_in_spend_logs",
            "ui_access_mode",
        ],
    ),
];

/// Options of Milvus that these deployments set or that are next to them (`configs/milvus.yaml`), so that a misspelt one is
/// told; there are many more.
const MILVUS_OPTIONS: [&str; 44] = [
    "accessKeyID",
    "address",
    "authorizationEnabled",
    "bucketName",
    "cloudProvider",
    "compressionTypes",
    "dbPath",
    "defaultRootPassword",
    "enabled",
    "endpoints",
    "file",
    "format",
    "http",
    "iamEndpoint",
    "internalPort",
    "kvSubPath",
    "level",
    "limitWriting",
    "limits",
    "maxCollectionNum",
    "maxCollectionNumPerDB",
    "maxDimension",
    "maxFieldNum",
    "maxNameLength",
    "maxTaskNum",
    "memProtection",
    "metaSubPath",
    "path",
    "port",
    "queryNodeMemoryHighWaterLevel",
    "queryNodeMemoryLowWaterLevel",
    "region",
    "retentionSizeInMB",
    "retentionTimeInMinutes",
    "rootPath",
    "secretAccessKey",
    "security",
    "ssl",
    "superUsers",
    "tlsMode",
    "type",
    "useIAM",
    "useSSL",
    "useVirtualHost",
];

/// Top-level keys of Prometheus' configuration, version 3.
const PROMETHEUS: [&str; 11] = [
    "alerting",
    "global",
    "otlp",
    "remote_read",
    "remote_write",
    "rule_files",
    "runtime",
    "scrape_config_files",
    "scrape_configs",
    "storage",
    "tracing",
];

/// Keys of a rule of Prometheus: an alert or a recording.
const RULE: [&str; 7] = ["alert", "annotations", "expr", "for", "keep_firing_for", "labels", "record"];

/// Caddy's directives (Caddyfile, version 2).
const CADDY: [&str; 40] = [
    "abort",
    "acme_server",
    "basic_auth",
    "bind",
    "encode",
    "error",
    "file_server",
    "forward_auth",
    "fs",
    "handle",
    "handle_errors",
    "handle_path",
    "header",
    "import",
    "intercept",
    "invoke",
    "log",
    "log_append",
    "log_name",
    "log_skip",
    "map",
    "method",
    "metrics",
    "php_fastcgi",
    "push",
    "redir",
    "request_body",
    "request_header",
    "respond",
    "reverse_proxy",
    "rewrite",
    "root",
    "route",
    "templates",
    "tls",
    "tracing",
    "try_files",
    "uri",
    "vars",
    "log_filter",
];

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
                Ok(value) if ends("prometheus/rules.yaml") => self.rules(&value),
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
        for (section, known) in LITELLM_SETTINGS {
            let names = value.get(section).and_then(Value::as_object).into_iter().flat_map(serde_json::Map::keys);
            problems.extend(names.filter_map(|name| self.misspelt(section, name, known)));
        }
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
        for (section, options) in value.as_object().into_iter().flatten() {
            keys(options, &mut |name| problems.extend(self.misspelt(section, name, &MILVUS_OPTIONS)));
        }
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

    /// A setting whose name is nearly, but not, that of a known one.
    fn misspelt(&self, section: &str, name: &str, known: &[&str]) -> Option<Problem> {
        let near = env::nearest(name, known.iter().copied()).filter(|_| !known.contains(&name))?;
        Some(self.problem(format!("{section}/{name}: is not known")).hint(format!("did you mean `{near}`?")))
    }

    fn rules(&self, value: &Value) -> Vec<Problem> {
        let mut problems = Vec::new();
        for rule in list(value.get("groups")).flat_map(|group| list(group.get("rules"))) {
            let name = rule.get("alert").or(rule.get("record")).and_then(Value::as_str).unwrap_or_default();
            let unknown = rule.as_object().into_iter().flatten().map(|(key, _)| key);
            for key in unknown.filter(|key| !RULE.contains(&key.as_str())) {
                problems.push(self.problem(format!("rule `{name}`: `{key}` is no key of a rule")));
            }
            if name.is_empty() || rule.get("expr").and_then(Value::as_str).is_none_or(str::is_empty) {
                problems.push(self.problem(format!("rule `{name}`: has no name, or no `expr`")));
            }
        }
        problems
    }

    fn prometheus(&self, value: &Value) -> Vec<Problem> {
        let mut problems = self.sections(value, &PROMETHEUS, "Prometheus");
        for job in list(value.get("scrape_configs")) {
            let name = job.get("job_name").and_then(Value::as_str).unwrap_or_default();
            let targets = list(job.get("static_configs")).flat_map(|it| list(it.get("targets")));
            for target in targets.filter_map(Value::as_str) {
                problems
                    .extend(self.reaches(target).map(|why| self.problem(format!("job `{name}`: `{target}`: {why}"))));
            }
            for looked_up in list(job.get("dns_sd_configs")) {
                // Without it the answer is expected to be of SRV records, which nobody here has.
                let kind = looked_up.get("type").and_then(Value::as_str).unwrap_or("SRV");
                let Some(port) = looked_up.get("port").and_then(Value::as_u64).filter(|_| matches!(kind, "A" | "AAAA"))
                else {
                    let what =
                        format!("job `{name}`: dns_sd_configs: names have addresses here: `type: A` and a `port`");
                    problems.push(self.problem(what));
                    continue;
                };
                for host in list(looked_up.get("names")).filter_map(Value::as_str) {
                    let target = format!("{host}:{port}");
                    problems.extend(
                        self.reaches(&target).map(|why| self.problem(format!("job `{name}`: `{target}`: {why}"))),
                    );
                }
            }
        }
        problems
    }

    fn caddy(&self) -> Vec<Problem> {
        let lines = self.text.lines().filter_map(|line| line.trim().strip_prefix("reverse_proxy "));
        let targets = lines.flat_map(|rest| rest.split_whitespace().filter(|word| word.contains(':')));
        let unreached = targets.filter_map(|target| {
            self.reaches(target).map(|why| self.problem(format!("reverse_proxy `{target}`: {why}")))
        });
        let mut problems: Vec<Problem> = unreached.collect();
        // The first block may be options; those of sites and of snippets have a name before their brace.
        let (mut depth, mut options) = (0_usize, false);
        for line in self.text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let word = line.split_whitespace().next().unwrap_or_default();
            if depth == 1 && !options && word != "}" && !word.starts_with('@') && !CADDY.contains(&word) {
                problems.push(self.problem(format!("`{word}` is no directive of Caddy")));
            }
            if depth == 0 {
                options = line == "{";
            }
            depth = if line.ends_with('{') { depth + 1 } else { depth - usize::from(line == "}" && depth > 0) };
        }
        problems
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

/// Every name of a mapping and of those in it.
fn keys(value: &Value, visit: &mut impl FnMut(&str)) {
    for (name, inner) in value.as_object().into_iter().flatten() {
        visit(name);
        keys(inner, visit);
    }
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
