//! `deploy` and `env`: the commands over a copy of the deployments, and every mistake with its message. No network.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::pages;
use crate::support::run::{Outcome, Sandbox, outcome, repository, tool};

/// A sandbox with the deployments and complete secrets in it.
struct Checkout {
    sandbox: Sandbox,
}

impl Checkout {
    fn new() -> Checkout {
        let sandbox = Sandbox::new();
        let to = sandbox.work();
        let files = ["docker", "kubernetes"].map(|folder| repository().join("deployments").join(folder));
        fs::create_dir(to.join("deployments")).unwrap();
        outcome(Command::new("cp").arg("-r").args(files).arg(to.join("deployments"))).success();
        let copy = Checkout { sandbox };
        let _ = fs::remove_file(copy.path("docker/compose/.env"));
        for environment in ["dev", "prod", "test"] {
            let _ = fs::remove_dir_all(copy.path("docker/secrets").join(environment));
            outcome(Command::new(copy.path("docker/secrets/make")).arg(environment)).success();
        }
        copy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.work().join("deployments").join(name)
    }

    /// Replaces a text of a file by another one.
    fn edit(&self, name: &str, from: &str, to: &str) {
        let path = self.path(name);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{name} does not say `{from}`");
        fs::write(&path, text.replace(from, to)).unwrap();
    }

    /// Runs imgbuild without the machine's own settings, and with these.
    fn run(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Outcome {
        let mut command = self.sandbox.command(arguments);
        for name in ["TZ", "LOG_LEVEL", "OLLAMA_MODEL", "OLLAMA_URL", "OPENAI_API_KEY", "CORE_PORT", "ENVIRONMENT"] {
            command.env_remove(name);
        }
        outcome(command.envs(settings.iter().copied()))
    }
}

#[test]
fn deployments_as_they_are_are_valid_and_drawn() {
    let copy = Checkout::new();
    let valid = copy.run(&["deploy", "validate", "--only", "compose,config"], &[]);
    assert_eq!(valid.success(), "dev: valid\nprod: valid\ntest: valid\n");
    for environment in ["dev", "prod", "test"] {
        let url = [("WEBUI_URL", "https://chat.example.com")];
        let said = copy.run(&["env", "check", "--env", environment], &url).success();
        assert_eq!(said, format!("{environment}: fine\n"));
    }
    let dot = copy.run(&["deploy", "graph"], &[]).success();
    assert!(dot.contains("\"rag\" -> \"init\" [style=dashed];") && !dot.contains("prometheus"), "{dot}");
    let svg = copy.run(&["deploy", "graph", "--profile", "monitoring", "--format", "svg"], &[]).success();
    assert!(svg.starts_with("<svg") && svg.contains("prometheus"), "{svg}");
    let example = copy.run(&["env", "example"], &[]).success();
    assert_eq!(example, fs::read_to_string(copy.path("docker/compose/.env.example")).unwrap());
    assert!(copy.run(&["env", "docs"], &[]).success().contains("| `CHUNK_SIZE` |"));
    let plan = copy.run(&["deploy", "restore"], &[]).success();
    assert!(plan.starts_with("restore obelisk:\n  1. llm-postgres-data <- llm-postgres-data.dump"), "{plan}");
    let script = copy.run(&["deploy", "backup", "--script"], &[]).success();
    assert!(script.starts_with("#!/bin/bash\n") && script.contains("deployments/docker/compose/prod.yaml"), "{script}");
    let document = copy.run(&["deploy", "validate", "--only", "config", "--format", "json"], &[]).success();
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["environments"][1], json!({"environment": "prod", "problems": []}));
}

