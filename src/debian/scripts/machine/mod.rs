//! The interpreter behind [`classify`](super::classify): three truth values, no effects.

mod commands;
mod condition;
mod words;

use std::collections::BTreeMap;
use std::rc::Rc;

use super::Scripts;
use crate::debian::shell::{Command, Word};
use words::{Glyph, matches};

const MAX_STEPS: usize = 20_000;
const MAX_DEPTH: usize = 40;
const MAX_VALUE: usize = 1 << 16;

/// A text, or nothing known about it.
type Value = Option<String>;
/// Exit status: true, false, or dependent on the machine.
type Truth = Option<bool>;

/// What to do after a command.
#[derive(Clone, Copy, PartialEq)]
enum Flow {
    Next,
    /// `return`, `break` or `continue`: leave the function or the turn of the loop.
    Leave,
    Exit,
}

#[derive(Clone)]
pub(super) struct Machine {
    variables: BTreeMap<String, Value>,
    functions: BTreeMap<String, Rc<Command>>,
    /// `$1`, `$2`, ...; `None` where even their number is unknown.
    arguments: Option<Vec<Value>>,
    status: Truth,
    /// Above zero: it is not certain that the commands here run at all.
    doubt: usize,
    /// Standard output while it is captured; `Some(None)` once it is unknown.
    output: Option<Value>,
    found: Scripts,
    steps: usize,
    depth: usize,
}

impl Machine {
    pub(super) fn new(arguments: &[&str]) -> Machine {
        let known = [("DPKG_ROOT", ""), ("DPKG_ADMINDIR", "/var/lib/dpkg"), ("IFS", " \t\n"), ("LD_LIBRARY_PATH", "")];
        let unknown = ["DPKG_MAINTSCRIPT_PACKAGE", "DPKG_MAINTSCRIPT_ARCH", "DEBIAN_FRONTEND", "PATH", "HOME", "RET"];
        let mut variables: BTreeMap<String, Value> =
            known.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect();
        variables.extend(unknown.iter().map(|name| ((*name).to_owned(), None)));
        Machine {
            variables,
            functions: BTreeMap::new(),
            arguments: Some(arguments.iter().map(|text| Some((*text).to_owned())).collect()),
            status: Some(true),
            doubt: 0,
            output: None,
            found: Scripts::default(),
            steps: 0,
            depth: 0,
        }
    }

    pub(super) fn finish(self) -> Scripts {
        self.found
    }

    fn unknown(&mut self, text: &str) {
        self.found.unknown.get_or_insert_with(|| text.to_owned());
        self.status = None;
    }

    fn lost(&mut self, what: &str) {
        self.found.lost.insert(what.to_owned());
        self.status = None;
    }

    pub(super) fn run(&mut self, commands: &[Command]) {
        let _ = self.list(commands);
    }

    fn list(&mut self, commands: &[Command]) -> Flow {
        for command in commands {
            let flow = self.command(command);
            if flow != Flow::Next {
                return flow;
            }
        }
        Flow::Next
    }

    /// Runs what may or may not run: nothing that it computes is certain afterwards.
    fn maybe(&mut self, commands: &[Command]) {
        let before = self.variables.clone();
        self.doubt += 1;
        let flow = self.list(commands);
        // After an uncertain `exit`, all that follows is uncertain as well.
        if flow == Flow::Next {
            self.doubt -= 1;
        }
        for (name, value) in &mut self.variables {
            if before.get(name) != Some(value) {
                *value = None;
            }
        }
        self.status = None;
    }

    fn command(&mut self, command: &Command) -> Flow {
        self.steps += 1;
        if self.steps > MAX_STEPS || self.depth > MAX_DEPTH {
            self.unknown("the script runs for too long");
            return Flow::Exit;
        }
        self.depth += 1;
        let flow = self.command_inside(command);
        self.depth -= 1;
        flow
    }

