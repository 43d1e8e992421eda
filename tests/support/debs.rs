//! Packages made by dpkg-deb, and repositories of them that gpg signs with a key made for the test.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::layout::sha256;
use super::run::{outcome, tool};

/// A package to be made.
#[derive(Debug, Clone)]
pub struct Deb {
    name: String,
    version: String,
    architecture: String,
    fields: String,
    files: Vec<(String, u32, Vec<u8>)>,
    links: Vec<(String, String)>,
    hard_links: Vec<(String, String)>,
    scripts: Vec<(String, String)>,
}

impl Deb {
    pub fn new(name: &str, version: &str) -> Deb {
        Deb {
            name: name.into(),
            version: version.into(),
            architecture: "all".into(),
            fields: String::new(),
            files: Vec::new(),
            links: Vec::new(),
            hard_links: Vec::new(),
            scripts: Vec::new(),
        }
    }

    pub fn architecture(mut self, architecture: &str) -> Deb {
        self.architecture = architecture.into();
        self
    }

    /// A further line of the control file, such as `Depends: b (>= 1)`.
    pub fn field(mut self, line: &str) -> Deb {
        self.fields.push_str(line);
        self.fields.push('\n');
        self
    }

    pub fn file(mut self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Deb {
        self.files.push((path.into(), mode, content.as_ref().to_vec()));
        self
    }

    pub fn link(mut self, path: &str, target: &str) -> Deb {
        self.links.push((path.into(), target.into()));
        self
    }

    pub fn hard_link(mut self, path: &str, target: &str) -> Deb {
        self.hard_links.push((path.into(), target.into()));
        self
    }

    /// A maintainer script, such as `postinst`.
    pub fn script(mut self, name: &str, text: &str) -> Deb {
        self.scripts.push((name.into(), text.into()));
        self
    }

    /// Makes the package in `folder`; all files are of the same second.
    pub fn build(&self, folder: &Path) -> PathBuf {
        let tree = tempfile::tempdir().unwrap();
        // mkdtemp's mode would become that of the package's root.
        fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let place = |path: &str| {
            let at = tree.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            at
        };
        for (path, mode, content) in &self.files {
            let at = place(path);
            fs::write(&at, content).unwrap();
            fs::set_permissions(&at, fs::Permissions::from_mode(*mode)).unwrap();
        }
        for (path, target) in &self.links {
            std::os::unix::fs::symlink(target, place(path)).unwrap();
        }
        for (path, target) in &self.hard_links {
            fs::hard_link(place(target), place(path)).unwrap();
        }
        let mut control =
            format!("Package: {}\nVersion: {}\nArchitecture: {}\n", self.name, self.version, self.architecture);
        control.push_str("Maintainer: Tests <tests@example.org>\nDescription: made by a test\n");
        control.push_str(&self.fields);
        fs::write(place("DEBIAN/control"), control).unwrap();
        for (name, text) in &self.scripts {
            let at = place(&format!("DEBIAN/{name}"));
            fs::write(&at, text).unwrap();
            fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let epochless = self.version.split_once(':').map_or(self.version.as_str(), |(_, rest)| rest);
        let file = folder.join(format!("{}_{epochless}_{}.deb", self.name, self.architecture));
        fs::create_dir_all(folder).unwrap();
        // dpkg-deb takes times later than SOURCE_DATE_EPOCH back to it, which makes the file reproducible.
        let mut command = Command::new("dpkg-deb");
        command.env("SOURCE_DATE_EPOCH", "1700000000").args([
            "--root-owner-group",
            "--threads-max=1",
            "-Zxz",
            "--build",
        ]);
        outcome(command.arg(tree.path()).arg(&file)).success();
        file
    }
}

/// A repository in the shape of Debian's: `dists/trixie/main`, and its security sibling.
#[derive(Debug)]
pub struct Repository {
    root: PathBuf,
    keys: tempfile::TempDir,
}

impl Repository {
    /// An empty one in `root`, with a new key.
    pub fn new(root: &Path) -> Repository {
        let keys = tempfile::tempdir().unwrap();
        let repository = Repository { root: root.into(), keys };
        fs::create_dir_all(root.join("pool")).unwrap();
        repository.gpg(&["--quick-gen-key", "Tests <tests@example.org>", "rsa3072", "sign", "never"]);
        repository
    }

    fn gpg(&self, arguments: &[&str]) -> String {
        let common = ["--batch", "--yes", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback"];
        outcome(Command::new("gpg").env("GNUPGHOME", self.keys.path()).args(common).args(arguments)).success()
    }

    /// The public key, as a file.
    pub fn keyring(&self) -> PathBuf {
        let file = self.keys.path().join("public.gpg");
        self.gpg(&["--output", file.to_str().unwrap(), "--export"]);
        file
    }

    pub fn pool(&self) -> PathBuf {
        self.root.join("pool")
    }

    /// Lists what is in the pool, in all three suites' indexes (updates and security are empty), dated `date` seconds
    /// since 1970, and signs them.
    pub fn publish(&self, architectures: &[&str], date: i64) {
        let mut debs: Vec<PathBuf> = fs::read_dir(self.pool()).unwrap().map(|it| it.unwrap().path()).collect();
        debs.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        debs.sort();
        for suite in ["trixie", "trixie-updates", "trixie-security"] {
            let listed = if suite == "trixie" { debs.as_slice() } else { &[] };
            self.suite(suite, architectures, date, listed);
        }
    }

    fn suite(&self, suite: &str, architectures: &[&str], date: i64, debs: &[PathBuf]) {
        let dist = self.root.join("dists").join(suite);
        let mut hashes = String::new();
        for architecture in architectures {
            let mut packages = String::new();
            for deb in debs {
                let control = tool("dpkg-deb", ["--field".as_ref(), deb.as_os_str()]);
                let of = control.lines().find_map(|line| line.strip_prefix("Architecture: ")).unwrap();
                if of != "all" && of != *architecture {
                    continue;
                }
                let bytes = fs::read(deb).unwrap();
                let file = deb.file_name().unwrap().to_str().unwrap();
                let _ = writeln!(packages, "{}", control.trim_end());
                let _ = writeln!(
                    packages,
                    "Filename: pool/{file}\nSize: {}\nSHA256: {}\n",
                    bytes.len(),
                    &sha256(&bytes)[7..]
                );
            }
            let folder = dist.join(format!("main/binary-{architecture}"));
            fs::create_dir_all(folder.join("by-hash/SHA256")).unwrap();
            fs::write(folder.join("Packages"), &packages).unwrap();
            tool("xz", ["--force", "--keep", folder.join("Packages").to_str().unwrap()]);
            for name in ["Packages", "Packages.xz"] {
                let bytes = fs::read(folder.join(name)).unwrap();
                let digest = &sha256(&bytes)[7..];
                fs::write(folder.join("by-hash/SHA256").join(digest), &bytes).unwrap();
                let _ = writeln!(hashes, " {digest} {} main/binary-{architecture}/{name}", bytes.len());
            }
        }
        let rfc2822 = |seconds: i64| {
            let at = format!("@{seconds}");
            let mut date = Command::new("date");
            outcome(date.env("LC_ALL", "C").args(["-u", "-d", &at, "+%a, %d %b %Y %H:%M:%S UTC"])).success()
        };
        let (day, later) = (rfc2822(date), rfc2822(date + 7 * 86_400));
        let release = format!(
            "Origin: Debian\nLabel: Debian\nSuite: {}\nCodename: {suite}\nDate: {}\nValid-Until: {}\n\
             Acquire-By-Hash: yes\nArchitectures: all {}\nComponents: main\nSHA256:\n{hashes}",
            suite.replace("trixie", "stable"),
            day.trim(),
            later.trim(),
            architectures.join(" ")
        );
        fs::write(dist.join("Release"), release).unwrap();
        let (from, to) = (dist.join("Release"), dist.join("InRelease"));
        self.gpg(&["--output", to.to_str().unwrap(), "--clearsign", from.to_str().unwrap()]);
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        // gpg starts an agent that would outlive its folder.
        let mut stop = Command::new("gpgconf");
        let _ = stop.env("GNUPGHOME", self.keys.path()).args(["--kill", "all"]).output();
    }
}
