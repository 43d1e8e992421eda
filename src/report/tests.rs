use std::io;
use std::sync::{Arc, Mutex};

use indicatif::{ProgressDrawTarget, TermLike};
use layers::Digest;

use super::*;

/// A writer that keeps what was written, each write apart.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<String>>>);

impl Kept {
    fn text(&self) -> String {
        self.0.lock().unwrap().concat()
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().push(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer whose reader has gone.
#[derive(Debug)]
struct Gone;

impl Write for Gone {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

/// A terminal of 140 columns that keeps what it is told; perhaps its reader has gone.
#[derive(Debug, Clone, Default)]
struct Terminal {
    kept: Kept,
    gone: bool,
}

impl Terminal {
    fn told(&self, text: &str) -> io::Result<()> {
        if self.gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.kept.0.lock().unwrap().push(text.to_owned());
        Ok(())
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        140
    }

    fn move_cursor_up(&self, lines: usize) -> io::Result<()> {
        self.told(&format!("<up {lines}>"))
    }

    fn move_cursor_down(&self, lines: usize) -> io::Result<()> {
        self.told(&format!("<down {lines}>"))
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        self.told("")
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        self.told("")
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.told(&format!("{text}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.told(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.told("<clear>")
    }

    fn flush(&self) -> io::Result<()> {
        self.told("")
    }
}

/// Every event, in an order that could happen.
fn all(digest: Digest) -> Vec<Event<'static>> {
    vec![
        Event::Note("trixie: signed Release of 2026-01-01T00:00:00Z"),
        Event::DownloadStarted { name: "bash.deb", size: Some(3_000_000) },
        Event::DownloadAdvanced { name: "bash.deb", bytes: 1_000_000 },
        Event::DownloadAdvanced { name: "bash.deb", bytes: 1_500_000 },
        Event::DownloadAdvanced { name: "bash.deb", bytes: 500_000 },
        Event::DownloadFinished { name: "bash.deb" },
        Event::ConversionStarted { name: "bash.deb" },
        Event::ByteCode { name: "bash.deb", compiled: 2, taken: 40 },
        Event::ConversionFinished { name: "bash.deb" },
        Event::StepStarted { label: "run pip" },
        Event::StepOutput { label: "run pip", line: "hello" },
        Event::StepFinished { label: "run pip" },
        Event::LayerStarted { label: "debian bash" },
        Event::LayerFinished { label: "debian bash", digest, size: 1_234_567 },
        Event::Warning("bash was yanked"),
        Event::ImageFinished { name: "init", digest, cached: false },
        Event::ImageFinished { name: "base", digest, cached: true },
        Event::UploadStarted { name: "layer 1", size: 10 },
        Event::UploadAdvanced { name: "layer 1", bytes: 10 },
        Event::Uploaded { name: "layer 1" },
        Event::Mounted { name: "layer 2", from: "acme/base" },
        Event::Present { name: "layer 3" },
        Event::Tagged { reference: "ghcr.io/acme/init:1", digest },
    ]
}

fn digest() -> Digest {
    Digest::of(b"")
}

const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn plain_lines_are_one_a_step_and_one_write_each() {
    let kept = Kept::default();
    let plain = Plain::new(kept.clone(), false);
    for event in all(digest()) {
        plain.on(event);
    }
    let expected = [
        "trixie: signed Release of 2026-01-01T00:00:00Z",
        "downloaded bash.deb",
        "converted bash.deb",
        "runs run pip",
        "run pip | hello",
        "ran run pip",
        "layer debian bash: EMPTY, 1.23 MB",
        "warning: bash was yanked",
        "built init: EMPTY",
        "uploaded layer 1",
        "mounted layer 2 from acme/base",
        "tagged ghcr.io/acme/init:1: EMPTY",
    ];
    let lines: Vec<String> = kept.0.lock().unwrap().iter().map(|line| line.replace(EMPTY, "EMPTY")).collect();
    assert_eq!(lines, expected.map(|line| format!("{line}\n")));
}

#[test]
fn colours_are_there_only_when_they_are_wanted() {
    let kept = Kept::default();
    Plain::new(kept.clone(), true).on(Event::Warning("x"));
    Plain::new(kept.clone(), false).on(Event::Warning("x"));
    assert_eq!(kept.text(), "\u{1b}[33mwarning\u{1b}[0m: x\nwarning: x\n");
    let screen = |variables: &[(&str, &str)], terminal| {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        let screen = Screen::of(&Environment::new(variables, "/"), terminal).unwrap();
        (screen.terminal, screen.colour)
    };
    assert_eq!(screen(&[], true), (true, true));
    assert_eq!(screen(&[], false), (false, false));
    assert_eq!(screen(&[("NO_COLOR", "1")], true), (true, false));
    assert_eq!(screen(&[("NO_COLOR", "")], true), (true, true));
    assert_eq!(screen(&[("TERM", "dumb")], true), (false, false));
    assert_eq!(screen(&[("CLICOLOR_FORCE", "1")], false), (false, true));
    assert_eq!(screen(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false), (false, false));
}

#[test]
fn quiet_shows_warnings_alone() {
    let kept = Kept::default();
    let quiet = Quiet(Plain::new(kept.clone(), false));
    for event in all(digest()) {
        quiet.on(event);
    }
    assert_eq!(kept.text(), "warning: bash was yanked\n");
}

#[test]
fn json_lines_are_objects_of_the_documented_schema() {
    let kept = Kept::default();
    let json = Json::new(kept.clone());
    for event in all(digest()) {
        json.on(event);
    }
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/progress.md")).unwrap();
    let (_, schema) = text.split_once("## Events").unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for line in kept.text().lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let event = value["event"].as_str().unwrap().to_owned();
        let row = schema.lines().find(|row| row.starts_with(&format!("| `{event}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/progress.md lacks `{event}`"));
        let documented: Vec<&str> =
            row.split('|').nth(2).unwrap().split(',').filter_map(|member| member.split('`').nth(1)).collect();
        let mut members: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        members.retain(|member| *member != "event");
        members.sort_unstable();
        let mut sorted = documented.clone();
        sorted.sort_unstable();
        assert_eq!(members, sorted, "{event}");
        seen.insert(event);
    }
    let documented = schema.lines().filter(|row| row.starts_with("| `")).count();
    assert_eq!(seen.len(), documented, "docs/progress.md has events that do not happen");
}

#[test]
fn json_tells_bytes_in_strides_and_loses_none() {
    let kept = Kept::default();
    let json = Json::new(kept.clone());
    for event in all(digest()) {
        json.on(event);
    }
    let bytes: Vec<u64> = kept
        .text()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|value| value["event"] == "download-advanced")
        .map(|value| value["bytes"].as_u64().unwrap())
        .collect();
    assert_eq!(bytes, [2_500_000, 500_000]);
}

#[test]
fn the_picture_shows_bytes_and_counts_and_is_wiped_off() {
    let terminal = Terminal::default();
    let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal.clone()), 255);
    let fancy = Fancy::on(target, false);
    let events = all(digest());
    for event in &events {
        fancy.on(*event);
        fancy.total.tick();
    }
    fancy.total.force_draw();
    let drawn = terminal.kept.text();
    assert!(drawn.contains("warning: bash was yanked"), "{drawn}");
    assert!(
        drawn.contains(
            "downloads 1/1 · conversions 1/1 · steps 1/1 · layers 1/1 · uploads 1/1 · 3.00 MB received · 10 B sent"
        ),
        "{drawn}"
    );
    drop(fancy);
    let drawn = terminal.kept.text();
    let (_, after) = drawn.rsplit_once("10 B sent").unwrap();
    assert!(after.contains("<clear>"), "{after:?}");
}

#[test]
fn many_things_at_once_take_few_lines() {
    let terminal = Terminal::default();
    let fancy = Fancy::on(ProgressDrawTarget::term_like(Box::new(terminal)), false);
    let names: Vec<String> = (0..500).map(|number| format!("package-{number}.deb")).collect();
    for name in &names {
        fancy.on(Event::DownloadStarted { name, size: None });
    }
    assert_eq!(fancy.state.lock().unwrap().lines.len(), 8);
    for name in &names {
        fancy.on(Event::DownloadFinished { name });
    }
    assert_eq!(fancy.state.lock().unwrap().lines.len(), 0);
}

#[test]
fn nobody_listening_stops_nothing() {
    let terminal = Terminal { gone: true, ..Terminal::default() };
    let observers: [Box<dyn Observer>; 4] = [
        Box::new(Plain::new(Gone, true)),
        Box::new(Json::new(Gone)),
        Box::new(Quiet(Plain::new(Gone, false))),
        Box::new(Fancy::on(ProgressDrawTarget::term_like(Box::new(terminal)), true)),
    ];
    for observer in observers {
        for event in all(digest()) {
            observer.on(event);
        }
    }
}

#[test]
fn what_others_wrote_cannot_steer_the_terminal() {
    let kept = Kept::default();
    Plain::new(kept.clone(), false).on(Event::Warning("yanked: \u{1b}[2J\u{7}\rgone"));
    assert_eq!(kept.text(), "warning: yanked: \u{fffd}[2J\u{fffd}\u{fffd}gone\n");
}

#[test]
fn sizes_have_three_digits() {
    let shown = [0, 999, 1000, 9_994, 12_345, 999_499, 999_500, 1_500_000_000, u64::MAX].map(size);
    assert_eq!(shown, ["0 B", "999 B", "1.00 kB", "9.99 kB", "12.3 kB", "999 kB", "1.00 MB", "1.50 GB", "18446744 TB"]);
}

#[test]
fn progress_is_chosen_by_word() {
    assert_eq!("json".parse(), Ok(Progress::Json));
    assert!("loud".parse::<Progress>().is_err());
}
