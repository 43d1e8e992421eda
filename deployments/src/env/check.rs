//! Checking settings and secrets. Everything that is wrong is said at once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use super::{Kind, Schema, Variable};
use crate::Problem;
use crate::compose::Settings;

/// Values that everybody knows because some default or example uses them.
const KNOWN: [&str; 14] = [
    "sk-1234",
    "sk-virtual1234",
    "postgres",
    "minioadmin",
    "admin",
    "password",
    "changeme",
    "change-me",
    "secret",
    "milvus",
    "root",
    "test",
    "litellm",
    "sk-openai-key-goes-here",
];

/// Fewest characters in production: of a key, which begins with `sk-`, and of any other secret. Init asks the same of keys
/// (`check_key` of images/init/common.sh); `tests/fixtures/keys.txt` is judged by both.
const LEAST_KEY: usize = 32;
const LEAST: usize = 16;

/// Why a secret could be guessed, whatever its length.
fn guessable(bare: &str) -> Option<&'static str> {
    let bytes = bare.as_bytes();
    let different = bytes.iter().collect::<std::collections::BTreeSet<_>>().len();
    let steps = bytes.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 1).count();
    if different < 8 {
        return Some("the secret has fewer than 8 different characters");
    }
    if steps * 2 > bytes.len() {
        return Some("the secret counts up or down");
    }
    bare.to_ascii_lowercase().contains("password").then_some("the secret holds the word password")
}

/// Checks settings for an environment: names, types, ranges and the rules between them. `given` is what somebody set;
/// `effective` is what counts with the environment's own file below it.
pub fn check(schema: &Schema, environment: &str, given: &Settings, effective: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, value) in given {
        match schema.variable(name) {
            None => {
                let nearest =
                    nearest(name, schema.variables.iter().filter(|it| it.is_setting()).map(|it| it.name.as_str()));
                let problem = Problem::new(name, "no service and no compose file knows this variable");
                problems.push(match nearest {
                    Some(nearest) => problem.hint(format!("did you mean `{nearest}`?")),
                    None => problem,
                });
            }
            Some(variable) if !variable.is_setting() => problems.push(
                Problem::new(name, "is written in the compose files and cannot be set from outside")
                    .hint(format!("it is {}; see `imgbuild env docs`", variable.doc.to_lowercase())),
            ),
            Some(variable) => {
                if let Err(why) = fits(variable, value) {
                    problems.push(Problem::new(name, format!("`{value}`: {why}")));
                }
            }
        }
    }
    let value = |name: &str| -> &str {
        let default = schema.variable(name).map(|variable| variable.default.as_str());
        effective.get(name).map(String::as_str).or(default).unwrap_or_default()
    };
    if let (Ok(size), Ok(overlap)) = (value("CHUNK_SIZE").parse::<u64>(), value("CHUNK_OVERLAP").parse::<u64>())
        && overlap >= size
    {
        let what = format!("{overlap} is not less than CHUNK_SIZE ({size}): chunks would never end");
        problems.push(Problem::new("CHUNK_OVERLAP", what));
    }
    if let (Some(heap), Some(limit)) = (bytes(value("TIKA_JAVA_HEAP")), bytes(value("TIKA_MEMORY_LIMIT")))
        && heap >= limit
    {
        problems.push(Problem::new("TIKA_JAVA_HEAP", "is not less than TIKA_MEMORY_LIMIT: the kernel would end Tika"));
    }
    problems.extend(same_ports(schema, environment, &value));
    if environment == "prod" {
        problems.extend(production(&value));
    }
    problems.sort();
    problems
}

/// Two services cannot be published on one port of one address.
fn same_ports<'a>(schema: &Schema, environment: &str, value: &impl Fn(&str) -> &'a str) -> Vec<Problem> {
    let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
    let mut problems = Vec::new();
    let published = schema.variables.iter().filter(|it| {
        it.kind == Kind::Port && it.group == "Publishing" && it.is_setting() && it.is_known_in(environment)
    });
    for variable in published {
        if let Some(other) = taken.insert(value(&variable.name), &variable.name) {
            let what = format!("port {} is already that of {other}", value(&variable.name));
            problems.push(Problem::new(&variable.name, what));
        }
    }
    problems
}

