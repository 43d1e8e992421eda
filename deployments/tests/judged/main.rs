//! The deployment files, judged by the tools that read them: Docker Compose, kustomize, Kubernetes' schemas, shellcheck,
//! promtool and Caddy. A missing tool fails a test and says what to install.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

#[path = "../common/mod.rs"]
mod common;
mod compose;
mod manifests;

use std::io::Write as _;
use std::process::{Command, Stdio};

use common::{project, root};
use deployments::backup;

/// Runs a tool in an empty environment and returns what it prints; `text` goes to its input.
fn run(tool: &str, arguments: &[&str], text: &str) -> String {
    let mut command = Command::new(tool);
    command.args(arguments).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["PATH", "HOME", "DOCKER_CONFIG"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    let mut child =
        command.spawn().unwrap_or_else(|error| panic!("{tool}: {error}; `tests/tools target/tests` installs it"));
    child.stdin.take().unwrap().write_all(text.as_bytes()).ok();
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{tool} {}: {}\n{out}\n{err}", arguments.join(" "), output.status);
    out.into_owned()
}

#[test]
fn real_shellcheck_accepts_every_script() {
    let config = root().join("docker/config");
    let backup = ["backup/postgres.sh", "backup/etcd.sh", "backup/buckets.sh"];
    let starts = ["own-volumes.sh", "litellm/start.sh", "milvus/start.sh", "openwebui/start.sh"];
    for script in starts.into_iter().chain(backup) {
        run("shellcheck", &[config.join(script).to_str().unwrap()], "");
    }
    for image in ["litellm", "milvus", "postgres", "s3"] {
        run("shellcheck", &[root().join("../images/stack").join(image).join("start.sh").to_str().unwrap()], "");
    }
    for environment in ["prod", "test"] {
        let plan = backup::plan(&project(environment)).unwrap();
        // SC2016: what is in single quotes is meant for the shell in the container. SC2094: the sums are written beside the
        // files that they are of. SC2154: functions get these variables before their names.
        run("shellcheck", &["--exclude=SC2016,SC2094,SC2154", "-"], &plan.backup_script());
        run("shellcheck", &["--exclude=SC2016,SC2094,SC2154", "-"], &plan.restore_script());
    }
}

/// The script of the jobs that save files and put them back: an archive that is cut off, wherever, changes nothing.
#[test]
fn real_files_are_put_back_only_from_a_whole_archive() {
    let folder = tempfile::tempdir().unwrap();
    let [data, backup] = ["data", "backup"].map(|name| folder.path().join(name));
    std::fs::create_dir_all(data.join("vault")).unwrap();
    std::fs::create_dir(&backup).unwrap();
    let files = || -> Vec<(String, Vec<u8>)> {
        let all = std::fs::read_dir(data.join("vault")).unwrap().map(|it| it.unwrap().path());
        let mut all: Vec<_> = all.map(|it| (it.display().to_string(), std::fs::read(it).unwrap())).collect();
        all.sort();
        all
    };
    let python = |verb: &str, archive: &str| {
        let mut command = std::process::Command::new("python3");
        command.arg(root().join("docker/config/backup/files.py")).arg(verb);
        command.env("BACKUP_FOLDER", &backup).env("SOURCES", &data).env("BACKUP", archive).output().unwrap()
    };
    for name in ["a", "b", "c"] {
        std::fs::write(data.join("vault").join(name), name.repeat(3000)).unwrap();
    }
    let saved = files();
    assert!(python("save", "").status.success());
    let archive = std::fs::read_dir(&backup).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&archive).unwrap();
    std::fs::write(data.join("vault/later"), "later").unwrap();
    std::fs::write(data.join("vault/a"), "changed").unwrap();
    let now = files();
    let cut = backup.join("cut");
    // Where the data of a file of 3000 equal letters is: its header is before it, and before that one what PAX adds.
    let data_of = |letter: u8| whole.windows(16).position(|it| it == [letter; 16]).unwrap();
    let (before, last, end) = (data_of(b'b') + 3072, data_of(b'c'), data_of(b'c') + 3072);
    assert!(whole[end..].iter().all(|byte| *byte == 0) && whole.len() >= end + 1024);
    // In the data of a file, between two files, in a header, between two headers of a file, before the end; nothing at all.
    for length in [data_of(b'b') + 1000, before, before + 100, last - 512, last, end - 1, end, end + 512, 0] {
        std::fs::write(&cut, &whole[..length]).unwrap();
        let said = python("restore", cut.to_str().unwrap());
        let text = String::from_utf8(said.stderr).unwrap();
        assert!(
            !said.status.success() && text.contains("cannot be read, and nothing was changed: "),
            "{length}: {text}"
        );
        assert!(files() == now, "{length}: {text}");
    }
    // Headers that rotted.
    for at in [before + 3, last - 512 + 3] {
        let mut rotten = whole.clone();
        rotten[at] ^= 1;
        std::fs::write(&cut, rotten).unwrap();
        assert!(!python("restore", cut.to_str().unwrap()).status.success() && files() == now, "{at}");
    }
    assert!(python("restore", "").status.success() && files() == saved);
}

#[test]
fn real_promtool_accepts_the_scrape_configuration_and_the_alerts() {
    let folder = root().join("docker/config/prometheus");
    run("promtool", &["check", "rules", folder.join("rules.yaml").to_str().unwrap()], "");
    run("promtool", &["check", "config", "--syntax-only", folder.join("prometheus.yaml").to_str().unwrap()], "");
}

#[test]
fn real_caddy_accepts_the_proxy_configuration() {
    let file = root().join("docker/config/caddy/Caddyfile");
    let adapted = run("caddy", &["adapt", "--config", file.to_str().unwrap(), "--adapter", "caddyfile"], "");
    assert!(adapted.contains("core:8000") && adapted.contains("open-webui:8080"), "{adapted}");
}
