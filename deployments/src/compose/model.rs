//! Services as values with names.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// What a service waits for in another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// The container exists: an order of starting, nothing more.
    Started,
    /// Its health check succeeds.
    Healthy,
    /// It is a job and ended with 0.
    Completed,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Address of the host; empty: all of them.
    pub address: String,
    /// Port of the host; `None`: Docker chooses.
    pub host: Option<u16>,
    /// Port of the container.
    pub container: u16,
}

/// A mounted volume or folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mount {
    /// A volume's name, or a path.
    pub source: String,
    /// Where it is mounted.
    pub target: String,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Whether `source` is a path of the host.
    pub bind: bool,
}

/// A service of a merged project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its image reference.
    pub image: String,
    /// The user that it runs as.
    pub user: Option<String>,
    /// Its environment.
    pub environment: BTreeMap<String, String>,
    /// Its networks; empty when `network_mode` is given.
    pub networks: BTreeSet<String>,
    /// Further names that it has in its networks.
    pub aliases: BTreeSet<String>,
    /// `none`, `host` and the like.
    pub network_mode: Option<String>,
    /// What it waits for.
    pub depends_on: BTreeMap<String, Condition>,
    /// Published ports; those that cannot be read are in `unreadable_ports`.
    pub ports: Vec<Port>,
    /// Published ports that are not numbers between 1 and 65535.
    pub unreadable_ports: Vec<String>,
    /// Ports that others in its networks may use.
    pub expose: BTreeSet<u16>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Names of its secrets.
    pub secrets: BTreeSet<String>,
    /// Names of its configuration files, with the place where each is mounted.
    pub configs: BTreeMap<String, String>,
    /// Profiles; empty: it always belongs.
    pub profiles: BTreeSet<String>,
    /// When Docker starts it again.
    pub restart: Option<String>,
    /// The health check's command; empty: none.
    pub health: Vec<String>,
    /// Times, by the key that they are written under: those of the health check, and how long it may take to end.
    pub times: BTreeMap<String, String>,
    /// How often a health check may fail, where it is written.
    pub retries: Option<u64>,
    /// Whether its root file system cannot be written.
    pub read_only: bool,
    /// Whether `compose watch` copies files into its container.
    pub synced: bool,
    /// Capabilities that are taken away.
    pub cap_drop: BTreeSet<String>,
    /// Capabilities that are given.
    pub cap_add: BTreeSet<String>,
    /// Whether `no-new-privileges` is set.
    pub no_new_privileges: bool,
    /// What of the host it is given, as it is written: `privileged: true`, `pid: host`, `devices: /dev/kvm`.
    pub host: Vec<String>,
    /// Limits: processors and memory as they are written.
    pub limits: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The log driver's options.
    pub logging: BTreeMap<String, String>,
}

impl Service {
    /// Whether it is a job: it ends, and is not started again.
    pub fn is_job(&self) -> bool {
        self.restart.as_deref() == Some("no") && self.health.is_empty()
    }

