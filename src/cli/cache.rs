//! `imgbuild cache`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use cache::{Amount, CacheError, Class, Collected, Limits, Store, Waiting};
use clap::{Subcommand, ValueHint};
use serde_json::{Value, json};

use super::build::Format;
use super::common::{self, Invocation, now};
use super::{Stop, print, print_json};
use crate::config::{parse_age, parse_size};
use crate::error::Failure;
use crate::failpoint::Kept;
use crate::ops::cache::collect;
use crate::ops::verify::{self, Refuted, Verified};
use crate::output::aside;
use crate::remote::SigningKey;
use crate::report::size;

/// Show, check and tidy the cache
///
/// The cache holds downloads, fragments, layers and the records that lead to them. All of it can be had again, so nothing
/// here can break a build. `gc`, `verify` and `clear` wait until no build runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild cache info
  imgbuild cache gc --max-size 10GB --max-age 30d
  imgbuild cache export - | ssh ci imgbuild cache import -")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what the cache holds
    Info {
        /// How results are printed
        #[arg(long, value_name = "FORMAT", default_value = "text")]
        format: Format,
    },
    /// Remove what is beyond the limits, least recently used first [default limits: imgbuild.toml's]
    Gc {
        /// Bytes on disk that may stay: 500MB, 20GB, 4GiB
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        max_size: Option<u64>,
        /// Time since the last use: 12h, 30d, 4w
        #[arg(long, value_name = "AGE", value_parser = parse_age)]
        max_age: Option<u64>,
        /// Bytes that must be free in the cache's file system
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        min_free: Option<u64>,
        /// Say what would go, and remove nothing
        #[arg(long)]
        dry_run: bool,
        /// How results are printed
        #[arg(long, value_name = "FORMAT", default_value = "text")]
        format: Format,
    },
    /// Read everything and remove what is damaged, and records that are wrong about layers; the next build makes it again
    ///
    /// Everything but what commands keep is read with all cores. Every layer is unpacked as well: records that name another diff id than it
    /// has are removed. That takes most of the time, a second of a core for about 150 MB of layers. Builds that begin meanwhile wait.
    Verify {
        /// How results are printed
        #[arg(long, value_name = "FORMAT", default_value = "text")]
        format: Format,
    },
    /// Remove everything
    Clear,
    /// Write the cache as a tar file
    Export {
        /// The file, or `-` for stdout
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Leave out what was not used for so long: 12h, 30d, 4w
        #[arg(long, value_name = "AGE", value_parser = parse_age)]
        max_age: Option<u64>,
    },
    /// Make a key to sign records with for caches elsewhere, and print the one that others trust
    Key {
        /// The new file for the key, which only its owner may read (`cache.signing-key`)
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Take what `export` wrote, every byte verified; whoever wrote the file is trusted to have built what its records say
    Import {
        /// The file, or `-` for stdin
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
}

/// Writes a new signing key; prints its public half.
fn key(path: &Path) -> Result<(), Stop> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let (text, key) = SigningKey::generate().map_err(Failure::work)?;
    let failed = |error: io::Error| Failure::work(format!("`{}` cannot be written: {error}", path.display()));
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(format!("{text}\n").as_bytes()).map_err(failed)?;
    print(&format!("{}\n", key.public()))
}

pub(crate) fn run(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    // Nothing is made here: a folder whose name is mistyped would look like a cache that is empty.
    let open = || {
        let config = invocation.config()?;
        let store = Store::found_at(&config.cache_dir(invocation.globals.cache_dir.as_deref())?);
        Ok::<_, Stop>((config, store))
    };
    match args.command {
        Command::Info { format } => {
            let (config, store) = open()?;
            is_there(&store)?;
            info(&store, &config.cache_limits()?.into(), format)
        }
        Command::Gc { max_size, max_age, min_free, dry_run, format } => {
            let (config, store) = open()?;
            let given = Limits { max_size, max_age, min_free };
            let limits = if given.none() { config.cache_limits()?.into() } else { given };
            let collected = match is_there(&store)? {
                true if dry_run => store.would_collect(&limits, now())?,
                true => collect(&store, &collector(&store)?, &limits, now())?,
                false => Collected::default(),
            };
            show(&collected, dry_run, format)
        }
        Command::Verify { format } => {
            let (config, store) = open()?;
            let jobs = config.jobs(invocation.globals.jobs.map(usize::from))?;
            let verified = match is_there(&store)? {
                true => verify::verify(&store, &collector(&store)?, jobs)?,
                false => Verified::default(),
            };
            show_verified(&verified, format)
        }
        Command::Key { file } => key(&file),
        Command::Clear => {
            let (_, store) = open()?;
            let collected = match is_there(&store)? {
                true => collect(&store, &collector(&store)?, &Limits::NOTHING, now())?,
                false => Collected::default(),
            };
            show(&collected, false, Format::Text)
        }
        Command::Export { file, max_age } => {
            let (_, store) = open()?;
            // In the place of the last export there would be one of nothing.
            if !store.is_there()? {
                return Err(Failure::work(none_at(&store)).hint(NAMED).into());
            }
            let since = max_age.map_or(i64::MIN, |age| now().saturating_sub(i64::try_from(age).unwrap_or(i64::MAX)));
            let amount = export(&store, &file, since)?;
            note(&format!("exported {}", amount_text(&amount)));
            Ok(())
        }
        Command::Import { file } => {
            // The import itself keeps collectors away.
            let kept = common::Kept::open(invocation, &invocation.config()?, false)?;
            let imported = import(kept.store(), &file)?;
            kept.close();
            note(&format!("imported {}, {} were known", amount_text(&imported.added), imported.known));
            if imported.refused == 0 {
                return Ok(());
            }
            let message =
                format!("{} entries of the file are not what their names say and were left out", imported.refused);
            Err(Failure::work(message).hint("export the cache again").into())
        }
    }
}

