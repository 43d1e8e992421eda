//! Plans: a catalogue laid out as data, so that describing and executing can be two programs.
//!
//! ```text
//! { "imgbuildPlan": 2,
//!   "catalogue": "obelisk",
//!   "stages": [ {"step": "scratch"},                                   // 0
//!               {"step": "layer", "below": 0, "source": {...}, "at": {...}},
//!               {"step": "run", "below": 1, "run": {...}, "at": {...}} ],
//!   "images": { "base": {"stage": 1, "config": {...}, ...} } }
//! ```
//!
//! A stage names only stages before it, so a plan is read front to back and has no cycles.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::catalogue::Catalogue;
use crate::image::ImageConfig;
use crate::run::Run;
use crate::source::{Base, Source};
use crate::stage::{Location, Node, Stage};

/// The version of the plan's JSON that this crate writes. It reads all up to it: version 2 added commands and
/// builds from source, and says where images were written.
pub const PLAN_VERSION: u32 = 2;

/// The position of a stage in [`Plan::stages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StageId(pub usize);

/// One step of a stage: nothing, a base image, or a source on top of an earlier stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case", deny_unknown_fields)]
pub enum StageStep {
    /// Nothing.
    Scratch,
    /// The layers of a base image.
    From {
        /// The base.
        base: Base,
    },
    /// A source on top of a stage.
    Layer {
        /// What it stands on.
        below: StageId,
        /// What is put on top.
        source: Source<StageId>,
    },
    /// A command, run on a stage.
    Run {
        /// What it finds.
        below: StageId,
        /// The command.
        run: Run<StageId>,
    },
}

impl StageStep {
    /// The stage that it stands on.
    pub fn below(&self) -> Option<StageId> {
        match self {
            StageStep::Scratch | StageStep::From { .. } => None,
            StageStep::Layer { below, .. } | StageStep::Run { below, .. } => Some(*below),
        }
    }

    /// The stages that it takes something from.
    pub fn taken(&self) -> Vec<StageId> {
        match self {
            StageStep::Layer { source: Source::Take(take), .. } => vec![take.stage],
            StageStep::Layer { source: Source::Python(python), .. } => python.stages().copied().collect(),
            StageStep::Layer { source: Source::Debian(debian), .. } => debian.configurator.into_iter().collect(),
            StageStep::Run { run, .. } => run.inputs.iter().filter_map(|input| input.stage().copied()).collect(),
            _ => Vec::new(),
        }
    }

    /// Replaces the names of stages.
    fn map_stages(self, rename: impl Fn(StageId) -> StageId) -> StageStep {
        let taken = |id| Ok::<_, std::convert::Infallible>(rename(id));
        match self {
            StageStep::Scratch | StageStep::From { .. } => self,
            StageStep::Layer { below, source } => {
                let Ok(source) = source.map_stage(taken);
                StageStep::Layer { below: rename(below), source }
            }
            StageStep::Run { below, run } => {
                let Ok(run) = run.map_stage(taken);
                StageStep::Run { below: rename(below), run }
            }
        }
    }

    /// One short line that names it to a person.
    pub fn label(&self) -> String {
        match self {
            StageStep::Scratch => "scratch".to_owned(),
            StageStep::From { base } => format!("from {}", base.label()),
            StageStep::Layer { source, .. } => source.label(),
            StageStep::Run { run, .. } => run.label(),
        }
    }
}

/// A stage and where it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStage {
    /// What it is.
    #[serde(flatten)]
    pub step: StageStep,
    /// Where the definition says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Location>,
    /// Whether an image of the catalogue ends here: its layers are also the first ones of what stands on it. Known of an image that the
    /// plan does not have any more as well.
    #[serde(default, skip_serializing_if = "is_false", rename = "isImage")]
    pub is_image: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// An image of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedImage {
    /// Its topmost stage.
    pub stage: StageId,
    /// How it runs.
    pub config: ImageConfig,
    /// Layers it may have.
    #[serde(rename = "layerBudget")]
    pub layer_budget: u8,
    /// One line about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Where the definition finishes its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Location>,
}

