//! Jobs that run at the same time, are waited for, or are stopped.

use std::process::Command;
use std::{env, fs};

use super::{Job, Run, scripts};

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
