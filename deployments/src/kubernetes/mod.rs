//! Rendered Kubernetes manifests: the rules that no schema knows, and the network that the policies really allow.

mod claims;
mod cron;
mod policy;
mod scrape;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::Problem;
use crate::compose::{Condition, Project, Service};
use crate::probe::{self, Purpose};
use crate::yaml::{self, YamlError};

/// Variables that only Kubernetes needs, by workload: a claim's file system has `lost+found` in its root, where initdb wants
/// an empty folder; a volume of Docker's has not.
const ONLY_HERE: [(&str, &str); 1] = [("postgres", "PGDATA")];

/// The variable that holds the address under which people open a service: where an Ingress leads to it, that one's.
const OPENED_AT: &str = "WEBUI_URL";

/// In compose it is in `edge` because a published port needs a network that is not internal; here people reach it by
/// `kubectl port-forward`, and it reaches no more than its own network.
const PUBLISHED_ONLY: &str = "grafana";

/// Settings of the kernel that belong to a pod alone: those that the restricted Pod Security Standard leaves free.
const SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
];

/// The kinds of volumes that the restricted Pod Security Standard leaves.
const VOLUMES: [&str; 8] =
    ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];

/// Addresses that are not the internet.
const PRIVATE: [&str; 3] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];

/// Rendered manifests, as `kubectl kustomize` prints them.
#[derive(Debug, Clone)]
pub struct Manifests {
    all: Vec<Value>,
}

/// A pod template and what it belongs to.
struct Workload<'a> {
    kind: &'a str,
    name: &'a str,
    object: &'a Value,
    template: &'a Value,
}

impl Workload<'_> {
    fn at(&self) -> String {
        format!("{} `{}`", self.kind, self.name)
    }

    fn containers(&self) -> impl Iterator<Item = &Value> {
        items(self.template.pointer("/spec/containers"))
    }

    fn every_container(&self) -> impl Iterator<Item = &Value> {
        self.containers().chain(items(self.template.pointer("/spec/initContainers")))
    }

    fn labels(&self) -> BTreeMap<&str, &str> {
        strings(self.template.pointer("/metadata/labels"))
    }

    /// The ports that its containers offer: name and number.
    fn ports(&self) -> impl Iterator<Item = (&str, u16)> {
        policy::offered(self.template)
    }

    fn runs_on(&self) -> bool {
        matches!(self.kind, "Deployment" | "StatefulSet" | "DaemonSet")
    }
}

impl Manifests {
    /// Reads rendered manifests.
    pub fn parse(text: &str) -> Result<Manifests, YamlError> {
        Ok(Manifests { all: yaml::documents(Path::new("rendered manifests"), text)? })
    }

    /// Every object of a kind, by name.
    pub fn of(&self, kind: &str) -> BTreeMap<&str, &Value> {
        let named = |object: &'_ Value| object.get("kind").and_then(Value::as_str) == Some(kind);
        self.all.iter().filter(|object| named(object)).map(|object| (name(object), object)).collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn workloads(&self) -> Vec<Workload<'_>> {
        self.all
            .iter()
            .filter_map(|object| {
                let kind = object.get("kind").and_then(Value::as_str)?;
                let template = match kind {
                    "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => object.pointer("/spec/template")?,
                    "CronJob" => object.pointer("/spec/jobTemplate/spec/template")?,
                    _ => return None,
                };
                Some(Workload { kind, name: name(object), object, template })
            })
            .collect()
    }

    /// Everything that breaks a rule. `secrets` are the keys that the secret made from files has.
    pub fn problems(&self, secrets: &BTreeSet<String>) -> Vec<Problem> {
        let mut problems = Vec::new();
        let workloads = self.workloads();
        for workload in &workloads {
            self.references(workload, secrets, &mut problems);
            pod(workload, &mut problems);
            for container in workload.every_container() {
                self::container(workload, container, &mut problems);
            }
            if workload.runs_on() {
                self.selection(workload, &mut problems);
            }
        }
        self.services(&workloads, &mut problems);
        self.scaling(&workloads, &mut problems);
        self.ingresses(&workloads, &mut problems);
        self.claims(&workloads, &mut problems);
        self.scraped(&workloads, &mut problems);
        self.clocks(&mut problems);
        if !self.of("NetworkPolicy").values().any(|policy| is_default_deny(policy)) {
            problems
                .push(Problem::new("NetworkPolicy", "none denies by default: an empty podSelector, both directions"));
        }
        self.policies(&mut problems);
        problems.sort();
        problems
    }