/// A catalogue as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_VERSION`] of the writer.
    #[serde(rename = "imgbuildPlan")]
    pub version: u32,
    /// The catalogue's name.
    pub catalogue: String,
    /// All stages, each after those it stands on.
    pub stages: Vec<PlannedStage>,
    /// All images by name.
    pub images: BTreeMap<String, PlannedImage>,
}

/// Why a text is not a plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Not JSON of a plan's shape.
    #[error("this is not a plan: {0}")]
    Json(#[from] serde_json::Error),
    /// Another version.
    #[error(
        "the plan has version {found}, this imgbuild reads versions 1 to {PLAN_VERSION}: build the catalogue with the `imgbuild-layers` crate of this imgbuild"
    )]
    Version {
        /// The version in the text.
        found: u64,
    },
    /// A stage that stands on itself, on a later one or on none.
    #[error("stage {stage} of the plan names stage {below}, which does not come before it")]
    Order {
        /// The stage.
        stage: usize,
        /// What it names.
        below: usize,
    },
    /// A command that cannot be run.
    #[error("`{label}`{} makes no sense: {why}", written(.at))]
    Command {
        /// The command.
        label: String,
        /// Where it was written.
        at: Option<Location>,
        /// What is wrong.
        why: String,
    },
    /// An image on a stage that runs commands: whatever they leave behind would become its layers.
    #[error(
        "image `{image}`{} stands on a stage that runs a command, `{label}`{}: take what the image needs into a stage of its own, `.layer(stage.take(path!(\"/made\")))`",
        written(.image_at), written(.at)
    )]
    RunInImage {
        /// The image.
        image: String,
        /// Where the image was written.
        image_at: Option<Location>,
        /// The command.
        label: String,
        /// Where the command was written.
        at: Option<Location>,
    },
    /// An image whose name no registry or file system would take.
    #[error("`{name}` is not an image name: use lower-case letters, digits and single `.`, `_`, `-` between them")]
    Name {
        /// The name.
        name: String,
    },
    /// A layer budget that no runtime accepts.
    #[error("image `{image}` has a layer budget of {budget}: it must lie between 1 and 125")]
    Budget {
        /// The image.
        image: String,
        /// What it asks for.
        budget: u8,
    },
}

fn written(at: &Option<Location>) -> String {
    at.as_ref().map(|at| format!(" ({at})")).unwrap_or_default()
}

impl Plan {
    /// Lays a catalogue out; equal stages become one, wherever they were written.
    pub fn of(catalogue: &Catalogue) -> Plan {
        let mut layout = Layout { stages: Vec::new(), by_node: HashMap::new(), by_text: BTreeMap::new() };
        let images = catalogue
            .images
            .iter()
            .map(|(name, image)| {
                let planned = PlannedImage {
                    stage: layout.place(&image.stage),
                    config: image.config.clone(),
                    layer_budget: image.layer_budget,
                    description: image.description.clone(),
                    at: Some(image.at.clone()),
                };
                (name.clone(), planned)
            })
            .collect();
        Plan { version: PLAN_VERSION, catalogue: catalogue.name.clone(), stages: layout.stages, images }.marked()
    }

