//! Manifests of Kubernetes that break a rule, each judged by this crate.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

mod common;

use common::listed;
use deployments::kubernetes::Manifests;

/// Manifests of one workload that keep every rule.
const MANIFESTS: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: store}
spec:
  serviceName: store
  selector: {matchLabels: {app.kubernetes.io/name: store}}
  template:
    metadata: {labels: {app.kubernetes.io/name: store, obelisk.network/data: "true"}}
    spec:
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: store
          image: example/store:1.0
          ports: [{name: store, containerPort: 5432}]
          readinessProbe: {tcpSocket: {port: store}}
          livenessProbe: {tcpSocket: {port: store}}
          resources: {requests: {cpu: 1m, memory: 1Mi}, limits: {memory: 1Mi}}
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
          volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates: [{metadata: {name: data}}]
---
apiVersion: v1
kind: Service
metadata: {name: store}
spec: {clusterIP: None, selector: {app.kubernetes.io/name: store}, ports: [{port: 5432}]}
---
kind: NetworkPolicy
metadata: {name: default-deny}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
kind: NetworkPolicy
metadata: {name: dns}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
    - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
      ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
---
kind: NetworkPolicy
metadata: {name: network-data}
spec:
  podSelector: {matchLabels: {obelisk.network/data: "true"}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {obelisk.network/data: "true"}}}]}]
  egress: [{to: [{podSelector: {matchLabels: {obelisk.network/data: "true"}}}]}]
"#;

/// A second workload, beside what each test says of it.
const SECOND: &str = r#"
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: proxy}
spec:
  selector: {matchLabels: {app.kubernetes.io/name: proxy}}
  template:
    metadata: {labels: {app.kubernetes.io/name: proxy}}
    spec:
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: proxy
          image: ghcr.io/berriai/litellm:1.0
          ports: [{name: http, containerPort: 4000}]
          startupProbe: {httpGet: {path: /health/readiness, port: http}}
          readinessProbe: {httpGet: {path: /health/readiness, port: http}}
          livenessProbe: {httpGet: {path: /health/liveliness, port: http}}
          resources: {requests: {cpu: 1m, memory: 1Mi}, limits: {memory: 1Mi}}
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
          volumeMounts: [{name: files, mountPath: /files}]
      volumes: [{name: files, persistentVolumeClaim: {claimName: files}}]
---
kind: PersistentVolumeClaim
metadata: {name: files}
spec: {accessModes: [ReadWriteOnce]}
"#;

/// What this crate says of manifests, a line each.
fn problems(text: &str) -> String {
    listed(&Manifests::parse(text).unwrap().problems(&Default::default()))
}

