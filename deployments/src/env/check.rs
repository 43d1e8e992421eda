//! Checking settings and secrets. Everything that is wrong is said at once.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::{Kind, Schema, Variable};
use crate::Problem;
use crate::compose::Settings;

/// Values that everybody knows because some default or example uses them.
const KNOWN: [&str; 12] = [
    "sk-1234",
    "sk-virtual1234",
    "postgres",
    "minioadmin",
    "admin",
    "password",
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

/// The rows of a keyboard's letters, both ways, as init knows them.
const ROWS: &str = "qwertyuiop asdfghjkl zxcvbnm qwertzuiop yxcvbnm poiuytrewq lkjhgfdsa mnbvcxz poiuztrewq mnbvcxy";

/// Least memory that a limit may leave to a service. Docker itself refuses less than 6 MiB.
const LEAST_MEMORY: u64 = 16 << 20;

/// Whether a secret holds what stands where one is to be written.
fn is_placeholder(value: &str) -> bool {
    let lower = value.to_ascii_lowercase();
    lower.contains("goes-here") || lower.replace(['-', '_'], "").contains("changeme")
}

/// Why a secret could be guessed, whatever its length.
fn guessable(bare: &str) -> Option<&'static str> {
    let lower = bare.to_ascii_lowercase();
    let bytes = bare.as_bytes();
    let different = bytes.iter().collect::<std::collections::BTreeSet<_>>().len();
    let beside = |at: usize| lower.get(at..at + 2).is_some_and(|pair| ROWS.contains(pair));
    let steps = (1..bytes.len()).filter(|at| bytes[*at].abs_diff(bytes[at - 1]) <= 1 || beside(at - 1)).count();
    if different < 8 {
        return Some("the secret has fewer than 8 different characters");
    }
    if steps * 2 > bytes.len() {
        return Some("the secret counts up or down, or along a keyboard");
    }
    lower.contains("password").then_some("the secret holds the word password")
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
            // The files say `${NAME:-default}`: an empty value is the default.
            Some(_) if value.is_empty() => {}
            Some(variable) => {
                if let Err(why) = fits(variable, value) {
                    problems.push(Problem::new(name, format!("`{value}`: {why}")));
                }
            }
        }
    }
    let value = |name: &str| -> &str { setting(schema, effective, name) };
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
    for limit in schema.variables.iter().filter(|it| it.is_memory_limit() && it.is_known_in(environment)) {
        let written = value(&limit.name);
        if bytes(written).is_some_and(|bytes| (1..LEAST_MEMORY).contains(&bytes)) {
            problems.push(Problem::new(
                &limit.name,
                format!("`{written}`: must be at least 16m: no service starts in less"),
            ));
        }
    }
    problems.extend(same_ports(schema, environment, &value));
    if environment == "prod" {
        problems.extend(production(&value));
    }
    problems.sort();
    problems
}

/// What counts of a setting: its default where it is unset or empty, as `${NAME:-default}` says.
fn setting<'a>(schema: &'a Schema, effective: &'a Settings, name: &str) -> &'a str {
    let default = schema.variable(name).map(|variable| variable.default.as_str());
    effective.get(name).map(String::as_str).filter(|value| !value.is_empty()).or(default).unwrap_or_default()
}

/// What has to be set in an environment and is not, or is empty.
pub fn check_required(schema: &Schema, environment: &str, effective: &Settings) -> Vec<Problem> {
    let unset = |it: &&Variable| effective.get(&it.name).is_none_or(String::is_empty);
    let missing = schema.variables.iter().filter(|it| it.required.contains(environment)).filter(unset);
    missing
        .map(|it| {
            Problem::new(
                &it.name,
                format!("must be set in {environment}: the default `{}` does not do there", it.default),
            )
            .hint(format!("set it in `.env` beside the compose files: {}", it.doc))
        })
        .collect()
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
    let said = format!("must be prod: in {} init takes short and well-known keys", value("ENVIRONMENT"));
    refuse("ENVIRONMENT", value("ENVIRONMENT") != "prod", &said);
    let domain = value("DOCS_DOMAIN");
    refuse(
        "DOCS_DOMAIN",
        domain.eq_ignore_ascii_case(value("CHAT_DOMAIN")),
        "is that of CHAT_DOMAIN, too: each needs its own",
    );
    refuse("LITELLM_MODE", value("LITELLM_MODE") != "PRODUCTION", "must be PRODUCTION");
    refuse("OPEN_WEBUI_ENV", value("OPEN_WEBUI_ENV") != "prod", "must be prod");
    refuse("ENABLE_SIGNUP", value("ENABLE_SIGNUP").eq_ignore_ascii_case("true"), "lets anybody make an account");
    refuse("RESTART_POLICY", value("RESTART_POLICY") == "no", "leaves a service down that ended");
    refuse("OBELISK_TAG", value("OBELISK_TAG") == "latest", "`latest` is another image every time");
    problems
}

