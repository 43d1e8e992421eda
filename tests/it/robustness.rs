//! What happens to the program when the world around it is not as it should be.

use std::ffi::OsStr;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use layers::lock::Lock;
use layers::source::{Unpack, fetch};
use layers::{Catalogue, Digest, Stage, path};
use rustix::process::{Pid, Signal, kill_process};

use crate::server::{Answer, Server};
use crate::support::run::{Outcome, Sandbox, binary, interruptible, outcome};

const CONTENT: &[u8] = b"what takes its time";

/// An image with one download from `server`, as a plan in the working directory.
fn plan(sandbox: &Sandbox, server: &Server, unpack: Option<Unpack>, content: &[u8]) -> String {
    let mut source = fetch(server.url("/file").as_str(), Digest::of(content), path!("/srv/file"));
    if let Some(unpack) = unpack {
        source = source.unpack(unpack);
    }
    let catalogue = Catalogue::new("robust").with("image", Stage::scratch().layer(source).image());
    sandbox.write("images.lock", Lock::default().to_text());
    let file = sandbox.write("plan.json", catalogue.plan().to_json());
    file.display().to_string()
}

fn build(sandbox: &Sandbox, plan: &str) -> Command {
    interruptible(&sandbox.command(["--catalogue", plan, "build", "--output", "oci:out", "--progress", "plain"]))
}

/// A server whose first answer waits until it is let go, and a word for each request.
fn waiting() -> (Server, Receiver<()>, std::sync::mpsc::Sender<()>) {
    let (asked, seen) = channel();
    let (go, gate) = channel::<()>();
    let (asked, gate) = (Mutex::new(asked), Mutex::new(gate));
    let server = Server::start(move |_| {
        let _ = asked.lock().unwrap().send(());
        // Ends when the other side is dropped.
        let _ = gate.lock().unwrap().recv();
        Answer::ok(CONTENT)
    });
    (server, seen, go)
}

fn started(mut command: Command, seen: &Receiver<()>) -> Child {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    seen.recv_timeout(Duration::from_secs(120)).expect("it asks for the file");
    child
}

#[test]
fn a_build_that_is_stopped_leaves_no_image_and_the_next_one_succeeds() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::KILL] {
        let sandbox = Sandbox::new();
        let (server, seen, go) = waiting();
        let plan = plan(&sandbox, &server, None, CONTENT);
        let child = started(build(&sandbox, &plan), &seen);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let outcome = Outcome::of(child.wait_with_output().unwrap());
        assert_eq!(outcome.status, 128 + signal.as_raw(), "{outcome:?}");
        assert_eq!(outcome.stdout, "");
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        assert!(!sandbox.work().join("out").exists());
        drop(go);
        let line = Outcome::of(build(&sandbox, &plan).output().unwrap()).success();
        assert!(line.starts_with("image sha256:"), "{line}");
    }
}

#[test]
fn a_closed_stderr_stops_nothing() {
    let sandbox = Sandbox::new();
    let server = Server::start(|_| Answer::ok(CONTENT));
    let plan = plan(&sandbox, &server, None, CONTENT);
    for progress in ["plain", "json", "auto", "quiet"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command =
            sandbox.command(["--catalogue", &plan, "build", "--output", "oci:out", "--progress", progress]);
        let outcome = Outcome::of(command.stdin(Stdio::null()).stderr(writer).output().unwrap());
        assert!(outcome.success().starts_with("image sha256:"), "{progress}");
    }
}

#[test]
fn temporary_files_lie_in_the_cache_and_not_in_a_tmpdir_that_may_be_small_or_gone() {
    let sandbox = Sandbox::new();
    // Larger than what is held in memory, so that it has to go through a file.
    let large = vec![b'x'; 40 << 20];
    let zipped = zip(&large);
    let body = zipped.clone();
    let server = Server::start(move |_| Answer::ok(body.clone()));
    let plan = plan(&sandbox, &server, Some(Unpack::Zip), &zipped);
    let outcome = Outcome::of(build(&sandbox, &plan).env("TMPDIR", "/nonexistent").output().unwrap());
    assert!(outcome.success().starts_with("image sha256:"));
}

