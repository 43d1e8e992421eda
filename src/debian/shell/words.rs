//! Words and operators: what a script is read into first.

use std::rc::Rc;

use super::{Parsed, Parser, Part, SyntaxError, Token, Word, parse_at};

const OPERATORS: [&str; 18] =
    ["<<-", "&&", "||", ";;", "<<", ">>", "<&", ">&", "<>", ">|", "&>", ";", "&", "|", "(", ")", "<", ">"];

impl Parser<'_> {
    pub(super) fn error(&self, why: &'static str) -> SyntaxError {
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

    pub(super) fn peek(&mut self) -> Parsed<&Token> {
        if self.peeked.is_none() {
            let before = self.start;
            let token = self.lex()?;
            self.peeked = Some((token, self.start, before));
        }
        Ok(&self.peeked.as_ref().expect("just filled").0)
    }

    pub(super) fn next(&mut self) -> Parsed<Token> {
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
}

fn flush(parts: &mut Word, text: &mut String) {
    if !text.is_empty() {
        parts.push(Part::Text { text: std::mem::take(text), quoted: false });
    }
}
