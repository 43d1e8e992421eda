//! Commands in build stages. A command is a pure function of what it declares: the stage below, its inputs, its
//! environment. What it made is taken from the stage (`stage.take(path)`); an image never stands on it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::path::ImagePath;
use crate::source::{Fetch, Files, Inline, Source, TakeFrom};
use crate::stage::{Stage, Take};

/// Whether a command reaches the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// It does not: what it needs is declared and brought before.
    #[default]
    None,
    /// It does, and its outcome is nothing that another run can be expected to have, too.
    Open,
}

impl Network {
    fn is_none(&self) -> bool {
        *self == Network::None
    }
}

/// What a command may read besides its stage, at the path that the source itself names. `S` is how a source names another
/// stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[serde(bound(serialize = "S: Serialize", deserialize = "S: Deserialize<'de>"))]
pub enum Input<S = Stage> {
    /// Files of the build context.
    Files(Files),
    /// A download.
    Fetch(Fetch),
    /// A part of another stage.
    Take(TakeFrom<S>),
    /// A file written in the definition.
    Inline(Inline),
}

impl<S: Clone> Input<S> {
    /// The input as the source that it is.
    pub fn source(&self) -> Source<S> {
        match self.clone() {
            Input::Files(it) => Source::Files(it),
            Input::Fetch(it) => Source::Fetch(it),
            Input::Take(it) => Source::Take(it),
            Input::Inline(it) => Source::Inline(it),
        }
    }
}

impl<S> Input<S> {
    /// Where the command finds it.
    pub fn path(&self) -> &ImagePath {
        match self {
            Input::Files(it) => &it.to,
            Input::Fetch(it) => &it.to,
            Input::Take(it) => &it.to,
            Input::Inline(it) => &it.path,
        }
    }

    /// The other stage that it is taken from.
    pub fn stage(&self) -> Option<&S> {
        match self {
            Input::Take(it) => Some(&it.stage),
            _ => None,
        }
    }
}

macro_rules! into_input {
    ($($word:ident),*) => {$(
        impl<S> From<$word> for Input<S> {
            fn from(word: $word) -> Input<S> {
                Input::$word(word)
            }
        }
    )*};
}
into_input!(Files, Fetch, Inline);

impl From<Take> for Input {
    fn from(take: Take) -> Input {
        Input::Take(take.into_parts())
    }
}

/// A command of a build stage. Made by [`command`]; [`Stage::run`] also takes the bare words.
///
/// It runs as an ordinary user who owns everything it sees, in a sandbox without network, with a fixed environment (`PATH`,
/// `HOME=/tmp`, `LANG=C.UTF-8`, `TZ=UTC`, `SOURCE_DATE_EPOCH`) and what [`env`](Run::env) adds. `S` is how it names other stages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(bound(serialize = "S: Serialize", deserialize = "S: Deserialize<'de>"))]
pub struct Run<S = Stage> {
    /// The program and its arguments; no shell is involved.
    pub argv: Vec<String>,
    /// Variables on top of the fixed ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The working directory; `None`: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<ImagePath>,
    /// What it reads besides the stage; it cannot be written and is no part of the outcome.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input<S>>,
    /// Folders that keep their content from one run to the next on this machine; no part of the outcome or of a key.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub caches: BTreeSet<ImagePath>,
    /// Secrets it gets as files `/run/secrets/NAME`; what they hold is no part of a key.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub secrets: BTreeSet<String>,
    /// Whether it may ask the SSH agent of whoever builds; keys themselves stay there, and are no part of a key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ssh: bool,
    /// Whether it reaches the network.
    #[serde(default, skip_serializing_if = "Network::is_none")]
    pub network: Network,
    /// Seconds after which it is ended and has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Whether the machine emulates it where its platform is another one; no part of a key: what it makes is the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub emulated: bool,
}

/// A command by its words: the program, then its arguments.
pub fn command<W: Into<String>>(words: impl IntoIterator<Item = W>) -> Run {
    Run {
        argv: words.into_iter().map(Into::into).collect(),
        env: BTreeMap::new(),
        workdir: None,
        inputs: Vec::new(),
        caches: BTreeSet::new(),
        secrets: BTreeSet::new(),
        ssh: false,
        network: Network::None,
        timeout_seconds: None,
        emulated: false,
    }
}

impl<W: Into<String>, const N: usize> From<[W; N]> for Run {
    fn from(words: [W; N]) -> Run {
        command(words)
    }
}

impl<W: Into<String>> From<Vec<W>> for Run {
    fn from(words: Vec<W>) -> Run {
        command(words)
    }
}

impl Run {
    /// Sets an environment variable.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Run {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Starts in this directory; it is made where the stage lacks it.
    pub fn workdir(mut self, path: ImagePath) -> Run {
        self.workdir = Some(path);
        self
    }

    /// Lets the command read files, a download or a part of another stage, at the path that these name.
    pub fn input(mut self, input: impl Into<Input>) -> Run {
        self.inputs.push(input.into());
        self
    }

    /// Keeps a folder from one run to the next on this machine, for what only saves time.
    pub fn cache(mut self, path: ImagePath) -> Run {
        self.caches.insert(path);
        self
    }

    /// Gives it a secret as the file `/run/secrets/NAME`; `imgbuild build --secret NAME=...` says what it holds.
    pub fn secret(mut self, name: impl Into<String>) -> Run {
        self.secrets.insert(name.into());
        self
    }

