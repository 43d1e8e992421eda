//! The scripts that save and put back, run with stand-ins of the programs that they call: what they pass on, and that they
//! destroy nothing before they know that all of it can be put back.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{project, root};
use deployments::backup;
use tempfile::TempDir;

const USER: &str = "somebody-of-this-test";
const PASSWORD: &str = "7f3a:9c@1e'5b\"2d $80 46%";

/// A machine: what is at `/backup`, `/etcd`, `/milvus` and `/run/secrets` in a container is in its folder.
struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new() -> Machine {
        let it = Machine { folder: tempfile::tempdir().unwrap() };
        for name in ["backup", "etcd", "milvus", "run/secrets", "bin", "tmp"] {
            fs::create_dir_all(it.at(name)).unwrap();
        }
        fs::write(it.at("run/secrets/minio_root_user"), USER).unwrap();
        fs::write(it.at("run/secrets/minio_root_password"), PASSWORD).unwrap();
        // It notes the arguments of every process that there is: its own, those of the script, and whatever else runs.
        it.program(
            "mc",
            "cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' ' ' >> \"$HERE/arguments\"\necho \"$*\" >> \"$HERE/asked\"\n\
             case \"$*\" in *'alias set'*) cat > \"$HERE/given\" ;; *' ls '*) echo '[2026-01-01 00:00:00 UTC]     0B one/' ;;\n\
             *'mirror --overwrite --remove store '*) for to in \"$@\"; do :; done; mkdir -p \"$to/one/a b\"; echo x > \"$to/one/a b/it\" ;; esac",
        );
        it.program("etcdctl", "exit 1");
        it.program("etcdutl", "for to in \"$@\"; do :; done; mkdir \"$to\"; cp \"$3\" \"$to/db\"");
        it
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.at("bin").join(name);
        fs::write(&path, format!("#!/bin/bash\nHERE='{}'\n{script}\n", self.folder.path().display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A script with the paths of a container as those of this machine.
    fn here(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for name in ["/run/secrets", "/backup", "/etcd", "/milvus", "/tmp/mc"] {
            let words = [" ", "\"", "=", "(", "\n"].map(|before| (format!("{before}{name}"), before));
            for (from, before) in words {
                text = text.replace(&from, &format!("{before}{}{name}", self.folder.path().display()));
            }
        }
        text
    }

    /// Runs a job of Kubernetes.
    fn job(&self, script: &str, verb: &str, more: &[(&str, &str)]) -> Output {
        let text = fs::read_to_string(root().join("docker/config/backup").join(script)).unwrap();
        let path = self.at(script);
        fs::write(&path, self.here(&text)).unwrap();
        let mut shell = Command::new("sh");
        shell.arg(path).arg(verb).env("PATH", self.path()).envs(more.iter().copied()).output().unwrap()
    }

    fn path(&self) -> String {
        format!("{}:{}", self.at("bin").display(), std::env::var("PATH").unwrap())
    }

    /// What stands in an argument list and shall not; the login arrived all the same.
    fn shows_no_secret(&self) {
        let shown = fs::read(self.at("arguments")).unwrap();
        let shown = String::from_utf8_lossy(&shown);
        assert!(shown.contains("alias set store http://minio:9000"), "the arguments were not noted: {shown}");
        for secret in [USER, PASSWORD] {
            assert!(!shown.contains(secret), "in an argument list: {secret}");
        }
        assert_eq!(fs::read_to_string(self.at("given")).unwrap(), format!("{USER}\n{PASSWORD}\n"));
    }
}

#[track_caller]
fn good(output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[track_caller]
fn refused(output: Output, why: &str) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(why), "{:?}: {said}", output.status);
}

/// Every file below a folder, with what is in it.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push((path.clone(), fs::read(path).unwrap()));
        }
    }
    all.sort();
    all
}

