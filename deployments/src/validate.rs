//! Checking a compose project: everything that is named exists, and every service keeps the rules.
//!
//! A service may break a rule on purpose; it says so in its label `obelisk.exception`, `RULE: REASON`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

use serde_json::Value;

use crate::Problem;
use crate::compose::{Condition, Project, Service};
use crate::env::{self, Schema};
use crate::schema::JsonSchema;
use crate::{graph, probe, render, yaml};

/// The compose specification's schema; see `vendor/compose-spec/ORIGIN.md`.
const COMPOSE_SPEC: &str = include_str!("../vendor/compose-spec/compose-spec.json");

/// The first word of a volume's name: the area of the services that it belongs to.
const AREAS: [&str; 8] = ["core", "edge", "init", "llm", "monitoring", "rag", "ui", "vector"];

/// Folders of a host that make it what it is, or through which its engine is ruled: a container that has one has the host.
/// A folder of one's own, such as the vault, lies in none of them, unless the whole checkout does.
const OF_THE_HOST: [&str; 9] =
    ["/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/var/lib/containerd", "/var/lib/docker", "/var/run"];

/// From the folder of the compose files to the checkout that they are in.
const CHECKOUT: &str = "../../..";

static SPEC: LazyLock<JsonSchema> =
    LazyLock::new(|| JsonSchema::parse(COMPOSE_SPEC).expect("the vendored schema is understood, as a test proves"));

/// Everything that is wrong with a project. `schema` is that of the variables; `environment` chooses its rules.
pub fn compose(project: &Project, schema: &Schema, environment: &str) -> Vec<Problem> {
    let services = project.services();
    let mut problems = Vec::new();
    problems.extend(specification(project));
    problems.extend(references(project, &services));
    problems.extend(dependencies(project, &services));
    problems.extend(ports(&services, environment));
    problems.extend(services.values().flat_map(hardening));
    problems.extend(folders_of_the_host(project, &services));
    problems.extend(waits_for_what_it_reads(&services));
    if environment != "test" {
        for service in services.values().filter(|it| !it.health.is_empty() && it.restart.as_deref() == Some("no")) {
            let what = "has a health check and is not started again when it ends (restart: no)";
            problems.push(Problem::new(format!("service `{}`", service.name), what));
        }
    }
    problems.extend(volumes(project, &services));
    problems.extend(addresses(&services));
    problems.extend(variables(project, schema, environment));
    problems.extend(seen(&services, schema, environment));
    problems.sort();
    problems.dedup();
    problems
}

/// Each file by itself against the compose specification's schema, which catches what is misspelt.
pub fn specification(project: &Project) -> Vec<Problem> {
    let mut problems = Vec::new();
    for path in &project.files {
        let at = path.display().to_string();
        match yaml::read(path).and_then(|text| yaml::value(path, &text)) {
            Err(error) => problems.push(Problem::new(at, error.to_string())),
            Ok(value) => problems.extend(
                SPEC.misfits(&value).into_iter().map(|it| Problem::new(&at, format!("{}: {}", it.place, it.what))),
            ),
        }
    }
    problems
}

