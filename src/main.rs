//! The command line with the Obelisk catalogue compiled in.

use std::process::ExitCode;

fn main() -> ExitCode {
    imgbuild::cli::Program::with_catalogue(images::catalogue(), "images", "images/obelisk").main()
}
