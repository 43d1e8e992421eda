//! The test stack: brought up by Docker Compose on a real engine from images that imgbuild built, asked, broken, healed,
//! saved and put back. Its engine has a network namespace of its own, so nothing is reached but what is there.

mod edited;
mod mistakes;
mod saved;

use std::collections::BTreeMap;
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::docker::{Engine, networked_engine};
use crate::support::pages;
use crate::support::run::{Outcome, Sandbox, outcome, repository, tool};
use crate::support::shared;

/// The services that run on.
const SERVICES: [&str; 9] =
    ["core", "etcd", "litellm", "litellm-proxy", "milvus", "minio", "ollama", "postgres", "rag"];

/// What the fixture says and no model knows.
const FACT: &str = "The lighthouse of Varn was painted green in 1931.";
const QUESTION: &str = "In which year was the lighthouse of Varn painted, and in which colour?";

/// What Docker says of a service's container.
#[derive(Debug)]
struct Container {
    id: String,
    started: String,
    /// Empty: nobody asks.
    health: String,
}

struct Stack {
    engine: Engine,
    sandbox: Sandbox,
    /// What images are built from and of.
    cache: PathBuf,
}

/// The stack, brought up once for all tests; whoever has it has it alone.
fn stack() -> MutexGuard<'static, Stack> {
    static STACK: OnceLock<Option<Mutex<Stack>>> = OnceLock::new();
    let stack = STACK.get_or_init(|| panic::catch_unwind(Stack::up).ok().map(Mutex::new));
    let stack = stack.as_ref().expect("the stack did not come up: the test that tried says why");
    // A test that failed may have left anything behind; the next one says so by itself.
    stack.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Says how far a test is, and when: what takes long is seen where a test fails, and with `--nocapture`.
fn phase(what: &str) {
    static START: OnceLock<Instant> = OnceLock::new();
    println!("{:6.1} s {what}", START.get_or_init(Instant::now).elapsed().as_secs_f64());
}

impl Stack {
    /// Brings it up by the commands of the page, in a checkout.
    fn up() -> Stack {
        let sandbox = Sandbox::new();
        phase("a checkout");
        pages::checkout(&sandbox);
        phase("an engine");
        let engine = networked_engine();
        let client = find(engine.command().get_program().to_str().unwrap());
        std::os::unix::fs::symlink(client, sandbox.path().join("bin/docker")).unwrap();
        // Kept between runs: what is downloaded and what was made of it, which imgbuild itself takes care of. What other
        // tests downloaded is not downloaded again.
        let (downloads, cache) = (shared::folder("downloads"), shared::folder("stack-cache"));
        if downloads.join("blobs-v1").exists() {
            let link = ["--archive", "--link", "--no-clobber"].map(str::as_ref);
            tool("cp", link.into_iter().chain([downloads.join("blobs-v1").as_os_str(), cache.as_os_str()]));
        }
        let stack = Stack { engine, sandbox, cache };
        let run = stack.page("", "");
        assert!(run >= 3, "{run}");
        stack
    }

    /// Runs the blocks of the pages that are for this stack: those of one page that say something. Gives how many there were.
    fn page(&self, page: &str, says: &str) -> usize {
        let mut blocks = pages::blocks();
        blocks.retain(|it| it.kind == "run: stack" && it.at.starts_with(page) && it.text.contains(says));
        for block in &blocks {
            phase(&format!("{}: {}", block.at, block.text.lines().last().unwrap_or_default()));
            let done = self.shell(&block.text);
            if done.status != 0 {
                let logs = self.try_compose(&["logs", "--no-color", "--tail", "40"]);
                let all = self.try_compose(&["ps", "--all"]);
                panic!(
                    "{}\n{}\n{}\n{}\n{}\n{}",
                    block.at, block.text, done.stdout, done.stderr, all.stdout, logs.stdout
                );
            }
        }
        blocks.len()
    }

