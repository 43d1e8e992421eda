//! `WWW-Authenticate`: what a registry asks for (RFC 9110, section 11.6.1).

/// One challenge of a 401.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from `realm`.
    Bearer {
        /// The URL that gives tokens.
        realm: String,
        /// Whom the token is for.
        service: Option<String>,
        /// What the request that failed needed.
        scope: Option<String>,
        /// Why a token that was sent did not do, such as `insufficient_scope`.
        error: Option<String>,
    },
}

/// Headers longer than this are not read.
const LONGEST: usize = 16 << 10;

/// Reads all challenges of a header's value; what it does not understand is left out.
pub fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    if header.len() > LONGEST {
        return found;
    }
    let mut rest = header.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let (scheme, after) = word(rest);
        if scheme.is_empty() {
            break;
        }
        let mut parameters: Vec<(String, String)> = Vec::new();
        rest = after;
        // Parameters follow until a word comes that is not followed by `=`: the next challenge's scheme.
        loop {
            let next = rest.trim_start_matches([' ', '\t', ',']);
            let (name, after) = word(next);
            let Some(value) = after.trim_start().strip_prefix('=').filter(|_| !name.is_empty()) else {
                rest = next;
                break;
            };
            let (value, after) = value_of(value.trim_start());
            parameters.push((name.to_ascii_lowercase(), value));
            rest = after;
        }
        let mut take = |name: &str| {
            let at = parameters.iter().position(|(found, _)| found == name)?;
            Some(parameters.swap_remove(at).1).filter(|value| !value.is_empty())
        };
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => found.push(Challenge::Basic),
            "bearer" => {
                if let Some(realm) = take("realm") {
                    let (service, scope) = (take("service"), take("scope"));
                    found.push(Challenge::Bearer { realm, service, scope, error: take("error") });
                }
            }
            _ => {}
        }
        // Garbage between challenges is stepped over, a character at a time.
        if word(rest).0.is_empty() {
            let mut chars = rest.chars();
            chars.next();
            rest = chars.as_str().trim_start_matches([' ', '\t', ',']);
        }
    }
    found
}

/// A token of RFC 9110, and what follows it.
fn word(text: &str) -> (&str, &str) {
    let end =
        text.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(byte)).count();
    text.split_at(end)
}

/// A quoted string or token, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => {
                if let Some((_, escaped)) = chars.next() {
                    value.push(escaped);
                }
            }
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.into(), service: own(service), scope: own(scope), error: None }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let hub_read =
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push"));
        for (header, expected) in [
            (hub.to_owned(), vec![hub_read.clone()]),
            (format!("Basic realm=\"x, y\", {hub}"), vec![Challenge::Basic, hub_read.clone()]),
            (format!("{hub}, Basic realm=x"), vec![hub_read, Challenge::Basic]),
            ("basic".into(), vec![Challenge::Basic]),
            ("BEARER realm = \"https://x/t\" , Service=abc".into(), vec![bearer("https://x/t", Some("abc"), None)]),
            (r#"Bearer realm="https://x/\"t\"""#.into(), vec![bearer("https://x/\"t\"", None, None)]),
            ("Negotiate abc==, Basic realm=\"r\"".into(), vec![Challenge::Basic]),
            ("Bearer service=\"x\"".into(), vec![]),
            ("Bearer realm=\"\"".into(), vec![]),
            ("Bearer realm=\"https://x/unterminated".into(), vec![bearer("https://x/unterminated", None, None)]),
            (", ,, Basic".into(), vec![Challenge::Basic]),
            ("\"\"\"===,,,".into(), vec![]),
            (String::new(), vec![]),
            (format!("Basic {}", "x".repeat(20_000)), vec![]),
        ] {
            assert_eq!(parse(&header), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn no_header_can_make_it_panic_or_hang(header in "[ -~é]{0,200}") {
            let _ = parse(&header);
            let _ = parse(&format!("Bearer {header}"));
        }
    }
}