/// Networks, volumes, secrets and configurations: what is used is declared, what is declared is used, files exist.
fn references(project: &Project, services: &BTreeMap<String, Service>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let folder = project.files.first().and_then(|entry| entry.parent()).unwrap_or(Path::new("."));
    let mut check = |key: &str, used: BTreeMap<String, BTreeSet<&str>>| {
        let declared = project.top(key);
        for (name, by) in &used {
            if !declared.contains_key(name) {
                let by = by.iter().copied().collect::<Vec<_>>().join(", ");
                problems.push(Problem::new(
                    format!("service `{by}`"),
                    format!("uses {key} `{name}`, which is not declared"),
                ));
            }
        }
        for (name, value) in &declared {
            if !used.contains_key(name) {
                problems.push(Problem::new(format!("{key} `{name}`"), "is declared and no service uses it"));
            }
            // Secrets are made on each machine; whether they are there is `env check`'s question.
            if key == "configs"
                && let Some(file) = value.get("file").and_then(Value::as_str)
            {
                if !folder.join(file).is_file() {
                    let what = format!("its file `{file}` does not exist below {}", folder.display());
                    problems.push(Problem::new(format!("configs `{name}`"), what));
                }
            } else if matches!(key, "configs" | "secrets") && value.get("file").is_none() {
                problems.push(
                    Problem::new(format!("{key} `{name}`"), "is not a file")
                        .hint("with a read-only root file system Docker accepts only files"),
                );
            }
        }
    };
    let by = |of: &dyn Fn(&Service) -> Vec<String>| {
        let mut used: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for service in services.values() {
            for name in of(service) {
                used.entry(name).or_default().insert(&service.name);
            }
        }
        used
    };
    check("networks", by(&|service| service.networks.iter().cloned().collect()));
    check("secrets", by(&|service| service.secrets.iter().cloned().collect()));
    check("configs", by(&|service| service.configs.keys().cloned().collect()));
    let named = |service: &Service| -> Vec<String> {
        service
            .mounts
            .iter()
            .filter(|mount| !mount.bind && !mount.source.is_empty())
            .map(|mount| mount.source.clone())
            .collect()
    };
    let mut used = by(&named);
    // A volume that one environment replaces by a folder is still declared in the base.
    for mount in services.values().flat_map(|service| &service.mounts).filter(|mount| mount.bind) {
        let replaced =
            project.top("volumes").into_keys().find(|name| mount.target.ends_with(name.trim_start_matches("rag-")));
        used.extend(replaced.map(|name| (name, BTreeSet::new())));
    }
    check("volumes", used);
    problems
}

fn dependencies(project: &Project, services: &BTreeMap<String, Service>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for service in services.values() {
        let at = format!("service `{}`", service.name);
        for (on, condition) in &service.depends_on {
            let Some(other) = services.get(on) else {
                problems.push(Problem::new(&at, format!("waits for `{on}`, which does not exist")));
                continue;
            };
            let always = other.profiles.is_empty();
            if !always && (service.profiles.is_empty() || !service.profiles.is_subset(&other.profiles)) {
                let profiles = other.profiles.iter().cloned().collect::<Vec<_>>().join(", ");
                let what = format!("waits for `{on}`, which is in the profile {profiles} and may not be there");
                problems.push(Problem::new(&at, what));
            }
            match condition {
                Condition::Started => problems.push(
                    Problem::new(&at, format!("waits for `{on}` to be started, which says nothing about its state"))
                        .hint("use condition: service_healthy, or service_completed_successfully for a job"),
                ),
                Condition::Healthy if other.health.is_empty() => {
                    problems
                        .push(Problem::new(&at, format!("waits for the health of `{on}`, which has no health check")));
                }
                Condition::Completed if !other.is_job() => {
                    problems.push(Problem::new(&at, format!("waits for the end of `{on}`, which is not a job")));
                }
                _ => {}
            }
        }
    }
    let everything = services.values().flat_map(|service| service.profiles.clone()).collect();
    if let Some(cycle) = graph::of(project, &everything).cycle() {
        problems.push(Problem::new("depends_on", format!("a cycle: {}", cycle.join(" -> "))));
    }
    problems
}

fn ports(services: &BTreeMap<String, Service>, environment: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut taken: BTreeMap<(u16, String), &str> = BTreeMap::new();
    for service in services.values() {
        let at = format!("service `{}`", service.name);
        for text in &service.unreadable_ports {
            problems.push(Problem::new(&at, format!("publishes `{text}`, which is not a port, 1 to 65535")));
        }
        for port in &service.ports {
            if let Some(host) = port.host {
                if let Some(other) = taken.insert((host, port.address.clone()), &service.name) {
                    problems.push(Problem::new(&at, format!("publishes port {host}, which `{other}` publishes too")));
                }
                if environment == "test" {
                    problems
                        .push(Problem::new(&at, format!("publishes the fixed port {host}; tests run side by side")));
                }
            }
            if !service.expose.contains(&port.container) {
                problems.push(Problem::new(
                    &at,
                    format!("publishes port {} of its container, which it does not offer (expose)", port.container),
                ));
            }
            let everywhere = matches!(port.address.as_str(), "0.0.0.0" | "::" | "[::]");
            if port.address.is_empty() || (environment == "dev" && everywhere) {
                problems.push(Problem::new(&at, format!("publishes port {} on every address", port.container)));
            }
            if environment != "dev" && !service.networks.contains("edge") {
                let what = format!("publishes port {} and is not in the network `edge`", port.container);
                problems.push(Problem::new(&at, what));
            }
        }
    }
    problems
}

