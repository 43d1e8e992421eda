//! What pods and their containers are held to: the restricted Pod Security Standard, and rules of our own beyond it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Workload, items, name, name_of};
use crate::Problem;
use crate::probe::{self, Purpose};

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

pub(super) fn pod(workload: &Workload<'_>, problems: &mut Vec<Problem>) {
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

pub(super) fn container(workload: &Workload<'_>, container: &Value, problems: &mut Vec<Problem>) {
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
        .map(name)
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
