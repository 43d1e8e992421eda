//! Programs of another kind of machine: the kernel hands them to an interpreter, qemu-user, that somebody registered with it
//! (binfmt_misc). It has to be registered with flag F, so that it is opened once and for all: a sandbox does not have its file.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use layers::Platform;

use super::{ID, Level, Limits, Network, SandboxError, Step, tree};

/// Whether programs of `platform` run in a sandbox of this level, found by running one in `scratch`, an existing folder on the
/// file system of later work; `helper` as in [`Step::helper`]. `Err` says what is missing.
pub fn emulates(level: Level, platform: Platform, scratch: &Path, helper: Option<&Path>) -> Result<(), String> {
    if level == Level::Proot {
        return Err("sandbox `proot` does not; `namespaces` and `chroot` do".into());
    }
    let folder = tempfile::Builder::new().prefix("emulation-").tempdir_in(scratch);
    let folder = folder.map_err(|error| format!("{}: {error}", scratch.display()))?;
    let tried = attempt(level, platform, folder.path(), helper);
    tree::remove(folder.path()).map_err(|error| error.to_string())?;
    let machine = platform.machine();
    tried.map_err(|error| match error {
        SandboxError::Program { why, .. } if why.contains("os error 8") => {
            format!("its kernel has no interpreter for programs of {machine} (binfmt_misc)")
        }
        SandboxError::Program { why, .. } if why.contains("os error 2") => {
            format!(
                "the interpreter of its kernel for programs of {machine} is registered without flag F (binfmt_misc)"
            )
        }
        other => other.to_string(),
    })
}

fn attempt(level: Level, platform: Platform, folder: &Path, helper: Option<&Path>) -> Result<(), SandboxError> {
    let failed = |error: std::io::Error| SandboxError::Setup(error.to_string());
    let (root, work) = (folder.join("root"), folder.join("work"));
    for folder in [&root, &work] {
        fs::create_dir(folder).map_err(failed)?;
    }
    let file = root.join("program");
    fs::write(&file, program(platform)).map_err(failed)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    let step = Step {
        root: &root,
        work: &work,
        binds: Vec::new(),
        secrets: Vec::new(),
        argv: vec!["/program".into()],
        env: Vec::new(),
        workdir: "/".into(),
        uid: ID,
        gid: ID,
        network: Network::None,
        timeout: Some(Duration::from_secs(20)),
        limits: Limits::default(),
        helper,
    };
    super::run(&step, level, &mut |_| {}, &|| false).map(drop)
}

/// A program that ends with status 0: an ELF file (its header and one segment, elf(5)) of three instructions.
fn program(platform: Platform) -> Vec<u8> {
    const HEADERS: u16 = 64 + 56;
    const BASE: u64 = 0x40_0000;
    let (machine, code): (u16, &[u8]) = match platform {
        // xor edi, edi; mov eax, 60 (exit); syscall
        Platform::Amd64 => (62, &[0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]),
        // mov x0, 0; mov x8, 93 (exit); svc 0
        Platform::Arm64 => (183, &[0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4]),
    };
    let size = u64::from(HEADERS) + code.len() as u64;
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |value: u64, width: usize| bytes.extend_from_slice(&value.to_le_bytes()[..width]);
    // Kind, machine, version, entry, where segments and sections are described, flags.
    for (value, width) in [(2, 2), (machine.into(), 2), (1, 4), (BASE + u64::from(HEADERS), 8), (64, 8), (0, 8), (0, 4)]
    {
        put(value, width);
    }
    // Sizes and numbers of headers.
    for value in [64, 56, 1, 64, 0, 0] {
        put(value, 2);
    }
    // The segment: to be loaded, readable and executable; offset, addresses, sizes, alignment.
    for (value, width) in [(1, 4), (5, 4), (0, 8), (BASE, 8), (BASE, 8), (size, 8), (size, 8), (0x1_0000, 8)] {
        put(value, width);
    }
    bytes.extend_from_slice(code);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_of_this_machine_runs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("program");
        fs::write(&file, program(Platform::native().unwrap())).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(std::process::Command::new(&file).status().unwrap().success());
    }

    #[test]
    fn programs_are_whole() {
        assert_eq!(Platform::ALL.map(|platform| program(platform).len()), [129, 132]);
    }
}
