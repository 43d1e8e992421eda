//! What a package's maintainer scripts would do on a fresh install, found out without running them.
//!
//! `preinst install` and `postinst configure` (Debian policy 6.5, no previous version) are walked by an interpreter that
//! knows three truth values: what depends on the machine is neither true nor false, and both ways are then looked
//! at. Each command met on the way is one of: without effect in an image, understood (`update-alternatives --install`
//! with arguments that can be computed), or *unknown*. One unknown command is enough to refuse the package, so a
//! script is never skipped by mistake. `prerm` and `postrm` never run when files are only unpacked.
//!
//! What is lost on purpose is listed in [`Scripts::lost`]: services are not enabled (an image runs one program, not
//! an init), caches that only save time are not written, and tmpfiles.d is not applied: dpkg does not either where
//! systemd is not installed.

mod machine;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use machine::Machine;

/// Counts up when the interpreter understands a script differently: part of the key of what is made from [`Scripts`].
pub const VERSION: u32 = 1;

/// A link group of update-alternatives(1), as `--install` names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Alternative {
    /// The generic name, such as `/usr/bin/awk`.
    pub link: String,
    /// The name below `/etc/alternatives`.
    pub name: String,
    /// The file that is offered.
    pub path: String,
    /// The highest priority wins.
    pub priority: i32,
    /// Links that follow the choice.
    pub slaves: Vec<Slave>,
}

/// A link that follows an [`Alternative`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slave {
    /// The generic name.
    pub link: String,
    /// The name below `/etc/alternatives`.
    pub name: String,
    /// The file that is offered.
    pub path: String,
}

/// What is known of a package's maintainer scripts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scripts {
    /// Alternatives that are installed, in the order of the script.
    pub alternatives: Vec<Alternative>,
    /// Files of `/usr/lib/sysusers.d` whose users are created.
    pub sysusers: Vec<String>,
    /// The first command that is not understood, as `postinst: command`.
    pub unknown: Option<String>,
    /// What the scripts would do besides and an image does without.
    pub lost: BTreeSet<String>,
    /// Triggers that the package is interested in (deb-triggers(5)).
    pub interests: BTreeSet<String>,
    /// Triggers that the package activates.
    pub activates: BTreeSet<String>,
}

impl Scripts {
    /// Whether nothing at all is to be done for the package.
    pub fn is_nothing(&self) -> bool {
        self.alternatives.is_empty() && self.sysusers.is_empty() && self.unknown.is_none()
    }
}

/// Blocks that debhelper generates and whose whole effect may be lost, by the name of the tool.
const LOST_BLOCKS: [(&str, &str); 10] = [
    ("dh_apparmor", "AppArmor profiles"),
    ("dh_icons", "icon caches"),
    ("dh_installdocs", "registration of documentation"),
    ("dh_installemacsen", "Emacs packages"),
    ("dh_installinit", "services"),
    ("dh_installmenu", "menus"),
    ("dh_installsystemd", "services"),
    ("dh_installsystemduser", "services"),
    ("dh_installtmpfiles", "tmpfiles.d"),
    ("dh_python3", "byte-code"),
];

/// Classifies the scripts and triggers among a package's control files (`postinst`, `preinst`, `triggers`, ...; a
/// leading `./` of the names is accepted).
pub fn classify(control_files: &BTreeMap<String, Vec<u8>>) -> Scripts {
    let file = |name: &str| control_files.get(name).or_else(|| control_files.get(&format!("./{name}")));
    let mut scripts = Scripts::default();
    if let Some(triggers) = file("triggers") {
        read_triggers(&String::from_utf8_lossy(triggers), &mut scripts);
    }
    for (name, action) in [("preinst", "install"), ("postinst", "configure")] {
        if let Some(bytes) = file(name) {
            run(name, bytes, &[action, ""], &mut scripts);
        }
    }
    // dpkg also calls the postinst for triggers of other packages. What these calls install is nothing new; what they
    // do without being understood is reported.
    if let Some(bytes) = file("postinst").filter(|_| !scripts.interests.is_empty()) {
        let interests: Vec<&str> = scripts.interests.iter().map(String::as_str).collect();
        let mut triggered = Scripts::default();
        run("postinst", bytes, &["triggered", &interests.join(" ")], &mut triggered);
        scripts.lost.extend(triggered.lost);
        scripts.unknown = scripts.unknown.or(triggered.unknown);
    }
    scripts
}

fn read_triggers(text: &str, scripts: &mut Scripts) {
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("interest" | "interest-await" | "interest-noawait"), Some(name)) => {
                scripts.interests.insert(name.to_owned());
            }
            (Some("activate" | "activate-await" | "activate-noawait"), Some(name)) => {
                scripts.activates.insert(name.to_owned());
            }
            _ => {}
        }
    }
}

