use super::*;
use crate::ImagePath;
use crate::encode::ahead::IN_FLIGHT;
use crate::encode::{DeflateStream, EPOCH, FragmentWriter, Kind, Lend, TarReader};

fn path(text: &str) -> ImagePath {
    ImagePath::new(text).expect("good path")
}

/// A deflate stream that no compressor here would write: stored blocks (RFC 1951, section 3.2.4).
fn deflated(content: &[u8]) -> (Vec<u8>, DeflateStream) {
    let mut bytes = Vec::new();
    let mut blocks = content.chunks(50_000).peekable();
    while let Some(block) = blocks.next() {
        let length = block.len() as u16;
        bytes.push(u8::from(blocks.peek().is_none()));
        bytes.extend(length.to_le_bytes());
        bytes.extend((!length).to_le_bytes());
        bytes.extend_from_slice(block);
    }
    let crc32 = crc32fast::hash(content);
    let stream = DeflateStream::worthwhile(content.len() as u64, bytes.len() as u64, crc32).expect("large enough");
    (bytes, stream)
}

fn big(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * at % 251) as u8).collect()
}

/// A file of `first` bytes, a hardlink, a symbolic link, a small file behind them, and two transplanted files: one
/// that is inflated as a whole and one that is too large for that.
fn fragment(first: usize) -> (Vec<u8>, FragmentLayout) {
    let mut fragment = FragmentWriter::new(Vec::new());
    let entry = |name: &str, kind| Entry::new(path(name), kind, 0o644, EPOCH);
    let big_file = big(first);
    fragment.add(&entry("/d/a", Kind::File { size: big_file.len() as u64 }), &mut big_file.as_slice()).expect("adds");
    fragment.add(&entry("/d/b", Kind::Hardlink { target: path("/d/a") }), &mut io::empty()).expect("adds");
    fragment.add(&entry("/d/c", Kind::Symlink { target: "a".into() }), &mut io::empty()).expect("adds");
    fragment.add(&entry("/d/z", Kind::File { size: 3 }), &mut b"end".as_slice()).expect("adds");
    for (name, size) in [("/d/d", 20_000), ("/d/e", 5 * MEMBER_SIZE + 512)] {
        let (bytes, stream) = deflated(&big(size));
        fragment
            .transplant(&entry(name, Kind::File { size: size as u64 }), stream, &mut bytes.as_slice())
            .expect("adds");
    }
    fragment.finish().expect("finishes")
}

/// A fragment of 700 small files, the first of which has `first` bytes, and where each entry starts in its tar.
fn many(first: usize) -> (Vec<u8>, FragmentLayout, Vec<u64>) {
    let mut fragment = FragmentWriter::new(Vec::new());
    let starts = (0..700).map(|at| {
        let content = big(if at == 0 { first } else { 3000 + at });
        let kind = Kind::File { size: content.len() as u64 };
        let entry = Entry::new(path(&format!("/d/file{at:03}")), kind, 0o644, EPOCH);
        fragment.add(&entry, &mut content.as_slice()).expect("adds") - 512
    });
    let starts = starts.collect();
    let (bytes, layout) = fragment.finish().expect("finishes");
    (bytes, layout, starts)
}

#[test]
fn batches_end_where_paths_say_so() {
    let (bytes, layout, starts) = many(3000);
    // A change here means: raise LAYER_FORMAT.
    let golden = "sha256:bfb892d075c8b2fe144981757a60a3f580fafcdb52d153b675fb425b31757078";
    assert_eq!(Digest::of(&bytes).to_string(), golden);
    let (mut start, mut by_paths) = (0, 0);
    for member in &layout.members {
        let is_last = start + u64::from(member.tar) == layout.tar_size;
        assert!(member.tar as usize <= MEMBER_SIZE);
        if member.tar as usize != MEMBER_SIZE && !is_last {
            let next = starts.binary_search(&(start + u64::from(member.tar))).expect("it ends between entries");
            let crc = crc32fast::hash(format!("/d/file{next:03}").as_bytes());
            assert!(member.tar as usize >= MEMBER_SIZE / 4 && crc.is_multiple_of(64));
            by_paths += 1;
        }
        start += u64::from(member.tar);
    }
    assert!(by_paths >= 3, "{:?}", layout.members);
    // A file that grew changes what is around it.
    let (other, grown, _) = many(70_000);
    let (one, last) = (layout.members.last().expect("some"), grown.members.last().expect("some"));
    assert_eq!(one, last);
    assert!(bytes[bytes.len() - one.compressed as usize..] == other[other.len() - one.compressed as usize..]);
    let same = |at: usize| layout.members[layout.members.len() - at] == grown.members[grown.members.len() - at];
    assert!((1..layout.members.len() - 1).all(same), "{:?} {:?}", layout.members, grown.members);
}

