//! The test stack: brought up by Docker Compose on a real engine from images that imgbuild built, asked, broken, healed,
//! saved and put back. Its engine has a network namespace of its own, so nothing is reached but what is there.

use std::collections::BTreeMap;
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use deployments::compose::{Project, Settings};
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
        // The stack is a static, which is never dropped. What an ended process left is removed: cargo would also take a
        // catalogue that was compiled there for this one's.
        let runs = shared::folder("stack-runs");
        for old in fs::read_dir(&runs).unwrap() {
            let old = old.unwrap();
            if !Path::new("/proc").join(old.file_name()).exists() {
                tool("rm", ["-rf".as_ref(), fs::read_link(old.path()).unwrap().as_os_str(), old.path().as_os_str()]);
            }
        }
        std::os::unix::fs::symlink(sandbox.path(), runs.join(std::process::id().to_string())).unwrap();
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
        let ids = self.engine.docker(["ps", "--all", "--quiet", "--filter", "label=com.docker.compose.oneoff=False"]);
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
            "curl -sS --max-time 60 -w '\\n%{{http_code}}' -H \"Authorization: Bearer $(cat /app/tokens/rag_api_token)\" \
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
        let login = "mc --config-dir /tmp/mc alias set store http://127.0.0.1:9000 \
                     \"$(cat /run/secrets/minio_root_user)\" \"$(cat /run/secrets/minio_root_password)\"; ";
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
    let tokens = "cat /app/tokens/rag_api_token; echo; cat /app/tokens/litellm_api_token";
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
         -H \"Authorization: Bearer $(cat /app/tokens/litellm_api_token)\" --data-binary \
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

/// What Docker, Compose and our own scripts say of a mistake, at a start: the page about troubles quotes it.
#[test]
fn real_what_goes_wrong_is_told() {
    let stack = stack();
    phase("mistakes");
    let secrets = stack.sandbox.work().join("deployments/docker/secrets");
    tool("cp", ["-r".as_ref(), secrets.join("test").as_os_str(), secrets.join("unreadable").as_os_str()]);
    tool("chmod", ["-R", "u=rX,go=", secrets.join("unreadable").to_str().unwrap()]);
    let taken = stack.engine.docker(["port", &stack.container("core"), "8000"]);
    let publish = format!("--publish={}:8000", taken.trim());
    let run = ["run", "--rm", "-T", "--no-deps"];
    // Settings, Compose's words, status (`None`: any but 0), what is said; the first of it is in the page.
    type Case<'a> = (&'a [(&'a str, &'a str)], Vec<&'a str>, Option<i32>, &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        (
            &[("OLLAMA_API_URL", "ollama"), ("PULL_TIMEOUT", "soon")],
            [&run[..], &["init"]].concat(),
            Some(10),
            &["OLLAMA_API_URL must be a URL", "PULL_TIMEOUT must be a whole number"],
        ),
        (
            &[("SECRETS_DIR", "../secrets/none")],
            [&run[..], &["litellm-proxy"]].concat(),
            None,
            &["bind source path does not exist", "secrets/none/litellm_"],
        ),
        (
            &[("SECRETS_DIR", "../secrets/unreadable")],
            [&run[..], &["litellm-proxy"]].concat(),
            Some(1),
            &["is missing, empty or not readable", "/run/secrets/litellm_master_key"],
        ),
        (&[], [&run[..], &[&publish, "core"]].concat(), None, &["port is already allocated"]),
        (
            &[("OBELISK_TAG", "none")],
            vec!["--project-name", "unknown-image", "create", "--pull", "never", "core"],
            None,
            &["No such image: obelisk/core", "obelisk/core:none"],
        ),
        (&[("OLLAMA_CPU_LIMIT", "999")], [&run[..], &["ollama"]].concat(), None, &["Range of CPUs is from 0.01 to"]),
    ];
    let page = fs::read_to_string(repository().join("docs/deployments/troubleshooting.md")).unwrap();
    for (settings, arguments, status, said) in cases {
        let mut compose = stack.engine.command();
        compose.args(["compose", "--file"]).arg(stack.entry()).args(arguments).envs(settings.iter().copied());
        let done = outcome(&mut compose);
        let all = format!("{}{}", done.stdout, done.stderr);
        assert!(status.map_or(done.status != 0, |it| done.status == it), "{settings:?}: {}: {all}", done.status);
        for text in *said {
            assert!(all.contains(text), "{settings:?}: `{text}` is not in:\n{all}");
        }
        assert!(page.contains(said[0]), "troubleshooting.md says nothing of `{}`", said[0]);
    }
    stack.compose(&["--project-name", "unknown-image", "down", "--volumes"]);
    // Nobody was harmed.
    stack.well();
}

