//! Laying one compose file over another, by the rules of the Compose specification ("Merge and override").

use serde_json::{Map, Value};

use crate::yaml::{OVERRIDE, RESET};

/// Lists that a later file replaces; all others grow.
const REPLACED: [&str; 3] = ["command", "entrypoint", "test"];

/// Lists that are the short form of a mapping.
fn as_mapping(key: &str, value: Value) -> Value {
    if !matches!(key, "environment" | "labels" | "networks" | "depends_on") {
        return value;
    }
    let Value::Array(items) = value else { return value };
    let pairs = items.into_iter().filter_map(|item| item.as_str().map(str::to_owned));
    match key {
        "environment" | "labels" => Value::Object(
            pairs
                .map(|pair| match pair.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Value::from(value)),
                    None => (pair, Value::Null),
                })
                .collect(),
        ),
        "networks" => Value::Object(pairs.map(|name| (name, Value::Null)).collect()),
        _ => Value::Object(
            pairs.map(|name| (name, serde_json::json!({"condition": "service_started", "required": true}))).collect(),
        ),
    }
}

/// Lays `over` over `base`.
pub(super) fn file(base: &mut Value, over: Value) {
    let (Value::Object(base), Value::Object(over)) = (base, over) else { return };
    entries(base, over);
}

fn entries(base: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        if let Some(key) = key.strip_suffix(RESET) {
            base.remove(key);
        } else if let Some(key) = key.strip_suffix(OVERRIDE) {
            base.insert(key.to_owned(), normal(key, value));
        } else {
            match base.get_mut(&key) {
                // Marks inside must survive until they meet what they are about.
                Some(slot) => one(&key, slot, as_mapping(&key, value)),
                None => {
                    let value = normal(&key, value);
                    base.insert(key, value);
                }
            }
        }
    }
}

/// Brings a value that is new to its normal form, marks inside included.
fn normal(key: &str, value: Value) -> Value {
    match value {
        Value::Object(over) => {
            let mut fresh = Map::new();
            entries(&mut fresh, over);
            Value::Object(fresh)
        }
        other => as_mapping(key, other),
    }
}

fn one(key: &str, base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => entries(base, over),
        (Value::Array(base), Value::Array(over)) if !REPLACED.contains(&key) => list(key, base, over),
        // `networks: {edge: }` says nothing new about `edge`.
        (Value::Object(_), Value::Null) => {}
        (base, over) => *base = over,
    }
}

fn list(key: &str, base: &mut Vec<Value>, over: Vec<Value>) {
    for item in over {
        // A mount at the same place replaces the earlier one, and so does a secret or a configuration file.
        let place = match key {
            "volumes" => super::model::mount_target(&item),
            "secrets" | "configs" => {
                item.get("target").or(item.get("source")).unwrap_or(&item).as_str().map(str::to_owned)
            }
            _ => None,
        };
        let same = |known: &Value| match (key, &place) {
            ("volumes", Some(place)) => super::model::mount_target(known).as_ref() == Some(place),
            ("secrets" | "configs", Some(place)) => {
                known.get("target").or(known.get("source")).unwrap_or(known).as_str() == Some(place)
            }
            _ => *known == item,
        };
        match base.iter_mut().find(|known| same(known)) {
            Some(slot) => *slot = item,
            None => base.push(item),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(mut base: Value, over: Value) -> Value {
        let mut fresh = json!({});
        file(&mut fresh, std::mem::take(&mut base));
        file(&mut fresh, over);
        fresh
    }

    #[test]
    fn mappings_merge_lists_grow_and_commands_are_replaced() {
        let base = json!({"environment": ["A=1", "B=2"], "command": ["a"], "ports": ["1"], "networks": ["x"]});
        let over = json!({"environment": {"B": "3"}, "command": ["b"], "ports": ["2"], "networks": ["y"]});
        let expected = json!({
            "environment": {"A": "1", "B": "3"}, "command": ["b"], "ports": ["1", "2"],
            "networks": {"x": null, "y": null},
        });
        assert_eq!(merged(base, over), expected);
    }

    #[test]
    fn mounts_replace_by_place() {
        let base = json!({"volumes": ["v:/a:ro", "w:/b"]});
        let over = json!({"volumes": [{"type": "bind", "source": "./x", "target": "/a"}]});
        let expected = json!({"volumes": [{"type": "bind", "source": "./x", "target": "/a"}, "w:/b"]});
        assert_eq!(merged(base, over), expected);
    }

    #[test]
    fn marks_replace_and_remove() {
        let base = json!({"ports": ["1"], "healthcheck": {"test": ["a"], "retries": 3}});
        let over = json!({"ports!reset": null, "healthcheck!override": {"test": ["b"]}});
        assert_eq!(merged(base, over), json!({"healthcheck": {"test": ["b"]}}));
    }
}
