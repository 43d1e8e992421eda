//! Rendered Kubernetes manifests: the rules that no schema knows, and the network that the policies really allow.

mod claims;
mod compared;
mod cron;
mod pods;
mod policy;
mod scrape;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::Problem;
use crate::yaml::{self, YamlError};

/// The variable that holds the address under which people open a service: where an Ingress leads to it, that one's.
const OPENED_AT: &str = "WEBUI_URL";

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
            pods::pod(workload, &mut problems);
            for container in workload.every_container() {
                pods::container(workload, container, &mut problems);
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
