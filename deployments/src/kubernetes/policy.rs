//! What network policies let through, between pods of the manifests: selectors with `matchLabels` and `matchExpressions`,
//! namespaces, and ports by number, by name and by range (networking.k8s.io/v1, `NetworkPolicySpec`).
//!
//! A block of addresses is about machines outside: pods are not reached by it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{items, name_of, strings};

/// The label that every namespace has.
const NAMESPACE: &str = "kubernetes.io/metadata.name";

/// Ports of a protocol, both ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ports {
    protocol: String,
    first: u16,
    last: u16,
}

/// What a policy sees of a pod.
pub(super) struct Pod<'a> {
    labels: BTreeMap<&'a str, &'a str>,
    namespace: &'a str,
    namespace_labels: BTreeMap<&'a str, &'a str>,
    /// Its ports by name.
    ports: BTreeMap<&'a str, u16>,
}

impl<'a> Pod<'a> {
    /// A pod of a workload's template.
    pub(super) fn of(workload: &'a Value, template: &'a Value, namespaces: &BTreeMap<&str, &'a Value>) -> Pod<'a> {
        let namespace = namespace_of(workload);
        let declared = namespaces.get(namespace).and_then(|it| it.pointer("/metadata/labels"));
        let mut namespace_labels = strings(declared);
        namespace_labels.insert(NAMESPACE, namespace);
        Pod {
            labels: strings(template.pointer("/metadata/labels")),
            namespace,
            namespace_labels,
            ports: offered(template).collect(),
        }
    }
}

/// The ports that the containers of a template offer: name and number.
pub(super) fn offered(template: &Value) -> impl Iterator<Item = (&str, u16)> {
    let containers = items(template.pointer("/spec/containers"));
    containers.flat_map(|container| items(container.get("ports"))).filter_map(|port| {
        let number = port.get("containerPort").and_then(Value::as_u64)?;
        Some((name_of(port), u16::try_from(number).ok()?))
    })
}

/// The ports at which `from` may open a connection to `to`: what leaves the one and enters the other.
pub(super) fn open<'a>(policies: impl Iterator<Item = &'a Value> + Clone, from: &Pod<'_>, to: &Pod<'_>) -> Vec<Ports> {
    let out = direction(policies.clone(), "Egress", from, to, to);
    let into = direction(policies, "Ingress", to, from, to);
    let both = |a: &Ports, b: &Ports| {
        let shared = Ports { protocol: a.protocol.clone(), first: a.first.max(b.first), last: a.last.min(b.last) };
        (a.protocol == b.protocol && shared.first <= shared.last).then_some(shared)
    };
    out.iter().flat_map(|a| into.iter().filter_map(move |b| both(a, b))).collect()
}

/// Whether a port is among them.
pub(super) fn holds(ports: &[Ports], protocol: &str, port: u16) -> bool {
    ports.iter().any(|it| it.protocol == protocol && (it.first..=it.last).contains(&port))
}

/// What the policies of a pod let through in a direction, to or from a peer. Without a policy of that direction it is
/// everything; `target` is the pod whose ports are meant.
fn direction<'a>(
    policies: impl Iterator<Item = &'a Value>,
    kind: &str,
    pod: &Pod<'_>,
    peer: &Pod<'_>,
    target: &Pod<'_>,
) -> Vec<Ports> {
    let (rules, peers) = if kind == "Egress" { ("/spec/egress", "to") } else { ("/spec/ingress", "from") };
    let (mut covered, mut ports) = (false, Vec::new());
    for policy in policies {
        let own = policy.pointer("/spec/podSelector").is_none_or(|selector| selects(selector, &pod.labels));
        if namespace_of(policy) != pod.namespace || !own || !covers(policy, kind) {
            continue;
        }
        covered = true;
        for rule in items(policy.pointer(rules)) {
            let listed: Vec<&Value> = items(rule.get(peers)).collect();
            if listed.is_empty() || listed.into_iter().any(|it| is_peer(it, peer, namespace_of(policy))) {
                ports.extend(rule_ports(rule, target));
            }
        }
    }
    if covered { ports } else { everything() }
}

/// Without `policyTypes` a policy is about what comes in, and about what goes out where it says so.
fn covers(policy: &Value, kind: &str) -> bool {
    match policy.pointer("/spec/policyTypes").and_then(Value::as_array) {
        Some(kinds) => kinds.iter().any(|it| it.as_str() == Some(kind)),
        None => kind == "Ingress" || policy.pointer("/spec/egress").is_some(),
    }
}

fn is_peer(peer: &Value, pod: &Pod<'_>, namespace: &str) -> bool {
    let in_namespace = match peer.get("namespaceSelector") {
        Some(selector) => selects(selector, &pod.namespace_labels),
        None => pod.namespace == namespace,
    };
    let is_pod = peer.get("podSelector").is_none_or(|selector| selects(selector, &pod.labels));
    peer.get("ipBlock").is_none() && in_namespace && is_pod
}

