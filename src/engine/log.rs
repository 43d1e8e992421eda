//! What a command writes: to those who watch, to a file, and its last lines to the error. Secrets go to none of them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;

use memchr::memmem;

use crate::failpoint::Kept;

/// Lines that an error repeats.
const LAST: usize = 20;
/// Bytes without an end of line that are shown at once.
const LONGEST: usize = 64 << 10;
/// What stands for a secret.
const MASK: &[u8] = b"***";
/// Shorter pieces of a secret are found everywhere by accident.
const SHORTEST: usize = 4;

/// Takes the bytes that a command writes.
pub struct Log<'a> {
    path: PathBuf,
    file: File,
    show: Box<dyn Fn(&str) + 'a>,
    pending: Vec<u8>,
    last: VecDeque<String>,
    secrets: Vec<Vec<u8>>,
    failed: Option<io::Error>,
}

/// What is left of a log.
pub struct Told {
    /// The file that holds all of it.
    pub path: PathBuf,
    /// Its last lines.
    pub last: Vec<String>,
}

impl<'a> Log<'a> {
    /// Writes to a new file at `path`; each line goes to `show`, too. Lines of `secrets` are masked.
    pub fn create(path: PathBuf, secrets: &[&[u8]], show: impl Fn(&str) + 'a) -> io::Result<Log<'a>> {
        // A log that another run writes at this moment stays that run's.
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let file = File::create(&path)?;
        Kept::Log.reach();
        // Output comes line by line, so a secret of several lines is looked for line by line.
        let mut words: Vec<Vec<u8>> = secrets
            .iter()
            .flat_map(|secret| lines(secret))
            .filter(|line| line.len() >= SHORTEST)
            .map(<[u8]>::to_vec)
            .collect();
        words.sort_by_key(|word| std::cmp::Reverse(word.len()));
        let show = Box::new(show);
        Ok(Log { path, file, show, pending: Vec::new(), last: VecDeque::new(), secrets: words, failed: None })
    }

    /// Takes more.
    pub fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                // Moving pictures of downloads begin each picture anew.
                b'\n' | b'\r' => self.line(),
                _ => self.pending.push(byte),
            }
            if self.pending.len() >= LONGEST + self.longest() {
                self.cut();
            }
        }
    }

    /// Bytes of the longest secret.
    fn longest(&self) -> usize {
        self.secrets.first().map_or(0, Vec::len)
    }

    fn line(&mut self) {
        let line = masked(&std::mem::take(&mut self.pending), &self.secrets);
        self.tell(&line);
    }

    /// Shows the start of a line that does not end; what could be the start of a secret waits for its end.
    fn cut(&mut self) {
        let text = masked(&std::mem::take(&mut self.pending), &self.secrets);
        let (now, later) = text.split_at(text.len().saturating_sub(self.longest()));
        self.tell(now);
        self.pending = later.to_vec();
    }

    fn tell(&mut self, line: &[u8]) {
        // Whoever ends a build that hangs finds all lines so far.
        if let Err(error) = self.file.write_all(&[line, b"\n"].concat()) {
            self.failed.get_or_insert(error);
        }
        let text = String::from_utf8_lossy(line);
        if text.trim().is_empty() {
            return;
        }
        (self.show)(&text);
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        self.last.push_back(text.into_owned());
    }

    /// Ends the log. Tells what there is of it, and whether the file holds all.
    pub fn finish(mut self) -> (Told, io::Result<()>) {
        if !self.pending.is_empty() {
            self.line();
        }
        (Told { path: self.path, last: self.last.into() }, self.failed.map_or(Ok(()), Err))
    }
}

/// The lines of a secret.
pub fn lines(secret: &[u8]) -> impl Iterator<Item = &[u8]> {
    secret.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii)
}

fn masked(line: &[u8], secrets: &[Vec<u8>]) -> Vec<u8> {
    let mut line = line.to_vec();
    for secret in secrets {
        if memmem::find(&line, secret).is_none() {
            continue;
        }
        let mut clean = Vec::with_capacity(line.len());
        let mut at = 0;
        for found in memmem::find_iter(&line, secret) {
            clean.extend_from_slice(&line[at..found]);
            clean.extend_from_slice(MASK);
            at = found + secret.len();
        }
        clean.extend_from_slice(&line[at..]);
        line = clean;
    }
    line
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn log(secrets: &[&[u8]], pieces: &[&[u8]]) -> (Vec<String>, String, Vec<String>) {
        let folder = tempfile::tempdir().expect("a folder");
        let shown = RefCell::new(Vec::new());
        let mut log = Log::create(folder.path().join("log"), secrets, |line| shown.borrow_mut().push(line.to_owned()))
            .expect("creates");
        pieces.iter().for_each(|piece| log.write(piece));
        let (told, written) = log.finish();
        written.expect("writes");
        let file = std::fs::read_to_string(told.path).expect("reads");
        (shown.into_inner(), file, told.last)
    }

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let (shown, file, last) = log(&[], &[b"one\ntw", b"o\r", b"three"]);
        assert_eq!(shown, ["one", "two", "three"]);
        assert_eq!((file.as_str(), last), ("one\ntwo\nthree\n", shown));
    }

    #[test]
    fn lines_are_in_the_file_before_its_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let mut log = Log::create(path.clone(), &[], |_| {}).expect("creates");
        log.write(b"one\ntwo\nthr");
        assert_eq!(std::fs::read_to_string(path).expect("reads"), "one\ntwo\n");
    }

    #[test]
    fn the_error_repeats_the_last_lines_alone() {
        let all: String = (0..100).map(|number| format!("{number}\n")).collect();
        let (shown, file, last) = log(&[], &[all.as_bytes()]);
        assert_eq!((shown.len(), file), (100, all));
        assert_eq!((last.len(), last[0].as_str()), (LAST, "80"));
    }

    #[test]
    fn secrets_are_masked_also_where_they_are_cut_or_have_lines() {
        let key: &[u8] = b"-----BEGIN-----\nabcdef\n";
        let (shown, file, _) = log(&[b"hunter22\n", key], &[b"it is hun", b"ter22!\nand abcdef\n"]);
        assert_eq!(shown, ["it is ***!", "and ***"]);
        assert!(!file.contains("hunter22") && !file.contains("abcdef"), "{file}");
        let mut long = vec![b'x'; LONGEST - 3];
        long.extend_from_slice(b"hunter22");
        long.extend_from_slice(&vec![b'y'; LONGEST]);
        assert!(!log(&[b"hunter22"], &[&long]).1.contains("hunter22"));
        let (large, before) = (vec![b's'; LONGEST], vec![b'0'; LONGEST / 2]);
        assert!(!log(&[&large], &[&before, &large, &before]).1.contains('s'));
    }
}
