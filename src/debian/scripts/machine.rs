//! The interpreter behind [`classify`](super::classify): three truth values, no effects.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::shell::{Command, Part, Redirect, Word};
use super::{Alternative, Scripts, Slave};

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

    // --- words ---------------------------------------------------------------------------------------------------

    /// The value of a variable or parameter.
    fn variable(&mut self, name: &str) -> Value {
        match name {
            "#" => self.arguments.as_ref().map(|list| list.len().to_string()),
            "@" | "*" => {
                let list = self.arguments.as_ref()?;
                Some(list.iter().cloned().collect::<Option<Vec<_>>>()?.join(" "))
            }
            "0" | "?" | "$" | "!" | "-" => None,
            _ => match name.parse::<usize>() {
                Ok(number) => {
                    self.arguments.as_ref()?.get(number.saturating_sub(1)).cloned().unwrap_or(Some(String::new()))
                }
                // A variable of the environment is not set by dpkg; scripts test for that.
                Err(_) => self.variables.get(name).cloned().unwrap_or(Some(String::new())),
            },
        }
    }

    fn part(&mut self, part: &Part) -> Value {
        match part {
            Part::Text { text, .. } => Some(text.clone()),
            Part::Variable { name, test: None, .. } => self.variable(name),
            Part::Variable { name, test: Some((operator, word)), .. } => {
                let value = self.variable(name);
                let other = self.text(word);
                match *operator {
                    ":-" | "-" => value.and_then(|value| if value.is_empty() { other } else { Some(value) }),
                    ":+" | "+" => value.and_then(|value| if value.is_empty() { Some(value) } else { other }),
                    _ => None,
                }
            }
            Part::Output { list, .. } => {
                let mut output = None;
                self.isolated_capture(list, &mut output);
                output.map(|text| text.trim_end_matches('\n').to_owned())
            }
            Part::Opaque => None,
        }
    }

    fn isolated_capture(&mut self, list: &[Command], output: &mut Value) {
        let kept = self.output.take();
        self.isolated(|machine| {
            machine.output = Some(Some(String::new()));
            machine.list(list);
        });
        *output = self.output.take().flatten();
        self.output = kept;
    }

    /// A word as one text, without splitting.
    fn text(&mut self, word: &Word) -> Value {
        let mut text = String::new();
        let mut known = true;
        // Every part is computed even after an unknown one: a substitution may do something.
        for part in word {
            match self.part(part) {
                Some(value) if text.len() + value.len() <= MAX_VALUE => text.push_str(&value),
                _ => known = false,
            }
        }
        known.then_some(text)
    }

    /// Words after splitting; `None` where the number of fields is unknown.
    fn fields(&mut self, words: &[Word]) -> Option<Vec<Value>> {
        let mut fields = Vec::new();
        let mut known = true;
        for word in words {
            match self.split(word) {
                Some(more) if fields.len() + more.len() <= MAX_STEPS => fields.extend(more),
                _ => known = false,
            }
        }
        known.then_some(fields)
    }

    fn split(&mut self, word: &Word) -> Option<Vec<Value>> {
        if let [Part::Variable { name, test: None, quoted: true }] = word.as_slice()
            && name == "@"
        {
            return self.arguments.clone();
        }
        let mut fields: Vec<Value> = Vec::new();
        let mut current: Option<Value> = None;
        let mut countable = true;
        for part in word {
            let (quoted, literal) = match part {
                Part::Text { quoted, .. } => (*quoted, true),
                Part::Variable { quoted, .. } | Part::Output { quoted, .. } => (*quoted, false),
                Part::Opaque => (true, false),
            };
            let value = self.part(part);
            match value {
                None if !quoted => countable = false,
                None => current = Some(None),
                // Names of files are not known, so neither is what a pattern becomes.
                Some(text) if literal && !quoted && is_glob(&text) => current = Some(None),
                Some(text) if quoted || literal => append(&mut current, &text),
                Some(text) => {
                    let mut rest = text.as_str();
                    while let Some(gap) = rest.find([' ', '\t', '\n']) {
                        if gap > 0 {
                            append(&mut current, &rest[..gap]);
                        }
                        fields.extend(current.take());
                        rest = &rest[gap + 1..];
                    }
                    if !rest.is_empty() {
                        append(&mut current, rest);
                    }
                }
            }
        }
        fields.extend(current);
        countable.then_some(fields)
    }

    /// A pattern of `case`.
    fn pattern(&mut self, word: &Word) -> Option<Vec<Glyph>> {
        let mut glyphs = Vec::new();
        for part in word {
            let literal = matches!(part, Part::Text { quoted: false, .. });
            for c in self.part(part)?.chars() {
                glyphs.push(match c {
                    '*' if literal => Glyph::Any,
                    '?' if literal => Glyph::One,
                    '[' if literal => return None,
                    c => Glyph::Same(c),
                });
            }
        }
        Some(glyphs)
    }

    // --- simple commands -----------------------------------------------------------------------------------------

    fn redirects(&mut self, redirects: &[Redirect], text: &str) {
        for redirect in redirects {
            let target = self.text(&redirect.target);
            let written = !matches!(redirect.operator, "<" | "<&");
            let harmless = target.is_some_and(|target| {
                let number = redirect.operator == ">&" && (target == "-" || target.bytes().all(|b| b.is_ascii_digit()));
                number || ["/dev/null", "/dev/stderr", "/dev/stdout", "/dev/tty"].contains(&target.as_str())
            });
            if written && !harmless {
                self.unknown(text);
            }
        }
    }

    /// Stops the capture where standard output goes elsewhere. A number before the operator is not kept, so
    /// `2>/dev/null` stops it too: what is captured is then unknown, which errs on the safe side.
    fn leave_output(&mut self, redirects: &[Redirect]) -> Option<Option<Value>> {
        let away = redirects.iter().any(|redirect| !redirect.operator.starts_with('<'));
        (away && self.output.is_some()).then(|| self.output.replace(None))
    }

    fn restore_output(&mut self, output: Option<Option<Value>>) {
        if output.is_some() {
            self.output = Some(None);
        }
    }

    fn print(&mut self, text: Value) {
        if let Some(output) = &mut self.output {
            match (output.as_mut(), text) {
                (Some(known), Some(text)) if known.len() + text.len() <= MAX_VALUE => known.push_str(&text),
                _ => *output = None,
            }
        }
    }

    fn simple(&mut self, assigns: &[(String, Word)], words: &[Word], redirects: &[Redirect], text: &str) -> Flow {
        self.redirects(redirects, text);
        let status = self.status;
        self.status = Some(true);
        for (name, word) in assigns {
            let value = self.text(word);
            if words.is_empty() {
                self.variables.insert(name.clone(), value);
            }
        }
        if words.is_empty() {
            if !assigns.iter().any(|(_, word)| word.iter().any(|part| matches!(part, Part::Output { .. }))) {
                self.status = Some(true);
            }
            return Flow::Next;
        }
        let fields = self.fields(words);
        // A name that is literal decides even where the number of arguments is unknown.
        let name = match (&fields, words.first().map(Vec::as_slice)) {
            (Some(fields), _) => fields.first().cloned().flatten(),
            (None, Some([Part::Text { text, quoted: false }])) => Some(text.clone()),
            _ => None,
        };
        let Some(name) = name else {
            if fields.is_some_and(|fields| fields.is_empty()) {
                return Flow::Next;
            }
            self.unknown(text);
            return Flow::Next;
        };
        let arguments = fields.map(|fields| fields[1..].to_vec());
        let output = self.leave_output(redirects);
        let flow = self.invoke(&name, arguments, text, status);
        self.restore_output(output);
        flow
    }

    fn invoke(&mut self, name: &str, arguments: Option<Vec<Value>>, text: &str, last: Truth) -> Flow {
        if let Some(body) = self.functions.get(name).cloned() {
            let kept = std::mem::replace(&mut self.arguments, arguments);
            let flow = self.command(&body);
            self.arguments = kept;
            return if flow == Flow::Exit { Flow::Exit } else { Flow::Next };
        }
        let known: Option<Vec<String>> = arguments.as_ref().and_then(|list| list.iter().cloned().collect());
        let known: Option<Vec<&str>> = known.as_ref().map(|list| list.iter().map(String::as_str).collect());
        let texts: Vec<&str> = arguments.iter().flatten().flatten().map(String::as_str).collect();
        self.status = None;
        match name {
            ":" | "true" | "set" | "umask" | "trap" | "ulimit" | "wait" | "sleep" | "sync" => self.status = Some(true),
            "false" => self.status = Some(false),
            "exit" => return Flow::Exit,
            "return" | "break" | "continue" => {
                self.status = match known.as_deref() {
                    Some([number]) => number.parse::<u8>().ok().map(|number| number == 0),
                    _ => last,
                };
                return Flow::Leave;
            }
            "local" | "export" | "readonly" | "declare" => {
                for argument in arguments.iter().flatten() {
                    match argument.as_deref().map(|text| text.split_once('=').ok_or(text)) {
                        Some(Ok((name, value))) => {
                            self.variables.insert(name.to_owned(), Some(value.to_owned()));
                        }
                        Some(Err(_)) => {}
                        // `local x=$(...)`: the name is lost with the value, so forget all of them.
                        None => self.variables.values_mut().for_each(|value| *value = None),
                    }
                }
                self.status = Some(true);
            }
            "unset" => {
                for name in texts {
                    self.variables.insert(name.to_owned(), Some(String::new()));
                }
                self.status = Some(true);
            }
            "shift" => match (&mut self.arguments, known.as_deref()) {
                (Some(list), Some([])) if !list.is_empty() => {
                    list.remove(0);
                    self.status = Some(true);
                }
                (list, _) => *list = None,
            },
            "read" => {
                for name in texts {
                    self.variables.insert(name.to_owned(), None);
                }
            }
            "echo" => {
                let line = known.map(|list| match list.as_slice() {
                    ["-n", rest @ ..] => rest.join(" "),
                    all => all.join(" ") + "\n",
                });
                self.print(line.filter(|line| !line.contains('\\')));
                self.status = Some(true);
            }
            "printf" => {
                let line = known.and_then(|list| match list.as_slice() {
                    ["%s" | "%s\\n", text] => Some((*text).to_owned()),
                    _ => None,
                });
                self.print(line);
                self.status = Some(true);
            }
            "[" | "test" => self.status = self.test(name, arguments),
            "dpkg" if texts.first() == Some(&"--compare-versions") => {
                // On a fresh install `$2` is empty, which is the only value whose order is known without its digits.
                self.status = match known.as_deref() {
                    Some([_, "", "lt" | "le" | "ne" | "gt-nl" | "ge-nl", other]) if !other.is_empty() => Some(true),
                    Some([_, "", _, other]) if !other.is_empty() => Some(false),
                    _ => None,
                };
            }
            "command" | "which" | "type" | "hash" => self.find_command(name, known.as_deref(), &texts, text),
            "update-alternatives" => self.alternatives(known.as_deref(), &texts, text),
            "systemd-sysusers" => match texts.iter().find(|text| text.ends_with(".conf")) {
                Some(file) if self.doubt == 0 => {
                    self.found.sysusers.push((*file).to_owned());
                    self.status = Some(true);
                }
                _ => self.unknown(text),
            },
            "dpkg-trigger" => {
                let name = texts.iter().find(|text| !text.starts_with('-'));
                self.found.activates.extend(name.map(|name| (*name).to_owned()));
                self.status = Some(true);
            }
            "dpkg-divert" => {
                let idle = ["--list", "--listpackage", "--truename", "--remove"];
                // Diversions of the names without /usr guard an upgrade to merged /usr and move nothing.
                let guard = texts.iter().any(|text| text.ends_with(".usr-is-merged"));
                self.print(None);
                if !guard && !texts.iter().any(|text| idle.contains(text)) {
                    self.unknown(text);
                }
            }
            "dpkg-statoverride" => {
                self.print(None);
                if !texts.contains(&"--list") {
                    self.unknown(text);
                }
            }
            "." | "source" => match known.as_deref() {
                Some(["/usr/share/debconf/confmodule"]) => self.status = Some(true),
                _ => self.unknown(text),
            },
            "rm" | "rmdir" => {
                let volatile = |path: &&str| {
                    ["/tmp/", "/run/", "/var/run/", "/var/cache/", "/var/lib/", "/var/log/"]
                        .iter()
                        .any(|start| path.starts_with(start))
                        || [".dpkg-old", ".dpkg-new", ".dpkg-bak", ".dpkg-remove"].iter().any(|end| path.ends_with(end))
                };
                let paths: Option<Vec<&str>> =
                    known.map(|list| list.into_iter().filter(|word| !word.starts_with('-')).collect());
                if !paths.is_some_and(|paths| paths.iter().all(volatile)) {
                    self.unknown(text);
                }
            }
            _ => self.other(name, &texts, text),
        }
        Flow::Next
    }

    /// Programs that are told by their names.
    fn other(&mut self, name: &str, texts: &[&str], text: &str) {
        let name = name.rsplit('/').next().unwrap_or(name);
        match name {
            "deb-systemd-helper" | "deb-systemd-invoke" | "systemctl" | "invoke-rc.d" | "update-rc.d" | "service"
            | "start-stop-daemon" | "telinit" | "runlevel" => self.lost("services"),
            "py3compile" | "py3clean" | "pycompile" | "pyclean" => self.lost("byte-code"),
            "systemd-tmpfiles" => self.lost("tmpfiles.d"),
            "update-mime-database"
            | "update-desktop-database"
            | "gtk-update-icon-cache"
            | "update-icon-caches"
            | "fc-cache"
            | "update-menus"
            | "install-info"
            | "update-info-dir"
            | "mandb"
            | "install-docs"
            | "update-binfmts"
            | "appstreamcli" => self.lost("caches and registrations"),
            "udevadm" | "depmod" | "update-initramfs" | "modprobe" | "sysctl" | "update-grub" => {
                self.lost("the machine's kernel and devices");
            }
            // The cache of the dynamic loader is written natively for every tree.
            "ldconfig" | "dpkg-maintscript-helper" => self.status = Some(true),
            "find"
                if texts
                    .iter()
                    .any(|text| text.starts_with("-exec") || text.starts_with("-ok") || *text == "-delete") =>
            {
                self.unknown(text);
            }
            "sed" if texts.iter().any(|text| text.starts_with("-i") || text.starts_with("--in-place")) => {
                self.unknown(text);
            }
            "dpkg" | "dpkg-query"
                if texts
                    .iter()
                    .any(|t| ["-i", "-r", "-P", "--purge", "--configure", "--install", "--remove"].contains(t)) =>
            {
                self.unknown(text);
            }
            "awk" | "basename" | "cat" | "cd" | "cmp" | "cut" | "date" | "diff" | "dirname" | "dpkg" | "dpkg-query"
            | "dpkg-realpath" | "egrep" | "expr" | "fgrep" | "find" | "getent" | "grep" | "head" | "hostname"
            | "id" | "ischroot" | "ls" | "md5sum" | "mktemp" | "pidof" | "ps" | "pwd" | "readlink" | "realpath"
            | "sed" | "seq" | "sha256sum" | "sort" | "stat" | "tail" | "tempfile" | "tr" | "uname" | "uniq" | "wc"
            | "who" | "whoami" => self.print(None),
            _ if name.starts_with("db_") => {
                self.variables.insert("RET".into(), None);
            }
            _ => self.unknown(text),
        }
    }

    fn find_command(&mut self, name: &str, known: Option<&[&str]>, texts: &[&str], text: &str) {
        self.print(None);
        let wanted = texts.iter().find(|text| !text.starts_with('-'));
        if name == "command" && !texts.contains(&"-v") && !texts.contains(&"-V") {
            return self.unknown(text);
        }
        let essential =
            ["update-alternatives", "dpkg", "dpkg-trigger", "dpkg-divert", "dpkg-query", "dpkg-statoverride"];
        if known.is_some() && wanted.is_some_and(|wanted| essential.contains(wanted)) {
            self.status = Some(true);
        }
    }

    fn alternatives(&mut self, known: Option<&[&str]>, texts: &[&str], text: &str) {
        let acts = ["--install", "--set", "--config", "--set-selections", "--all"];
        if known.is_some() && !texts.iter().any(|text| acts.contains(text)) {
            // Removing, asking and `--auto` change nothing where nothing is installed.
            self.print(None);
            return;
        }
        match known.and_then(parse_alternative) {
            Some(alternative) if self.doubt == 0 => {
                self.found.alternatives.push(alternative);
                self.status = Some(true);
            }
            _ => self.unknown(text),
        }
    }

    // --- test ----------------------------------------------------------------------------------------------------

    fn test(&self, name: &str, arguments: Option<Vec<Value>>) -> Truth {
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

fn append(current: &mut Option<Value>, text: &str) {
    match current {
        Some(Some(known)) => known.push_str(text),
        Some(None) => {}
        None => *current = Some(Some(text.to_owned())),
    }
}

/// Whether the shell would look for file names (a lone `[` is the command).
fn is_glob(text: &str) -> bool {
    text.contains(['*', '?']) || text.find('[').is_some_and(|at| text[at..].contains(']'))
}

/// An element of a pattern.
#[derive(Clone, Copy, PartialEq)]
enum Glyph {
    Any,
    One,
    Same(char),
}

/// Matches without backtracking over more than the last `*`.
fn matches(pattern: &[Glyph], text: &[char]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(Glyph::Any) => {
                star = Some((p, t));
                p += 1;
            }
            Some(Glyph::One) => (p, t) = (p + 1, t + 1),
            Some(Glyph::Same(c)) if *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|glyph| *glyph == Glyph::Any)
}

