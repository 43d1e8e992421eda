//! Checking settings and secrets. Everything that is wrong is said at once.

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::values::{bytes, fits, nearest};
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
