//! An image in which archives took the places of others: their layers are made, all others are what they were.

use std::sync::OnceLock;

use layers::Key;

use super::Bench;
use super::build::{Beside, Check, Trouble, Wanted};
use super::key::{ImageRecord, kept_text};
use super::latest::{Left, leave, left_by_last};
use crate::engine::exchange::{Exchange, exchanged};
use crate::engine::foundation::{Cut, carry_foundation};
use crate::engine::local::{LayerJob, Local};
use crate::engine::run::Repeat;
use crate::error::Failure;
use crate::parallel::at_once;

/// Makes such an image. `false` where it is none, or that cannot be said without a walk.
pub(super) fn make<'b>(
    bench: &'b Bench<'_>,
    it: &mut Wanted<'_>,
    cut: Option<&Cut>,
    engine: &Local<'_>,
    checked: &mut Check<'_>,
    beside: &dyn Beside<'b>,
) -> Result<bool, Trouble> {
    let Some(Found { left, record, exchange, from }) = find(bench, it, cut, engine)? else { return Ok(false) };
    let made = std::thread::scope(|scope| {
        let later = engine.begin_later(scope);
        let fragments = engine.new_fragments(&exchange)?;
        let Some(made) = exchange.with(engine, fragments) else {
            return Ok(engine.settle_later().map(|()| None)?);
        };
        // Layers are put together while the registry answers, and sent once that is known.
        let may = OnceLock::new();
        let send = |layer| {
            if *may.wait() {
                beside.made(it.name, layer);
            }
        };
        let ask = || {
            let refuses = Refuses(&may);
            let answer = checked();
            let _ = refuses.0.set(answer.is_ok());
            answer
        };
        let jobs: Vec<&LayerJob> = made.jobs.iter().map(|(_, job)| job).collect();
        let (assembled, answer) = at_once(|| engine.assemble(&jobs, bench.jobs, &send), ask);
        answer?;
        // Whatever else is wrong may follow from what the checks find.
        engine.settle_later()?;
        let assembled = assembled?;
        drop(later);
        Ok::<_, Trouble>(made.is_linked_alike().then_some((made, assembled)))
    })?;
    let Some((made, assembled)) = made else { return Ok(false) };
    let mut layers = left.layers;
    for (at, job) in &made.jobs {
        layers[*at] = (job.key, assembled[&job.key].clone());
    }
    let record = ImageRecord { layers: layers.iter().map(|(_, layer)| layer.clone()).collect(), from: None, ..record };
    // What the next build finds, and is quicker with.
    let (name, platform, key, cut, kept) =
        (it.name.to_owned(), it.platform, it.key.clone(), cut.cloned(), record.clone());
    beside.later(Box::new(move || {
        let cut = cut.as_ref();
        let remember = || -> Result<(), Failure> {
            if let (Some(from), Some(cut)) = (from, cut) {
                let new = made.jobs.iter().map(|(at, _)| (*at, &layers[*at]));
                carry_foundation(bench.store, &from, cut, new, &made.changed)?;
            }
            let footprint = made.footprint(bench.store, cut)?;
            leave(bench, &name, platform, &key.key, |_| Ok(Left { key: key.key, layers, footprint }))
        };
        let (kept, remembered) = at_once(|| key.keep(bench.store, &kept), remember);
        kept?;
        remembered
    }))?;
    it.record = Some(record);
    Ok(true)
}

/// Refuses what nobody has allowed when it is dropped.
struct Refuses<'m>(&'m OnceLock<bool>);

impl Drop for Refuses<'_> {
    fn drop(&mut self) {
        let _ = self.0.set(false);
    }
}

/// What there is for such an image.
struct Found {
    left: Left,
    /// What the last image came to.
    record: ImageRecord,
    exchange: Exchange,
    /// Where the head of that image's stage is remembered.
    from: Option<Key>,
}

fn find(bench: &Bench<'_>, it: &Wanted<'_>, cut: Option<&Cut>, engine: &Local<'_>) -> Result<Option<Found>, Trouble> {
    // A comparison wants every command to be run, and a cache elsewhere is told of all fragments. What stands on a foundation is
    // made from that.
    let is_told = bench.targets.is_some() || !bench.elsewhere.is_empty();
    let is_on_foundation = || cut.is_some_and(|cut| bench.store.record_path(&cut.key).exists());
    if is_told || bench.commands.repeat == Repeat::Compare || is_on_foundation() {
        return Ok(None);
    }
    let Some(left) = left_by_last(bench, it.name, it.platform)? else { return Ok(None) };
    let Some(footprint) = left.footprint.clone() else { return Ok(None) };
    let Some(recorded) = bench.store.recall(&left.key)? else { return Ok(None) };
    let Ok(record) = serde_json::from_slice::<ImageRecord>(&recorded.record) else { return Ok(None) };
    // Made once more under the same key, it may have come to other layers, where commands do not come to the same each time.
    if !left.layers.iter().map(|(_, layer)| layer).eq(&record.layers) {
        return Ok(None);
    }
    let Some(text) = kept_text(bench.store, &recorded.text)? else { return Ok(None) };
    let Some(archives) = exchanged(&text, &it.key.text()) else { return Ok(None) };
    let is_within_budget = it.resolved.layers.len() <= usize::from(it.image.layer_budget);
    if !is_within_budget || !record.commands.iter().all(|ran| bench.commands.accepts(ran.sandbox)) {
        return Ok(None);
    }
    let exchange = engine.exchange(&it.resolved, &left.layers, &footprint, &archives)?;
    Ok(exchange.map(|exchange| Found { left, record, exchange, from: footprint.cut }))
}
