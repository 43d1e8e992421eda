//! Which modules a module imports, read from its source without running it.
//!
//! Only statements outside of functions count: these run when the module is imported. What is imported by other means (a
//! string, an extension module) is not seen, and what hides in a branch that is not taken is: byte-code is a cache, so the
//! former costs time and the latter space, neither correctness.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// An import statement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Import {
    /// Leading dots: 0 for an absolute import.
    pub level: u8,
    /// The module, empty in `from . import x`.
    pub module: String,
    /// What is taken from it; each may be a module as well.
    pub names: Vec<String>,
}

/// Counts up when other imports are found in the same source.
pub const VERSION: u32 = 1;

/// Finds the imports that run when the module does.
pub fn imports(source: &[u8]) -> Vec<Import> {
    let mut found = BTreeSet::new();
    // Depth of the innermost function that a line may be in: all lines that are indented more are its body.
    let mut body_of: Option<usize> = None;
    for line in logical_lines(source) {
        if let Some(indent) = body_of {
            if line.indent > indent {
                continue;
            }
            body_of = None;
        }
        for statement in line.text.split(';') {
            let statement = statement.trim_start();
            // `try: import x` and `if y: import x` on one line.
            let statement = match statement.split_once(": ") {
                Some((_, rest)) if is_import(rest.trim_start()) => rest.trim_start(),
                _ => statement,
            };
            if is_import(statement) {
                parse(statement, &mut found);
            } else if ["def ", "async def ", "if TYPE_CHECKING:", "if typing.TYPE_CHECKING:"]
                .iter()
                .any(|word| statement.starts_with(word))
            {
                body_of = Some(line.indent);
                break;
            }
        }
    }
    found.into_iter().collect()
}

fn is_import(text: &str) -> bool {
    text.starts_with("import ") || text.starts_with("from ") && text.contains(" import")
}

fn parse(statement: &str, found: &mut BTreeSet<Import>) {
    let name = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    let is_name =
        |text: &str| !text.is_empty() && text.chars().all(|it| it.is_alphanumeric() || it == '_' || it == '.');
    if let Some(rest) = statement.strip_prefix("import ") {
        for module in rest.split(',').map(name).filter(|module| is_name(module)) {
            found.insert(Import { level: 0, module, names: Vec::new() });
        }
    } else if let Some((module, names)) = statement.strip_prefix("from ").and_then(|rest| rest.split_once(" import")) {
        let module = module.replace(' ', "");
        let level = module.bytes().take_while(|byte| *byte == b'.').count();
        let names = names.trim().trim_start_matches('(').trim_end_matches(')');
        let names: Vec<String> = names.split(',').map(name).filter(|name| is_name(name)).collect();
        let module = module[level..].to_owned();
        if let (Ok(level), true) = (u8::try_from(level), module.is_empty() || is_name(&module)) {
            found.insert(Import { level, module, names });
        }
    }
}

/// A statement with its continuation lines; strings are left out, comments are blanks.
struct Line {
    indent: usize,
    text: String,
}

fn logical_lines(source: &[u8]) -> Vec<Line> {
    let text = String::from_utf8_lossy(source);
    let bytes = text.trim_start_matches('\u{feff}').as_bytes();
    let mut lines = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let indent = bytes[at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        at += indent;
        let mut line = Vec::new();
        let mut depth = 0usize;
        while at < bytes.len() {
            match bytes[at] {
                b'\n' if depth == 0 => break,
                b'\n' | b'\r' | b'\t' => line.push(b' '),
                b'\\' => {
                    // A continued line.
                    line.push(b' ');
                    at += 1;
                }
                b'#' => {
                    at += bytes[at..].iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len() - at);
                    continue;
                }
                b'(' | b'[' | b'{' => {
                    depth += 1;
                    line.push(bytes[at]);
                }
                b')' | b']' | b'}' => {
                    depth = depth.saturating_sub(1);
                    line.push(bytes[at]);
                }
                quote @ (b'"' | b'\'') => {
                    let raw_or_format = line.iter().rev().take_while(|byte| byte.is_ascii_alphabetic());
                    let is_format = raw_or_format.take(2).any(|byte| matches!(byte, b'f' | b'F' | b't' | b'T'));
                    at = string_end(bytes, at, quote, is_format);
                    line.push(b'"');
                    continue;
                }
                byte => line.push(byte),
            }
            at += 1;
        }
        at += 1;
        if !line.is_empty() {
            lines.push(Line { indent, text: String::from_utf8_lossy(&line).into_owned() });
        }
    }
    lines
}