fn finish<'a, W: Write + Send>(
    layer: LayerWriter<W>,
    tar_sizes: &[u64],
    sources: impl IntoIterator<Item = Source<'a>>,
) -> Result<(W, LayerDigests), EncodeError> {
    let done = layer.finish(tar_sizes, sources.into_iter().map(Ok), |out, _, _| Ok::<_, EncodeError>(out));
    done.map(|(out, digests, _)| (out, digests))
}

fn with<W: Write + Send>(
    layer: LayerWriter<W>,
    layout: &FragmentLayout,
    digest: Digest,
    bytes: &[u8],
) -> Result<(W, LayerDigests), EncodeError> {
    finish(layer, &[layout.tar_size], [Source { layout, digest, bytes: Box::new(bytes), held: HashMap::new() }])
}

fn helped<W: Write + Send>(layer: LayerWriter<W>) -> LayerWriter<W> {
    layer.with_help(Box::new(|| Some(Box::new(()))))
}

fn layer(compression: Compression) -> (Vec<u8>, LayerDigests) {
    let (bytes, layout) = fragment(3 * MEMBER_SIZE + 77);
    let layer =
        LayerWriter::new(Vec::new(), compression, &[Entry::new(path("/d"), Kind::Dir, 0o755, EPOCH)]).expect("starts");
    with(layer, &layout, Digest::of(&bytes), &bytes).expect("finishes")
}

#[test]
fn the_bytes_of_format_4_never_change() {
    // A change here means: raise LAYER_FORMAT, and every user's layers are built and sent anew.
    let (_, digests) = layer(Compression::Gzip);
    assert_eq!(
        (digests.diff_id.to_string(), digests.digest.to_string()),
        (
            "sha256:a54020145bef051181a1779768fa98600c09fa1c78220e31444ee82b2257e7e7".into(),
            "sha256:9f94481b02e40909a0d575e7a423b2bec9e69d67d04b027d2bac2a844eca246a".into()
        )
    );
}

#[test]
fn the_bytes_of_the_other_compressions_never_change_either() {
    let digest = |compression| layer(compression).1.digest.to_string();
    assert_eq!(
        (digest(Compression::GzipSingle), digest(Compression::Zstd)),
        (
            "sha256:5901687764f2497ccb0d12f250bb9c20302bd5053c24daa0c7280b99dbf68655".into(),
            "sha256:dd83871c9f20522b13ecd2f08b33539bf2b10ad5c49298df41cfd9afcc3ae20d".into()
        )
    );
}

#[test]
fn every_compression_holds_the_same_tar() {
    let diff_id = layer(Compression::Gzip).1.diff_id;
    let (single, digests) = layer(Compression::GzipSingle);
    assert_eq!((digests.diff_id, digests.digest, digests.size), (diff_id, Digest::of(&single), single.len() as u64));
    let mut tar = Vec::new();
    // This decoder stops after the first member, as the consumers do for which there is one only.
    flate2::read::GzDecoder::new(single.as_slice()).read_to_end(&mut tar).expect("is gzip");
    assert_eq!(diff_id.0, Digest::of(&tar));
    let (zstd, digests) = layer(Compression::Zstd);
    assert_eq!((digests.diff_id, digests.digest, digests.size), (diff_id, Digest::of(&zstd), zstd.len() as u64));
    assert!(zstd::decode_all(zstd.as_slice()).expect("is zstd") == tar);
}

