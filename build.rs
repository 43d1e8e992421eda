//! Links GCC's unwinder statically, so that the program needs no shared library but libc's.

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if variable("CARGO_CFG_TARGET_OS") != "linux" || variable("CARGO_CFG_TARGET_ENV") != "gnu" {
        return;
    }
    // The standard library asks for `-lgcc_s`. A linker script of that name, found first, answers with the static
    // archive that comes with every GCC beside the shared one.
    let folder = variable("OUT_DIR");
    let script = Path::new(&folder).join("libgcc_s.so");
    if std::fs::write(script, "INPUT(-lgcc_eh)\n").is_ok() {
        println!("cargo::rustc-link-arg-bins=-L{folder}");
    }
}
