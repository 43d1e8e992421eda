//! File names of wheels (binary distribution format specification, "File name convention"; PEP 427, PEP 425).

use std::fmt;
use std::str::FromStr;

use super::FORMAT;
use crate::format::FormatError;
use crate::format::error::lossy;

/// `NAME-VERSION(-BUILD)-PYTHON-ABI-PLATFORM.whl`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WheelName {
    /// The distribution's name as the file spells it.
    pub name: String,
    /// Its version as the file spells it.
    pub version: String,
    /// The build tag: a number and what follows it.
    pub build: Option<(u64, String)>,
    /// The Python tags, such as `cp313`.
    pub python: Vec<String>,
    /// The ABI tags, such as `abi3`.
    pub abi: Vec<String>,
    /// The platform tags, such as `manylinux_2_28_x86_64`.
    pub platform: Vec<String>,
}

impl WheelName {
    /// The distribution's name, [normalised].
    pub fn normalised(&self) -> String {
        normalised(&self.name)
    }
}

/// The name by which indexes know a distribution (PEP 503): lower case, with `-` for runs of `-`, `_` and `.`.
pub fn normalised(name: &str) -> String {
    let mut normalised = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            '-' | '_' | '.' if normalised.ends_with('-') => {}
            '-' | '_' | '.' => normalised.push('-'),
            other => normalised.push(other.to_ascii_lowercase()),
        }
    }
    normalised
}

impl FromStr for WheelName {
    type Err = FormatError;

    fn from_str(file: &str) -> Result<WheelName, FormatError> {
        let bad = |why| FormatError::Name { format: FORMAT, name: lossy(file.as_bytes()), why };
        let stem = file.strip_suffix(".whl").ok_or_else(|| bad("the file name of a wheel ends with `.whl`"))?;
        let parts: Vec<&str> = stem.split('-').collect();
        let (build, tags) = match parts[..] {
            [_, _, python, abi, platform] => (None, [python, abi, platform]),
            [_, _, build, python, abi, platform] => (Some(build), [python, abi, platform]),
            _ => return Err(bad("the file name of a wheel has five or six parts between `-`")),
        };
        let letters = |text: &str, more: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        if !letters(parts[0], "_.") {
            return Err(bad("the distribution's name has other characters than letters, digits, `_` and `.`"));
        }
        if !letters(parts[1], "_.+!") {
            return Err(bad("the version has other characters than letters, digits, `_`, `.`, `+` and `!`"));
        }
        let build = match build {
            None => None,
            Some(tag) => {
                let digits = tag.find(|c: char| !c.is_ascii_digit()).unwrap_or(tag.len());
                let number = tag[..digits].parse().map_err(|_| bad("the build tag does not start with a number"))?;
                if !letters(tag, "_.") {
                    return Err(bad("the build tag has other characters than letters, digits, `_` and `.`"));
                }
                Some((number, tag[digits..].to_owned()))
            }
        };
        let [python, abi, platform] = tags.map(|set| set.split('.').map(str::to_owned).collect::<Vec<_>>());
        if [&python, &abi, &platform].into_iter().flatten().any(|tag| tag.is_empty() || !tag.chars().all(tag_character))
        {
            return Err(bad("a tag is empty or has other characters than letters, digits and `_`"));
        }
        Ok(WheelName { name: parts[0].into(), version: parts[1].into(), build, python, abi, platform })
    }
}

fn tag_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

impl fmt::Display for WheelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WheelName { name, version, build, python, abi, platform } = self;
        write!(f, "{name}-{version}-")?;
        if let Some((number, rest)) = build {
            write!(f, "{number}{rest}-")?;
        }
        write!(f, "{}-{}-{}.whl", python.join("."), abi.join("."), platform.join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_put_together() {
        let name: WheelName =
            "Foo_Bar.baz-1.2+cpu-3b-py2.py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl".parse().expect("good");
        assert_eq!(name.normalised(), "foo-bar-baz");
        assert_eq!((name.version.as_str(), &name.build), ("1.2+cpu", &Some((3, "b".into()))));
        assert_eq!((name.python.len(), name.abi.len(), name.platform.len()), (2, 1, 2));
        assert_eq!(
            name.to_string(),
            "Foo_Bar.baz-1.2+cpu-3b-py2.py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
        );
    }

    #[test]
    fn names_are_normalised() {
        for (name, expected) in [("Foo.Bar__baz-.-x", "foo-bar-baz-x"), ("MarkupSafe", "markupsafe"), ("_a", "-a")] {
            assert_eq!(normalised(name), expected);
        }
        // Only ASCII has two cases there: a Kelvin sign is no `k`.
        assert_eq!(normalised("\u{212a}"), "\u{212a}");
    }

    #[test]
    fn what_is_no_wheel_name_is_refused() {
        for bad in [
            "",
            ".whl",
            "foo-1.0.tar.gz",
            "foo-1.0-py3-none.whl",
            "foo-1.0-x1-py3-none-any.whl",
            "foo-1.0-1-2-py3-none-any.whl",
            "../foo-1.0-py3-none-any.whl",
            "foo-1.0/..-py3-none-any.whl",
            "foo-1.0-py3-none-any/x.whl",
            "foo-1.0-py3..py2-none-any.whl",
            "-1.0-py3-none-any.whl",
            "foo--py3-none-any.whl",
            "foo-1.0-99999999999999999999999-py3-none-any.whl",
        ] {
            assert!(bad.parse::<WheelName>().is_err(), "{bad}");
        }
    }
}