#[test]
fn what_was_built_or_pushed_is_pinned() {
    let copy = Checkout::new();
    let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
    let manifests = [("core", "a"), ("rag", "b"), ("init", "c")].map(
        |(name, letter)| json!({"digest": digest(letter), "annotations": {"org.opencontainers.image.ref.name": name}}),
    );
    copy.sandbox.write("dist/index.json", json!({"manifests": manifests}).to_string());
    let built = copy.run(&["deploy", "render", "--pin"], &[]).success();
    assert!(built.contains(&format!("  rag:\n    image: obelisk/rag:0.1.0@{}\n", digest("b"))), "{built}");
    assert!(built.contains(&format!("  vector-storage:\n    image: obelisk/init:0.1.0@{}\n", digest("c"))), "{built}");

    let images = [("core", "a"), ("rag", "b"), ("init", "c")].map(|(name, letter)| {
        let digest = digest(letter);
        json!({"name": name, "digest": digest, "references": [format!("ghcr.io/acme/o/{name}:v7@{digest}")]})
    });
    copy.sandbox.write("pushed.json", json!({"version": 1, "images": images}).to_string());
    let pushed = ["deploy", "render", "--pin", "--from", "pushed.json", "--format"];
    let kustomize = copy.run(&[&pushed[..], &["kustomize"]].concat(), &[]).success();
    let expected = format!(
        "  - name: obelisk/rag\n    newName: ghcr.io/acme/o/rag\n    newTag: v7\n    digest: {}\n",
        digest("b")
    );
    assert!(kustomize.contains(&expected), "{kustomize}");
    let printed = copy.run(&[&pushed[..], &["json"]].concat(), &[]).success();
    let document: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(document["images"][2]["reference"], format!("ghcr.io/acme/o/rag:v7@{}", digest("b")));

    // Another repository holds the same digests under the same tag; a tag that was not pushed is no image.
    let copied = copy.run(&[&pushed[..], &["json", "--repository", "ghcr.io/other/"]].concat(), &[]).success();
    let copied: Value = serde_json::from_str(&copied).unwrap();
    assert_eq!(copied["images"][0]["reference"], format!("ghcr.io/other/core:v7@{}", digest("a")));
    let same = ["json", "--repository", "ghcr.io/acme/o", "--tag", "v7"];
    assert_eq!(copy.run(&[&pushed[..], &same].concat(), &[]).success(), printed);
    for more in [&["--tag", "v8"][..], &["--tag", "v8", "--repository", "ghcr.io/acme/o"]] {
        copy.run(&[&pushed[..], &["compose"], more].concat(), &[]).failure(
            2,
            &[
                "image `core` was not pushed as `v8`: `pushed.json` says ghcr.io/acme/o/core:v7",
                "hint: leave `--tag` out, name a tag that was pushed, or push again with `--tag v8`",
            ],
        );
    }
    // A push of two tags to two registries.
    let images = [("core", "a"), ("rag", "b"), ("init", "c")].map(|(name, letter)| {
        let places =
            [format!("ghcr.io/acme/o/{name}:v7"), format!("r.example/x/{name}:v8"), format!("r.example/x/{name}:v9")];
        json!({"name": name, "digest": digest(letter), "references": places})
    });
    copy.sandbox.write("two.json", json!({"version": 1, "images": images}).to_string());
    let cases: [(&[&str], &str); 5] = [
        (&[], "ghcr.io/acme/o/rag:v7"),
        (&["--tag", "v9"], "r.example/x/rag:v9"),
        (&["--repository", "r.example/x"], "r.example/x/rag:v8"),
        (&["--repository", "r.example/x", "--tag", "v9"], "r.example/x/rag:v9"),
        (&["--repository", "mirror.example/y", "--tag", "v8"], "mirror.example/y/rag:v8"),
    ];
    for (flags, reference) in cases {
        let render = &["deploy", "render", "--pin", "--from", "two.json"][..];
        let said = copy.run(&[render, flags].concat(), &[]).success();
        assert!(said.contains(&format!("  rag:\n    image: {reference}@{}\n", digest("b"))), "{flags:?}: {said}");
    }
    let two = ["deploy", "render", "--pin", "--from", "two.json", "--tag", "v1"];
    let all = "ghcr.io/acme/o/core:v7, r.example/x/core:v8, r.example/x/core:v9";
    copy.run(&two, &[]).failure(2, &[&format!("image `core` was not pushed as `v1`: `two.json` says {all}")]);

    let tagged =
        copy.run(&["deploy", "render", "--tag", "v8", "--repository", "r.example/x", "-o", "new/pins.yaml"], &[]);
    assert_eq!(tagged.success(), "");
    let written = fs::read_to_string(copy.sandbox.work().join("new/pins.yaml")).unwrap();
    assert!(written.contains("  core:\n    image: r.example/x/core:v8\n"), "{written}");
    // The settings name the repository and the tag, too.
    let set = [("OBELISK_IMAGES", "ghcr.io/me"), ("OBELISK_TAG", "9")];
    let set = copy.run(&["deploy", "render", "--pin"], &set).success();
    assert!(set.contains("image: ghcr.io/me/core:9@sha256:aaa"), "{set}");
}

