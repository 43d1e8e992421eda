//! Backups: what is saved, and the scripts that save and restore it.

use std::io::{BufRead as _, Read as _};

use deployments::backup;

use super::common::project;

#[test]
fn every_volume_with_state_is_backed_up() {
    let plan = backup::plan(&project("prod")).unwrap();
    let saved: Vec<&str> = plan.items.iter().map(|item| item.volume.as_str()).collect();
    let expected = [
        "llm-postgres-data",
        "vector-etcd-data",
        "vector-minio-data",
        "init-tokens",
        "rag-vault",
        "ui-openwebui-data",
        "vector-milvus-data",
    ];
    assert_eq!(saved, expected);
    assert_eq!(plan.writers, ["open-webui", "rag", "milvus"]);
    // What makes a site of the vault at its start is of the vault that was put back.
    assert_eq!(plan.readers, ["core"]);
    let (backup, restore) = (plan.text(false), plan.text(true));
    assert!(backup.contains(". stop open-webui, rag, milvus\n") && !backup.contains("core"), "{backup}");
    assert!(restore.contains(". stop core, open-webui, rag, milvus\n"), "{restore}");
    assert!(restore.contains(". start rag, open-webui, core again\n"), "{restore}");
    let text = plan.text(false);
    let (stop, etcd) = (text.find("stop open-webui").unwrap(), text.find("vector-etcd-data").unwrap());
    let script = plan.restore_script();
    assert!(script.contains(r#"-v "${project}_$1:/volume""#) && !script.contains("obelisk_"), "{script}");
    assert!(!script.contains("chmod -R") && script.matches("  volume \"$").count() == 2, "{script}");
    assert!(stop < etcd, "Milvus' stores must be read while nobody writes:\n{text}");
    // There the chat is in a profile and has volumes that others have, too.
    let plan = backup::plan(&project("test")).unwrap();
    let saved: Vec<&str> = plan.items.iter().map(|item| item.volume.as_str()).collect();
    assert_eq!(saved, expected.into_iter().filter(|it| *it != "ui-openwebui-data").collect::<Vec<_>>());
    assert_eq!(plan.writers, ["rag", "milvus"]);
    assert!(plan.left_out.iter().any(|it| it == "ui-openwebui-data"), "{:?}", plan.left_out);
}

/// What settings say is a word in a script and never a command.
#[test]
fn settings_do_not_become_commands_of_a_script() {
    let evil = "x'y;touch${IFS}/tmp/PWN;#";
    let mut plan = backup::plan(&project("prod")).unwrap();
    plan.helper_image = format!("{evil}/init:{evil}");
    plan.entry = format!("{evil}}}.yaml");
    plan.project = format!("obelisk\ntouch {evil}");
    let word = r"'x'\''y;touch${IFS}/tmp/PWN;#";
    for script in [plan.backup_script(), plan.restore_script()] {
        assert!(script.contains(&format!("\nimage={word}/init:{}'\n", &word[1..])), "{script}");
        assert!(script.contains(&format!("|| entry={word}}}.yaml'\n")), "{script}");
        assert_eq!(script.matches("PWN").count(), 4, "{script}");
        assert!(!script.contains("\ntouch"), "{script}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("script");
        std::fs::write(&file, script).unwrap();
        assert!(std::process::Command::new("bash").arg("-n").arg(file).status().unwrap().success());
    }
}

/// A step of a restore that fails, whichever: what was stopped is started again, and the old database is gone only once the
/// new one is whole.
#[test]
fn a_restore_that_fails_starts_everything_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let docker =
        "#!/bin/bash\necho \"$*\" >> log\ncase \"$*\" in *' config') echo 'name: p' ;; *\"$FAILS\"*) exit 7 ;; esac\n";
    std::fs::write(path.join("docker"), docker).unwrap();
    std::fs::write(path.join("restore.sh"), backup::plan(&project("prod")).unwrap().restore_script()).unwrap();
    std::fs::create_dir_all(path.join("saved/vector-minio-data")).unwrap();
    for name in ["complete", "SHA256SUMS", "llm-postgres-data.dump", "vector-etcd-data.db", "data"] {
        std::fs::write(path.join("saved").join(name), "").unwrap();
    }
    for name in ["init-tokens", "rag-vault", "ui-openwebui-data", "vector-milvus-data"] {
        std::fs::write(path.join("saved").join(format!("{name}.tar")), "").unwrap();
    }
    let sums = std::process::Command::new("sha256sum").arg("data").current_dir(path.join("saved")).output().unwrap();
    std::fs::write(path.join("saved/SHA256SUMS"), sums.stdout).unwrap();
    assert!(std::process::Command::new("chmod").arg("+x").arg(path.join("docker")).status().unwrap().success());
    let run = |fails: &str| {
        let _ = std::fs::remove_file(path.join("log"));
        let search = format!("{}:{}", path.display(), std::env::var("PATH").unwrap());
        let mut bash = std::process::Command::new("bash");
        let done =
            bash.args(["restore.sh", "saved"]).current_dir(path).env("PATH", search).env("FAILS", fails).output();
        let done = done.unwrap();
        let log = std::fs::read_to_string(path.join("log")).unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap(), log)
    };
    let started = |log: &str| -> Vec<String> {
        let ups = log.lines().filter(|line| line.contains(" up --detach "));
        ups.filter_map(|line| line.rsplit(' ').next()).map(str::to_owned).collect()
    };
    let (status, said, log) = run("nothing of this");
    assert!(status == Some(0) && said.contains("restored from") && !said.contains("half"), "{said}");
    assert_eq!(started(&log), ["postgres", "litellm", "etcd", "milvus", "rag", "open-webui", "core"]);
    // What lacks something, as the backup of another environment does, is refused before anything is touched.
    let (chats, aside) = (path.join("saved/ui-openwebui-data.tar"), path.join("aside"));
    std::fs::rename(&chats, &aside).unwrap();
    let (status, said, log) = run("nothing of this");
    assert!(status == Some(1) && said.contains("saved has no ui-openwebui-data.tar"), "{said}");
    assert!(log.lines().all(|line| line.ends_with(" config")), "{log}");
    std::fs::rename(&aside, &chats).unwrap();
    let everything = ["postgres", "etcd", "litellm", "milvus", "rag", "open-webui", "core"];
    for fails in [
        "pg_restore",
        "stop litellm",
        "RENAME",
        "stop core",
        "etcdutl",
        "mirror",
        "cp - ",
        "run --rm -T --no-deps init",
    ] {
        let (status, said, log) = run(fails);
        assert!(status == Some(7) && said.contains("error: half restored: run it again"), "{fails}: {status:?} {said}");
        assert!(started(&log).ends_with(&everything.map(str::to_owned)), "{fails}: {log}");
        assert_eq!(
            log.contains("drop \"$POSTGRES_DB\""),
            !["pg_restore", "stop litellm"].contains(&fails),
            "{fails}: {log}"
        );
    }
    // While another script is at work Docker is told nothing.
    std::fs::write(path.join("entry.yaml"), "").unwrap();
    std::fs::remove_file(path.join("log")).unwrap();
    let piped = || std::process::Stdio::piped();
    let mut flock = std::process::Command::new("flock");
    let flock = flock.args(["entry.yaml", "sh", "-c", "echo held; read it"]).current_dir(path);
    let mut other = flock.stdin(piped()).stdout(piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(other.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    let mut bash = std::process::Command::new("bash");
    bash.args(["restore.sh", "saved"])
        .current_dir(path)
        .env("COMPOSE_ENTRY", "entry.yaml")
        .env("FAILS", "nothing of this");
    bash.env("PATH", format!("{}:{}", path.display(), std::env::var("PATH").unwrap()));
    let mut waiting = bash.stderr(piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut said = std::io::BufReader::new(waiting.stderr.take().unwrap());
    line.clear();
    said.read_line(&mut line).unwrap();
    assert!(line.ends_with(" another backup or restore is at work: waiting for its end\n"), "{line}");
    assert!(!path.join("log").exists());
    drop(other.stdin.take());
    other.wait().unwrap();
    said.read_to_string(&mut line).unwrap();
    assert!(waiting.wait().unwrap().success() && line.contains("restored from"), "{line}");
}
