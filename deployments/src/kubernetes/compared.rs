//! What differs between the manifests and compose.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::{Manifests, OPENED_AT, Workload, items, name_of, scrape, strings};
use crate::Problem;
use crate::compose::{Condition, Project, Service};

/// Variables that only Kubernetes needs, by workload: a claim's file system has `lost+found` in its root, where initdb wants
/// an empty folder; a volume of Docker's has not.
const ONLY_HERE: [(&str, &str); 1] = [("postgres", "PGDATA")];

/// In compose it is in `edge` because a published port needs a network that is not internal; here people reach it by
/// `kubectl port-forward`, and it reaches no more than its own network.
const PUBLISHED_ONLY: &str = "grafana";

impl Manifests {
    /// What differs from compose: services, images, and who can reach whom.
    pub fn compared(&self, project: &Project) -> Vec<Problem> {
        let mut problems = Vec::new();
        let workloads = self.workloads();
        let wanted: BTreeMap<String, Service> = project
            .services()
            .into_iter()
            // What is in a profile there is a component here, and some overlays have it.
            .filter(|(name, it)| it.profiles.is_empty() || workloads.iter().any(|workload| workload.name == name))
            .filter(|(_, service)| service.network_mode.is_none())
            .collect();
        for (name, service) in &wanted {
            let Some(workload) = workloads.iter().find(|it| it.name == name) else {
                problems.push(Problem::new(format!("service `{name}`"), "is in compose and has no workload"));
                continue;
            };
            let images: BTreeSet<&str> =
                workload.containers().filter_map(|it| it.get("image").and_then(Value::as_str)).collect();
            if !images.contains(service.image.as_str()) {
                let runs = images.iter().copied().collect::<Vec<_>>().join(", ");
                problems.push(Problem::new(workload.at(), format!("runs {runs}, compose runs {}", service.image)));
            }
            self.offered(workload, service, &mut problems);
            mounted(workload, service, &mut problems);
            for (on, _) in service.depends_on.iter().filter(|(_, condition)| **condition == Condition::Completed) {
                // Jobs that give volumes to users are the volumes' own `fsGroup` here.
                let Some(job) = wanted.get(on) else { continue };
                let waits = items(workload.template.pointer("/spec/initContainers")).any(|it| {
                    let image = it.get("image").and_then(Value::as_str) == Some(job.image.as_str());
                    image && items(it.get("args")).any(|word| word.as_str() == Some("--wait"))
                });
                if !waits {
                    let what = format!("no init container waits for the end of `{on}` (its image, `--wait`)");
                    problems.push(Problem::new(workload.at(), what));
                }
            }
            for container in workload.containers().filter(|it| it.get("name").and_then(Value::as_str) == Some(name)) {
                let mut service = service.clone();
                // Compared with the Ingress instead.
                if let Some(told) = scrape::told(workload, OPENED_AT)
                    && !self.of("Ingress").is_empty()
                {
                    service.environment.insert(OPENED_AT.to_owned(), told.to_owned());
                }
                environment(workload, container, &service, &self.of("ConfigMap"), &mut problems);
            }
        }
        let services = project.services();
        for workload in &workloads {
            for container in workload.every_container() {
                let name = name_of(container);
                let may_write = name == workload.name && services.get(name).is_some_and(|it| !it.read_only);
                let read_only = container.pointer("/securityContext/readOnlyRootFilesystem").and_then(Value::as_bool);
                if read_only != Some(true) && !may_write {
                    let at = format!("{}, container `{name}`", workload.at());
                    let what = "its root file system is writable (readOnlyRootFilesystem: true)";
                    problems.push(match services.contains_key(workload.name) && name == workload.name {
                        true => Problem::new(at, what).hint("in compose it is read_only"),
                        false => Problem::new(at, what),
                    });
                }
            }
        }
        let names: BTreeSet<&String> = wanted.keys().collect();
        let only_published = |a: &String, b: &String| {
            let mut shared = wanted[a].networks.intersection(&wanted[b].networks);
            [a, b].into_iter().any(|it| it == PUBLISHED_ONLY) && shared.all(|network| network == "edge")
        };
        let inside = |(a, b): &(String, String)| names.contains(a) && names.contains(b) && !only_published(a, b);
        let profiles = wanted.values().flat_map(|service| service.profiles.iter().cloned()).collect();
        let compose: BTreeSet<(String, String)> =
            crate::graph::of(project, &profiles).reachable().into_iter().filter(inside).collect();
        let here: BTreeSet<(String, String)> = self.reachable().into_iter().filter(inside).collect();
        for (a, b) in compose.difference(&here) {
            problems.push(Problem::new(format!("{a} and {b}"), "share a network in compose, no policy lets them talk"));
        }
        for (a, b) in here.difference(&compose) {
            problems.push(Problem::new(format!("{a} and {b}"), "may talk by policy and share no network in compose"));
        }
        let internal = project.internal_networks();
        for network in project.top("networks").into_keys() {
            let policy = format!("network-{network}");
            let policies = self.of("NetworkPolicy");
            let Some(policy) = policies.get(policy.as_str()) else { continue };
            let mut peers = items(policy.pointer("/spec/egress")).flat_map(|rule| items(rule.get("to")));
            let goes_out = peers.any(|peer| peer.get("ipBlock").is_some());
            if goes_out == internal.contains(&network) && network != "monitoring" {
                let what = if goes_out {
                    "goes out by policy and is internal in compose"
                } else {
                    "is not internal in compose and does not go out by policy"
                };
                problems.push(Problem::new(format!("network `{network}`"), what));
            }
        }
        // A network of compose knows no ports: who shares it reaches every one that is offered.
        for (a, b) in compose.intersection(&here) {
            for (from, to) in [(a, b), (b, a)] {
                let target = workloads.iter().filter(|it| it.name == to).flat_map(Workload::ports);
                for (_, port) in target.filter(|(_, port)| !self.reaches(from, to, *port)) {
                    let what = format!("the policies do not let it reach `{to}` at port {port}, compose does");
                    problems.push(Problem::new(format!("`{from}`"), what));
                }
            }
        }
        problems
    }

