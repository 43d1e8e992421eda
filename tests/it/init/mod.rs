//! The initialisation scripts, run by bash against services that behave, start slowly, fail and forget.

mod services;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use services::{MASTER, Pull, Services};
use tempfile::TempDir;

const OPENAI: &str = "sk-canary-openai-91c3b6e0a55d4f12";

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("images/init")
}

/// A job: its folders, its services, its environment.
struct Job {
    home: TempDir,
    services: Services,
    env: BTreeMap<String, String>,
}

impl Job {
    fn new() -> Job {
        let home = TempDir::new().unwrap();
        for folder in ["tokens", "config", "bin"] {
            fs::create_dir(home.path().join(folder)).unwrap();
        }
        let services = Services::start();
        let env = BTreeMap::from(
            [
                ("OLLAMA_API_URL", services.url.clone()),
                ("LITELLM_API_URL", services.url.clone()),
                ("LITELLM_MASTER_KEY", MASTER.into()),
                ("TOKENS_DIR", home.path().join("tokens").to_str().unwrap().into()),
                ("CONFIG_DIR", home.path().join("config").to_str().unwrap().into()),
                ("OBELISK_LIB", scripts().to_str().unwrap().into()),
                ("INIT_DEADLINE_SECONDS", "20".into()),
                ("STALL_TIMEOUT", "2".into()),
                ("LOG_LEVEL", "debug".into()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        Job { home, services, env }
    }

    /// Puts programs in front of the real ones that note their arguments first.
    fn watch_arguments(self) -> Job {
        let log = self.home.path().join("arguments");
        for program in ["curl", "jq", "openssl", "sha256sum", "chmod", "mv", "ln", "mktemp", "stat", "sleep", "sync"] {
            let real = env::split_paths(&env::var_os("PATH").unwrap())
                .map(|folder| folder.join(program))
                .find(|path| path.is_file())
                .unwrap_or_else(|| panic!("{program} is needed: apt-get install curl jq openssl coreutils"));
            let shim = self.home.path().join("bin").join(program);
            let text =
                format!("#!/bin/sh\nprintf '%s\\n' \"$*\" >>'{}'\nexec '{}' \"$@\"\n", log.display(), real.display());
            fs::write(&shim, text).unwrap();
            fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
        }
        self
    }

    fn set(mut self, name: &str, value: &str) -> Job {
        self.env.insert(name.into(), value.into());
        self
    }

    fn unset(mut self, name: &str) -> Job {
        self.env.remove(name);
        self
    }

    fn script(&self, script: &str, arguments: &[&str]) -> Run {
        let path = format!("{}:{}", self.home.path().join("bin").display(), env::var("PATH").unwrap());
        let output = Command::new("bash")
            .arg(scripts().join(script))
            .args(arguments)
            .env_clear()
            .envs(&self.env)
            .env("PATH", path)
            .current_dir(self.home.path())
            .output()
            .unwrap();
        Run(output)
    }

    fn run(&self, arguments: &[&str]) -> Run {
        self.script("init-sequence.sh", arguments)
    }

    fn tokens(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.home.path().join("tokens/api_tokens.env")).unwrap();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Everything that a job left, by path: mode and content.
    fn files(&self) -> BTreeMap<String, (u32, String)> {
        let mut found = BTreeMap::new();
        for folder in ["tokens", "config/rag", "config/openwebui"] {
            for entry in fs::read_dir(self.home.path().join(folder)).into_iter().flatten().flatten() {
                let mode = entry.metadata().unwrap().mode() & 0o7777;
                let text = fs::read_to_string(entry.path()).unwrap();
                found.insert(format!("{folder}/{}", entry.file_name().to_str().unwrap()), (mode, text));
            }
        }
        found
    }
}

struct Run(Output);

impl Run {
    fn status(&self) -> i32 {
        self.0.status.code().unwrap_or(-1)
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    #[track_caller]
    fn ends(self, status: i32) -> Run {
        assert_eq!(self.status(), status, "{}{}", self.stdout(), self.stderr());
        self
    }

    #[track_caller]
    fn says(self, what: &str) -> Run {
        assert!(self.stderr().contains(what), "no `{what}` in\n{}", self.stderr());
        self
    }
}

#[test]
fn slow_whoever_waits_starts_when_a_job_of_the_same_version_has_completed() {
    let job = Job::new();
    let complete = job.home.path().join("tokens/complete");
    let waits = |job: &Job| -> bool {
        let limited = ["1", "bash", scripts().join("init-sequence.sh").to_str().unwrap(), "--wait"].map(str::to_owned);
        let mut command = Command::new("timeout");
        command.args(limited).env_clear().envs(&job.env).env_remove("LITELLM_MASTER_KEY");
        let output = command.env("PATH", env::var("PATH").unwrap()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 124)), "{output:?}");
        assert_eq!(said.contains("waiting for the job to complete"), output.status.code() == Some(124), "{said}");
        output.status.code() == Some(124)
    };
    assert!(waits(&job), "before the job ran");
    // The tokens alone are not its end.
    job.script("generate-tokens.sh", &[]).ends(0);
    assert!(waits(&job), "there are tokens, and the job has not completed");
    job.run(&[]).ends(0);
    assert!(!waits(&job), "the job has completed");
    let ours = fs::read_to_string(&complete).unwrap();
    fs::remove_file(&complete).unwrap();
    fs::write(&complete, "0".repeat(64)).unwrap();
    assert!(waits(&job), "another version has completed");
    let again = job.run(&[]).ends(0);
    assert_eq!(again.stdout(), "unchanged\n");
    assert_eq!(fs::read_to_string(&complete).unwrap(), ours);
    assert!(!waits(&job));
    job.run(&["--wait", "more"]).ends(2);
}

#[test]
fn slow_the_first_run_prepares_everything_and_the_second_changes_nothing() {
    let job = Job::new().set("EXTRA_MODELS", "qwen2:0.5b");
    let first = job.run(&[]).ends(0);
    let expected = "tokens created
model mxbai-embed-large pulled
model llama3 pulled
model qwen2:0.5b pulled
model llama3 added in LiteLLM
model mxbai-embed-large added in LiteLLM
model qwen2:0.5b added in LiteLLM
model obelisk-rag added in LiteLLM
token registered in LiteLLM
wrote openwebui/openwebui.env
wrote rag/litellm_api_token
wrote rag/rag_api_token
wrote rag/rag.yaml
";
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&first.stdout()), sorted(expected), "{}", first.stderr());
    assert!(!job.services.writes().is_empty());

