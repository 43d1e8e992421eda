//! Values judged by a JSON schema, as far as the Compose specification's schema goes.
//!
//! The vendored schema uses some twenty keywords of draft 2020-12; these are understood here, and a schema with any other
//! is refused when it is read, so nothing is half checked. The crate `jsonschema` understands them all and would take a
//! third of the whole program's build; in the tests it judges this module over thousands of broken files.
//!
//! `format` is an annotation and asserts nothing (JSON Schema Validation, section 7.2.1).

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde_json::{Map, Value};
use thiserror::Error;

/// Keywords that say nothing about a value.
const SILENT: [&str; 8] = ["$schema", "$id", "$defs", "title", "description", "default", "deprecated", "format"];

/// A schema that cannot be used.
#[derive(Debug, Error)]
pub enum SchemaError {
    /// It is not JSON.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It uses a keyword that is not understood, or an understood one in an unknown way.
    #[error("`{keyword}` is not understood")]
    Keyword {
        /// The keyword.
        keyword: String,
    },
    /// A pattern that is none.
    #[error("pattern `{pattern}`: {source}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Why.
        source: Box<regex::Error>,
    },
    /// A reference that leads nowhere.
    #[error("`{reference}` leads nowhere")]
    Reference {
        /// The reference.
        reference: String,
    },
}

/// What does not fit: where in the value (a JSON pointer, empty for the whole) and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Misfit {
    /// A JSON pointer into the value.
    pub place: String,
    /// Why it does not fit.
    pub what: String,
}

/// A schema, ready for use.
#[derive(Debug)]
pub struct JsonSchema {
    root: Value,
    patterns: BTreeMap<String, Regex>,
}

impl JsonSchema {
    /// Reads a schema; every keyword in it must be understood and every reference lead to a schema in it.
    pub fn parse(text: &str) -> Result<JsonSchema, SchemaError> {
        let root: Value = serde_json::from_str(text)?;
        let mut patterns = BTreeMap::new();
        survey(&root, &root, &mut patterns)?;
        Ok(JsonSchema { root, patterns })
    }

    /// Everything about a value that does not fit.
    pub fn misfits(&self, value: &Value) -> Vec<Misfit> {
        let mut found = Vec::new();
        self.check(&self.root, value, "", &mut found);
        found.sort();
        found.dedup();
        found
    }

