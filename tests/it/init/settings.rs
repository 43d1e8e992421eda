//! Settings: what is wrong with them is said at once, what they change is changed, and no secret of them shows.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::{env, fs};

use tempfile::TempDir;

use super::services::MASTER;
use super::{Job, OPENAI, Run, scripts};

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