/// The restricted Pod Security Standard holds for each container: what it says of itself wins over its pod.
#[test]
fn what_a_container_says_of_itself_counts() {
    let both = format!("{MANIFESTS}{SECOND}");
    assert_eq!(problems(&both), "");
    let store = "allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}\n          volumeMounts: [{name: data";
    let pod = "securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}\n      containers:\n        - name: store";
    let of_store = "StatefulSet `store`, container `store`: ";
    let first = "initContainers:\n        - name: first\n          image: example/first:1.0\n          \
                 resources: {requests: {cpu: 1m, memory: 1Mi}, limits: {memory: 1Mi}}\n          \
                 securityContext: {runAsUser: 0, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}\n      \
                 containers:\n        - name: store";
    let service = "spec: {clusterIP: None, ";
    let inside = |what: &str| format!("{what}, {store}");
    let cases: &[(&str, &str, &str)] = &[
        (store, &inside("runAsUser: 0"), &format!("{of_store}runs as root (runAsUser: 0)\n")),
        (store, &inside("runAsNonRoot: false"), &format!("{of_store}may run as root (runAsNonRoot: true)\n")),
        (
            store,
            &inside("seccompProfile: {type: Unconfined}"),
            &format!("{of_store}has no seccomp profile RuntimeDefault\n"),
        ),
        (
            store,
            &inside("appArmorProfile: {type: Unconfined}"),
            &format!("{of_store}has no AppArmor profile (appArmorProfile: Unconfined)\n"),
        ),
        (store, &inside("procMount: Unmasked"), &format!("{of_store}sees all of /proc (procMount)\n")),
        (
            "ports: [{name: store, containerPort: 5432}]",
            "ports: [{name: store, containerPort: 5432, hostPort: 5432}]",
            &format!("{of_store}takes port 5432 of its node (hostPort)\n"),
        ),
        (
            "containers:\n        - name: store",
            first,
            "StatefulSet `store`, container `first`: runs as root (runAsUser: 0)\n",
        ),
        (
            pod,
            &pod.replace("{runAsNonRoot", "{runAsUser: 0, runAsNonRoot"),
            &format!("{of_store}runs as root (runAsUser: 0)\n"),
        ),
        (pod, &pod.replace("runAsNonRoot: true, ", ""), &format!("{of_store}may run as root (runAsNonRoot: true)\n")),
        (
            pod,
            &pod.replace("{runAsNonRoot", "{sysctls: [{name: kernel.msgmax, value: '1'}], runAsNonRoot"),
            "StatefulSet `store`: its pod sets `kernel.msgmax`, which is the node's\n",
        ),
        (
            pod,
            &format!("volumes: [{{name: x, nfs: {{server: s, path: /}}}}]\n      {pod}"),
            "StatefulSet `store`: its pod mounts a volume of the kind nfs: claim it\n",
        ),
        (
            pod,
            &format!("volumes: [{{name: x, hostPath: {{path: /}}}}]\n      {pod}"),
            "StatefulSet `store`: its pod mounts a path of the host\n",
        ),
        (
            service,
            "spec: {type: LoadBalancer, clusterIP: None, ",
            "Service `store`: its type is LoadBalancer, which opens it beside the Ingress: only ClusterIP does not\n",
        ),
        (
            service,
            "spec: {type: NodePort, clusterIP: None, ",
            "Service `store`: its type is NodePort, which opens it beside the Ingress: only ClusterIP does not\n",
        ),
        (
            service,
            "spec: {externalIPs: [192.0.2.1], clusterIP: None, ",
            "Service `store`: has addresses outside of the cluster (externalIPs)\n",
        ),
        // The container says what its pod leaves open.
        (
            pod,
            &pod.replace(
                "{runAsNonRoot",
                "{runAsUser: 1, sysctls: [{name: net.ipv4.tcp_syncookies, value: '1'}], runAsNonRoot",
            ),
            "",
        ),
    ];
    for (from, to, message) in cases {
        assert!(both.contains(from), "{from}");
        assert_eq!(problems(&both.replacen(from, to, 1)), *message, "{to}");
    }
    // A pod that leaves everything to its containers.
    let open =
        both.replacen("securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}\n      ", "", 1);
    let own = inside("runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}");
    assert_eq!(problems(&open.replacen(store, &own, 1)), "");
    assert_eq!(
        problems(&open),
        format!("{of_store}has no seccomp profile RuntimeDefault\n{of_store}may run as root (runAsNonRoot: true)\n")
    );
}