    /// Checks one value; returns the properties that the schema spoke about, which `unevaluatedProperties` asks for.
    fn check(&self, schema: &Value, value: &Value, place: &str, out: &mut Vec<Misfit>) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let schema = match schema {
            Value::Object(schema) => schema,
            Value::Bool(false) => {
                out.push(misfit(place, "is not expected here"));
                return seen;
            }
            _ => return seen,
        };
        if let Some(target) = schema.get("$ref").and_then(Value::as_str).and_then(|it| resolve(&self.root, it)) {
            seen.extend(self.check(target, value, place, out));
        }
        if let Some(kinds) = schema.get("type")
            && !kinds_of(kinds).any(|kind| is(value, kind))
        {
            let wanted = kinds_of(kinds).collect::<Vec<_>>().join(" or ");
            out.push(misfit(place, &format!("{} is not of type {wanted}", shown(value))));
        }
        if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
            && !allowed.iter().any(|one| same(one, value))
        {
            let allowed = allowed.iter().map(shown).collect::<Vec<_>>().join(", ");
            out.push(misfit(place, &format!("{} is not one of {allowed}", shown(value))));
        }
        self.number_and_text(schema, value, place, out);
        if let Value::Array(items) = value {
            self.items(schema, items, place, out);
        }
        for (key, least, most) in [("allOf", usize::MAX, usize::MAX), ("anyOf", 1, usize::MAX), ("oneOf", 1, 1)] {
            if let Some(branches) = schema.get(key).and_then(Value::as_array) {
                seen.extend(self.branches(branches, (least, most), value, place, out));
            }
        }
        if let Value::Object(entries) = value {
            seen.extend(self.entries(schema, entries, place, out));
            if schema.get("unevaluatedProperties") == Some(&Value::Bool(false)) {
                for name in entries.keys().filter(|name| !seen.contains(*name)) {
                    out.push(misfit(place, &format!("`{name}` is not expected here")));
                }
            }
        }
        seen
    }

    fn number_and_text(&self, schema: &Map<String, Value>, value: &Value, place: &str, out: &mut Vec<Misfit>) {
        if let Some(number) = value.as_f64() {
            let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
            if let Some(least) = bound("minimum").filter(|least| number < *least) {
                out.push(misfit(place, &format!("{number} is less than {least}")));
            }
            if let Some(most) = bound("maximum").filter(|most| number > *most) {
                out.push(misfit(place, &format!("{number} is more than {most}")));
            }
        }
        if let (Value::String(text), Some(pattern)) = (value, schema.get("pattern").and_then(Value::as_str))
            && !self.matches(pattern, text)
        {
            out.push(misfit(place, &format!("{} does not match `{pattern}`", shown(value))));
        }
    }

    fn items(&self, schema: &Map<String, Value>, items: &[Value], place: &str, out: &mut Vec<Misfit>) {
        if let Some(schema) = schema.get("items") {
            for (index, item) in items.iter().enumerate() {
                self.check(schema, item, &format!("{place}/{index}"), out);
            }
        }
        if schema.get("uniqueItems") == Some(&Value::Bool(true)) {
            let twice = items.iter().enumerate().find(|(index, item)| items[..*index].iter().any(|it| same(it, item)));
            if let Some((_, item)) = twice {
                out.push(misfit(place, &format!("{} stands there twice", shown(item))));
            }
        }
    }

    /// Between `least` and `most` branches must fit; with `least` above their number, all of them.
    fn branches(
        &self,
        branches: &[Value],
        (least, most): (usize, usize),
        value: &Value,
        place: &str,
        out: &mut Vec<Misfit>,
    ) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut failed: Vec<Vec<Misfit>> = Vec::new();
        let mut fit = 0;
        for branch in branches {
            let mut found = Vec::new();
            let spoken = self.check(branch, value, place, &mut found);
            if found.is_empty() {
                fit += 1;
                seen.extend(spoken);
            } else {
                failed.push(found);
            }
        }
        if fit < least.min(branches.len()) {
            if least > branches.len() {
                out.extend(failed.into_iter().flatten());
            } else {
                // Whoever wrote the value meant the alternative that it follows the farthest.
                let deepest = |found: &Vec<Misfit>| found.iter().map(|it| it.place.matches('/').count()).max();
                let depth = failed.iter().filter_map(deepest).max().unwrap_or_default();
                let here = place.matches('/').count();
                match failed.into_iter().find(|found| depth > here && deepest(found) == Some(depth)) {
                    Some(meant) => out.extend(meant),
                    None => out.push(misfit(place, &format!("{} has none of the shapes that fit here", shown(value)))),
                }
            }
        } else if fit > most {
            out.push(misfit(place, &format!("{} has {fit} shapes at once where one is wanted", shown(value))));
        }
        seen
    }

    fn entries(
        &self,
        schema: &Map<String, Value>,
        entries: &Map<String, Value>,
        place: &str,
        out: &mut Vec<Misfit>,
    ) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if !entries.contains_key(name) {
                out.push(misfit(place, &format!("`{name}` is missing")));
            }
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        let patterns = schema.get("patternProperties").and_then(Value::as_object);
        for (name, value) in entries {
            let inner = format!("{place}/{}", name.replace('~', "~0").replace('/', "~1"));
            let own = properties.and_then(|properties| properties.get(name));
            let matching = patterns.into_iter().flatten().filter(|(pattern, _)| self.matches(pattern, name));
            let mut spoken = false;
            for schema in own.into_iter().chain(matching.map(|(_, schema)| schema)) {
                self.check(schema, value, &inner, out);
                spoken = true;
            }
            if !spoken {
                match schema.get("additionalProperties") {
                    None => continue,
                    Some(Value::Bool(false)) => {
                        out.push(misfit(place, &format!("`{name}` is not expected here")));
                        continue;
                    }
                    Some(schema) => {
                        self.check(schema, value, &inner, out);
                    }
                }
            }
            seen.insert(name.clone());
        }
        seen
    }

    fn matches(&self, pattern: &str, text: &str) -> bool {
        self.patterns.get(pattern).is_some_and(|regex| regex.is_match(text))
    }
}

