//! Commands, made of words.

use std::rc::Rc;

use super::{Command, MAX_DEPTH, Parsed, Parser, Part, Redirect, Token, assignment, bare, is_name};

impl Parser<'_> {
    pub(super) fn enter(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("commands are nested too deeply"));
        }
        Ok(())
    }

    /// Commands until one of the reserved words `ends`, `)`, `;;` or the end.
    pub(super) fn list(&mut self, ends: &[&str]) -> Parsed<Vec<Command>> {
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
