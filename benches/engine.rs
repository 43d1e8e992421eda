//! What the inner loops cost: `cargo bench --bench engine [FILTER]`.
//!
//! - `tar`: an archive of 2,000 files (16 MiB) is read.
//! - `fragment`: the same archive, compressed, becomes a fragment and a layer.
//! - `hash`: SHA-256 of 16 MiB.
//! - `key`: the catalogue of this repository is lowered and its images' layers are hashed as JSON.
//! - `context`: 2,000 files of a build context are selected, their digests known.

#![expect(missing_docs, reason = "criterion_group! makes a public function")]

use std::fs;
use std::hint::black_box;
use std::path::PathBuf;

use cache::Store;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use imgbuild::engine::EngineError;
use imgbuild::engine::local::{Given, Local, Subject, Supply};
use imgbuild::engine::run::Commands;
use imgbuild::observe::Silent;
use imgbuild::pin::{Context, StatCache};
use imgbuild::remote::Sources;
use layers::encode::Compression;
use layers::format::Limits;
use layers::format::tar::Reader;
use layers::lock::Lock;
use layers::op::Archive;
use layers::source::{Python, Unpack, fetch, files};
use layers::{Catalogue, Digest, KeyHasher, Platform, Stage, StageId, path};

const FILES: usize = 2_000;
const SIZE: usize = 8 << 10;

/// Text-like bytes, the same each time.
fn content(seed: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b"etaoin shrdlu\n0123"[(state >> 60) as usize]
    };
    (0..SIZE).map(|_| next()).collect()
}

fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for at in 0..FILES {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(SIZE as u64);
        builder.append_data(&mut header, format!("usr/{}/{at}", at % 50), content(at).as_slice()).expect("in memory");
    }
    builder.into_inner().expect("in memory")
}

/// One archive, wherever it is asked for.
struct Shelf(PathBuf);

impl Supply for Shelf {
    fn supply(&self, _: &Archive) -> Result<PathBuf, EngineError> {
        Ok(self.0.clone())
    }

    fn base(&self, image: &str, _: &Digest, _: Platform) -> Result<(), EngineError> {
        unreachable!("no stage here stands on `{image}`")
    }

    fn base_layers(&self, image: &str, _: &[&layers::oci::Descriptor]) -> Result<(), EngineError> {
        unreachable!("no stage here stands on `{image}`")
    }
}

fn tar(criterion: &mut Criterion) {
    let bytes = archive();
    let mut group = criterion.benchmark_group("tar");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("read", |bencher| {
        bencher.iter(|| {
            let mut reader = Reader::new(bytes.as_slice(), &Limits::default());
            let mut entries = 0;
            while let Some(entry) = reader.next().expect("a good archive") {
                black_box(entry);
                entries += 1;
            }
            assert_eq!(entries, FILES);
        });
    });
}

fn fragment(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut packed, &archive()).expect("in memory");
    let packed = packed.finish().expect("in memory");
    let path = folder.path().join("a.tar.gz");
    fs::write(&path, &packed).expect("writes");
    fs::create_dir(folder.path().join("context")).expect("a folder");
    let context = Context::open(&folder.path().join("context"), StatCache::default(), 1).expect("opens");
    let url = "http://nowhere.example/a.tar.gz".to_owned();
    let stage = Stage::scratch().layer(fetch(url, Digest::of(&packed), path!("/")).unpack(Unpack::Tar));
    let plan = Catalogue::new("bench").with("image", stage.image()).plan();
    let lock = Lock::default();
    let top = plan.images["image"].stage;
    let resolved = layers::lower::lower(&plan, top, &lock, Platform::Amd64, &|_| None).expect("nothing is locked");
    let subject = Subject { plan: &plan, lock: &lock, platform: Platform::Amd64 };
    let (supply, nowhere, commands) = (Shelf(path), Sources::default(), Commands::default());
    let mut group = criterion.benchmark_group("fragment");
    group.throughput(Throughput::Bytes((FILES * SIZE) as u64)).sample_size(10);
    group.bench_function("archive to layer", |bencher| {
        let fresh = || tempfile::tempdir_in(folder.path()).expect("a folder");
        let build = |cache: tempfile::TempDir| {
            let store = Store::open_at(cache.path()).expect("opens");
            // The archive itself is verified in the store.
            let mut writer = store.writer().expect("opens");
            std::io::Write::write_all(&mut writer, &packed).expect("writes");
            writer.finish_as(&Digest::of(&packed)).expect("it is what it is");
            let engine = Local::new(Given {
                store: &store,
                observer: &Silent,
                supply: &supply,
                context: &context,
                catalogue_dir: folder.path().into(),
                jobs: 1,
                compression: Compression::default(),
                commands: &commands,
                elsewhere: &nowhere,
            });
            let walked = engine.walk(subject, &resolved, None, &|_| Ok(())).expect("walks");
            let records = engine.assemble(&walked.jobs.iter().collect::<Vec<_>>(), 2, &|_| ()).expect("assembles");
            assert_eq!(records.len(), 1);
            cache
        };
        bencher.iter_batched(fresh, build, BatchSize::PerIteration);
    });
}

fn hash(criterion: &mut Criterion) {
    let bytes = vec![7; 16 << 20];
    let mut group = criterion.benchmark_group("hash");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("SHA-256", |bencher| bencher.iter(|| Digest::of(black_box(&bytes))));
}

fn key(criterion: &mut Criterion) {
    let plan = images::catalogue().plan();
    let text = include_str!("../images/images.lock");
    let lock = Lock::from_text(text).expect("the lock of this repository");
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("images/obelisk");
    let context = Context::open(&folder, StatCache::default(), 1).expect("opens");
    let lock_file = |python: &Python<StageId>| context.lock_digest(python);
    criterion.bench_function("key/four images", |bencher| {
        bencher.iter(|| {
            for image in plan.images.values() {
                let resolved =
                    layers::lower::lower(&plan, image.stage, &lock, Platform::Amd64, &lock_file).expect("locked");
                let mut hasher = KeyHasher::new("bench", 1);
                for op in resolved.layers.iter().flat_map(|layer| layer.ops()) {
                    hasher.field("op", op.to_json());
                }
                black_box(hasher.finish());
            }
        });
    });
}

fn context(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    for at in 0..FILES {
        let path = folder.path().join(format!("src/{}/{at}", at % 50));
        fs::create_dir_all(path.parent().expect("it has one")).expect("a folder");
        fs::write(&path, content(at)).expect("writes");
    }
    // Younger ones would be hashed each time.
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    let store = Store::open_at(&folder.path().join("cache")).expect("opens");
    let open = || Context::open(folder.path(), StatCache::load(&store, folder.path()), 1).expect("opens");
    let all = files("src", path!("/src"));
    let context = open();
    context.select(&all).expect("selects");
    context.save_stats();
    criterion.bench_function("context/2,000 files", |bencher| {
        bencher.iter(|| assert_eq!(open().select(&all).expect("selects").entries.len(), FILES + 50));
    });
}

criterion_group!(engine, tar, fragment, hash, key, context);
criterion_main!(engine);