/// Refuses what is not understood, and prepares the patterns.
fn survey(root: &Value, schema: &Value, patterns: &mut BTreeMap<String, Regex>) -> Result<(), SchemaError> {
    let Value::Object(schema) = schema else {
        return match schema {
            Value::Bool(_) => Ok(()),
            other => Err(SchemaError::Keyword { keyword: shown(other) }),
        };
    };
    let mut prepare = |pattern: &str| match Regex::new(pattern) {
        Ok(regex) => {
            patterns.insert(pattern.to_owned(), regex);
            Ok(())
        }
        Err(source) => Err(SchemaError::Pattern { pattern: pattern.to_owned(), source: Box::new(source) }),
    };
    let mut inner: Vec<&Value> = Vec::new();
    for (keyword, value) in schema {
        let odd = || SchemaError::Keyword { keyword: keyword.clone() };
        match (keyword.as_str(), value) {
            ("$ref", Value::String(reference)) => {
                if resolve(root, reference).is_none() {
                    return Err(SchemaError::Reference { reference: reference.clone() });
                }
            }
            ("$defs" | "properties", Value::Object(named)) => inner.extend(named.values()),
            ("patternProperties", Value::Object(named)) => {
                named.keys().try_for_each(|pattern| prepare(pattern))?;
                inner.extend(named.values());
            }
            ("additionalProperties" | "items", value) => inner.push(value),
            ("allOf" | "anyOf" | "oneOf", Value::Array(branches)) => inner.extend(branches),
            ("pattern", Value::String(pattern)) => prepare(pattern)?,
            ("type", kinds) => {
                let known = ["array", "boolean", "integer", "null", "number", "object", "string"];
                if kinds_of(kinds).count() == 0 || !kinds_of(kinds).all(|kind| known.contains(&kind)) {
                    return Err(odd());
                }
            }
            ("required" | "enum", Value::Array(_)) => {}
            ("minimum" | "maximum", Value::Number(_)) => {}
            ("uniqueItems", Value::Bool(_)) | ("unevaluatedProperties", Value::Bool(false)) => {}
            (silent, _) if SILENT.contains(&silent) => {}
            _ => return Err(odd()),
        }
    }
    inner.into_iter().try_for_each(|schema| survey(root, schema, patterns))
}

/// `#/...` within the schema.
fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

fn kinds_of(value: &Value) -> impl Iterator<Item = &str> {
    let one = value.as_str();
    one.into_iter().chain(value.as_array().into_iter().flatten().filter_map(Value::as_str))
}

fn is(value: &Value, kind: &str) -> bool {
    match kind {
        "array" => value.is_array(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "object" => value.is_object(),
        "string" => value.is_string(),
        _ => false,
    }
}

/// JSON Schema's equality: `1` and `1.0` are the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

fn misfit(place: &str, what: &str) -> Misfit {
    Misfit { place: place.to_owned(), what: what.to_owned() }
}

/// A value as a message shows it: short.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "the list".into(),
        Value::Object(_) => "the mapping".into(),
        other => format!("`{}`", other.to_string().chars().take(60).collect::<String>()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    fn said(schema: &str, value: &str) -> Vec<String> {
        let schema = JsonSchema::parse(schema).unwrap();
        let found = schema.misfits(&serde_json::from_str(value).unwrap());
        found.into_iter().map(|it| format!("{}: {}", it.place, it.what)).collect()
    }

    #[test]
    fn messages_say_where_and_why() {
        let schema = r#"{"type": "object", "required": ["a"], "additionalProperties": false, "properties": {
            "a": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "uniqueItems": true}]},
            "b": {"type": ["integer", "string"], "minimum": 1, "maximum": 9}, "c": {"enum": ["x", 1]}}}"#;
        for (value, expected) in [
            (r#"{"a": "x", "b": 9, "c": 1.0}"#, &[][..]),
            (r#"{"a": ["x", 1]}"#, &["/a/1: `1` is not of type string"]),
            (r#"{"a": ["x", "x"]}"#, &["/a: the list has none of the shapes that fit here"]),
            (r#"{"a": {}}"#, &["/a: the mapping has none of the shapes that fit here"]),
            (
                r#"{"b": 10, "c": "y"}"#,
                &[": `a` is missing", "/b: 10 is more than 9", "/c: `\"y\"` is not one of `\"x\"`, `1`"],
            ),
            (r#"{"a": "x", "d": 0}"#, &[": `d` is not expected here"]),
            ("3", &[": `3` is not of type object"]),
        ] {
            assert_eq!(said(schema, value), expected, "{value}");
        }
    }

    #[test]
    fn a_schema_that_is_not_understood_whole_is_refused() {
        let error = |text: &str| JsonSchema::parse(text).unwrap_err().to_string();
        assert_eq!(error(r#"{"items": {"minItems": 1}}"#), "`minItems` is not understood");
        assert_eq!(error(r##"{"$ref": "#/$defs/x"}"##), "`#/$defs/x` leads nowhere");
        assert_eq!(error(r#"{"type": "text"}"#), "`type` is not understood");
        assert!(error(r#"{"pattern": "("}"#).starts_with("pattern `(`"));
    }
}
