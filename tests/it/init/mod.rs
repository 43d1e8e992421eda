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
        for folder in ["tokens", "config"] {
            for entry in fs::read_dir(self.home.path().join(folder)).unwrap().flatten() {
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
fn the_first_run_prepares_everything_and_the_second_changes_nothing() {
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
wrote openwebui.env
wrote rag.yaml
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
    for name in ["api_tokens.env", "litellm_api_token", "rag_api_token", "webui_secret_key"] {
        assert_eq!(files[&format!("tokens/{name}")].0, 0o440, "{name}");
    }
    assert_eq!(files["config/openwebui.env"].0, 0o440);
    let tokens = job.tokens();
    let token = &tokens["LITELLM_API_TOKEN"];
    assert!(token.starts_with("sk-") && token.len() == 51, "{token}");
    assert_eq!(files["tokens/litellm_api_token"].1, format!("{token}\n"));
    let key = job.services.with(|state| state.keys[token].clone());
    assert_eq!((&key["rpm_limit"], &key["tpm_limit"]), (&7.into(), &100_000.into()));
    assert_eq!(key["models"], serde_json::json!(["llama3", "mxbai-embed-large", "obelisk-rag"]));
    let left: Vec<&String> = files.keys().filter(|name| name.contains(".new.")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn rotation_replaces_every_token_and_forgets_the_old_one() {
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
fn a_rotation_that_litellm_missed_is_made_up_for() {
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
fn changed_settings_update_what_they_concern() {
    let job = Job::new().set("EXTRA_MODELS", "qwen2:0.5b");
    job.run(&[]).ends(0);
    job.services.writes();
    let job = job.set("TOKEN_TPM_LIMIT", "5").set("EXTRA_MODELS", "").set("RAG_API_URL", "http://other:8000");
    let run = job.run(&[]).ends(0).stdout();
    let expected = "model obelisk-rag updated in LiteLLM
model obelisk-qwen2:0.5b removed from LiteLLM
token updated in LiteLLM
wrote openwebui.env
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
fn openai_models_are_registered_only_where_it_is_used() {
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
fn services_that_start_slowly_are_waited_for() {
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
fn a_pull_that_stands_still_ends_with_its_reason() {
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
fn each_phase_has_a_status_of_its_own() {
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
    job.services.with(|state| state.refuse_writes = Some(403));
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
fn no_secret_is_in_a_log_line_or_an_argument_list() {
    for format in ["text", "json"] {
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
        job.services.with(|state| {
            state.refuse_writes = Some(400);
            state.models.clear();
        });
        let run = job.run(&[]).ends(40);
        assert!(!run.stderr().contains("canary"), "{}", run.stderr());
    }
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
    let files = job.files();
    for (name, value) in job.tokens() {
        assert_eq!(files[&format!("tokens/{}", name.to_lowercase())].1, format!("{value}\n"));
    }
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
    while !job.home.path().join("tokens/webui_secret_key").exists() {
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
