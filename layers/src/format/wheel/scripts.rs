//! Entry points (entry points specification) and the scripts that pip makes of them.

use std::collections::BTreeMap;

use super::FORMAT;
use crate::format::FormatError;
use crate::format::error::lossy;
use crate::path::ImagePath;

/// A function: `MODULE:ATTRIBUTE(.ATTRIBUTE)*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Callable {
    module: String,
    attribute: String,
}

/// Names and functions of a wheel's scripts.
#[derive(Debug, Default)]
pub(super) struct EntryPoints {
    pub(super) console: BTreeMap<String, Callable>,
    pub(super) gui: BTreeMap<String, Callable>,
}

impl EntryPoints {
    /// Reads `entry_points.txt`. Groups other than the two kinds of scripts are for others to read.
    pub(super) fn parse(bytes: &[u8]) -> Result<EntryPoints, FormatError> {
        let malformed =
            |at: usize, why: String| FormatError::Malformed { format: "entry_points.txt", at: at as u64, why };
        let text = std::str::from_utf8(bytes).map_err(|e| malformed(e.valid_up_to(), "it is not UTF-8".into()))?;
        let mut points = EntryPoints::default();
        let mut group = "";
        for raw in text.split('\n') {
            let at = raw.as_ptr() as usize - text.as_ptr() as usize;
            let line = raw.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                group = name;
                continue;
            }
            let scripts = match group {
                "console_scripts" => &mut points.console,
                "gui_scripts" => &mut points.gui,
                _ => continue,
            };
            let (name, value) = line
                .split_once('=')
                .ok_or_else(|| malformed(at, format!("`{}` has no `=`", lossy(line.as_bytes()))))?;
            let (name, value) = (name.trim(), value.trim());
            check_name(name)?;
            let callable = callable(value).ok_or_else(|| {
                malformed(at, format!("`{}` names no function, such as `module:function`", lossy(line.as_bytes())))
            })?;
            if scripts.insert(name.to_owned(), callable.clone()).is_some_and(|before| before != callable) {
                return Err(malformed(at, format!("`{}` is there twice", lossy(name.as_bytes()))));
            }
        }
        Ok(points)
    }

    /// Whether a script of the wheel is a wrapper that an old build tool made for one of these.
    pub(super) fn wrap(&self, file: &str) -> bool {
        let lower = file.to_ascii_lowercase();
        let suffix = [".exe", "-script.py", ".pya"].into_iter().find(|suffix| lower.ends_with(suffix));
        // The suffixes are ASCII, so the cut is between characters.
        let name = &file[..file.len() - suffix.map_or(0, str::len)];
        self.console.contains_key(name) || self.gui.contains_key(name)
    }

    /// All scripts to make, by name. `pip` and `easy_install` get the names of the Python they are installed for instead
    /// of those of the Python they were built with.
    pub(super) fn scripts(&self, python: &str) -> Result<BTreeMap<String, Callable>, FormatError> {
        let mut scripts = self.console.clone();
        let major = python.split('.').next().unwrap_or(python);
        if let Some(pip) = scripts.get("pip").cloned() {
            scripts.retain(|name, _| name.strip_prefix("pip").is_none_or(|rest| !version(rest, 1..=2)));
            for name in ["pip".to_owned(), format!("pip{major}"), format!("pip{python}")] {
                scripts.insert(name, pip.clone());
            }
        }
        if let Some(easy_install) = scripts.get("easy_install").cloned() {
            scripts.retain(|name, _| name.strip_prefix("easy_install-").is_none_or(|rest| !version(rest, 2..=2)));
            scripts.insert(format!("easy_install-{python}"), easy_install);
        }
        for (name, callable) in &self.gui {
            if scripts.insert(name.clone(), callable.clone()).is_some_and(|before| before != *callable) {
                let why = "it is both a console script and a GUI script".to_owned();
                return Err(FormatError::Entry { format: FORMAT, name: lossy(name.as_bytes()), why });
            }
        }
        Ok(scripts)
    }
}

/// Whether this is a version of so many numbers.
fn version(text: &str, numbers: std::ops::RangeInclusive<usize>) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    numbers.contains(&parts.len()) && parts.iter().all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

fn check_name(name: &str) -> Result<(), FormatError> {
    let bad = |why| FormatError::Name { format: FORMAT, name: lossy(name.as_bytes()), why };
    if name.is_empty() {
        return Err(bad("a script needs a name"));
    }
    if name.contains(['/', '\\']) {
        return Err(bad("the name of a script has a separator"));
    }
    if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(bad("the name of a script has white space"));
    }
    crate::path::check(&format!("/{name}")).map_err(bad)
}

/// `module:function`, with extras behind it that are ignored.
fn callable(value: &str) -> Option<Callable> {
    let function = match value.split_once('[') {
        Some((function, extras)) => {
            let extras = extras.strip_suffix(']')?;
            let extra = |c: char| c.is_alphanumeric() || "-_., =".contains(c);
            extras.chars().all(extra).then_some(function.trim_end())?
        }
        None => value,
    };
    let (module, attribute) = function.split_once(':')?;
    let dotted = |text: &str| {
        text.split('.').all(|part| {
            part.starts_with(|c: char| c.is_alphabetic() || c == '_')
                && part.chars().all(|c| c.is_alphanumeric() || c == '_')
        })
    };
    (dotted(module) && dotted(attribute)).then(|| Callable { module: module.into(), attribute: attribute.into() })
}

