//! `.dockerignore` and the patterns of `include`/`exclude`, with Docker's rules.
//!
//! Patterns are Go's `filepath.Match` plus `**`; the last one that matches wins; `!` brings back; a pattern that matches
//! a folder matches everything in it; `#` starts a comment; leading `/` means nothing.

use super::PinError;

/// A list of patterns.
#[derive(Debug, Default)]
pub struct Patterns {
    patterns: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
    parts: Vec<Part>,
    brings_back: bool,
}

#[derive(Debug, PartialEq)]
enum Part {
    /// `**`: any number of components.
    Any,
    /// A component that is this and nothing else.
    Name(String),
    /// A component with `*`, `?`, `[...]`.
    Glob(Vec<Token>),
}

#[derive(Debug, PartialEq)]
enum Token {
    Char(char),
    One,
    Many,
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Part {
    fn of(tokens: Vec<Token>) -> Part {
        let name: Option<String> = tokens
            .iter()
            .map(|token| if let Token::Char(character) = token { Some(*character) } else { None })
            .collect();
        name.map_or(Part::Glob(tokens), Part::Name)
    }

    /// Whether it is, as one component, this name.
    fn fits(&self, name: &str) -> bool {
        match self {
            Part::Any => true,
            Part::Name(wanted) => wanted == name,
            Part::Glob(tokens) => fits_name(tokens, name),
        }
    }
}

impl Patterns {
    /// Parses a `.dockerignore` file.
    pub fn dockerignore(text: &str) -> Result<Patterns, PinError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().filter(|line| !line.starts_with('#')).map(str::trim).filter(|line| !line.is_empty());
        Patterns::parse(lines)
    }

    /// Parses patterns of a definition.
    pub fn plain(patterns: &[String]) -> Result<Patterns, PinError> {
        Patterns::parse(patterns.iter().map(String::as_str))
    }

    fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Patterns, PinError> {
        let mut patterns = Vec::new();
        for line in lines {
            let (brings_back, body) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            let wrong = |why: &str| PinError::Pattern { pattern: line.into(), why: why.into() };
            if body.is_empty() {
                return Err(wrong("nothing stands behind the `!`"));
            }
            let mut parts: Vec<Part> = Vec::new();
            for part in body.split('/') {
                match part {
                    "" | "." => {}
                    ".." => {
                        parts.pop();
                    }
                    "**" => {
                        if parts.last() != Some(&Part::Any) {
                            parts.push(Part::Any);
                        }
                    }
                    part => parts.push(Part::of(tokens(part).map_err(wrong)?)),
                }
            }
            if !parts.is_empty() {
                patterns.push(Pattern { parts, brings_back });
            }
        }
        Ok(Patterns { patterns })
    }

    /// Whether there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether the last pattern that fits `path` or a folder above it is not an exception.
    pub fn matches(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return false;
        }
        let mut matched = false;
        for pattern in &self.patterns {
            if pattern.brings_back != matched {
                continue;
            }
            if fits(&pattern.parts, &parts) {
                matched = !pattern.brings_back;
            }
        }
        matched
    }

    /// Whether an exception could match something inside the folder `path`.
    pub fn may_bring_back(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        self.patterns.iter().filter(|pattern| pattern.brings_back).any(|pattern| {
            pattern.parts.iter().zip(&parts).all(|(part, name)| match part {
                Part::Any => true,
                part => part.fits(name),
            }) || pattern.parts.contains(&Part::Any)
        })
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, &'static str> {
    let mut tokens = Vec::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        tokens.push(match character {
            '*' => {
                if tokens.last() == Some(&Token::Many) {
                    continue;
                }
                Token::Many
            }
            '?' => Token::One,
            '\\' => Token::Char(characters.next().ok_or("a `\\` stands at the end")?),
            '[' => {
                let mut negated = false;
                let mut ranges = Vec::new();
                let mut first = true;
                loop {
                    let mut next = || characters.next().ok_or("a `[` is not closed");
                    let mut low = next()?;
                    if first && low == '^' {
                        negated = true;
                        first = false;
                        continue;
                    }
                    if low == ']' && !ranges.is_empty() {
                        break;
                    }
                    if low == ']' {
                        return Err("`[]` matches nothing");
                    }
                    first = false;
                    if low == '\\' {
                        low = next()?;
                    }
                    let mut high = low;
                    let mut ahead = characters.clone();
                    if ahead.next() == Some('-') {
                        characters.next();
                        high = characters.next().ok_or("a `[` is not closed")?;
                        if high == '\\' {
                            high = characters.next().ok_or("a `[` is not closed")?;
                        }
                        if high < low {
                            return Err("a range runs backwards");
                        }
                    }
                    ranges.push((low, high));
                }
                Token::Class { negated, ranges }
            }
            other => Token::Char(other),
        });
    }
    Ok(tokens)
}

