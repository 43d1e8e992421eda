//! Plans of foreign catalogues: no cycles, names that a registry takes, and the same JSON again.
#![no_main]

use imgbuild_fuzz::text;
use layers::{Plan, Source, StageStep};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(plan) = Plan::from_json(text(data)) else { return };
    for (name, image) in &plan.images {
        assert!(!name.is_empty() && !name.contains(['/', ':', '@']) && !name.starts_with(['.', '-']), "{name}");
        assert!((1..=127).contains(&image.layer_budget));
        let steps = plan.steps(image.stage);
        assert!(!matches!(steps[0].1.step, StageStep::Layer { .. }), "it stands on nothing");
        for pair in steps.windows(2) {
            assert!(pair[0].0.0 < pair[1].0.0);
        }
        for (id, stage) in steps {
            if let StageStep::Layer { source: Source::Take(take), .. } = &stage.step {
                assert!(take.stage.0 < id.0);
            }
        }
    }
    let written = plan.to_json();
    let again = Plan::from_json(&written).expect("it reads what it writes");
    assert_eq!(again, plan);
    assert_eq!(again.to_json(), written);
});