    /// Runs commands in the checkout, with this engine.
    fn shell(&self, text: &str) -> Outcome {
        let mut shell = pages::shell(&self.sandbox, text);
        shell.env("IMGBUILD_CACHE_DIR", &self.cache).env("DOCKER_HOST", self.engine.host());
        outcome(&mut shell)
    }

    fn entry(&self) -> PathBuf {
        self.sandbox.work().join("deployments/docker/compose/test.yaml")
    }

    #[track_caller]
    fn try_compose(&self, arguments: &[&str]) -> Outcome {
        outcome(self.engine.command().args(["compose", "--file"]).arg(self.entry()).args(arguments))
    }

    #[track_caller]
    fn compose(&self, arguments: &[&str]) -> String {
        self.try_compose(arguments).success()
    }

    /// The services' containers, running or not.
    #[track_caller]
    fn containers(&self) -> BTreeMap<String, Container> {
        let ours = ["label=com.docker.compose.oneoff=False", "label=com.docker.compose.project=obelisk-test"];
        let filters = ours.iter().flat_map(|label| ["--filter", label]);
        let ids = self.engine.docker(["ps", "--all", "--quiet"].into_iter().chain(filters));
        let format = "{{index .Config.Labels \"com.docker.compose.service\"}} {{.Id}} {{.State.StartedAt}} \
                      {{with .State.Health}}{{.Status}}{{end}}";
        let told = self.engine.docker(["inspect", "--format", format].into_iter().chain(ids.lines()));
        let container = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            let mut next = || words.next().unwrap_or_default();
            (next(), Container { id: next(), started: next(), health: next() })
        };
        told.lines().map(container).collect()
    }

    /// A service's container.
    #[track_caller]
    fn container(&self, service: &str) -> String {
        self.containers().remove(service).unwrap_or_else(|| panic!("{service} has no container")).id
    }

    /// Runs a command in a service's container.
    #[track_caller]
    fn inside(&self, service: &str, command: &[&str]) -> Outcome {
        self.engine.try_docker([&["exec", &self.container(service)][..], command].concat())
    }

    /// Runs a script of the shell in the client, which has curl, jq, the vault and the tokens.
    #[track_caller]
    fn client(&self, script: &str) -> Outcome {
        self.inside("client", &["bash", "-ec", script])
    }

    /// Asks rag a question; gives the status and the body.
    fn ask(&self, body: &Value) -> (u16, String) {
        let script = format!(
            "curl -sS --max-time 60 -w '\\n%{{http_code}}' -H \"Authorization: Bearer $(cat /app/config/rag_api_token)\" \
             -H 'Content-Type: application/json' --data-binary '{body}' http://rag:8000/v1/chat/completions"
        );
        let said = self.client(&script).stdout;
        let (body, status) = said.rsplit_once('\n').unwrap_or(("", "0"));
        (status.parse().unwrap_or(0), body.to_owned())
    }

    /// The answer to a question, and the sources that it names.
    fn answer(&self, question: &str) -> Result<(String, Vec<String>), String> {
        let body = json!({"model": "obelisk-rag", "messages": [{"role": "user", "content": question}]});
        let (status, said) = self.ask(&body);
        let value: Value = serde_json::from_str(&said).map_err(|_| format!("{status}: {said}"))?;
        let text = value["choices"][0]["message"]["content"].as_str().ok_or_else(|| format!("{status}: {said}"))?;
        let sources = value["sources"].as_array().into_iter().flatten();
        let sources = sources.filter_map(|it| it["source"].as_str()).map(str::to_owned).collect();
        Ok((text.to_owned(), sources))
    }

    /// The same, streamed: the pieces put together, and how many there were.
    fn streamed(&self, question: &str) -> (String, usize) {
        let body = json!({"model": "obelisk-rag", "stream": true, "messages": [{"role": "user", "content": question}]});
        let (status, said) = self.ask(&body);
        assert!(status == 200 && said.contains("data: [DONE]"), "{status}: {said}");
        let events = said.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|it| *it != "[DONE]");
        let values: Vec<Value> = events.map(|event| serde_json::from_str(event).unwrap()).collect();
        let pieces = values.iter().filter_map(|it| it["choices"][0]["delta"]["content"].as_str());
        let pieces: Vec<&str> = pieces.filter(|it| !it.is_empty()).collect();
        (pieces.concat(), pieces.len())
    }

    /// Waits until the answer to a question is as wanted.
    #[track_caller]
    fn until(&self, what: &str, question: &str, wanted: impl Fn(&str, &[String]) -> bool) {
        let limit = Instant::now() + Duration::from_secs(180);
        loop {
            let answer = self.answer(question);
            if matches!(&answer, Ok((text, sources)) if wanted(text, sources)) {
                return;
            }
            if Instant::now() > limit {
                let logs =
                    self.try_compose(&["logs", "--no-color", "--tail", "20", "rag", "litellm", "milvus", "ollama"]);
                panic!("{what}: {answer:?}\n{}", logs.stdout);
            }
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits until every service is healthy.
    #[track_caller]
    fn well(&self) {
        let limit = Instant::now() + Duration::from_secs(300);
        loop {
            let containers = self.containers();
            let ill = SERVICES.into_iter().find(|it| containers.get(*it).is_none_or(|it| it.health != "healthy"));
            let Some(ill) = ill else { return };
            let said = || self.try_compose(&["logs", "--no-color", "--tail", "40", ill]).stdout;
            assert!(Instant::now() < limit, "{ill}: {:?}\n{}", containers.get(ill), said());
            thread::sleep(Duration::from_millis(300));
        }
    }

    /// What PostgreSQL, etcd and the S3 server hold, as text that every byte of it decides.
    fn data(&self) -> BTreeMap<&'static str, String> {
        let postgres = || {
            let sql = "SELECT id, encode(bytes, 'hex'), md5(bytes) FROM proof ORDER BY id";
            let script = format!("psql -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" -At -c \"{sql}\"");
            self.inside("postgres", &["sh", "-c", &script]).success()
        };
        let litellm = || {
            let dump = "pg_dump -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" --data-only --table double";
            let dump = self.inside("postgres", &["sh", "-c", dump]).success();
            // Each dump carries a word of its own against forged commands.
            let lines = dump.lines();
            let lines = lines.filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
            lines.map(|line| format!("{line}\n")).collect()
        };
        let etcd = || {
            let get =
                ["etcdctl", "--endpoints=http://127.0.0.1:2379", "get", "--prefix", "proof/", "--write-out=fields"];
            let said = self.inside("etcd", &get).success();
            // Revisions count the writes of this run of the server, not what is stored.
            let stored = said.lines().filter(|line| line.starts_with("\"Key\"") || line.starts_with("\"Value\""));
            stored.map(|line| format!("{line}\n")).collect()
        };
        let minio = || {
            self.mc(
                "rm -rf /tmp/all; mc --config-dir /tmp/mc mirror --overwrite --remove store /tmp/all; cd /tmp/all; \
                 python3 -c \"import hashlib, pathlib; [print(it, hashlib.sha256(it.read_bytes()).hexdigest() if \
                 it.is_file() else '') for it in sorted(pathlib.Path('.').rglob('*'))]\"",
            )
            .success()
        };
        let stores: [(&str, &(dyn Fn() -> String + Sync)); 4] =
            [("postgres", &postgres), ("litellm", &litellm), ("etcd", &etcd), ("minio", &minio)];
        thread::scope(|scope| {
            let asked = stores.map(|(name, ask)| (name, scope.spawn(ask)));
            asked.into_iter().map(|(name, said)| (name, said.join().unwrap())).collect()
        })
    }

    /// A script with MinIO's client, logged in.
    fn mc(&self, script: &str) -> Outcome {
        let login = "printf \"%s\\n%s\\n\" \"$(cat /run/secrets/minio_root_user)\" \"$(cat /run/secrets/minio_root_password)\" | \
                     mc --config-dir /tmp/mc alias set store http://127.0.0.1:9000; ";
        self.inside("minio", &["sh", "-ec", &format!("{login}{script}")])
    }

    /// Fills the three stores with random bytes.
    fn fill(&self) {
        let sql = "CREATE TABLE IF NOT EXISTS proof (id int PRIMARY KEY, bytes bytea); TRUNCATE proof; \
                   INSERT INTO proof SELECT n, sha512((random()::text || n)::bytea) FROM generate_series(1, 500) n; \
                   INSERT INTO proof VALUES (0, decode('00ff0a0d275c', 'hex')), (501, ''), (502, NULL)";
        let fill = format!("psql -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" -v ON_ERROR_STOP=1 -qc \"{sql}\"");
        self.inside("postgres", &["sh", "-c", &fill]).success();
        for (key, value) in [("proof/a", "one"), ("proof/b", "two\n\tlines \u{e9}\u{1F5FC}"), ("proof/empty", "")] {
            self.inside("etcd", &["etcdctl", "--endpoints=http://127.0.0.1:2379", "put", "--", key, value]).success();
        }
        self.mc("mc --config-dir /tmp/mc mb --ignore-existing store/empty; mkdir -p /tmp/put/deep/er; head -c 3000000 /dev/urandom > /tmp/put/deep/er/big; : > /tmp/put/empty; \
                 mc --config-dir /tmp/mc mb --ignore-existing store/milvus; \
                 mc --config-dir /tmp/mc mirror --overwrite --remove /tmp/put store/milvus; rm -rf /tmp/put")
            .success();
    }
}