    let files = job.files();
    let second = job.run(&[]).ends(0);
    assert_eq!(second.stdout(), "unchanged\n", "{}", second.stderr());
    assert_eq!(job.services.writes(), [] as [&str; 0]);
    assert_eq!(job.files(), files);
}

#[test]
fn tokens_are_for_owner_and_group_and_registered_with_their_limits() {
    let job = Job::new().set("TOKEN_RPM_LIMIT", "7");
    job.run(&[]).ends(0);
    let files = job.files();
    for name in ["tokens/api_tokens.env", "config/rag/litellm_api_token", "config/rag/rag_api_token"] {
        assert_eq!(files[name].0, 0o440, "{name}");
    }
    assert_eq!(files["config/openwebui/openwebui.env"].0, 0o440);
    // Each reader's folder holds what it needs, and nothing of another one's.
    let (tokens, rag) = (job.tokens(), files.iter().filter(|(name, _)| name.starts_with("config/rag/")));
    let rag: Vec<&str> = rag.map(|(_, (_, text))| text.as_str()).collect();
    assert!(rag.len() == 3 && !rag.concat().contains(&tokens["WEBUI_SECRET_KEY"]), "{rag:?}");
    let token = &tokens["LITELLM_API_TOKEN"];
    assert!(token.starts_with("sk-") && token.len() == 51, "{token}");
    assert_eq!(files["config/rag/litellm_api_token"].1, format!("{token}\n"));
    assert_eq!(files["config/rag/rag_api_token"].1, format!("{}\n", tokens["RAG_API_TOKEN"]));
    let key = job.services.with(|state| state.keys[token].clone());
    assert_eq!((&key["rpm_limit"], &key["tpm_limit"]), (&7.into(), &100_000.into()));
    assert_eq!(key["models"], serde_json::json!(["llama3", "mxbai-embed-large", "obelisk-rag"]));
    let left: Vec<&String> = files.keys().filter(|name| name.contains(".new.")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// What a killed job left beside a file goes with the next one, wherever it is; what is young may be of a job at work.
#[test]
fn copies_that_a_killed_job_left_are_removed_when_they_are_old() {
    let job = Job::new();
    job.run(&[]).ends(0);
    let before = job.files();
    let folders = ["tokens", "config/rag", "config/openwebui"];
    for (folder, name, age) in folders.iter().flat_map(|it| [(it, ".new.AAAAAA", 4000), (it, ".new.BBBBBB", 0)]) {
        let file = fs::File::create(job.home.path().join(folder).join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
    }
    assert_eq!(job.run(&[]).ends(0).stdout(), "unchanged\n");
    let after = job.files();
    let left: Vec<&str> = after.keys().filter(|it| !before.contains_key(*it)).map(String::as_str).collect();
    assert_eq!(left, ["config/openwebui/.new.BBBBBB", "config/rag/.new.BBBBBB", "tokens/.new.BBBBBB"]);
}

#[test]
fn slow_rotation_replaces_every_token_and_forgets_the_old_one() {
    let job = Job::new();
    job.run(&[]).ends(0);
    let old = job.tokens();
    let rotated = job.run(&["--rotate"]).ends(0).stdout();
    assert!(rotated.contains("tokens rotated") && rotated.contains("previous token deleted"), "{rotated}");
    let new = job.tokens();
    for (name, value) in &new {
        assert_ne!(old[name], *value, "{name}");
    }
    let keys = job.services.with(|state| state.keys.keys().cloned().collect::<Vec<_>>());
    assert_eq!(keys, [new["LITELLM_API_TOKEN"].clone()]);
    assert!(!job.home.path().join("tokens/api_tokens.previous").exists());
    assert_eq!(job.run(&[]).ends(0).stdout(), "unchanged\n");
}

#[test]
fn slow_a_rotation_that_litellm_missed_is_made_up_for() {
    let job = Job::new();
    job.run(&[]).ends(0);
    let old = job.tokens()["LITELLM_API_TOKEN"].clone();
    // The job dies after the tokens were made, and is started again, with and without `--rotate`.
    job.script("generate-tokens.sh", &["--rotate"]).ends(0);
    job.script("generate-tokens.sh", &["--rotate"]).ends(0);
    assert!(job.services.with(|state| state.keys.contains_key(&old)));
    job.run(&[]).ends(0);
    let keys = job.services.with(|state| state.keys.keys().cloned().collect::<Vec<_>>());
    assert_eq!(keys, [job.tokens()["LITELLM_API_TOKEN"].clone()]);
}

#[test]
fn slow_tokens_that_litellm_would_not_forget_are_forgotten_later() {
    let job = Job::new();
    job.run(&[]).ends(0);
    job.services.with(|state| state.refuse_writes = Some((403, "/key/delete")));
    let previous = job.home.path().join("tokens/api_tokens.previous");
    let mut old = String::new();
    for _ in 0..2 {
        old += &format!("LITELLM_API_TOKEN={}\n", job.tokens()["LITELLM_API_TOKEN"]);
        job.run(&["--rotate"]).ends(40).says("deleting the previous token from LiteLLM failed");
        assert_eq!(fs::read_to_string(&previous).unwrap(), old);
        assert_eq!(fs::metadata(&previous).unwrap().mode() & 0o7777, 0o440);
    }
    job.services.with(|state| state.refuse_writes = None);
    let said = job.run(&["--rotate"]).ends(0).stdout();
    assert_eq!(said.matches("previous token deleted").count(), 3, "{said}");
    let keys = job.services.with(|state| state.keys.keys().cloned().collect::<Vec<_>>());
    assert_eq!(keys, [job.tokens()["LITELLM_API_TOKEN"].clone()]);
    assert!(!previous.exists());
}

#[test]
fn slow_changed_settings_update_what_they_concern() {
    let job = Job::new().set("EXTRA_MODELS", "qwen2:0.5b");
    job.run(&[]).ends(0);
    job.services.writes();
    let job = job.set("TOKEN_TPM_LIMIT", "5").set("EXTRA_MODELS", "").set("RAG_API_URL", "http://other:8000");
    let run = job.run(&[]).ends(0).stdout();
    let expected = "model obelisk-rag updated in LiteLLM
model obelisk-qwen2:0.5b removed from LiteLLM
token updated in LiteLLM
wrote openwebui/openwebui.env
";
    assert_eq!(run, expected);
    let writes = job.services.writes();
    assert_eq!(writes, ["POST /model/delete", "POST /model/new", "POST /model/delete", "POST /key/update"]);
}

#[test]
fn models_of_other_people_are_left_alone() {
    let job = Job::new();
    let theirs =
        serde_json::json!({"model_name": "theirs", "litellm_params": {"model": "x/y"}, "model_info": {"id": "abc"}});
    job.services.with(|state| state.models.insert("abc".into(), theirs.clone()));
    job.run(&[]).ends(0);
    assert_eq!(job.services.with(|state| state.models["abc"].clone()), theirs);
}

#[test]
fn slow_openai_models_are_registered_only_where_it_is_used() {
    let job = Job::new().set("OPENAI_API_KEY", OPENAI);
    job.run(&[]).ends(0);
    let names = |job: &Job| -> Vec<String> {
        job.services.with(|state| {
            state.models.values().map(|it| it["litellm_params"]["model"].as_str().unwrap().to_owned()).collect()
        })
    };
    assert!(names(&job).iter().all(|name| name != "openai/gpt-4o"), "{:?}", names(&job));
    let job = job.set("USE_OPENAI", "true");
    job.run(&[]).ends(0);
    assert!(
        names(&job).contains(&"openai/gpt-4o".into()) && names(&job).contains(&"openai/text-embedding-3-large".into())
    );
}

#[test]
fn slow_services_that_start_slowly_are_waited_for() {
    let job = Job::new();
    job.services.with(|state| (state.unwell, state.without_database) = (2, 2));
    job.run(&[]).ends(0).says("503").says("not connected to its database");
}

#[test]
fn writes_whose_answer_is_lost_are_not_made_twice() {
    let job = Job::new();
    job.services.with(|state| state.lost_answers = 2);
    job.run(&[]).ends(0);
    let writes = job.services.writes();
    assert_eq!(writes.iter().filter(|it| *it == "POST /model/new").count(), 3, "{writes:?}");
    assert_eq!(writes.iter().filter(|it| *it == "POST /key/generate").count(), 1, "{writes:?}");
}

#[test]
fn a_pull_that_breaks_off_is_taken_up_again() {
    let job = Job::new();
    job.services.with(|state| state.pull = Pull::BreaksOnce);
    job.script("download-models.sh", &[]).ends(0).says("pull interrupted");
}

#[test]
fn slow_a_pull_that_stands_still_ends_with_its_reason() {
    for how in [Pull::Silent, Pull::Repeats] {
        let job = Job::new().set("PULL_TIMEOUT", "6");
        job.services.with(|state| state.pull = how);
        job.run(&[]).ends(30).says("was not pulled in 6 s").says("no progress in 2 s");
    }
}

#[test]
fn a_model_that_does_not_exist_is_not_tried_again() {
    let job = Job::new();
    job.services.with(|state| state.pull = Pull::Unknown);
    job.run(&[]).ends(30).says("Ollama cannot pull mxbai-embed-large").says("file does not exist");
    assert_eq!(job.services.writes(), ["POST /api/pull"]);
}

#[test]
fn slow_each_phase_has_a_status_of_its_own() {
    let gone = "http://127.0.0.1:9";
    let job = Job::new().set("OLLAMA_API_URL", gone).set("INIT_DEADLINE_SECONDS", "1");
    job.run(&[]).ends(30).says("reaching Ollama").says("did not succeed in 1 s");
    let job = Job::new().set("LITELLM_API_URL", gone).set("INIT_DEADLINE_SECONDS", "1");
    job.run(&[]).ends(40).says("reaching LiteLLM");
    // The name that the compose files set.
    let job = Job::new().set("OLLAMA_API_URL", gone).unset("INIT_DEADLINE_SECONDS").set("WAIT_TIMEOUT", "1");
    job.run(&[]).ends(30).says("reaching Ollama").says("did not succeed in 1 s");
    let job = Job::new().set("WAIT_TIMEOUT", "soon");
    job.run(&["--check"]).ends(10).says("WAIT_TIMEOUT must be a whole number from 1 to 86400");
    let job = Job::new();
    job.services.with(|state| state.refuse_writes = Some((403, "/")));
    job.run(&[]).ends(40).says("storing model").says("status 403: no writes today");
    let job = Job::new();
    fs::write(job.home.path().join("tokens/api_tokens.env"), "LITELLM_API_TOKEN=nonsense\n").unwrap();
    job.run(&[]).ends(20).says("does not begin with sk-");
    Job::new().run(&["--nonsense"]).ends(2).says("usage");
    Job::new().run(&["--check"]).ends(0).says("the settings are right");
    Job::new().unset("LITELLM_MASTER_KEY").run(&["--alive"]).ends(0);
}

#[test]
fn everything_that_is_wrong_with_the_settings_is_said_at_once() {
    let job = Job::new()
        .unset("LITELLM_MASTER_KEY")
        .set("OLLAMA_API_URL", "ollama:11434")
        .set("LITELLM_API_URL", "http://user:pass@litellm:4000")
        .set("RAG_API_URL", "http://rag:80000")
        .set("USE_OPENAI", "true")
        .set("LOG_LEVEL", "loud")
        .set("STALL_TIMEOUT", "soon")
        .set("OLLAMA_MODEL", "two words")
        .set("CONFIG_DIR", "/does/not/exist");
    for script in ["init-sequence.sh", "generate-tokens.sh", "download-models.sh", "configure-services.sh"] {
        let run = job.script(script, &[]).ends(10);
        for problem in [
            "LITELLM_MASTER_KEY or LITELLM_MASTER_KEY_FILE must be set to a key",
            "OLLAMA_API_URL must be a URL",
            "LITELLM_API_URL must hold no user and password",
            "RAG_API_URL has port 80000",
            "OPENAI_API_KEY or OPENAI_API_KEY_FILE must be set to a key because USE_OPENAI is true",
            "LOG_LEVEL must be one of debug info warning error, not `loud`",
            "STALL_TIMEOUT must be a whole number",
            "OLLAMA_MODEL must be the name of a model",
            "CONFIG_DIR names /does/not/exist, which is not a folder",
            "9 settings are wrong",
        ] {
            assert!(run.stderr().contains(problem), "{script} does not say `{problem}`:\n{}", run.stderr());
        }
        assert!(!run.stderr().contains("pass@"), "{}", run.stderr());
    }
    assert!(job.services.with(|state| state.arrived.is_empty()), "nothing is asked before the settings are right");
}

#[test]
fn production_refuses_keys_that_are_known_or_short() {
    // `env check` judges the same file.
    let keys = fs::read_to_string(scripts().join("../../tests/fixtures/keys.txt")).unwrap();
    for (judged, key) in keys.lines().filter_map(|line| line.split_once(' ')).filter(|(judged, _)| *judged != "#") {
        let good = judged == "good";
        let job = Job::new().set("ENVIRONMENT", "prod").set("LITELLM_MASTER_KEY", key);
        let run = job.run(&["--check"]);
        assert_eq!(run.status() == 0, good, "{key}: {}", run.stderr());
    }
    Job::new().set("LITELLM_MASTER_KEY", "sk-1234").run(&["--check"]).ends(0);
}

#[test]
fn secrets_come_from_files_too() {
    let job = Job::new().unset("LITELLM_MASTER_KEY");
    let file = job.home.path().join("master");
    fs::write(&file, format!("{MASTER}\n")).unwrap();
    let job = job.set("LITELLM_MASTER_KEY_FILE", file.to_str().unwrap());
    job.run(&[]).ends(0);
    // An empty file is a secret that a deployment leaves unset: wrong only where it is needed.
    let empty = job.home.path().join("empty");
    fs::write(&empty, "").unwrap();
    let job = job.set("OPENAI_API_KEY_FILE", empty.to_str().unwrap());
    job.run(&["--check"]).ends(0);
    let job = job.set("USE_OPENAI", "true");
    job.run(&["--check"]).ends(10).says("OPENAI_API_KEY_FILE must be set to a key");
    let both = job.set("USE_OPENAI", "false").set("LITELLM_MASTER_KEY", MASTER);
    both.run(&[]).ends(10).says("LITELLM_MASTER_KEY and LITELLM_MASTER_KEY_FILE are both set");
}

#[test]
fn slow_no_secret_is_in_a_log_line_or_an_argument_list() {
    for (format, status) in [("text", 400), ("json", 422)] {
        let job = Job::new()
            .set("LOG_FORMAT", format)
            .set("OPENAI_API_KEY", OPENAI)
            .set("USE_OPENAI", "true")
            .watch_arguments();
        let mut told = String::new();
        for arguments in [[].as_slice(), &["--rotate"]] {
            let before = job.home.path().join("tokens/api_tokens.env").exists().then(|| job.tokens());
            let run = job.run(arguments).ends(0);
            told += &run.stdout();
            told += &run.stderr();
            told += &fs::read_to_string(job.home.path().join("arguments")).unwrap();
            let tokens = job.tokens().into_values().chain(before.into_iter().flat_map(BTreeMap::into_values));
            for secret in tokens.chain([MASTER.to_owned(), OPENAI.to_owned()]) {
                let line = told.lines().find(|line| line.contains(&secret));
                assert!(line.is_none(), "a secret is in: {}", line.unwrap_or_default());
            }
        }
        assert!(told.contains("--config"), "the arguments were not noted");
        // What is refused is repeated in a log, and must not repeat what was sent.
        let secrets: Vec<String> = job.tokens().into_values().chain([MASTER.into(), OPENAI.into()]).collect();
        for lost in ["obelisk-gpt-4o", "obelisk-obelisk-rag", "the key"] {
            let (models, keys) = job.services.with(|state| {
                state.refuse_writes = Some((status, "/"));
                let before = (state.models.clone(), state.keys.clone());
                if state.models.remove(lost).is_none() {
                    state.keys.clear();
                }
                before
            });
            let said = job.script("configure-services.sh", &[]).ends(40).says(&format!("status {status}")).stderr();
            let told = secrets.iter().any(|secret| said.contains(secret.get(..12).unwrap()));
            assert!(!told, "{lost}: {said}");
            assert_eq!(said.contains("***"), status == 400, "{lost}: {said}");
            job.services.with(|state| (state.models, state.keys) = (models, keys));
        }
    }
}

#[test]
fn litellm_has_a_password_or_none_but_never_an_empty_one() {
    let home = TempDir::new().unwrap();
    let script = fs::read_to_string(scripts().join("../../deployments/docker/config/litellm/start.sh")).unwrap();
    let start = home.path().join("start.sh");
    fs::write(&start, script.replace("/run/secrets", home.path().to_str().unwrap())).unwrap();
    let says = home.path().join("litellm");
    fs::write(&says, "#!/bin/sh\necho \"${UI_PASSWORD-none} ${OPENAI_API_KEY-none} $*\"\n").unwrap();
    fs::set_permissions(&says, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["litellm_master_key", "litellm_salt_key", "postgres_password"] {
        fs::write(home.path().join(name), "there\n").unwrap();
    }
    let run = || {
        let path = format!("{}:{}", home.path().display(), env::var("PATH").unwrap());
        let output = Command::new("sh").args([start.to_str().unwrap(), "--port", "4000"]).env("PATH", path).output();
        Run(output.unwrap())
    };
    let password = home.path().join("litellm_ui_password");
    assert_eq!(run().ends(0).stdout(), "none none --port 4000\n");
    for empty in ["", "\n"] {
        fs::write(&password, empty).unwrap();
        run().ends(1).says("UI_PASSWORD is empty").says("litellm_ui_password is empty or not readable for uid");
    }
    fs::write(&password, "secret\n").unwrap();
    assert_eq!(run().ends(0).stdout(), "secret none --port 4000\n");
}

#[test]
fn slow_a_file_that_cannot_be_written_is_left_as_it_was() {
    let job = Job::new();
    job.run(&[]).ends(0);
    let before = job.files();
    let job = job.set("RAG_API_URL", "http://other:8000");
    // A full disk: no file may have a byte, and the signal for that is ignored.
    let script = scripts().join("configure-services.sh");
    let limited = format!("trap '' XFSZ; ulimit -f 0; exec bash '{}'", script.display());
    let mut command = Command::new("bash");
    command.args(["-c", &limited]).env_clear().envs(&job.env).env("PATH", env::var("PATH").unwrap());
    let run = Run(command.output().unwrap()).ends(40).says("cannot write").says("openwebui.env");
    assert!(!run.stdout().contains("wrote"), "{}", run.stdout());
    assert_eq!(job.files(), before);
    assert_eq!(job.script("configure-services.sh", &[]).ends(0).stdout(), "wrote openwebui/openwebui.env\n");

    // A folder in the file's place.
    let target = job.home.path().join("config/rag/rag.yaml");
    fs::remove_file(&target).unwrap();
    fs::create_dir(&target).unwrap();
    let run = job.script("configure-services.sh", &[]).ends(40).says(&format!("cannot write {}", target.display()));
    assert_eq!(run.stdout(), "");
    fs::remove_dir(&target).unwrap();
    assert!(job.files().keys().all(|name| !name.contains(".new.")), "{:?}", job.files().keys());
}

/// Open WebUI's own start script, in front of which ours puts what init wrote.
#[test]
fn open_webui_starts_with_what_init_wrote() {
    let job = Job::new();
    let home = job.home.path().to_owned();
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    fs::create_dir(home.join("backend")).unwrap();
    fs::write(home.join("backend/start.sh"), "env -0 | sort -z\n").unwrap();
    let script = fs::read_to_string(scripts().join("../../deployments/docker/config/openwebui/start.sh")).unwrap();
    let script = script
        .replace("/app/config", &path("config/openwebui"))
        .replace("/app/backend", &path("backend"))
        .replace("/run/secrets", &path("secrets"));
    fs::write(home.join("start.sh"), script).unwrap();
    let opened_at = |url: &str| {
        let mut bash = Command::new("bash");
        bash.arg(home.join("start.sh")).env_clear().env("PATH", env::var("PATH").unwrap());
        // What a container was told at last year's start.
        bash.env("STATIC_DIR", home.join("static"))
            .env("WEBUI_URL", url)
            .env("OLLAMA_BASE_URLS", "http://old:1")
            .env("GLOBAL_LOG_LEVEL", "INFO");
        Run(bash.output().unwrap())
    };
    let start = || opened_at("http://localhost:8080");
    start().ends(1).says("config/openwebui/openwebui.env is missing, empty or not readable for uid");
    // A key that a person wrote, with everything that a shell would take for its own.
    let key = "it's $(touch pwned) `touch pwned` \"x\" \\ ;&|";
    fs::write(
        home.join("tokens/api_tokens.env"),
        format!("LITELLM_API_TOKEN=sk-a\nRAG_API_TOKEN=b\nWEBUI_SECRET_KEY={key}\n"),
    )
    .unwrap();
    let job = job.set("RAG_API_URL", "http://retrieval:8000").set("MILVUS_URI", "http://vectors:19530/");
    job.run(&[]).ends(0);
    let seen = start().ends(0).stdout();
    let seen: BTreeMap<&str, &str> = seen.split('\0').filter_map(|it| it.split_once('=')).collect();
    let (litellm, ollama) = (&job.env["LITELLM_API_URL"], &job.env["OLLAMA_API_URL"]);
    for (name, value) in [
        ("OLLAMA_BASE_URLS", ollama.as_str()),
        ("OPENAI_API_BASE_URLS", &format!("{litellm}/v1;http://retrieval:8000/v1")),
        ("OPENAI_API_KEYS", "sk-a;b"),
        ("WEBUI_SECRET_KEY", key),
        ("RAG_EMBEDDING_ENGINE", "ollama"),
        ("RAG_EMBEDDING_MODEL", "mxbai-embed-large"),
        ("RAG_OLLAMA_BASE_URL", ollama),
        ("VECTOR_DB", "milvus"),
        ("MILVUS_URI", "http://vectors:19530"),
        ("GLOBAL_LOG_LEVEL", "INFO"),
    ] {
        assert_eq!(seen.get(name), Some(&value), "{name}");
    }
    assert!(!home.join("pwned").exists() && !home.join("backend/pwned").exists());
    // By TLS its cookies go by TLS alone, and another origin's pages are not answered.
    let names = ["WEBUI_SESSION_COOKIE_SECURE", "CORS_ALLOW_ORIGIN"];
    assert_eq!(names.map(|name| seen.get(name)), [None, None]);
    let seen = opened_at("https://chat.example.com:8443/here/").ends(0).stdout();
    let seen: BTreeMap<&str, &str> = seen.split('\0').filter_map(|it| it.split_once('=')).collect();
    assert_eq!(names.map(|name| seen[name]), ["true", "https://chat.example.com:8443"]);
    // Half a file of another version.
    fs::remove_file(home.join("config/openwebui/openwebui.env")).unwrap();
    fs::write(home.join("config/openwebui/openwebui.env"), "WEBUI_SECRET_KEY=x\n").unwrap();
    start().ends(1).says("openwebui.env lacks OPENAI_API_KEYS: run init again");
}

/// The settings of the retrieval service, by its own reader, of the very file.
#[test]
fn real_rag_starts_with_what_init_wrote() {
    let job = Job::new().set("OPENAI_API_KEY", OPENAI).set("RAG_API_URL", "http://retrieval:8000");
    let source = scripts().join("../obelisk/src");
    let read = "import json, os, sys\n\
                from pathlib import Path\n\
                from obelisk.rag import config\n\
                settings = config.load(os.environ, None, config.config_file(os.environ, None, Path('/')))\n\
                shown = settings.shown(); shown['key'] = str(settings.litellm_api_key)\n\
                print(json.dumps(shown))\n";
    let settings = |job: &Job, more: &[(&str, &str)]| -> serde_json::Value {
        let mut python = Command::new("python3");
        python.args(["-c", read]).env_clear().env("PATH", env::var("PATH").unwrap()).env("PYTHONPATH", &source);
        python.env("OBELISK_CONFIG", job.home.path().join("config/rag/rag.yaml")).env("PYTHONDONTWRITEBYTECODE", "1");
        python.env("LITELLM_API_KEY_FILE", job.home.path().join("config/rag/litellm_api_token"));
        // What compose makes of settings that nobody made.
        python.env("EMBEDDING_PROVIDER", "").env("COMPLETION_PROVIDER", "").env("OLLAMA_URL", "").env("MILVUS_URI", "");
        let run = Run(python.envs(more.iter().copied()).output().unwrap());
        assert_eq!(run.status(), 0, "python3 with PyYAML is needed (`tests/tools target/tests`): {}", run.stderr());
        serde_json::from_str(&run.stdout()).unwrap()
    };
    let is = |seen: &serde_json::Value, expected: &[(&str, &str)]| {
        for (name, value) in expected {
            assert_eq!(seen[name], *value, "{name}: {seen:#}");
        }
    };
    let job = job
        .set("MILVUS_URI", "http://vectors:19530")
        .set("OLLAMA_MODEL", "qwen2:0.5b")
        .set("EMBEDDING_MODEL", "minilm");
    job.run(&[]).ends(0);
    let token = job.tokens()["LITELLM_API_TOKEN"].clone();
    let addresses = [
        ("ollama_url", job.env["OLLAMA_API_URL"].as_str()),
        ("litellm_api_url", &job.env["LITELLM_API_URL"]),
        ("milvus_uri", "http://vectors:19530"),
        ("key", &token),
    ];
    let seen = settings(&job, &[]);
    is(&seen, &addresses);
    is(&seen, &[("embedding_provider", "ollama"), ("completion_provider", "litellm")]);
    is(&seen, &[("embedding_model", "minilm"), ("ollama_model", "qwen2:0.5b")]);
    // A variable that somebody set wins.
    is(
        &settings(&job, &[("OLLAMA_URL", "http://other:1")]),
        &[("ollama_url", "http://other:1"), ("embedding_model", "minilm")],
    );
    // With OpenAI's models it embeds and answers by them, through LiteLLM.
    let job = job.set("USE_OPENAI", "true").set("OPENAI_COMPLETION_MODEL", "gpt-x");
    job.run(&[]).ends(0);
    let seen = settings(&job, &[]);
    is(
        &seen,
        &[("embedding_provider", "litellm"), ("embedding_model", "text-embedding-3-large"), ("ollama_model", "gpt-x")],
    );
}

#[test]
fn addresses_are_judged_as_env_check_judges_them() {
    let urls = fs::read_to_string(scripts().join("../../tests/fixtures/urls.txt")).unwrap();
    let judged: Vec<_> =
        urls.lines().filter_map(|line| line.split_once(' ')).filter(|(judged, _)| *judged != "#").collect();
    assert!(judged.len() > 20, "{judged:?}");
    for (judged, url) in judged {
        let run = Job::new().set("RAG_API_URL", url).run(&["--check"]);
        assert_eq!(run.status(), if judged == "good" { 0 } else { 10 }, "{url}: {}", run.stderr());
        assert!(judged == "good" || run.stderr().contains("RAG_API_URL "), "{url}: {}", run.stderr());
    }
}

/// Jobs that make new tokens at the same time: one after the other, and at the end everybody knows the same ones.
#[test]
fn slow_jobs_that_rotate_together_wait_for_each_other() {
    let job = Job::new();
    job.run(&[]).ends(0);
    let first = job.tokens();
    let runs: Vec<Run> = std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..3).map(|_| scope.spawn(|| job.run(&["--rotate"]))).collect();
        jobs.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let said: String = runs.iter().map(|run| run.stdout() + &run.stderr()).collect();
    assert!(runs.iter().all(|run| run.status() == 0), "{said}");
    assert!(said.contains("another job is at work: waiting for its end"), "{said}");
    assert_eq!(said.matches("\nprevious token deleted from LiteLLM").count(), 3, "{said}");
    let tokens = job.tokens();
    assert_ne!(tokens["LITELLM_API_TOKEN"], first["LITELLM_API_TOKEN"]);
    let keys = job.services.with(|state| state.keys.keys().cloned().collect::<Vec<_>>());
    assert_eq!(keys, [tokens["LITELLM_API_TOKEN"].clone()], "LiteLLM knows the last token and no other");
    let files = job.files();
    assert!(!files.contains_key("tokens/api_tokens.previous"));
    for (name, file) in [("LITELLM_API_TOKEN", "litellm_api_token"), ("RAG_API_TOKEN", "rag_api_token")] {
        assert_eq!(files[&format!("config/rag/{file}")].1, format!("{}\n", tokens[name]));
    }
    let settings = &files["config/openwebui/openwebui.env"].1;
    let wanted = format!("OPENAI_API_KEYS='{};{}'", tokens["LITELLM_API_TOKEN"], tokens["RAG_API_TOKEN"]);
    assert!(settings.contains(&wanted) && settings.contains(&tokens["WEBUI_SECRET_KEY"]), "{settings}");
    assert_eq!(job.run(&[]).ends(0).stdout(), "unchanged\n");
}

/// Whoever has the lock, a job changes nothing before it is free, heeds a signal meanwhile, and does not wait for ever.
#[test]
fn slow_a_job_waits_for_the_lock_and_not_for_ever() {
    let job = Job::new();
    job.run(&[]).ends(0);
    let before = job.files();
    let lock = job.home.path().join("tokens/.lock");
    let hold = || {
        let mut flock = Command::new("flock");
        let holder =
            flock.arg(&lock).args(["sh", "-c", "echo held; exec sleep 600"]).stdout(std::process::Stdio::piped());
        let mut holder = holder.spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().unwrap()), &mut line).unwrap();
        assert_eq!(line, "held\n");
        holder
    };
    let free = |mut holder: std::process::Child| {
        // flock waits for what it runs, which has the lock as well.
        let child = fs::read_to_string(format!("/proc/{0}/task/{0}/children", holder.id())).unwrap();
        Command::new("kill").arg(child.trim()).status().unwrap();
        holder.wait().unwrap();
    };
    let job = job.set("WAIT_TIMEOUT", "1").set("PULL_TIMEOUT", "1");
    let holder = hold();
    job.run(&["--rotate"])
        .ends(1)
        .says("another job is at work: waiting")
        .says("another job is still at work after 2 s");
    assert_eq!(job.files(), before);

    let job = job.set("PULL_TIMEOUT", "600");
    let log = job.home.path().join("log");
    let start = || {
        let mut bash = Command::new("bash");
        bash.arg(scripts().join("init-sequence.sh")).arg("--rotate").env_clear().envs(&job.env);
        bash.env("PATH", env::var("PATH").unwrap()).stdout(std::process::Stdio::null());
        let child = bash.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        while !fs::read_to_string(&log).unwrap().contains("another job is at work") {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        child
    };
    let mut stopped = start();
    assert!(Command::new("kill").args(["-TERM", &stopped.id().to_string()]).status().unwrap().success());
    assert_eq!(stopped.wait().unwrap().code(), Some(143));
    assert_eq!(job.files(), before);

    let mut waiting = start();
    free(holder);
    assert_eq!(waiting.wait().unwrap().code(), Some(0), "{}", fs::read_to_string(&log).unwrap());
    assert_ne!(job.files()["tokens/api_tokens.env"], before["tokens/api_tokens.env"]);
}

#[test]
fn json_log_lines_are_json() {
    let job = Job::new().set("LOG_FORMAT", "json");
    job.services.with(|state| state.unwell = 1);
    let run = job.run(&[]).ends(0);
    let mut phases = Vec::new();
    for line in run.stderr().lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["time", "level", "phase", "message"] {
            assert!(value[field].is_string(), "{line}");
        }
        phases.push(value["phase"].as_str().unwrap().to_owned());
    }
    phases.dedup();
    assert_eq!(phases, ["tokens", "models", "services", "verify"]);
}

#[test]
fn jobs_that_start_together_agree_on_the_tokens() {
    let job = Job::new();
    let runs: Vec<_> = std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..4).map(|_| scope.spawn(|| job.script("generate-tokens.sh", &[]))).collect();
        jobs.into_iter().map(|it| it.join().unwrap()).collect()
    });
    assert!(runs.iter().all(|run| run.status() == 0), "{}", runs.iter().map(Run::stderr).collect::<String>());
    let created = runs.iter().filter(|run| run.stdout().contains("tokens created")).count();
    assert_eq!(created, 1);
    assert_eq!(job.tokens().len(), 3);
    assert_eq!(job.files().len(), 1, "{:?}", job.files().keys());
}

