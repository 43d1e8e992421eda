//! Simple commands: the shell's own, those that are understood, and those without effect in an image.

use super::super::{Alternative, Slave};
use super::{Flow, MAX_VALUE, Machine, Truth, Value};
use crate::debian::shell::{Part, Redirect, Word};

impl Machine {
    pub(super) fn redirects(&mut self, redirects: &[Redirect], text: &str) {
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
    pub(super) fn leave_output(&mut self, redirects: &[Redirect]) -> Option<Option<Value>> {
        let away = redirects.iter().any(|redirect| !redirect.operator.starts_with('<'));
        (away && self.output.is_some()).then(|| self.output.replace(None))
    }

    pub(super) fn restore_output(&mut self, output: Option<Option<Value>>) {
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

    pub(super) fn simple(
        &mut self,
        assigns: &[(String, Word)],
        words: &[Word],
        redirects: &[Redirect],
        text: &str,
    ) -> Flow {
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