#[test]
fn real_the_test_stack_comes_up() {
    let stack = stack();
    phase("what it answers");
    let listed = stack.shell("imgbuild --catalogue images/stack list").success();
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, deployments::STAND_INS);
    let init = stack.compose(&["ps", "--all", "--format", "{{.Service}} {{.State}} {{.ExitCode}}", "init"]);
    assert_eq!(init.trim(), "init exited 0");
    // What init wrote is what rag uses: no variable of its container says it.
    let settings = stack.inside("rag", &["python3", "-m", "obelisk", "rag", "config", "--show"]).success();
    let told = stack.inside("rag", &["python3", "-c", "import os; print(*os.environ.items(), sep='\\n')"]).success();
    for (variable, value) in [
        ("MILVUS_URI", "http://milvus:19530"),
        ("EMBEDDING_MODEL", "all-minilm"),
        ("OLLAMA_MODEL", "tiny"),
        ("LITELLM_API_URL", "http://litellm:4000"),
    ] {
        let says = |line: &str| line == format!("{variable}={value}");
        assert!(settings.lines().any(says), "{variable}: {settings}");
        let says = |line: &str| line.starts_with(&format!("('{variable}', ")) && !line.ends_with(", '')");
        assert!(!told.lines().any(says), "{variable}: {told}");
    }
    // Of all tokens rag has its two, and not the key that Open WebUI signs its sessions with.
    let list = "import os; print(sorted(os.listdir('/app/config')), os.path.exists('/app/tokens'))";
    let seen = stack.inside("rag", &["python3", "-c", list]).success();
    assert_eq!(seen, "['litellm_api_token', 'rag.yaml', 'rag_api_token'] False\n");
    stack.well();
    // The fixture was there before the start, and is quoted with its source.
    stack.until("the fixture is quoted", QUESTION, |text, sources| {
        text == FACT && sources.iter().any(|it| it.ends_with("lighthouse.md"))
    });
    // A page that comes later is quoted, too, whole and streamed.
    let (page, fact, question) = (
        "/app/vault/notes/ferry.md",
        "The ferry to Ostrel leaves from pier seven at dawn.",
        "From which pier does the ferry to Ostrel leave?",
    );
    stack.client(&format!("mkdir -p /app/vault/notes; printf '# The ferry\\n\\n{fact}\\n' > {page}")).success();
    let quoted = |text: &str, sources: &[String]| text == fact && sources.iter().any(|it| it.ends_with("ferry.md"));
    stack.until("the new page is quoted", question, quoted);
    let (text, pieces) = stack.streamed(question);
    assert!(text == fact && pieces > 3, "{pieces} pieces: {text}");
    // What is embedded means something: words that the page does not use find it.
    stack.until("another wording finds it", "Where do boats for Ostrel start?", quoted);
    phase("new tokens, restart of rag");
    let tokens = "cat /app/config/rag_api_token; echo; cat /app/config/litellm_api_token";
    let old = stack.client(tokens).success();
    let rotated = stack.compose(&["run", "--rm", "-T", "--no-deps", "init", "--rotate"]);
    assert!(rotated.contains("tokens rotated"), "{rotated}");
    // The index is kept when the service ends, and new tokens are read when it starts.
    stack.compose(&["restart", "rag"]);
    stack.well();
    stack.until("the page is quoted after a restart", question, quoted);
    for (token, url) in old.split_whitespace().zip(["http://rag:8000/v1/models", "http://litellm:4000/v1/models"]) {
        let asked = format!("curl -s -o /dev/null -w '%{{http_code}}' -H 'Authorization: Bearer {token}' {url}");
        assert!(token.len() >= 16 && stack.client(&asked).stdout == "401", "{url} takes the old token `{token}`");
    }
    // What a page says now is quoted, and not what it said.
    let now = "The ferry to Ostrel leaves from pier nine at dusk.";
    stack.client(&format!("printf '# The ferry\\n\\n{now}\\n' > {page}")).success();
    stack.until("the changed page is quoted", question, |text, _| text == now);
    stack.client(&format!("rm {page}")).success();
    stack.until("the page is forgotten", question, |text, sources| {
        text != now && text != fact && !sources.iter().any(|it| it.ends_with("ferry.md"))
    });
    phase("LiteLLM, tokens, init again");
    // LiteLLM's real proxy answers through the stand-in, by the token that init registered.
    let asked = stack.client(
        "curl -sS --fail-with-body http://litellm:4000/v1/chat/completions -H 'Content-Type: application/json' \
         -H \"Authorization: Bearer $(cat /app/config/litellm_api_token)\" --data-binary \
         '{\"model\": \"tiny\", \"messages\": [{\"role\": \"user\", \"content\": \"Tin is cheap. Gold is dear. What is dear?\"}]}'",
    );
    let asked: Value = serde_json::from_str(&asked.success()).unwrap();
    assert_eq!(asked["choices"][0]["message"]["content"], "Gold is dear.", "{asked:#}");
    assert_eq!(asked["model"], "ollama_chat/tiny", "{asked:#}");
    // Whoever has no token gets nothing.
    let refused = "curl -s -o /dev/null -w '%{http_code}' http://rag:8000/v1/models; \
                   curl -s -o /dev/null -w ' %{http_code}' http://litellm:4000/v1/models";
    assert_eq!(stack.client(refused).stdout, "401 401");
    // A second run finds everything as it should be.
    let again = stack.compose(&["run", "--rm", "-T", "--no-deps", "init"]);
    assert_eq!(again.lines().last(), Some("unchanged"), "{again}");
}