fn run(name: &str, bytes: &[u8], arguments: &[&str], scripts: &mut Scripts) {
    let unknown = |scripts: &mut Scripts, what: String| {
        scripts.unknown.get_or_insert(format!("{name}: {what}"));
    };
    // Bytes that are not UTF-8 occur in comments; commands with them are not understood and said to be so.
    let text = String::from_utf8_lossy(bytes);
    let first = text.lines().next().unwrap_or_default();
    let interpreter = first.strip_prefix("#!").map(|rest| rest.trim());
    let program = interpreter.and_then(|line| line.split_ascii_whitespace().next()).unwrap_or_default();
    if !matches!(program.rsplit('/').next(), Some("sh" | "bash" | "dash")) {
        let what = interpreter.map_or("it is a binary or has no interpreter line".into(), |line| {
            format!("it is written for `{}`", line.chars().take(60).collect::<String>())
        });
        return unknown(scripts, what);
    }
    let text = without_lost_blocks(&text, &mut scripts.lost);
    match super::shell::parse(&text) {
        Err(error) => unknown(scripts, error.to_string()),
        Ok(commands) => {
            let mut machine = Machine::new(arguments);
            machine.run(&commands);
            let found = machine.finish();
            scripts.alternatives.extend(found.alternatives);
            scripts.sysusers.extend(found.sysusers);
            scripts.lost.extend(found.lost);
            scripts.activates.extend(found.activates);
            if let Some(what) = found.unknown {
                unknown(scripts, what);
            }
        }
    }
}

