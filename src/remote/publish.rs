//! What goes out while the build goes on.

use std::collections::BTreeSet;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use cache::{Blob, Store};

use super::{Remote, RemoteError, Sources, TRANSFERS, parts_name};
use crate::parallel::{in_parallel, lock};

/// What a cache is to be sent.
pub enum Job {
    /// Blobs, and a name that keeps them.
    Keep {
        /// The name.
        name: String,
        /// The blobs. Those that are neither here nor there are brought from another cache.
        blobs: Vec<Blob>,
    },
    /// A bundle that was not made here, and its fragments, where they are not there.
    KeepBundle(Blob),
    /// A document, unless something that it leads to did not arrive.
    Tell {
        /// Its names.
        names: Vec<String>,
        /// Its bytes.
        document: Vec<u8>,
        /// The names that keep what it leads to, handed over before.
        needs: Vec<String>,
    },
}

/// Sends documents and their blobs to caches elsewhere, one after another, on a thread of its own.
pub struct Publisher {
    jobs: Sender<Job>,
    /// What waits until it may go.
    held: Mutex<Option<Vec<Job>>>,
    thread: std::io::Result<JoinHandle<Vec<String>>>,
}

/// A cache that is written to.
struct Target {
    /// As people know it.
    label: String,
    remote: Arc<dyn Remote>,
    /// Names of what did not arrive.
    lacking: BTreeSet<String>,
}

impl Publisher {
    /// Starts; `targets` are caches with the names that people know them by, and `elsewhere` those that are read from.
    pub fn start(targets: Vec<(String, Arc<dyn Remote>)>, store: Store, elsewhere: Arc<Sources>) -> Publisher {
        let (jobs, wanted) = channel::<Job>();
        let new = |(label, remote)| Target { label, remote, lacking: BTreeSet::new() };
        let mut targets: Vec<Target> = targets.into_iter().map(new).collect();
        let thread = std::thread::Builder::new().spawn(move || {
            let mut troubles = Vec::new();
            for job in wanted {
                // A cache that failed is left alone: the next document would wait for the same trouble. What rotted here, or went, or cannot be
                // read or written, is none of its faults, and the next one may be whole.
                targets.retain_mut(|target| {
                    let Err(error) = target.send(&job, &store, &elsewhere) else { return true };
                    let (what, goes_on) = match &error {
                        RemoteError::RottedHere(_) | RemoteError::Gone(_) => ("was not told of an image", true),
                        error if error.is_of_this_machine() => {
                            ("was not told of an image, as this machine's own failed", true)
                        }
                        _ => ("was not written", false),
                    };
                    let trouble = format!("the cache `{}` {what}: {error}", target.label);
                    // A disk that is full is full for all images.
                    if !troubles.contains(&trouble) {
                        troubles.push(trouble);
                    }
                    goes_on
                });
            }
            troubles
        });
        Publisher { jobs, held: Mutex::default(), thread }
    }

    /// Hands something over; it goes after what was handed over before.
    pub fn publish(&self, job: Job) {
        // The other side is there until `finish`.
        let _ = self.jobs.send(job);
    }

    /// As [`publish`](Publisher::publish), but not before [`release`](Publisher::release) after [`hold`](Publisher::hold).
    pub fn publish_in_turn(&self, job: Job) {
        match &mut *self.held() {
            Some(held) => held.push(job),
            None => self.publish(job),
        }
    }

    /// From now on what goes in turn waits; what waits already is forgotten.
    pub fn hold(&self) {
        *self.held() = Some(Vec::new());
    }

    /// What waits goes, and nothing waits any more.
    pub fn release(&self) {
        for job in self.held().take().unwrap_or_default() {
            self.publish(job);
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Vec<Job>>> {
        lock(&self.held)
    }

    /// Waits until everything is sent; what went wrong, a line each.
    pub fn finish(self) -> Vec<String> {
        self.release();
        drop(self.jobs);
        match self.thread {
            Ok(thread) => thread.join().unwrap_or_else(|_| vec!["a cache was not written: its thread ended".into()]),
            Err(error) => vec![format!("no cache was written: no thread can be had: {error}")],
        }
    }
}

impl Target {
    fn send(&mut self, job: &Job, store: &Store, elsewhere: &Sources) -> Result<(), RemoteError> {
        let (name, sent) = match job {
            Job::Keep { name, blobs } => (name.clone(), self.keep(name, blobs, store, elsewhere)),
            Job::KeepBundle(bundle) => {
                let name = parts_name(&bundle.digest);
                let sent = self.keep_bundle(&name, bundle, store, elsewhere);
                (name, sent)
            }
            // Why something is lacking has been said.
            Job::Tell { needs, .. } if needs.iter().any(|name| self.lacking.contains(name)) => return Ok(()),
            Job::Tell { names, document, .. } => return self.remote.publish(names, document, &[], store),
        };
        match &sent {
            Ok(()) => self.lacking.remove(&name),
            Err(_) => self.lacking.insert(name),
        };
        sent
    }

    /// Whether it has a blob. It is not asked where it has said so itself.
    fn has(&self, blob: &Blob, elsewhere: &Sources) -> Result<bool, RemoteError> {
        Ok(elsewhere.was_told_by(&self.label, &blob.digest) || self.remote.has(blob)?)
    }

    fn keep(&self, name: &str, blobs: &[Blob], store: &Store, elsewhere: &Sources) -> Result<(), RemoteError> {
        in_parallel(TRANSFERS, blobs, |blob| {
            let is_there = store.has(&blob.digest)? == Some(blob.size)
                || self.has(blob, elsewhere)?
                || elsewhere.bring_in_silence(&blob.digest, store)?;
            if is_there { Ok(()) } else { Err(RemoteError::Gone(blob.digest)) }
        })?;
        self.remote.publish(&[name.to_owned()], &[], blobs, store)
    }

    fn keep_bundle(&self, name: &str, bundle: &Blob, store: &Store, elsewhere: &Sources) -> Result<(), RemoteError> {
        // A document that tells of it came after the name.
        if elsewhere.was_told_by(&self.label, &bundle.digest) || self.remote.keeps(name, bundle)? {
            return Ok(());
        }
        if !elsewhere.bring_in_silence(&bundle.digest, store)? {
            return Err(RemoteError::Gone(bundle.digest));
        }
        let parts = elsewhere.unpack(bundle, store)?;
        // Where the name has it, its fragments are: it goes last.
        let fragments: BTreeSet<_> = parts.fragments.iter().map(|it| (it.blob.digest, it.blob.size)).collect();
        let fragments: Vec<Blob> = fragments.into_iter().map(|(digest, size)| Blob { digest, size }).collect();
        self.keep(name, &fragments, store, elsewhere)?;
        self.keep(name, &[&fragments[..], &[*bundle]].concat(), store, elsewhere)
    }
}