/// The arguments of `update-alternatives --install`.
fn parse_alternative(words: &[&str]) -> Option<Alternative> {
    let mut rest = words;
    let mut alternative = None;
    while let Some((&word, more)) = rest.split_first() {
        rest = more;
        match (word, &mut alternative) {
            ("--quiet" | "--force" | "--verbose" | "--skip-auto", _) => {}
            ("--install", None) => {
                let [link, name, path, priority, more @ ..] = rest else { return None };
                alternative = Some(Alternative {
                    link: (*link).to_owned(),
                    name: (*name).to_owned(),
                    path: (*path).to_owned(),
                    priority: priority.parse().ok()?,
                    slaves: Vec::new(),
                });
                rest = more;
            }
            ("--slave" | "--follower", Some(alternative)) => {
                let [link, name, path, more @ ..] = rest else { return None };
                alternative.slaves.push(Slave {
                    link: (*link).to_owned(),
                    name: (*name).to_owned(),
                    path: (*path).to_owned(),
                });
                rest = more;
            }
            _ => return None,
        }
    }
    let good = |link: &str, name: &str, path: &str| {
        link.starts_with('/') && path.starts_with('/') && !name.is_empty() && !name.contains(['/', ' ', '\t', '\n'])
    };
    alternative.filter(|a| good(&a.link, &a.name, &a.path) && a.slaves.iter().all(|s| good(&s.link, &s.name, &s.path)))
}
