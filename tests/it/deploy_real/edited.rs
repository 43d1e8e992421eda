//! What is put into the vault of services that run, and what is edited below them.

use std::os::unix::process::CommandExt as _;

use rustix::process::{Pid, Signal, kill_process_group};

use super::*;

/// How documents come into the vault: of the page for production by the test stack's names, and of Kubernetes' claim.
#[test]
fn real_documents_come_into_the_vault() {
    let stack = stack();
    phase("documents");
    let (fact, question) = ("The bell of Torvan weighs nine hundred stone.", "How much does the bell of Torvan weigh?");
    stack.sandbox.write("my-vault/bells/torvan.md", format!("# Bells\n\n{fact}\n"));
    stack.sandbox.write("my-vault/an-old-page.md", "# Old\n");
    let mut blocks = pages::blocks();
    blocks.retain(|it| it.kind == "run: stack, by its names" && it.at.starts_with("quick-start-prod.md"));
    assert!(!blocks.is_empty());
    for block in blocks {
        let text = block
            .text
            .replace("obelisk_", "obelisk-test_")
            .replace(":0.1.0", ":test")
            .replace("prod.yaml", "test.yaml");
        stack.shell(&text).success();
    }
    // They came as root's: the next start gives them to the services, and the one after that finds nothing to do.
    let owner = |path: &str| stack.client(&format!("stat -c %u:%g {path}")).success();
    let (page, storage) = ("/app/vault/bells/torvan.md", ["run", "--rm", "-T", "--no-deps", "rag-storage"]);
    assert_eq!(owner(page), "0:0\n");
    let given = stack.compose(&storage);
    assert!(given.contains("given to 10001:10001: /volumes/rag-vault/") && given.contains("unchanged: "), "{given}");
    assert_eq!(owner(page), "10001:10001\n");
    let again = stack.compose(&storage);
    assert!(again.lines().count() == 5 && again.lines().all(|it| it.starts_with("unchanged: ")), "{again}");
    stack.until("the document is quoted", question, |text, sources| {
        text == fact && sources.iter().any(|it| it == "bells/torvan.md")
    });
    assert!(!stack.client("ls /app/vault/*.md").stdout.contains("an-old-page"));
    stack.well();
    let page = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/bells/torvan/').read().decode())";
    assert!(stack.inside("core", &["/usr/bin/python3", "-c", page]).success().contains(fact));
    let remove = ["run", "--rm", "--network", "none", "--user", "0:0", "--volume", "obelisk-test_rag-vault:/app/vault"];
    stack.engine.docker([&remove[..], &["--entrypoint", "rm", "obelisk/init:test", "-r", "/app/vault/bells"]].concat());
    stack.until("it is forgotten", question, |text, _| text != fact);

    // Kubernetes' claim: filled by core's pod, then by whoever puts documents into it.
    let claim = stack.sandbox.path().join("claim");
    fs::create_dir_all(claim.join("lost+found")).unwrap();
    tool("chmod", ["0777".as_ref(), claim.as_os_str()]);
    let scripts = stack.sandbox.work().join("deployments/docker/config/vault");
    let script = |image: &str, words: &[&str], archive: &[u8]| -> Outcome {
        let archive = stack.sandbox.write("archive.tar", archive);
        let mut run = stack.engine.command();
        run.args([
            "run",
            "--rm",
            "--interactive",
            "--read-only",
            "--tmpfs",
            "/tmp",
            "--cap-drop",
            "ALL",
            "--network",
            "none",
        ]);
        run.args(["--user", "10001:10001", "--entrypoint", "python3"]);
        run.arg("--volume").arg(format!("{}:/vault", claim.display()));
        run.arg("--volume").arg(format!("{}:/etc/vault:ro", scripts.display()));
        run.arg(format!("obelisk/{image}:test")).arg("/etc/vault/vault.py").args(words);
        Outcome::of(run.stdin(fs::File::open(archive).unwrap()).output().unwrap())
    };
    let files = |folder: &Path| {
        let list = "cd \"$0\" && find . -name lost+found -prune -o -type f -exec sha256sum {} + | sort -k2";
        tool("sh", ["-c".as_ref(), list.as_ref(), folder.as_os_str()])
    };
    let fill = ["fill", "/app/vault", "/vault"];
    assert!(script("core", &fill, b"").success().is_empty());
    let filled = files(&claim);
    assert_eq!(filled, files(&repository().join("images/obelisk/vault")));
    assert!(script("core", &fill, b"").stderr.contains("the vault has documents: unchanged"));
    // A pod that was ended in between: all pages are there and some have their places.
    fs::create_dir(claim.join(".filling")).unwrap();
    fs::rename(claim.join("guide"), claim.join(".filling/guide")).unwrap();
    tool("chown", ["-R".as_ref(), "10001:10001".as_ref(), claim.as_os_str()]);
    assert!(script("core", &fill, b"").stderr.contains("filled from /app/vault"));
    assert_eq!(files(&claim), filled);
    let mut tar = std::process::Command::new("tar");
    let archive =
        tar.args(["-cf", "-", "-C"]).arg(stack.sandbox.work().join("my-vault")).arg(".").output().unwrap().stdout;
    let said = script("rag", &["put", "/vault"], &archive);
    assert!(said.stderr.contains("2 files put"), "{said:?}");
    assert_eq!(files(&claim).lines().count(), filled.lines().count() + 2);
    script("rag", &["replace", "/vault"], b"").failure(1, &["the standard input is no tar archive"]);
    script("rag", &["replace", "/vault"], &archive).success();
    assert_eq!(files(&claim), files(&stack.sandbox.work().join("my-vault")));
    assert!(claim.join("lost+found").is_dir());
}