/// Python's own words for "can this container reach that port?".
fn reaches(host: &str, port: u16) -> String {
    format!("import socket; socket.create_connection(('{host}', {port}), 4).close(); print('reached')")
}

#[test]
fn real_networks_are_isolated() {
    let stack = stack();
    let stack = &*stack;
    phase("networks");
    let address = |service: &str, network: &str| -> String {
        let id = stack.container(service);
        let format = format!("{{{{(index .NetworkSettings.Networks \"obelisk-test_{network}\").IPAddress}}}}");
        stack.engine.docker(["inspect", "--format", &format, &id]).trim().to_owned()
    };
    let python = &|service: &str, host: &str, port: u16| {
        stack.inside(service, &["/usr/bin/python3", "-c", &reaches(host, port)])
    };
    // With a positive control each: somebody who shares the network reaches the very same address. All at once: who may not
    // reach it waits for an answer.
    let tried = [
        ("postgres", 5432, "data", "litellm", "rag"),
        ("postgres", 5432, "data", "litellm", "core"),
        ("ollama", 11434, "llm", "rag", "core"),
        ("ollama", 11434, "llm", "rag", "milvus"),
        ("minio", 9000, "vector-store", "milvus", "rag"),
        ("etcd", 2379, "vector-store", "milvus", "rag"),
        ("milvus", 19530, "vector", "rag", "litellm"),
    ];
    thread::scope(|scope| {
        for (target, port, network, friend, stranger) in tried {
            let ip = address(target, network);
            for host in [target.to_owned(), ip] {
                scope.spawn(move || {
                    let reached = python(friend, &host, port).success();
                    assert_eq!(reached, "reached\n", "{friend} must reach {target} as {host}");
                    let refused = python(stranger, &host, port);
                    assert!(
                        refused.status != 0 && !refused.stdout.contains("reached"),
                        "{stranger} reaches {target} as {host}"
                    );
                });
            }
        }
    });
    // Published is the edge alone, on the loopback.
    for service in SERVICES {
        let id = stack.container(service);
        let ports = stack.engine.docker(["inspect", "--format", "{{json .NetworkSettings.Ports}}", &id]);
        let ports: BTreeMap<String, Option<Vec<Value>>> = serde_json::from_str(&ports).unwrap();
        let published: Vec<&Value> = ports.values().flatten().flatten().collect();
        assert_eq!(published.len(), usize::from(service == "core"), "{service}: {published:?}");
        assert!(published.iter().all(|it| it["HostIp"] == "127.0.0.1"), "{service}: {published:?}");
    }
}

