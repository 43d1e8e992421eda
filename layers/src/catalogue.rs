//! A catalogue: images by name.

use std::collections::BTreeMap;

use crate::image::Image;
use crate::plan::Plan;

/// Named images that are locked and built together, so that they share layers.
#[derive(Debug, Clone)]
pub struct Catalogue {
    pub(crate) name: String,
    pub(crate) images: BTreeMap<String, Image>,
}

impl Catalogue {
    /// An empty catalogue.
    pub fn new(name: impl Into<String>) -> Catalogue {
        Catalogue { name: name.into(), images: BTreeMap::new() }
    }

    /// Adds an image. A later image of the same name replaces the earlier one.
    pub fn with(mut self, name: impl Into<String>, image: Image) -> Catalogue {
        self.images.insert(name.into(), image);
        self
    }

    /// Lays the definitions out as a plan: each stage once, stages before what stands on them.
    pub fn plan(&self) -> Plan {
        Plan::of(self)
    }

    /// The whole `main` of a catalogue crate: prints the plan as JSON for `imgbuild --catalogue`.
    pub fn print_plan(&self) -> std::process::ExitCode {
        use std::io::Write as _;
        match std::io::stdout().write_all(self.plan().to_json().as_bytes()) {
            Ok(()) => std::process::ExitCode::SUCCESS,
            Err(_) => std::process::ExitCode::FAILURE,
        }
    }
}