#[test]
fn every_mistake_is_told_clearly() {
    let copy = Checkout::new();
    let check = |environment: &'static str| vec!["env", "check", "--env", environment];
    let validate = |environment: &'static str| vec!["deploy", "validate", "--env", environment, "--only", "compose"];
    type Case<'a> = (Vec<&'a str>, &'a [(&'a str, &'a str)], fn(&Checkout), i32, &'a [&'a str]);
    let none: fn(&Checkout) = |_| {};
    let cases: &[Case<'_>] = &[
        // Wrong variables.
        (check("dev"), &[("CORE_PORT", "80000")], none, 1, &["CORE_PORT: `80000`: must be a port, 1 to 65535"]),
        (
            check("dev"),
            &[("CHUNK_OVERLAP", "3000")],
            none,
            1,
            &["CHUNK_OVERLAP: 3000 is not less than CHUNK_SIZE (2500)"],
        ),
        (
            check("dev"),
            &[("USE_OPENAI", "maybe"), ("OLLAMA_URL", "ollama")],
            none,
            1,
            &[
                "2 problems in the settings of `dev`",
                "USE_OPENAI: `maybe`: must be true or false",
                "OLLAMA_URL: `ollama`: must be a URL",
            ],
        ),
        (
            check("prod"),
            &[("LITELLM_LOG", "DEBUG")],
            none,
            1,
            &["LITELLM_LOG: DEBUG writes prompts and keys into the log"],
        ),
        (check("dev"), &[("USE_OPENAI", "true")], none, 1, &["USE_OPENAI: is `true`, but there is no OpenAI key"]),
        (
            check("dev"),
            &[],
            |copy| fs::write(copy.path("docker/compose/.env"), "CHUNK_SISE=1\n").unwrap(),
            1,
            &["CHUNK_SISE: no service and no compose file knows this variable", "hint: did you mean `CHUNK_SIZE`?"],
        ),
        (
            check("dev"),
            &[],
            |copy| fs::write(copy.path("docker/compose/.env"), "CHUNK_SIZE\n").unwrap(),
            1,
            &["/.env: line 1: `CHUNK_SIZE` is not NAME=VALUE"],
        ),
        (vec!["env", "check", "--env", "dev", "--env-file", "no.env"], &[], none, 2, &["`no.env` cannot be read"]),
        // A variable that production has to set: in none of its files, or empty.
        (
            check("prod"),
            &[],
            none,
            1,
            &[
                "WEBUI_URL: must be set in prod: the default `http://localhost:8080` does not do there",
                "hint: set it in `.env` beside the compose files: Address under which people open the chat",
            ],
        ),
        (check("prod"), &[("WEBUI_URL", "")], none, 1, &["WEBUI_URL: must be set in prod"]),
        (
            check("prod"),
            &[
                ("WEBUI_URL", "https://chat.example.com"),
                ("ENVIRONMENT", "dev"),
                ("CORE_MEMORY_LIMIT", "1k"),
                ("DOCS_DOMAIN", "chat.localhost"),
                ("OLLAMA_MODEL", "bad model"),
            ],
            none,
            1,
            &[
                "4 problems in the settings of `prod`",
                "ENVIRONMENT: must be prod: in dev init takes short and well-known keys",
                "CORE_MEMORY_LIMIT: `1k`: must be at least 16m",
                "DOCS_DOMAIN: is that of CHAT_DOMAIN, too",
                "OLLAMA_MODEL: `bad model`: must be the name of a model",
            ],
        ),
        // Missing secrets.
        (
            check("prod"),
            &[],
            |copy| fs::remove_file(copy.path("docker/secrets/prod/postgres_password")).unwrap(),
            1,
            &[
                "postgres_password: the secret cannot be read",
                "hint: `deployments/docker/secrets/make prod` makes what is missing",
            ],
        ),
        (
            check("prod"),
            &[],
            |copy| {
                let path = copy.path("docker/secrets/prod/minio_root_password");
                fs::remove_file(&path).unwrap();
                fs::write(&path, "minioadmin").unwrap();
            },
            1,
            &["minio_root_password: the secret is a default that everybody knows"],
        ),
        // A port that is taken: by another service, and by another program.
        (check("dev"), &[("RAG_PORT", "8000")], none, 1, &["RAG_PORT: port 8000 is already that of CORE_PORT"]),
        (
            validate("dev"),
            &[],
            |copy| copy.edit("docker/compose/overrides/dev.yaml", "${RAG_PORT:-8001}", "8000"),
            1,
            &["dev: service `rag`: publishes port 8000, which `core` publishes too"],
        ),
        // An unknown image.
        (
            validate("prod"),
            &[],
            |copy| copy.edit("docker/compose/base/rag.yaml", "/rag:$", "/raag:$"),
            1,
            &["prod: service `rag`: runs the image `raag`, which no catalogue defines", "hint: did you mean `rag`?"],
        ),
        (
            vec!["deploy", "render", "--pin"],
            &[],
            |copy| {
                let one = json!({"digest": format!("sha256:{}", "0".repeat(64)), "annotations": {"org.opencontainers.image.ref.name": "core"}});
                copy.sandbox.write("dist/index.json", json!({"manifests": [one]}).to_string());
            },
            1,
            &["runs the image `init`, which is not among the pinned ones: core", "hint: build or push that image too"],
        ),
        (vec!["deploy", "render", "--pin"], &[], none, 2, &["`dist` cannot be read", "hint: build or push first"]),
        (vec!["deploy", "render", "--tag", "latest"], &[], none, 2, &["`latest` is not a tag"]),
        (vec!["deploy", "render"], &[], none, 2, &["--tag <TAG>"]),
        (
            vec!["deploy", "render", "--tag", "v1", "--repository", "https://ghcr.io/acme"],
            &[],
            none,
            2,
            &["`https://ghcr.io/acme` is not an image repository", "hint: say it without a scheme and a tag"],
        ),
        (
            vec!["deploy", "render", "--tag", "v1"],
            &[("OBELISK_IMAGES", "a:b/c d")],
            none,
            2,
            &["`a:b/c d` is not an image"],
        ),
        (
            vec!["deploy", "graph", "--env", "prod", "--profile", "monitoring,tsl"],
            &[],
            none,
            2,
            &["no service of prod is in the profile `tsl`", "hint: there are monitoring, tls"],
        ),
        // What else cannot be understood.
        (
            vec!["deploy", "validate", "--env", "staging"],
            &[],
            none,
            2,
            &["no environment `staging`", "hint: there are dev, prod, test"],
        ),
        (
            vec!["env", "docs", "--deployments", "nowhere"],
            &[],
            none,
            2,
            &["`nowhere` holds no deployments", "--deployments DIR"],
        ),
        (
            validate("dev"),
            &[],
            |copy| copy.edit("docker/compose/base/rag.yaml", "healthcheck:", "helthcheck:"),
            1,
            &["/services/rag: `helthcheck` is not expected here"],
        ),
        (
            vec!["deploy", "validate", "--env", "prod", "--only", "config"],
            &[],
            |copy| copy.edit("docker/config/litellm/config.yaml", "router_settings:", "router_setings:"),
            1,
            &["config.yaml: `router_setings` is no section that LiteLLM knows"],
        ),
        (
            vec!["deploy", "backup"],
            &[],
            |copy| copy.edit("docker/compose/base/core.yaml", "obelisk.backup: pg_dump", "obelisk.backup: ftp"),
            1,
            &["volume `llm-postgres-data`: `ftp` is not a way to save it"],
        ),
    ];
    let saved = copy.sandbox.path().join("saved");
    tool("cp", ["-r".as_ref(), copy.sandbox.work().join("deployments").as_os_str(), saved.as_os_str()]);
    for (arguments, settings, edit, status, said) in cases {
        edit(&copy);
        copy.run(arguments, settings).failure(*status, said);
        tool(
            "rm",
            [
                "-rf".as_ref(),
                copy.sandbox.work().join("deployments").as_os_str(),
                copy.sandbox.work().join("dist").as_os_str(),
            ],
        );
        tool("cp", ["-r".as_ref(), saved.as_os_str(), copy.sandbox.work().join("deployments").as_os_str()]);
    }
}

#[test]
fn a_port_that_another_program_has_is_named_with_its_variable() {
    let copy = Checkout::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port().to_string();
    let check = ["env", "check", "--env", "dev", "--ports"];
    let message = format!("service `core`: publishes port {port} of 127.0.0.1, which another program has");
    copy.run(&check, &[("CORE_PORT", &port)]).failure(1, &[&message, "hint: set CORE_PORT to a port that is free"]);
    drop(other);
    let free = copy.run(&check, &[("CORE_PORT", &port)]);
    assert!(!free.stderr.contains("CORE_PORT"), "{}", free.stderr);
}

#[test]
fn a_tool_that_is_missing_is_named_with_a_way_out() {
    let copy = Checkout::new();
    let mut command = copy.sandbox.command(["deploy", "validate", "--env", "prod"]);
    outcome(command.env("PATH", copy.sandbox.home())).failure(
        1,
        &["kubectl cannot be run", "hint: install it, or leave these checks out with `--only compose,config`"],
    );
}

#[test]
fn real_kubernetes_is_validated_too() {
    let copy = Checkout::new();
    let said = copy.run(&["deploy", "validate", "--env", "dev,prod"], &[]).success();
    assert_eq!(said, "dev: valid\nprod: valid\n");
    // What compose is told for this machine is nothing that manifests must say, too.
    let settings = "WEBUI_URL=https://chat.example.com\nCHUNK_SIZE=2000\nOBELISK_IMAGES=ghcr.io/acme/obelisk\n";
    fs::write(copy.path("docker/compose/.env"), settings).unwrap();
    let only = ["deploy", "validate", "--env", "dev,prod", "--only", "kubernetes"];
    assert_eq!(copy.run(&only, &[("LOG_LEVEL", "ERROR")]).success(), "dev: valid\nprod: valid\n");
    copy.edit("kubernetes/base/rag/rag.yaml", "containerPort:", "containerPrt:");
    let failed = copy.run(&["deploy", "validate", "--env", "prod", "--only", "schemas"], &[]);
    failed.failure(1, &["deployment/rag", "containerPort' is a required property"]);
    copy.edit("kubernetes/base/rag/rag.yaml", "containerPrt:", "containerPort:");
    copy.edit("kubernetes/base/core/ollama.yaml", "drop: [ALL]", "drop: []");
    copy.run(&["deploy", "validate", "--env", "prod", "--only", "kubernetes"], &[])
        .failure(1, &["prod: StatefulSet `ollama`"]);
}

/// What `deploy render --pin` says for kustomize is what kustomize makes of every image of ours, those of jobs included.
#[test]
fn real_kustomize_takes_the_pins() {
    let copy = Checkout::new();
    let images = [("core", "a"), ("rag", "b"), ("init", "c")].map(|(name, letter)| {
        let digest = format!("sha256:{}", letter.repeat(64));
        json!({"name": name, "digest": digest, "references": [format!("ghcr.io/acme/o/{name}:v7@{digest}")]})
    });
    copy.sandbox.write("pushed.json", json!({"version": 1, "images": images}).to_string());
    let output = "deployments/kubernetes/pins/kustomization.yaml";
    let render = ["deploy", "render", "--pin", "--from", "pushed.json", "--format", "kustomize", "--output", output];
    copy.run(&render, &[]).success();
    let (last, prod) = ("  - ../../components/backup\n", "kubernetes/overlays/prod/kustomization.yaml");
    copy.edit(prod, last, &format!("{last}  - ../../pins\n"));
    let overlay = copy.path("kubernetes/overlays/prod");
    let rendered = outcome(Command::new("kubectl").arg("kustomize").arg(&overlay)).success();
    let named = |line: &&str| ["/core:", "/rag:", "/init:"].iter().any(|name| line.contains(name));
    let ours: Vec<&str> = rendered.lines().filter(|line| line.contains("image: ")).filter(named).collect();
    assert!(ours.len() >= 9, "{ours:#?}");
    for line in ours {
        let pinned = ["core", "rag", "init"].iter().zip(["a", "b", "c"]).any(|(name, letter)| {
            line.trim() == format!("image: ghcr.io/acme/o/{name}:v7@sha256:{}", letter.repeat(64))
        });
        assert!(pinned, "{line}");
    }
}

#[test]
fn every_block_of_commands_says_how_it_is_run() {
    let blocks = pages::blocks();
    for block in &blocks {
        let known = matches!(block.kind.as_str(), "run" | "run: stack" | "run: stack, by its names");
        let reason = block.kind.strip_prefix("not run: needs ").is_some_and(|why| why.len() > 5);
        assert!(
            known || reason,
            "{}: `sh {}` is neither `run`, `run: stack`, `run: stack, by its names` nor `not run: needs ...`",
            block.at,
            block.kind
        );
    }
    let count = |kind: &str| blocks.iter().filter(|block| block.kind.starts_with(kind)).count();
    assert!(count("run") >= 8 && count("run: stack") >= 2, "{blocks:#?}");
    // `tests/run` counts the others in its last line, by the same words.
    let runner = fs::read_to_string(repository().join("tests/run")).unwrap();
    assert!(runner.contains("'^ *```sh not run: needs'"), "tests/run must count them");
}

#[test]
fn commands_in_a_sentence_name_what_there_is() {
    let copy = Checkout::new();
    let services: String =
        ["dev", "prod", "test"].map(|env| copy.run(&["deploy", "graph", "--env", env], &[]).success()).concat();
    let mut checked = 0;
    for (page, text) in pages::texts() {
        // Between blocks of commands, and there between two backquotes.
        let sentences = text.split("```").step_by(2).collect::<String>();
        for command in sentences.split('`').skip(1).step_by(2) {
            let words: Vec<&str> =
                command.split_whitespace().filter(|it| !it.bytes().any(|it| it.is_ascii_uppercase())).collect();
            match words.as_slice() {
                ["docker", "compose", "-f"] | ["docker", "compose"] => continue,
                ["docker", "compose", verb, rest @ ..] => {
                    assert!(
                        ["logs", "up", "down", "run", "restart"].contains(verb),
                        "{page}: `{command}`: what is `{verb}`?"
                    );
                    for name in rest.iter().filter(|it| !it.starts_with('-')) {
                        let known = services.contains(&format!("\"{name}\" [label"));
                        assert!(known, "{page}: `{command}`: `{name}` is no service");
                    }
                }
                ["imgbuild", verb, rest @ ..] | [verb @ ("deploy" | "env"), rest @ ..] if !rest.is_empty() => {
                    let inner = Some(rest[0]).filter(|it| ["deploy", "env"].contains(verb) && !it.starts_with('-'));
                    let asked = [verb].into_iter().copied().chain(inner).chain(["--help"]).collect::<Vec<_>>();
                    let help = copy.run(&asked, &[]).success();
                    for flag in rest.iter().filter(|it| it.starts_with("--")) {
                        assert!(help.contains(flag), "{page}: `{command}`: `{flag}` is unknown");
                    }
                }
                _ => continue,
            }
            checked += 1;
        }
    }
    assert!(checked >= 12, "{checked}");
}

#[test]
fn real_the_pages_commands_run() {
    let sandbox = Sandbox::new();
    pages::checkout(&sandbox);
    // A reader has none yet: the page has it written.
    assert!(!sandbox.work().join("deployments/docker/compose/.env").exists());
    let mut run = 0;
    for block in pages::blocks().into_iter().filter(|block| block.kind == "run") {
        let done = outcome(&mut pages::shell(&sandbox, &block.text));
        assert_eq!(done.status, 0, "{}\n{}\n{}\n{}", block.at, block.text, done.stdout, done.stderr);
        run += 1;
    }
    assert!(run >= 8, "{run}");
}

/// What cannot be run here is still checked: files exist, compose knows the services, imgbuild the words.
#[test]
fn real_commands_that_are_not_run_are_checked() {
    let sandbox = Sandbox::new();
    pages::checkout(&sandbox);
    for environment in ["dev", "prod", "test"] {
        outcome(Command::new(sandbox.work().join("deployments/docker/secrets/make")).arg(environment)).success();
    }
    // What a push would have left.
    let pin = "imgbuild deploy render --tag v1 --repository registry.example/obelisk --output pinned.yaml";
    outcome(&mut pages::shell(&sandbox, pin)).success();
    let all: String = pages::blocks().into_iter().map(|block| block.text).collect();
    let rendered = outcome(
        Command::new("kubectl").arg("kustomize").arg(repository().join("deployments/kubernetes/overlays/prod")),
    );
    let manifests = deployments::kubernetes::Manifests::parse(&rendered.success()).unwrap();
    let mut checked = 0;
    for block in pages::blocks().into_iter().filter(|block| block.kind.starts_with("not run: needs ")) {
        for line in block.text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let check = |script: &str| {
                let done = outcome(&mut pages::shell(&sandbox, script));
                assert_eq!(done.status, 0, "{}: {line}\n{script}\n{}{}", block.at, done.stdout, done.stderr);
                done.stdout
            };
            match words.as_slice() {
                ["docker", "compose", rest @ ..] => {
                    let verbs = ["up", "create", "exec", "run", "logs", "down", "start", "stop", "ps", "restart"];
                    let at = rest.iter().position(|word| verbs.contains(word)).expect("a verb that is known");
                    check(&format!("docker compose {} --help", rest[at]));
                    if !rest.contains(&"-f") {
                        // The old stack's own file, which is not here.
                        assert!(block.kind.ends_with("the old stack"), "{}: {line}: no -f", block.at);
                        checked += 1;
                        continue;
                    }
                    let known = check(&format!("docker compose {} config --services", rest[..at].join(" ")));
                    let takes_value = ["--profile", "-f", "--wait-timeout", "--tail"];
                    let mut words = rest[at + 1..].iter();
                    while let Some(word) = words.next() {
                        if takes_value.contains(word) {
                            words.next();
                        } else if !word.starts_with('-') {
                            assert!(
                                known.lines().any(|it| it == *word),
                                "{}: {line}: `{word}` is no service",
                                block.at
                            );
                            if ["exec", "run"].contains(&rest[at]) {
                                break;
                            }
                        }
                    }
                }
                ["imgbuild", verb, inner, ..] => {
                    let inner = if ["deploy", "env"].contains(verb) { inner } else { "" };
                    let help = check(&format!("imgbuild {verb} {inner} --help"));
                    for flag in words.iter().filter(|word| word.starts_with("--")) {
                        assert!(help.contains(flag), "{}: {line}: `{flag}` is unknown", block.at);
                    }
                }
                ["kubectl", ..] | ["tar", .., "|", "kubectl", _, _, "exec", _, _, _, _, _, _, _] => {
                    let at = words.iter().position(|word| *word == "kubectl").expect("it is one of them");
                    let rest = &words[at + 1..];
                    check(&format!(
                        "kubectl {} --help",
                        rest.iter().find(|it| !it.starts_with('-') && **it != "obelisk").unwrap()
                    ));
                    for word in rest {
                        let word = word.trim_start_matches("--from=");
                        let kinds = [
                            ("deployment", "Deployment"),
                            ("statefulset", "StatefulSet"),
                            ("cronjob", "CronJob"),
                            ("job", "Job"),
                        ];
                        let named = kinds
                            .iter()
                            .find_map(|(short, kind)| Some((*kind, word.strip_prefix(&format!("{short}/"))?)));
                        let made = |name: &str| {
                            all.lines().any(|it| it.contains("create job ") && it.ends_with(&format!(" {name}")))
                        };
                        if let Some((kind, name)) = named {
                            assert!(
                                manifests.of(kind).contains_key(name) || (kind == "Job" && made(name)),
                                "{}: {line}: there is no {kind} `{name}`",
                                block.at
                            );
                        }
                        // A script that is run is one that is mounted.
                        if let Some(script) = word.strip_prefix("/etc/vault/") {
                            let path = sandbox.work().join("deployments/docker/config/vault").join(script);
                            assert!(path.is_file(), "{}: {line}: {}", block.at, path.display());
                        }
                    }
                    if let Some(at) = rest.iter().position(|word| *word == "-k") {
                        check(&format!("kubectl kustomize {}", rest[at + 1]));
                    }
                }
                ["bash", script, ..] => assert!(all.contains(&format!("> {script}\n")), "{}: {line}", block.at),
                ["copy", _, volume, ..] | ["docker", "cp", .., "|", "into", volume] => {
                    let volumes = check("docker compose -f deployments/docker/compose/prod.yaml config --volumes");
                    assert!(volumes.lines().any(|it| it == *volume), "{}: `{volume}` is no volume", block.at);
                }
                // Plain copies out of and into volumes: the shell's words are read, no more.
                [first, ..] if *first == "docker" || first.ends_with("()") || first.starts_with("id=") => {
                    check(&format!("bash -n <<'END'\n{line}\nEND"));
                }
                _ => panic!("{}: `{line}` is checked by nothing", block.at),
            }
            checked += 1;
        }
    }
    assert!(checked >= 8, "{checked}");
}

