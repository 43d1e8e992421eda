//! Values of settings: whether they fit their variables.

use std::net::IpAddr;

use super::{Kind, Variable};

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
    use super::*;

    #[test]
    fn addresses_are_judged_as_init_judges_them() {
        let urls = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/urls.txt");
        let urls = std::fs::read_to_string(urls).unwrap();
        let judged = urls.lines().filter_map(|line| line.split_once(' ')).filter(|(judged, _)| *judged != "#");
        for (judged, url) in judged {
            assert_eq!(is_url(url), judged == "good", "{url}");
        }
    }
}