    /// Reads a service of a merged model.
    pub(super) fn of(name: &str, value: &Value) -> Service {
        let text = |key: &str| value.get(key).map(scalar).filter(|text| !text.is_empty());
        let networks = value.get("networks").and_then(Value::as_object);
        let mut ports = Vec::new();
        let mut unreadable_ports = Vec::new();
        for item in items(value.get("ports")) {
            match port(item) {
                Some(port) => ports.push(port),
                None => unreadable_ports.push(scalar(item)),
            }
        }
        Service {
            name: name.to_owned(),
            image: text("image").unwrap_or_default(),
            user: text("user"),
            environment: mapping(value.get("environment")),
            networks: networks.into_iter().flatten().map(|(name, _)| name.clone()).collect(),
            aliases: networks
                .into_iter()
                .flatten()
                .flat_map(|(_, value)| items(value.get("aliases")).into_iter().map(scalar))
                .collect(),
            network_mode: text("network_mode"),
            depends_on: depends_on(value.get("depends_on")),
            ports,
            unreadable_ports,
            expose: items(value.get("expose")).into_iter().filter_map(|item| scalar(item).parse().ok()).collect(),
            mounts: items(value.get("volumes")).into_iter().filter_map(mount).collect(),
            secrets: items(value.get("secrets")).into_iter().map(source).collect(),
            configs: items(value.get("configs"))
                .into_iter()
                .map(|item| (source(item), item.get("target").map(scalar).unwrap_or_default()))
                .collect(),
            profiles: items(value.get("profiles")).into_iter().map(scalar).collect(),
            restart: text("restart"),
            health: match value.pointer("/healthcheck/test") {
                _ if value.pointer("/healthcheck/disable").and_then(Value::as_bool) == Some(true) => Vec::new(),
                Some(Value::String(line)) => vec![line.clone()],
                other => items(other).into_iter().map(scalar).collect(),
            },
            times: ["interval", "timeout", "start_period"]
                .into_iter()
                .filter_map(|key| Some((key, value.pointer(&format!("/healthcheck/{key}"))?)))
                .chain(value.get("stop_grace_period").map(|it| ("stop_grace_period", it)))
                .map(|(key, it)| (key.to_owned(), scalar(it)))
                .collect(),
            retries: value.pointer("/healthcheck/retries").map(scalar).and_then(|text| text.parse().ok()),
            read_only: value.get("read_only").and_then(Value::as_bool) == Some(true),
            synced: items(value.pointer("/develop/watch"))
                .into_iter()
                .any(|rule| rule.get("action").map(scalar).is_some_and(|action| action.starts_with("sync"))),
            cap_drop: items(value.get("cap_drop")).into_iter().map(scalar).collect(),
            cap_add: items(value.get("cap_add")).into_iter().map(scalar).collect(),
            no_new_privileges: items(value.get("security_opt"))
                .into_iter()
                .any(|item| matches!(scalar(item).as_str(), "no-new-privileges:true" | "no-new-privileges")),
            host: host(value),
            limits: mapping(value.pointer("/deploy/resources/limits")),
            labels: mapping(value.get("labels")),
            logging: mapping(value.pointer("/logging/options")),
        }
    }
}

/// A scalar as text: `8000` and `"8000"` are the same in a compose file.
pub(crate) fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn items(value: Option<&Value>) -> Vec<&Value> {
    value.and_then(Value::as_array).map(|items| items.iter().collect()).unwrap_or_default()
}

fn mapping(value: Option<&Value>) -> BTreeMap<String, String> {
    let entries = value.and_then(Value::as_object);
    entries.into_iter().flatten().map(|(key, value)| (key.clone(), scalar(value))).collect()
}

fn source(item: &Value) -> String {
    scalar(item.get("source").unwrap_or(item))
}

/// What of the host a service is given. A reservation of a GPU (`deploy.resources`) is none of it: its toolkit gives that device
/// alone.
fn host(value: &Value) -> Vec<String> {
    let on = |value: Option<&Value>| value.is_some_and(|it| scalar(it).eq_ignore_ascii_case("true"));
    let mut given = Vec::new();
    for key in ["privileged", "use_api_socket"] {
        given.extend(on(value.get(key)).then(|| format!("{key}: true")));
    }
    for key in ["cgroup", "ipc", "network_mode", "pid", "userns_mode", "uts"] {
        given.extend(value.get(key).filter(|it| scalar(it) == "host").map(|_| format!("{key}: host")));
    }
    for key in ["devices", "device_cgroup_rules"] {
        given.extend(items(value.get(key)).into_iter().map(|item| format!("{key}: {}", source(item))));
    }
    for option in items(value.get("security_opt")).into_iter().map(scalar) {
        let off = option.ends_with("unconfined") || matches!(option.as_str(), "label:disable" | "label=disable");
        given.extend(off.then(|| format!("security_opt: {option}")));
    }
    for key in ["post_start", "pre_stop"] {
        let privileged = items(value.get(key)).into_iter().any(|hook| on(hook.get("privileged")));
        given.extend(privileged.then(|| format!("{key}: privileged: true")));
    }
    given
}