/// Rules for each service; a label `obelisk.exception` of `root: REASON`, `read-only: REASON` or `net-bind-service: REASON`
/// lifts one. The first allows the capabilities CHOWN and DAC_OVERRIDE and the last its own, and neither another one; nothing excuses
/// who is given the host.
fn hardening(service: &Service) -> Vec<Problem> {
    let mut problems = Vec::new();
    let exception = service.labels.get("obelisk.exception").map(String::as_str).unwrap_or_default();
    let excused =
        |rule: &str| exception.strip_prefix(rule).is_some_and(|rest| rest.starts_with(": ") && rest.len() > 10);
    let mut rule = |kept: bool, what: &str| {
        if !kept {
            problems.push(Problem::new(format!("service `{}`", service.name), what));
        }
    };
    let image = service.image.split('@').next().unwrap_or_default();
    let tag = image.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/'));
    rule(tag.is_some_and(|tag| !tag.is_empty() && tag != "latest"), "its image has no tag, or `latest`");
    let digest = service.image.split_once('@').map(|(_, digest)| digest.strip_prefix("sha256:").unwrap_or_default());
    let is_digest = |it: &str| it.len() == 64 && it.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    rule(digest.is_none_or(is_digest), "its image's digest is none (sha256: and 64 hexadecimal digits)");
    let engine = service.mounts.iter().any(|mount| mount.source.ends_with("/docker.sock"));
    rule(!engine, "mounts the engine's socket, which is root on the machine");
    rule(service.retries != Some(0), "its health check has no retries: the first failure counts");
    let user = service.user.as_deref().unwrap_or_default();
    let numeric = user.split(':').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    // Who is copied into needs a user that the engine knows by name.
    rule(numeric || (service.synced && user == "nobody"), "its user is not numeric (`uid:gid`)");
    rule(
        !service.synced || user == "nobody",
        "`develop.watch` copies files into it, which the engine does for `nobody` alone",
    );
    rule(!user.starts_with("0:") && user != "0" || excused("root"), "runs as root");
    rule(service.read_only || excused("read-only"), "its root file system is writable");
    rule(!(service.read_only && service.synced), "is read-only, and `develop.watch` copies files into it");
    rule(service.cap_drop.contains("ALL"), "keeps capabilities (cap_drop: [ALL])");
    let binds = excused("net-bind-service") && service.cap_add.iter().eq(["NET_BIND_SERVICE"]);
    let owns = excused("root") && service.cap_add.iter().eq(["CHOWN", "DAC_OVERRIDE"]);
    rule(service.cap_add.is_empty() || owns || binds, "is given capabilities");
    for it in &service.host {
        rule(false, &format!("shares the host (`{it}`)"));
    }
    rule(service.no_new_privileges, "may gain privileges (security_opt: no-new-privileges:true)");
    for limit in ["cpus", "memory", "pids"] {
        let given = service.limits.get(limit);
        rule(given.is_some(), &format!("has no limit of {limit}"));
        let fits = |text: &String| match limit {
            "memory" => env::bytes(text).is_some_and(|bytes| bytes > 0),
            _ => text.parse::<f64>().is_ok_and(|number| number > 0.0),
        };
        rule(given.is_none_or(fits), &format!("its limit of {limit} is none"));
    }
    for (key, time) in &service.times {
        rule(is_time(time), &format!("`{time}` is no time (30s, 1m30s): {key}"));
    }
    let rotated = service.logging.contains_key("max-size") && service.logging.contains_key("max-file");
    rule(rotated, "its log is not rotated (logging.options max-size and max-file)");
    rule(service.restart.is_some(), "has no restart policy");
    let connected = !service.networks.is_empty() || matches!(service.network_mode.as_deref(), Some("none" | "host"));
    rule(connected, "is in the default network: name its networks, or `network_mode: none`");
    let helper = service.profiles.iter().any(|profile| matches!(profile.as_str(), "debug" | "client"));
    rule(service.is_job() || helper || !service.health.is_empty(), "has no health check");
    if !service.health.is_empty() {
        let of_litellm = || {
            let asked = service.health.join(" ");
            probe::is_litellm(&service.image).then(|| probe::wrong_of_litellm(&asked, probe::Purpose::Ready)).flatten()
        };
        let wrong = probe::proves_nothing(&service.health).or_else(of_litellm);
        rule(wrong.is_none(), &format!("its health check: {}", wrong.as_deref().unwrap_or_default()));
    }
    problems
}

