//! What is saved of the test stack and put back: by the script for compose, and by the jobs of Kubernetes.

use super::*;

#[test]
fn real_a_backup_is_put_back_byte_for_byte() {
    let stack = stack();
    let folder = stack.sandbox.path().join("backup");
    let script = |verb: &str| -> Outcome {
        let folder = folder.display();
        stack.shell(&format!("imgbuild deploy {verb} --env test --script > {verb}.sh; bash {verb}.sh '{folder}'"))
    };
    stack.fill();
    stack.client("printf '# The well\\n\\nThe well of Brisk is forty fathoms deep.\\n' > /app/vault/well.md").success();
    let well = "How deep is the well of Brisk?";
    let deep = |text: &str, _: &[String]| text == "The well of Brisk is forty fathoms deep.";
    stack.until("the page is quoted", well, deep);
    let before = stack.data();
    let rows = before["postgres"].lines().count();
    assert!(rows == 503 && before["etcd"].contains("proof/b") && before["minio"].contains("big"), "{before:#?}");
    assert!(before["minio"].contains("empty \n"), "a bucket without an object is one, too: {before:#?}");
    phase("backup");
    script("backup").success();
    let mut saved: Vec<String> =
        fs::read_dir(&folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    saved.sort();
    let expected = [
        "SHA256SUMS",
        "complete",
        "init-tokens.tar",
        "llm-postgres-data.dump",
        "rag-vault.tar",
        "vector-etcd-data.db",
        "vector-milvus-data.tar",
        "vector-minio-data",
    ];
    assert_eq!(saved, expected);
    script("backup").failure(1, &["already holds a backup"]);
    stack.well();
    assert!(stack.data() == before, "a backup changes nothing");

    phase("everything is lost");
    // Everything is lost: containers, volumes, networks. A new stack starts, with tokens of its own and other data.
    stack.compose(&["--profile", "client", "down", "--volumes"]);
    let left = stack.engine.docker(["volume", "ls", "--quiet"]);
    assert!(!left.contains("obelisk-test_"), "{left}");
    stack.page("quick-start-test.md", "up --detach");
    let etcd = ["etcdctl", "--endpoints=http://127.0.0.1:2379", "put", "proof/new", "x"];
    stack.inside("etcd", &etcd).success();
    stack
        .mc("mkdir -p /tmp/put; echo other > /tmp/put/other; for it in milvus later; do \
              mc --config-dir /tmp/mc mb --ignore-existing store/$it; \
              mc --config-dir /tmp/mc mirror --overwrite --remove /tmp/put store/$it; done; rm -rf /tmp/put")
        .success();
    stack.client("rm /app/vault/lighthouse.md; printf '# Later\\n' > /app/vault/later.md").success();
    stack.until("nobody knows the page", well, |text, _| !text.contains("forty"));

    // A damaged backup is refused before anything is touched.
    let dump = folder.join("llm-postgres-data.dump");
    let whole = fs::read(&dump).unwrap();
    fs::write(&dump, &whole[..whole.len() / 2]).unwrap();
    let refused = script("restore");
    assert!(refused.status != 0 && refused.stderr.contains("llm-postgres-data.dump"), "{}", refused.stderr);
    fs::write(&dump, whole).unwrap();
    // So is one that lacks something, as that of another environment does.
    fs::rename(folder.join("rag-vault.tar"), folder.join("aside")).unwrap();
    let refused = script("restore");
    assert!(refused.status != 0 && refused.stderr.contains("has no rag-vault.tar"), "{}", refused.stderr);
    fs::rename(folder.join("aside"), folder.join("rag-vault.tar")).unwrap();

    phase("restore");
    script("restore").success();
    phase("what is there after the restore");
    stack.well();
    let after = stack.data();
    assert_eq!(stack.client("ls /app/vault/well.md /app/vault/later.md").stdout, "/app/vault/well.md\n");
    for (name, data) in &before {
        assert!(after[name] == *data, "{name} is not what it was:\n{data}\n{}", after[name]);
    }
    stack.until("the page is quoted again", well, deep);
    stack.until("the fixture is quoted again", QUESTION, |text, _| text == FACT);
    // The site is of the vault that was put back.
    let site = |path: &str| {
        let ask = format!(
            "import urllib.request as u\ntry: print(u.urlopen('http://127.0.0.1:8000/{path}/').read().decode())\n\
             except u.HTTPError as error: print(error.code)"
        );
        stack.inside("core", &["/usr/bin/python3", "-c", &ask]).success()
    };
    assert!(site("well").contains("forty fathoms deep"), "{}", site("well"));
    assert_eq!(site("later"), "404\n");
    let again = stack.compose(&["run", "--rm", "-T", "--no-deps", "init"]);
    assert_eq!(again.lines().last(), Some("unchanged"), "tokens, keys and models are those of the backup: {again}");
}

/// The scripts of the jobs that Kubernetes runs every night, and of those that put back, in the images that stand in: the
/// same servers' own programs.
#[test]
fn real_the_jobs_of_kubernetes_save_and_put_back_every_byte() {
    let stack = stack();
    phase("the jobs of Kubernetes");
    let docker = stack.sandbox.work().join("deployments/docker");
    let folder = |name: &str| {
        let path = stack.sandbox.path().join(name);
        fs::create_dir_all(&path).unwrap();
        tool("chmod", ["0777".as_ref(), path.as_os_str()]);
        path
    };
    let backup = folder("nightly");
    let job = |image: &str, network: &str, more: &[&str], command: &[&str]| -> Outcome {
        let mut run = stack.engine.command();
        run.args(["run", "--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--user", "10001:10001"]);
        run.arg("--network").arg(network).arg("--volume").arg(format!("{}:/backup", backup.display()));
        run.arg("--volume").arg(format!("{}:/etc/backup:ro", docker.join("config/backup").display()));
        for secret in ["postgres_password", "minio_root_user", "minio_root_password"] {
            let path = docker.join("secrets/test").join(secret);
            run.arg("--volume").arg(format!("{}:/run/secrets/{secret}:ro", path.display()));
        }
        let (program, arguments) = command.split_first().unwrap();
        outcome(run.args(more).args(["--entrypoint", program]).arg(format!("obelisk/{image}:test")).args(arguments))
    };
    let postgres =
        |more: &[&str], verb| job("postgres", "obelisk-test_data", more, &["sh", "/etc/backup/postgres.sh", verb]);
    let etcd = |network: &str, more: &[&str], verb| job("etcd", network, more, &["sh", "/etc/backup/etcd.sh", verb]);
    let buckets =
        |more: &[&str], verb| job("s3", "obelisk-test_vector-store", more, &["sh", "/etc/backup/buckets.sh", verb]);
    let kept = |prefix: &str| -> Vec<PathBuf> {
        let all = fs::read_dir(&backup).unwrap().map(|it| it.unwrap().path());
        let mut all: Vec<PathBuf> =
            all.filter(|it| it.file_name().unwrap().to_str().unwrap().starts_with(prefix)).collect();
        all.sort();
        all
    };

    // Nothing is there to put back yet, and buckets are not saved without the snapshot that names their objects.
    postgres(&[], "restore").failure(1, &["there is no dump"]);
    buckets(&[], "save").failure(1, &["there is no snapshot of etcd to complete"]);
    stack.fill();
    let before = stack.data();
    // Older ones, of which the oldest go; and what an ended job left.
    for old in [
        "llm-postgres-data-20200101T000000Z.dump",
        "llm-postgres-data-20200102T000000Z.dump",
        "llm-postgres-data-x.part",
    ] {
        fs::write(backup.join(old), "old").unwrap();
    }
    for old in ["vector-20200101T000000Z", "vector-20200102T000000Z", "vector-next"] {
        fs::create_dir(backup.join(old)).unwrap();
        tool("chmod", ["0777".as_ref(), backup.join(old).as_os_str()]);
    }
    postgres(&["--env", "KEEP=2"], "save").success();
    etcd("obelisk-test_vector-store", &[], "save").success();
    buckets(&["--env", "KEEP=2"], "save").success();
    let (dumps, vectors) = (kept("llm-postgres-data-"), kept("vector-"));
    assert!(dumps.len() == 2 && dumps[0].ends_with("llm-postgres-data-20200102T000000Z.dump"), "{dumps:?}");
    assert!(vectors.len() == 2 && vectors[0].ends_with("vector-20200102T000000Z"), "{vectors:?}");

    // PostgreSQL: into a database of another name, which is there already and is replaced.
    let psql = |database: &str, sql: &str| {
        let script = format!("psql -U \"$POSTGRES_USER\" -d {database} -At -c \"{sql}\"");
        stack.inside("postgres", &["sh", "-c", &script]).success()
    };
    psql("template1", "CREATE DATABASE copied");
    psql("copied", "CREATE TABLE later (id int)");
    postgres(&["--env", "PGDATABASE=copied"], "restore").success();
    let rows = psql("copied", "SELECT id, encode(bytes, 'hex'), md5(bytes) FROM proof ORDER BY id");
    assert!(rows == before["postgres"], "{rows}\n{}", before["postgres"]);
    assert_eq!(psql("copied", "SELECT to_regclass('later')").trim(), "");
    // Half a dump leaves the database as it was, and nothing beside it.
    psql("copied", "CREATE TABLE later (id int)");
    let whole = fs::read(kept("llm-postgres-data-").last().unwrap()).unwrap();
    fs::write(backup.join("half.dump"), &whole[..whole.len() / 2]).unwrap();
    postgres(&["--env", "PGDATABASE=copied", "--env", "BACKUP=/backup/half.dump"], "restore")
        .failure(1, &["cannot be put back; the database copied is as it was"]);
    assert_eq!(psql("copied", "SELECT id, encode(bytes, 'hex'), md5(bytes) FROM proof ORDER BY id"), rows);
    assert_eq!(psql("copied", "SELECT to_regclass('later')").trim(), "later");
    assert_eq!(psql("template1", "SELECT datname FROM pg_database WHERE datname LIKE '%_new'").trim(), "");
    psql("template1", "DROP DATABASE copied");

    // etcd: refused while it runs, then a folder that another etcd starts from.
    let (restored, log) = (folder("nightly-etcd"), folder("nightly-milvus"));
    fs::write(log.join("rdb_data"), "what came later").unwrap();
    let (claim, milvus) = (format!("{}:/etcd", restored.display()), format!("{}:/milvus", log.display()));
    let claims = ["--volume", &claim, "--volume", &milvus];
    etcd("obelisk-test_vector-store", &claims, "restore").failure(1, &["etcd runs: scale it to 0 first"]);
    assert!(log.join("rdb_data").exists());
    etcd("none", &claims, "restore").success();
    assert!(!log.join("rdb_data").exists());
    let started = [
        "run",
        "--detach",
        "--rm",
        "--network",
        "none",
        "--user",
        "10001:10001",
        "--volume",
        &claim,
        "--entrypoint",
        "etcd",
    ];
    let id = stack.engine.docker([&started[..], &["obelisk/etcd:test", "--data-dir=/etcd/data"]].concat());
    let get = "until etcdctl endpoint health; do sleep 0.2; done > /dev/null 2>&1; etcdctl get --prefix proof/ --write-out=fields";
    let said = stack.engine.docker(["exec", id.trim(), "sh", "-c", get]);
    stack.engine.docker(["kill", id.trim()]);
    let stored = said.lines().filter(|line| line.starts_with("\"Key\"") || line.starts_with("\"Value\""));
    assert_eq!(stored.map(|line| format!("{line}\n")).collect::<String>(), before["etcd"]);

    // The buckets: what is lost comes back, what came later goes.
    stack
        .mc("mkdir -p /tmp/put; echo other > /tmp/put/other; for it in milvus later; do \
              mc --config-dir /tmp/mc mb --ignore-existing store/$it; \
              mc --config-dir /tmp/mc mirror --overwrite --remove /tmp/put store/$it; done; rm -rf /tmp/put")
        .success();
    buckets(&[], "restore").success();
    let after = stack.data();
    assert!(after == before, "{before:#?}\n{after:#?}");

    // Files: the vault, the tokens, and a chat that writes into its database meanwhile.
    let chat = folder("chat");
    let writes = "import pathlib, sqlite3, subprocess, threading\n\
        chat = pathlib.Path('/data/openwebui')\n\
        (chat / 'uploads').mkdir(); (chat / 'uploads' / 'a b.bin').write_bytes(bytes(range(256)) * 400)\n\
        (chat / 'link').symlink_to('uploads')\n\
        base = sqlite3.connect(chat / 'webui.db', isolation_level=None, check_same_thread=False)\n\
        base.execute('PRAGMA journal_mode=WAL'); base.execute('CREATE TABLE t (a INT, b INT)')\n\
        base.execute('INSERT INTO t VALUES (-1, 0)')\n\
        done = threading.Event()\n\
        def write():\n\
        \x20   at = 0\n\
        \x20   while not done.is_set():\n\
        \x20       base.execute('BEGIN'); base.execute('INSERT INTO t VALUES (?, 0)', (at,)); base.execute('UPDATE t SET b = ?', (at,)); base.execute('COMMIT'); at += 1\n\
        writer = threading.Thread(target=write); writer.start()\n\
        try: subprocess.run(['python3', '/etc/backup/files.py', 'save'], check=True)\n\
        finally: done.set(); writer.join()\n";
    let (vault, tokens) = ("obelisk-test_rag-vault:/data/vault:ro", "obelisk-test_init-tokens:/data/tokens:ro");
    let data = format!("{}:/data/openwebui", chat.display());
    job("rag", "none", &["-v", vault, "-v", tokens, "-v", &data], &["python3", "-c", writes]).success();
    let places = ["vault", "tokens", "openwebui"].map(|name| (name, folder(&format!("put-back/{name}"))));
    fs::write(places[0].1.join("later.md"), "# Later\n").unwrap();
    let mounts: Vec<String> = places.iter().map(|(name, path)| format!("{}:/data/{name}", path.display())).collect();
    let mounts: Vec<&str> = mounts.iter().flat_map(|mount| ["-v", mount]).collect();
    let again = "import pathlib, sqlite3, subprocess\n\
        subprocess.run(['python3', '/etc/backup/files.py', 'restore'], check=True)\n\
        base = sqlite3.connect('/data/openwebui/webui.db')\n\
        assert base.execute('PRAGMA integrity_check').fetchone() == ('ok',)\n\
        rows = base.execute('SELECT count(*), count(DISTINCT b), max(a) FROM t').fetchone()\n\
        assert rows[1] == 1 and rows[0] == rows[2] + 2, rows\n\
        assert not pathlib.Path('/data/vault/later.md').exists()\n";
    job("rag", "none", &mounts, &["python3", "-c", again]).success();
    let put_back = &places[2].1;
    let upload = |path: &Path| fs::read(path.join("uploads/a b.bin")).unwrap();
    assert!(upload(put_back) == upload(&chat) && upload(put_back).len() == 102_400);
    assert_eq!(fs::read_link(put_back.join("link")).unwrap(), Path::new("uploads"));
    let sums = "shopt -s globstar dotglob; cd \"$1\"; for it in **; do [ -f \"$it\" ] || continue; sha256sum \"$it\"; stat -c %a \"$it\"; done";
    let there = stack.inside("client", &["bash", "-ec", sums, "bash", "/app/vault"]).success();
    let here = tool("bash", ["-ec", sums, "bash", places[0].1.to_str().unwrap()]);
    assert!(there == here && here.contains("lighthouse.md"), "{there}\n{here}");
    let tokens = fs::read_to_string(places[1].1.join("api_tokens.env")).unwrap();
    let token = stack.client("cat /app/config/litellm_api_token").success();
    assert!(tokens.contains(&format!("LITELLM_API_TOKEN={token}")), "what init gave to rag is what was saved");
}