#[test]
fn digests_are_those_of_the_bytes_and_other_readers_agree() {
    let (bytes, digests) = layer(Compression::Gzip);
    assert_eq!(digests.digest, Digest::of(&bytes));
    assert_eq!(digests.size, bytes.len() as u64);
    let mut tar = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut tar).expect("is gzip");
    assert_eq!(digests.diff_id.0, Digest::of(&tar));
    let mut archive = ::tar::Archive::new(tar.as_slice());
    let names: Vec<String> = archive
        .entries()
        .expect("is tar")
        .map(|entry| entry.expect("readable").path().expect("has a path").display().to_string())
        .collect();
    assert_eq!(names, ["d/", "d/a", "d/b", "d/c", "d/z", "d/d", "d/e"]);
    let mut archive = ::tar::Archive::new(tar.as_slice());
    for (entry, size) in archive.entries().expect("is tar").skip(5).zip([20_000, 5 * MEMBER_SIZE + 512]) {
        let mut content = Vec::new();
        entry.expect("readable").read_to_end(&mut content).expect("readable");
        assert!(content == big(size), "a transplanted file of {size} bytes reads back as it was");
    }
}

#[test]
fn transplanted_streams_are_copied_not_compressed() {
    let content = big(20_000);
    let (stream, _) = deflated(&content);
    let (bytes, _) = fragment(100);
    let at = bytes.windows(stream.len()).position(|window| window == stream).expect("the stream is in the fragment");
    assert_eq!(bytes[at - 10..at - 6], [0x1f, 0x8b, 8, 0]);
}

#[test]
fn every_damaged_byte_and_every_cut_of_a_fragment_is_noticed() {
    let (good, layout) = fragment(100);
    let try_it = |bytes: &[u8], helped_by: fn(LayerWriter<io::Sink>) -> LayerWriter<io::Sink>| {
        let layer = LayerWriter::new(io::sink(), Compression::Gzip, &[]).expect("starts");
        with(helped_by(layer), &layout, Digest::of(&good), bytes).map(drop)
    };
    for helped_by in [|layer| layer, helped] {
        try_it(&good, helped_by).expect("the undamaged fragment is taken");
        // Around the ends of members, where headers and check sums are, and here and there between.
        let mut at = 0;
        let mut places = vec![0, good.len() - 1];
        for member in &layout.members {
            places.extend([at, at + 12]);
            at += member.compressed as usize;
            places.extend([at - 8, at - 1]);
        }
        for at in places {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(matches!(try_it(&bad, helped_by), Err(EncodeError::Damaged(_))), "byte {at}");
            assert!(matches!(try_it(&good[..at], helped_by), Err(EncodeError::Damaged(_))), "cut at {at}");
        }
        let longer = [&good[..], b"x"].concat();
        assert!(matches!(try_it(&longer, helped_by), Err(EncodeError::Damaged(_))));
    }
}

/// The tar of every so many of a fragment's members, as if somebody had it in memory.
fn held(bytes: &[u8], layout: &FragmentLayout, every: usize) -> HashMap<usize, Held> {
    let mut held: HashMap<usize, Held> = HashMap::new();
    let mut rest = bytes;
    for (at, member) in layout.members.iter().enumerate() {
        let mut tar = Vec::new();
        let (packed, behind) = rest.split_at(member.compressed as usize);
        flate2::read::GzDecoder::new(packed).read_to_end(&mut tar).expect("is gzip");
        if at % every == 0 {
            held.insert(at, Box::new(tar));
        }
        rest = behind;
    }
    held
}

#[test]
fn what_is_held_is_not_inflated_but_its_bytes_are_compared() {
    let (good, layout) = fragment(3 * MEMBER_SIZE);
    let try_it = |bytes: &[u8], held: HashMap<usize, Held>| {
        let layer = LayerWriter::new(Vec::new(), Compression::Gzip, &[]).expect("starts");
        let source = Source { layout: &layout, digest: Digest::of(&good), bytes: Box::new(bytes), held };
        finish(layer, &[layout.tar_size], [source])
    };
    let (bytes, digests) = try_it(&good, HashMap::new()).expect("is good");
    assert!(try_it(&good, held(&good, &layout, 1)).expect("is good") == (bytes, digests));
    let mut bad = good.clone();
    bad[20] ^= 1;
    assert!(matches!(try_it(&bad, held(&good, &layout, 1)), Err(EncodeError::Damaged(_))));
    assert!(matches!(try_it(&good[..good.len() - 1], held(&good, &layout, 1)), Err(EncodeError::Damaged(_))));
    // Tar of another length is nobody's.
    let mut others = held(&good, &layout, 1);
    others.insert(1, Box::new(vec![0; 5]));
    assert!(try_it(&good, others).expect("is good").1 == digests);
}