/// Folders that services mount from the host by their paths, and volumes that are such folders.
fn folders_of_the_host(project: &Project, services: &BTreeMap<String, Service>) -> Vec<Problem> {
    let folder = project.files.first().and_then(|entry| entry.parent()).unwrap_or(Path::new("."));
    let mut problems = Vec::new();
    for service in services.values() {
        // The engine's socket has a message of its own.
        let bound = service.mounts.iter().filter(|it| it.bind && !it.source.ends_with("/docker.sock"));
        for source in bound.map(|it| &it.source).filter(|it| is_of_the_host(folder, it)) {
            problems
                .push(Problem::new(format!("service `{}`", service.name), format!("mounts `{source}` of the host")));
        }
    }
    for (name, volume) in project.top("volumes") {
        let device = volume.pointer("/driver_opts/device").and_then(Value::as_str);
        if let Some(device) = device.filter(|it| it.starts_with('/') && is_of_the_host(folder, it)) {
            problems.push(Problem::new(format!("volumes `{name}`"), format!("is `{device}` of the host")));
        }
    }
    problems
}

/// Whether a path, relative to the folder of the compose files, is one of [`OF_THE_HOST`], lies in one, or holds one. What lies
/// in the checkout is one's own, wherever that is: a runner may have it below `/run`.
fn is_of_the_host(folder: &Path, source: &str) -> bool {
    let (Some(path), Some(checkout)) = (plain(&folder.join(source)), plain(&folder.join(CHECKOUT))) else {
        return true;
    };
    let holds = |path: &Path| OF_THE_HOST.iter().any(|it| Path::new(it).starts_with(path));
    let lies_in = OF_THE_HOST.iter().any(|it| path.starts_with(it));
    holds(&path) || (lies_in && (holds(&checkout) || !path.starts_with(&checkout)))
}

/// A path from the root, without `..`.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in std::path::absolute(path).ok()?.components() {
        match part {
            Component::ParentDir => _ = plain.pop(),
            part => plain.push(part),
        }
    }
    Some(plain)
}

/// Whoever reads a volume that a job writes, such as the tokens, waits for the job's end. The jobs that only give a volume to
/// its user write nothing into it.
fn waits_for_what_it_reads(services: &BTreeMap<String, Service>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for job in services.values().filter(|it| it.is_job() && it.profiles.is_empty() && it.network_mode.is_none()) {
        for written in job.mounts.iter().filter(|mount| !mount.read_only && !mount.bind) {
            let reads = |it: &&Service| {
                !it.is_job() && it.mounts.iter().any(|mount| mount.source == written.source && mount.read_only)
            };
            for service in services.values().filter(reads) {
                if service.depends_on.get(&job.name) != Some(&Condition::Completed) {
                    let what = format!("reads `{}` and does not wait for the end of `{}`", written.source, job.name);
                    problems.push(Problem::new(format!("service `{}`", service.name), what));
                }
            }
        }
    }
    problems
}

