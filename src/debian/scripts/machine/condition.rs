//! The command `test`, of which not all is known (POSIX.1-2017, "test").

use super::{Machine, Truth, Value};

impl Machine {
    pub(super) fn test(&self, name: &str, arguments: Option<Vec<Value>>) -> Truth {
        let mut words = arguments?;
        if name == "[" && words.pop()?.as_deref() != Some("]") {
            return None;
        }
        or(&words)
    }
}

/// `a -o b`, weakest first.
fn or(words: &[Value]) -> Truth {
    let is = |index: usize, text: &str| words[index].as_deref() == Some(text);
    if words.len() > 3 {
        if let Some(at) = (1..words.len() - 1).find(|&at| is(at, "-o")) {
            return either(or(&words[..at]), or(&words[at + 1..]));
        }
        if let Some(at) = (1..words.len() - 1).find(|&at| is(at, "-a")) {
            return either(or(&words[..at]).map(|t| !t), or(&words[at + 1..]).map(|t| !t)).map(|t| !t);
        }
    }
    match words {
        [] => Some(false),
        [not, rest @ ..] if not.as_deref() == Some("!") && !rest.is_empty() => or(rest).map(|truth| !truth),
        [one] => one.as_ref().map(|text| !text.is_empty()),
        [operator, value] => match operator.as_deref()? {
            "-n" => value.as_ref().map(|text| !text.is_empty()),
            "-z" => value.as_ref().map(|text| text.is_empty()),
            // There is no running system behind an image that is being made.
            "-d" | "-e" | "-S" | "-p" => match value.as_deref()? {
                "" => Some(false),
                path if path.starts_with("/run/systemd") || path.starts_with("/proc/") => Some(false),
                _ => None,
            },
            "-f" | "-x" | "-r" | "-s" | "-L" | "-h" | "-w" => {
                value.as_deref().filter(|path| path.is_empty()).map(|_| false)
            }
            _ => None,
        },
        [left, operator, right] => {
            let (left, right) = (left.as_deref()?, right.as_deref()?);
            match operator.as_deref()? {
                "=" | "==" => Some(left == right),
                "!=" => Some(left != right),
                number => {
                    let (left, right) = (left.parse::<i64>().ok()?, right.parse::<i64>().ok()?);
                    match number {
                        "-eq" => Some(left == right),
                        "-ne" => Some(left != right),
                        "-lt" => Some(left < right),
                        "-le" => Some(left <= right),
                        "-gt" => Some(left > right),
                        "-ge" => Some(left >= right),
                        _ => None,
                    }
                }
            }
        }
        _ => None,
    }
}

fn either(left: Truth, right: Truth) -> Truth {
    match (left, right) {
        (Some(true), _) | (_, Some(true)) => Some(true),
        (Some(false), Some(false)) => Some(false),
        _ => None,
    }
}