fn saved(machine: &Machine) -> PathBuf {
    fs::create_dir_all(machine.at("backup/vector-next")).unwrap();
    fs::write(machine.at("backup/vector-next/vector-etcd-data.db"), "snapshot").unwrap();
    good(machine.job("buckets.sh", "save", &[]));
    let mut all: Vec<PathBuf> = fs::read_dir(machine.at("backup")).unwrap().map(|it| it.unwrap().path()).collect();
    all.retain(|it| it.file_name().unwrap().to_str().unwrap().starts_with("vector-2"));
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[test]
fn the_object_stores_password_is_in_no_argument_list() {
    let machine = Machine::new();
    saved(&machine);
    machine.shows_no_secret();
    good(machine.job("buckets.sh", "restore", &[]));
    machine.shows_no_secret();

    // The scripts for compose: Docker is a stand-in that runs what is for the object store.
    let plan = backup::plan(&project("prod")).unwrap();
    for (name, script) in [("backup", plan.backup_script()), ("restore", plan.restore_script())] {
        let machine = Machine::new();
        machine.program(
            "docker",
            "case \"$*\" in *' config') echo 'name: p' ;; *'mc --config-dir'*)\n\
             for last in \"$@\"; do :; done\n\
             sh -ec \"$(printf %s \"$last\" | sed \"s#/run/secrets#$HERE/run/secrets#g; s#/backup#$HERE/backup#g; s#/tmp/mc#$HERE/tmp/mc#g\")\" ;; esac",
        );
        let path = machine.at("script.sh");
        fs::write(&path, script).unwrap();
        let folder = machine.at("backup");
        if name == "restore" {
            fs::create_dir_all(folder.join("vector-minio-data")).unwrap();
            for file in ["complete", "llm-postgres-data.dump", "vector-etcd-data.db", "data"] {
                fs::write(folder.join(file), "").unwrap();
            }
            for file in ["init-tokens", "rag-vault", "ui-openwebui-data", "vector-milvus-data"] {
                fs::write(folder.join(format!("{file}.tar")), "").unwrap();
            }
            let sums = Command::new("sha256sum").arg("data").current_dir(&folder).output().unwrap();
            fs::write(folder.join("SHA256SUMS"), sums.stdout).unwrap();
        }
        let mut bash = Command::new("bash");
        good(
            bash.arg(path)
                .arg(&folder)
                .current_dir(machine.folder.path())
                .env("PATH", machine.path())
                .output()
                .unwrap(),
        );
        machine.shows_no_secret();
    }
}

/// The job that puts Milvus back begins with the snapshot and ends with the buckets: all of it is read before the first byte
/// is gone.
#[test]
fn a_backup_of_milvus_is_checked_before_anything_is_destroyed() {
    let machine = Machine::new();
    let folder = saved(&machine);
    let claims = || {
        for (path, text) in [
            ("etcd/data/db", "old"),
            ("milvus/rdb_data/log", "old"),
            ("milvus/.hidden", "old"),
            ("milvus/lost+found/it", "kept"),
        ] {
            fs::create_dir_all(machine.at(path).parent().unwrap()).unwrap();
            fs::write(machine.at(path), text).unwrap();
        }
        (files(&machine.at("etcd")), files(&machine.at("milvus")))
    };
    let before = claims();
    let object = folder.join("vector-minio-data/one/a b/it");
    let kept = fs::read(&object).unwrap();
    type Damage<'a> = (&'a str, &'a dyn Fn(), &'a dyn Fn());
    let sums = folder.join("SHA256SUMS");
    let listed = fs::read(&sums).unwrap();
    assert_eq!(String::from_utf8_lossy(&listed).lines().count(), 2, "the snapshot and the one object");
    let damages: &[Damage<'_>] = &[
        ("is damaged", &|| fs::write(&object, "y\n").unwrap(), &|| fs::write(&object, &kept).unwrap()),
        ("is damaged", &|| fs::remove_file(&object).unwrap(), &|| fs::write(&object, &kept).unwrap()),
        ("it has no SHA256SUMS", &|| fs::remove_file(&sums).unwrap(), &|| fs::write(&sums, &listed).unwrap()),
        ("is damaged", &|| fs::write(folder.join("vector-etcd-data.db"), "snapshit").unwrap(), &|| {
            fs::write(folder.join("vector-etcd-data.db"), "snapshot").unwrap()
        }),
        (
            "it has no SHA256SUMS or no buckets",
            &|| fs::rename(folder.join("vector-minio-data"), folder.join("x")).unwrap(),
            &|| fs::rename(folder.join("x"), folder.join("vector-minio-data")).unwrap(),
        ),
        ("etcd runs: scale it to 0 first", &|| machine.program("etcdctl", "exit 0"), &|| {
            machine.program("etcdctl", "exit 1")
        }),
    ];
    for (why, damage, mend) in damages {
        damage();
        refused(machine.job("etcd.sh", "restore", &[]), why);
        assert!((files(&machine.at("etcd")), files(&machine.at("milvus"))) == before, "{why}: something is gone");
        mend();
    }
    // Another backup than the newest, by its name.
    let other = machine.at("backup/vector-20200101T000000Z");
    assert!(Command::new("cp").arg("-r").arg(&folder).arg(&other).status().unwrap().success());
    fs::rename(&folder, machine.at("backup/vector-29990101T000000Z")).unwrap();
    fs::remove_file(machine.at("backup/vector-29990101T000000Z/SHA256SUMS")).unwrap();
    refused(machine.job("etcd.sh", "restore", &[]), "vector-29990101T000000Z is not complete");
    let said = good(machine.job("etcd.sh", "restore", &[("BACKUP", other.to_str().unwrap())]));
    assert!(said.contains("a new data folder from") && said.contains("vector-20200101T000000Z"), "{said}");
    assert_eq!(fs::read_to_string(machine.at("etcd/data/db")).unwrap(), "snapshot");
    let left: Vec<PathBuf> = files(&machine.at("milvus")).into_iter().map(|(path, _)| path).collect();
    assert_eq!(left, [machine.at("milvus/lost+found/it")]);
}

