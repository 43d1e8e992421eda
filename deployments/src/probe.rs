//! Health checks that prove nothing: commands whose status is 0 whatever the service does, and paths of LiteLLM that are
//! not what a probe may ask.

/// Shells, whose `-c` takes a command line.
const SHELLS: [&str; 4] = ["sh", "bash", "dash", "ash"];

/// Programs that always succeed.
const ALWAYS: [&str; 5] = [":", "true", "echo", "printf", "sleep"];

/// Why a command of a health check or probe proves nothing about its service. `words` may begin with compose's `CMD` or
/// `CMD-SHELL`.
pub(crate) fn proves_nothing(words: &[String]) -> Option<String> {
    let shown = |text: &str| Some(format!("`{text}` is always true: it asks the service nothing"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let words = match words.as_slice() {
        ["NONE", ..] => return Some("NONE is no health check".to_owned()),
        ["CMD-SHELL", text] | [text] => return always(text, false).then(|| shown(text)).flatten(),
        ["CMD", rest @ ..] => rest,
        all => all,
    };
    let (program, arguments) = words.split_first()?;
    let program = program.rsplit('/').next().unwrap_or_default();
    let flag = arguments.iter().position(|it| it.starts_with('-') && it.ends_with('c'));
    let script = flag.and_then(|at| arguments.get(at + 1));
    let errexit = flag.is_some_and(|at| arguments[..=at].iter().any(|it| it.starts_with('-') && it.contains('e')));
    match script {
        Some(text) if SHELLS.contains(&program) => always(text, errexit).then(|| shown(text)).flatten(),
        Some(text) if program.starts_with("python") => {
            let idle =
                |line: &str| line.is_empty() || line.starts_with('#') || matches!(line, "pass" | "exit()" | "exit(0)");
            text.split(['\n', ';']).map(str::trim).all(idle).then(|| shown(&words.join(" "))).flatten()
        }
        _ => is_idle(&[&[program], arguments].concat().join(" ")).then(|| shown(&words.join(" "))).flatten(),
    }
}

/// Whether a line of the shell ends with 0 whatever happens; `errexit` is that of `sh -e`.
fn always(text: &str, errexit: bool) -> bool {
    let steps = split(text, &[";", "\n"]);
    // `a && b || true`: what stands after the last `||` decides.
    let idle = |step: &String| {
        let last = split(step, &["||"]).pop().unwrap_or_default();
        split(&last, &["&&"]).iter().all(|it| is_idle(it))
    };
    let ends = |step: &String| (step.contains("exit ") && !step.ends_with("exit 0")) || step.contains("set -e");
    if errexit || steps.iter().any(ends) {
        return steps.iter().all(idle);
    }
    text.trim() == "exit" || steps.iter().any(|step| step == "exit 0") || steps.last().is_none_or(idle)
}

/// Whether one command succeeds whatever the service does.
fn is_idle(command: &str) -> bool {
    let mut words = command.split_whitespace();
    let program = words.next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    match program {
        "" => true,
        // Without a status it is that of the command before.
        "exit" => words.next() == Some("0"),
        // What it prints may come from a command that fails, and still it succeeds.
        _ => ALWAYS.contains(&program) && !command.contains('|'),
    }
}

/// The parts of a command line between separators that are not quoted, trimmed; empty ones are left out.
fn split(text: &str, separators: &[&str]) -> Vec<String> {
    let (mut parts, mut part, mut quote, mut rest) = (Vec::new(), String::new(), None, text);
    while let Some(letter) = rest.chars().next() {
        if quote.is_none()
            && let Some(separator) = separators.iter().find(|it| rest.starts_with(**it))
        {
            parts.push(std::mem::take(&mut part));
            rest = &rest[separator.len()..];
            continue;
        }
        match quote {
            None if matches!(letter, '\'' | '"') => quote = Some(letter),
            Some(open) if open == letter => quote = None,
            _ => {}
        }
        part.push(letter);
        rest = &rest[letter.len_utf8()..];
    }
    parts.push(part);
    parts.iter().map(|it| it.trim().to_owned()).filter(|it| !it.is_empty()).collect()
}

/// What LiteLLM says of itself without a key, and whether its database is part of it.
const LITELLM: [(&str, bool); 3] =
    [("/health/liveliness", false), ("/health/liveness", false), ("/health/readiness", true)];

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Who is sent requests, or who waits: the database may be asked for.
    Ready,
    /// Who is killed and started again: a database that is away is no reason.
    Alive,
}

/// Why a probe's path is none that LiteLLM may be asked; `text` is the path, or a command that names it.
pub(crate) fn wrong_of_litellm(text: &str, purpose: Purpose) -> Option<String> {
    let end = |letter: char| !(letter.is_ascii_alphanumeric() || letter == '/' || letter == '_' || letter == '-');
    // The last one: a program that asks may be called so, too.
    let at = text.rfind("/health");
    let path = at.map(|at| text[at..].split(end).next().unwrap_or_default()).unwrap_or(text);
    let good = "ask /health/liveliness, or /health/readiness where the database counts";
    match LITELLM.iter().find(|(known, _)| *known == path.trim_end_matches('/')) {
        Some((_, true)) if purpose == Purpose::Alive => Some(format!(
            "`{path}` of LiteLLM fails while its database is away, and a restart does not bring that back: ask /health/liveliness"
        )),
        Some(_) => None,
        None if path.trim_end_matches('/') == "/health" => {
            Some(format!("`/health` of LiteLLM needs its key and calls every model: {good}"))
        }
        None => Some(format!("`{path}` does not say whether LiteLLM is well: {good}")),
    }
}

/// Whether an image is LiteLLM's: `litellm`, `litellm-database`, `litellm-non_root`.
pub(crate) fn is_litellm(image: &str) -> bool {
    let name = image.split('@').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    let name = name.split(':').next().unwrap_or_default();
    name == "litellm" || name.starts_with("litellm-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_always_true_is_told_from_what_asks() {
        let check =
            |words: &[&str]| proves_nothing(&words.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()).is_some();
        for idle in [
            &["CMD", "true"][..],
            &["CMD", "/bin/true"],
            &["CMD-SHELL", "true"],
            &["CMD-SHELL", "exit 0"],
            &["CMD-SHELL", "exit"],
            &["CMD-SHELL", ":"],
            &["CMD-SHELL", ""],
            &["CMD-SHELL", "curl -f http://127.0.0.1/ || true"],
            &["CMD-SHELL", "curl -f http://127.0.0.1/ || exit 0"],
            &["CMD-SHELL", "curl -f http://127.0.0.1/; exit 0"],
            &["CMD-SHELL", "curl -f http://127.0.0.1/; true"],
            &["CMD-SHELL", "echo ok"],
            &["sh", "-c", "true && :"],
            &["/bin/bash", "-ec", "exit 0"],
            &["python3", "-c", ""],
            &["python3", "-IS", "-c", "pass"],
            &["sleep", "1"],
            &["NONE"],
        ] {
            assert!(check(idle), "{idle:?}");
        }
        for asks in [
            &["CMD", "ollama", "list"][..],
            &["CMD-SHELL", "pg_isready -h 127.0.0.1 || exit 1"],
            &["CMD-SHELL", "curl -f http://127.0.0.1/ && exit 0 || exit 1"],
            &["CMD-SHELL", "curl -f http://127.0.0.1/ || exit 1; exit 0"],
            &["CMD-SHELL", "curl -f http://127.0.0.1/; exit"],
            &["CMD-SHELL", "if curl -f http://127.0.0.1/; then exit 0; else exit 1; fi"],
            &["sh", "-ec", "curl -f http://127.0.0.1/; true"],
            &["curl -f http://127.0.0.1/"],
            &["CMD-SHELL", "curl -f http://127.0.0.1/ || { echo 'down; true'; exit 1; }"],
            &["CMD-SHELL", "echo ruok | nc 127.0.0.1 2181 | grep imok"],
            &["CMD-SHELL", "set -e; curl -f http://127.0.0.1/; exit 0"],
            &[
                "bash",
                "-c",
                "exec 3<>/dev/tcp/127.0.0.1/9998 && printf 'GET /version' >&3 && grep -q 'Apache Tika' <&3",
            ],
            &["python3", "-c", "import os; os.scandir('/vault')"],
            &["/usr/bin/python3", "-IS", "/usr/local/lib/obelisk/healthy.py", "/"],
        ] {
            assert!(!check(asks), "{asks:?}");
        }
    }

    #[test]
    fn litellm_is_asked_what_needs_no_key_and_no_model() {
        for (text, purpose, wrong) in [
            ("/health/liveliness", Purpose::Alive, None),
            ("/health/liveness", Purpose::Alive, None),
            ("/health/readiness", Purpose::Ready, None),
            ("/health/readiness/", Purpose::Ready, None),
            ("python3 /usr/local/lib/healthy.py /health/readiness", Purpose::Ready, None),
            ("import urllib; u.urlopen('http://127.0.0.1:4000/health/readiness', timeout=4)", Purpose::Ready, None),
            ("/health", Purpose::Alive, Some("calls every model")),
            ("curl -f http://127.0.0.1:4000/health", Purpose::Ready, Some("calls every model")),
            ("/health/readiness", Purpose::Alive, Some("while its database is away")),
            ("/health/live", Purpose::Alive, Some("`/health/live` does not say")),
            ("/health/ready", Purpose::Ready, Some("`/health/ready` does not say")),
            ("/", Purpose::Ready, Some("`/` does not say")),
        ] {
            let said = wrong_of_litellm(text, purpose);
            match wrong {
                None => assert_eq!(said, None, "{text}"),
                Some(wrong) => assert!(said.as_ref().is_some_and(|it| it.contains(wrong)), "{text}: {said:?}"),
            }
        }
        for (image, litellm) in [
            ("ghcr.io/berriai/litellm-non_root:v1", true),
            ("r.example:5000/litellm@sha256:0", true),
            ("obelisk/litellm:test", true),
            ("ghcr.io/litellm/other:1", false),
            ("notlitellm", false),
        ] {
            assert_eq!(is_litellm(image), litellm, "{image}");
        }
    }
}