/// What is fine at home and not in production.
fn production<'a>(value: &impl Fn(&str) -> &'a str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |name: &str, bad: bool, what: &str| {
        if bad {
            problems.push(Problem::new(name, what));
        }
    };
    let debugging = |name: &str| value(name).eq_ignore_ascii_case("debug");
    refuse("LITELLM_LOG", debugging("LITELLM_LOG"), "DEBUG writes prompts and keys into the log");
    refuse("GLOBAL_LOG_LEVEL", debugging("GLOBAL_LOG_LEVEL"), "DEBUG writes conversations into the log");
    refuse("LITELLM_MODE", value("LITELLM_MODE") != "PRODUCTION", "must be PRODUCTION");
    refuse("OPEN_WEBUI_ENV", value("OPEN_WEBUI_ENV") != "prod", "must be prod");
    refuse("ENABLE_SIGNUP", value("ENABLE_SIGNUP").eq_ignore_ascii_case("true"), "lets anybody make an account");
    refuse("RESTART_POLICY", value("RESTART_POLICY") == "no", "leaves a service down that ended");
    refuse("OBELISK_TAG", value("OBELISK_TAG") == "latest", "`latest` is another image every time");
    problems
}

/// Checks the secret files of an environment. Names what is missing; never prints a value.
pub fn check_secrets(schema: &Schema, environment: &str, folder: &Path, effective: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    let make = format!("`deployments/docker/secrets/make {environment}` makes what is missing");
    for secret in schema.secrets.iter().filter(|secret| secret.is_known_in(environment)) {
        let path = folder.join(&secret.name);
        let at = path.display().to_string();
        let value = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                let problem = Problem::new(at, format!("the secret cannot be read: {error}"));
                problems.push(if secret.bytes > 0 {
                    problem.hint(&make)
                } else {
                    problem.hint(format!("{make}; this one stays empty until you write a key into it"))
                });
                continue;
            }
        };
        let value = value.trim_end_matches('\n');
        if value.is_empty() {
            if secret.bytes > 0 {
                problems.push(Problem::new(at, "the secret is empty").hint(&make));
            }
            continue;
        }
        if value.contains(char::is_whitespace) {
            problems.push(Problem::new(&at, "the secret contains white space"));
        }
        let bare = value.strip_prefix(&secret.prefix).unwrap_or(value);
        let known = KNOWN.iter().any(|known| known.eq_ignore_ascii_case(value) || known.eq_ignore_ascii_case(bare))
            || value.contains("goes-here");
        if environment == "prod" && known {
            let mend = format!("delete the file, then {make}");
            problems.push(Problem::new(&at, "the secret is a default that everybody knows").hint(mend));
        } else if environment == "prod" {
            let least = if secret.prefix == "sk-" { LEAST_KEY } else { LEAST };
            if value.len() < least {
                let what = format!("the secret has {} characters; production wants {least}", value.len());
                problems.push(Problem::new(&at, what));
            } else if let Some(why) = guessable(bare).filter(|_| !(1..16).contains(&secret.bytes)) {
                // What is made of fewer bytes is a name, and chance alone may repeat its few characters.
                problems.push(Problem::new(&at, why).hint(&make));
            }
        }
        if secret.prefix == "sk-" && value.contains(['"', '\\']) {
            problems.push(Problem::new(&at, "the secret holds a quote or a backslash"));
        }
        if !value.starts_with(&secret.prefix) && secret.prefix == "sk-" {
            problems.push(Problem::new(&at, "the secret does not begin with `sk-`, which LiteLLM and OpenAI expect"));
        }
    }
    let uses = |name: &str, wanted: &str| {
        let default = schema.variable(name).map(|variable| variable.default.as_str());
        effective.get(name).map(String::as_str).or(default).unwrap_or_default().eq_ignore_ascii_case(wanted)
    };
    let key = std::fs::read_to_string(folder.join("openai_api_key")).unwrap_or_default();
    let asked =
        uses("USE_OPENAI", "true") || uses("EMBEDDING_PROVIDER", "openai") || uses("COMPLETION_PROVIDER", "openai");
    if asked && !uses("OPENAI_API_KEY_FILE", "/run/secrets/openai_api_key") {
        let what = "must be /run/secrets/openai_api_key because OpenAI is used: init and rag read the key there";
        problems.push(Problem::new("OPENAI_API_KEY_FILE", what));
    }
    for (name, wanted) in [("USE_OPENAI", "true"), ("EMBEDDING_PROVIDER", "openai"), ("COMPLETION_PROVIDER", "openai")]
    {
        if uses(name, wanted) && key.trim().is_empty() {
            let hint = format!("write the key into {}", folder.join("openai_api_key").display());
            problems.push(Problem::new(name, format!("is `{wanted}`, but there is no OpenAI key")).hint(hint));
        }
    }
    problems.sort();
    problems
}