#[test]
fn a_second_core_that_inflates_changes_no_byte() {
    // Small fragments between large ones, more tar than may be in flight, and a member that is too large for that.
    let mut fragments: Vec<_> = [100, 3 * MEMBER_SIZE + 77, 5, 30 * MEMBER_SIZE].map(fragment).into();
    let mut huge = FragmentWriter::new(Vec::new());
    for (name, size) in [("/h/a", 20_000), ("/h/b", IN_FLIGHT), ("/h/c", 30_000)] {
        let (bytes, stream) = deflated(&big(size));
        let entry = Entry::new(path(name), Kind::File { size: size as u64 }, 0o644, EPOCH);
        huge.transplant(&entry, stream, &mut bytes.as_slice()).expect("adds");
    }
    fragments.insert(3, huge.finish().expect("finishes"));
    let sizes: Vec<u64> = fragments.iter().map(|(_, layout)| layout.tar_size).collect();
    for compression in [Compression::Gzip, Compression::GzipSingle, Compression::Zstd] {
        let write = |lend: Option<Lend>, every: Option<usize>| {
            let mut layer = LayerWriter::new(Vec::new(), compression, &[]).expect("starts");
            if let Some(lend) = lend {
                layer = layer.with_help(lend);
            }
            let sources = fragments.iter().map(|(bytes, layout)| {
                let bytes = bytes.as_slice();
                let held = every.map_or_else(HashMap::new, |every| held(bytes, layout, every));
                Source { layout, digest: Digest::of(bytes), bytes: Box::new(bytes), held }
            });
            finish(layer, &sizes, sources).expect("finishes")
        };
        let alone = write(None, None);
        for every in [None, Some(1), Some(2), Some(5)] {
            assert!(write(Some(Box::new(|| Some(Box::new(())))), every) == alone, "{compression}, {every:?}");
            assert!(write(Some(Box::new(|| None)), every) == alone, "{compression}, {every:?}");
        }
    }
}

#[test]
fn a_layer_that_begins_as_another_is_hashed_from_where_it_goes_on() {
    let mut fragments: Vec<_> = [100, 3 * MEMBER_SIZE + 77, 5, 70_000].map(fragment).into();
    fragments.insert(2, FragmentWriter::new(Vec::new()).finish().expect("holds nothing"));
    let write = |compression, fragments: &[(Vec<u8>, FragmentLayout)], digests: &[Digest], known: &Prefixes| {
        let dirs = [Entry::new(path("/d"), Kind::Dir, 0o755, EPOCH)];
        let layer = LayerWriter::new(Vec::new(), compression, &dirs).expect("starts").behind(known.clone());
        let sizes: Vec<u64> = fragments.iter().map(|(_, layout)| layout.tar_size).collect();
        let sources = fragments.iter().zip(digests).map(|((bytes, layout), digest)| {
            Ok(Source { layout, digest: *digest, bytes: Box::new(bytes.as_slice()), held: HashMap::new() })
        });
        layer.finish(&sizes, sources, |out, _, _| Ok::<_, EncodeError>(out))
    };
    let digests = |fragments: &[(Vec<u8>, FragmentLayout)]| -> Vec<Digest> {
        fragments.iter().map(|(bytes, _)| Digest::of(bytes)).collect()
    };
    for compression in [Compression::Gzip, Compression::GzipSingle, Compression::Zstd] {
        let (_, _, prefixes) =
            write(compression, &fragments, &digests(&fragments), &Prefixes::default()).expect("is good");
        assert_eq!(prefixes.len(), fragments.len() - 1);
        for place in 0..fragments.len() {
            let mut others = fragments.clone();
            others[place] = fragment(200_000 + place);
            let mut known = prefixes.clone();
            known.truncate(place);
            let anew = write(compression, &others, &digests(&others), &Prefixes::default()).expect("is good");
            assert!(write(compression, &others, &digests(&others), &known).expect("is good") == anew, "{place}");
        }
    }
    // What is not inflated is compared all the same; and what nothing is known behind is hashed from its beginning.
    let good = digests(&fragments);
    let (layer, names, prefixes) = write(Compression::Gzip, &fragments, &good, &Prefixes::default()).expect("is good");
    for damage in [
        |bytes: &mut Vec<u8>| bytes[20] ^= 1,
        |bytes: &mut Vec<u8>| bytes.truncate(99),
        |bytes: &mut Vec<u8>| bytes.push(0),
    ] {
        let mut damaged = fragments.clone();
        damage(&mut damaged[1].0);
        let told = write(Compression::Gzip, &damaged, &good, &prefixes);
        assert!(matches!(told, Err(EncodeError::Damaged(_))));
    }
    let too_many = write(Compression::Gzip, &fragments[..2], &good[..2], &prefixes).expect("is good");
    let none = write(Compression::Gzip, &fragments[..2], &good[..2], &Prefixes::default()).expect("is good");
    assert!(too_many == none);
    let all = write(Compression::Gzip, &fragments, &good, &prefixes).expect("is good");
    assert!(all == (layer, names, prefixes));
}