fn rule_ports(rule: &Value, target: &Pod<'_>) -> Vec<Ports> {
    let listed: Vec<&Value> = items(rule.get("ports")).collect();
    if listed.is_empty() {
        return everything();
    }
    let ports = listed.into_iter().filter_map(|port| {
        let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_owned();
        let (first, last) = match port.get("port") {
            None => (0, u16::MAX),
            Some(Value::String(name)) => target.ports.get(name.as_str()).map(|port| (*port, *port))?,
            Some(number) => {
                let first = u16::try_from(number.as_u64()?).ok()?;
                let last = port.get("endPort").and_then(Value::as_u64).and_then(|it| u16::try_from(it).ok());
                (first, last.unwrap_or(first))
            }
        };
        Some(Ports { protocol, first, last })
    });
    ports.collect()
}

fn everything() -> Vec<Ports> {
    ["TCP", "UDP", "SCTP"].map(|protocol| Ports { protocol: protocol.to_owned(), first: 0, last: u16::MAX }).into()
}

/// Whether a label selector selects labels; an empty one selects everything, an operator that is none selects nothing.
pub(super) fn selects(selector: &Value, labels: &BTreeMap<&str, &str>) -> bool {
    let equal = strings(selector.get("matchLabels")).iter().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && items(selector.get("matchExpressions")).all(|expression| {
            let text = |key: &str| expression.get(key).and_then(Value::as_str).unwrap_or_default();
            let label = labels.get(text("key"));
            let listed =
                label.is_some_and(|label| items(expression.get("values")).any(|value| value.as_str() == Some(label)));
            match text("operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => label.is_some(),
                "DoesNotExist" => label.is_none(),
                _ => false,
            }
        })
}

/// The namespace that kustomize wrote into an object, or the one without a name.
fn namespace_of(object: &Value) -> &str {
    object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use serde_json::json;

    use super::*;

    /// Whether a pod labelled `a` reaches port 80 (`http`) of one labelled `b`, both of namespace `n`.
    fn reached(policies: &[Value]) -> bool {
        let object = |label: &str| {
            json!({"metadata": {"namespace": "n"}, "spec": {"template": {
                "metadata": {"labels": {"app": label, "tier": "x"}},
                "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 80}]}]}}}})
        };
        let (a, b) = (object("a"), object("b"));
        let pod = |object: &'_ Value| -> Value { object.pointer("/spec/template").unwrap().clone() };
        let (ta, tb) = (pod(&a), pod(&b));
        let none = BTreeMap::new();
        holds(&open(policies.iter(), &Pod::of(&a, &ta, &none), &Pod::of(&b, &tb, &none)), "TCP", 80)
    }

    fn ingress(pods: Value, rule: Value) -> Value {
        json!({"metadata": {"namespace": "n"}, "spec": {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": [rule]}})
    }

    #[test]
    fn rules_are_read_as_the_specification_says() {
        let from = |peer: Value| json!({"from": [peer]});
        let a = || json!({"podSelector": {"matchLabels": {"app": "a"}}});
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"podSelector": {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}});
        let ports = |ports: Value| json!({"from": [{"podSelector": {}}], "ports": ports});
        let everyone = || json!({});
        for (expected, rule) in [
            (true, json!({})),
            (true, from(a())),
            (false, from(json!({"podSelector": {"matchLabels": {"app": "b"}}}))),
            (true, from(expression("app", "In", &["a", "c"]))),
            (false, from(expression("app", "NotIn", &["a"]))),
            (true, from(expression("other", "NotIn", &["a"]))),
            (true, from(expression("tier", "Exists", &[]))),
            (false, from(expression("tier", "DoesNotExist", &[]))),
            (false, from(expression("app", "Unknown", &["a"]))),
            (true, from(json!({"namespaceSelector": {"matchLabels": {NAMESPACE: "n"}}}))),
            (false, from(json!({"namespaceSelector": {"matchLabels": {NAMESPACE: "m"}}}))),
            (false, from(json!({"ipBlock": {"cidr": "0.0.0.0/0"}}))),
            (true, ports(json!([{"port": 80}]))),
            (true, ports(json!([{"port": "http"}]))),
            (true, ports(json!([{"port": 1, "endPort": 100}]))),
            (true, ports(json!([{"protocol": "TCP"}]))),
            (false, ports(json!([{"port": 81}]))),
            (false, ports(json!([{"port": "https"}]))),
            (false, ports(json!([{"protocol": "UDP", "port": 80}]))),
        ] {
            assert_eq!(reached(&[ingress(everyone(), rule.clone())]), expected, "{rule}");
        }
        // Policies add up, none of another namespace counts, and a pod without one is open.
        let refusing = ingress(everyone(), ports(json!([{"port": 81}])));
        assert!(reached(&[refusing.clone(), ingress(everyone(), from(a()))]));
        let mut elsewhere = refusing.clone();
        elsewhere["metadata"]["namespace"] = json!("m");
        assert!(reached(&[elsewhere]) && reached(&[]));
        let others = json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["b"]}]});
        assert!(reached(&[ingress(others, ports(json!([{"port": 81}])))]));
        // What leaves: without `policyTypes` it is covered where it is mentioned.
        let silent = json!({"metadata": {"namespace": "n"}, "spec": {"podSelector": {}, "egress": [{"to": [a()]}]}});
        assert!(!reached(&[silent, ingress(everyone(), json!({}))]));
    }
}
