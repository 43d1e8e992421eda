//! Rendered Kubernetes manifests: the rules that no schema knows, and the network that the policies really allow.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::Problem;
use crate::compose::{Project, Service};
use crate::yaml::{self, YamlError};

/// Variables that only Kubernetes needs, by workload: a claim's file system has `lost+found` in its root, where initdb wants
/// an empty folder; a volume of Docker's has not.
const ONLY_HERE: [(&str, &str); 1] = [("postgres", "PGDATA")];

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
        if !self.of("NetworkPolicy").values().any(|policy| is_default_deny(policy)) {
            problems
                .push(Problem::new("NetworkPolicy", "none denies by default: an empty podSelector, both directions"));
        }
        self.policies(&mut problems);
        problems.sort();
        problems
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
        }
    }

    fn references(&self, workload: &Workload<'_>, secrets: &BTreeSet<String>, problems: &mut Vec<Problem>) {
        let maps = self.of("ConfigMap");
        let claims = self.of("PersistentVolumeClaim");
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
        let policies: Vec<&Value> = self.of("NetworkPolicy").into_values().collect();
        let mut pairs = BTreeSet::new();
        for from in &workloads {
            for to in &workloads {
                if from.name != to.name && allowed(&policies, &from.labels(), &to.labels()) {
                    let (a, b) = (from.name.min(to.name), from.name.max(to.name));
                    pairs.insert((a.to_owned(), b.to_owned()));
                }
            }
        }
        pairs
    }

    /// What differs from compose: services, images, and who can reach whom.
    pub fn compared(&self, project: &Project) -> Vec<Problem> {
        let mut problems = Vec::new();
        let wanted: BTreeMap<String, Service> = project
            .services()
            .into_iter()
            .filter(|(_, service)| service.profiles.is_empty() && service.network_mode.is_none())
            .collect();
        let workloads = self.workloads();
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
            for container in workload.containers().filter(|it| it.get("name").and_then(Value::as_str) == Some(name)) {
                environment(workload, container, service, &self.of("ConfigMap"), &mut problems);
            }
        }
        let names: BTreeSet<&String> = wanted.keys().collect();
        let inside = |(a, b): &(String, String)| names.contains(a) && names.contains(b);
        let compose: BTreeSet<(String, String)> =
            crate::graph::of(project, &BTreeSet::new()).reachable().into_iter().filter(inside).collect();
        let here: BTreeSet<(String, String)> = self.reachable().into_iter().filter(inside).collect();
        for (a, b) in compose.difference(&here) {
            problems.push(Problem::new(format!("{a} and {b}"), "share a network in compose, no policy lets them talk"));
        }
        for (a, b) in here.difference(&compose) {
            problems.push(Problem::new(format!("{a} and {b}"), "may talk by policy and share no network in compose"));
        }
        problems
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
    let flag = |path: &str| spec.pointer(path).and_then(Value::as_bool);
    rule(flag("/securityContext/runAsNonRoot") == Some(true), "its pod may run as root (runAsNonRoot)");
    let seccomp = spec.pointer("/securityContext/seccompProfile/type").and_then(Value::as_str);
    rule(seccomp == Some("RuntimeDefault"), "its pod has no seccomp profile RuntimeDefault");
    rule(flag("/automountServiceAccountToken") == Some(false), "its pod gets a token of the API server");
    for shared in ["hostNetwork", "hostPID", "hostIPC"] {
        rule(spec.get(shared).is_none(), &format!("its pod shares the host ({shared})"));
    }
    let host_path = items(spec.get("volumes")).any(|volume| volume.get("hostPath").is_some());
    rule(!host_path, "its pod mounts a path of the host");
}

fn container(workload: &Workload<'_>, container: &Value, problems: &mut Vec<Problem>) {
    let at = format!("{}, container `{}`", workload.at(), name_of(container));
    let mut rule = |kept: bool, what: &str| {
        if !kept {
            problems.push(Problem::new(&at, what));
        }
    };
    let flag = |path: &str| container.pointer(path).and_then(Value::as_bool);
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
}

fn is_default_deny(policy: &Value) -> bool {
    let everybody =
        policy.pointer("/spec/podSelector").and_then(Value::as_object).is_some_and(serde_json::Map::is_empty);
    let types: BTreeSet<&str> = items(policy.pointer("/spec/policyTypes")).filter_map(Value::as_str).collect();
    let silent = policy.pointer("/spec/ingress").is_none() && policy.pointer("/spec/egress").is_none();
    everybody && silent && types == BTreeSet::from(["Egress", "Ingress"])
}

/// Whether `from` may open a connection to `to`: both directions must be allowed, and a direction without a policy is.
fn allowed(policies: &[&Value], from: &BTreeMap<&str, &str>, to: &BTreeMap<&str, &str>) -> bool {
    let one = |kind: &str, rules: &str, peers: &str, of: &BTreeMap<&str, &str>, with: &BTreeMap<&str, &str>| {
        let mut applies = policies.iter().filter(|policy| {
            let selector = strings(policy.pointer("/spec/podSelector/matchLabels"));
            let covers = items(policy.pointer("/spec/policyTypes")).any(|it| it.as_str() == Some(kind));
            covers && matches(&selector, of)
        });
        let mut any = false;
        let permitted = applies.by_ref().fold(false, |permitted, policy| {
            any = true;
            permitted
                || items(policy.pointer(&format!("/spec/{rules}"))).any(|rule| {
                    // A rule that names ports only (DNS) is about who serves them, not about these workloads.
                    items(rule.get(peers)).any(|peer| {
                        peer.get("podSelector").is_some()
                            && peer.get("namespaceSelector").is_none()
                            && matches(&strings(peer.pointer("/podSelector/matchLabels")), with)
                    })
                })
        });
        !any || permitted
    };
    one("Egress", "egress", "to", from, to) && one("Ingress", "ingress", "from", to, from)
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