    /// The plan as JSON, one final newline.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a plan has only string keys and finite numbers");
        text.push('\n');
        text
    }

    /// Reads and checks a plan.
    pub fn from_json(text: &str) -> Result<Plan, PlanError> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(rename = "imgbuildPlan")]
            version: u64,
        }
        let head: Head = serde_json::from_str(text)?;
        if !(1..=u64::from(PLAN_VERSION)).contains(&head.version) {
            return Err(PlanError::Version { found: head.version });
        }
        let plan: Plan = serde_json::from_str(text)?;
        plan.check()?;
        Ok(plan.marked())
    }

    /// Marks the stages in which images end.
    fn marked(mut self) -> Plan {
        self.images.values().for_each(|image| self.stages[image.stage.0].is_image = true);
        self
    }

    /// Checks what the types cannot say: the order of stages, names and budgets.
    pub fn check(&self) -> Result<(), PlanError> {
        for (at, stage) in self.stages.iter().enumerate() {
            for named in stage.step.below().into_iter().chain(stage.step.taken()) {
                if named.0 >= at {
                    return Err(PlanError::Order { stage: at, below: named.0 });
                }
            }
            if let StageStep::Run { run, .. } = &stage.step {
                run.check().map_err(|why| PlanError::Command { label: run.label(), at: stage.at.clone(), why })?;
            }
        }
        for (name, image) in &self.images {
            if !is_image_name(name) {
                return Err(PlanError::Name { name: name.clone() });
            }
            if image.stage.0 >= self.stages.len() {
                return Err(PlanError::Order { stage: self.stages.len(), below: image.stage.0 });
            }
            if image.layer_budget == 0 || image.layer_budget > 125 {
                return Err(PlanError::Budget { image: name.clone(), budget: image.layer_budget });
            }
            let steps = self.steps(image.stage);
            if let Some((_, stage)) = steps.iter().find(|(_, stage)| matches!(stage.step, StageStep::Run { .. })) {
                return Err(PlanError::RunInImage {
                    image: name.clone(),
                    image_at: image.at.clone(),
                    label: stage.step.label(),
                    at: stage.at.clone(),
                });
            }
        }
        Ok(())
    }

    /// The plan of these images alone, with the stages that they need; names that it does not have are passed over.
    pub fn of_images(&self, names: &[&str]) -> Plan {
        let images: BTreeMap<String, PlannedImage> = self
            .images
            .iter()
            .filter(|(name, _)| names.contains(&name.as_str()))
            .map(|(n, it)| (n.clone(), it.clone()))
            .collect();
        // A stage names only stages before it: one pass from the top marks all that are needed.
        let mut needed = vec![false; self.stages.len()];
        images.values().for_each(|image| needed[image.stage.0] = true);
        for at in (0..self.stages.len()).rev() {
            if needed[at] {
                let step = &self.stages[at].step;
                step.below().into_iter().chain(step.taken()).for_each(|id| needed[id.0] = true);
            }
        }
        let mut places = Vec::with_capacity(needed.len());
        let mut stages = Vec::new();
        for (stage, needed) in self.stages.iter().zip(needed) {
            places.push(StageId(stages.len()));
            if needed {
                let step = stage.step.clone().map_stages(|id| places[id.0]);
                stages.push(PlannedStage { step, at: stage.at.clone(), is_image: stage.is_image });
            }
        }
        let images =
            images.into_iter().map(|(name, it)| (name, PlannedImage { stage: places[it.stage.0], ..it })).collect();
        Plan { version: self.version, catalogue: self.catalogue.clone(), stages, images }
    }

    /// The steps of a stage from its bottom to its top, with their ids.
    pub fn steps(&self, top: StageId) -> Vec<(StageId, &PlannedStage)> {
        let mut steps = Vec::new();
        let mut at = Some(top);
        while let Some(id) = at {
            let stage = &self.stages[id.0];
            steps.push((id, stage));
            at = stage.step.below();
        }
        steps.reverse();
        steps
    }
}

/// A repository path component of the OCI distribution spec.
fn is_image_name(name: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= 128
        && bytes.first().copied().is_some_and(word)
        && bytes.last().copied().is_some_and(word)
        && bytes.windows(2).all(|pair| word(pair[0]) || word(pair[1]))
        && bytes.iter().all(|&byte| word(byte) || b"._-".contains(&byte))
}

struct Layout {
    stages: Vec<PlannedStage>,
    by_node: HashMap<*const Node, StageId>,
    by_text: BTreeMap<String, StageId>,
}