    /// Jobs start when they say, and those that put data back never by themselves.
    fn clocks(&self, problems: &mut Vec<Problem>) {
        for (name, job) in self.of("CronJob") {
            let at = format!("CronJob `{name}`");
            let schedule = job.pointer("/spec/schedule").and_then(Value::as_str).unwrap_or_default();
            if !cron::is_schedule(schedule) {
                let what = format!("its schedule `{schedule}` is none: minute, hour, day, month, day of the week");
                problems.push(Problem::new(&at, what));
            }
            let suspended = job.pointer("/spec/suspend").and_then(Value::as_bool) == Some(true);
            let told = job.pointer("/spec/suspend").is_some();
            if name.starts_with("backup-") && (suspended || !told) {
                let what = "does not say `suspend: false`: applied again, it would stay suspended after a restore";
                problems.push(Problem::new(&at, what));
            }
            if name.starts_with("restore-") && !suspended {
                problems.push(Problem::new(&at, "puts data back by the clock (suspend: true)"));
            }
        }
    }

    /// Policies that let through more than a network does: everybody, everything, every namespace.
    fn policies(&self, problems: &mut Vec<Problem>) {
        let all = self.of("NetworkPolicy");
        for (name, policy) in &all {
            let at = format!("NetworkPolicy `{name}`");
            for (rules, peers, who) in [("ingress", "from", "source"), ("egress", "to", "destination")] {
                for rule in items(policy.pointer(&format!("/spec/{rules}"))) {
                    if items(rule.get(peers)).next().is_none() {
                        problems.push(Problem::new(&at, format!("{rules}: a rule without `{peers}` is every {who}")));
                    }
                    for peer in items(rule.get(peers)) {
                        let spaces = peer.get("namespaceSelector").and_then(Value::as_object);
                        if spaces.is_some_and(serde_json::Map::is_empty) {
                            problems.push(Problem::new(
                                &at,
                                format!("{rules}: `namespaceSelector: {{}}` is every namespace"),
                            ));
                        }
                        let cidr = peer.pointer("/ipBlock/cidr").and_then(Value::as_str).unwrap_or_default();
                        let excepted: BTreeSet<&str> =
                            items(peer.pointer("/ipBlock/except")).filter_map(Value::as_str).collect();
                        let outside = PRIVATE.iter().all(|it| excepted.contains(it));
                        // Out to the internet is what a network that is not internal has; pods and nodes are not part of it.
                        if cidr.ends_with("/0") && (rules == "ingress" || !outside) {
                            problems
                                .push(Problem::new(&at, format!("{rules}: `{cidr}` is every {who}, pods included")));
                        }
                    }
                }
            }
        }
        let looks_up = |policy: &&Value| {
            let everybody =
                policy.pointer("/spec/podSelector").and_then(Value::as_object).is_some_and(serde_json::Map::is_empty);
            let ports = items(policy.pointer("/spec/egress")).flat_map(|rule| items(rule.get("ports")));
            let mut udp = ports.filter(|port| port.get("protocol").and_then(Value::as_str) == Some("UDP"));
            everybody && udp.any(|port| port.get("port").and_then(Value::as_u64) == Some(53))
        };
        if !all.values().any(looks_up) {
            problems.push(Problem::new("NetworkPolicy", "none lets every pod look up names: egress to port 53, UDP"));
        }
    }

