//! Small catalogues: without the network, or from packages that the test makes.

use std::path::{Path, PathBuf};
use std::process::Command;

use layers::{Catalogue, Image, Stage, debian, dir, files, inline, link, path, user};

use super::debs::{Deb, Repository};
use super::run::{Sandbox, tool};
use super::server::Files;

/// Images of plain files: `hello` and `world`. Nothing is downloaded, nothing needs a lock beyond an empty one.
pub fn plain() -> Catalogue {
    let hello = Stage::scratch()
        .layer(user("app", 10001))
        .layer(inline("hello\n", path!("/etc/hello")).mode(0o640))
        .layer(files("src", path!("/srv")).exclude(["**/*.tmp"]))
        .layer(link(path!("/srv/latest"), "a.txt"));
    let world = Stage::scratch().layer(dir(path!("/data")).owner(10001, 10001).mode(0o750));
    let run = |stage: Stage| -> Image { stage.image().user("10001:10001").env("LANG", "C.UTF-8").cmd(["/srv/a.txt"]) };
    Catalogue::new("tiny").with("hello", run(hello).description("Says hello")).with("world", run(world))
}

/// Writes the plan of [`plain`], its context and its lock into a sandbox; gives the words that choose it.
pub fn write_plain(sandbox: &Sandbox) -> [String; 2] {
    sandbox.write("src/a.txt", "a\n");
    sandbox.write("src/deep/er/b.txt", "b\n");
    sandbox.write("src/deep/c.tmp", "left out\n");
    let plan = sandbox.write("plan.json", plain().plan().to_json());
    let chosen = ["--catalogue".to_owned(), plan.to_str().unwrap().to_owned()];
    sandbox.imgbuild([chosen[0].as_str(), chosen[1].as_str(), "lock"]).success();
    chosen
}

/// A repository of a few packages, served on loopback, and a catalogue of two images made of them.
#[derive(Debug)]
pub struct Packaged {
    /// Keeps the folders, and runs imgbuild.
    pub sandbox: Sandbox,
    pub repository: Repository,
    pub files: Files,
    plan: PathBuf,
}

/// The packages: `app` needs `libapp` and `data`; hard links, links, modes and a program are among their files.
pub fn packages(libapp: &str) -> Vec<Deb> {
    vec![
        Deb::new("app", "1.0-1")
            .field("Depends: libapp (>= 1.0), data (>= 1:0~)")
            .file("/usr/bin/app", 0o755, "#!/bin/sh\necho app\n")
            .hard_link("/usr/bin/app-again", "/usr/bin/app")
            .link("/usr/bin/app-link", "app")
            .file("/usr/share/doc/app/copyright", 0o644, "free\n")
            .file("/usr/share/doc/app/README", 0o644, "left out by slim\n"),
        Deb::new("libapp", libapp).file("/usr/lib/libapp.txt", 0o644, format!("libapp {libapp}\n")),
        Deb::new("data", "1:2.0~rc1-1").file("/usr/share/data/plain", 0o644, "x\n").file(
            &format!("/usr/share/data{}/file", "/a-folder-whose-name-is-rather-long-so-that-paths-grow".repeat(5)),
            0o600,
            "deep\n",
        ),
    ]
}

impl Packaged {
    /// With `libapp` 1.0-1, released at `date`.
    pub fn new(date: i64) -> Packaged {
        let sandbox = Sandbox::new();
        let root = sandbox.path().join("mirror");
        let repository = Repository::new(&root);
        for deb in packages("1.0-1") {
            deb.build(&repository.pool());
        }
        repository.publish(&["amd64", "arm64"], date);
        let files = Files::serve(&root);
        let app = Stage::scratch().layer(debian(["app"]).slim()).layer(user("app", 10001));
        let data = Stage::scratch().layer(debian(["data"]));
        let catalogue = Catalogue::new("packaged")
            .with("app", app.image().user("10001:10001").cmd(["/usr/bin/app"]))
            .with("data", data.image());
        let plan = sandbox.write("plan.json", catalogue.plan().to_json());
        Packaged { sandbox, repository, files, plan }
    }

    /// imgbuild with this catalogue and this mirror.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.sandbox.command(["--catalogue".as_ref(), self.plan.as_os_str()]);
        command.args(arguments);
        self.configure(&mut command);
        command
    }

    /// Points a command at the mirror and its key.
    pub fn configure(&self, command: &mut Command) {
        command
            .env("IMGBUILD_DEBIAN_MIRROR", self.files.url())
            .env("IMGBUILD_DEBIAN_SECURITY_MIRROR", self.files.url())
            .env("IMGBUILD_DEBIAN_KEYRING", self.repository.keyring())
            .env("NO_PROXY", "127.0.0.1");
    }

    pub fn lock_file(&self) -> PathBuf {
        self.sandbox.work().join("images.lock")
    }

    pub fn plan(&self) -> &Path {
        &self.plan
    }
}

/// Now, in seconds since 1970.
pub fn now() -> i64 {
    tool("date", ["+%s"]).trim().parse().unwrap()
}