/// Why a secret's file gives no text.
enum Unread {
    /// It cannot be read.
    Failed(io::Error),
    /// It is not UTF-8: the first byte that is none, counted from 1.
    NoText(usize),
}

/// The text of a secret's file. Nobody may write into a pipe, and it would be waited for without end.
fn read(path: &Path) -> Result<String, Unread> {
    if !std::fs::metadata(path).map_err(Unread::Failed)?.is_file() {
        return Err(Unread::Failed(io::Error::other("it is not a regular file")));
    }
    let bytes = std::fs::read(path).map_err(Unread::Failed)?;
    String::from_utf8(bytes).map_err(|error| Unread::NoText(error.utf8_error().valid_up_to() + 1))
}

/// Checks the secret files of an environment. Names what is missing; never prints a value.
pub fn check_secrets(schema: &Schema, environment: &str, folder: &Path, effective: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    let make = format!("`deployments/docker/secrets/make {environment}` makes what is missing");
    for secret in schema.secrets.iter().filter(|secret| secret.is_known_in(environment)) {
        let path = folder.join(&secret.name);
        let at = path.display().to_string();
        let value = match read(&path) {
            Ok(text) => text,
            Err(Unread::NoText(byte)) => {
                let what = format!("the secret is not text: byte {byte} of the file is no UTF-8");
                let again = match secret.bytes {
                    0 => "write it anew as one line of text, without a byte order mark: UTF-16 and compressed files are none".to_owned(),
                    _ => format!("services read it as text; delete the file, then {make}"),
                };
                problems.push(Problem::new(at, what).hint(again));
                continue;
            }
            Err(Unread::Failed(error)) => {
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
            || is_placeholder(value);
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
        let sent = |letter: char| letter.is_ascii_graphic() || letter.is_whitespace();
        if secret.prefix == "sk-" && !value.chars().all(sent) {
            let what = "the secret holds letters that are not ASCII, and it is sent in a header of HTTP";
            problems.push(Problem::new(&at, what).hint(format!("delete the file, then {make}")));
        }
        if !value.starts_with(&secret.prefix) && secret.prefix == "sk-" {
            problems.push(Problem::new(&at, "the secret does not begin with `sk-`, which LiteLLM and OpenAI expect"));
        }
    }
    let uses = |name: &str, wanted: &str| setting(schema, effective, name).eq_ignore_ascii_case(wanted);
    let key = read(&folder.join("openai_api_key")).unwrap_or_default();
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
    let (token, place) = ("MILVUS_TOKEN_FILE", "/run/secrets/milvus_token");
    let has_token = read(&folder.join("milvus_token")).is_ok_and(|it| !it.trim().is_empty());
    if !uses(token, "") && !uses(token, place) {
        problems.push(Problem::new(token, format!("must be {place} or empty: the secret is mounted there")));
    } else if uses(token, place) && !has_token {
        let hint = format!("write it into {}", folder.join("milvus_token").display());
        problems.push(Problem::new(token, "is set, but there is no token of Milvus").hint(hint));
    } else if uses(token, "") && has_token {
        let what = format!("must be {place}: there is a token of Milvus, and the retrieval service does not read it");
        problems.push(Problem::new(token, what));
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
        Kind::Size => unless(bytes(value).is_some_and(|bytes| bytes > 0), "must be a size such as 512m or 2g"),
        Kind::Model => unless(is_model(value), "must be the name of a model, such as llama3 or org/model:7b"),
        Kind::Models => unless(
            value.split_whitespace().all(is_model),
            "must be names of models, such as llama3 or org/model:7b, separated by spaces",
        ),
        Kind::Duration => unless(is_duration(value), "must be a time such as 30s, 5m or 15d"),
        Kind::Url => unless(is_url(value), "must be a URL that begins with http:// or https:// and names a host"),
        Kind::Host => unless(is_host(value), "must be a host name"),
        Kind::Ip => unless(value.parse::<IpAddr>().is_ok(), "must be an IP address"),
        Kind::Repository => unless(
            is_repository(value),
            "must be an image repository without a tag, such as obelisk or ghcr.io/you/obelisk",
        ),
        Kind::Tag => unless(is_tag(value), "must be a tag: letters, digits, `.`, `_` and `-`, at most 128"),
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

/// Whether an address is one of a service and no more, as init asks (`check_url` of images/init/common.sh): what it writes
/// others read, some of them by a shell. `tests/fixtures/urls.txt` is judged by both.
fn is_url(value: &str) -> bool {
    let Some(rest) = value.strip_prefix("http://").or_else(|| value.strip_prefix("https://")) else { return false };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let inside = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_address =
        |it: &str| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._~%/+-".contains(&byte);
    (is_host(host) || inside.is_some_and(is_address))
        && path.bytes().all(plain)
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
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

/// Whether a text is `[HOST[:PORT]/]NAME[/NAME]...`, as the reference grammar of container images has it.
pub fn is_repository(value: &str) -> bool {
    let is_name = |name: &str| {
        // Between letters and digits stands one dot, one or two underscores, or hyphens.
        let apart = |it: &str| {
            !it.contains("..")
                && !it.contains("___")
                && !["._", "_.", ".-", "-.", "_-", "-_"].iter().any(|two| it.contains(two))
        };
        apart(name)
            && name
                .split(['.', '_', '-'])
                .all(|it| it.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()))
            && name.starts_with(|it: char| it.is_ascii_alphanumeric())
            && name.ends_with(|it: char| it.is_ascii_alphanumeric())
    };
    let names = match value.split_once('/') {
        Some((host, names)) if host == "localhost" || host.contains(['.', ':']) => {
            let (host, port) = host.split_once(':').unwrap_or((host, "443"));
            if !is_host(host) || !port.parse::<u16>().is_ok_and(|port| port > 0) {
                return false;
            }
            names
        }
        _ => value,
    };
    names.split('/').all(is_name)
}

/// What init takes for the name of a model (`check_model` of images/init/common.sh): `[A-Za-z0-9][A-Za-z0-9._/:-]{0,200}`.
fn is_model(value: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._/:-".contains(&byte);
    value.len() <= 201 && value.bytes().all(fits) && value.starts_with(|it: char| it.is_ascii_alphanumeric())
}

/// `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
fn is_tag(value: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    value.len() <= 128 && value.bytes().all(fits) && !value.starts_with(['.', '-'])
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
            effective.entry("ENVIRONMENT".into()).or_insert("prod".into());
        }
        check(&schema(), environment, &given, &effective).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_fine_everywhere() {
        for environment in crate::ENVIRONMENTS {
            assert_eq!(found(environment, &[]), [""; 0], "{environment}");
        }
    }

    const REPOSITORY: &str = "must be an image repository without a tag, such as obelisk or ghcr.io/you/obelisk";
    const TAG: &str = "must be a tag: letters, digits, `.`, `_` and `-`, at most 128";

    #[test]
    fn addresses_are_judged_as_init_judges_them() {
        let urls = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/urls.txt");
        let urls = std::fs::read_to_string(urls).unwrap();
        let judged = urls.lines().filter_map(|line| line.split_once(' ')).filter(|(judged, _)| *judged != "#");
        for (judged, url) in judged {
            assert_eq!(is_url(url), judged == "good", "{url}");
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
            ("OBELISK_IMAGES", "x;touch${IFS}/tmp/PWN;#", REPOSITORY),
            ("OBELISK_IMAGES", "ghcr.io/you/obelisk:1", REPOSITORY),
            ("OBELISK_IMAGES", "ghcr.io/you/", REPOSITORY),
            ("OBELISK_IMAGES", "-x/y", REPOSITORY),
            ("OBELISK_IMAGES", "x..y", REPOSITORY),
            ("OBELISK_IMAGES", "x___y", REPOSITORY),
            ("OBELISK_IMAGES", "x/y.-z", REPOSITORY),
            ("OBELISK_IMAGES", "ghcr.io:0/y", REPOSITORY),
            ("OBELISK_TAG", "x;touch${IFS}/tmp/PWN;#", TAG),
            ("OBELISK_TAG", "-x", TAG),
            ("OBELISK_TAG", &"x".repeat(129), TAG),
            ("OLLAMA_MODEL", "a\nb", "must be one line"),
            ("OLLAMA_MODEL", "bad model", "must be the name of a model, such as llama3 or org/model:7b"),
            ("EMBEDDING_MODEL", "-x", "must be the name of a model, such as llama3 or org/model:7b"),
            (
                "OPENAI_COMPLETION_MODEL",
                &"x".repeat(202),
                "must be the name of a model, such as llama3 or org/model:7b",
            ),
            (
                "EXTRA_MODELS",
                "llama3 bad;model",
                "must be names of models, such as llama3 or org/model:7b, separated by spaces",
            ),
            ("LOG_MAX_SIZE", "0", "must be a size such as 512m or 2g"),
            ("CORE_MEMORY_LIMIT", "0g", "must be a size such as 512m or 2g"),
            ("STALL_TIMEOUT", "0", "must be at least 1"),
            ("WATCH_INTERVAL", "often", "must be a number"),
            ("SITE_URL", "docs.example", "must be a URL that begins with http:// or https:// and names a host"),
        ] {
            let problems = found("dev", &[(name, value)]);
            assert_eq!(problems, [format!("{name}: `{value}`: {message}")], "{name}={value}");
        }
    }

    #[test]
    fn images_of_registries_are_fine() {
        for images in ["obelisk", "ghcr.io/you/obelisk", "localhost:5000/a/b__c-d.e", "127.0.0.1:5000/x", "you/obelisk"]
        {
            assert_eq!(found("dev", &[("OBELISK_IMAGES", images)]), [""; 0], "{images}");
        }
        for tag in ["0.1.0", "v1.2.3-rc.1_x", "_", "latest", &"x".repeat(128)] {
            assert_eq!(found("dev", &[("OBELISK_TAG", tag)]), [""; 0], "{tag}");
        }
    }

    #[test]
    fn a_pipe_in_a_secrets_place_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["postgres_password", "openai_api_key", "milvus_token"] {
            assert!(std::process::Command::new("mkfifo").arg(folder.path().join(name)).status().unwrap().success());
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        let path = folder.path().to_owned();
        std::thread::spawn(move || sender.send(check_secrets(&schema(), "prod", &path, &Settings::new())));
        let problems = receiver.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        let pipe = |problem: &&Problem| problem.what == "the secret cannot be read: it is not a regular file";
        assert_eq!(problems.iter().filter(pipe).count(), 3, "{problems:?}");
    }

    #[test]
    fn a_limit_that_leaves_no_memory_is_refused_everywhere() {
        for environment in crate::ENVIRONMENTS {
            for (name, value) in [("CORE_MEMORY_LIMIT", "1k"), ("INIT_MEMORY_LIMIT", "15m"), ("TIKA_MEMORY_LIMIT", "1")]
            {
                let said = format!("{name}: `{value}`: must be at least 16m: no service starts in less");
                let problems = found(environment, &[(name, value), ("TIKA_JAVA_HEAP", "1")]);
                assert!(problems.contains(&said), "{environment}: {problems:?}");
            }
            assert_eq!(found(environment, &[("CORE_MEMORY_LIMIT", "16m")]), [""; 0], "{environment}");
        }
        assert_eq!(found("dev", &[("PROXY_MEMORY_LIMIT", "1k")]), [""; 0], "a limit of production alone");
        assert_eq!(found("prod", &[("PROXY_MEMORY_LIMIT", "1k")]).len(), 1);
    }

    #[test]
    fn what_production_has_to_set_is_asked_for_there_alone() {
        let missing = |environment: &str, settings: &[(&str, &str)]| -> Vec<String> {
            let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            check_required(&schema(), environment, &settings).iter().map(ToString::to_string).collect()
        };
        let said = "WEBUI_URL: must be set in prod: the default `http://localhost:8080` does not do there\n  \
                    hint: set it in `.env` beside the compose files: Address under which people open the chat";
        for settings in [&[][..], &[("WEBUI_URL", "")]] {
            let problems = missing("prod", settings);
            assert!(problems.len() == 1 && problems[0].starts_with(said), "{problems:?}");
        }
        assert_eq!(missing("prod", &[("WEBUI_URL", "https://chat.example.com")]), [""; 0]);
        assert_eq!(missing("dev", &[]), [""; 0]);
        assert_eq!(missing("test", &[]), [""; 0]);
    }

    #[test]
    fn models_with_tags_and_organisations_are_fine() {
        for (name, value) in [
            ("OLLAMA_MODEL", "hf.co/org/Model-GGUF:Q4_K_M"),
            ("EMBEDDING_MODEL", &"x".repeat(201)),
            ("EXTRA_MODELS", "  llama3:8b   nomic-embed-text "),
        ] {
            assert_eq!(found("dev", &[(name, value)]), [""; 0], "{name}={value}");
        }
    }

    #[test]
    fn an_empty_value_is_the_default_as_compose_takes_it() {
        assert_eq!(found("dev", &[("OLLAMA_MODEL", ""), ("CORE_PORT", ""), ("CHUNK_OVERLAP", "")]), [""; 0]);
        assert_eq!(found("prod", &[("LITELLM_MODE", ""), ("COMPOSE_PROFILES", "tls")]), [""; 0]);
        let problems = found("dev", &[("CHUNK_SIZE", "400"), ("CHUNK_OVERLAP", "")]);
        assert_eq!(problems, ["CHUNK_OVERLAP: 500 is not less than CHUNK_SIZE (400): chunks would never end"]);
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
            ("ENVIRONMENT", "test"),
            ("DOCS_DOMAIN", "Chat.localhost"),
        ] {
            assert_eq!(found("dev", &[(name, value)]), [""; 0], "{name}");
            let problems = found("prod", &[(name, value)]);
            assert!(problems.len() == 1 && problems[0].starts_with(name), "{problems:?}");
        }
        let said = ["ENVIRONMENT: must be prod: in dev init takes short and well-known keys"];
        assert_eq!(found("prod", &[("ENVIRONMENT", "dev")]), said);
        let same = [("DOCS_DOMAIN", "a.example"), ("CHAT_DOMAIN", "a.example")];
        assert_eq!(found("prod", &same), ["DOCS_DOMAIN: is that of CHAT_DOMAIN, too: each needs its own"]);
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
            ("postgres_password", "qwertyuiopasdfgh", "counts up or down, or along a keyboard"),
            ("postgres_password", "POIUYTREWQ-lkjhgf", "counts up or down, or along a keyboard"),
            ("postgres_password", "please-changeme-7f3a9c1e", "everybody knows"),
            ("postgres_password", "7f3a9c1e-CHANGE_ME-5b2d80", "everybody knows"),
            ("minio_root_user", "obelisk-change-me", "everybody knows"),
            ("grafana_admin_password", "changeme", "everybody knows"),
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
        // Not text: what, where, and what to do, which differs by whether the secret is made or written by a person.
        for (name, hint) in
            [("postgres_password", "secrets/make prod"), ("openai_api_key", "write it anew as one line")]
        {
            let path = folder.path().join(name);
            let before = std::fs::read(&path).unwrap();
            std::fs::write(&path, b"secret\xff\xfe-7f3a9c1e5b2d8046").unwrap();
            let [problem] = &check_secrets(&schema, "prod", folder.path(), &none)[..] else { panic!("{name}") };
            assert!(
                problem.at.ends_with(name) && problem.what.contains("is not text: byte 7 of the file"),
                "{problem}"
            );
            assert!(problem.hint.as_ref().is_some_and(|it| it.contains(hint)), "{problem}");
            assert!(!problem.to_string().contains("7f3a"), "a value was printed: {problem}");
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

        let with = |path: &str| Settings::from([("MILVUS_TOKEN_FILE".to_owned(), path.to_owned())]);
        let said = |settings: &Settings| -> Vec<String> {
            check_secrets(&schema, "prod", folder.path(), settings).into_iter().map(|problem| problem.what).collect()
        };
        let place = "/run/secrets/milvus_token";
        assert_eq!(said(&with(place)), ["is set, but there is no token of Milvus"]);
        assert!(said(&with("/x"))[0].starts_with("must be /run/secrets/milvus_token or empty"));
        std::fs::write(folder.path().join("milvus_token"), "root:7f3a9c1e5b2d8046").unwrap();
        assert_eq!(said(&with(place)), [""; 0]);
        assert!(said(&none)[0].contains("does not read it"));
    }
}
