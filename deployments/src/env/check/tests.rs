use super::super::tests::schema;
use super::*;

fn found(environment: &str, settings: &[(&str, &str)]) -> Vec<String> {
    let given: Settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let mut effective = given.clone();
    if environment == "prod" {
        effective.entry("ENABLE_SIGNUP".into()).or_insert("false".into());
        effective.entry("ENVIRONMENT".into()).or_insert("prod".into());
    }
    check(&schema(), environment, &given, &effective).iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_are_fine_everywhere() {
    for environment in crate::ENVIRONMENTS {
        assert_eq!(found(environment, &[]), [""; 0], "{environment}");
    }
}

const REPOSITORY: &str = "must be an image repository without a tag, such as obelisk or ghcr.io/you/obelisk";
const TAG: &str = "must be a tag: letters, digits, `.`, `_` and `-`, at most 128";

#[test]
fn wrong_values_are_named_with_what_would_be_right() {
    for (name, value, message) in [
        ("CORE_PORT", "0", "must be a port, 1 to 65535"),
        ("CORE_PORT", "65536", "must be a port, 1 to 65535"),
        ("CORE_PORT", "http", "must be a port, 1 to 65535"),
        ("WEBUI_URL", "chat.example", "must be a URL that begins with http:// or https:// and names a host"),
        ("WEBUI_URL", "http://", "must be a URL that begins with http:// or https:// and names a host"),
        ("OLLAMA_URL", "http://h:99999", "must be a URL that begins with http:// or https:// and names a host"),
        ("LOG_LEVEL", "verbose", "must be one of DEBUG, INFO, WARNING, ERROR"),
        ("USE_OPENAI", "yes", "must be true or false"),
        ("RETRIEVE_TOP_K", "0", "must be at least 1"),
        ("RETRIEVE_TOP_K", "5.5", "must be a whole number"),
        ("OLLAMA_MEMORY_LIMIT", "8 GB", "must be a size such as 512m or 2g"),
        ("OLLAMA_CPU_LIMIT", "NaN", "must be a number"),
        ("OLLAMA_KEEP_ALIVE", "5", "must be a time such as 30s, 5m or 15d"),
        ("LITELLM_POSTGRES_HOST", "-db", "must be a host name"),
        ("PUBLISH_ADDRESS", "localhost", "must be an IP address"),
        ("OBELISK_IMAGES", "x;touch${IFS}/tmp/PWN;#", REPOSITORY),
        ("OBELISK_IMAGES", "ghcr.io/you/obelisk:1", REPOSITORY),
        ("OBELISK_IMAGES", "ghcr.io/you/", REPOSITORY),
        ("OBELISK_IMAGES", "-x/y", REPOSITORY),
        ("OBELISK_IMAGES", "x..y", REPOSITORY),
        ("OBELISK_IMAGES", "x___y", REPOSITORY),
        ("OBELISK_IMAGES", "x/y.-z", REPOSITORY),
        ("OBELISK_IMAGES", "ghcr.io:0/y", REPOSITORY),
        ("OBELISK_TAG", "x;touch${IFS}/tmp/PWN;#", TAG),
        ("OBELISK_TAG", "-x", TAG),
        ("OBELISK_TAG", &"x".repeat(129), TAG),
        ("OLLAMA_MODEL", "a\nb", "must be one line"),
        ("OLLAMA_MODEL", "bad model", "must be the name of a model, such as llama3 or org/model:7b"),
        ("EMBEDDING_MODEL", "-x", "must be the name of a model, such as llama3 or org/model:7b"),
        ("OPENAI_COMPLETION_MODEL", &"x".repeat(202), "must be the name of a model, such as llama3 or org/model:7b"),
        (
            "EXTRA_MODELS",
            "llama3 bad;model",
            "must be names of models, such as llama3 or org/model:7b, separated by spaces",
        ),
        ("LOG_MAX_SIZE", "0", "must be a size such as 512m or 2g"),
        ("CORE_MEMORY_LIMIT", "0g", "must be a size such as 512m or 2g"),
        ("STALL_TIMEOUT", "0", "must be at least 1"),
        ("WATCH_INTERVAL", "often", "must be a number"),
        ("SITE_URL", "docs.example", "must be a URL that begins with http:// or https:// and names a host"),
    ] {
        let problems = found("dev", &[(name, value)]);
        assert_eq!(problems, [format!("{name}: `{value}`: {message}")], "{name}={value}");
    }
}

#[test]
fn images_of_registries_are_fine() {
    for images in ["obelisk", "ghcr.io/you/obelisk", "localhost:5000/a/b__c-d.e", "127.0.0.1:5000/x", "you/obelisk"] {
        assert_eq!(found("dev", &[("OBELISK_IMAGES", images)]), [""; 0], "{images}");
    }
    for tag in ["0.1.0", "v1.2.3-rc.1_x", "_", "latest", &"x".repeat(128)] {
        assert_eq!(found("dev", &[("OBELISK_TAG", tag)]), [""; 0], "{tag}");
    }
}

#[test]
fn a_pipe_in_a_secrets_place_is_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["postgres_password", "openai_api_key", "milvus_token"] {
        assert!(std::process::Command::new("mkfifo").arg(folder.path().join(name)).status().unwrap().success());
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let path = folder.path().to_owned();
    std::thread::spawn(move || sender.send(check_secrets(&schema(), "prod", &path, &Settings::new())));
    let problems = receiver.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    let pipe = |problem: &&Problem| problem.what == "the secret cannot be read: it is not a regular file";
    assert_eq!(problems.iter().filter(pipe).count(), 3, "{problems:?}");
}

#[test]
fn a_limit_that_leaves_no_memory_is_refused_everywhere() {
    for environment in crate::ENVIRONMENTS {
        for (name, value) in [("CORE_MEMORY_LIMIT", "1k"), ("INIT_MEMORY_LIMIT", "15m"), ("TIKA_MEMORY_LIMIT", "1")] {
            let said = format!("{name}: `{value}`: must be at least 16m: no service starts in less");
            let problems = found(environment, &[(name, value), ("TIKA_JAVA_HEAP", "1")]);
            assert!(problems.contains(&said), "{environment}: {problems:?}");
        }
        assert_eq!(found(environment, &[("CORE_MEMORY_LIMIT", "16m")]), [""; 0], "{environment}");
    }
    assert_eq!(found("dev", &[("PROXY_MEMORY_LIMIT", "1k")]), [""; 0], "a limit of production alone");
    assert_eq!(found("prod", &[("PROXY_MEMORY_LIMIT", "1k")]).len(), 1);
}

#[test]
fn what_production_has_to_set_is_asked_for_there_alone() {
    let missing = |environment: &str, settings: &[(&str, &str)]| -> Vec<String> {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        check_required(&schema(), environment, &settings).iter().map(ToString::to_string).collect()
    };
    let said = "WEBUI_URL: must be set in prod: the default `http://localhost:8080` does not do there\n  \
                hint: set it in `.env` beside the compose files: Address under which people open the chat";
    for settings in [&[][..], &[("WEBUI_URL", "")]] {
        let problems = missing("prod", settings);
        assert!(problems.len() == 1 && problems[0].starts_with(said), "{problems:?}");
    }
    assert_eq!(missing("prod", &[("WEBUI_URL", "https://chat.example.com")]), [""; 0]);
    assert_eq!(missing("dev", &[]), [""; 0]);
    assert_eq!(missing("test", &[]), [""; 0]);
}

#[test]
fn models_with_tags_and_organisations_are_fine() {
    for (name, value) in [
        ("OLLAMA_MODEL", "hf.co/org/Model-GGUF:Q4_K_M"),
        ("EMBEDDING_MODEL", &"x".repeat(201)),
        ("EXTRA_MODELS", "  llama3:8b   nomic-embed-text "),
    ] {
        assert_eq!(found("dev", &[(name, value)]), [""; 0], "{name}={value}");
    }
}

#[test]
fn an_empty_value_is_the_default_as_compose_takes_it() {
    assert_eq!(found("dev", &[("OLLAMA_MODEL", ""), ("CORE_PORT", ""), ("CHUNK_OVERLAP", "")]), [""; 0]);
    assert_eq!(found("prod", &[("LITELLM_MODE", ""), ("COMPOSE_PROFILES", "tls")]), [""; 0]);
    let problems = found("dev", &[("CHUNK_SIZE", "400"), ("CHUNK_OVERLAP", "")]);
    assert_eq!(problems, ["CHUNK_OVERLAP: 500 is not less than CHUNK_SIZE (400): chunks would never end"]);
}

#[test]
fn unknown_names_get_a_suggestion_and_fixed_ones_a_reason() {
    assert_eq!(
        found("dev", &[("CHUNK_SISE", "100")]),
        ["CHUNK_SISE: no service and no compose file knows this variable\n  hint: did you mean `CHUNK_SIZE`?"]
    );
    assert!(found("dev", &[("OLLAMA_HOST", "x")])[0].contains("cannot be set from outside"));
}

#[test]
fn rules_between_variables() {
    let problems = found("dev", &[("CHUNK_OVERLAP", "2500")]);
    assert_eq!(problems, ["CHUNK_OVERLAP: 2500 is not less than CHUNK_SIZE (2500): chunks would never end"]);
    assert!(found("dev", &[("RAG_PORT", "8000")])[0].contains("port 8000 is already that of CORE_PORT"));
    assert!(found("dev", &[("TIKA_JAVA_HEAP", "2g")])[0].contains("TIKA_MEMORY_LIMIT"));
}

#[test]
fn production_refuses_what_is_fine_at_home() {
    for (name, value) in [
        ("LITELLM_LOG", "DEBUG"),
        ("GLOBAL_LOG_LEVEL", "DEBUG"),
        ("LITELLM_MODE", "DEV"),
        ("ENABLE_SIGNUP", "true"),
        ("RESTART_POLICY", "no"),
        ("OBELISK_TAG", "latest"),
        ("OPEN_WEBUI_ENV", "dev"),
        ("ENVIRONMENT", "test"),
        ("DOCS_DOMAIN", "Chat.localhost"),
    ] {
        assert_eq!(found("dev", &[(name, value)]), [""; 0], "{name}");
        let problems = found("prod", &[(name, value)]);
        assert!(problems.len() == 1 && problems[0].starts_with(name), "{problems:?}");
    }
    let said = ["ENVIRONMENT: must be prod: in dev init takes short and well-known keys"];
    assert_eq!(found("prod", &[("ENVIRONMENT", "dev")]), said);
    let same = [("DOCS_DOMAIN", "a.example"), ("CHAT_DOMAIN", "a.example")];
    assert_eq!(found("prod", &same), ["DOCS_DOMAIN: is that of CHAT_DOMAIN, too: each needs its own"]);
}

#[test]
fn missing_weak_and_known_secrets_are_named_without_their_values() {
    let folder = tempfile::tempdir().unwrap();
    let schema = schema();
    let none = Settings::new();
    let missing = check_secrets(&schema, "prod", folder.path(), &none);
    assert_eq!(missing.len(), schema.secrets.len());
    assert!(missing[0].to_string().contains("secrets/make prod"), "{}", missing[0]);

    for secret in &schema.secrets {
        let value = format!("{}{}", secret.prefix, "7f3a9c1e5b2d8046f1c7e93a5d0b8246");
        let value = if secret.bytes == 0 { String::new() } else { value };
        std::fs::write(folder.path().join(&secret.name), value).unwrap();
    }
    assert_eq!(check_secrets(&schema, "prod", folder.path(), &none), []);
    for (name, value, what) in [
        ("postgres_password", "postgres", "everybody knows"),
        ("minio_root_password", "minioadmin", "everybody knows"),
        ("litellm_master_key", "sk-1234", "everybody knows"),
        ("litellm_master_key", "7f3a9c1e5b2d8046f1c7e93a5d0b8246", "does not begin with `sk-`"),
        ("postgres_password", "short", "has 5 characters"),
        ("postgres_password", "", "is empty"),
        ("postgres_password", "7f3a9c1e 5b2d8046 f1c7", "white space"),
        ("postgres_password", "aaaaaaaaaaaaaaaaaaaaaaaa", "fewer than 8 different"),
        ("postgres_password", "0123456789abcdef0123", "counts up or down"),
        ("postgres_password", "qwertyuiopasdfgh", "counts up or down, or along a keyboard"),
        ("postgres_password", "POIUYTREWQ-lkjhgf", "counts up or down, or along a keyboard"),
        ("postgres_password", "please-changeme-7f3a9c1e", "everybody knows"),
        ("postgres_password", "7f3a9c1e-CHANGE_ME-5b2d80", "everybody knows"),
        ("minio_root_user", "obelisk-change-me", "everybody knows"),
        ("grafana_admin_password", "changeme", "everybody knows"),
        ("litellm_master_key", "sk-7f3a9c1e5b2d8046", "production wants 32"),
    ] {
        let path = folder.path().join(name);
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, value).unwrap();
        let problems = check_secrets(&schema, "prod", folder.path(), &none);
        assert!(problems.len() == 1 && problems[0].what.contains(what), "{name}: {problems:?}");
        assert!(value.is_empty() || !problems[0].what.contains(value), "a value was printed: {problems:?}");
        std::fs::write(&path, before).unwrap();
    }
    // Not text: what, where, and what to do, which differs by whether the secret is made or written by a person.
    for (name, hint) in [("postgres_password", "secrets/make prod"), ("openai_api_key", "write it anew as one line")] {
        let path = folder.path().join(name);
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, b"secret\xff\xfe-7f3a9c1e5b2d8046").unwrap();
        let [problem] = &check_secrets(&schema, "prod", folder.path(), &none)[..] else { panic!("{name}") };
        assert!(problem.at.ends_with(name) && problem.what.contains("is not text: byte 7 of the file"), "{problem}");
        assert!(problem.hint.as_ref().is_some_and(|it| it.contains(hint)), "{problem}");
        assert!(!problem.to_string().contains("7f3a"), "a value was printed: {problem}");
        std::fs::write(&path, before).unwrap();
    }
    let path = folder.path().join("litellm_master_key");
    let before = std::fs::read(&path).unwrap();
    let keys = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/keys.txt");
    let keys = std::fs::read_to_string(keys).unwrap();
    for (judged, key) in keys.lines().filter_map(|line| line.split_once(' ')).filter(|(judged, _)| *judged != "#") {
        std::fs::write(&path, key).unwrap();
        let problems = check_secrets(&schema, "prod", folder.path(), &none);
        assert_eq!(problems.is_empty(), judged == "good", "{key}: {problems:?}");
    }
    std::fs::write(&path, before).unwrap();
    let openai = Settings::from([("USE_OPENAI".to_owned(), "true".to_owned())]);
    let problems = check_secrets(&schema, "prod", folder.path(), &openai);
    let names: Vec<&str> = problems.iter().map(|problem| problem.at.as_str()).collect();
    assert_eq!(names, ["OPENAI_API_KEY_FILE", "USE_OPENAI"], "{problems:?}");
    let openai = Settings::from([("EMBEDDING_PROVIDER".to_owned(), "openai".to_owned())]);
    let problems = check_secrets(&schema, "prod", folder.path(), &openai);
    let names: Vec<&str> = problems.iter().map(|problem| problem.at.as_str()).collect();
    assert_eq!(names, ["EMBEDDING_PROVIDER", "OPENAI_API_KEY_FILE"], "{problems:?}");

    let with = |path: &str| Settings::from([("MILVUS_TOKEN_FILE".to_owned(), path.to_owned())]);
    let said = |settings: &Settings| -> Vec<String> {
        check_secrets(&schema, "prod", folder.path(), settings).into_iter().map(|problem| problem.what).collect()
    };
    let place = "/run/secrets/milvus_token";
    assert_eq!(said(&with(place)), ["is set, but there is no token of Milvus"]);
    assert!(said(&with("/x"))[0].starts_with("must be /run/secrets/milvus_token or empty"));
    std::fs::write(folder.path().join("milvus_token"), "root:7f3a9c1e5b2d8046").unwrap();
    assert_eq!(said(&with(place)), [""; 0]);
    assert!(said(&none)[0].contains("does not read it"));
}