#[test]
fn what_is_wrong_with_a_later_fragment_is_told_and_the_second_core_let_go() {
    let (bytes, layout) = fragment(3 * MEMBER_SIZE);
    let layer = || helped(LayerWriter::new(io::sink(), Compression::Gzip, &[]).expect("starts"));
    let good = || Source {
        layout: &layout,
        digest: Digest::of(&bytes),
        bytes: Box::new(bytes.as_slice()),
        held: HashMap::new(),
    };
    let sources = [Ok(good()), Err(EncodeError::Damaged("it is gone"))];
    let never = |_, _, _| -> Result<(), EncodeError> { panic!("it is not complete") };
    let told = layer().finish(&[layout.tar_size; 2], sources.into_iter(), never);
    assert!(matches!(told, Err(EncodeError::Damaged("it is gone"))));
    // Who takes the packed layer may fail, too.
    let fails = |_, _, _| -> Result<(), EncodeError> { Err(EncodeError::Damaged("the disk is full")) };
    let told = layer().finish(&[layout.tar_size], [Ok(good())].into_iter(), fails);
    assert!(matches!(told, Err(EncodeError::Damaged("the disk is full"))));
}

#[test]
fn the_packed_layer_is_known_by_the_digest_that_it_ends_with() {
    let (bytes, layout) = fragment(3 * MEMBER_SIZE);
    for compression in [Compression::Gzip, Compression::GzipSingle, Compression::Zstd] {
        let source =
            Source { layout: &layout, digest: Digest::of(&bytes), bytes: Box::new(&*bytes), held: HashMap::new() };
        let layer = LayerWriter::new(Vec::new(), compression, &[]).expect("starts");
        let packed = |out: Vec<u8>, digest, size| {
            assert_eq!((Digest::of(&out), out.len() as u64), (digest, size));
            Ok::<_, EncodeError>((digest, size))
        };
        let (said, digests, _) = layer.finish(&[layout.tar_size], [Ok(source)].into_iter(), packed).expect("finishes");
        assert_eq!(said, (digests.digest, digests.size));
    }
}

#[test]
fn a_reader_needs_no_more_memory_for_a_large_member() {
    let (bytes, layout) = fragment(3 * MEMBER_SIZE + 77);
    let mut reader = TarReader::new(bytes.as_slice(), layout.members.iter().copied());
    let mut total = 0;
    loop {
        let held = reader.fill_buf().expect("reads").len();
        if held == 0 {
            break;
        }
        assert!(held <= 4 << 20, "{held} bytes at once");
        reader.consume(held);
        total += held as u64;
    }
    assert_eq!(total, layout.tar_size);
}

#[test]
fn a_second_core_changes_no_byte() {
    let file = |name: String, size: usize| Entry::new(path(&name), Kind::File { size: size as u64 }, 0o644, EPOCH);
    let (packed, stream) = deflated(&big(20_000));
    let write = |lend: Option<Lend>| {
        let mut fragment = FragmentWriter::new(Vec::new());
        if let Some(lend) = lend {
            fragment = fragment.with_help(lend);
        }
        let mut starts = Vec::new();
        for at in 0..40 {
            let content = big(1_000 + at * 14_000);
            starts
                .push(fragment.add(&file(format!("/f{at:02}"), content.len()), &mut content.as_slice()).expect("adds"));
        }
        for name in ["/g", "/h"] {
            let entry = file(name.into(), 20_000);
            let made = fragment.transplant(&entry, stream, &mut packed.as_slice()).expect("adds");
            assert_eq!(made.packed_crc32, crc32fast::hash(&packed));
            starts.push(made.offset);
        }
        let (bytes, layout) = fragment.finish().expect("finishes");
        (bytes, layout, starts)
    };
    let alone = write(None);
    let lent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for every in [1, 3] {
        let asked = lent.clone();
        let lend = move || {
            let count = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            count.is_multiple_of(every).then(|| Box::new(()) as Box<dyn Send>)
        };
        assert!(write(Some(Box::new(lend))) == alone);
    }
    assert!(lent.load(std::sync::atomic::Ordering::Relaxed) > 4, "a core was asked for");
    assert!(write(Some(Box::new(|| None))) == alone);
}

