//! Wheels, an index of them, and a `poetry.lock` that names them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use layers::Digest;

use super::run::tool;
use super::server::Files;

/// Writes the wheels that a JSON document lists, each with its name, its version and its files, `path=content` or `path=@file`, as
/// its RECORD lists them.
const WHEELS: &str = r#"
import base64, hashlib, json, sys, zipfile
def content(text):
    return open(text[1:], "rb").read() if text.startswith("@") else text.encode()
for name, version, files in json.load(open(sys.argv[2])):
    info = f"{name}-{version}.dist-info"
    held = [file.split("=", 1) for file in files]
    held.append((f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"))
    held.append((f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"))
    record = ""
    place = f"{sys.argv[1]}/{name}/{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in ((path, content(text)) for path, text in held):
            # Without the time of day: the same files make the same wheel.
            wheel.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(data)}\n"
        wheel.writestr(zipfile.ZipInfo(f"{info}/RECORD"), record + f"{info}/RECORD,,\n", zipfile.ZIP_DEFLATED)
"#;

/// The name, the version and the files of a wheel, `path=content` or `path=@file`.
pub type Wheel = (String, String, Vec<String>);

/// An index on loopback.
#[derive(Debug)]
pub struct Index {
    folder: PathBuf,
    pub files: Files,
}

impl Index {
    /// An empty one in a new folder.
    pub fn new(folder: &Path) -> Index {
        fs::create_dir_all(folder).unwrap();
        Index { folder: folder.into(), files: Files::serve(folder) }
    }

    /// Puts a wheel of these files, `path=content` or `path=@file`, onto the index in place of others of its name; gives its entry in
    /// poetry.lock.
    pub fn wheel<S: AsRef<str>>(&self, name: &str, version: &str, files: &[S]) -> String {
        let files = files.iter().map(|file| file.as_ref().to_owned()).collect();
        self.wheels(&[(name.to_owned(), version.to_owned(), files)]).remove(0)
    }

    /// The same for many, by one interpreter.
    pub fn wheels(&self, wheels: &[Wheel]) -> Vec<String> {
        wheels.iter().for_each(|(name, ..)| fs::create_dir_all(self.folder.join(name)).unwrap());
        let list = tempfile::NamedTempFile::new().unwrap();
        fs::write(list.path(), serde_json::to_vec(wheels).unwrap()).unwrap();
        tool("python3", ["-c".as_ref(), WHEELS.as_ref(), self.folder.as_os_str(), list.path().as_os_str()]);
        wheels.iter().map(|(name, version, _)| self.offer(name, version)).collect()
    }

    /// Where a wheel that was put onto the index lies.
    pub fn place(&self, name: &str, version: &str) -> PathBuf {
        self.folder.join(name).join(format!("{name}-{version}-py3-none-any.whl"))
    }

    /// Offers a wheel as it lies there; gives its entry in poetry.lock.
    pub fn offer(&self, name: &str, version: &str) -> String {
        let place = self.place(name, version);
        let (file, hash) = (place.file_name().unwrap().to_str().unwrap(), Digest::of(&fs::read(&place).unwrap()).hex());
        let page = format!("<a href=\"{file}#sha256={hash}\">{file}</a>");
        fs::write(place.with_file_name("index.html"), page).unwrap();
        entry(name, version, file, &hash)
    }

    /// Points a command at the index.
    pub fn configure(&self, command: &mut Command) {
        command.env("UV_INDEX_URL", self.files.url()).env("UV_DEFAULT_INDEX", self.files.url());
        command.env("NO_PROXY", "127.0.0.1");
    }
}

/// The entry of a file in poetry.lock.
pub fn entry(name: &str, version: &str, file: &str, hash: &str) -> String {
    format!(
        "[[package]]\nname = \"{name}\"\nversion = \"{version}\"\ndescription = \"\"\noptional = false\n\
         python-versions = \">=3.8\"\ngroups = [\"main\"]\nfiles = [{{file = \"{file}\", hash = \"sha256:{hash}\"}}]\n\n"
    )
}

/// A poetry.lock of these entries.
pub fn poetry_lock(entries: &[String]) -> String {
    let end = "[metadata]\nlock-version = \"2.1\"\npython-versions = \">=3.8\"\ncontent-hash = \"0\"\n";
    entries.concat() + end
}
