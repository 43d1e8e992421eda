//! Models: pulled into Ollama and registered in LiteLLM.

use super::services::Pull;
use super::{Job, OPENAI};

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
fn slow_openai_models_are_registered_only_where_it_is_used() {
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
fn slow_a_pull_that_stands_still_ends_with_its_reason() {
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