/// A time as Compose reads it: numbers with units, one after the other.
fn is_time(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let number = rest.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
        let unit = number.trim_start_matches(|letter: char| letter.is_ascii_lowercase());
        let digits = &rest[..rest.len() - number.len()];
        let known = matches!(&number[..number.len() - unit.len()], "us" | "ms" | "s" | "m" | "h");
        if digits.parse::<f64>().is_err() || !known {
            return false;
        }
        rest = unit;
    }
    !text.is_empty()
}

fn volumes(project: &Project, services: &BTreeMap<String, Service>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, value) in project.top("volumes") {
        let at = format!("volumes `{name}`");
        let mut words = name.split('-');
        let area = words.next().unwrap_or_default();
        let more = words.clone().count();
        if !AREAS.contains(&area) || !(1..=2).contains(&more) || words.any(str::is_empty) {
            let areas = AREAS.join(", ");
            problems.push(Problem::new(
                &at,
                format!("is not called AREA-CONTENT or AREA-SERVICE-CONTENT (areas: {areas})"),
            ));
        }
        let label = |key: &str| value.get("labels").and_then(|labels| labels.get(key)).and_then(Value::as_str);
        if !matches!(label("obelisk.volume.class"), Some("state" | "cache" | "secret")) {
            problems.push(Problem::new(&at, "has no label obelisk.volume.class of state, cache or secret"));
        }
        if label("obelisk.volume.class") == Some("secret") {
            let reads = |it: &&Service| !it.is_job() && it.mounts.iter().any(|mount| mount.source == name);
            let readers: Vec<&str> = services.values().filter(reads).map(|it| it.name.as_str()).collect();
            if readers.len() > 1 {
                let what = format!("holds secrets, and {} have all of them", readers.join(" and "));
                problems.push(Problem::new(&at, what).hint("give each a volume with its own secrets alone"));
            }
        }
        if !matches!(label("obelisk.backup"), Some("pg_dump" | "etcd-snapshot" | "s3-mirror" | "tar" | "none")) {
            let what = "has no label obelisk.backup of pg_dump, etcd-snapshot, s3-mirror, tar or none";
            problems.push(Problem::new(&at, what));
        }
    }
    problems
}

/// `http://HOST:PORT` and `HOST:PORT` in an environment: the host is a service that shares a network, and the port is
/// one that it offers.
fn addresses(services: &BTreeMap<String, Service>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for service in services.values() {
        for (name, value) in &service.environment {
            for part in value.split([';', ',']) {
                let Some((host, port)) = address(part) else { continue };
                if let Some(why) = unreachable(services, service, host, port) {
                    problems.push(Problem::new(format!("service `{}`, {name}", service.name), why));
                }
            }
        }
    }
    problems
}

/// Why a service cannot reach a port of a host by its name; `None` where it can.
pub(crate) fn unreachable(
    services: &BTreeMap<String, Service>,
    from: &Service,
    host: &str,
    port: u16,
) -> Option<String> {
    match services.values().find(|other| other.name == host || other.aliases.contains(host)) {
        None => Some(format!("`{host}` is no service")),
        Some(other) if other.networks.is_disjoint(&from.networks) => {
            Some(format!("`{host}` shares no network with it"))
        }
        Some(other) if !other.expose.contains(&port) => Some(format!("`{host}` does not offer port {port}")),
        Some(_) => None,
    }
}

/// Images of ours, by their prefix, that nobody defines. `known` are the names of the catalogue, the stand-ins included
/// where they may be used.
pub fn images(project: &Project, known: &BTreeSet<&str>) -> Vec<Problem> {
    let names = known.iter().copied().collect::<Vec<_>>().join(", ");
    render::ours(project)
        .into_iter()
        .filter(|(_, image)| !known.contains(image.as_str()))
        .map(|(service, image)| {
            Problem::new(
                format!("service `{service}`"),
                format!("runs the image `{image}`, which no catalogue defines"),
            )
            .hint(match env::nearest(&image, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are {names}"),
            })
        })
        .collect()
}

