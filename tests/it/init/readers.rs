//! Services that start with what the initialisation wrote.

use std::collections::BTreeMap;
use std::process::Command;
use std::{env, fs};

use super::{Job, OPENAI, Run, scripts};

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
