//! `imgbuild man`.

use std::path::PathBuf;

use clap::ValueHint;

use super::{Stop, command, print};
use crate::error::Failure;

/// Print the manual page, or write one a command
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder that receives imgbuild.1, imgbuild-build.1 and so on
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    folder: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<(), Stop> {
    match args.folder {
        Some(folder) => {
            let failed =
                |error: std::io::Error| Failure::work(format!("`{}` cannot be written: {error}", folder.display()));
            std::fs::create_dir_all(&folder).map_err(failed)?;
            clap_mangen::generate_to(command(), &folder).map_err(failed)?;
            Ok(())
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command()).render(&mut page).map_err(|error| Failure::work(error.to_string()))?;
            print(&String::from_utf8_lossy(&page))
        }
    }
}
