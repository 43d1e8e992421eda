//! The layers of images that have no record yet.
//!
//! ```text
//! missing ─▶ on what is remembered of their lower layers, here or elsewhere ─┐
//!        └─▶ whole: fragments, commands, walk ────────────────────────────────┴─▶ assemble ─▶ record
//! ```

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use cache::Blob;
use layers::Key;
use layers::lock::Lock;
use layers::lower::Resolved;
use layers::op::{LayerPlan, Op};

use super::{Beside, Trouble, Wanted, engine, gone, within_budget};
use crate::engine::EngineError;
use crate::engine::foundation::Cut;
use crate::engine::local::{LayerRecord, Local, Subject, Walked};
use crate::engine::run::{Ran, Repeat};
use crate::error::Failure;
use crate::observe::Event;
use crate::ops::key::{ImageRecord, Keys};
use crate::ops::latest::{Left, leave, left_by_last};
use crate::ops::remote::{self, Made};
use crate::ops::supply::Mirrors;
use crate::ops::{Bench, exchange};
use crate::parallel::{self, at_once, begin, end, in_parallel, unlocked};
use crate::remote::TRANSFERS;

/// Whether what is made may be delivered, asked once; then without a question.
pub(in crate::ops) type Check<'c> = dyn FnMut() -> Result<(), Failure> + Send + 'c;

/// How often work is done once more with what was damaged removed.
const ATTEMPTS: usize = 10;

/// Bytes that are put into a layer in no time.
const QUICK: u64 = 4 << 20;

/// An image that has no record yet.
struct Missing {
    /// Which of those that are wanted.
    at: usize,
    /// Where its stage is cut.
    cut: Option<Cut>,
    /// Whether the layers above the cut are made in no time: of few bytes, and without a command.
    quick: bool,
}

/// Stages that were walked, by the image's place among those that are wanted.
type Walks = HashMap<usize, Walked>;

/// Layers by their keys.
type Records = HashMap<Key, LayerRecord>;

/// Makes the layers of everything that has no record yet.
///
/// `checked` is asked before work that may take long, and at the end.
pub(super) fn make<'b>(
    bench: &'b Bench<'_>,
    lock: &Lock,
    wanted: &mut [Wanted<'_>],
    keys: &mut Keys<'_>,
    checked: &mut Check<'_>,
    beside: &dyn Beside<'b>,
) -> Result<(), Trouble> {
    let mut missing: Vec<Missing> = Vec::new();
    for (at, it) in wanted.iter().enumerate().filter(|(_, it)| it.record.is_none()) {
        let cut = keys.cut(it.platform, &it.resolved)?;
        let copied = cut.as_ref().and_then(|cut| keys.bytes_copied(&it.resolved.layers[cut.at..]));
        let quick = copied.is_some_and(|bytes| bytes <= QUICK);
        missing.push(Missing { at, cut, quick });
    }
    if missing.is_empty() {
        return Ok(());
    }
    // What makes no sense is told before the long work.
    bench.config.mirror_registries()?;
    let supply = Mirrors::new(bench);
    let engine = engine(bench, &supply);
    let (mut attempts, mut is_told) = (0, false);
    let done = loop {
        let exchanged = match missing.as_slice() {
            [Missing { at, cut, .. }] => {
                exchange::make(bench, &mut wanted[*at], cut.as_ref(), &engine, checked, beside)
            }
            _ => Ok(false),
        };
        let made = match exchanged {
            Ok(true) => Ok(()),
            Ok(false) => make_layers(bench, lock, wanted, &missing, &engine, checked, beside),
            Err(trouble) => Err(trouble),
        };
        match made {
            // The next attempt leaves nothing for later: it mends what is wrong, or says what it is.
            Err(Trouble::Engine(_)) if engine.has_failed_later() => {}
            // A fragment that rotted fails in many ways; whatever it was, an attempt with healthy fragments is worth it. It may meet others.
            Err(Trouble::Engine(error))
                if attempts < ATTEMPTS && gone(&error).is_none() && !error.is_of_a_command() && !cache::was_full() =>
            {
                attempts += 1;
                match engine.heal()? {
                    // Another builder may have mended it meanwhile.
                    0 if attempts == 1 && error.is_of_damage() => {}
                    0 => break Err(error.into()),
                    _ if attempts > 1 && !error.is_of_damage() => break Err(error.into()),
                    _ if is_told => {}
                    _ => {
                        is_told = true;
                        bench.observer.on(Event::Note("damaged entries of the cache were removed and are made again"));
                    }
                }
            }
            done => break done,
        }
    };
    engine.end();
    // What the check says explains more than what failed meanwhile.
    checked()?;
    done
}