/// An archive of files without what init leaves at its end is of a stack that never ran; and that note is not put back, so
/// that applications wait until init ran again.
#[test]
fn tokens_are_put_back_without_the_note_that_init_completed() {
    let machine = Machine::new();
    let (data, folder) = (machine.at("data"), machine.at("backup"));
    for (path, text) in [("vault/a.md", "a"), ("tokens/api_tokens.env", "A=old"), ("tokens/complete", "version")] {
        fs::create_dir_all(data.join(path).parent().unwrap()).unwrap();
        fs::write(data.join(path), text).unwrap();
    }
    let python = |verb: &str| {
        let mut command = Command::new("python3");
        command.arg(root().join("docker/config/backup/files.py")).arg(verb).env("KEEP", "2");
        command.env("BACKUP_FOLDER", &folder).env("SOURCES", &data).env_remove("BACKUP").output().unwrap()
    };
    let names = || -> Vec<String> {
        let all = fs::read_dir(&folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
        let mut all: Vec<String> = all.collect();
        all.sort();
        all
    };
    let archive = || -> PathBuf {
        let mut all: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|it| it.unwrap().path()).collect();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    };
    good(python("save"));
    fs::write(data.join("tokens/api_tokens.env"), "A=new").unwrap();
    good(python("restore"));
    assert_eq!(fs::read_to_string(data.join("tokens/api_tokens.env")).unwrap(), "A=old");
    assert!(!data.join("tokens/complete").exists());
    // Now none is there, and nothing is saved however often one tries: the archives that are good stay, and are put back.
    let older = folder.join("files-20200101T000000Z.tar");
    fs::copy(archive(), &older).unwrap();
    let kept = names();
    for _ in 0..3 {
        refused(
            python("save"),
            "error: nothing was saved, and no archive was removed: there is no tokens/complete: wait until init has completed",
        );
        assert_eq!(names(), kept);
    }
    fs::write(data.join("tokens/api_tokens.env"), "A=newer").unwrap();
    good(python("restore"));
    assert_eq!(fs::read_to_string(data.join("tokens/api_tokens.env")).unwrap(), "A=old");
    // Init completes again: the newest two stay.
    fs::rename(folder.join(&kept[1]), folder.join("files-20200102T000000Z.tar")).unwrap();
    fs::write(data.join("tokens/complete"), "version").unwrap();
    good(python("save"));
    assert!(names().len() == 2 && !older.exists() && names()[0] == "files-20200102T000000Z.tar", "{:?}", names());
    // An archive of before, made when nobody asked for the note.
    fs::remove_file(data.join("tokens/complete")).unwrap();
    let bare = folder.join("files-29990101T000000Z.tar");
    assert!(
        Command::new("tar")
            .arg("-cf")
            .arg(&bare)
            .arg("-C")
            .arg(&data)
            .args(["tokens", "vault"])
            .status()
            .unwrap()
            .success()
    );
    let before = files(&data);
    refused(python("restore"), "it holds no tokens/complete: it was saved before init had completed");
    assert!(files(&data) == before);
    for name in names() {
        fs::remove_file(folder.join(name)).unwrap();
    }
    // A claim that the archive knows nothing of is not emptied.
    fs::write(data.join("tokens/complete"), "version").unwrap();
    good(python("save"));
    fs::create_dir(data.join("openwebui")).unwrap();
    fs::write(data.join("openwebui/webui.db"), "accounts").unwrap();
    let before = files(&data);
    refused(python("restore"), "it holds no folder `openwebui`");
    assert!(files(&data) == before);
}
