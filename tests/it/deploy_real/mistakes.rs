//! What is said at a start: of mistakes, and by the scripts that start services.

use super::*;

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
    let set = ["--env", "STATIC_DIR=/tmp/static"];
    let written = ["--volume", "obelisk-test_init-openwebui:/app/config:ro"];
    let said = run(&mounts, &[&set[..], &written].concat(), &[script]).success();
    let counts: Vec<usize> = said.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert!(counts[..2] == [2, 2] && counts[2] >= 32, "{said}");
    run(&mounts, &set, &[script]).failure(
        1,
        &["/app/config/openwebui.env is missing, empty or not readable for uid 10001: has init completed?"],
    );

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
