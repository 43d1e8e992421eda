//! Level [`super::Level::Proot`]: what is started by proot, and what proot starts.
//!
//! proot tells the status of whichever process ended last, so it starts this program, which starts the command, and tells by itself how
//! that ended. It comes with its loader and libraries, since the root may have others, or none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::guard::DEVICES;
use super::inner;
use super::order::{LAST, Order, Report, Reports};

/// Where it lies inside, on a folder that is no part of any outcome.
const HOME: &str = "/run/.imgbuild";

/// The command that shows the tree as root and starts [`last`] in it.
pub(super) fn command(order: &Order) -> Result<Command, String> {
    let during = |what: &str, error: io::Error| format!("{what}: {error}");
    let program = fs::read_link("/proc/self/exe").map_err(|error| during("/proc/self/exe", error))?;
    let maps = fs::read_to_string("/proc/self/maps").map_err(|error| during("/proc/self/maps", error))?;
    let (loader, libraries) = parts(&maps, &program);

    let home = order.tree().join(super::relative(Path::new(HOME)));
    fs::create_dir(&home).map_err(|error| during(&home.display().to_string(), error))?;
    let mut file = fs::File::create(home.join("order")).map_err(|error| during("order", error))?;
    order.write(&mut file).map_err(|error| during("order", error))?;

    let mut command = Command::new(order.proot.as_ref().ok_or("proot is not there")?);
    // The log is the command's: proot warns of processes that end while it looks at them.
    command.args(["-v", "-1"]);
    command.current_dir("/").arg("-i").arg(format!("{}:{}", order.uid, order.gid)).arg("-r").arg(order.tree());
    for (name, ..) in DEVICES {
        command.arg("-b").arg(format!("/dev/{name}"));
    }
    command.arg("-b").arg(format!("{}:{HOME}/imgbuild", program.display()));
    for (name, library) in &libraries {
        command.arg("-b").arg(format!("{}:{HOME}/{name}", library.display()));
    }
    command.args(["-w", "/"]);
    if let Some(loader) = loader {
        command.arg(format!("{HOME}/{loader}")).args(["--library-path", HOME]);
    }
    command.arg(format!("{HOME}/imgbuild")).arg(LAST);
    Ok(command)
}

/// The loader and the libraries of a process, by its `/proc/PID/maps`; a program that is linked statically has none.
fn parts(maps: &str, program: &Path) -> (Option<String>, Vec<(String, PathBuf)>) {
    let mut libraries = Vec::new();
    for path in maps.lines().filter_map(|line| Some(Path::new(line.get(line.find('/')?..)?))) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let known = libraries.iter().any(|(known, _)| known == name);
        if path != program && name.contains(".so") && !known {
            libraries.push((name.to_owned(), path.to_owned()));
        }
    }
    let loader = libraries.iter().map(|(name, _)| name).find(|name| name.starts_with("ld-")).cloned();
    (loader, libraries)
}

/// What proot starts: stdin is where reports go.
pub(super) fn last() -> Result<(), String> {
    use std::os::fd::AsFd as _;
    let reports = io::stdin().as_fd().try_clone_to_owned().map_err(|error| format!("reports: {error}"))?;
    let reports = Reports::to(reports);
    let text = fs::read(Path::new(HOME).join("order")).map_err(|error| format!("order: {error}"))?;
    let order: Order = serde_json::from_slice(&text).map_err(|error| format!("order: {error}"))?;
    fs::create_dir_all(&order.workdir).map_err(|error| format!("{}: {error}", order.workdir.display()))?;
    reports.send(&Report::Ready { overlay: false });
    let Some((program, arguments)) = order.argv.split_first() else {
        reports.send(&Report::Exited(0));
        return Ok(());
    };
    let log = io::stdout().as_fd().try_clone_to_owned().map_err(|error| format!("log: {error}"))?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&order.workdir).env_clear();
    command.envs(order.env.iter().map(|(name, value)| (name, value))).stdin(Stdio::null()).stderr(Stdio::from(log));
    reports.send(&match command.status() {
        Ok(status) => inner::ended(status),
        Err(error) => Report::NotStarted(error.to_string()),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_names_its_loader_and_libraries() {
        let maps = "\
55 r--p 00000000 fe:00 1 /usr/bin/imgbuild
7f r--p 00000000 fe:00 2 /usr/lib/libc.so.6
7f r-xp 00000000 fe:00 2 /usr/lib/libc.so.6
7f rw-p 00000000 00:00 0 [heap]
7f r--p 00000000 fe:00 3 /usr/lib/ld-linux-x86-64.so.2
";
        let (loader, libraries) = parts(maps, Path::new("/usr/bin/imgbuild"));
        assert_eq!(loader.as_deref(), Some("ld-linux-x86-64.so.2"));
        assert_eq!(libraries.len(), 2);
        assert_eq!(parts("55 r--p 0 fe:00 1 /usr/bin/imgbuild\n", Path::new("/usr/bin/imgbuild")), (None, Vec::new()));
    }
}