#[test]
fn real_every_service_heals() {
    let stack = stack();
    stack.fill();
    let data = stack.data();
    stack.until("the fixture is quoted", QUESTION, |text, _| text == FACT);
    for service in SERVICES {
        let before = stack.containers();
        let id = &before[service].id;
        phase(&format!("{service} away and back"));
        // Docker's own words: those of compose would run the jobs that the service once waited for, too.
        stack.engine.docker(["stop", id]);
        assert_eq!(stack.engine.docker(["inspect", "--format", "{{.State.Running}}", id]).trim(), "false");
        stack.engine.docker(["start", id]);
        // Everybody is well, and nobody else had to be started.
        stack.well();
        let changed: Vec<String> = stack
            .containers()
            .into_iter()
            .filter(|(name, it)| it.started != before[name].started)
            .map(|it| it.0)
            .collect();
        assert_eq!(changed, [service]);
        stack.until(&format!("after {service} was away"), QUESTION, |text, _| text == FACT);
        let after = stack.data();
        assert!(after == data, "after {service} was away:\n{data:#?}\n{after:#?}");
    }
    // Those that hold data lose none when they are killed, either.
    phase("killed");
    let holders = ["etcd", "milvus", "minio", "postgres"].map(|service| stack.container(service));
    stack.engine.docker(["kill"].into_iter().chain(holders.iter().map(String::as_str)));
    stack.engine.docker(["start"].into_iter().chain(holders.iter().map(String::as_str)));
    stack.well();
    stack.until("after the stores were killed", QUESTION, |text, _| text == FACT);
    let after = stack.data();
    assert!(after == data, "after the stores were killed:\n{data:#?}\n{after:#?}");
}

/// Where a program is.
fn find(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|it| it.is_file()).unwrap()
}