#[test]
fn a_keeper_gets_the_tar_of_what_is_compressed_here() {
    for lend in [true, false] {
        let (kept, shown) = (std::rc::Rc::new(std::cell::RefCell::new(HashMap::new())), 0);
        let (keeper, mut shown) = (kept.clone(), shown);
        let keep = move |at: usize, tar: Vec<u8>| {
            shown += 1;
            if shown % 3 == 0 {
                return Some(tar);
            }
            keeper.borrow_mut().insert(at, tar);
            None
        };
        let mut fragment = FragmentWriter::new(Vec::new()).with_keeper(Box::new(keep));
        if lend {
            fragment = fragment.with_help(Box::new(|| Some(Box::new(()))));
        }
        let content = big(9 * MEMBER_SIZE + 5);
        let entry = Entry::new(path("/a"), Kind::File { size: content.len() as u64 }, 0o644, EPOCH);
        fragment.add(&entry, &mut content.as_slice()).expect("adds");
        let (packed, stream) = deflated(&big(20_000));
        let entry = Entry::new(path("/b"), Kind::File { size: 20_000 }, 0o644, EPOCH);
        let made = fragment.transplant(&entry, stream, &mut packed.as_slice()).expect("adds");
        let (bytes, layout) = fragment.finish().expect("finishes");
        let all = held(&bytes, &layout, 1);
        let kept = kept.borrow();
        // The last holds the padding behind the transplanted file.
        assert_eq!((made.member, layout.members.len(), kept.len()), (10, 12, 8));
        assert!(kept.iter().all(|(at, tar)| all[at].tar().expect("is there") == tar));
    }
}

#[test]
fn wrong_entries_are_refused() {
    let file = |name: &str, size| Entry::new(path(name), Kind::File { size }, 0o644, EPOCH);
    let mut fragment = FragmentWriter::new(Vec::new());
    fragment.add(&file("/b", 1), &mut [1u8].as_slice()).expect("adds");
    assert!(matches!(fragment.add(&file("/b", 0), &mut std::io::empty()), Err(EncodeError::Duplicate(_))));
    assert!(matches!(fragment.add(&file("/a", 0), &mut std::io::empty()), Err(EncodeError::Order(_))));
    assert!(matches!(fragment.add(&file("/c", 2), &mut [1u8].as_slice()), Err(EncodeError::Size { found: 1, .. })));
    assert!(matches!(fragment.add(&file("/d", 0), &mut [1u8].as_slice()), Err(EncodeError::Size { found: 1, .. })));
    let link = Entry::new(path("/e"), Kind::Hardlink { target: path("/z") }, 0o644, EPOCH);
    assert!(matches!(fragment.add(&link, &mut std::io::empty()), Err(EncodeError::Hardlink { .. })));
    let dir = Entry::new(path("/f"), Kind::Dir, 0o755, EPOCH);
    assert!(matches!(fragment.add(&dir, &mut std::io::empty()), Err(EncodeError::Directory(_))));
    // What is transplanted starts a second sorted run; a path may be in one of them only.
    let (bytes, stream) = deflated(&big(20_000));
    let mut fragment = FragmentWriter::new(Vec::new());
    let mut transplant = |name, bytes: &[u8]| fragment.transplant(&file(name, 20_000), stream, &mut &*bytes);
    transplant("/b", &bytes).expect("adds");
    assert!(matches!(transplant("/b", &bytes), Err(EncodeError::Duplicate(_))));
    assert!(matches!(transplant("/a", &bytes), Err(EncodeError::Order(_))));
    assert!(matches!(transplant("/c", &bytes[1..]), Err(EncodeError::Stream(_))));
    assert!(matches!(fragment.add(&file("/x", 0), &mut io::empty()), Err(EncodeError::Order(_))));
    assert_eq!(DeflateStream::worthwhile(16_383, 10, 0), None);
    assert_eq!(DeflateStream::worthwhile(1 << 32, 10, 0), None);
}
