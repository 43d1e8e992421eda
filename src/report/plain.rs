//! A line for each step that is done: for logs and for those who read with a screen reader.

use std::io::Write;
use std::sync::Mutex;

use super::line;
use crate::observe::{Event, Observer};

/// Writes lines.
#[derive(Debug)]
pub struct Plain<W: Write + Send> {
    out: Mutex<W>,
    colour: bool,
}

impl<W: Write + Send> Plain<W> {
    /// Lines to `out`.
    pub fn new(out: W, colour: bool) -> Plain<W> {
        Plain { out: Mutex::new(out), colour }
    }
}

impl<W: Write + Send> Observer for Plain<W> {
    fn on(&self, event: Event<'_>) {
        let Some(mut line) = line(&event, self.colour) else { return };
        line.push('\n');
        if let Ok(mut out) = self.out.lock() {
            // One write a line, so that lines of two processes do not mix; nobody listening is no reason to stop.
            let _ = out.write_all(line.as_bytes());
        }
    }
}