/// How a cache's folder is named.
const NAMED: &str =
    "the first build makes it; `--cache-dir`, IMGBUILD_CACHE_DIR or `cache-dir` in imgbuild.toml names another folder";

fn none_at(store: &Store) -> String {
    format!("there is no cache in `{}`", store.root().display())
}

fn collector(store: &Store) -> Result<cache::Collector<'_>, Stop> {
    if let Some(collector) = store.collector(Waiting::No)? {
        if !collector.is_alone() && collector.may_write() {
            note("the file system of the cache has no locks: this is safe only while nothing builds");
        }
        return Ok(collector);
    }
    note("waiting until no build runs");
    store.collector(Waiting::Yes)?.ok_or_else(|| Failure::work("the cache cannot be locked").into())
}

fn note(text: &str) {
    // Where stderr is closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Whether there is a cache; says that there is none. That is no error: scripts tidy caches that are not there yet.
fn is_there(store: &Store) -> Result<bool, Stop> {
    let is_there = store.is_there()?;
    if !is_there {
        note(&format!("{}: {NAMED}", none_at(store)));
    }
    Ok(is_there)
}

fn name(class: Class) -> &'static str {
    match class {
        Class::OtherVersion => "other versions",
        Class::Partial => "incomplete downloads",
        Class::Stats => "digests of contexts' files",
        Class::Command => "logs and caches of commands",
        Class::Archive => "archives",
        Class::Fragment => "fragments",
        Class::Layer => "layers",
        Class::Record => "records",
    }
}

fn amount_text(amount: &Amount) -> String {
    let entries = if amount.count == 1 { "entry" } else { "entries" };
    format!("{} {entries}, {}", amount.count, size(amount.bytes))
}

fn classes(amounts: &std::collections::BTreeMap<Class, Amount>) -> Value {
    let member = |(class, amount): (&Class, &Amount)| {
        let key = match class {
            Class::OtherVersion => "otherVersions",
            Class::Partial => "partial",
            Class::Stats => "stats",
            Class::Command => "commands",
            Class::Archive => "archives",
            Class::Fragment => "fragments",
            Class::Layer => "layers",
            Class::Record => "records",
        };
        (key.to_owned(), json!({ "count": amount.count, "bytes": amount.bytes }))
    };
    Value::Object(amounts.iter().map(member).collect())
}

fn info(store: &Store, limits: &Limits, format: Format) -> Result<(), Stop> {
    let contents = store.contents()?;
    if format == Format::Json {
        return print_json(&json!({
            "version": 1,
            "path": store.root(),
            "total": contents.total,
            "free": contents.free,
            "maxSize": limits.max_size,
            "maxAge": limits.max_age,
            "minFree": limits.min_free,
            "classes": classes(&contents.classes),
        }));
    }
    let mut text = format!("{}\n", store.root().display());
    for (class, amount) in contents.classes.iter().rev() {
        let _ = writeln!(text, "  {:>9}  {:>6}  {}", size(amount.bytes), amount.count, name(*class));
    }
    let most = limits.max_size.map_or(String::new(), |most| format!(" of {}", size(most)));
    let _ = writeln!(text, "  {:>9}{most} in all, {} free on the disk", size(contents.total), size(contents.free));
    print(&text)
}