impl Layout {
    fn place(&mut self, stage: &Stage) -> StageId {
        let address = Arc::as_ptr(&stage.0);
        if let Some(&known) = self.by_node.get(&address) {
            return known;
        }
        // Bottom first and without recursion over `below`: a stage may be thousands of layers deep in a generated catalogue.
        let mut chain = Vec::new();
        let mut at = stage;
        loop {
            if self.by_node.contains_key(&Arc::as_ptr(&at.0)) {
                break;
            }
            chain.push(at);
            match &*at.0 {
                Node::Layer { below, .. } | Node::Run { below, .. } => at = below,
                _ => break,
            }
        }
        let mut placed = self.by_node.get(&Arc::as_ptr(&at.0)).copied();
        for stage in chain.into_iter().rev() {
            let (step, location) = match &*stage.0 {
                Node::Scratch => (StageStep::Scratch, None),
                Node::From { base, at } => (StageStep::From { base: base.clone() }, Some(at.clone())),
                Node::Layer { source, at, .. } => {
                    let below = placed.expect("what is below was placed before");
                    let source =
                        source.clone().map_stage(|taken| Ok::<_, std::convert::Infallible>(self.place(&taken)));
                    let Ok(source) = source;
                    (StageStep::Layer { below, source }, Some(at.clone()))
                }
                Node::Run { run, at, .. } => {
                    let below = placed.expect("what is below was placed before");
                    let run = run.clone().map_stage(|taken| Ok::<_, std::convert::Infallible>(self.place(&taken)));
                    let Ok(run) = run;
                    (StageStep::Run { below, run }, Some(at.clone()))
                }
            };
            let text = serde_json::to_string(&step).expect("a step has only string keys and finite numbers");
            let id = *self.by_text.entry(text).or_insert_with(|| {
                self.stages.push(PlannedStage { step, at: location, is_image: false });
                StageId(self.stages.len() - 1)
            });
            self.by_node.insert(Arc::as_ptr(&stage.0), id);
            placed = Some(id);
        }
        placed.expect("a stage has at least one node")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;

    fn base() -> Stage {
        Stage::scratch().layer(debian(["python3"]))
    }

    #[test]
    fn equal_stages_written_twice_are_planned_once() {
        let catalogue = Catalogue::new("t")
            .with("a", base().layer(inline("a", path!("/a"))).image())
            .with("b", base().layer(inline("b", path!("/b"))).image());
        let plan = catalogue.plan();
        assert_eq!(plan.stages.len(), 4);
        assert_eq!(Plan::from_json(&plan.to_json()).expect("reads its own output"), plan);
    }

    #[test]
    fn some_images_of_a_plan_are_the_plan_of_these_images() {
        let tool = || Stage::scratch().layer(debian(["jq"])).run(["jq"]);
        let a = || base().layer(inline("a", path!("/a"))).image();
        let b = || base().layer(tool().take(path!("/usr/bin/jq"))).image();
        let whole = Catalogue::new("t").with("a", a()).with("b", b()).plan();
        for (name, image) in [("a", a()), ("b", b())] {
            let alone = Catalogue::new("t").with(name, image).plan();
            let mut found = whole.of_images(&[name]);
            // Where it was written is all that may differ.
            let places = found.stages.iter_mut().zip(&alone.stages);
            places.for_each(|(stage, other)| stage.at.clone_from(&other.at));
            found.images.iter_mut().for_each(|(name, image)| image.at.clone_from(&alone.images[name].at));
            assert_eq!(found, alone);
        }
        assert_eq!(whole.of_images(&["a", "b"]), whole);
    }

    #[test]
    fn a_taken_stage_comes_before_its_taker() {
        let tool = Stage::scratch().layer(debian(["jq"]));
        let image = Stage::scratch().layer(tool.take(path!("/usr/bin/jq")).to(path!("/bin/jq"))).image();
        let plan = Catalogue::new("t").with("a", image).plan();
        plan.check().expect("in order");
        assert_eq!(plan.stages.len(), 3);
    }

    #[test]
    fn a_plan_with_commands_reads_its_own_output() {
        let tool = Stage::scratch().layer(inline("", path!("/tool")));
        let made = Stage::scratch().layer(debian(["make"])).run(
            command(["make", "all"])
                .env("CC", "gcc")
                .workdir(path!("/src"))
                .input(files("src", path!("/src")))
                .input(tool.take(path!("/tool")).to(path!("/opt/tool")))
                .cache(path!("/root/.cache"))
                .secret("token")
                .network(Network::Open)
                .timeout(std::time::Duration::from_secs(90)),
        );
        let taken = made.take(path!("/out")).owner(1, 2).portable();
        let plan = Catalogue::new("t").with("a", Stage::scratch().layer(taken).image()).plan();
        assert_eq!(Plan::from_json(&plan.to_json()).expect("reads its own output"), plan);
        let StageStep::Run { run, below } = &plan.stages[3].step else { panic!("{:?}", plan.stages) };
        assert_eq!((below.0, plan.stages[3].step.taken()), (1, vec![StageId(2)]));
        let expected = r#"{"argv":["make","all"],"env":{"CC":"gcc"},"workdir":"/src","inputs":[{"kind":"files","from":"src","to":"/src","include":[],"exclude":[],"mode":null,"dir_mode":493,"owner":{"uid":0,"gid":0}},{"kind":"take","stage":2,"path":"/tool","to":"/opt/tool"}],"caches":["/root/.cache"],"secrets":["token"],"network":"open","timeoutSeconds":90}"#;
        assert_eq!(serde_json::to_string(run).expect("plain"), expected);
        let bare = Run::<StageId> { inputs: Vec::new(), ..command(["a"]).map_stage(|_| Err(())).expect("no stages") };
        assert_eq!(serde_json::to_string(&bare).expect("plain"), r#"{"argv":["a"]}"#);
    }

    #[test]
    fn an_image_does_not_stand_on_commands() {
        let image = Stage::scratch().run(["make"]).layer(inline("", path!("/a"))).image();
        let error = Catalogue::new("t").with("a", image).plan().check().expect_err("refused").to_string();
        let places = error.matches("layers/src/plan.rs:").count();
        assert!(places == 2 && error.contains("`run make`") && error.contains("stage.take("), "{error}");
        let text =
            Catalogue::new("t").with("a", Stage::scratch().layer(Stage::scratch().run([""]).take(path!("/a"))).image());
        let error = text.plan().check().expect_err("refused").to_string();
        assert!(error.contains("no program") && error.contains("layers/src/plan.rs:"), "{error}");
    }

    #[test]
    fn plans_of_version_one_are_read() {
        let plan = r#"{"imgbuildPlan":1,"catalogue":"x","stages":[{"step":"scratch"}],"images":{"a":{"stage":0,"config":{},"layerBudget":40}}}"#;
        assert_eq!(Plan::from_json(plan).expect("reads").images["a"].at, None);
    }

    #[test]
    fn plans_of_other_versions_and_wrong_orders_are_refused() {
        assert!(matches!(Plan::from_json(r#"{"imgbuildPlan":99}"#), Err(PlanError::Version { found: 99 })));
        let loop_plan = r#"{"imgbuildPlan":1,"catalogue":"x","stages":[{"step":"layer","below":0,"source":{"kind":"link","path":"/a","target":"b"}}],"images":{}}"#;
        assert!(matches!(Plan::from_json(loop_plan), Err(PlanError::Order { .. })));
        let bad_name = Catalogue::new("x").with("../up", Stage::scratch().image()).plan().to_json();
        assert!(matches!(Plan::from_json(&bad_name), Err(PlanError::Name { .. })));
    }
}