#[test]
fn every_box_of_the_plan_is_answered() {
    let plan = fs::read_to_string(repository().join("deployments/PLAN.md")).unwrap();
    let sources = "cd \"$1\" && find tests/it deployments/tests images/tests src deployments/src layers/src -name '*.rs' \
                   -exec cat {} + && cat images/obelisk/tests/*.py";
    let mut cat = Command::new("sh");
    let sources = outcome(cat.args(["-c", sources, "sh"]).arg(repository())).success();
    let mut rows = 0;
    for line in
        plan.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---") && !line.starts_with("| box "))
    {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, place, proof] = cells.as_slice() else { panic!("three cells: {line}") };
        match proof.strip_prefix("not: ") {
            Some(reason) => assert!(reason.len() > 20, "a reason: {line}"),
            None => {
                let names: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
                assert!(!names.is_empty(), "a test or a reason: {line}");
                for name in names {
                    let found =
                        [format!("fn {name}("), format!("def {name}(")].iter().any(|it| sources.contains(it.as_str()));
                    assert!(found, "there is no test `{name}`: {line}");
                }
            }
        }
        for path in place.split('`').skip(1).step_by(2).filter(|it| it.contains('/') && !it.contains(['*', '<', ' '])) {
            let there = [
                repository().join(path),
                repository().join("deployments").join(path),
                repository().join("deployments/docker").join(path),
                repository().join("deployments/docker/compose").join(path),
                repository().join("deployments/kubernetes").join(path),
            ];
            assert!(there.iter().any(|it| it.exists()), "there is no `{path}`: {line}");
        }
        rows += 1;
    }
    // The plan has 112 boxes, 12 steps of a migration and 15 next steps.
    assert!(rows >= 139, "{rows} rows");
}
