//! What must not be seen by whoever reads errors, logs and progress: secrets that are known, and passwords in addresses.
//!
//! Texts that others wrote (servers, helpers, whoever typed a command) reach people by many ways; they are looked through where
//! they leave the program.

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::parallel::lock;

static SECRETS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// What stands in place of a secret.
const STARS: &str = "***";

/// Keeps a secret from being shown, as it is and as it stands in addresses and forms. What has less than four characters is
/// found in any text and told by what is left out, so it is not hidden.
pub(crate) fn remember(secret: &str) {
    if secret.len() < 4 {
        return;
    }
    let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let mut secrets = lock(&SECRETS);
    secrets.insert(form.replace('+', "%20"));
    secrets.insert(form);
    secrets.insert(secret.to_owned());
}

/// A text without known secrets and without passwords in addresses.
pub(crate) fn hidden(text: &str) -> String {
    let mut text = text.to_owned();
    let secrets = lock(&SECRETS);
    let mut secrets: Vec<&String> = secrets.iter().collect();
    // One may be part of another.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    for secret in secrets {
        if text.contains(secret.as_str()) {
            text = text.replace(secret.as_str(), STARS);
        }
    }
    without_passwords(&text)
}

/// `user:password@` in front of a host becomes `...@`; an image's digest (`name:tag@sha256:...`) stays.
fn without_passwords(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('@') {
        let (before, after) = (&rest[..at], &rest[at..]);
        let word = before
            .rfind(|c: char| c.is_whitespace() || "'\"`<>=,".contains(c))
            .map_or(0, |end| end + before[end..].chars().next().map_or(0, char::len_utf8));
        let address = before[word..].find("://").map_or(word, |scheme| word + scheme + 3);
        let has_password = before[address..].contains(':') && !is_digest(&after[1..]);
        out.push_str(if has_password { &before[..address] } else { before });
        out.push_str(if has_password { "...@" } else { "@" });
        rest = &after[1..];
    }
    out.push_str(rest);
    out
}

fn is_digest(text: &str) -> bool {
    [("sha256:", 64), ("sha512:", 128)].iter().any(|(algorithm, length)| {
        text.strip_prefix(algorithm)
            .is_some_and(|hex| hex.len() >= *length && hex.bytes().take(*length).all(|byte| byte.is_ascii_hexdigit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_addresses_are_left_out_and_nothing_else() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, expected) in [
            ("invalid value 'me:pw@host:5000/x:1' for", "invalid value '...@host:5000/x:1' for"),
            ("me:pw@sha256host/x", "...@sha256host/x"),
            ("tcp://user:pw@127.0.0.1:1 is down", "tcp://...@127.0.0.1:1 is down"),
            ("a=http://u:p/w@h, b=https://u2:p@h2", "a=http://...@h, b=https://...@h2"),
            ("Somebody <me@example.org>", "Somebody <me@example.org>"),
            ("git@host:team/x", "git@host:team/x"),
            ("no address at all: x @ y", "no address at all: x @ y"),
        ] {
            assert_eq!(without_passwords(text), expected);
        }
        let pinned = format!("pushed localhost:5000/app:v1@{digest}");
        assert_eq!(without_passwords(&pinned), pinned);
    }

    #[test]
    fn known_secrets_are_hidden_in_every_form() {
        remember("CANARY of+hide/rs");
        for text in ["x CANARY of+hide/rs y", "x CANARY+of%2Bhide%2Frs y", "x CANARY%20of%2Bhide%2Frs y"] {
            assert_eq!(hidden(text), "x *** y");
        }
        remember("abc");
        assert_eq!(hidden("abc"), "abc");
    }
}
