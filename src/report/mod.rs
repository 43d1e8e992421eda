//! What a person or a program sees of the work, on stderr: a moving picture on a terminal, a line a step elsewhere,
//! events as JSON, or next to nothing.
//!
//! Nothing here fails: who closes stderr does not want to hear, and the work goes on.

mod fancy;
mod json;
mod plain;

use std::borrow::Cow;
use std::io::Write;
use std::str::FromStr;

use crate::config::{ConfigError, Environment};
use crate::hide::hidden;
use crate::observe::{Event, Observer};

pub use fancy::Fancy;
pub use json::Json;
pub use plain::Plain;

/// How much is shown, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Progress {
    /// A moving picture on a terminal, else plain lines.
    #[default]
    Auto,
    /// A line for each step that is done.
    Plain,
    /// Events as JSON, one a line.
    Json,
    /// Warnings alone.
    Quiet,
}

impl FromStr for Progress {
    type Err = String;

    fn from_str(text: &str) -> Result<Progress, String> {
        <Progress as clap::ValueEnum>::from_str(text, false)
    }
}

/// What stderr is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Screen {
    /// A terminal that can move its cursor.
    pub terminal: bool,
    /// Colours are wanted.
    pub colour: bool,
}

impl Screen {
    /// By the environment's `NO_COLOR`, `CLICOLOR_FORCE` and `TERM`; `terminal` is whether stderr is one.
    ///
    /// # Errors
    /// If a variable is not UTF-8.
    pub fn of(environment: &Environment, terminal: bool) -> Result<Screen, ConfigError> {
        let dumb = environment.text("TERM")? == Some("dumb");
        let forced = environment.text("CLICOLOR_FORCE")?.is_some_and(|value| value != "0");
        let plain = environment.variable("NO_COLOR").is_some();
        let terminal = terminal && !dumb;
        Ok(Screen { terminal, colour: !plain && (terminal || forced) })
    }
}

/// The observer for stderr.
pub fn choose(progress: Progress, screen: Screen) -> Box<dyn Observer + Send> {
    match progress {
        Progress::Auto if screen.terminal => Box::new(Fancy::new(screen.colour)),
        Progress::Auto | Progress::Plain => Box::new(Plain::new(std::io::stderr(), screen.colour)),
        Progress::Json => Box::new(Json::new(std::io::stderr())),
        Progress::Quiet => Box::new(Quiet(Plain::new(std::io::stderr(), screen.colour))),
    }
}

/// Shows warnings alone.
struct Quiet<W: Write + Send>(Plain<W>);

impl<W: Write + Send> Observer for Quiet<W> {
    fn on(&self, event: Event<'_>) {
        if matches!(event, Event::Warning(_)) {
            self.0.on(event);
        }
    }
}

/// Text without what could steer a terminal: some of it comes from servers and archives.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.chars().any(steers) {
        Cow::Owned(text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// A size for people: three digits, powers of ten.
pub fn size(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    for unit in ["kB", "MB", "GB", "TB"] {
        value /= 1000.0;
        if value < 999.5 {
            let digits = if value < 9.995 {
                2
            } else if value < 99.95 {
                1
            } else {
                0
            };
            return format!("{value:.digits$} {unit}");
        }
    }
    format!("{value:.0} TB")
}

/// The kind of a word in a line.
#[derive(Debug, Clone, Copy)]
enum Tone {
    Done,
    Warning,
}

fn painted(text: &str, tone: Tone, colour: bool) -> Cow<'_, str> {
    let code = match tone {
        Tone::Done => "32",
        Tone::Warning => "33",
    };
    if colour { Cow::Owned(format!("\u{1b}[{code}m{text}\u{1b}[0m")) } else { Cow::Borrowed(text) }
}

/// The line that an event leaves behind, if it does.
fn line(event: &Event<'_>, colour: bool) -> Option<String> {
    let done = |word: &str, rest: String| Some(format!("{} {rest}", painted(word, Tone::Done, colour)));
    match event {
        Event::DownloadFinished { name } => done("downloaded", clean(name).into_owned()),
        Event::ConversionFinished { name } => done("converted", clean(name).into_owned()),
        Event::LayerFinished { label, digest, size: bytes } => {
            done("layer", format!("{}: {digest}, {}", clean(label), size(*bytes)))
        }
        // An image that was there leaves its line on stdout alone.
        Event::ImageFinished { name, digest, cached: false } => done("built", format!("{}: {digest}", clean(name))),
        Event::StepStarted { label } => done("runs", clean(label).into_owned()),
        Event::StepOutput { label, line } => Some(format!("{} | {}", clean(label), clean(line))),
        Event::StepFinished { label } => done("ran", clean(label).into_owned()),
        Event::Uploaded { name } => done("uploaded", clean(name).into_owned()),
        Event::Mounted { name, from } => done("mounted", format!("{} from {}", clean(name), clean(from))),
        Event::Tagged { reference, digest } => done("tagged", format!("{}: {digest}", clean(reference))),
        Event::Warning(text) => {
            Some(format!("{}: {}", painted("warning", Tone::Warning, colour), clean(&hidden(text))))
        }
        Event::Note(text) => Some(clean(&hidden(text)).into_owned()),
        Event::DownloadStarted { .. }
        | Event::DownloadAdvanced { .. }
        | Event::ConversionStarted { .. }
        | Event::ByteCode { .. }
        | Event::LayerStarted { .. }
        | Event::ImageFinished { cached: true, .. }
        | Event::UploadStarted { .. }
        | Event::UploadAdvanced { .. }
        | Event::Present { .. } => None,
    }
}

#[cfg(test)]
mod tests;