    fn selection(&self, workload: &Workload<'_>, problems: &mut Vec<Problem>) {
        let selector = strings(workload.object.pointer("/spec/selector/matchLabels"));
        if selector.is_empty() || !matches(&selector, &workload.labels()) {
            problems.push(Problem::new(workload.at(), "its selector does not select its own pods"));
        }
        if workload.kind == "StatefulSet" {
            let service = workload.object.pointer("/spec/serviceName").and_then(Value::as_str).unwrap_or_default();
            let services = self.of("Service");
            let headless = services.get(service).and_then(|it| it.pointer("/spec/clusterIP")).and_then(Value::as_str);
            if headless != Some("None") {
                problems
                    .push(Problem::new(workload.at(), format!("serviceName `{service}` is not a headless Service")));
            }
            if items(workload.object.pointer("/spec/volumeClaimTemplates")).next().is_none() {
                problems.push(Problem::new(workload.at(), "has no volumeClaimTemplates"));
            }
            if workload.object.pointer("/spec/replicas").and_then(Value::as_u64).is_some_and(|replicas| replicas > 1) {
                problems.push(Problem::new(workload.at(), "has several replicas, which would not share their data"));
            }
        }
    }

    fn references(&self, workload: &Workload<'_>, secrets: &BTreeSet<String>, problems: &mut Vec<Problem>) {
        let maps = self.of("ConfigMap");
        let claims = self.of("PersistentVolumeClaim");
        // Those that a StatefulSet makes of its templates: TEMPLATE-NAME-ORDINAL.
        let made: BTreeSet<String> = self
            .of("StatefulSet")
            .into_iter()
            .flat_map(|(set, object)| {
                let replicas = object.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
                let templates = items(object.pointer("/spec/volumeClaimTemplates"));
                templates.flat_map(move |it| (0..replicas).map(move |ordinal| format!("{}-{set}-{ordinal}", name(it))))
            })
            .collect();
        let own_claims: BTreeSet<&str> =
            items(workload.object.pointer("/spec/volumeClaimTemplates")).map(name).collect();
        let mut volumes: BTreeSet<&str> = own_claims.clone();
        for volume in items(workload.template.pointer("/spec/volumes")) {
            volumes.extend(volume.get("name").and_then(Value::as_str));
            let text = |path: &str| volume.pointer(path).and_then(Value::as_str);
            if let Some(map) = text("/configMap/name") {
                self.keys(workload, map, maps.get(map).copied(), items(volume.pointer("/configMap/items")), problems);
            }
            if let Some(claim) = text("/persistentVolumeClaim/claimName")
                && !claims.contains_key(claim)
                && !made.contains(claim)
            {
                problems.push(Problem::new(workload.at(), format!("claims `{claim}`, which does not exist")));
            }
            for item in items(volume.pointer("/secret/items")) {
                let key = item.get("key").and_then(Value::as_str).unwrap_or_default();
                if !secrets.contains(key) {
                    problems.push(Problem::new(
                        workload.at(),
                        format!("mounts the secret `{key}`, which env/schema.toml does not know"),
                    ));
                }
            }
            if volume.get("secret").is_some() && items(volume.pointer("/secret/items")).next().is_none() {
                problems.push(Problem::new(workload.at(), "mounts every secret: name the ones it needs"));
            }
        }
        for container in workload.every_container() {
            for mount in items(container.get("volumeMounts")) {
                let volume = mount.get("name").and_then(Value::as_str).unwrap_or_default();
                if !volumes.contains(volume) {
                    problems.push(Problem::new(workload.at(), format!("mounts `{volume}`, which is no volume of it")));
                }
            }
            for from in items(container.get("envFrom")) {
                if let Some(map) = from.pointer("/configMapRef/name").and_then(Value::as_str)
                    && !maps.contains_key(map)
                {
                    problems.push(Problem::new(workload.at(), format!("reads `{map}`, which does not exist")));
                }
            }
            for variable in items(container.get("env")) {
                if let Some(from) = variable.pointer("/valueFrom/configMapKeyRef") {
                    let map = from.get("name").and_then(Value::as_str).unwrap_or_default();
                    self.keys(workload, map, maps.get(map).copied(), std::iter::once(from), problems);
                }
                if variable.pointer("/valueFrom/secretKeyRef").is_some() {
                    problems.push(Problem::new(workload.at(), "takes a secret as a variable: mount it as a file"));
                }
            }
        }
    }