#[test]
fn a_signal_stops_the_job_and_what_it_started() {
    let job = Job::new().set("OLLAMA_API_URL", "http://127.0.0.1:9").set("INIT_DEADLINE_SECONDS", "60");
    let mut child = Command::new("bash")
        .arg(scripts().join("init-sequence.sh"))
        .env_clear()
        .envs(&job.env)
        .env("PATH", env::var("PATH").unwrap())
        .spawn()
        .unwrap();
    // The tokens are there once the job has come to wait for Ollama, or is about to.
    while !job.home.path().join("tokens/api_tokens.env").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let stopped = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(stopped.success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn the_scripts_are_clean() {
    let files: Vec<PathBuf> = fs::read_dir(scripts())
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .chain(["core/entrypoint.sh", "rag/entrypoint.sh"].map(|name| scripts().join("..").join(name)))
        .collect();
    assert_eq!(files.len(), 7, "{files:?}");
    for file in &files {
        let shell = if file.ends_with("entrypoint.sh") { "sh" } else { "bash" };
        let checked = Command::new(shell).arg("-n").arg(file).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
    let output = Command::new("shellcheck")
        .args(["--external-sources", "--source-path=SCRIPTDIR"])
        .args(&files)
        .output()
        .unwrap_or_else(|error| panic!("shellcheck is needed: apt-get install shellcheck ({error})"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
