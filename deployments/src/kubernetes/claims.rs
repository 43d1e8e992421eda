//! Claims that the pods of one node alone may mount, and who mounts them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Manifests, Workload, items, matches, name, strings};
use crate::Problem;

impl Manifests {
    /// How many pods a workload may have at once. One that has none now is there to have one later.
    pub(super) fn most_pods(&self, workload: &Workload<'_>) -> u64 {
        let count = |path: &str| workload.object.pointer(path).and_then(Value::as_u64);
        let scaled = self.of("HorizontalPodAutoscaler").into_values().filter(|it| {
            let text = |path: &str| it.pointer(path).and_then(Value::as_str);
            text("/spec/scaleTargetRef/name") == Some(workload.name)
                && text("/spec/scaleTargetRef/kind") == Some(workload.kind)
        });
        let most = scaled.filter_map(|it| it.pointer("/spec/maxReplicas").and_then(Value::as_u64)).max();
        match workload.kind {
            "Deployment" | "StatefulSet" => count("/spec/replicas").max(most).unwrap_or(1).max(1),
            // One on each node; two are enough to be several.
            "DaemonSet" => 2,
            "Job" => count("/spec/parallelism").unwrap_or(1).max(1),
            _ => 1,
        }
    }

    /// Claims of one node or of one pod that pods of several workloads, or several pods, mount.
    pub(super) fn claims(&self, workloads: &[Workload<'_>], problems: &mut Vec<Problem>) {
        let modes = |claim: &Value| -> BTreeSet<String> {
            let modes = items(claim.pointer("/spec/accessModes")).filter_map(Value::as_str);
            modes.map(str::to_owned).collect()
        };
        let mut kinds: BTreeMap<String, BTreeSet<String>> =
            self.of("PersistentVolumeClaim").into_iter().map(|(name, claim)| (name.to_owned(), modes(claim))).collect();
        let mut users: BTreeMap<String, Vec<(&Workload<'_>, u64)>> = BTreeMap::new();
        for workload in workloads {
            // Each pod of a StatefulSet has its own of each template.
            for template in items(workload.object.pointer("/spec/volumeClaimTemplates")) {
                for ordinal in 0..self.most_pods(workload) {
                    let claim = format!("{}-{}-{ordinal}", name(template), workload.name);
                    kinds.insert(claim.clone(), modes(template));
                    users.entry(claim).or_default().push((workload, 1));
                }
            }
            for volume in items(workload.template.pointer("/spec/volumes")) {
                if let Some(claim) = volume.pointer("/persistentVolumeClaim/claimName").and_then(Value::as_str) {
                    users.entry(claim.to_owned()).or_default().push((workload, self.most_pods(workload)));
                }
            }
        }
        for (claim, users) in users {
            let Some(kind) = kinds.get(&claim) else { continue };
            if kind.contains("ReadWriteMany") || kind.contains("ReadOnlyMany") {
                continue;
            }
            let mode = if kind.contains("ReadWriteOncePod") { "ReadWriteOncePod" } else { "ReadWriteOnce" };
            // A job that is never started by the clock runs when whoever has the claim is down.
            let by_hand = |it: &Workload<'_>| it.object.pointer("/spec/suspend").and_then(Value::as_bool) == Some(true);
            let beside = |it: &Workload<'_>| {
                mode == "ReadWriteOnce" && users.iter().any(|(other, _)| other.name != it.name && follows(it, other))
            };
            let free: Vec<_> = users.iter().filter(|(it, _)| !by_hand(it) && !beside(it)).collect();
            if free.iter().map(|(_, pods)| pods).sum::<u64>() < 2 {
                continue;
            }
            let who = match free.as_slice() {
                [(one, pods)] => format!("{pods} pods of {}", one.at()),
                several => several.iter().map(|(it, _)| it.at()).collect::<Vec<_>>().join(" and "),
            };
            let what = format!("is {mode}, and is mounted by {who}: those on another node would never start");
            let hint = "make it ReadWriteMany, or have the others follow the pod that has it: a required podAffinity by \
                        kubernetes.io/hostname";
            problems.push(Problem::new(format!("PersistentVolumeClaim `{claim}`"), what).hint(hint));
        }
    }
}

/// Whether the pods of one workload are put on the node where a pod of another one is.
fn follows(workload: &Workload<'_>, other: &Workload<'_>) -> bool {
    let required = "/spec/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    items(workload.template.pointer(required)).any(|term| {
        let selector = strings(term.pointer("/labelSelector/matchLabels"));
        let by_node = term.get("topologyKey").and_then(Value::as_str) == Some("kubernetes.io/hostname");
        by_node && !selector.is_empty() && matches(&selector, &other.labels())
    })
}