/// Whether a value fits a variable; an empty one fits where the default is empty.
pub(super) fn fits(variable: &Variable, value: &str) -> Result<(), String> {
    if value.is_empty() {
        return if variable.default.is_empty() { Ok(()) } else { Err("must not be empty".into()) };
    }
    if value.contains(['\n', '\r', '\0']) {
        return Err("must be one line".into());
    }
    let range = |number: f64| match (variable.min, variable.max) {
        (Some(min), _) if number < min => Err(format!("must be at least {min}")),
        (_, Some(max)) if number > max => Err(format!("must be at most {max}")),
        _ => Ok(()),
    };
    let unless = |good: bool, why: &str| if good { Ok(()) } else { Err(why.to_owned()) };
    match variable.kind {
        Kind::String => Ok(()),
        Kind::Bool => {
            unless(value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false"), "must be true or false")
        }
        Kind::Int => match value.parse::<i64>() {
            Ok(number) => range(number as f64),
            Err(_) => Err("must be a whole number".into()),
        },
        Kind::Float => match value.parse::<f64>() {
            Ok(number) if number.is_finite() => range(number),
            _ => Err("must be a number".into()),
        },
        Kind::Port => unless(value.parse::<u16>().is_ok_and(|port| port > 0), "must be a port, 1 to 65535"),
        Kind::Size => unless(bytes(value).is_some(), "must be a size such as 512m or 2g"),
        Kind::Duration => unless(is_duration(value), "must be a time such as 30s, 5m or 15d"),
        Kind::Url => unless(is_url(value), "must be a URL that begins with http:// or https:// and names a host"),
        Kind::Host => unless(is_host(value), "must be a host name"),
        Kind::Ip => unless(value.parse::<IpAddr>().is_ok(), "must be an IP address"),
        Kind::Path => unless(!value.contains('\0'), "must be a path"),
        Kind::Enum => unless(variable.values.iter().any(|it| it == value), &one_of(&variable.values)),
    }
}

fn one_of(values: &[String]) -> String {
    format!("must be one of {}", values.join(", "))
}

/// Bytes of a size as Docker writes it.
pub(crate) fn bytes(value: &str) -> Option<u64> {
    let lower = value.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (number, factor) = match lower.as_bytes().last()? {
        b'k' => (&lower[..lower.len() - 1], 1 << 10),
        b'm' => (&lower[..lower.len() - 1], 1 << 20),
        b'g' => (&lower[..lower.len() - 1], 1 << 30),
        _ => (lower, 1),
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn is_duration(value: &str) -> bool {
    let digits = value.trim_end_matches(|letter: char| letter.is_ascii_lowercase());
    matches!(&value[digits.len()..], "ms" | "s" | "m" | "h" | "d" | "w" | "y") && digits.parse::<u64>().is_ok()
}

fn is_url(value: &str) -> bool {
    let Some(rest) = value.strip_prefix("http://").or_else(|| value.strip_prefix("https://")) else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let host_is_fine = is_host(host) || (host.starts_with('[') && host.ends_with(']'));
    host_is_fine && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn is_host(value: &str) -> bool {
    value.len() <= 253
        && value.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// The known name that is at most a third different.
pub(crate) fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (distance(word, name), name))
        .filter(|(far, name)| *far <= name.len() / 3)
        .min()
        .map(|(_, name)| name)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::super::tests::schema;
    use super::*;

    fn found(environment: &str, settings: &[(&str, &str)]) -> Vec<String> {
        let given: Settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut effective = given.clone();
        if environment == "prod" {
            effective.entry("ENABLE_SIGNUP".into()).or_insert("false".into());
        }
        check(&schema(), environment, &given, &effective).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_fine_everywhere() {
        for environment in crate::ENVIRONMENTS {
            assert_eq!(found(environment, &[]), [""; 0], "{environment}");
        }
    }

    #[test]
    fn wrong_values_are_named_with_what_would_be_right() {
        for (name, value, message) in [
            ("CORE_PORT", "0", "must be a port, 1 to 65535"),
            ("CORE_PORT", "65536", "must be a port, 1 to 65535"),
            ("CORE_PORT", "http", "must be a port, 1 to 65535"),
            ("WEBUI_URL", "chat.example", "must be a URL that begins with http:// or https:// and names a host"),
            ("WEBUI_URL", "http://", "must be a URL that begins with http:// or https:// and names a host"),
            ("OLLAMA_URL", "http://h:99999", "must be a URL that begins with http:// or https:// and names a host"),
            ("LOG_LEVEL", "verbose", "must be one of DEBUG, INFO, WARNING, ERROR"),
            ("USE_OPENAI", "yes", "must be true or false"),
            ("RETRIEVE_TOP_K", "0", "must be at least 1"),
            ("RETRIEVE_TOP_K", "5.5", "must be a whole number"),
            ("OLLAMA_MEMORY_LIMIT", "8 GB", "must be a size such as 512m or 2g"),
            ("OLLAMA_CPU_LIMIT", "NaN", "must be a number"),
            ("OLLAMA_KEEP_ALIVE", "5", "must be a time such as 30s, 5m or 15d"),
            ("LITELLM_POSTGRES_HOST", "-db", "must be a host name"),
            ("PUBLISH_ADDRESS", "localhost", "must be an IP address"),
            ("OLLAMA_MODEL", "", "must not be empty"),
            ("OLLAMA_MODEL", "a\nb", "must be one line"),
        ] {
            let problems = found("dev", &[(name, value)]);
            assert_eq!(problems, [format!("{name}: `{value}`: {message}")], "{name}={value}");
        }
    }

    #[test]
    fn unknown_names_get_a_suggestion_and_fixed_ones_a_reason() {
        assert_eq!(
            found("dev", &[("CHUNK_SISE", "100")]),
            ["CHUNK_SISE: no service and no compose file knows this variable\n  hint: did you mean `CHUNK_SIZE`?"]
        );
        assert!(found("dev", &[("OLLAMA_HOST", "x")])[0].contains("cannot be set from outside"));
    }

    #[test]
    fn rules_between_variables() {
        let problems = found("dev", &[("CHUNK_OVERLAP", "2500")]);
        assert_eq!(problems, ["CHUNK_OVERLAP: 2500 is not less than CHUNK_SIZE (2500): chunks would never end"]);
        assert!(found("dev", &[("RAG_PORT", "8000")])[0].contains("port 8000 is already that of CORE_PORT"));
        assert!(found("dev", &[("TIKA_JAVA_HEAP", "2g")])[0].contains("TIKA_MEMORY_LIMIT"));
    }

    #[test]
    fn production_refuses_what_is_fine_at_home() {
        for (name, value) in [
            ("LITELLM_LOG", "DEBUG"),
            ("GLOBAL_LOG_LEVEL", "DEBUG"),
            ("LITELLM_MODE", "DEV"),
            ("ENABLE_SIGNUP", "true"),
            ("RESTART_POLICY", "no"),
            ("OBELISK_TAG", "latest"),
            ("OPEN_WEBUI_ENV", "dev"),
        ] {
            assert_eq!(found("dev", &[(name, value)]), [""; 0], "{name}");
            let problems = found("prod", &[(name, value)]);
            assert!(problems.len() == 1 && problems[0].starts_with(name), "{problems:?}");
        }
    }

    #[test]
    fn missing_weak_and_known_secrets_are_named_without_their_values() {
        let folder = tempfile::tempdir().unwrap();
        let schema = schema();
        let none = Settings::new();
        let missing = check_secrets(&schema, "prod", folder.path(), &none);
        assert_eq!(missing.len(), schema.secrets.len());
        assert!(missing[0].to_string().contains("secrets/make prod"), "{}", missing[0]);

        for secret in &schema.secrets {
            let value = format!("{}{}", secret.prefix, "7f3a9c1e5b2d8046f1c7e93a5d0b8246");
            let value = if secret.bytes == 0 { String::new() } else { value };
            std::fs::write(folder.path().join(&secret.name), value).unwrap();
        }
        assert_eq!(check_secrets(&schema, "prod", folder.path(), &none), []);
        for (name, value, what) in [
            ("postgres_password", "postgres", "everybody knows"),
            ("minio_root_password", "minioadmin", "everybody knows"),
            ("litellm_master_key", "sk-1234", "everybody knows"),
            ("litellm_master_key", "7f3a9c1e5b2d8046f1c7e93a5d0b8246", "does not begin with `sk-`"),
            ("postgres_password", "short", "has 5 characters"),
            ("postgres_password", "", "is empty"),
            ("postgres_password", "7f3a9c1e 5b2d8046 f1c7", "white space"),
            ("postgres_password", "aaaaaaaaaaaaaaaaaaaaaaaa", "fewer than 8 different"),
            ("postgres_password", "0123456789abcdef0123", "counts up or down"),
            ("litellm_master_key", "sk-7f3a9c1e5b2d8046", "production wants 32"),
        ] {
            let path = folder.path().join(name);
            let before = std::fs::read(&path).unwrap();
            std::fs::write(&path, value).unwrap();
            let problems = check_secrets(&schema, "prod", folder.path(), &none);
            assert!(problems.len() == 1 && problems[0].what.contains(what), "{name}: {problems:?}");
            assert!(value.is_empty() || !problems[0].what.contains(value), "a value was printed: {problems:?}");
            std::fs::write(&path, before).unwrap();
        }
        let path = folder.path().join("litellm_master_key");
        let before = std::fs::read(&path).unwrap();
        let keys = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/keys.txt");
        let keys = std::fs::read_to_string(keys).unwrap();
        for (judged, key) in keys.lines().filter_map(|line| line.split_once(' ')).filter(|(judged, _)| *judged != "#") {
            std::fs::write(&path, key).unwrap();
            let problems = check_secrets(&schema, "prod", folder.path(), &none);
            assert_eq!(problems.is_empty(), judged == "good", "{key}: {problems:?}");
        }
        std::fs::write(&path, before).unwrap();
        let openai = Settings::from([("USE_OPENAI".to_owned(), "true".to_owned())]);
        let problems = check_secrets(&schema, "prod", folder.path(), &openai);
        let names: Vec<&str> = problems.iter().map(|problem| problem.at.as_str()).collect();
        assert_eq!(names, ["OPENAI_API_KEY_FILE", "USE_OPENAI"], "{problems:?}");
        let openai = Settings::from([("EMBEDDING_PROVIDER".to_owned(), "openai".to_owned())]);
        let problems = check_secrets(&schema, "prod", folder.path(), &openai);
        let names: Vec<&str> = problems.iter().map(|problem| problem.at.as_str()).collect();
        assert_eq!(names, ["EMBEDDING_PROVIDER", "OPENAI_API_KEY_FILE"], "{problems:?}");
    }
}