fn make_layers<'b>(
    bench: &'b Bench<'_>,
    lock: &Lock,
    wanted: &mut [Wanted<'_>],
    missing: &[Missing],
    engine: &Local<'_>,
    checked: &mut Check<'_>,
    beside: &dyn Beside<'b>,
) -> Result<(), Trouble> {
    engine.begin(&[]);
    let mut walked = walk_on_known(bench, lock, wanted, missing, engine, checked, beside)?;
    let whole: Vec<&Missing> = missing.iter().filter(|it| !walked.contains_key(&it.at)).collect();
    let (rest, mut records) = walk_whole(bench, lock, wanted, &whole, engine, checked, beside)?;
    walked.extend(rest);
    for &Missing { at, .. } in missing {
        let done = &walked[&at];
        within_budget(&wanted[at], done.jobs.len(), done.base.as_ref().map(|base| &base.parts))?;
    }
    let jobs = missing.iter().flat_map(|it| &walked[&it.at].jobs);
    let jobs: Vec<_> = jobs.filter(|job| !records.contains_key(&job.key)).collect();
    let only = missing.first().map(|it| wanted[it.at].name).filter(|_| missing.len() == 1);
    let ready = |layer| only.into_iter().for_each(|image| beside.made(image, layer));
    records.extend(engine.assemble(&jobs, bench.jobs, &ready)?);
    for Missing { at, cut, .. } in missing {
        let walked = walked.remove(at).expect("it was walked");
        keep(bench, engine, &mut wanted[*at], cut.as_ref(), &walked, &records)?;
    }
    Ok(())
}

/// Walks the missing images of which so much is remembered, here or elsewhere, that the archives below are not needed; has the fragments of the
/// others brought from elsewhere.
fn walk_on_known<'b>(
    bench: &'b Bench<'_>,
    lock: &Lock,
    wanted: &[Wanted<'_>],
    missing: &[Missing],
    engine: &Local<'_>,
    checked: &mut Check<'_>,
    beside: &dyn Beside<'b>,
) -> Result<Walks, Trouble> {
    let mut walked = Walks::new();
    walk_on_foundations(bench, lock, wanted, missing, engine, &mut walked, checked)?;
    if !bench.elsewhere.is_empty() && walked.len() < missing.len() {
        let bundles: Mutex<HashMap<usize, Blob>> = Mutex::default();
        let rest =
            |walked: &Walks| -> Vec<&Missing> { missing.iter().filter(|it| !walked.contains_key(&it.at)).collect() };
        in_parallel(TRANSFERS, &rest(&walked), |it| {
            if let Some(bundle) = remote::warm(bench, wanted[it.at].name, wanted[it.at].platform, beside)? {
                parallel::lock(&bundles).insert(it.at, bundle);
            }
            Ok::<(), Failure>(())
        })?;
        walk_on_foundations(bench, lock, wanted, missing, engine, &mut walked, checked)?;
        let bundles = unlocked(bundles);
        in_parallel(TRANSFERS, &rest(&walked), |it| {
            bundles.get(&it.at).map_or(Ok(()), |bundle| remote::unpack(bench, bundle))
        })?;
    }
    Ok(walked)
}