fn depends_on(value: Option<&Value>) -> BTreeMap<String, Condition> {
    let entries = value.and_then(Value::as_object);
    let condition = |value: &Value| match value.get("condition").and_then(Value::as_str) {
        Some("service_healthy") => Condition::Healthy,
        Some("service_completed_successfully") => Condition::Completed,
        _ => Condition::Started,
    };
    entries.into_iter().flatten().map(|(name, value)| (name.clone(), condition(value))).collect()
}

/// `[ADDRESS:][HOST:]CONTAINER[/tcp]`, or the long form.
fn port(item: &Value) -> Option<Port> {
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    if item.is_object() {
        let host = item.get("published").map(scalar).filter(|text| !text.is_empty());
        return Some(Port {
            address: item.get("host_ip").map(scalar).unwrap_or_default(),
            host: match host {
                Some(host) => Some(number(&host)?),
                None => None,
            },
            container: number(&scalar(item.get("target")?))?,
        });
    }
    let text = scalar(item);
    let text = text.strip_suffix("/tcp").unwrap_or(&text);
    let (rest, container) = match text.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), number(container)?),
        None => (None, number(text)?),
    };
    let (address, host) = match rest {
        None => ("", None),
        Some(rest) => match rest.rsplit_once(':') {
            Some((address, "")) => (address, None),
            Some((address, host)) => (address, Some(number(host)?)),
            None => ("", Some(number(rest)?)),
        },
    };
    Some(Port { address: address.to_owned(), host, container })
}

fn mount(item: &Value) -> Option<Mount> {
    if item.is_object() {
        let source = item.get("source").map(scalar).unwrap_or_default();
        return Some(Mount {
            bind: item.get("type").and_then(Value::as_str) == Some("bind"),
            source,
            target: scalar(item.get("target")?),
            read_only: item.get("read_only").and_then(Value::as_bool) == Some(true),
        });
    }
    let text = scalar(item);
    let mut parts = text.split(':');
    let (source, target) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let read_only = parts.next().is_some_and(|flags| flags.split(',').any(|flag| flag == "ro"));
    Some(Mount { bind: source.starts_with(['.', '/', '~']), source, target, read_only })
}

/// Where a mount is mounted.
pub(super) fn mount_target(item: &Value) -> Option<String> {
    mount(item).map(|mount| mount.target)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_in_every_form() {
        let of = |value: Value| port(&value).map(|it| (it.address, it.host, it.container));
        assert_eq!(of(json!("80")), Some(("".into(), None, 80)));
        assert_eq!(of(json!(80)), Some(("".into(), None, 80)));
        assert_eq!(of(json!("8080:80/tcp")), Some(("".into(), Some(8080), 80)));
        assert_eq!(of(json!("127.0.0.1:8080:80")), Some(("127.0.0.1".into(), Some(8080), 80)));
        assert_eq!(of(json!("127.0.0.1::80")), Some(("127.0.0.1".into(), None, 80)));
        assert_eq!(of(json!({"target": 80, "published": "1"})), Some(("".into(), Some(1), 80)));
        for bad in ["0:80", "70000:80", "x:80", "", "80:"] {
            assert_eq!(of(json!(bad)), None, "{bad}");
        }
    }

    #[test]
    fn mounts_in_both_forms() {
        let short = mount(&json!("v:/a:ro")).unwrap();
        assert_eq!((short.source.as_str(), short.read_only, short.bind), ("v", true, false));
        assert!(mount(&json!("./x:/a")).unwrap().bind);
        assert!(mount(&json!({"type": "bind", "source": "/x", "target": "/a"})).unwrap().bind);
    }
}