#[test]
fn memory_depends_neither_on_the_number_of_archives_nor_on_their_size() {
    let sandbox = Sandbox::new();
    let archives: Vec<Vec<u8>> = (0..8u8).map(|at| zip(&vec![b'a' + at; 23 << 20])).collect();
    let served = archives.clone();
    let server = Server::start(move |request| match request.path.trim_start_matches('/').parse::<usize>() {
        Ok(at) => Answer::ok(served[at].clone()),
        Err(_) => Answer::status(404),
    });
    let stage = archives.iter().enumerate().fold(Stage::scratch(), |stage, (at, archive)| {
        let place = path!("/srv").join(&at.to_string()).unwrap();
        let url = server.url(&format!("/{at}"));
        stage.layer(fetch(url.as_str(), Digest::of(archive), place).unpack(Unpack::Zip))
    });
    sandbox.write("images.lock", Lock::default().to_text());
    let plan = sandbox.write("plan.json", Catalogue::new("large").with("image", stage.image()).plan().to_json());
    // What a process may write to: heap, threads' stacks of 2 MiB each, and buffers. 184 MiB of content are not in it.
    let limited = |words: &mut dyn Iterator<Item = &OsStr>| {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -d 163840 && exec \"$@\"", "sh"]).args(words);
        sandbox.place(&mut command);
        outcome(&mut command)
    };
    // The limit binds.
    let greedy = ["python3", "-c", "bytearray(200 << 20)"].map(OsStr::new);
    limited(&mut greedy.into_iter()).failure(1, &["MemoryError"]);
    let binary = binary();
    let words =
        ["build", "--jobs", "8", "--progress", "plain", "--catalogue", &plan.display().to_string()].map(str::to_owned);
    let done = limited(&mut [binary.as_os_str()].into_iter().chain(words.iter().map(OsStr::new)));
    assert!(done.success().starts_with("image sha256:"));
}

/// A zip archive with one stored file.
fn zip(content: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(content);
    let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 33, 90];
    common.extend(crc.sum().to_le_bytes());
    common.extend((content.len() as u32).to_le_bytes().repeat(2));
    common.extend([1, 0, 0, 0]);
    let mut bytes = [&b"PK\x03\x04"[..], &common, b"a", content].concat();
    let at = bytes.len() as u32;
    let directory = [&b"PK\x01\x02\x14\x03"[..], &common, &[0; 6], &[0, 0, 0xa4, 0x81], &[0; 4], b"a"].concat();
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(at.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

#[test]
fn files_of_others_in_the_cache_folder_are_left_alone_and_do_not_matter() {
    let sandbox = Sandbox::new();
    let server = Server::start(|_| Answer::ok(CONTENT));
    let plan = plan(&sandbox, &server, None, CONTENT);
    for bucket in ["blobs-v1", "ledger-v1", "tmp-v1", "partial-v1", "locks-v1", "blobs-v0", ""] {
        let folder = sandbox.cache().join(bucket);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("note.txt"), "mine").unwrap();
    }
    let first = Outcome::of(build(&sandbox, &plan).output().unwrap()).success();
    assert_eq!(Outcome::of(build(&sandbox, &plan).output().unwrap()).success(), first);
    for words in [["cache", "verify"], ["cache", "info"], ["cache", "gc"]] {
        sandbox.imgbuild(words).success();
    }
    for bucket in ["blobs-v1", "ledger-v1", ""] {
        assert_eq!(fs::read_to_string(sandbox.cache().join(bucket).join("note.txt")).unwrap(), "mine", "{bucket}");
    }
    assert_eq!(server.asked().len(), 1, "the second build asks for nothing");
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let sandbox = Sandbox::new();
    let server = Server::start(|_| Answer::ok(CONTENT));
    let plan = plan(&sandbox, &server, None, CONTENT);
    let file = sandbox.write("a-file", "");
    let place = file.join("cache");
    let outcome = Outcome::of(build(&sandbox, &plan).env("IMGBUILD_CACHE_DIR", &place).output().unwrap());
    outcome.failure(1, &[&place.display().to_string()]);
}