/// Walks those of the missing images whose lower layers are remembered well enough.
fn walk_on_foundations(
    bench: &Bench<'_>,
    lock: &Lock,
    wanted: &[Wanted<'_>],
    missing: &[Missing],
    engine: &Local<'_>,
    walked: &mut Walks,
    checked: &mut Check<'_>,
) -> Result<(), Trouble> {
    for Missing { at, cut, quick } in missing {
        let Some(cut) = cut.as_ref().filter(|_| !walked.contains_key(at)) else { continue };
        // A comparison wants every command to be run, and a cache elsewhere is told of all fragments.
        let told = bench.targets.is_none() || bench.elsewhere.bundle(&cut.key).is_some();
        if bench.commands.repeat == Repeat::Compare || !told {
            continue;
        }
        let it = &wanted[*at];
        if !quick {
            checked()?;
        }
        let subject = Subject { plan: &bench.project.plan, lock, platform: it.platform };
        if let Some(done) = engine.walk_on_foundation(subject, &it.resolved, cut)? {
            walked.insert(*at, done);
        }
    }
    Ok(())
}

/// Walks the others from their archives on: converts these, runs the commands that need not wait for all of them meanwhile, and puts layers together
/// beside a walk that waits.
fn walk_whole<'b>(
    bench: &'b Bench<'_>,
    lock: &Lock,
    wanted: &mut [Wanted<'_>],
    whole: &[&Missing],
    engine: &Local<'_>,
    checked: &mut Check<'_>,
    beside: &dyn Beside<'b>,
) -> Result<(Walks, Records), Trouble> {
    // What takes long waits for the check. Where little has to be converted, that goes first: the answer is on its way.
    let mut is_quick = false;
    if !whole.is_empty() {
        let stages: Vec<&Resolved> = whole.iter().map(|it| &wanted[it.at].resolved).collect();
        if let [Missing { at, .. }] = whole {
            let last = left_by_last(bench, wanted[*at].name, wanted[*at].platform)?;
            last.iter().for_each(|last| engine.know_layers(&last.layers));
        }
        is_quick = engine.survey(&stages);
        if !is_quick {
            engine.recall(&stages, bench.jobs);
            checked()?;
        }
    }
    for &&Missing { at, .. } in whole {
        let subject = Subject { plan: &bench.project.plan, lock, platform: wanted[at].platform };
        wanted[at].resolved = engine.settle(subject, &wanted[at].resolved)?;
    }
    let stages: Vec<&Resolved> = whole.iter().map(|it| &wanted[it.at].resolved).collect();
    let subject = |at: usize| Subject { plan: &bench.project.plan, lock, platform: wanted[at].platform };
    let early = engine.early(&whole.iter().map(|it| (subject(it.at), &wanted[it.at].resolved)).collect::<Vec<_>>());
    // Those that may have to wait for a command come last.
    let takes = |it: &&&Missing| {
        let mut ops = wanted[it.at].resolved.layers.iter().flat_map(LayerPlan::ops);
        ops.any(|op| matches!(op, Op::Take(_)))
    };
    let (last, mut in_turn): (Vec<&Missing>, Vec<&Missing>) = whole.iter().partition(takes);
    in_turn.extend(last);
    let walked: Mutex<Walks> = Mutex::default();
    let records: Mutex<Records> = Mutex::default();
    let (left, threads) = (AtomicUsize::new(whole.len()), (bench.jobs / whole.len().max(1)).max(1));
    let walk_one = |Missing { at, cut, .. }: &Missing| -> Result<(), EngineError> {
        let (at, it) = (*at, &wanted[*at]);
        let done = engine.walk(subject(at), &it.resolved, cut.as_ref(), &|done| {
            within_budget(it, done.jobs.len(), done.base.as_ref().map(|base| &base.parts))?;
            // Another image may still be waiting for a command; and one alone need not wait for what the walk still checks.
            if left.fetch_sub(1, Ordering::Relaxed) > 1 || whole.len() == 1 {
                let made = engine
                    .assemble(&done.jobs.iter().collect::<Vec<_>>(), threads, &|layer| beside.made(it.name, layer))?;
                parallel::lock(&records).extend(made);
            }
            Ok(())
        })?;
        parallel::lock(&walked).insert(at, done);
        Ok(())
    };
    let walk = |it: &&Missing| -> Result<(), Infallible> {
        if !engine.has_failed() {
            walk_one(it).unwrap_or_else(|error| engine.abandon(error));
        }
        Ok(())
    };
    engine.begin(&early);
    let mut refused = None;
    std::thread::scope(|scope| {
        // The indexes of all archives, while those that are missing are converted, which is waited for more.
        let recall = || engine.recall(&stages, bench.jobs);
        let recalled = if is_quick { begin(scope, recall) } else { None };
        let ahead = if early.is_empty() { None } else { begin(scope, || engine.run_early(&early)) };
        let early = if ahead.is_some() { early.as_slice() } else { &[] };
        if ahead.is_none() {
            // Nobody waits for commands: each runs where something is taken from its stage.
            engine.begin(early);
        }
        let later = if is_quick { engine.begin_later(scope) } else { None };
        let converted = engine.fragments(&stages, Some(early));
        let may_go_on = converted.map(|()| if is_quick { checked() } else { Ok(()) });
        recalled.map(end);
        match may_go_on {
            Ok(Ok(())) => {
                in_parallel(bench.jobs, &in_turn, walk).unwrap_or_else(|never| match never {});
                engine.settle_later().unwrap_or_else(|error| engine.abandon(error));
            }
            Ok(Err(failure)) => refused = Some(failure),
            Err(error) => engine.abandon(error),
        }
        drop(later);
        ahead.map(end);
    });
    if let Some(failure) = refused {
        return Err(failure.into());
    }
    if let Some(error) = engine.failure() {
        return Err(Trouble::Engine(error));
    }
    Ok((unlocked(walked), unlocked(records)))
}

/// Writes down what an image is made of, for the next build and for caches elsewhere.
fn keep(
    bench: &Bench<'_>,
    engine: &Local<'_>,
    it: &mut Wanted<'_>,
    cut: Option<&Cut>,
    walked: &Walked,
    records: &Records,
) -> Result<(), Trouble> {
    let record = ImageRecord {
        layers: walked.jobs.iter().map(|job| records[&job.key].clone()).collect(),
        commands: commands(walked),
        packages: walked.packages.clone(),
        base: walked.base.as_ref().map(|base| (base.manifest, base.parts.clone())),
        from: None,
    };
    let layers = walked.jobs.iter().map(|job| job.key).zip(record.layers.iter().cloned()).collect();
    let remember = || match cut {
        Some(cut) => engine.remember_foundation(cut, walked, &record.layers),
        None => Ok(()),
    };
    let keep = || it.key.keep(bench.store, &record);
    let (kept, remembered) = at_once(keep, remember);
    remembered?;
    kept?;
    leave(bench, it.name, it.platform, &it.key.key, |last| {
        let last = last.as_ref().and_then(|last| Some((last.layers.as_slice(), last.footprint.as_ref()?)));
        let footprint = engine.footprint(&it.resolved, walked, cut, last)?;
        Ok(Left { key: it.key.key, layers, footprint })
    })?;
    let made = Made {
        name: it.name,
        platform: it.platform,
        key: &it.key.key,
        resolved: &it.resolved,
        walked,
        cut,
        record: &record,
    };
    it.told = remote::publish(bench, engine, &made)?;
    it.record = Some(record);
    Ok(())
}

/// The commands that a stage needed, once each.
fn commands(walked: &Walked) -> Vec<Ran> {
    let all: BTreeSet<&Ran> = walked.jobs.iter().flat_map(|job| &job.ran).collect();
    all.into_iter().cloned().collect()
}