/// Where the string that starts at `at` is over.
fn string_end(bytes: &[u8], at: usize, quote: u8, is_format: bool) -> usize {
    let triple = bytes.get(at..at + 3) == Some(&[quote; 3]);
    let mut here = at + if triple { 3 } else { 1 };
    let mut depth = 0usize;
    while here < bytes.len() {
        match bytes[here] {
            b'\\' => here += 1,
            b'{' if is_format && bytes.get(here + 1) == Some(&b'{') && depth == 0 => here += 1,
            b'{' if is_format => depth += 1,
            b'}' if is_format => depth = depth.saturating_sub(1),
            // PEP 701: within braces the same quote starts another string. Before it, it could not stand there.
            inner @ (b'"' | b'\'')
                if depth > 0 && (inner != quote || !triple || bytes.get(here..here + 3) != Some(&[quote; 3])) =>
            {
                here = string_end(bytes, here, inner, false);
                continue;
            }
            b'\n' if !triple => return here,
            byte if byte == quote && !triple => return here + 1,
            byte if byte == quote && bytes.get(here..here + 3) == Some(&[quote; 3]) => return here + 3,
            _ => {}
        }
        here += 1;
    }
    bytes.len()
}

/// The modules of some distributions: what each imports, and a name by which its file is known to the caller.
#[derive(Debug, Default)]
pub struct Graph<'a, F> {
    modules: BTreeMap<String, (&'a [Import], bool, F)>,
}

/// The module that a file is, and whether it is a package: `a/b.py` is `a.b`, `a/__init__.py` is the package `a`.
pub fn module_of(path: &str) -> Option<(String, bool)> {
    let stem = path.strip_suffix(".py")?;
    let (name, is_package) = match stem.strip_suffix("/__init__") {
        Some(package) => (package, true),
        None => (stem, false),
    };
    let is_name = |part: &str| !part.is_empty() && !part.contains('.') && !part.contains('-');
    name.split('/').all(is_name).then(|| (name.replace('/', "."), is_package))
}

