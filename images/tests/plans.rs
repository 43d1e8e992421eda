//! The catalogue as a reader sees it: one snapshot an image, so that a review of a definition shows its effect.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use std::fmt::Write as _;
use std::path::Path;

use images::catalogue;
use layers::source::Debian;
use layers::{Plan, PlannedImage, Source, StageId, StageStep};

/// A readable listing of an image: its layers from the bottom to the top, then how it runs.
fn listing(plan: &Plan, name: &str, image: &PlannedImage) -> String {
    let mut text = format!("{name}: {}\n\nlayers\n", image.description);
    for (_, stage) in plan.steps(image.stage) {
        if let StageStep::Layer { source, .. } = &stage.step {
            writeln!(text, "  {}", source.label()).unwrap();
            for detail in details(source) {
                writeln!(text, "      {detail}").unwrap();
            }
            if let Source::Take(take) = source {
                for (_, stage) in plan.steps(take.stage) {
                    if let StageStep::Run { .. } = &stage.step {
                        writeln!(text, "      made by {}", stage.step.label()).unwrap();
                    }
                }
            }
        }
    }
    let config = &image.config;
    text.push_str("\nruns\n");
    let mut fact = |name: &str, value: String| writeln!(text, "  {name:<12} {value}").unwrap();
    fact("user", config.user.clone().unwrap_or_default());
    fact("workdir", config.workdir.as_ref().map(ToString::to_string).unwrap_or_default());
    fact("entrypoint", format!("{:?}", config.entrypoint.clone().unwrap_or_default()));
    fact("cmd", format!("{:?}", config.cmd.clone().unwrap_or_default()));
    fact("stop signal", config.stop_signal.clone().unwrap_or_default());
    fact("ports", format!("{:?}", config.expose));
    fact("volumes", format!("{:?}", config.volumes));
    for (name, value) in &config.env {
        fact("env", format!("{name}={value}"));
    }
    for (name, value) in &config.labels {
        fact("label", format!("{name}={value}"));
    }
    if let Some(check) = &config.healthcheck {
        fact("health", format!("{:?}", check.command));
        let [interval, timeout, start] = [check.interval_seconds, check.timeout_seconds, check.start_period_seconds];
        fact("", format!("every {interval} s, {timeout} s each, {} tries, after {start} s", check.retries));
    }
    text
}

/// What a label does not say.
fn details<S>(source: &Source<S>) -> Vec<String> {
    let mode = |mode: u32| format!("mode {mode:04o}");
    match source {
        Source::Debian(it) => {
            let mut lines = vec![format!("without {}", join(&it.without)), format!("exclude {}", it.exclude.join(" "))];
            lines
                .extend(it.ignore_scripts.iter().map(|(package, reason)| format!("ignore script {package}: {reason}")));
            lines.extend(it.allow_missing.iter().map(|soname| format!("allow missing {soname}")));
            lines
        }
        Source::Python(it) => {
            let mut lines = vec![format!("into {} for Python {}", it.venv, it.version)];
            lines.extend(it.allow_missing.iter().map(|soname| format!("allow missing {soname}")));
            lines
        }
        Source::Inline(it) => vec![format!("{}, {} lines", mode(it.mode), it.text.lines().count())],
        Source::Files(it) => vec![format!("folders {}", mode(it.dir_mode))],
        Source::User(it) => vec![format!("home {} shell {}", it.home, it.shell)],
        _ => Vec::new(),
    }
}

fn join<'a>(words: impl IntoIterator<Item = &'a String>) -> String {
    let words: Vec<&str> = words.into_iter().map(String::as_str).collect();
    if words.is_empty() { "nothing".into() } else { words.join(" ") }
}

#[test]
fn each_image_is_planned_as_its_snapshot_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans");
    let update = std::env::var_os("UPDATE_PLANS").is_some();
    let plan = catalogue().plan();
    let mut wrong = Vec::new();
    for (name, image) in &plan.images {
        let file = folder.join(format!("{name}.txt"));
        let made = listing(&plan, name, image);
        if update {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&file, &made).unwrap();
        }
        let kept = std::fs::read_to_string(&file).unwrap_or_default();
        if kept != made {
            let at = kept.lines().zip(made.lines()).position(|(kept, made)| kept != made);
            let at = at.unwrap_or(kept.lines().count().min(made.lines().count()));
            let line = |text: &str| text.lines().nth(at).unwrap_or("(end)").to_owned();
            wrong.push(format!("{name}.txt:{}\n  kept {}\n  made {}", at + 1, line(&kept), line(&made)));
        }
    }
    let known: Vec<String> = plan.images.keys().map(|name| format!("{name}.txt")).collect();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name), "tests/plans/{name} is of no image");
    }
    assert!(wrong.is_empty(), "{}\nif that is right, run with UPDATE_PLANS=1 and commit", wrong.join("\n"));
}

#[test]
fn each_image_says_what_it_is_and_runs_as_nobody_special() {
    for (name, image) in &catalogue().plan().images {
        let config = &image.config;
        assert!(image.description.len() > 20, "{name} has no description");
        assert_eq!(config.user.as_deref(), Some("10001:10001"), "{name}");
        assert!(config.healthcheck.is_some(), "{name} has no health check");
        assert!(config.entrypoint.is_some() || config.cmd.is_some(), "{name} starts nothing");
        assert!(config.labels.contains_key("org.opencontainers.image.title"), "{name} has no title");
        assert!(config.env.iter().any(|(name, value)| name == "HOME" && value == "/tmp"), "{name} writes outside /tmp");
    }
}

#[test]
fn images_share_the_layers_that_they_can() {
    let plan = catalogue().plan();
    let steps = |name: &str| plan.steps(plan.images[name].stage).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    let base = steps("base");
    assert_eq!(steps("core")[..base.len()], base[..], "core does not stand on base");
    let packages = |name: &str| -> Debian<StageId> {
        let first = plan.steps(plan.images[name].stage).into_iter().find_map(|(_, stage)| match &stage.step {
            StageStep::Layer { source: Source::Debian(debian), .. } => Some(debian.clone()),
            _ => None,
        });
        first.unwrap()
    };
    // Packages of the same name share layers across stages only if they are unpacked alike.
    for name in ["rag", "init"] {
        assert_eq!(packages(name).exclude, packages("base").exclude, "{name}");
    }
    assert!(packages("rag").packages.starts_with(&packages("base").packages));
    assert!(packages("rag").without.is_superset(&packages("base").without));
}

#[test]
fn the_plan_survives_being_written_and_read() {
    let plan = catalogue().plan();
    assert_eq!(Plan::from_json(&plan.to_json()).unwrap(), plan);
}
