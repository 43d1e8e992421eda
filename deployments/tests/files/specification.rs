//! The specification of Compose, read by this crate's validator and by another one.

use deployments::ENVIRONMENTS;
use deployments::schema::JsonSchema;
use serde_json::{Value, json};

use super::common::{project, root};

/// Every way to break a value at one place: another type, a missing, misspelt or doubled entry.
fn broken(value: &Value) -> Vec<Value> {
    let mut all =
        vec![json!(null), json!(true), json!(-1), json!(1.5), json!("every_1x"), json!([]), json!({}), json!([{}])];
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                all.extend(broken(item).into_iter().map(|other| {
                    let mut items = items.clone();
                    items[index] = other;
                    Value::Array(items)
                }));
            }
            all.push(Value::Array(items.iter().chain(items.first()).cloned().collect()));
        }
        Value::Object(entries) => {
            for (name, inner) in entries {
                all.extend(broken(inner).into_iter().map(|other| {
                    let mut entries = entries.clone();
                    entries.insert(name.clone(), other);
                    Value::Object(entries)
                }));
                let mut without = entries.clone();
                without.remove(name);
                let mut misspelt = without.clone();
                misspelt.insert(format!("{name}x"), inner.clone());
                let mut extended = entries.clone();
                extended.insert(format!("x-{name}"), json!(1));
                all.extend([without, misspelt, extended].map(Value::Object));
            }
        }
        _ => {}
    }
    all
}

/// Parts of compose files that these deployments do not use and the schema describes.
const MORE: &str = r#"{
    "name": "x",
    "include": ["a.yaml", {"path": ["b.yaml"], "env_file": "e", "project_directory": "."}],
    "services": {"s": {
        "build": {"context": ".", "args": {"A": 1}, "ssh": ["default"]}, "pull_policy": "every_1d", "gpus": "all",
        "ulimits": {"nofile": {"soft": 1, "hard": 2}, "nproc": 3}, "extra_hosts": ["a:b"], "container_name": "ab",
        "depends_on": {"t": {"condition": "service_healthy", "restart": true, "required": false}},
        "devices": ["/dev/x", {"source": "a", "target": "b", "permissions": "r"}], "scale": 2, "profiles": ["p"],
        "develop": {"watch": [{"path": ".", "action": "sync", "target": "/x", "ignore": ["a"]}]},
        "blkio_config": {"weight": 10, "device_read_bps": [{"path": "/x", "rate": "1m"}]},
        "volumes": ["a:/b", {"type": "tmpfs", "target": "/t", "tmpfs": {"size": "1m", "mode": 448}}],
        "healthcheck": {"test": "x", "disable": false, "interval": "1s", "retries": 3},
        "networks": {"n": {"aliases": ["b"], "ipv4_address": "10.0.0.2", "priority": 1}},
        "deploy": {"replicas": 2, "resources": {"reservations": {"devices": [{"capabilities": ["gpu"], "count": "all"}]}}},
        "post_start": [{"command": ["x"], "user": "y", "privileged": false, "environment": ["A=1"]}],
        "oom_score_adj": 5, "pids_limit": 3, "stop_grace_period": "1s", "tmpfs": "/x", "cpus": 1.5}},
    "models": {"m": {"model": "x", "context_size": 1}},
    "networks": {"n": {"internal": true, "ipam": {"config": [{"subnet": "10.0.0.0/8"}]}, "labels": ["a=b"]}},
    "volumes": {"a": null}, "secrets": {"s": {"file": "x"}}, "configs": {"c": {"content": "x"}}, "x-y": 1
}"#;

#[test]
fn the_specification_is_read_as_the_crate_jsonschema_reads_it() {
    let text = std::fs::read_to_string(root().join("vendor/compose-spec/compose-spec.json")).unwrap();
    let ours = JsonSchema::parse(&text).unwrap();
    let theirs = jsonschema::validator_for(&serde_json::from_str(&text).unwrap()).unwrap();
    let files: std::collections::BTreeSet<_> = ENVIRONMENTS.iter().flat_map(|it| project(it).files).collect();
    let files = files.iter().map(|path| deployments::value(path, &std::fs::read_to_string(path).unwrap()).unwrap());
    // Of our files every ninth mistake is enough: most are the same mistake in another service.
    let values = [(serde_json::from_str(MORE).unwrap(), 1)].into_iter().chain(files.map(|value| (value, 9)));
    let (mut valid, mut invalid) = (0, 0);
    for (value, step) in values {
        assert_eq!(ours.misfits(&value), [], "the files themselves are valid");
        for other in broken(&value).into_iter().step_by(step) {
            let wrong = ours.misfits(&other);
            assert_eq!(wrong.is_empty(), theirs.is_valid(&other), "{wrong:?}\n{other:#}");
            *if wrong.is_empty() { &mut valid } else { &mut invalid } += 1;
        }
    }
    assert!(valid > 200 && invalid > 2000, "{valid} valid, {invalid} invalid");
}