/// Whether a pattern fits a path or a folder above it.
fn fits(pattern: &[Part], path: &[&str]) -> bool {
    match (pattern.first(), path.first()) {
        (None, _) => true,
        (Some(Part::Any), _) => {
            // `a/**` is everything in `a`, not `a` itself; `**/a` is `a` at any depth.
            if pattern.len() == 1 {
                return !path.is_empty();
            }
            (0..=path.len()).any(|skip| fits(&pattern[1..], &path[skip..]))
        }
        (Some(part), Some(name)) => part.fits(name) && fits(&pattern[1..], &path[1..]),
        (Some(_), None) => false,
    }
}

/// Linear in the name for each `*`: the usual two-pointer match with one point to fall back to.
fn fits_name(tokens: &[Token], name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let (mut at, mut token, mut fallback) = (0, 0, None);
    while at < name.len() {
        let fits = match tokens.get(token) {
            Some(Token::Many) => {
                fallback = Some((token, at));
                token += 1;
                continue;
            }
            Some(Token::One) => true,
            Some(Token::Char(character)) => *character == name[at],
            Some(Token::Class { negated, ranges }) => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&name[at])) != *negated
            }
            None => false,
        };
        if fits {
            (at, token) = (at + 1, token + 1);
        } else if let Some((many, start)) = fallback {
            fallback = Some((many, start + 1));
            (at, token) = (start + 1, many + 1);
        } else {
            return false;
        }
    }
    tokens[token..].iter().all(|token| *token == Token::Many)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored(patterns: &str, path: &str) -> bool {
        Patterns::dockerignore(patterns).expect("parses").matches(path)
    }

    #[test]
    fn patterns_match_as_docker_matches_them() {
        for (patterns, path, expected) in [
            ("a", "a", true),
            ("a", "a/b", true),
            ("a", "b/a", false),
            ("/a", "a", true),
            ("a/", "a/b", true),
            ("./a", "a", true),
            ("*.md", "x.md", true),
            ("*.md", "d/x.md", false),
            ("**/*.md", "x.md", true),
            ("**/*.md", "d/e/x.md", true),
            ("*/temp*", "somedir/temporary.txt", true),
            ("*/*/temp*", "somedir/subdir/temporary.txt", true),
            ("temp?", "tempa", true),
            ("temp?", "temp", false),
            ("**", "anything/at/all", true),
            ("a/**", "a", false),
            ("a/**", "a/b/c", true),
            ("a/**/c", "a/c", true),
            ("a/**/c", "a/b/b/c", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("# comment\n\n  a  ", "a", true),
            ("*\n!keep", "keep", false),
            ("*\n!keep", "other", true),
            ("!keep\n*", "keep", true),
            ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", true),
            ("*.md\n!README*.md\nREADME-secret.md", "README.md", false),
            ("docs\n!docs/keep.md", "docs/keep.md", false),
            ("docs\n!docs/keep.md", "docs/other.md", true),
            ("a/../b", "b", true),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
        ] {
            assert_eq!(ignored(patterns, path), expected, "{patterns:?} on {path:?}");
        }
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for pattern in ["[", "[]", "[z-a]", "a\\", "!"] {
            assert!(Patterns::dockerignore(pattern).is_err(), "{pattern}");
        }
    }
}