/// Development's own half: pages, source and the site's configuration are edited and seen, by the very services of dev.yaml.
/// Those around them are not needed for it.
#[test]
fn real_development_reloads_what_is_edited() {
    let stack = stack();
    phase("development");
    let checkout = stack.sandbox.work();
    stack.shell("deployments/docker/secrets/make dev").success();
    // A Compose before 2.32 watches services that it builds itself; nothing is built.
    let over = "services:\n  core: {build: {context: .}}\n  rag:\n    build: {context: .}\n    environment: {COMPLETION_PROVIDER: \
                ollama, API_TOKEN_FILE: '', LITELLM_API_KEY_FILE: '', OBELISK_CONFIG: ''}\n";
    let files = ["deployments/docker/compose/dev.yaml".into(), stack.sandbox.write("over.yaml", over)];
    let compose = |words: &[&str]| {
        let mut compose = stack.engine.command();
        compose.current_dir(&checkout).arg("compose");
        for file in &files {
            compose.arg("--file").arg(file);
        }
        // The ports of the page are free in the engine's own network.
        // Compose keeps a lock of a watched project there, which outlives one that is killed.
        compose.env("XDG_RUNTIME_DIR", stack.sandbox.path());
        compose.args(words).env("OBELISK_TAG", "test").env("CORE_CPU_LIMIT", "1.0");
        compose
    };
    outcome(&mut compose(&["up", "--detach", "--no-deps", "--no-build", "core", "rag"])).success();
    let log = fs::File::create(stack.sandbox.path().join("watch.log")).unwrap();
    // Docker's client starts Compose as a process of its own, which outlives a client that is killed.
    let mut watch = compose(&["watch", "--no-up", "core", "rag"])
        .process_group(0)
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let whole = |path: &str| (checkout.join(path), fs::read(checkout.join(path)).unwrap());
    let edited =
        ["images/obelisk/vault/index.md", "images/obelisk/src/obelisk/rag/api.py", "images/obelisk/mkdocs.yml"]
            .map(whole);
    let tried = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        let said = |service: &str, path: &str| {
            let id = stack.engine.docker([
                "ps",
                "--quiet",
                "--filter",
                "label=com.docker.compose.project=obelisk-dev",
                "--filter",
                &format!("label=com.docker.compose.service={service}"),
            ]);
            let ask = format!(
                "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000{path}', timeout=5).read().decode())"
            );
            stack.engine.try_docker(["exec", id.trim(), "/usr/bin/python3", "-IS", "-c", &ask]).stdout
        };
        let until = |service: &str, path: &str, wanted: &str| {
            let limit = Instant::now() + Duration::from_secs(120);
            while !said(service, path).contains(wanted) {
                let told = || fs::read_to_string(stack.sandbox.path().join("watch.log")).unwrap();
                let logs = || outcome(&mut compose(&["logs", "--no-color", "--tail", "30", service])).stdout;
                assert!(Instant::now() < limit, "{service} does not say `{wanted}`:\n{}\n{}", told(), logs());
                thread::sleep(Duration::from_millis(200));
            }
        };
        let edit = |path: &str, from: &str, to: &str| {
            // As many editors do: another file takes the place.
            let path = checkout.join(path);
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{}: `{from}`", path.display());
            let new = path.with_extension("new~");
            fs::write(&new, text.replacen(from, to, 1)).unwrap();
            fs::rename(new, path).unwrap();
        };
        until("core", "/", "<title>Obelisk");
        until("rag", "/healthz", "\"ok\"");
        edit("images/obelisk/vault/index.md", "\n", "\nThe quagga was half a zebra.\n\n");
        until("core", "/", "The quagga was half a zebra.");
        edit("images/obelisk/src/obelisk/rag/api.py", "\"status\": \"ok\"", "\"status\": \"edited\"");
        until("rag", "/healthz", "\"edited\"");
        edit("images/obelisk/mkdocs.yml", "site_name: Obelisk", "site_name: Quagga");
        until("core", "/", "Quagga</title>");
    }));
    // Others build from this checkout.
    for (path, text) in edited {
        fs::write(path, text).unwrap();
    }
    // A client may wait for ever for its own plugin to end: then both are ended.
    for signal in [Signal::TERM, Signal::KILL] {
        kill_process_group(Pid::from_child(&watch), signal).unwrap();
        let limit = Instant::now() + Duration::from_secs(30);
        while watch.try_wait().unwrap().is_none() && Instant::now() < limit {
            thread::sleep(Duration::from_millis(50));
        }
        if watch.try_wait().unwrap().is_some() {
            break;
        }
    }
    watch.wait().unwrap();
    outcome(&mut compose(&["down", "--volumes", "--timeout", "2"])).success();
    if let Err(failed) = tried {
        panic::resume_unwind(failed);
    }
    stack.well();
}
