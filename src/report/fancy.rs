//! A moving picture: what is going on right now, a few lines of it, above one line that counts everything.
//!
//! Done steps leave no lines, or a build of four images would scroll two hundred of them by. Warnings and notes stay.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{clean, line, size};
use crate::observe::{Event, Observer};

/// Lines for single things at most; others are counted alone.
const LINES: usize = 8;

/// Draws on a terminal. What it drew is wiped off when it is dropped: do so before results are printed.
#[derive(Debug)]
pub struct Fancy {
    screen: MultiProgress,
    pub(super) total: ProgressBar,
    pub(super) state: Mutex<State>,
    colour: bool,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) lines: BTreeMap<(Kind, String), ProgressBar>,
    counts: BTreeMap<Kind, Count>,
    received: u64,
    sent: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    begun: u64,
    done: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Download,
    Conversion,
    Step,
    Layer,
    Upload,
}

impl Kind {
    fn doing(self) -> &'static str {
        match self {
            Kind::Download => "downloads",
            Kind::Conversion => "converts",
            Kind::Step => "runs",
            Kind::Layer => "writes",
            Kind::Upload => "uploads",
        }
    }

    fn counted(self) -> &'static str {
        match self {
            Kind::Download => "downloads",
            Kind::Conversion => "conversions",
            Kind::Step => "steps",
            Kind::Layer => "layers",
            Kind::Upload => "uploads",
        }
    }
}

impl Fancy {
    /// Draws on stderr.
    pub fn new(colour: bool) -> Fancy {
        let fancy = Fancy::on(ProgressDrawTarget::stderr_with_hz(15), colour);
        fancy.total.enable_steady_tick(Duration::from_millis(120));
        fancy
    }

    /// Draws anywhere.
    pub fn on(target: ProgressDrawTarget, colour: bool) -> Fancy {
        let screen = MultiProgress::with_draw_target(target);
        let total = screen.add(ProgressBar::new_spinner().with_style(style("{spinner} {wide_msg} {elapsed}")));
        Fancy { screen, total, state: Mutex::default(), colour }
    }

    fn begin(&self, kind: Kind, name: &str, length: Option<u64>) {
        let Ok(mut state) = self.state.lock() else { return };
        state.counts.entry(kind).or_default().begun += 1;
        if state.lines.len() < LINES {
            let bar = match length {
                Some(length) => ProgressBar::new(length).with_style(style(
                    "  {prefix:9} {bar:20} {decimal_bytes:>9} of {decimal_total_bytes:9} {wide_msg}",
                )),
                None => ProgressBar::new_spinner().with_style(style("  {prefix:9} {wide_msg}")),
            };
            let bar = self.screen.insert_before(&self.total, bar);
            bar.set_prefix(kind.doing());
            bar.set_message(clean(name).replace('\n', " "));
            if let Some(old) = state.lines.insert((kind, name.to_owned()), bar) {
                self.screen.remove(&old);
            }
        }
        self.count(&state);
    }

    fn advance(&self, kind: Kind, name: &str, bytes: u64) {
        let Ok(mut state) = self.state.lock() else { return };
        match kind {
            Kind::Upload => state.sent += bytes,
            _ => state.received += bytes,
        }
        if let Some(bar) = state.lines.get(&(kind, name.to_owned())) {
            bar.inc(bytes);
        }
        self.count(&state);
    }

    fn end(&self, kind: Kind, name: &str) {
        let Ok(mut state) = self.state.lock() else { return };
        state.counts.entry(kind).or_default().done += 1;
        if let Some(bar) = state.lines.remove(&(kind, name.to_owned())) {
            bar.finish_and_clear();
            self.screen.remove(&bar);
        }
        self.count(&state);
    }

    fn count(&self, state: &State) {
        let mut parts: Vec<String> = state
            .counts
            .iter()
            .map(|(kind, count)| format!("{} {}/{}", kind.counted(), count.done, count.begun))
            .collect();
        if state.received > 0 {
            parts.push(format!("{} received", size(state.received)));
        }
        if state.sent > 0 {
            parts.push(format!("{} sent", size(state.sent)));
        }
        self.total.set_message(parts.join(" · "));
    }
}

impl Observer for Fancy {
    fn on(&self, event: Event<'_>) {
        match event {
            Event::DownloadStarted { name, size } => self.begin(Kind::Download, name, size),
            Event::DownloadAdvanced { name, bytes } => self.advance(Kind::Download, name, bytes),
            Event::DownloadFinished { name } => self.end(Kind::Download, name),
            Event::ConversionStarted { name } => self.begin(Kind::Conversion, name, None),
            Event::ConversionFinished { name } => self.end(Kind::Conversion, name),
            Event::LayerStarted { label } => self.begin(Kind::Layer, label, None),
            Event::LayerFinished { label, .. } => self.end(Kind::Layer, label),
            Event::StepStarted { label } => self.begin(Kind::Step, label, None),
            Event::StepFinished { label } => self.end(Kind::Step, label),
            Event::UploadStarted { name, size } => self.begin(Kind::Upload, name, Some(size)),
            Event::UploadAdvanced { name, bytes } => self.advance(Kind::Upload, name, bytes),
            Event::Uploaded { name } => self.end(Kind::Upload, name),
            Event::StepOutput { label, line } => {
                let Ok(state) = self.state.lock() else { return };
                if let Some(bar) = state.lines.get(&(Kind::Step, label.to_owned())) {
                    bar.set_message(format!("{}: {}", clean(label), clean(line)).replace('\n', " "));
                }
            }
            Event::Warning(_) | Event::Note(_) => {
                if let Some(line) = line(&event, self.colour) {
                    let _ = self.screen.println(line);
                }
            }
            Event::ByteCode { .. }
            | Event::ImageFinished { .. }
            | Event::Mounted { .. }
            | Event::Present { .. }
            | Event::Tagged { .. } => {}
        }
    }
}

impl Drop for Fancy {
    fn drop(&mut self) {
        self.total.finish_and_clear();
        let _ = self.screen.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}