/// The scripts that start services of production, whose images are not here: run in another image, with something else in
/// the service's place that says what it was given.
#[test]
fn real_start_scripts_hand_over_tokens_and_secrets() {
    let stack = stack();
    phase("start scripts");
    let docker = stack.sandbox.work().join("deployments/docker");
    let services = Project::open(&stack.entry(), &Settings::new()).unwrap().services();
    let run = |mounts: &[(PathBuf, &str)], more: &[&str], command: &[&str]| {
        let mut docker = stack.engine.command();
        docker.args(["run", "--rm", "--read-only", "--tmpfs", "/tmp", "--network", "obelisk-test_app"]);
        for (from, to) in mounts {
            docker.arg("--volume").arg(format!("{}:{to}:ro", from.display()));
        }
        outcome(docker.args(more).args(["--entrypoint", "bash", "obelisk/init:test"]).args(command))
    };
    let secret = |name: &str| {
        let path = docker.join("secrets/test").join(name);
        (fs::read_to_string(&path).unwrap().trim().to_owned(), (path, format!("/run/secrets/{name}")))
    };

    // Open WebUI: each key opens the address that has its place in the list.
    let asks = stack.sandbox.write(
        "asks.sh",
        "set -eu; IFS=';' read -ra urls <<< \"$OPENAI_API_BASE_URLS\"; IFS=';' read -ra keys <<< \"$OPENAI_API_KEYS\"\n\
         echo \"${#urls[@]} ${#keys[@]} ${#WEBUI_SECRET_KEY}\"\n\
         for it in \"${!urls[@]}\"; do curl -sS --fail -o /dev/null -H \"Authorization: Bearer ${keys[it]}\" \"${urls[it]}/models\"; done\n",
    );
    let script = "/etc/openwebui/start.sh";
    let mounts = [(docker.join("config/openwebui/start.sh"), script), (asks, "/app/backend/start.sh")];
    let urls = format!("OPENAI_API_BASE_URLS={}", services["open-webui"].environment["OPENAI_API_BASE_URLS"]);
    let set = ["--env", &urls, "--env", "STATIC_DIR=/tmp/static"];
    let tokens = ["--volume", "obelisk-test_init-tokens:/app/tokens:ro"];
    let said = run(&mounts, &[&set[..], &tokens].concat(), &[script]).success();
    let counts: Vec<usize> = said.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert!(counts[..2] == [2, 2] && counts[2] >= 32, "{said}");
    run(&mounts, &set, &[script])
        .failure(1, &["/app/tokens/webui_secret_key is missing or empty: has init completed?"]);

    // LiteLLM and Milvus: secrets are variables of the program, and a missing one is named.
    let says = stack
        .sandbox
        .write("litellm", "#!/bin/bash\necho \"$LITELLM_MASTER_KEY $DATABASE_PASSWORD ${OPENAI_API_KEY-none} $*\"\n");
    tool("chmod", ["0755".as_ref(), says.as_os_str()]);
    let (script, names) = ("/etc/litellm/start.sh", ["litellm_master_key", "litellm_salt_key", "postgres_password"]);
    let secrets = names.map(secret);
    let mut mounts = vec![(docker.join("config/litellm/start.sh"), script), (says, "/usr/local/bin/litellm")];
    mounts.extend(secrets.iter().map(|(_, (path, place))| (path.clone(), place.as_str())));
    let said = run(&mounts, &[], &[script, "--port", "4000"]).success();
    assert_eq!(said, format!("{} {} none --port 4000\n", secrets[0].0, secrets[2].0));
    mounts.pop();
    run(&mounts, &[], &[script]).failure(1, &["DATABASE_PASSWORD is empty", "not readable for uid 10001"]);
    let script = "/etc/milvus/start.sh";
    let secrets = ["minio_root_user", "minio_root_password"].map(secret);
    let mut mounts = vec![(docker.join("config/milvus/start.sh"), script)];
    mounts.extend(secrets.iter().map(|(_, (path, place))| (path.clone(), place.as_str())));
    let shows = [script, "bash", "-c", "echo \"$MINIO_ACCESS_KEY_ID $MINIO_SECRET_ACCESS_KEY\""];
    let said = run(&mounts, &[], &shows).success();
    assert_eq!(said, format!("{} {}\n", secrets[0].0, secrets[1].0));
    mounts.pop();
    run(&mounts, &[], &shows).failure(1, &["MINIO_SECRET_ACCESS_KEY: /run/secrets/minio_root_password is missing"]);
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
    let again = stack.compose(&["run", "--rm", "-T", "--no-deps", "init"]);
    assert_eq!(again.lines().last(), Some("unchanged"), "tokens, keys and models are those of the backup: {again}");
}

/// Where a program is.
fn find(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|it| it.is_file()).unwrap()
}
