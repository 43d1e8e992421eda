//! The manifests of Kubernetes, judged by kustomize and its schemas; and damage to them, judged by this crate.

use std::collections::BTreeSet;

use deployments::kubernetes::Manifests;
use serde_json::Value;

use crate::common::{project, root, schema};
use crate::run;

fn rendered(overlay: &str) -> String {
    let folder = root().join("kubernetes/overlays").join(overlay);
    run("kubectl", &["kustomize", folder.to_str().unwrap()], "")
}

#[test]
fn real_kustomize_renders_manifests_that_keep_the_rules_and_equal_compose() {
    let schema = schema();
    let secrets: BTreeSet<String> = schema.secrets.iter().map(|secret| secret.name.clone()).collect();
    for overlay in ["dev", "prod"] {
        let manifests = Manifests::parse(&rendered(overlay)).unwrap();
        let mut problems = manifests.problems(&secrets);
        problems.extend(manifests.compared(&project(overlay)));
        let listed: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        assert_eq!(listed, "", "{overlay}");
        assert!(manifests.len() > 35, "{overlay}: {}", manifests.len());
        // The jobs that save reach what they save, and a job that is in no network nothing.
        if overlay == "prod" {
            assert!(
                manifests.reaches("backup-postgres", "postgres", 5432)
                    && !manifests.reaches("backup-postgres", "etcd", 2379)
            );
            assert!(
                manifests.reaches("backup-vector", "etcd", 2379) && manifests.reaches("backup-vector", "minio", 9000)
            );
            assert!(manifests.reaches("prometheus", "rag", 8000) && !manifests.reaches("prometheus", "postgres", 5432));
            // The chat knows the address that the Ingress gives it, and the pages say how the first account is made.
            let env = "/spec/template/spec/containers/0/env";
            let told = manifests.of("StatefulSet")["open-webui"].pointer(env).unwrap().to_string();
            for setting in [
                r#"{"name":"WEBUI_URL","value":"https://chat.example.com"}"#,
                r#"{"name":"ENABLE_SIGNUP","value":"false"}"#,
            ] {
                assert!(told.contains(setting), "{told}");
            }
            let page = std::fs::read_to_string(root().join("../docs/deployments/quick-start-prod.md")).unwrap();
            assert!(page.contains("kubectl -n obelisk set env statefulset/open-webui ENABLE_SIGNUP=true"));
            // What the jobs run is in the ConfigMap, and is what the test of these scripts runs.
            let scripts = root().join("docker/config/backup");
            let mut ran = Vec::new();
            for (name, job) in manifests.of("CronJob") {
                let spec = job.pointer("/spec/jobTemplate/spec/template/spec").unwrap();
                assert_eq!(job["spec"]["suspend"] == true, name.starts_with("restore-"), "{name}");
                for list in ["initContainers", "containers"] {
                    for container in spec.get(list).and_then(Value::as_array).into_iter().flatten() {
                        let words: Vec<&str> =
                            container["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
                        let script = words[1].strip_prefix("/etc/backup/").unwrap();
                        assert!(scripts.join(script).is_file(), "{name}: {words:?}");
                        ran.push(format!("{} {script} {}", words[0], words[2]));
                    }
                }
            }
            let each = |verb: &str| {
                ["python3 files.py", "sh postgres.sh", "sh etcd.sh", "sh buckets.sh"].map(|it| format!("{it} {verb}"))
            };
            assert_eq!(ran, [each("save"), each("restore")].concat());
        }
    }
}

fn all_names(all: &[Value], kind: &str) -> Vec<String> {
    let of_kind = all.iter().filter(|it| it["kind"] == kind);
    of_kind.map(|it| it["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// The page's way to name another backup than the newest: in the job, and there in every container.
#[test]
fn real_a_backup_that_is_named_reaches_every_container_of_the_job() {
    let manifests = Manifests::parse(&rendered("prod")).unwrap();
    let page = std::fs::read_to_string(root().join("../docs/deployments/backup.md")).unwrap();
    let line = page.lines().find(|line| line.contains("kubectl set env --local")).unwrap();
    let words: Vec<&str> = line.split(" | ").nth(1).unwrap().split_whitespace().collect();
    for name in ["restore-postgres", "restore-vector", "restore-files"] {
        // What `create job --from=cronjob/NAME --dry-run=client` prints.
        let spec = &manifests.of("CronJob")[name]["spec"]["jobTemplate"]["spec"];
        let job =
            serde_json::json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec});
        let named = run(words[0], &words[1..], &job.to_string());
        let named = deployments::value("job".as_ref(), &named).unwrap();
        let pod = &named["spec"]["template"]["spec"];
        let containers =
            ["initContainers", "containers"].map(|it| pod[it].as_array().cloned().unwrap_or_default()).concat();
        assert_eq!(containers.len(), if name == "restore-vector" { 2 } else { 1 }, "{name}");
        for container in containers {
            let wanted = serde_json::json!([{"name": "BACKUP", "value": "/backup/vector-20260102T024500Z"}]);
            assert_eq!(container["env"], wanted, "{name}: {}", container["name"]);
        }
    }
}

/// Whoever may write into a claim that is put back is stopped first, and the page waits until its pods are gone, before it
/// starts a job; each is started again, and init runs anew.
#[test]
fn real_the_page_of_a_restore_stops_whoever_writes() {
    let manifests = Manifests::parse(&rendered("prod")).unwrap();
    let page = std::fs::read_to_string(root().join("../docs/deployments/backup.md")).unwrap();
    let at = |what: &str| page.find(what).unwrap_or_else(|| panic!("the page does not say `{what}`"));
    let named = |what: &str| -> BTreeSet<&str> {
        let lines = page.lines().filter(|line| line.starts_with("kubectl -n obelisk scale ") && line.ends_with(what));
        lines.flat_map(str::split_whitespace).filter_map(|word| Some(word.split_once('/')?.1)).collect()
    };
    let (stopped, started) = (named("--replicas=0"), &named("--replicas=1") | &named("--replicas=2"));
    let (_, waited) = page.split_once("app.kubernetes.io/name in (").unwrap();
    let waited: BTreeSet<&str> = waited.split(')').next().unwrap().split(", ").collect();
    assert_eq!(waited, &stopped | &BTreeSet::from(["init"]));
    // The pod through which documents are put is there while one wants it.
    assert_eq!(started, &stopped - &BTreeSet::from(["vault"]));
    let claims = |pod: &Value, own: Vec<String>| -> BTreeSet<String> {
        let volumes = pod["volumes"].as_array().cloned().unwrap_or_default();
        let name = |it: &Value| it.as_str().map(str::to_owned);
        let containers =
            ["initContainers", "containers"].map(|it| pod[it].as_array().cloned().unwrap_or_default()).concat();
        let mounts = containers.iter().flat_map(|it| it["volumeMounts"].as_array().cloned().unwrap_or_default());
        let written: BTreeSet<String> =
            mounts.filter(|it| it["readOnly"] != true).filter_map(|it| name(&it["name"])).collect();
        let claimed = volumes.iter().filter(|it| name(&it["name"]).is_some_and(|it| written.contains(&it)));
        claimed.filter_map(|it| name(&it["persistentVolumeClaim"]["claimName"])).chain(own).collect()
    };
    let put_back: BTreeSet<String> = ["restore-vector", "restore-files"]
        .iter()
        .flat_map(|name| {
            claims(&manifests.of("CronJob")[name]["spec"]["jobTemplate"]["spec"]["template"]["spec"], Vec::new())
        })
        .filter(|claim| claim != "backup")
        .collect();
    let expected = ["data-etcd-0", "data-milvus-0", "data-open-webui-0", "init-tokens", "rag-vault"].map(str::to_owned);
    assert_eq!(put_back, BTreeSet::from(expected));
    let mut writers = 0;
    for kind in ["Deployment", "StatefulSet", "Job"] {
        for (name, workload) in manifests.of(kind) {
            let templates = workload["spec"]["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
            let own =
                templates.iter().map(|it| format!("{}-{name}-0", it["metadata"]["name"].as_str().unwrap())).collect();
            if !claims(&workload["spec"]["template"]["spec"], own).is_disjoint(&put_back) {
                assert!(waited.contains(name), "{kind} `{name}` writes into what is put back and is not waited for");
                writers += 1;
            }
        }
    }
    assert!(writers >= 6, "{writers}");
    // The jobs of the night are suspended first, those at work ended, all of them, and applying the manifests resumes them.
    let nightly: Vec<&str> = manifests.of("CronJob").into_keys().filter(|it| it.starts_with("backup-")).collect();
    let suspended: Vec<String> = nightly.iter().map(|it| format!("cronjob/{it}")).collect();
    let patch = page.lines().find(|line| line.contains(" patch ")).unwrap();
    let words: Vec<&str> = patch.split_whitespace().filter(|it| it.starts_with("cronjob/")).collect();
    assert!(words == suspended && patch.ends_with("--patch '{\"spec\":{\"suspend\":true}}'"), "{patch}");
    for name in nightly {
        let labels = &manifests.of("CronJob")[name]["spec"]["jobTemplate"]["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/component"], "backup", "{name}");
    }
    let order = [
        " patch ",
        "delete job --selector app.kubernetes.io/component=backup",
        "--replicas=0",
        "delete job/init",
        "wait --for=delete pod",
        "create job --from=cronjob/restore-postgres",
        "wait --for=condition=complete job/restore-postgres",
        "--replicas=1",
        "kubectl apply -k deployments/kubernetes/overlays/prod",
        "wait --for=condition=complete job/init",
    ];
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{order:?}");
}

#[test]
fn real_damage_to_the_manifests_is_named() {
    let whole = deployments::documents("rendered".as_ref(), &rendered("prod")).unwrap();
    let project = project("prod");
    let find = |all: &mut Vec<Value>, kind: &str, name: &str| -> usize {
        all.iter().position(|it| it["kind"] == kind && it["metadata"]["name"] == name).unwrap()
    };
    // Changes the scrape configuration, whose ConfigMap is called after its content.
    let scrape = |all: &mut Vec<Value>, from: &str, to: &str| {
        let at = all.iter().position(|it| it.pointer("/data/prometheus.yaml").is_some()).unwrap();
        let text = all[at]["data"]["prometheus.yaml"].as_str().unwrap();
        assert!(text.contains(from), "{text}");
        all[at]["data"]["prometheus.yaml"] = text.replacen(from, to, 1).into();
    };
    type Damage<'a> = (&'a dyn Fn(&mut Vec<Value>), &'a str);
    let pods = "/spec/template/metadata/labels";
    let damages: &[Damage<'_>] = &[
        (
            &|all| {
                let at = find(all, "NetworkPolicy", "network-data");
                all.remove(at);
            },
            "litellm and postgres: share a network in compose, no policy lets them talk",
        ),
        (
            &|all| {
                let at = find(all, "NetworkPolicy", "network-data");
                all[at]["spec"]["ingress"][0]["ports"] = serde_json::json!([{"port": 5433}]);
            },
            "`litellm`: the policies do not let it reach `postgres` at port 5432, compose does",
        ),
        (
            &|all| {
                let at = find(all, "NetworkPolicy", "network-data");
                let everybody =
                    serde_json::json!([{"key": "app.kubernetes.io/part-of", "operator": "In", "values": ["obelisk"]}]);
                all[at]["spec"]["podSelector"] = serde_json::json!({"matchExpressions": everybody});
                all[at]["spec"]["ingress"][0]["from"][0]["podSelector"] =
                    serde_json::json!({"matchExpressions": everybody});
                all[at]["spec"]["egress"][0]["to"][0]["podSelector"] =
                    serde_json::json!({"matchExpressions": everybody});
            },
            "core and postgres: may talk by policy and share no network in compose",
        ),
        (
            &|all| {
                let at = find(all, "StatefulSet", "postgres");
                all[at].pointer_mut(pods).unwrap()["obelisk.network/llm"] = "true".into();
            },
            "ollama and postgres: may talk by policy and share no network in compose",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "rag");
                all[at]["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = "1.1.1.1".into();
            },
            "Deployment `rag`: sees LOG_FORMAT=`1.1.1.1`, compose sets `json`",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "rag");
                all[at]["spec"]["template"]["spec"]["containers"][0]["image"] = "obelisk/rag:9".into();
            },
            "Deployment `rag`: runs obelisk/rag:9, compose runs obelisk/rag:0.1.0",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "rag");
                all[at]["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] =
                    false.into();
            },
            "Deployment `rag`, container `rag`: its root file system is writable (readOnlyRootFilesystem: true)\n  hint: in compose \
             it is read_only",
        ),
        (
            &|all| {
                let at = find(all, "CronJob", "backup-files");
                let container = "/spec/jobTemplate/spec/template/spec/containers/0/securityContext";
                all[at].pointer_mut(container).unwrap().as_object_mut().unwrap().remove("readOnlyRootFilesystem");
            },
            "CronJob `backup-files`, container `archive`: its root file system is writable (readOnlyRootFilesystem: true)",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "rag");
                all[at]["spec"]["template"]["spec"]["initContainers"][0]["securityContext"]["runAsUser"] = 0.into();
            },
            "Deployment `rag`, container `wait-for-init`: runs as root (runAsUser: 0)",
        ),
        (
            &|all| {
                let at = find(all, "NetworkPolicy", "network-data");
                let out = serde_json::json!({"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}]});
                all[at]["spec"]["egress"].as_array_mut().unwrap().push(out);
            },
            "network `data`: goes out by policy and is internal in compose",
        ),
        (
            &|all| {
                let at = find(all, "StatefulSet", "postgres");
                all[at]["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = 5433.into();
            },
            "StatefulSet `postgres`: offers the ports {5433}, compose {5432}",
        ),
        (
            &|all| {
                let at = find(all, "Service", "obelisk-rag");
                all.remove(at);
            },
            "Service `obelisk-rag`: has no port 8000, which others use in compose",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "rag");
                all[at]["spec"]["template"]["spec"]["initContainers"][0]["args"] = serde_json::json!(["--alive"]);
            },
            "Deployment `rag`: no init container waits for the end of `init` (its image, `--wait`)",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "rag");
                let mounts = &mut all[at]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"];
                mounts.as_array_mut().unwrap().retain(|it| it["mountPath"] != "/app/vault");
            },
            "Deployment `rag`: mounts nothing at /app/vault, compose does",
        ),
        (
            &|all| {
                let at = find(all, "StatefulSet", "open-webui");
                let volumes = &mut all[at]["spec"]["template"]["spec"]["volumes"];
                volumes.as_array_mut().unwrap().retain(|it| it["name"] != "secrets");
            },
            "StatefulSet `open-webui`: mounts the secrets {}, compose {\"milvus_token\"}",
        ),
        (
            &|all| {
                let at = find(all, "HorizontalPodAutoscaler", "rag");
                all[at]["spec"]["maxReplicas"] = 2.into();
            },
            "HorizontalPodAutoscaler `rag`: maxReplicas is not above minReplicas: nothing would be scaled",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "tika");
                all.remove(at);
            },
            "service `tika`: is in compose and has no workload",
        ),
        (
            &|all| {
                let at = find(all, "PersistentVolumeClaim", "rag-vault");
                all.remove(at);
            },
            "Deployment `rag`: claims `rag-vault`, which does not exist",
        ),
        (
            &|all| {
                let at = find(all, "Service", "rag");
                all[at]["spec"]["ports"][0]["targetPort"] = "grpc".into();
            },
            "Service `rag`: no container offers its target port \"grpc\"",
        ),
        (
            &|all| {
                let at = find(all, "Job", "init");
                let items = "/spec/template/spec/volumes";
                let volumes = all[at].pointer_mut(items).unwrap().as_array_mut().unwrap();
                let secrets = volumes.iter_mut().find(|it| it["name"] == "secrets").unwrap();
                secrets["secret"]["items"][0]["key"] = "no_such".into();
            },
            "Job `init`: mounts the secret `no_such`, which env/schema.toml does not know",
        ),
        (
            &|all| {
                let at = find(all, "Ingress", "obelisk");
                all[at]["spec"]["rules"][1]["host"] = "talk.example.com".into();
            },
            "StatefulSet `open-webui`: WEBUI_URL is `https://chat.example.com`, and people open it at \
             `http://talk.example.com` (Ingress `obelisk`)",
        ),
        (
            &|all| scrape(all, "dns_sd_configs:", "static_configs: [{targets: [\"rag:8000\"]}]\n    x-unused:"),
            "ConfigMap `prometheus-config`, job `rag`: `rag:8000` is one address for up to 6 pods: each time another one \
             answers\n  hint: name a headless Service (clusterIP: None) in dns_sd_configs, with type A and the port",
        ),
        (
            &|all| scrape(all, "[rag-pods]", "[rag]"),
            "ConfigMap `prometheus-config`, job `rag`: `rag` is not headless: its name has one address, not one for each pod\n  \
             hint: name a headless Service (clusterIP: None) in dns_sd_configs, with type A and the port",
        ),
        (&|all| scrape(all, "[rag-pods]", "[rga]"), "ConfigMap `prometheus-config`, job `rag`: `rga` is no Service"),
        (
            &|all| scrape(all, "port: 8000", "port: 8001"),
            "ConfigMap `prometheus-config`, job `rag`: `rag-pods` does not offer port 8001",
        ),
        (
            &|all| {
                let at = find(all, "StatefulSet", "prometheus");
                let labels = all[at].pointer_mut(pods).unwrap().as_object_mut().unwrap();
                labels.remove("obelisk.network/app");
                labels.remove("obelisk.network/vector");
            },
            "ConfigMap `prometheus-config`, job `rag`: the policies do not let StatefulSet `prometheus` reach `rag-pods` at port 8000",
        ),
        (
            &|all| {
                let at = find(all, "CronJob", "backup-files");
                let spec = all[at].pointer_mut("/spec/jobTemplate/spec/template/spec").unwrap();
                spec.as_object_mut().unwrap().remove("affinity");
            },
            "PersistentVolumeClaim `data-open-webui-0`: is ReadWriteOnce, and is mounted by StatefulSet `open-webui` and \
             CronJob `backup-files`: those on another node would never start\n  hint: make it ReadWriteMany, or have the \
             others follow the pod that has it: a required podAffinity by kubernetes.io/hostname",
        ),
        (
            &|all| {
                let at = find(all, "PersistentVolumeClaim", "init-rag");
                all[at]["spec"]["accessModes"] = serde_json::json!(["ReadWriteOnce"]);
            },
            "PersistentVolumeClaim `init-rag`: is ReadWriteOnce, and is mounted by Deployment `rag` and Job `init`: those on another node would never start\n  hint: make it ReadWriteMany, or \
             have the others follow the pod that has it: a required podAffinity by kubernetes.io/hostname",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "litellm");
                all[at]["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"]["path"] =
                    "/health".into();
            },
            "Deployment `litellm`, container `litellm`: its liveness probe: `/health` of LiteLLM needs its key and calls \
             every model: ask /health/liveliness, or /health/readiness where the database counts",
        ),
        (
            &|all| {
                let at = find(all, "Deployment", "rag");
                let mounts = &mut all[at]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"];
                let mount = serde_json::json!({"name": "init-tokens", "mountPath": "/app/tokens", "readOnly": true});
                mounts.as_array_mut().unwrap().push(mount);
            },
            "Deployment `rag`: mounts `init-tokens` at /app/tokens, compose nothing",
        ),
        (
            &|all| {
                let at = find(all, "CronJob", "backup-files");
                all[at]["spec"].as_object_mut().unwrap().remove("suspend");
            },
            "CronJob `backup-files`: does not say `suspend: false`: applied again, it would stay suspended after a restore",
        ),
        (
            &|all| {
                let at = find(all, "CronJob", "restore-files");
                all[at]["spec"].as_object_mut().unwrap().remove("suspend");
            },
            "CronJob `restore-files`: puts data back by the clock (suspend: true)",
        ),
        (
            &|all| {
                let at = find(all, "CronJob", "backup-files");
                all[at]["spec"]["schedule"] = "15 25 * * *".into();
            },
            "CronJob `backup-files`: its schedule `15 25 * * *` is none: minute, hour, day, month, day of the week",
        ),
    ];
    let secrets: BTreeSet<String> = schema().secrets.iter().map(|secret| secret.name.clone()).collect();
    // The hash that kustomize puts behind a generated name.
    let hashed = all_names(&whole, "ConfigMap");
    let short = |text: &str| {
        let mut text = text.to_owned();
        for name in &hashed {
            let (bare, _) = name.rsplit_once('-').unwrap();
            text = text.replace(name, bare);
        }
        text
    };
    for (damage, message) in damages {
        let mut all = whole.clone();
        damage(&mut all);
        let text: String = all.iter().map(|it| format!("---\n{it}\n")).collect();
        let manifests = Manifests::parse(&text).unwrap();
        let said: Vec<String> = [manifests.problems(&secrets), manifests.compared(&project)]
            .concat()
            .iter()
            .map(|it| short(&it.to_string()))
            .collect();
        assert!(said.iter().any(|it| it == message), "wanted: {message}\nsaid: {said:#?}");
    }
}

