//! Tokens: made, registered, rotated and forgotten.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::Job;

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
