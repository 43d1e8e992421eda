//! Whether anything still moves, over all requests to a place and whatever is tried again meanwhile.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::parallel::lock;

/// Bytes a second: less is next to nothing. A server that sends one now and then is as good as silent.
const LEAST: u64 = 16 << 10;

/// Bytes for which a service may think a second longer: it copies or hashes what it was sent.
const A_SECOND: u64 = 16 << 20;

/// Looks within a span of patience.
const LOOKS: usize = 4;

/// The pause from which those between attempts double: three of them take about half of a span, and none is longer than 20 s.
pub fn first_pause(span: Duration) -> Duration {
    (span / 30).min(Duration::from_millis(2500))
}

/// Counts what moves to and from a place, and ends work while which nothing does.
#[derive(Debug)]
pub struct Watch {
    patience: Duration,
    bytes: AtomicU64,
    answers: AtomicU64,
    failed: Mutex<Option<String>>,
}

impl Watch {
    /// Nothing has moved yet.
    pub fn new(patience: Duration) -> Watch {
        Watch { patience, bytes: AtomicU64::new(0), answers: AtomicU64::new(0), failed: Mutex::default() }
    }

    /// Bytes came or went.
    pub fn advance(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Something was answered for good, however few its bytes are: who does that is slow and not silent.
    pub fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Something failed and is tried again.
    pub fn failed(&self, why: &str) {
        *lock(&self.failed) = Some(why.to_owned());
    }

    /// What failed last.
    pub fn last_failure(&self) -> Option<String> {
        lock(&self.failed).clone()
    }

    fn count(&self) -> Count {
        Count { bytes: self.bytes.load(Ordering::Relaxed), answers: self.answers.load(Ordering::Relaxed) }
    }

    /// Does work that moves so many bytes. An error says that it was given up, because next to nothing moved for as long as patience
    /// lasts.
    ///
    /// What others move counts as well: where many want to be served, one waits for its turn.
    pub async fn over<T>(&self, bytes: u64, work: impl Future<Output = T>) -> Result<T, String> {
        let more = Duration::from_secs(bytes / A_SECOND);
        let span = self.patience + more;
        let mut work = pin!(work);
        let mut looks = Looks::new(span, self.count());
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(span / LOOKS as u32) => {}
            }
            if looks.finds_silence(self.count()) {
                let and = if more.is_zero() { "" } else { ", and a second for each 16 MiB" };
                return Err(format!("next to nothing moved for {} s (`cache.patience`{and})", span.as_secs()));
            }
        }
    }

    /// The pause from which those between attempts double.
    pub fn first_pause(&self) -> Duration {
        first_pause(self.patience)
    }

    /// Whether one waits as long as a server asks for.
    pub fn waits(&self, asked: Duration) -> bool {
        asked < self.patience
    }
}

/// What moved so far.
#[derive(Debug, Clone, Copy)]
struct Count {
    bytes: u64,
    answers: u64,
}

/// What was counted within the last span.
struct Looks {
    /// Bytes that have to move in a span.
    least: u64,
    /// Oldest first.
    seen: VecDeque<Count>,
}

impl Looks {
    fn new(span: Duration, moved: Count) -> Looks {
        Looks { least: (LEAST as f64 * span.as_secs_f64()) as u64, seen: VecDeque::from([moved]) }
    }

    /// Takes the count down after each part of a span; whether next to nothing came in the last whole one.
    fn finds_silence(&mut self, now: Count) -> bool {
        let is_silent = |then: Count| now.answers == then.answers && now.bytes - then.bytes < self.least;
        self.seen.push_back(now);
        self.seen.len() > LOOKS && self.seen.pop_front().is_some_and(is_silent)
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
            let mut moved = Count { bytes: 5, answers: 7 };
            let mut looks = Looks::new(span, moved);
            (1..1000).find(|at| {
                moved.bytes += moves(*at);
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

    #[test]
    fn who_answers_is_not_silent() {
        let mut moved = Count { bytes: 5, answers: 7 };
        let mut looks = Looks::new(Duration::from_secs(8), moved);
        let ends = (1..1000).find(|at| {
            moved.answers += u64::from(*at <= 20 && at % 4 == 0);
            looks.finds_silence(moved)
        });
        assert_eq!(ends, Some(24), "a span after the last answer");
    }

    fn wait<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("starts").block_on(work)
    }

    const SPAN: Duration = Duration::from_millis(100);

    #[test]
    fn what_others_move_counts() {
        let watch = Watch::new(SPAN);
        let alone = wait(watch.over(0, std::future::pending::<()>()));
        assert!(alone.is_err_and(|why| why.contains("`cache.patience`")));
        for by_answers in [false, true] {
            let watch = Watch::new(SPAN);
            let others = async {
                for _ in 0..60 {
                    tokio::time::sleep(SPAN / 20).await;
                    if by_answers { watch.answered() } else { watch.advance(LEAST) }
                }
            };
            let (sender, turn) = tokio::sync::oneshot::channel();
            let others = async {
                others.await;
                sender.send(()).expect("it still waits");
            };
            let (mine, ()) = wait(async { tokio::join!(watch.over(0, turn), others) });
            assert_eq!(mine, Ok(Ok(())), "three spans later");
        }
    }

    #[test]
    fn who_was_sent_much_may_think_longer() {
        let slow = |bytes| wait(Watch::new(SPAN).over(bytes, async { tokio::time::sleep(5 * SPAN).await }));
        assert!(slow(A_SECOND - 1).is_err());
        assert_eq!(slow(A_SECOND), Ok(()));
        let said = wait(Watch::new(SPAN).over(A_SECOND, std::future::pending::<()>()));
        assert!(said.is_err_and(|why| why.contains(" 1 s ") && why.contains("16 MiB")));
    }

    #[test]
    fn pauses_are_spread_over_the_span() {
        for (span, first) in [(2.0, 0.066), (30.0, 1.0), (86_400.0, 2.5)] {
            let found = first_pause(Duration::from_secs_f64(span)).as_secs_f64();
            assert!((found - first).abs() < 0.001, "{span}: {found}");
        }
    }
}