/// The script that pip (with distlib's template, as of pip 25.1) writes for an entry point.
pub(super) fn script(callable: &Callable, interpreter: &ImagePath) -> Vec<u8> {
    let Callable { module, attribute } = callable;
    let import = attribute.split('.').next().unwrap_or(attribute);
    format!(
        "{}# -*- coding: utf-8 -*-\n\
         import re\n\
         import sys\n\
         from {module} import {import}\n\
         if __name__ == '__main__':\n\
         \x20   sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])\n\
         \x20   sys.exit({attribute}())\n",
        shebang(interpreter)
    )
    .into_bytes()
}

/// The first line; where the kernel could not read it (a space, or over 127 bytes), `sh` starts the interpreter.
fn shebang(interpreter: &ImagePath) -> String {
    let path = interpreter.as_str();
    let (spaced, long) = (path.contains(' '), path.len() + 3 > 127);
    if !spaced && !long {
        return format!("#!{path}\n");
    }
    let quoted = if spaced { format!("\"{path}\"") } else { path.to_owned() };
    format!("#!/bin/sh\n'''exec' {quoted} \"$0\" \"$@\"\n' '''\n")
}

/// A script of the wheel's `scripts` directory that asks for the interpreter: its first line is replaced.
pub(super) fn rewritten(script: &[u8], interpreter: &ImagePath) -> Vec<u8> {
    let rest = script.iter().position(|byte| *byte == b'\n').map_or(&[][..], |end| &script[end + 1..]);
    [b"#!", interpreter.as_str().as_bytes(), b"\n", rest].concat()
}

/// How a script asks for the interpreter.
pub(super) const PLACEHOLDER: &[u8] = b"#!python";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path;

    fn names(text: &str) -> Vec<String> {
        let points = EntryPoints::parse(text.as_bytes()).expect("good");
        points.scripts("3.13").expect("good").into_keys().collect()
    }

    #[test]
    fn scripts_are_made_as_pip_makes_them() {
        let text = "# a comment\n[console_scripts]\nrun = pkg.cli:App.main [extra,more]\n\n[other]\nx = anything at all\n\
                    [gui_scripts]\r\nwindow=pkg:open_\r\n";
        let points = EntryPoints::parse(text.as_bytes()).expect("good");
        let script = script(&points.console["run"], &path!("/opt/venv/bin/python"));
        let expected = "#!/opt/venv/bin/python\n# -*- coding: utf-8 -*-\nimport re\nimport sys\n\
            from pkg.cli import App\nif __name__ == '__main__':\n    \
            sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])\n    sys.exit(App.main())\n";
        assert_eq!(String::from_utf8(script).expect("UTF-8"), expected);
        assert_eq!(names(text), ["run", "window"]);
        assert!(points.wrap("run") && points.wrap("Run.exe".to_lowercase().as_str()) && points.wrap("run-script.py"));
        assert!(!points.wrap("runner") && !points.wrap("x.exe") && !points.wrap("é"));
    }

    #[test]
    fn installers_get_the_names_of_their_python() {
        let text = "[console_scripts]\npip = p:m\npip3.9 = p:m\npip3 = p:m\npipx = p:x\n\
                    easy_install = e:m\neasy_install-3.6 = e:m\n";
        assert_eq!(names(text), ["easy_install", "easy_install-3.13", "pip", "pip3", "pip3.13", "pipx"]);
    }

    #[test]
    fn hostile_entry_points_are_refused() {
        for line in [
            "../x = m:f",
            "a/b = m:f",
            "a\\b = m:f",
            ".. = m:f",
            " = m:f",
            "a b = m:f",
            "a\0 = m:f",
            ".wh.x = m:f",
            "a = m",
            "a = m:f:g",
            "a = m:",
            "a = :f",
            "a = m:f junk",
            "a = m:f()",
            "a = m:f [x",
            "a = m:f [x];import os",
            "a = os; import x:f",
            "a = m\n :f",
            "a = m:f\na = m:g",
            "a",
            "a = 1m:f",
        ] {
            let text = format!("[console_scripts]\n{line}\n");
            assert!(EntryPoints::parse(text.as_bytes()).is_err(), "{line}");
        }
        let long = format!("[console_scripts]\n{} = m:f\n", "x".repeat(256));
        assert!(EntryPoints::parse(long.as_bytes()).is_err());
        assert!(EntryPoints::parse(b"[console_scripts]\n\xff = m:f").is_err());
        let both = EntryPoints::parse(b"[console_scripts]\na = m:f\n[gui_scripts]\na = m:g\n").expect("each is good");
        assert!(both.scripts("3.13").is_err());
        assert_eq!(names("[console_scripts]\na = m:f\na=m:f\n[gui_scripts]\na = m:f"), ["a"]);
    }

    #[test]
    fn interpreters_that_the_kernel_cannot_start_are_started_by_sh() {
        assert_eq!(shebang(&path!("/a b/python")), "#!/bin/sh\n'''exec' \"/a b/python\" \"$0\" \"$@\"\n' '''\n");
        let long = ImagePath::new(format!("/{}/python", "x".repeat(120))).expect("good");
        assert!(shebang(&long).starts_with("#!/bin/sh\n'''exec' /xxx"));
        assert_eq!(rewritten(b"#!pythonw -u\nimport x\n", &path!("/v/python")), b"#!/v/python\nimport x\n");
        assert_eq!(rewritten(b"#!python", &path!("/v/python")), b"#!/v/python\n");
    }
}