    /// Lets it ask an SSH agent, at the socket that `SSH_AUTH_SOCK` names inside; `imgbuild build --ssh default` says which. The
    /// agent signs, and its keys stay where they are. It opens no network: what is fetched with it needs
    /// [`network`](Run::network), too.
    pub fn ssh(mut self) -> Run {
        self.ssh = true;
        self
    }

    /// Opens the network, which marks the outcome as not reproducible.
    pub fn network(mut self, network: Network) -> Run {
        self.network = network;
        self
    }

    /// Ends the command after this time, which is counted in whole seconds, at least one.
    pub fn timeout(mut self, after: Duration) -> Run {
        self.timeout_seconds = Some(after.as_secs().max(1));
        self
    }

    /// Runs for platforms other than the machine's, too: its kernel hands their programs to qemu-user, which takes many times
    /// as long.
    pub fn emulated(mut self) -> Run {
        self.emulated = true;
        self
    }
}

impl<S> Run<S> {
    /// Replaces the names of other stages.
    pub fn map_stage<T, E>(self, mut rename: impl FnMut(S) -> Result<T, E>) -> Result<Run<T>, E> {
        let inputs = self.inputs.into_iter().map(|input| {
            Ok(match input {
                Input::Files(it) => Input::Files(it),
                Input::Fetch(it) => Input::Fetch(it),
                Input::Inline(it) => Input::Inline(it),
                Input::Take(it) => Input::Take(it.map_stage(&mut rename)?),
            })
        });
        Ok(Run {
            inputs: inputs.collect::<Result<_, E>>()?,
            argv: self.argv,
            env: self.env,
            workdir: self.workdir,
            caches: self.caches,
            secrets: self.secrets,
            ssh: self.ssh,
            network: self.network,
            timeout_seconds: self.timeout_seconds,
            emulated: self.emulated,
        })
    }

    /// One short line that names the command to a person.
    pub fn label(&self) -> String {
        const LONGEST: usize = 60;
        let words: Vec<String> = self.argv.iter().map(|word| shown(word)).collect();
        let mut label = format!("run {}", words.join(" "));
        if let Some((cut, _)) = label.char_indices().nth(LONGEST) {
            label.truncate(cut);
            label.push_str("...");
        }
        label
    }

    /// What the types cannot say; `Err` holds what is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.argv.first().is_none_or(String::is_empty) {
            return Err("it has no program: write `.run([\"program\", \"argument\"])`".into());
        }
        if self.argv.iter().chain(self.env.values()).any(|text| text.contains('\0')) {
            return Err("a word or a variable of it has a NUL byte".into());
        }
        for name in self.env.keys() {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(format!("`{}` is not the name of a variable", name.escape_debug()));
            }
        }
        for name in &self.secrets {
            if !is_secret_name(name) {
                return Err(format!(
                    "`{}` is not the name of a secret: use letters, digits, `.`, `_` and `-`",
                    name.escape_debug()
                ));
            }
        }
        let places: Vec<&ImagePath> = self.inputs.iter().map(Input::path).chain(&self.caches).collect();
        for (at, place) in places.iter().enumerate() {
            if place.is_root()
                || RESERVED.iter().any(|reserved| ImagePath::new(*reserved).is_ok_and(|it| place.starts_with(&it)))
            {
                return Err(format!("an input or a cache cannot be at `{place}`"));
            }
            if let Some(other) = places[..at].iter().find(|other| other.starts_with(place) || place.starts_with(other))
            {
                return Err(format!("inputs and caches cannot lie in each other: `{other}` and `{place}`"));
            }
        }
        Ok(())
    }
}

/// Folders that the sandbox itself fills.
const RESERVED: [&str; 5] = ["/proc", "/sys", "/dev", "/run/secrets", "/run/ssh-agent"];

/// Whether a secret may have this name: it becomes the name of a file.
pub fn is_secret_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// A word as a shell would need it, on one line.
fn shown(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.split_whitespace().collect::<Vec<_>>().join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{files, inline, path};

    #[test]
    fn bare_words_are_a_command() {
        assert_eq!(Run::from(["make", "-j2"]).argv, command(vec!["make".to_owned(), "-j2".to_owned()]).argv);
    }

    #[test]
    fn a_label_is_one_short_line() {
        let script = command(["sh", "-c", "set -e\n  echo one; echo two"]);
        assert_eq!(script.label(), "run sh -c 'set -e echo one; echo two'");
        assert_eq!(command(["x".repeat(100)]).label().len(), 63);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let wrong = |run: Run| run.check().expect_err("refused");
        assert!(wrong(command(Vec::<String>::new())).contains("no program"));
        assert!(wrong(command(["a\0b"])).contains("NUL"));
        assert!(wrong(command(["a"]).env("A=B", "c")).contains("variable"));
        assert!(wrong(command(["a"]).secret("../up")).contains("secret"));
        assert!(wrong(command(["a"]).cache(path!("/proc/x"))).contains("/proc/x"));
        let nested = command(["a"]).input(files("src", path!("/src"))).input(inline("", path!("/src/x")));
        assert!(wrong(nested).contains("in each other"));
        let beside = command(["a"]).input(files("src", path!("/src"))).cache(path!("/src-cache"));
        assert_eq!(beside.check(), Ok(()));
    }

    #[test]
    fn a_timeout_is_at_least_a_second() {
        assert_eq!(command(["a"]).timeout(Duration::from_millis(1)).timeout_seconds, Some(1));
    }
}