    fn command_inside(&mut self, command: &Command) -> Flow {
        match command {
            Command::Simple { assigns, words, redirects, text } => return self.simple(assigns, words, redirects, text),
            Command::Not(inner) => {
                let flow = self.command(inner);
                self.status = self.status.map(|truth| !truth);
                return flow;
            }
            Command::And(left, right) | Command::Or(left, right) => {
                let flow = self.command(left);
                if flow != Flow::Next {
                    return flow;
                }
                let wanted = matches!(command, Command::And(..));
                match self.status {
                    Some(truth) if truth == wanted => return self.command(right),
                    Some(_) => {}
                    None => self.maybe(std::slice::from_ref(right)),
                }
            }
            Command::Pipe(commands) => {
                for command in commands {
                    self.isolated(|machine| {
                        machine.output = machine.output.as_ref().map(|_| None);
                        machine.command(command);
                    });
                }
                self.output = self.output.take().map(|_| None);
                self.status = None;
            }
            Command::If { arms, otherwise } => return self.conditional(arms, otherwise),
            Command::Case { word, arms } => return self.case(word, arms),
            Command::For { name, words, body } => return self.for_loop(name, words.as_deref(), body),
            Command::While { until, condition, body } => {
                let flow = self.list(condition);
                if flow != Flow::Next {
                    return flow;
                }
                if self.status != Some(*until) {
                    // One turn stands for all; what it changes is unknown from its start.
                    self.maybe(body);
                    self.maybe(body);
                }
                self.status = None;
            }
            Command::Function { name, body } => {
                self.functions.insert(name.clone(), Rc::clone(body));
                self.status = Some(true);
            }
            Command::Group(list) => return self.list(list),
            Command::Subshell(list) => self.isolated(|machine| {
                machine.list(list);
            }),
            Command::Redirected { command, redirects, text } => {
                self.redirects(redirects, text);
                let output = self.leave_output(redirects);
                let flow = self.command(command);
                self.restore_output(output);
                return flow;
            }
        }
        Flow::Next
    }

    /// Runs something whose variables do not reach the script; what it was found to do, and its output, do.
    fn isolated(&mut self, run: impl FnOnce(&mut Machine)) {
        let mut inner = self.clone();
        run(&mut inner);
        self.found = inner.found;
        self.steps = inner.steps;
        self.status = inner.status;
        self.output = inner.output;
    }

    fn conditional(&mut self, arms: &[(Vec<Command>, Vec<Command>)], otherwise: &[Command]) -> Flow {
        let mut certain = true;
        for (condition, body) in arms {
            if certain {
                let flow = self.list(condition);
                if flow != Flow::Next {
                    return flow;
                }
            } else {
                self.doubt += 1;
                self.list(condition);
                self.doubt -= 1;
            }
            match self.status {
                Some(true) if certain => return self.list(body),
                Some(true) => {
                    self.maybe(body);
                    return Flow::Next;
                }
                Some(false) => {}
                None => {
                    certain = false;
                    self.maybe(body);
                }
            }
        }
        if certain {
            self.status = Some(true);
            return self.list(otherwise);
        }
        self.maybe(otherwise);
        Flow::Next
    }

    fn case(&mut self, word: &Word, arms: &[(Vec<Word>, Vec<Command>)]) -> Flow {
        let value = self.text(word);
        let mut certain = true;
        for (patterns, body) in arms {
            let mut matched = Some(false);
            for pattern in patterns {
                match (self.pattern(pattern), &value) {
                    (Some(pattern), Some(value)) if matches(&pattern, &value.chars().collect::<Vec<_>>()) => {
                        matched = Some(true);
                        break;
                    }
                    (Some(pattern), _) if pattern == [Glyph::Any] => {
                        matched = Some(true);
                        break;
                    }
                    (Some(_), Some(_)) => {}
                    _ => matched = None,
                }
            }
            match matched {
                Some(false) => {}
                Some(true) if certain => {
                    self.status = Some(true);
                    return self.list(body);
                }
                Some(true) => {
                    self.maybe(body);
                    return Flow::Next;
                }
                None => {
                    certain = false;
                    self.maybe(body);
                }
            }
        }
        Flow::Next
    }

    fn for_loop(&mut self, name: &str, words: Option<&[Word]>, body: &[Command]) -> Flow {
        let fields = match words {
            None => self.arguments.clone(),
            Some(words) => self.fields(words),
        };
        match fields {
            Some(fields) => {
                for field in fields {
                    let glob = field.is_none();
                    self.variables.insert(name.to_owned(), field);
                    if glob {
                        self.maybe(body);
                    } else if self.list(body) == Flow::Exit {
                        return Flow::Exit;
                    }
                }
            }
            None => {
                self.variables.insert(name.to_owned(), None);
                self.maybe(body);
                self.maybe(body);
            }
        }
        Flow::Next
    }
}