#[test]
fn real_components_change_what_they_are_for() {
    let folder = tempfile::tempdir_in(root().join("kubernetes/overlays")).unwrap();
    let text = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../base]\n\
                components: [../../components/gpu, ../../components/openai]\n";
    std::fs::write(folder.path().join("kustomization.yaml"), text).unwrap();
    let rendered = run("kubectl", &["kustomize", folder.path().to_str().unwrap()], "");
    let manifests = Manifests::parse(&rendered).unwrap();
    let limits = "/spec/template/spec/containers/0/resources/limits";
    assert_eq!(manifests.of("StatefulSet")["ollama"].pointer(limits).unwrap()["nvidia.com/gpu"], 1);
    let environment = manifests.of("Job")["init"].pointer("/spec/template/spec/containers/0/env").unwrap().to_string();
    assert!(environment.contains(r#"{"name":"USE_OPENAI","value":"true"}"#), "{environment}");
}

#[test]
fn real_kubernetes_schemas_accept_every_manifest() {
    for overlay in ["dev", "prod"] {
        let text = rendered(overlay);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let said = run("kubernetes-validate", &["-k", "1.32", "--strict", file.path().to_str().unwrap()], "");
        let passed = said.lines().filter(|line| line.starts_with("INFO") && line.contains(" passed ")).count();
        assert_eq!(
            passed,
            Manifests::parse(&text).unwrap().len(),
            "{overlay}: a kind without a schema is no success\n{said}"
        );
    }
}
