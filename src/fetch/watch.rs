//! Whether anything still moves, over all requests to a place and whatever is tried again meanwhile.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::observe::{Event, Observer};

/// Bytes a second: less is next to nothing. A server that sends one now and then is as good as silent.
const LEAST: u64 = 16 << 10;

/// Bytes for which a service may think a second longer: it copies or hashes what it was sent.
const A_SECOND: u64 = 16 << 20;

/// Looks within a span of patience.
const LOOKS: usize = 4;

/// Counts what moves to and from a place, and ends work while which nothing does.
#[derive(Debug)]
pub struct Watch {
    patience: Duration,
    moved: AtomicU64,
}

impl Watch {
    /// Nothing has moved yet.
    pub fn new(patience: Duration) -> Watch {
        Watch { patience, moved: AtomicU64::new(0) }
    }

    /// Bytes came or went.
    pub fn advance(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Does work that moves so many bytes. `None`: it was given up, because next to nothing moved for as long as patience lasts.
    ///
    /// What others move counts as well: where many want to be served, one waits for its turn.
    pub async fn over<T>(&self, bytes: u64, work: impl Future<Output = T>) -> Option<T> {
        let span = self.patience + Duration::from_secs(bytes / A_SECOND);
        let mut work = pin!(work);
        let mut looks = Looks::new(span, self.moved.load(Ordering::Relaxed));
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                () = tokio::time::sleep(span / LOOKS as u32) => {}
            }
            if looks.finds_silence(self.moved.load(Ordering::Relaxed)) {
                return None;
            }
        }
    }

    /// What there was no patience for, in words.
    pub fn said(&self) -> String {
        format!("next to nothing moved for {} s (`cache.patience`)", self.patience.as_secs())
    }

    /// No pause between two attempts is longer, so that several fit.
    pub fn longest_pause(&self) -> Duration {
        self.patience / 16
    }

    /// Whether one waits as long as a server asks for.
    pub fn waits(&self, asked: Duration) -> bool {
        asked < self.patience
    }
}

impl Observer for Watch {
    fn on(&self, event: Event<'_>) {
        if let Event::DownloadAdvanced { bytes, .. } | Event::UploadAdvanced { bytes, .. } = event {
            self.advance(bytes);
        }
    }
}

/// What was counted within the last span.
struct Looks {
    /// Bytes that have to move in a span.
    least: u64,
    /// Oldest first.
    seen: VecDeque<u64>,
}

impl Looks {
    fn new(span: Duration, moved: u64) -> Looks {
        Looks { least: (LEAST as f64 * span.as_secs_f64()) as u64, seen: VecDeque::from([moved]) }
    }

    /// Takes the count down after each part of a span; whether next to nothing came in the last whole one.
    fn finds_silence(&mut self, moved: u64) -> bool {
        self.seen.push_back(moved);
        self.seen.len() > LOOKS && self.seen.pop_front().is_some_and(|then| moved - then < self.least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_drops_end_and_slow_lines_go_on() {
        let span = Duration::from_secs(8);
        // The looks after which it ends, where so much comes between two of them.
        let ends = |moves: &mut dyn FnMut(usize) -> u64| {
            let (mut looks, mut moved) = (Looks::new(span, 5), 5);
            (1..1000).find(|at| {
                moved += moves(*at);
                looks.finds_silence(moved)
            })
        };
        assert_eq!(ends(&mut |_| 0), Some(4));
        assert_eq!(ends(&mut |_| 2), Some(4), "a byte each second");
        assert_eq!(ends(&mut |_| 2 * LEAST), None);
        assert_eq!(ends(&mut |_| 2 * LEAST - 1), Some(4));
        assert_eq!(ends(&mut |at| if at % 4 == 0 { 8 * LEAST } else { 0 }), None, "in bursts");
        assert_eq!(ends(&mut |at| if at <= 10 { 100 * LEAST } else { 0 }), Some(14), "then nothing");
    }
}