    /// The ports of a workload and of its service are those that compose offers.
    fn offered(&self, workload: &Workload<'_>, service: &Service, problems: &mut Vec<Problem>) {
        let ports: BTreeSet<u16> = workload.ports().map(|(_, port)| port).collect();
        if ports != service.expose {
            let what = format!("offers the ports {ports:?}, compose {:?}", service.expose);
            problems.push(Problem::new(workload.at(), what));
        }
        let services = self.of("Service");
        for name in std::iter::once(&service.name).chain(&service.aliases) {
            let listed = services.get(name.as_str()).into_iter().flat_map(|it| items(it.pointer("/spec/ports")));
            let listed: BTreeSet<u64> = listed.filter_map(|port| port.get("port").and_then(Value::as_u64)).collect();
            for port in service.expose.iter().filter(|port| !listed.contains(&u64::from(**port))) {
                let what = format!("has no port {port}, which others use in compose");
                problems.push(Problem::new(format!("Service `{name}`"), what));
            }
        }
    }
}

/// Volumes, configuration and secrets are where compose has them.
fn mounted(workload: &Workload<'_>, service: &Service, problems: &mut Vec<Problem>) {
    let mut places: BTreeSet<&str> = BTreeSet::new();
    for container in workload.containers().filter(|it| name_of(it) == service.name) {
        places
            .extend(items(container.get("volumeMounts")).filter_map(|it| it.get("mountPath").and_then(Value::as_str)));
    }
    let wanted = service.mounts.iter().filter(|mount| !mount.bind || mount.target == "/app/vault");
    for mount in wanted.filter(|mount| !places.contains(mount.target.as_str())) {
        problems.push(Problem::new(workload.at(), format!("mounts nothing at {}, compose does", mount.target)));
    }
    // And nothing else: what one service is given is not another one's to read.
    let volumes = || items(workload.template.pointer("/spec/volumes"));
    let claimed: BTreeMap<&str, &str> = volumes()
        .filter_map(|it| Some((name_of(it), it.pointer("/persistentVolumeClaim/claimName")?.as_str()?)))
        .collect();
    for container in workload.containers().filter(|it| name_of(it) == service.name) {
        for mount in items(container.get("volumeMounts")) {
            let Some(claim) = claimed.get(name_of(mount)) else { continue };
            let at = mount.get("mountPath").and_then(Value::as_str).unwrap_or_default();
            let there = service.mounts.iter().find(|it| it.target == at);
            if there.is_none_or(|it| !it.bind && it.source != *claim) {
                let compose = there.map_or("nothing", |it| it.source.as_str());
                problems.push(Problem::new(workload.at(), format!("mounts `{claim}` at {at}, compose {compose}")));
            }
        }
    }
    for target in service.configs.values() {
        let below = |place: &&str| Path::new(target).starts_with(place);
        if !places.iter().any(below) {
            problems.push(Problem::new(workload.at(), format!("mounts no {target}, compose does")));
        }
    }
    let secrets: BTreeSet<&str> = volumes()
        .flat_map(|volume| items(volume.pointer("/secret/items")))
        .filter_map(|item| item.get("key").and_then(Value::as_str))
        .collect();
    let compose: BTreeSet<&str> = service.secrets.iter().map(String::as_str).collect();
    if secrets != compose || (!compose.is_empty() && !places.contains("/run/secrets")) {
        problems.push(Problem::new(workload.at(), format!("mounts the secrets {secrets:?}, compose {compose:?}")));
    }
}

/// The variables that a container sees are those of the compose service, with the same values.
fn environment(
    workload: &Workload<'_>,
    container: &Value,
    service: &Service,
    maps: &BTreeMap<&str, &Value>,
    problems: &mut Vec<Problem>,
) {
    let mut here: BTreeMap<String, String> = BTreeMap::new();
    for from in items(container.get("envFrom")) {
        let map = from.pointer("/configMapRef/name").and_then(Value::as_str).and_then(|name| maps.get(name));
        here.extend(
            strings(map.and_then(|map| map.get("data"))).into_iter().map(|(key, value)| (key.into(), value.into())),
        );
    }
    for variable in items(container.get("env")) {
        let value = variable.get("value").and_then(Value::as_str).unwrap_or_default();
        here.insert(name_of(variable).to_owned(), value.to_owned());
    }
    for (name, value) in &service.environment {
        match here.get(name) {
            None => problems.push(Problem::new(workload.at(), format!("does not see `{name}`, which compose sets"))),
            Some(other) if other != value => {
                problems.push(Problem::new(workload.at(), format!("sees {name}=`{other}`, compose sets `{value}`")));
            }
            Some(_) => {}
        }
    }
    let only_here = |name: &str| ONLY_HERE.contains(&(workload.name, name));
    for name in here.keys().filter(|name| !service.environment.contains_key(*name) && !only_here(name)) {
        problems.push(Problem::new(workload.at(), format!("sees `{name}`, which compose does not set")));
    }
}