impl<'a, F> Graph<'a, F> {
    /// A graph of nothing.
    pub fn new() -> Graph<'a, F> {
        Graph { modules: BTreeMap::new() }
    }

    /// Adds the module at `path`, relative to where modules are found.
    pub fn add(&mut self, path: &str, imports: &'a [Import], file: F) {
        if let Some((module, is_package)) = module_of(path) {
            self.modules.insert(module, (imports, is_package, file));
        }
    }

    /// The files of all modules that importing `roots` imports; the error is a root that is not there.
    pub fn imported_by<'g>(&'g self, roots: impl IntoIterator<Item = &'g String>) -> Result<Vec<&'g F>, String> {
        let mut pending: Vec<String> = Vec::new();
        for root in roots {
            let (name, whole) = match root.strip_suffix(".*") {
                Some(name) => (name, true),
                None => (root.as_str(), false),
            };
            let below = format!("{name}.");
            let before = pending.len();
            if self.modules.contains_key(name) {
                pending.push(name.to_owned());
            }
            if whole {
                let inside = self.modules.range(below.clone()..).map(|(module, _)| module);
                pending.extend(inside.take_while(|module| module.starts_with(&below)).cloned());
            }
            if pending.len() == before {
                return Err(root.clone());
            }
        }
        let mut reached: BTreeSet<String> = BTreeSet::new();
        while let Some(module) = pending.pop() {
            // Importing `a.b.c` imports `a` and `a.b` first; they may be namespaces, which have no file.
            for (end, _) in module.match_indices('.') {
                if !reached.contains(&module[..end]) {
                    pending.push(module[..end].to_owned());
                }
            }
            let Some((name, (imports, is_package, _))) = self.modules.get_key_value(&module) else { continue };
            if !reached.insert(module.clone()) {
                continue;
            }
            for import in *imports {
                let base = match import.level {
                    0 => Some(import.module.clone()),
                    level => self.relative(name, *is_package, level, &import.module),
                };
                let Some(base) = base else { continue };
                for item in import.names.iter().filter(|_| !base.is_empty()) {
                    let inner = format!("{base}.{item}");
                    if self.modules.contains_key(&inner) && !reached.contains(&inner) {
                        pending.push(inner);
                    }
                }
                if !reached.contains(&base) {
                    pending.push(base);
                }
            }
        }
        Ok(reached.iter().filter_map(|module| self.modules.get(module)).map(|(_, _, file)| file).collect())
    }

    fn relative(&self, module: &str, is_package: bool, level: u8, rest: &str) -> Option<String> {
        let mut base = module;
        let up = if is_package { level - 1 } else { level };
        for _ in 0..up {
            base = base.rsplit_once('.')?.0;
        }
        Some(if rest.is_empty() { base.to_owned() } else { format!("{base}.{rest}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(source: &str) -> Vec<String> {
        let text = |import: Import| {
            let dots = ".".repeat(usize::from(import.level));
            format!("{dots}{}:{}", import.module, import.names.join(","))
        };
        imports(source.as_bytes()).into_iter().map(text).collect()
    }

    #[test]
    fn imports_outside_of_functions_are_found_however_they_are_written() {
        let source = r#"
"""import doc
import doc2"""
import a, b.c as d ; import e
from .x import (y,  # import no
    z)
from . import \
    w
try: import f
except ImportError: pass
text = f"{x["import g"]} import h
class C:
    import i
    def method(self):
        import j
    from k import *
if True:
    import l
if TYPE_CHECKING:
    import m
import n
value = 'it''s'; import o
"#;
        assert_eq!(found(source), ["a:", "b.c:", "e:", "f:", "i:", "k:", "l:", "n:", "o:", ".:w", ".x:y,z"]);
    }

    #[test]
    fn what_is_imported_is_followed_through_packages_relative_names_and_submodules() {
        let sources = [
            ("a/__init__.py", "from .b import thing"),
            ("a/b.py", "from . import c\nimport outside"),
            ("a/c.py", "from ..z import no\nfrom d.e import f"),
            ("a/unused.py", ""),
            ("d/e/f.py", "import a"),
            ("app.py", "import a"),
        ];
        let all: Vec<(&str, Vec<Import>)> =
            sources.iter().map(|(path, source)| (*path, imports(source.as_bytes()))).collect();
        let mut graph = Graph::new();
        for (path, imports) in &all {
            graph.add(path, imports, *path);
        }
        let reach = |root: &str| {
            graph.imported_by([&root.to_owned()]).map(|files| files.into_iter().copied().collect::<Vec<_>>())
        };
        assert_eq!(reach("app").expect("it is there"), ["a/__init__.py", "a/b.py", "a/c.py", "app.py", "d/e/f.py"]);
        assert_eq!(reach("a.*").expect("it is there").len(), 5);
        assert_eq!(reach("nothing"), Err("nothing".to_owned()));
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        for source in [
            &b"\"\"\""[..],
            b"f\"{",
            b"f'{\"",
            b"\\",
            b"import",
            b"from . import",
            b"\xff\xfe",
            b"'\\",
            b"from import import",
        ] {
            imports(source);
        }
    }
}
