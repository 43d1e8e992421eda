//! The blocks of commands in the pages about deployments.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::run::{Sandbox, binary, outcome, repository};

/// A block of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The page's file name, and the line of the block.
    pub at: String,
    /// What stands behind `sh`: `run`, `run: WHERE` or `not run: needs WHAT`.
    pub kind: String,
    /// The commands.
    pub text: String,
}

/// Every page in order: its file name and its text.
pub fn texts() -> Vec<(String, String)> {
    let folder = repository().join("docs/deployments");
    let mut pages: Vec<_> = fs::read_dir(&folder).unwrap().map(|page| page.unwrap().path()).collect();
    pages.retain(|page| page.extension().is_some_and(|it| it == "md"));
    pages.sort();
    let name = |page: &Path| page.file_name().unwrap().to_str().unwrap().to_owned();
    pages.into_iter().map(|page| (name(&page), fs::read_to_string(&page).unwrap())).collect()
}

/// Every block of every page, in order; a block that says nothing about how it is run is of the kind ``.
pub fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for (name, text) in texts() {
        let mut open: Option<Block> = None;
        for (number, line) in text.lines().enumerate() {
            match (line.trim_start().strip_prefix("```"), &mut open) {
                (Some(_), Some(_)) => blocks.extend(open.take().filter(|it| it.kind != "other")),
                (Some(kind), None) => {
                    let kind = match kind.strip_prefix("sh").or(kind.strip_prefix("bash")) {
                        Some(rest) => rest.trim().to_owned(),
                        None => "other".into(),
                    };
                    open = Some(Block { at: format!("{name}:{}", number + 1), kind, text: String::new() });
                }
                (None, Some(block)) => {
                    block.text.push_str(line.trim_start());
                    block.text.push('\n');
                }
                (None, None) => {}
            }
        }
        assert_eq!(open, None, "{name}: a block is not closed");
    }
    blocks
}

/// A copy of the repository as a reader has it: what git knows or would know, and nothing that was built.
pub fn checkout(sandbox: &Sandbox) {
    let list = "git -C \"$1\" ls-files -z --cached --others --exclude-standard | \
                (cd \"$1\" && xargs -0 ls -d 2>/dev/null | tar -cf - -T -) | tar -xf - -C \"$2\"";
    let mut copy = Command::new("sh");
    copy.args(["-c", list, "sh"]).arg(repository()).arg(sandbox.work());
    outcome(&mut copy).success();
    assert!(sandbox.work().join("deployments/docker/compose/test.yaml").is_file());
    let bin = sandbox.path().join("bin");
    fs::create_dir_all(&bin).unwrap();
    std::os::unix::fs::symlink(binary(), bin.join("imgbuild")).unwrap();
}

/// The commands, for bash in the checkout: the first that fails ends them.
pub fn shell(sandbox: &Sandbox, text: &str) -> Command {
    let mut bash = Command::new("bash");
    sandbox.place(&mut bash);
    let path = format!("{}:{}", sandbox.path().join("bin").display(), std::env::var("PATH").unwrap());
    // Docker finds its plugins where the user who runs the tests has them.
    let plugins = std::env::var_os("DOCKER_CONFIG").map(Into::into);
    let plugins = plugins.or_else(|| Some(std::env::home_dir()?.join(".docker"))).unwrap_or_default();
    // What is compiled is compiled where the tests are.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    bash.env("PATH", path).env("DOCKER_CONFIG", plugins).env("CARGO_TARGET_DIR", target);
    for name in ["CARGO_HOME", "RUSTUP_HOME"] {
        let default = if name == "CARGO_HOME" { ".cargo" } else { ".rustup" };
        let folder = std::env::var_os(name).map(Into::into).or_else(|| Some(std::env::home_dir()?.join(default)));
        bash.env(name, folder.unwrap_or_default());
    }
    bash.args(["-euo", "pipefail", "-c", text]);
    bash
}
