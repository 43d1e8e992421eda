//! The command line with the Obelisk catalogue compiled in.

use std::process::ExitCode;

fn main() -> ExitCode {
    imgbuild::sandbox::enter_if_asked();
    imgbuild::cli::Program::with_catalogue(images::catalogue(), "images", "images/obelisk").main()
}
