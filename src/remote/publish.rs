//! What goes out while the build goes on.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use cache::{Blob, Store};

use super::{Remote, RemoteError};

/// A document on its way.
struct Job {
    names: Vec<String>,
    document: Vec<u8>,
    blobs: Vec<Blob>,
}

/// Sends documents and their blobs to caches elsewhere, one after another, on a thread of its own.
pub struct Publisher {
    jobs: Sender<Job>,
    /// What waits until it may go.
    held: Mutex<Option<Vec<Job>>>,
    thread: JoinHandle<Vec<String>>,
}

impl Publisher {
    /// Starts; `targets` are caches with the names that people know them by.
    pub fn start(targets: Vec<(String, Arc<dyn Remote>)>, store: Store) -> Publisher {
        let (jobs, wanted) = channel::<Job>();
        let thread = std::thread::spawn(move || {
            let mut troubles = Vec::new();
            let mut targets = targets;
            for job in wanted {
                // A cache that failed is left alone: the next document would wait for the same trouble. What rotted here, or went, is
                // none of its faults, and the next one may be whole.
                targets.retain(|(label, remote)| match remote.publish(&job.names, &job.document, &job.blobs, &store) {
                    Ok(()) => true,
                    Err(error @ (RemoteError::RottedHere(_) | RemoteError::Gone(_))) => {
                        troubles.push(format!("the cache `{label}` was not told of an image: {error}"));
                        true
                    }
                    Err(error) => {
                        troubles.push(format!("the cache `{label}` was not written: {error}"));
                        false
                    }
                });
            }
            troubles
        });
        Publisher { jobs, held: Mutex::default(), thread }
    }

    /// Hands over a document and the blobs that are kept by it. Those that were handed over before are there by then, or it is
    /// not sent.
    pub fn publish(&self, names: Vec<String>, document: Vec<u8>, blobs: Vec<Blob>) {
        // The other side is there until `finish`.
        let _ = self.jobs.send(Job { names, document, blobs });
    }

    /// As [`publish`](Publisher::publish), but not before [`release`](Publisher::release) after [`hold`](Publisher::hold).
    pub fn publish_in_turn(&self, names: Vec<String>, document: Vec<u8>, blobs: Vec<Blob>) {
        match &mut *self.held() {
            Some(held) => held.push(Job { names, document, blobs }),
            None => self.publish(names, document, blobs),
        }
    }

    /// From now on what goes in turn waits; what waits already is forgotten.
    pub fn hold(&self) {
        *self.held() = Some(Vec::new());
    }

    /// What waits goes, and nothing waits any more.
    pub fn release(&self) {
        for Job { names, document, blobs } in self.held().take().unwrap_or_default() {
            self.publish(names, document, blobs);
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Vec<Job>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything is sent; what went wrong, a line each.
    pub fn finish(self) -> Vec<String> {
        self.release();
        drop(self.jobs);
        self.thread.join().unwrap_or_else(|_| vec!["a cache was not written: its thread ended".into()])
    }
}
