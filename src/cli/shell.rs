//! `imgbuild shell`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use layers::Platform;

use super::common::{self, CacheArgs, CommandArgs, Invocation};
use super::{Stop, print};
use crate::error::Failure;
use crate::ops::shell::{Opened, open};
use crate::sandbox;

/// Open a stage for debugging
///
/// To look around, and to try a command by hand.
///
/// The stage is written into a folder of the cache, which is removed at the end, and a shell starts in it, in namespaces of its
/// own and without network (util-linux' `unshare`). It is less than the sandbox of commands: for debugging alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild shell core.rs:14                 what the command at that line finds, with its inputs
  imgbuild shell rag                        the files of an image
  imgbuild shell core.rs:14 -- ls -l /docs  one program instead of a shell
  imgbuild shell rag --keep DIR             only writes the folder DIR")]
pub(crate) struct Args {
    /// An image, or the place of a stage in a definition
    #[arg(value_name = "IMAGE|FILE:LINE")]
    stage: String,
    /// The program and its arguments [default: /bin/sh]
    #[arg(last = true, value_name = "COMMAND")]
    program: Vec<String>,
    /// The platform [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Writes the stage into this new folder, and starts nothing
    #[arg(long, value_name = "DIR", conflicts_with = "program")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    commands: CommandArgs,
}

pub(crate) fn run(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    let platform = common::platforms(args.platform.as_slice())?[0];
    let setup = invocation.setup_with(&CacheArgs::default(), &args.commands)?;
    let bench = setup.bench();
    if let Some(folder) = &args.keep {
        if folder.symlink_metadata().is_ok() {
            let failure = Failure::usage(format!("`{}` is there already", folder.display()));
            return Err(failure.hint("`--keep` takes the name of a new folder").into());
        }
        let opened = open(&bench, &args.stage, platform, folder)?;
        setup.close();
        return print(&format!("{}\n", opened.root.display()));
    }
    let scratch = tempfile::tempdir_in(bench.store.scratch())
        .map_err(|error| Failure::work(format!("no folder can be made in the cache: {error}")))?
        .keep();
    let opened = open(&bench, &args.stage, platform, &scratch.join("root"));
    let status = opened.map_err(Stop::from).and_then(|opened| enter(&opened, &args.program));
    let removed = crate::sandbox::remove(&scratch);
    setup.close();
    let status = status?;
    removed.map_err(|error| Failure::work(format!("`{}` cannot be removed: {error}", scratch.display())))?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::work(format!("the program in the stage ended with {status}")).into()),
    }
}

/// Starts a program in a stage.
fn enter(opened: &Opened, program: &[String]) -> Result<ExitStatus, Stop> {
    let program: Vec<&str> = match program {
        [] => vec!["/bin/sh"],
        words => words.iter().map(String::as_str).collect(),
    };
    if let Some(next) = &opened.next {
        // Where stderr is closed there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "the command that comes next: {next}");
    }
    for path in [Path::new("/proc"), Path::new("/dev"), Path::new("/tmp"), &opened.workdir] {
        sandbox::check_direct(&opened.root, path).map_err(|error| Failure::work(error.to_string()))?;
    }
    let mut command = Command::new("unshare");
    command.args([
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--net",
        "--kill-child",
        "--propagation",
        "private",
    ]);
    let path = opened.env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, path)| path.as_str());
    command.args(["sh", "-ec", ENTER, "sh"]).arg(&opened.root).arg(&opened.workdir).arg(path).args(&program);
    // The programs of this machine that lead into the stage take neither libraries nor their own place from it.
    let of_stage = opened.env.iter().filter(|(name, _)| name != "PATH" && !name.starts_with("LD_"));
    let own = std::env::var_os("PATH");
    command.env_clear().envs(of_stage.map(|(name, value)| (name, value))).envs(own.map(|path| ("PATH", path)));
    if let Some(terminal) = std::env::var_os("TERM") {
        command.env("TERM", terminal);
    }
    Ok(command.status().map_err(|error| {
        Failure::work(format!("`unshare` cannot be started: {error}"))
            .hint("install util-linux, or write the stage into a folder with `--keep DIR`")
    })?)
}

/// Mounts what programs expect in the stage `$1`, and starts the rest of the words there in the folder `$2`, with the `PATH` `$3`.
const ENTER: &str = r#"root=$1 folder=$2 path=$3
shift 3
mkdir -p "$root/proc" "$root/dev" "$root/tmp" "$root$folder"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
unshare=$(command -v unshare)
PATH=$path
exec "$unshare" --root "$root" --wd "$folder" "$@"
"#;