/// Blanks out the blocks of [`LOST_BLOCKS`], keeping line numbers.
fn without_lost_blocks(text: &str, lost: &mut BTreeSet<String>) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut inside = false;
    for line in text.split_inclusive('\n') {
        if let Some(tool) = line.strip_prefix("# Automatically added by ") {
            let tool = tool.split(['/', ' ', '\n', '\r']).next().unwrap_or_default();
            if let Some((_, what)) = LOST_BLOCKS.iter().find(|(name, _)| *name == tool) {
                inside = true;
                lost.insert((*what).to_owned());
            }
        }
        kept.push_str(if inside { "\n" } else { line });
        if line.starts_with("# End automatically added section") {
            inside = false;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn postinst(text: &str) -> Scripts {
        classify(&BTreeMap::from([("postinst".to_owned(), format!("#!/bin/sh\n{text}").into_bytes())]))
    }

    fn nothing(text: &str) {
        let scripts = postinst(text);
        assert!(scripts.is_nothing(), "{text}\n{scripts:?}");
    }

    fn unknown(text: &str, what: &str) {
        assert_eq!(postinst(text).unknown.as_deref(), Some(format!("postinst: {what}").as_str()), "{text}");
    }

    #[test]
    fn boilerplate_is_nothing() {
        nothing("");
        nothing(
            "set -e\ncase \"$1\" in\n configure) ;;\n abort-upgrade|abort-remove) ;;\n *) echo \"what: $1\" >&2; exit 1 ;;\nesac\nexit 0",
        );
        nothing("if [ \"$1\" = configure ] && [ -n \"$2\" ]; then rm -rf /usr; fi");
        nothing("if dpkg --compare-versions \"$2\" lt-nl 1.2; then rm /etc/x; fi");
        nothing("dpkg-maintscript-helper rm_conffile /etc/x 1.0~ pkg -- \"$@\"");
        nothing("[ \"$1\" = triggered ] || exit 0\nrm -rf /etc/x");
        nothing("if [ -d /run/systemd/system ]; then touch /etc/x; fi");
        nothing(
            "if [ -x \"$(command -v deb-systemd-invoke)\" ]; then deb-systemd-invoke start x.service >/dev/null || true; fi",
        );
        nothing("remove() { rm -f /etc/x; }\nif test \"$1\" = upgrade -o \"$1\" = abort-upgrade; then remove; fi");
    }

    #[test]
    fn acts_are_unknown_and_named() {
        unknown("set -e\nadduser --system x", "adduser --system x");
        unknown("echo x > /etc/x", "echo x > /etc/x");
        unknown("if [ -e /etc/x ]; then :; else cp /a /etc/x; fi", "cp /a /etc/x");
        unknown("f() { touch /etc/x; }\nf", "touch /etc/x");
        unknown("x=touch\n$x /etc/x", "$x /etc/x");
        unknown("for f in /etc/*; do chmod 600 $f; done", "chmod 600 $f");
        unknown("if true; then", "line 2: an `if` does not end");
        unknown("echo $(rm /etc/x)", "rm /etc/x");
        unknown("find /etc -delete", "find /etc -delete");
        unknown("sed -i s/a/b/ /etc/x", "sed -i s/a/b/ /etc/x");
        unknown(". /usr/share/x/functions", ". /usr/share/x/functions");
        unknown("if dpkg --compare-versions \"$2\" lt 1.2; then touch /etc/x; fi", "touch /etc/x");
    }

    #[test]
    fn other_interpreters_are_unknown() {
        for (text, what) in [
            ("#!/usr/bin/perl -w\n", "it is written for `/usr/bin/perl -w`"),
            ("\x7fELF", "it is a binary or has no interpreter line"),
        ] {
            let scripts = classify(&BTreeMap::from([("preinst".to_owned(), text.as_bytes().to_vec())]));
            assert_eq!(scripts.unknown, Some(format!("preinst: {what}")));
        }
    }

    #[test]
    fn alternatives_are_read_from_any_package() {
        let scripts = postinst(
            "set -e\nif [ \"$1\" = \"configure\" ]; then\n update-alternatives \\\n  --install /bin/nc nc /bin/nc.openbsd 50 \\\n  --slave /bin/netcat netcat /bin/nc.openbsd\nfi\n",
        );
        assert_eq!(scripts.unknown, None);
        assert_eq!(
            scripts.alternatives,
            [Alternative {
                link: "/bin/nc".into(),
                name: "nc".into(),
                path: "/bin/nc.openbsd".into(),
                priority: 50,
                slaves: vec![Slave {
                    link: "/bin/netcat".into(),
                    name: "netcat".into(),
                    path: "/bin/nc.openbsd".into()
                }],
            }]
        );
    }

    #[test]
    fn arguments_of_alternatives_may_be_computed() {
        let scripts = postinst(
            "slave () {\n dir=$1 filename=$2 target=$3\n echo \"--slave $dir/$filename $filename $dir/$target\"\n}\n\
             update-alternatives --install /usr/bin/lzma lzma /usr/bin/xz 20 $(\n slave /usr/bin unlzma unxz\n \
             for util in cat more\n do\n  slave /usr/bin lz$util xz$util\n done\n)\n",
        );
        assert_eq!(scripts.unknown, None);
        let names: Vec<&str> = scripts.alternatives[0].slaves.iter().map(|slave| slave.path.as_str()).collect();
        assert_eq!(names, ["/usr/bin/unxz", "/usr/bin/xzcat", "/usr/bin/xzmore"]);
    }

    #[test]
    fn users_of_generated_blocks_are_named() {
        let scripts = postinst(
            "if [ \"$1\" = \"configure\" ]; then\n systemd-sysusers ${DPKG_ROOT:+--root=\"$DPKG_ROOT\"} x.conf\nfi",
        );
        assert_eq!((scripts.unknown, scripts.sysusers), (None, vec!["x.conf".to_owned()]));
    }

    #[test]
    fn alternatives_that_depend_on_the_machine_are_unknown() {
        let text = "if [ -e /etc/x ]; then update-alternatives --install /a a /b 1; fi";
        unknown(text, "update-alternatives --install /a a /b 1");
        unknown("update-alternatives --install /a a $(uname -m) 1", "update-alternatives --install /a a $(uname -m) 1");
        nothing("update-alternatives --remove a /b");
    }

    #[test]
    fn generated_blocks_are_lost_by_name() {
        let scripts = postinst(
            "# Automatically added by dh_installsystemd/13.24.2\nweird-service-tool enable\n# End automatically added section\n",
        );
        assert!(scripts.is_nothing());
        assert_eq!(scripts.lost.into_iter().collect::<Vec<_>>(), ["services"]);
    }

    #[test]
    fn triggered_calls_count_where_the_package_is_interested() {
        let files = |triggers: &str| {
            let script = "#!/bin/sh\ncase $1 in triggered) make-cache ;; esac";
            BTreeMap::from([
                ("./triggers".to_owned(), triggers.as_bytes().to_vec()),
                ("./postinst".to_owned(), script.as_bytes().to_vec()),
            ])
        };
        assert_eq!(classify(&files("activate-noawait ldconfig\n")).unknown, None);
        let scripts = classify(&files("# fonts\ninterest-noawait /usr/share/fonts\n"));
        assert_eq!(scripts.unknown.as_deref(), Some("postinst: make-cache"));
        assert!(scripts.interests.contains("/usr/share/fonts"));
    }

    #[test]
    fn endless_scripts_end() {
        let scripts = postinst("f() { f; f; }\nf\nwhile true; do :; done");
        assert!(scripts.unknown.is_some());
        let scripts = postinst("x=aaaaaaaaaaaaaaaa\nf() { x=\"$x$x$x$x\"; f; }\nf");
        assert!(scripts.unknown.is_some());
        let many = (0..200).map(|i| format!("for a{i} in 1 2 3 4; do ")).collect::<String>();
        assert!(postinst(&many).unknown.is_some());
    }
}
