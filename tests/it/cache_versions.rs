//! Entries of a cache that another version may have written: whole by their own account, and of another shape.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use layers::Digest;
use serde_json::Value;

use crate::cache::{Project, overwrite};

/// A record's file, taken apart and put together: its digest and length, the record, and the text of its key.
struct Record {
    body: Vec<u8>,
    text: String,
}

impl Record {
    fn read(path: &Path) -> Record {
        let bytes = fs::read(path).unwrap();
        let length: usize = std::str::from_utf8(&bytes[65..75]).unwrap().parse().unwrap();
        let text = String::from_utf8(bytes[76 + length + 1..].to_vec()).unwrap();
        Record { body: bytes[76..76 + length].to_vec(), text }
    }

    fn write(&self, path: &Path) {
        let head = format!("{} {:010}\n", Digest::of(&self.body).hex(), self.body.len());
        overwrite(path, &[head.as_bytes(), &self.body, b"\n", self.text.as_bytes()].concat());
    }

    fn kind(&self) -> &str {
        self.text.split(' ').next().unwrap()
    }
}

/// A project, and its cache, which knows the project as it is.
struct Known {
    project: Project,
    /// A copy of the cache.
    saved: PathBuf,
    records: Vec<PathBuf>,
    /// What the project comes to, and what it comes to once it is edited.
    old: BTreeMap<String, String>,
    new: BTreeMap<String, String>,
}

impl Known {
    fn new() -> Known {
        let project = Project::new();
        let old = project.rebuilt();
        let saved = project.save();
        project.sandbox.write("src/app.py", "print('changed')\n");
        let new = project.rebuilt();
        project.sandbox.write("src/app.py", "print('hello')\n");
        project.restore(&saved);
        let records = project.bucket("ledger-v1");
        Known { project, saved, records, old, new }
    }
}

/// The same members under other names.
fn renamed(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            members.into_iter().map(|(name, value)| (format!("{name}2"), renamed(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(renamed).collect(),
        other => other,
    }
}

#[test]
fn slow_records_of_another_shape_are_made_again() {
    let Known { project, saved, records, old, new } = Known::new();
    let edit = |text: &str| project.sandbox.write("src/app.py", text);
    let kinds: BTreeSet<String> = records.iter().map(|path| Record::read(path).kind().to_owned()).collect();
    assert!(["image", "layer"].iter().all(|kind| kinds.contains(*kind)) && kinds.len() >= 4, "{kinds:?}");
    type Change = fn(&mut Record);
    let changes: [(&str, Change); 9] = [
        ("nothing", |it| it.body.clear()),
        ("null", |it| it.body = b"null".into()),
        ("no members", |it| it.body = b"{}".into()),
        ("an array", |it| it.body = b"[]".into()),
        ("text", |it| it.body = b"\"sha256:\"".into()),
        ("a number", |it| it.body = b"7".into()),
        ("no JSON", |it| it.body = vec![0xff; 300]),
        ("other members", |it| it.body = renamed(serde_json::from_slice(&it.body).unwrap()).to_string().into()),
        // Of another version by its key's text, under the name of this one's.
        ("another text", |it| it.text = it.text.replacen(' ', " 9", 1)),
    ];
    for (what, change) in changes {
        for kind in kinds.iter().map(String::as_str).chain(["all"]) {
            project.restore(&saved);
            for path in &records {
                let mut record = Record::read(path);
                if kind == "all" || record.kind() == kind {
                    change(&mut record);
                    record.write(path);
                }
            }
            edit("print('changed')\n");
            assert_eq!(project.rebuilt(), new, "{kind}: {what}");
            edit("print('hello')\n");
            assert_eq!(project.rebuilt(), old, "{kind}: {what}");
        }
    }
}

#[test]
fn slow_indexes_of_another_format_are_made_again() {
    let Known { project, saved, records, old, new } = Known::new();
    let edit = |text: &str| project.sandbox.write("src/app.py", text);
    let blobs = project.sandbox.cache().join("blobs-v1");
    let place = |digest: &Digest| blobs.join(&digest.hex()[..2]).join(digest.hex());
    let with_index = |path: &Path| {
        let record = Record::read(path);
        let body: Value = serde_json::from_slice(&record.body).ok()?;
        let index: Digest = body.get("index")?.as_str()?.parse().ok()?;
        Some((path.to_path_buf(), record, body, index))
    };
    let found: Vec<_> = records.iter().filter_map(|path| with_index(path)).collect();
    assert!(found.len() >= 3, "records name indexes");
    type Change = fn(&[u8], &[u8]) -> Vec<u8>;
    let changes: [(&str, Change); 6] = [
        ("nothing", |_, _| Vec::new()),
        ("garbage", |_, _| vec![0xa5; 500]),
        ("a version before it", |index, _| [&[9], index].concat()),
        ("half", |index, _| index[..index.len() / 2].to_vec()),
        ("less than all", |index, _| index[..index.len() - 1].to_vec()),
        ("another fragment's", |_, other| other.to_vec()),
    ];
    for (what, change) in changes {
        for (at, (path, record, body, index)) in found.iter().enumerate() {
            project.restore(&saved);
            let other = found[(at + 1) % found.len()].3;
            let bytes = change(&fs::read(place(index)).unwrap(), &fs::read(place(&other)).unwrap());
            let digest = Digest::of(&bytes);
            fs::create_dir_all(place(&digest).parent().unwrap()).unwrap();
            if !place(&digest).exists() {
                fs::write(place(&digest), bytes).unwrap();
            }
            let mut body = body.clone();
            body["index"] = digest.to_string().into();
            Record { body: body.to_string().into(), text: record.text.clone() }.write(path);
            // No layer and no image is known: every index is read.
            for path in &records {
                if ["image", "layer"].contains(&Record::read(path).kind()) {
                    fs::remove_file(path).unwrap();
                }
            }
            assert_eq!(project.rebuilt(), old, "{what} for {}", record.text);
            edit("print('changed')\n");
            assert_eq!(project.rebuilt(), new, "{what} for {}", record.text);
            edit("print('hello')\n");
        }
    }
}