/// Pods on several nodes cannot share what one node mounts; probes ask something, and LiteLLM what it may be asked.
#[test]
fn claims_that_are_shared_and_probes_that_prove_nothing_are_refused() {
    let both = format!("{MANIFESTS}{SECOND}");
    assert_eq!(problems(&both), "");
    let scaler = "---\nkind: HorizontalPodAutoscaler\nmetadata: {name: proxy}\nspec: {scaleTargetRef: {kind: Deployment, name: proxy}, minReplicas: 1, maxReplicas: 6}\n---\nkind: PersistentVolumeClaim\nmetadata: {name: files}";
    let files = "kind: PersistentVolumeClaim\nmetadata: {name: files}";
    let job = |head: &str, affinity: &str| {
        format!(
            "kind: CronJob\nmetadata: {{name: nightly}}\nspec:\n  {head}schedule: '0 2 * * *'\n  jobTemplate:\n    spec:\n      template:\n        spec:\n          \
             automountServiceAccountToken: false\n          securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}\n          \
             {affinity}volumes: [{{name: files, persistentVolumeClaim: {{claimName: data-store-0}}}}]\n---\n{files}"
        )
    };
    let required = |key: &str| {
        format!(
            "affinity: {{podAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: [{{topologyKey: {key}, labelSelector: {{matchLabels: {{app.kubernetes.io/name: store}}}}}}]}}}}\n          "
        )
    };
    let shared = "PersistentVolumeClaim `data-store-0`: is ReadWriteOnce, and is mounted by StatefulSet `store` and CronJob `nightly`: those on another node would never start\n  hint: make it ReadWriteMany";
    let path = "path: /health/liveliness";
    let cases: &[(&str, &str, &str)] = &[
        (
            "spec:\n  selector: {matchLabels: {app.kubernetes.io/name: proxy}}",
            "spec:\n  replicas: 2\n  selector: {matchLabels: {app.kubernetes.io/name: proxy}}",
            "PersistentVolumeClaim `files`: is ReadWriteOnce, and is mounted by 2 pods of Deployment `proxy`: those on another node would never start",
        ),
        (
            files,
            scaler,
            "PersistentVolumeClaim `files`: is ReadWriteOnce, and is mounted by 6 pods of Deployment `proxy`",
        ),
        ("claimName: files", "claimName: data-store-0", "is mounted by StatefulSet `store` and Deployment `proxy`"),
        (files, &job("", ""), shared),
        (files, &job("", &required("topology.kubernetes.io/zone")), shared),
        (
            "volumeClaimTemplates: [{metadata: {name: data}}]",
            "volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOncePod]}}]",
            "",
        ),
        // What is not started by the clock, and what follows the pod to its node, may.
        (files, &job("suspend: true\n  ", ""), ""),
        (files, &job("", &required("kubernetes.io/hostname")), ""),
        ("accessModes: [ReadWriteOnce]", "accessModes: [ReadWriteMany]", ""),
        (
            "livenessProbe: {tcpSocket: {port: store}}",
            "livenessProbe: {exec: {command: [\"true\"]}}",
            "StatefulSet `store`, container `store`: its liveness probe: `true` is always true: it asks the service nothing",
        ),
        (
            "readinessProbe: {tcpSocket: {port: store}}",
            "readinessProbe: {exec: {command: [sh, -c, exit 0]}}",
            "container `store`: its readiness probe: `exit 0` is always true",
        ),
        (
            "readinessProbe: {tcpSocket: {port: store}}",
            "startupProbe: {exec: {command: [\":\"]}}\n          readinessProbe: {tcpSocket: {port: store}}",
            "container `store`: its startup probe: `:` is always true",
        ),
        (
            path,
            "path: /health",
            "Deployment `proxy`, container `proxy`: its liveness probe: `/health` of LiteLLM needs its key and calls every model: ask /health/liveliness, or /health/readiness",
        ),
        (
            path,
            "path: /health/readiness",
            "its liveness probe: `/health/readiness` of LiteLLM fails while its database is away",
        ),
        (path, "path: /healthz", "its liveness probe: `/healthz` does not say whether LiteLLM is well"),
        (
            "livenessProbe: {httpGet: {path: /health/liveliness, port: http}}",
            "livenessProbe: {exec: {command: [curl, -f, 'http://127.0.0.1:4000/health']}}",
            "its liveness probe: `/health` of LiteLLM needs its key",
        ),
        (
            "readinessProbe: {httpGet: {path: /health/readiness, port: http}}",
            "readinessProbe: {httpGet: {path: /ready, port: http}}",
            "its readiness probe: `/ready` does not say whether LiteLLM is well",
        ),
    ];
    for (from, to, message) in cases {
        assert!(both.contains(from), "{from}");
        let said = problems(&both.replacen(from, to, 1));
        let fits = if message.is_empty() { said.is_empty() } else { said.contains(message) };
        assert!(fits, "{from} -> {to}\nsaid: {said}\nwanted: {message}");
    }
}

#[test]
fn every_mistake_in_manifests_has_a_message_that_names_it() {
    assert_eq!(problems(MANIFESTS), "");
    for (from, to, message) in [
        (
            "mountPath: /data}",
            "mountPath: /data, subPath: x}",
            "StatefulSet `store`, container `store`: mounts a subPath of `data`, which the kubelet makes as root",
        ),
        (
            "serviceName: store",
            "replicas: 3\n  serviceName: store",
            "has several replicas, which would not share their data",
        ),
        (
            "kind: NetworkPolicy\nmetadata: {name: default-deny}",
            "kind: Ingress\nmetadata: {name: edge}\nspec: {rules: [{http: {paths: [{backend: {service: {name: stor, port: {number: 5432}}}}]}}]}\n---\nkind: NetworkPolicy\nmetadata: {name: default-deny}",
            "Ingress `edge`: leads to `stor`, which is no service with that port",
        ),
        ("serviceName: store", "serviceName: other", "serviceName `other` is not a headless Service"),
        ("drop: [ALL]", "drop: []", "keeps capabilities"),
        ("{protocol: UDP, port: 53}, ", "", "NetworkPolicy: none lets every pod look up names"),
        ("egress: [{to: [", "egress: [{}, {to: [", "`network-data`: egress: a rule without `to` is every destination"),
        (
            "ingress: [{from: [",
            "ingress: [{}, {from: [",
            "`network-data`: ingress: a rule without `from` is every source",
        ),
        (
            "ingress: [{from: [",
            "ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}, ",
            "`network-data`: ingress: `0.0.0.0/0` is every source, pods included",
        ),
        (
            "egress: [{to: [",
            "egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}, ",
            "`network-data`: egress: `0.0.0.0/0` is every destination, pods included",
        ),
        (
            "ingress: [{from: [",
            "ingress: [{from: [{namespaceSelector: {}}, ",
            "`network-data`: ingress: `namespaceSelector: {}` is every namespace",
        ),
    ] {
        assert!(MANIFESTS.contains(from), "{from}");
        let said = problems(&MANIFESTS.replacen(from, to, 1));
        assert!(said.contains(message), "{from} -> {to}\nsaid: {said}\nwanted: {message}");
    }
}