    fn keys<'a>(
        &self,
        workload: &Workload<'_>,
        map: &str,
        found: Option<&Value>,
        keys: impl Iterator<Item = &'a Value>,
        problems: &mut Vec<Problem>,
    ) {
        let Some(found) = found else {
            problems.push(Problem::new(workload.at(), format!("uses the ConfigMap `{map}`, which does not exist")));
            return;
        };
        for key in keys.filter_map(|item| item.get("key").and_then(Value::as_str)) {
            if found.get("data").and_then(|data| data.get(key)).is_none() {
                problems.push(Problem::new(
                    workload.at(),
                    format!("uses `{key}` of the ConfigMap `{map}`, which has no such key"),
                ));
            }
        }
    }

    fn services(&self, workloads: &[Workload<'_>], problems: &mut Vec<Problem>) {
        for (name, service) in self.of("Service") {
            let at = format!("Service `{name}`");
            let kind = service.pointer("/spec/type").and_then(Value::as_str).unwrap_or("ClusterIP");
            if kind != "ClusterIP" {
                let what = format!("its type is {kind}, which opens it beside the Ingress: only ClusterIP does not");
                problems.push(Problem::new(&at, what));
            }
            if items(service.pointer("/spec/externalIPs")).next().is_some() {
                problems.push(Problem::new(&at, "has addresses outside of the cluster (externalIPs)"));
            }
            let selector = strings(service.pointer("/spec/selector"));
            let selected: Vec<&Workload<'_>> = workloads
                .iter()
                .filter(|workload| workload.runs_on() && !selector.is_empty() && matches(&selector, &workload.labels()))
                .collect();
            if selected.len() != 1 {
                problems.push(Problem::new(&at, format!("selects {} workloads, not one", selected.len())));
            }
            for port in items(service.pointer("/spec/ports")) {
                let target = port.get("targetPort").or(port.get("port"));
                let offered = selected.iter().flat_map(|workload| workload.containers()).any(|container| {
                    items(container.get("ports"))
                        .any(|it| target.is_some() && (it.get("name") == target || it.get("containerPort") == target))
                });
                if !offered {
                    let target = target.map(ToString::to_string).unwrap_or_default();
                    problems.push(Problem::new(&at, format!("no container offers its target port {target}")));
                }
            }
        }
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

    /// What an Ingress leads to exists, and knows under which address people open it.
    fn ingresses(&self, workloads: &[Workload<'_>], problems: &mut Vec<Problem>) {
        let services = self.of("Service");
        for (name, ingress) in self.of("Ingress") {
            let rules = items(ingress.pointer("/spec/rules"));
            let secured: BTreeSet<&str> = items(ingress.pointer("/spec/tls"))
                .flat_map(|it| items(it.get("hosts")))
                .filter_map(Value::as_str)
                .collect();
            for (host, path) in rules.flat_map(|rule| {
                let host = rule.get("host").and_then(Value::as_str).unwrap_or_default();
                items(rule.pointer("/http/paths")).map(move |path| (host, path))
            }) {
                let target = path.pointer("/backend/service/name").and_then(Value::as_str).unwrap_or_default();
                let port = path.pointer("/backend/service/port");
                let listed = services.get(target).into_iter().flat_map(|it| items(it.pointer("/spec/ports")));
                let same = |key: &str, of: &Value, it: &str| {
                    port.is_some_and(|port| port.get(key).is_some() && port.get(key) == of.get(it))
                };
                if !listed.into_iter().any(|it| same("name", it, "name") || same("number", it, "port")) {
                    let what = format!("leads to `{target}`, which is no service with that port");
                    problems.push(Problem::new(format!("Ingress `{name}`"), what));
                }
                let selector = strings(services.get(target).and_then(|it| it.pointer("/spec/selector")));
                let behind =
                    |it: &&Workload<'_>| it.runs_on() && !selector.is_empty() && matches(&selector, &it.labels());
                let scheme = if secured.contains(host) { "https" } else { "http" };
                for workload in workloads.iter().filter(behind) {
                    let Some(told) = scrape::told(workload, OPENED_AT) else { continue };
                    if told != format!("{scheme}://{host}") {
                        let what = format!(
                            "{OPENED_AT} is `{told}`, and people open it at `{scheme}://{host}` (Ingress `{name}`)"
                        );
                        problems.push(Problem::new(workload.at(), what));
                    }
                }
            }
        }
    }

    fn scaling(&self, workloads: &[Workload<'_>], problems: &mut Vec<Problem>) {
        let find = |kind: &str, name: &str| workloads.iter().find(|it| it.kind == kind && it.name == name);
        let text =
            |object: &Value, path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut least: BTreeMap<String, u64> = BTreeMap::new();
        for (name, scaler) in self.of("HorizontalPodAutoscaler") {
            let at = format!("HorizontalPodAutoscaler `{name}`");
            let target = text(scaler, "/spec/scaleTargetRef/name");
            let Some(workload) = find(&text(scaler, "/spec/scaleTargetRef/kind"), &target) else {
                problems.push(Problem::new(at, format!("scales `{target}`, which does not exist")));
                continue;
            };
            least.insert(target, scaler.pointer("/spec/minReplicas").and_then(Value::as_u64).unwrap_or(1));
            let bound = |key: &str| scaler.pointer(key).and_then(Value::as_u64);
            if bound("/spec/maxReplicas").is_some_and(|most| most <= bound("/spec/minReplicas").unwrap_or(1)) {
                problems.push(Problem::new(&at, "maxReplicas is not above minReplicas: nothing would be scaled"));
            }
            if workload.object.pointer("/spec/replicas").is_some() {
                problems.push(Problem::new(&at, "its target has `replicas`: each apply would undo the scaling"));
            }
            if !workload.containers().all(|container| container.pointer("/resources/requests/cpu").is_some()) {
                problems.push(Problem::new(&at, "its target requests no processor time: there is nothing to scale by"));
            }
        }
        for (name, budget) in self.of("PodDisruptionBudget") {
            let at = format!("PodDisruptionBudget `{name}`");
            let selector = strings(budget.pointer("/spec/selector/matchLabels"));
            let found =
                workloads.iter().find(|it| it.runs_on() && !selector.is_empty() && matches(&selector, &it.labels()));
            let Some(workload) = found else {
                problems.push(Problem::new(at, "selects no workload"));
                continue;
            };
            let replicas = workload.object.pointer("/spec/replicas").and_then(Value::as_u64);
            let replicas = replicas.or(least.get(workload.name).copied()).unwrap_or(1);
            let minimum = budget.pointer("/spec/minAvailable").and_then(Value::as_u64);
            if minimum.is_some_and(|minimum| minimum >= replicas) {
                problems.push(Problem::new(
                    at,
                    format!("minAvailable is not below {replicas} replicas: no node could be drained"),
                ));
            }
        }
    }

    /// Networks of each long-running workload, from its pods' labels `obelisk.network/NAME`.
    pub fn networks(&self) -> BTreeMap<String, BTreeSet<String>> {
        let workloads = self.workloads();
        let of = |workload: &Workload<'_>| -> BTreeSet<String> {
            workload.labels().keys().filter_map(|key| key.strip_prefix("obelisk.network/")).map(str::to_owned).collect()
        };
        let long = workloads.iter().filter(|workload| workload.kind != "CronJob");
        long.map(|workload| (workload.name.to_owned(), of(workload))).collect()
    }

    /// Pairs of workloads of which one may open a connection to the other, as the policies say, in alphabetical order.
    pub fn reachable(&self) -> BTreeSet<(String, String)> {
        let workloads: Vec<Workload<'_>> = self.workloads().into_iter().filter(|it| it.kind != "CronJob").collect();
        let policies = self.of("NetworkPolicy");
        let mut pairs = BTreeSet::new();
        for from in &workloads {
            for to in &workloads {
                if from.name != to.name && !self.open(&policies, from, to).is_empty() {
                    let (a, b) = (from.name.min(to.name), from.name.max(to.name));
                    pairs.insert((a.to_owned(), b.to_owned()));
                }
            }
        }
        pairs
    }

    /// Whether the policies let one workload open a connection to a port of another one.
    pub fn reaches(&self, from: &str, to: &str, port: u16) -> bool {
        let workloads = self.workloads();
        let find = |name: &str| workloads.iter().find(|it| it.name == name);
        let (Some(from), Some(to)) = (find(from), find(to)) else { return false };
        policy::holds(&self.open(&self.of("NetworkPolicy"), from, to), "TCP", port)
    }

    /// The ports at which one workload may reach another one: out of the one and into the other.
    fn open(&self, policies: &BTreeMap<&str, &Value>, from: &Workload<'_>, to: &Workload<'_>) -> Vec<policy::Ports> {
        let namespaces = self.of("Namespace");
        let [from, to] = [from, to].map(|it| policy::Pod::of(it.object, it.template, &namespaces));
        policy::open(policies.values().copied(), &from, &to)
    }

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

fn pod(workload: &Workload<'_>, problems: &mut Vec<Problem>) {
    let spec = workload.template.get("spec").cloned().unwrap_or_default();
    let mut rule = |kept: bool, what: &str| {
        if !kept {
            problems.push(Problem::new(workload.at(), what));
        }
    };
    let token = spec.get("automountServiceAccountToken").and_then(Value::as_bool);
    rule(token == Some(false), "its pod gets a token of the API server");
    for shared in ["hostNetwork", "hostPID", "hostIPC"] {
        rule(spec.get(shared).is_none(), &format!("its pod shares the host ({shared})"));
    }
    let volumes = items(spec.get("volumes")).filter_map(Value::as_object).flat_map(serde_json::Map::keys);
    for kind in volumes.filter(|it| *it != "name" && !VOLUMES.contains(&it.as_str())) {
        match kind.as_str() {
            "hostPath" => rule(false, "its pod mounts a path of the host"),
            other => rule(false, &format!("its pod mounts a volume of the kind {other}: claim it")),
        }
    }
    for sysctl in items(spec.pointer("/securityContext/sysctls")) {
        rule(SYSCTLS.contains(&name_of(sysctl)), &format!("its pod sets `{}`, which is the node's", name_of(sysctl)));
    }
}

fn container(workload: &Workload<'_>, container: &Value, problems: &mut Vec<Problem>) {
    let at = format!("{}, container `{}`", workload.at(), name_of(container));
    let mut rule = |kept: bool, what: &str| {
        if !kept {
            problems.push(Problem::new(&at, what));
        }
    };
    let flag = |path: &str| container.pointer(path).and_then(Value::as_bool);
    // What a container says of itself wins over what its pod says.
    let effective = |key: &str| {
        let of_pod = workload.template.pointer(&format!("/spec/securityContext/{key}"));
        container.pointer(&format!("/securityContext/{key}")).or(of_pod)
    };
    rule(effective("runAsNonRoot").and_then(Value::as_bool) == Some(true), "may run as root (runAsNonRoot: true)");
    rule(effective("runAsUser").and_then(Value::as_u64) != Some(0), "runs as root (runAsUser: 0)");
    let profile = |key: &str| effective(key).and_then(|it| it.get("type")).and_then(Value::as_str);
    rule(profile("seccompProfile") == Some("RuntimeDefault"), "has no seccomp profile RuntimeDefault");
    rule(profile("appArmorProfile") != Some("Unconfined"), "has no AppArmor profile (appArmorProfile: Unconfined)");
    let masked = container.pointer("/securityContext/procMount").and_then(Value::as_str);
    rule(masked.is_none_or(|it| it == "Default"), "sees all of /proc (procMount)");
    for port in items(container.get("ports")).filter_map(|it| it.get("hostPort")?.as_u64()).filter(|port| *port > 0) {
        rule(false, &format!("takes port {port} of its node (hostPort)"));
    }
    rule(flag("/securityContext/allowPrivilegeEscalation") == Some(false), "may gain privileges");
    let drops = items(container.pointer("/securityContext/capabilities/drop")).any(|it| it.as_str() == Some("ALL"));
    rule(drops, "keeps capabilities (drop: [ALL])");
    let given = items(container.pointer("/securityContext/capabilities/add")).next().is_some();
    rule(!given && flag("/securityContext/privileged") != Some(true), "is given capabilities");
    for path in ["requests/cpu", "requests/memory", "limits/memory"] {
        rule(container.pointer(&format!("/resources/{path}")).is_some(), &format!("has no resources {path}"));
    }
    let image =
        container.get("image").and_then(Value::as_str).unwrap_or_default().split('@').next().unwrap_or_default();
    let tag = image.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/'));
    rule(tag.is_some_and(|tag| !tag.is_empty() && tag != "latest"), "its image has no tag, or `latest`");
    // The kubelet makes the folder of a subPath as root (kubernetes/kubernetes#104291): nobody else may write there.
    let claims: BTreeSet<&str> = items(workload.object.pointer("/spec/volumeClaimTemplates"))
        .map(self::name)
        .chain(
            items(workload.template.pointer("/spec/volumes"))
                .filter(|volume| volume.get("persistentVolumeClaim").is_some() || volume.get("emptyDir").is_some())
                .map(name_of),
        )
        .collect();
    let below = |mount: &Value| mount.get("subPath").is_some() || mount.get("subPathExpr").is_some();
    for mount in items(container.get("volumeMounts")).filter(|mount| below(mount) && claims.contains(name_of(mount))) {
        let what = format!("mounts a subPath of `{}`, which the kubelet makes as root", name_of(mount));
        rule(mount.get("readOnly").and_then(Value::as_bool) == Some(true), &what);
    }
    let main = workload.containers().any(|it| name_of(it) == name_of(container));
    if workload.runs_on() && main {
        rule(container.get("readinessProbe").is_some(), "has no readiness probe");
        rule(container.get("livenessProbe").is_some(), "has no liveness probe");
    }
    for (key, what, purpose) in [
        ("startupProbe", "startup", Purpose::Ready),
        ("readinessProbe", "readiness", Purpose::Ready),
        ("livenessProbe", "liveness", Purpose::Alive),
    ] {
        let Some(asked) = container.get(key) else { continue };
        let command: Vec<String> =
            items(asked.pointer("/exec/command")).filter_map(Value::as_str).map(str::to_owned).collect();
        let path = asked.pointer("/httpGet/path").and_then(Value::as_str).map(str::to_owned);
        let of_litellm = || {
            let text =
                path.or((!command.is_empty()).then(|| command.join(" "))).filter(|_| probe::is_litellm(image))?;
            probe::wrong_of_litellm(&text, purpose)
        };
        let nothing = if command.is_empty() { None } else { probe::proves_nothing(&command) };
        if let Some(wrong) = nothing.or_else(of_litellm) {
            rule(false, &format!("its {what} probe: {wrong}"));
        }
    }
}

fn is_default_deny(policy: &Value) -> bool {
    let everybody =
        policy.pointer("/spec/podSelector").and_then(Value::as_object).is_some_and(serde_json::Map::is_empty);
    let types: BTreeSet<&str> = items(policy.pointer("/spec/policyTypes")).filter_map(Value::as_str).collect();
    let silent = policy.pointer("/spec/ingress").is_none() && policy.pointer("/spec/egress").is_none();
    everybody && silent && types == BTreeSet::from(["Egress", "Ingress"])
}

fn matches(selector: &BTreeMap<&str, &str>, labels: &BTreeMap<&str, &str>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn items(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn strings(value: Option<&Value>) -> BTreeMap<&str, &str> {
    let entries = value.and_then(Value::as_object);
    entries.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect()
}

fn name(object: &Value) -> &str {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

fn name_of(container: &Value) -> &str {
    container.get("name").and_then(Value::as_str).unwrap_or_default()
}