/// A service's address within a value; addresses of this host, of every address and of the world are none.
fn address(text: &str) -> Option<(&str, u16)> {
    let (is_url, rest) = match text.strip_prefix("http://") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let authority = rest.split('/').next()?;
    let (host, port) = authority.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let plain = host.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let named = host.bytes().any(|byte| byte.is_ascii_lowercase());
    (plain && named && host != "localhost" && (is_url || rest == authority)).then_some((host, port))
}

/// What the compose files mention is described as a setting with the same default, and the other way round.
fn variables(project: &Project, schema: &Schema, environment: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, default) in &project.variables {
        match schema.variable(name).filter(|variable| variable.is_setting()) {
            None => problems.push(Problem::new(
                format!("variable `{name}`"),
                "is used by the compose files and not described in env/schema.toml",
            )),
            Some(variable) => {
                // An environment's own override may have a default of its own for a path.
                let written = default.as_deref().unwrap_or_default();
                if written != variable.default && variable.name != "SECRETS_DIR" {
                    let what =
                        format!("is `{written}` in the compose files and `{}` in env/schema.toml", variable.default);
                    problems.push(Problem::new(format!("variable `{name}`"), what));
                }
            }
        }
    }
    let mentioned = |it: &&env::Variable| it.is_setting() && !it.is_compose() && it.is_known_in(environment);
    for variable in schema.variables.iter().filter(mentioned) {
        if !project.variables.contains_key(&variable.name) {
            let what = format!("is described in env/schema.toml and not used in {environment}");
            problems.push(Problem::new(format!("variable `{}`", variable.name), what));
        }
    }
    problems
}

/// What services see is described, service by service, and the other way round.
fn seen(services: &BTreeMap<String, Service>, schema: &Schema, environment: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    for service in services.values() {
        for name in service.environment.keys() {
            let described = schema.variable(name).filter(|it| it.is_seen() && it.is_known_in(environment));
            if !described.is_some_and(|variable| variable.services.contains(&service.name)) {
                let what = format!("sees `{name}`, which env/schema.toml does not describe for it in {environment}");
                problems.push(Problem::new(format!("service `{}`", service.name), what));
            }
        }
    }
    for variable in schema.variables.iter().filter(|it| it.is_seen() && it.is_known_in(environment)) {
        for service in variable.services.iter().filter_map(|name| services.get(name)) {
            if !service.environment.contains_key(&variable.name) {
                let what = format!("does not see `{}`, which env/schema.toml describes for it", variable.name);
                problems.push(Problem::new(format!("service `{}`", service.name), what));
            }
        }
    }
    for secret in schema.secrets.iter().filter(|it| it.is_known_in(environment)) {
        for service in services.values() {
            if service.secrets.contains(&secret.name) != secret.services.contains(&service.name) {
                let what = format!("secret `{}`: env/schema.toml and the compose files disagree", secret.name);
                problems.push(Problem::new(format!("service `{}`", service.name), what));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkout_is_ones_own_wherever_it_is() {
        let of = |checkout: &str, source: &str| {
            is_of_the_host(&Path::new(checkout).join("deployments/docker/compose"), source)
        };
        let vault = "../../../images/obelisk/vault";
        for checkout in ["/run/user/1000/work", "/etc/obelisk", "/var/lib/docker/volumes/x/_data", "/home/me/obelisk"] {
            assert!(!of(checkout, vault), "{checkout}");
            assert!(!of(checkout, &format!("{checkout}/my-vault")), "{checkout}");
            // The way out of it, and what is beside it.
            for source in ["../../../../../../../../../etc", "/etc", "/run/docker", "/var/lib/docker", "/run", "/"] {
                assert!(of(checkout, source), "{checkout}: {source}");
            }
        }
        assert!(of("/run/user/1000/work", "../../../../other") && of("/etc/obelisk", "../../../../shadow"));
        // A checkout that holds them is no excuse for them.
        for (checkout, source) in [("/run", "../../../docker"), ("/", "../../../etc"), ("/var", "../../../run")] {
            assert!(of(checkout, source), "{checkout}: {source}");
        }
    }
}
