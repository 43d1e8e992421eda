//! `imgbuild list`.

use serde_json::json;

use super::build::Format;
use super::common::Invocation;
use super::{Stop, print, print_json};

/// List the images of the catalogue
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How results are printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

pub(crate) fn run(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    let config = invocation.config()?;
    let project = invocation.project(&config)?;
    let images = &project.plan.images;
    match args.format {
        Format::Json => print_json(&json!({
            "version": 1,
            "catalogue": project.plan.catalogue,
            "images": images.iter().map(|(name, image)| json!({"name": name, "description": image.description})).collect::<Vec<_>>(),
        })),
        Format::Text => {
            let width = images.keys().map(String::len).max().unwrap_or_default();
            let line = |(name, image): (&String, &layers::PlannedImage)| {
                format!("{}\n", format!("{name:width$}  {}", image.description).trim_end())
            };
            print(&images.iter().map(line).collect::<String>())
        }
    }
}
