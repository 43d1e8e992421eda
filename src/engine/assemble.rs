//! The third phase: layers that the ledger does not know, concatenated and hashed, all cores at once; and what is done where the bytes that they
//! are made of have changed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use layers::encode::{EncodeError, LayerWriter, Member, Source};
use layers::{Digest, Key};

use super::EngineError;
use super::local::{KeptLayer, LayerJob, LayerRecord, Local, Ready};
use crate::observe::Event;
use crate::parallel::{in_parallel, lock};

impl Local<'_> {
    /// Finds or assembles the layers of all jobs with so many threads; equal keys once. `ready` hears of those that are made.
    pub fn assemble(
        &self,
        jobs: &[&LayerJob],
        threads: usize,
        ready: &Ready<'_>,
    ) -> Result<HashMap<Key, LayerRecord>, EngineError> {
        let mut records = HashMap::new();
        let mut missing: BTreeMap<Key, &LayerJob> = BTreeMap::new();
        for job in jobs {
            if let Some(record) = &job.made {
                records.insert(job.key, record.clone());
                missing.remove(&job.key);
            }
            if records.contains_key(&job.key) || missing.contains_key(&job.key) {
                continue;
            }
            match self.find_layer(&job.key)? {
                Some(record) => {
                    records.insert(job.key, record);
                }
                None => match self.elsewhere.layer(&job.key) {
                    Some(record) if self.elsewhere.holds(&record.digest) => {
                        self.store.keep(&job.key, &job.text, &record)?;
                        records.insert(job.key, record);
                    }
                    _ => {
                        missing.insert(job.key, job);
                    }
                },
            }
        }
        let mut missing: Vec<&LayerJob> = missing.into_values().collect();
        missing.sort_by_key(|job| {
            (std::cmp::Reverse(job.fragments.iter().map(|fragment| fragment.layout.tar_size).sum::<u64>()), job.key)
        });
        let made = Mutex::new(&mut records);
        in_parallel(threads, &missing, |job| {
            let _core = self.cores.take();
            // Images that share layers may be at them at the same moment.
            let turn = self.turn(&job.key);
            let _turn = lock(&turn);
            let record = match self.find_layer(&job.key)? {
                Some(record) => record,
                None => self.assemble_one(job, ready)?,
            };
            lock(&made).insert(job.key, record);
            Ok::<(), EngineError>(())
        })?;
        Ok(records)
    }

    /// Reads every fragment that was used, and removes those whose bytes have changed since they were made; says how many.
    /// Called when work failed that should not have: done again, it makes them anew.
    pub fn heal(&self) -> Result<usize, EngineError> {
        let used: Vec<Digest> = lock(&self.used).iter().copied().collect();
        let healed = AtomicUsize::new(0);
        in_parallel(self.jobs, &used, |digest| {
            let is_lost = match self.store.has(digest)? {
                Some(_) => !self.store.verify(digest)?,
                // It is where it always was.
                None => !self.elsewhere.holds(digest),
            };
            if is_lost {
                healed.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), EngineError>(())
        })?;
        // Indexes of what is gone.
        self.forget();
        Ok(healed.into_inner())
    }

    /// Layers that were made before, by their keys: their own records need not be looked up.
    pub fn know_layers(&self, made: &[(Key, LayerRecord)]) {
        lock(&self.layers).extend(made.iter().cloned());
    }

    /// The record of a layer whose bytes are still there.
    pub fn find_layer(&self, key: &Key) -> Result<Option<LayerRecord>, EngineError> {
        let known = lock(&self.layers).get(key).cloned();
        if let Some(record) = known
            && self.store.has(&record.digest)? == Some(record.size)
        {
            return Ok(Some(record));
        }
        let Some(bytes) = self.store.find(key)? else { return Ok(None) };
        let Ok(record) = serde_json::from_slice::<LayerRecord>(&bytes) else { return Ok(None) };
        Ok((self.store.has(&record.digest)? == Some(record.size)).then_some(record))
    }

    fn assemble_one(&self, job: &LayerJob, ready: &Ready<'_>) -> Result<LayerRecord, EngineError> {
        self.observer.on(Event::LayerStarted { label: &job.label });
        let (ahead, cores) = (self.ahead.clone(), self.cores.clone());
        let lend = move || -> Option<Box<dyn Send>> { Some(Box::new((ahead.spare()?, cores.spare()?))) };
        let writer =
            LayerWriter::new(self.store.writer_unhashed()?, self.compression, &job.skeleton)?.with_help(Box::new(lend));
        let sources = job.fragments.iter().map(|fragment| match self.open_here(&fragment.blob)? {
            Some(bytes) => Ok(Source {
                layout: &fragment.layout,
                digest: fragment.blob,
                bytes: Box::new(io::BufReader::with_capacity(256 << 10, bytes)),
                held: self.room.holding().take(&fragment.blob),
            }),
            None => Err(EngineError::from(EncodeError::Damaged("it is gone"))),
        });
        let tar_size = |members: &[Member]| members.iter().map(|member| u64::from(member.tar)).sum();
        let tar_sizes: Vec<u64> = job.fragments.iter().map(|fragment| tar_size(&fragment.layout.members)).collect();
        let (known, last) = self.beginning(job)?;
        let ((), digests, prefixes) = writer.behind(known).finish(&tar_sizes, sources, |out, digest, _| {
            ready(out.finish_as(&digest)?);
            Ok::<_, EngineError>(())
        })?;
        let record = LayerRecord { digest: digests.digest, diff_id: digests.diff_id, size: digests.size };
        if let Some(last) = last {
            self.keep_beginning(job, last, &prefixes)?;
        }
        self.store.keep(&job.key, &job.text, &KeptLayer { record: record.clone(), prefixes })?;
        self.observer.on(Event::LayerFinished { label: &job.label, digest: record.digest, size: record.size });
        Ok(record)
    }
}
