//! A reader of POSIX shell scripts (POSIX.1-2017, XCU 2), enough for maintainer scripts.
//!
//! It gives the commands as a tree and runs nothing. Nesting and length are capped, so no script can exhaust the stack.

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

const OPERATORS: [&str; 18] =
    ["<<-", "&&", "||", ";;", "<<", ">>", "<&", ">&", "<>", ">|", "&>", ";", "&", "|", "(", ")", "<", ">"];

impl Parser<'_> {
    fn error(&self, why: &'static str) -> SyntaxError {
        let end = self.at.min(self.source.len());
        SyntaxError { line: self.source.as_bytes()[..end].iter().filter(|&&b| b == b'\n').count() + 1, why }
    }

    fn byte(&self, ahead: usize) -> Option<u8> {
        self.source.as_bytes().get(self.at + ahead).copied()
    }

    /// Takes the character at the cursor.
    fn character(&mut self) -> Option<char> {
        let c = self.source.get(self.at..)?.chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn peek(&mut self) -> Parsed<&Token> {
        if self.peeked.is_none() {
            let before = self.start;
            let token = self.lex()?;
            self.peeked = Some((token, self.start, before));
        }
        Ok(&self.peeked.as_ref().expect("just filled").0)
    }

    fn next(&mut self) -> Parsed<Token> {
        match self.peeked.take() {
            Some((token, start, _)) => {
                self.start = start;
                Ok(token)
            }
            None => self.lex(),
        }
    }

    fn lex(&mut self) -> Parsed<Token> {
        loop {
            match self.byte(0) {
                Some(b' ' | b'\t' | b'\r') => self.at += 1,
                Some(b'\\') if self.byte(1) == Some(b'\n') => self.at += 2,
                Some(b'#') => {
                    while self.byte(0).is_some_and(|b| b != b'\n') {
                        self.at += 1;
                    }
                }
                _ => break,
            }
        }
        self.start = self.at;
        let Some(first) = self.byte(0) else { return Ok(Token::End) };
        if first == b'\n' {
            self.at += 1;
            self.skip_here_documents()?;
            return Ok(Token::Newline);
        }
        if let Some(operator) =
            OPERATORS.into_iter().find(|op| self.source.as_bytes()[self.at..].starts_with(op.as_bytes()))
        {
            self.at += operator.len();
            return Ok(Token::Operator(operator));
        }
        // The number of a redirection carries no meaning here.
        let digits = self.source.as_bytes()[self.at..].iter().take_while(|b| b.is_ascii_digit()).count();
        if digits > 0 && matches!(self.byte(digits), Some(b'<' | b'>')) {
            self.at += digits;
            return self.lex_operator();
        }
        Ok(Token::Word(self.word(|b| b" \t\r\n;&|<>()".contains(&b))?))
    }

    fn lex_operator(&mut self) -> Parsed<Token> {
        let rest = &self.source.as_bytes()[self.at..];
        let operator = OPERATORS.into_iter().find(|op| rest.starts_with(op.as_bytes()));
        let operator = operator.ok_or_else(|| self.error("a redirection has no operator"))?;
        self.at += operator.len();
        Ok(Token::Operator(operator))
    }

    fn skip_here_documents(&mut self) -> Parsed<()> {
        for (delimiter, tabs) in std::mem::take(&mut self.here) {
            loop {
                let rest = &self.source[self.at..];
                if rest.is_empty() {
                    return Err(self.error("a here-document does not end"));
                }
                let line = rest.split('\n').next().unwrap_or_default();
                self.at = (self.at + line.len() + 1).min(self.source.len());
                let line = if tabs { line.trim_start_matches('\t') } else { line };
                if line == delimiter {
                    break;
                }
            }
        }
        Ok(())
    }

    fn word(&mut self, ends: impl Fn(u8) -> bool + Copy) -> Parsed<Word> {
        let mut parts = Word::new();
        let mut text = String::new();
        while let Some(b) = self.byte(0) {
            if ends(b) {
                break;
            }
            match b {
                b'\'' => {
                    flush(&mut parts, &mut text);
                    let rest = &self.source[self.at + 1..];
                    let end = rest.find('\'').ok_or_else(|| self.error("a quote does not end"))?;
                    parts.push(Part::Text { text: rest[..end].to_owned(), quoted: true });
                    self.at += end + 2;
                }
                b'"' => {
                    flush(&mut parts, &mut text);
                    self.at += 1;
                    self.double_quoted(&mut parts)?;
                }
                b'\\' => {
                    self.at += 1;
                    match self.character() {
                        Some('\n') | None => {}
                        Some(c) => {
                            flush(&mut parts, &mut text);
                            parts.push(Part::Text { text: c.to_string(), quoted: true });
                        }
                    }
                }
                b'$' | b'`' => {
                    if let Some(part) = self.expansion(false)? {
                        flush(&mut parts, &mut text);
                        parts.push(part);
                    } else {
                        text.push('$');
                        self.at += 1;
                    }
                }
                _ => text.extend(self.character()),
            }
        }
        flush(&mut parts, &mut text);
        Ok(parts)
    }

    fn double_quoted(&mut self, parts: &mut Word) -> Parsed<()> {
        let mut text = String::new();
        loop {
            match self.byte(0) {
                None => return Err(self.error("a quote does not end")),
                Some(b'"') => {
                    self.at += 1;
                    parts.push(Part::Text { text, quoted: true });
                    return Ok(());
                }
                Some(b'\\') if matches!(self.byte(1), Some(b'$' | b'`' | b'"' | b'\\')) => {
                    self.at += 1;
                    text.extend(self.character());
                }
                Some(b'\\') if self.byte(1) == Some(b'\n') => self.at += 2,
                Some(b'$' | b'`') => match self.expansion(true)? {
                    Some(part) => {
                        parts.push(Part::Text { text: std::mem::take(&mut text), quoted: true });
                        parts.push(part);
                    }
                    None => {
                        text.push('$');
                        self.at += 1;
                    }
                },
                Some(_) => text.extend(self.character()),
            }
        }
    }

    /// What starts with `$` or a backquote; `None` where the `$` is literal.
    fn expansion(&mut self, quoted: bool) -> Parsed<Option<Part>> {
        self.enter()?;
        let part = self.expansion_inside(quoted);
        self.depth -= 1;
        part
    }

    fn expansion_inside(&mut self, quoted: bool) -> Parsed<Option<Part>> {
        if self.byte(0) == Some(b'`') {
            return self.backquoted(quoted).map(Some);
        }
        let Some(next) = self.byte(1) else { return Ok(None) };
        match next {
            b'(' if self.byte(2) == Some(b'(') => {
                self.at += 3;
                let mut depth = 2;
                while depth > 0 {
                    match self.character() {
                        Some('(') => depth += 1,
                        Some(')') => depth -= 1,
                        Some(_) => {}
                        None => return Err(self.error("an arithmetic expansion does not end")),
                    }
                }
                Ok(Some(Part::Opaque))
            }
            b'(' => {
                self.at += 2;
                let (start, here) = (self.start, std::mem::take(&mut self.here));
                let list = self.list(&[])?;
                if self.next()? != Token::Operator(")") {
                    return Err(self.error("a command substitution does not end"));
                }
                (self.start, self.here) = (start, here);
                Ok(Some(Part::Output { list: Rc::new(list), quoted }))
            }
            b'{' => {
                self.at += 2;
                self.braced(quoted).map(Some)
            }
            b'@' | b'*' | b'#' | b'?' | b'-' | b'$' | b'!' | b'0'..=b'9' => {
                self.at += 2;
                Ok(Some(Part::Variable { name: char::from(next).to_string(), test: None, quoted }))
            }
            b if b.is_ascii_alphabetic() || b == b'_' => {
                self.at += 1;
                let name = self.name();
                Ok(Some(Part::Variable { name, test: None, quoted }))
            }
            _ => Ok(None),
        }
    }

    fn name(&mut self) -> String {
        let rest = &self.source[self.at..];
        let length = rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
        self.at += length;
        rest[..length].to_owned()
    }

    fn braced(&mut self, quoted: bool) -> Parsed<Part> {
        let mut name = self.name();
        if name.is_empty() {
            match self.byte(0) {
                // `${#name}` is a length.
                Some(b'#') if self.byte(1) != Some(b'}') => {
                    while self.byte(0).is_some_and(|b| b != b'}') {
                        self.at += 1;
                    }
                    self.at += 1;
                    return Ok(Part::Opaque);
                }
                Some(_) => name.extend(self.character()),
                None => return Err(self.error("a `${` does not end")),
            }
        }
        let operators = [":-", ":+", ":=", ":?", "%%", "##", "//", "-", "+", "=", "?", "%", "#", "/", ":", "^", ","];
        let rest = &self.source.as_bytes()[self.at.min(self.source.len())..];
        let operator = operators.into_iter().find(|op| rest.starts_with(op.as_bytes())).unwrap_or_default();
        self.at += operator.len();
        let word = self.word(|b| b == b'}')?;
        if self.byte(0) != Some(b'}') {
            return Err(self.error("a `${` does not end"));
        }
        self.at += 1;
        let test = (!operator.is_empty()).then_some((operator, word));
        Ok(Part::Variable { name, test, quoted })
    }

    fn backquoted(&mut self, quoted: bool) -> Parsed<Part> {
        self.at += 1;
        let mut inner = String::new();
        loop {
            match self.character() {
                None => return Err(self.error("a backquote does not end")),
                Some('`') => break,
                Some('\\') if matches!(self.byte(0), Some(b'`' | b'\\' | b'$')) => inner.extend(self.character()),
                Some(c) => inner.push(c),
            }
        }
        Ok(Part::Output { list: Rc::new(parse_at(&inner, self.depth)?), quoted })
    }

    fn enter(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("commands are nested too deeply"));
        }
        Ok(())
    }

    /// Commands until one of the reserved words `ends`, `)`, `;;` or the end.
    fn list(&mut self, ends: &[&str]) -> Parsed<Vec<Command>> {
        self.enter()?;
        let mut list = Vec::new();
        loop {
            match self.peek()? {
                Token::Newline | Token::Operator(";" | "&") => {
                    self.next()?;
                }
                Token::End | Token::Operator(")" | ";;") => break,
                Token::Word(word) if bare(word).is_some_and(|text| ends.contains(&text)) => break,
                _ => list.push(self.and_or()?),
            }
        }
        self.depth -= 1;
        Ok(list)
    }

    fn skip_newlines(&mut self) -> Parsed<()> {
        while *self.peek()? == Token::Newline {
            self.next()?;
        }
        Ok(())
    }

    fn and_or(&mut self) -> Parsed<Command> {
        let mut left = self.pipeline()?;
        // A chain nests to the left; the cap keeps the walk over it shallow.
        for _ in 0..MAX_DEPTH * 4 {
            let and = match self.peek()? {
                Token::Operator("&&") => true,
                Token::Operator("||") => false,
                _ => return Ok(left),
            };
            self.next()?;
            self.skip_newlines()?;
            let right = Box::new(self.pipeline()?);
            left = if and { Command::And(Box::new(left), right) } else { Command::Or(Box::new(left), right) };
        }
        Err(self.error("a chain of `&&` and `||` is too long"))
    }

    fn pipeline(&mut self) -> Parsed<Command> {
        let mut not = false;
        while let Token::Word(word) = self.peek()? {
            if bare(word) != Some("!") {
                break;
            }
            self.next()?;
            not = !not;
        }
        let mut commands = vec![self.command()?];
        while *self.peek()? == Token::Operator("|") {
            self.next()?;
            self.skip_newlines()?;
            commands.push(self.command()?);
        }
        let command = if commands.len() == 1 { commands.remove(0) } else { Command::Pipe(commands) };
        Ok(if not { Command::Not(Box::new(command)) } else { command })
    }

    fn command(&mut self) -> Parsed<Command> {
        self.enter()?;
        self.peek()?;
        let begin = self.peeked.as_ref().map_or(self.at, |(_, start, _)| *start);
        let command = match self.compound()? {
            Some(command) => command,
            None => {
                let command = self.simple(begin);
                self.depth -= 1;
                return command;
            }
        };
        self.depth -= 1;
        if matches!(command, Command::Function { .. }) {
            return Ok(command);
        }
        let mut redirects = Vec::new();
        while let Some(redirect) = self.redirect()? {
            redirects.extend(redirect);
        }
        if redirects.is_empty() {
            return Ok(command);
        }
        let text = self.text_from(begin);
        Ok(Command::Redirected { command: Box::new(command), redirects, text })
    }

    fn text_from(&self, begin: usize) -> String {
        let end = self.peeked.as_ref().map_or(self.at, |(_, start, _)| *start).max(begin);
        let line =
            self.source[begin..end].split('\n').next().unwrap_or_default().trim().trim_end_matches('\\').trim_end();
        line.chars().take(120).collect()
    }

    fn expect(&mut self, word: &str) -> Parsed<()> {
        match self.next()? {
            Token::Word(found) if bare(&found) == Some(word) => Ok(()),
            _ => Err(self.error("a reserved word such as `then`, `do`, `in` or `}` is missing")),
        }
    }

    fn compound(&mut self) -> Parsed<Option<Command>> {
        let word = match self.peek()? {
            Token::Operator("(") => {
                self.next()?;
                let list = self.list(&[])?;
                if self.next()? != Token::Operator(")") {
                    return Err(self.error("a `(` does not end"));
                }
                return Ok(Some(Command::Subshell(list)));
            }
            Token::Word(word) => bare(word).unwrap_or_default().to_owned(),
            _ => return Ok(None),
        };
        let command = match word.as_str() {
            "{" => {
                self.next()?;
                let list = self.list(&["}"])?;
                self.expect("}")?;
                Command::Group(list)
            }
            "if" => self.conditional()?,
            "case" => self.case()?,
            "for" => self.for_loop()?,
            "while" | "until" => {
                self.next()?;
                let condition = self.list(&["do"])?;
                let body = self.body()?;
                Command::While { until: word == "until", condition, body }
            }
            _ => return Ok(None),
        };
        Ok(Some(command))
    }

    fn conditional(&mut self) -> Parsed<Command> {
        self.next()?;
        let mut arms = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let condition = self.list(&["then"])?;
            self.expect("then")?;
            arms.push((condition, self.list(&["elif", "else", "fi"])?));
            match self.next()? {
                Token::Word(word) if bare(&word) == Some("elif") => {}
                Token::Word(word) if bare(&word) == Some("else") => {
                    otherwise = self.list(&["fi"])?;
                    self.expect("fi")?;
                    break;
                }
                Token::Word(word) if bare(&word) == Some("fi") => break,
                _ => return Err(self.error("an `if` does not end")),
            }
        }
        Ok(Command::If { arms, otherwise })
    }

    fn body(&mut self) -> Parsed<Vec<Command>> {
        self.expect("do")?;
        let body = self.list(&["done"])?;
        self.expect("done")?;
        Ok(body)
    }

    fn for_loop(&mut self) -> Parsed<Command> {
        self.next()?;
        let name = match self.next()? {
            Token::Word(word) => bare(&word).filter(|name| is_name(name)).map(str::to_owned),
            _ => None,
        };
        let name = name.ok_or_else(|| self.error("a `for` has no name"))?;
        self.skip_newlines()?;
        let mut words = None;
        if matches!(self.peek()?, Token::Word(word) if bare(word) == Some("in")) {
            self.next()?;
            let mut list = Vec::new();
            while let Token::Word(_) = self.peek()? {
                if let Token::Word(word) = self.next()? {
                    list.push(word);
                }
            }
            words = Some(list);
        }
        if *self.peek()? == Token::Operator(";") {
            self.next()?;
        }
        self.skip_newlines()?;
        Ok(Command::For { name, words, body: self.body()? })
    }

    fn case(&mut self) -> Parsed<Command> {
        self.next()?;
        let Token::Word(word) = self.next()? else { return Err(self.error("a `case` has no word")) };
        self.skip_newlines()?;
        self.expect("in")?;
        let mut arms = Vec::new();
        loop {
            self.skip_newlines()?;
            match self.peek()? {
                Token::Word(end) if bare(end) == Some("esac") => {
                    self.next()?;
                    return Ok(Command::Case { word, arms });
                }
                Token::Operator("(") => {
                    self.next()?;
                }
                _ => {}
            }
            let mut patterns = Vec::new();
            loop {
                match self.next()? {
                    Token::Word(pattern) => patterns.push(pattern),
                    _ => return Err(self.error("a `case` has no pattern")),
                }
                match self.next()? {
                    Token::Operator("|") => {}
                    Token::Operator(")") => break,
                    _ => return Err(self.error("a pattern of `case` does not end")),
                }
            }
            let list = self.list(&["esac"])?;
            arms.push((patterns, list));
            if *self.peek()? == Token::Operator(";;") {
                self.next()?;
            }
        }
    }

    /// One redirection; the inner `None` is a here-document.
    fn redirect(&mut self) -> Parsed<Option<Option<Redirect>>> {
        let operator = match self.peek()? {
            Token::Operator(op @ ("<" | ">" | ">>" | "<<" | "<<-" | "<&" | ">&" | "<>" | ">|" | "&>")) => *op,
            _ => return Ok(None),
        };
        self.next()?;
        let Token::Word(target) = self.next()? else { return Err(self.error("a redirection has no target")) };
        if !operator.starts_with("<<") {
            return Ok(Some(Some(Redirect { operator, target })));
        }
        let mut delimiter = String::new();
        for part in &target {
            match part {
                Part::Text { text, .. } => delimiter.push_str(text),
                _ => return Err(self.error("the end of a here-document is not literal")),
            }
        }
        self.here.push((delimiter, operator == "<<-"));
        Ok(Some(None))
    }

    fn simple(&mut self, begin: usize) -> Parsed<Command> {
        let (mut assigns, mut words, mut redirects) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            if let Some(redirect) = self.redirect()? {
                redirects.extend(redirect);
                continue;
            }
            match self.peek()? {
                Token::Word(_) => {}
                Token::Operator("(") if words.len() == 1 && assigns.is_empty() => {
                    let name = bare(&words[0]).map(str::to_owned);
                    self.next()?;
                    if self.next()? != Token::Operator(")") {
                        return Err(self.error("a `(` is out of place"));
                    }
                    self.skip_newlines()?;
                    let name = name.ok_or_else(|| self.error("a function has no name"))?;
                    return Ok(Command::Function { name, body: Rc::new(self.command()?) });
                }
                _ => break,
            }
            let Token::Word(word) = self.next()? else { break };
            match assignment(&word).filter(|_| words.is_empty()) {
                Some(assign) => assigns.push(assign),
                None => words.push(word),
            }
        }
        if assigns.is_empty() && words.is_empty() && redirects.is_empty() && self.here.is_empty() {
            return Err(self.error("a command is missing"));
        }
        Ok(Command::Simple { assigns, words, redirects, text: self.text_from(begin) })
    }
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

fn flush(parts: &mut Word, text: &mut String) {
    if !text.is_empty() {
        parts.push(Part::Text { text: std::mem::take(text), quoted: false });
    }
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
