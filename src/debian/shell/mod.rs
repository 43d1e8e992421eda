//! A reader of POSIX shell scripts (POSIX.1-2017, XCU 2), enough for maintainer scripts.
//!
//! It gives the commands as a tree and runs nothing. Nesting and length are capped, so no script can exhaust the stack.

mod commands;
mod words;

use std::rc::Rc;

/// A piece of a word.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    /// Literal text; quoted text is neither split nor expanded.
    Text { text: String, quoted: bool },
    /// `$name`, `${name}`, `${name:-word}`; `test` is the operator with its word.
    Variable { name: String, test: Option<(&'static str, Word)>, quoted: bool },
    /// `$(...)` or backquotes.
    Output { list: Rc<Vec<Command>>, quoted: bool },
    /// Something whose value is not computed, such as `$((...))`.
    Opaque,
}

/// A word before expansion.
pub(super) type Word = Vec<Part>;

/// A redirection; here-documents are dropped.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Redirect {
    pub operator: &'static str,
    pub target: Word,
}

/// A command of any shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    Simple { assigns: Vec<(String, Word)>, words: Vec<Word>, redirects: Vec<Redirect>, text: String },
    Not(Box<Command>),
    And(Box<Command>, Box<Command>),
    Or(Box<Command>, Box<Command>),
    Pipe(Vec<Command>),
    If { arms: Vec<(Vec<Command>, Vec<Command>)>, otherwise: Vec<Command> },
    Case { word: Word, arms: Vec<(Vec<Word>, Vec<Command>)> },
    For { name: String, words: Option<Vec<Word>>, body: Vec<Command> },
    While { until: bool, condition: Vec<Command>, body: Vec<Command> },
    Function { name: String, body: Rc<Command> },
    Group(Vec<Command>),
    Subshell(Vec<Command>),
    Redirected { command: Box<Command>, redirects: Vec<Redirect>, text: String },
}

/// Where and why a script could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub(super) struct SyntaxError {
    pub line: usize,
    pub why: &'static str,
}

const MAX_DEPTH: usize = 60;
const MAX_LENGTH: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(Word),
    Operator(&'static str),
    Newline,
    End,
}

struct Parser<'a> {
    source: &'a str,
    at: usize,
    /// Where the token that was read last starts.
    start: usize,
    peeked: Option<(Token, usize, usize)>,
    here: Vec<(String, bool)>,
    depth: usize,
}

type Parsed<T> = Result<T, SyntaxError>;

/// Reads a whole script.
pub(super) fn parse(source: &str) -> Parsed<Vec<Command>> {
    parse_at(source, 0)
}

fn parse_at(source: &str, depth: usize) -> Parsed<Vec<Command>> {
    let mut parser = Parser { source, at: 0, start: 0, peeked: None, here: Vec::new(), depth };
    if source.len() > MAX_LENGTH {
        return Err(parser.error("the script is longer than 1 MiB"));
    }
    let list = parser.list(&[])?;
    match parser.next()? {
        Token::End => Ok(list),
        _ => Err(parser.error("a word or operator is out of place")),
    }
}

/// The text of a word that is one unquoted literal, such as a reserved word.
fn bare(word: &Word) -> Option<&str> {
    match word.as_slice() {
        [Part::Text { text, quoted: false }] => Some(text),
        _ => None,
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// `name=value` at the start of a command.
pub(super) fn assignment(word: &Word) -> Option<(String, Word)> {
    let Some(Part::Text { text, quoted: false }) = word.first() else { return None };
    let (name, value) = text.split_once('=')?;
    if !is_name(name) {
        return None;
    }
    let mut rest = word.clone();
    rest[0] = Part::Text { text: value.to_owned(), quoted: false };
    Some((name.to_owned(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyday_scripts_are_read() {
        for good in [
            "",
            "set -e\n",
            "a=1 b=\"$2\" cmd x >/dev/null 2>&1 || true",
            "if [ \"$1\" = configure ] && \\\n  test -x /a; then\n b\nelif c; then d; else e; fi",
            "case \"$1\" in\n (configure|x) a ;;\n *) echo 'no' >&2; exit 1\nesac",
            "f() {\n local x=$1\n (cd /; ls) | wc -l\n}\nf a b\n",
            "for i in a b; do echo $i; done\nwhile read x; do :; done < /etc/passwd",
            "cat <<-EOF >&2\n\tdon't ` \" $( parse\n\tEOF\necho done",
            "x=$(echo \"$(basename \"$0\" .sh)\" | sed -e 's/a/b/')\ny=`ls \\`pwd\\``",
            "echo ${x:-${y:+\"z\"}} $((1 + (2))) ${#x} \"${x%.*}\" $# $@ a#b # comment",
            "! a | b && { c; d; } &",
        ] {
            assert!(parse(good).is_ok(), "{good}: {:?}", parse(good));
        }
    }

    #[test]
    fn broken_scripts_are_errors_with_a_line() {
        for bad in
            ["if a; then b", "case x in a) b", "echo 'x", "echo \"x", "a | ", "f( {", "fi )", "x=$(a", "cat <<E\nx"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("a\nb\n(c").expect_err("no end").line, 3);
    }

    #[test]
    fn deep_nesting_is_refused_and_no_prefix_panics() {
        assert!(parse(&"(".repeat(100_000)).is_err());
        assert!(parse(&"$(".repeat(100_000)).is_err());
        assert!(parse(&"\"${a:-".repeat(100_000)).is_err());
        assert!(parse(&"f() ".repeat(100_000)).is_err());
        assert!(parse(&"`".repeat(100_001)).is_err());
        let script = "case \"$1\" in a|b) x=`y \"z\"` ;; esac\nf() { cat <<E\n${q}\nE\n}\n«ü»";
        for end in (0..=script.len()).filter(|&end| script.is_char_boundary(end)) {
            let _ = parse(&script[..end]);
        }
    }
}