fn show(collected: &Collected, dry_run: bool, format: Format) -> Result<(), Stop> {
    if format == Format::Json {
        return print_json(&json!({
            "version": 1,
            "dryRun": dry_run,
            "removed": classes(&collected.removed),
            "leftovers": { "count": collected.leftovers.count, "bytes": collected.leftovers.bytes },
            "kept": collected.kept,
            "others": collected.others,
        }));
    }
    let mut text = String::new();
    let verb = if dry_run { "would remove" } else { "removed" };
    for (class, amount) in &collected.removed {
        let _ = writeln!(text, "{verb} {:>9}  {:>6}  {}", size(amount.bytes), amount.count, name(*class));
    }
    if collected.leftovers.count > 0 {
        let amount = &collected.leftovers;
        let _ = writeln!(text, "{verb} {:>9}  {:>6}  leftovers of killed builds", size(amount.bytes), amount.count);
    }
    let _ = writeln!(text, "{} stay", size(collected.kept));
    if collected.others > 0 {
        let _ = writeln!(text, "{} in its folder are not imgbuild's", size(collected.others));
    }
    print(&text)
}

fn show_verified(verified: &Verified, format: Format) -> Result<(), Stop> {
    let Verified { blobs, records, layers, refuted } = verified;
    let unread: Vec<String> = records.unread.iter().chain(&blobs.unread).map(ToString::to_string).collect();
    if format == Format::Json {
        let refuted = refuted.iter().map(|it| json!({ "layer": it.layer, "recorded": it.recorded, "found": it.found }));
        print_json(&json!({
            "version": 1,
            "blobs": blobs.read,
            "damaged": blobs.damaged,
            "records": records.read,
            "damagedRecords": records.damaged.len(),
            "layers": layers,
            "wrongDiffIds": refuted.collect::<Vec<_>>(),
            "unread": unread,
        }))?;
    } else {
        let mut text = format!("{} blobs and {} records read, {layers} layers unpacked\n", blobs.read, records.read);
        for digest in &blobs.damaged {
            let _ = writeln!(text, "removed {digest}: its bytes had changed");
        }
        if !records.damaged.is_empty() {
            let _ = writeln!(text, "removed {} damaged records", records.damaged.len());
        }
        for Refuted { layer, recorded, found } in refuted {
            let found = found.map_or_else(|| "cannot be unpacked".into(), |found| format!("has the diff id {found}"));
            let _ = writeln!(text, "removed the records of layer {layer} with the diff id {recorded}: it {found}");
        }
        print(&text)?;
    }
    match unread.as_slice() {
        [] => Ok(()),
        [one] => Err(Failure::work(one).into()),
        [first, others @ ..] => Err(Failure::work(format!("{first}, and {} more", others.len())).into()),
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Failure + '_ {
    move |error| Failure::work(format!("`{}`: {error}", path.display()))
}

fn export(store: &Store, path: &Path, since: i64) -> Result<Amount, Stop> {
    let finish = |done: Result<Amount, CacheError>| match done {
        Err(CacheError::Archive { source }) if source.kind() == io::ErrorKind::BrokenPipe => Err(Stop::Closed),
        done => Ok(done?),
    };
    if path == Path::new("-") {
        return finish(store.export(&mut io::stdout().lock(), since));
    }
    // A device or a pipe is written to; what a link leads to is the file that is meant.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return finish(store.export(&mut BufWriter::new(File::create(path).map_err(failed(path))?), since));
    }
    // Whoever has an export keeps it until there is another one, whole: but where nothing can be put beside it, or in its place.
    let aside = match aside::begin(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path.exists() || is_mounted(path) => {
            let file = File::create(path).map_err(failed(path))?;
            return finish(store.export(&mut BufWriter::new(file), since));
        }
        aside => aside.map_err(failed(path))?,
    };
    let mut out = BufWriter::with_capacity(256 << 10, aside);
    let amount = finish(store.export(&mut out, since))?;
    let file = out.into_inner().map_err(|error| failed(path)(error.into_error()))?;
    if let Ok(there) = fs::metadata(path) {
        file.as_file().set_permissions(there.permissions()).map_err(failed(path))?;
    }
    Kept::ArchiveWritten.reach();
    file.persist(path).map_err(|error| failed(path)(error.error))?;
    Kept::ArchiveSettled.reach();
    Ok(amount)
}

/// Whether a file is on another file system than its folder, as one that was mounted into a container.
fn is_mounted(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    let folder = path.parent().and_then(device);
    device(path).zip(folder).is_some_and(|(file, folder)| file != folder)
}

fn import(store: &Store, path: &Path) -> Result<cache::Imported, Stop> {
    let mut input: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::with_capacity(256 << 10, File::open(path).map_err(failed(path))?))
    };
    Ok(store.import(&mut input)?)
}
