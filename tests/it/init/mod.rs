//! The initialisation scripts, run by bash against services that behave, start slowly, fail and forget.

mod models;
mod readers;
mod services;
mod settings;
mod together;
mod tokens;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use services::{MASTER, Services};
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
fn slow_services_that_start_slowly_are_waited_for() {
    let job = Job::new();
    job.services.with(|state| (state.unwell, state.without_database) = (2, 2));
    job.run(&[]).ends(0).says("503").says("not connected to its database");
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
