//! What the processes of a sandbox say to each other: an order down, reports up, a line each.

use std::io::{self, BufRead as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Access, Bind, Level, Limits, Network, Secret};

/// The first argument of the guard.
pub(super) const GUARD: &str = "--sandbox-guard";
/// The first argument of the process that gives its rights up and starts the command.
pub(super) const INNER: &str = "--sandbox-inner";
/// The first argument of what proot starts.
pub(super) const LAST: &str = "--sandbox-last";

/// Folders that a step sees empty, and that are no part of its outcome.
pub(super) const OWN: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];
/// The only name of the machine.
pub(super) const HOSTNAME: &str = "imgbuild";

/// A checked step. It holds secrets: it travels through a pipe and is never shown.
#[derive(Serialize, Deserialize)]
pub(super) struct Order {
    pub level: Level,
    pub root: PathBuf,
    pub work: PathBuf,
    pub binds: Vec<Bind>,
    pub secrets: Vec<Secret>,
    /// Empty for a probe: everything but the command.
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub workdir: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub network: Network,
    pub limits: Limits,
    /// Which of the allowed processors it gets, counted around.
    pub turn: usize,
    /// Where proot is.
    pub proot: Option<PathBuf>,
}

impl Order {
    /// Where an overlay collects what is written; also the copy, where there is no overlay.
    pub fn tree(&self) -> PathBuf {
        self.work.join("tree")
    }

    /// The overlay's own scratch folder.
    pub fn scratch(&self) -> PathBuf {
        self.work.join("scratch")
    }

    /// Where the root is put together.
    pub fn seen(&self) -> PathBuf {
        self.work.join("seen")
    }

    /// Adds the files about names in networks: a fixed `/etc/hosts` where the root has none, and the host's `/etc/resolv.conf` in an
    /// open network.
    pub fn bind_hosts(&mut self) -> io::Result<()> {
        let mut add = |source: PathBuf, target: &str| {
            let target = std::path::Path::new(target);
            if !self.binds.iter().any(|bind| target.starts_with(&bind.target)) {
                self.binds.push(Bind { source, target: target.into(), access: Access::Read });
            }
        };
        if !self.root.join("etc/hosts").exists() && !self.root.join("etc").is_symlink() {
            let hosts = self.work.join("hosts");
            std::fs::write(&hosts, format!("127.0.0.1 localhost {HOSTNAME}\n::1 localhost\n"))?;
            add(hosts, "/etc/hosts");
        }
        let resolver = PathBuf::from("/etc/resolv.conf").canonicalize();
        if let (Network::Open, Ok(resolver)) = (self.network, resolver) {
            add(resolver, "/etc/resolv.conf");
        }
        Ok(())
    }

    /// Reads an order from stdin. Whoever gave it keeps the other end open for as long as it lives.
    pub fn read() -> Result<Order, String> {
        let mut line = Vec::new();
        io::stdin()
            .lock()
            .read_until(b'\n', &mut line)
            .map_err(|error| format!("the order cannot be read: {error}"))?;
        serde_json::from_slice(&line).map_err(|error| format!("the order is not whole: {error}"))
    }

    /// Writes it as a line.
    pub fn write(&self, to: &mut impl io::Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        to.write_all(&line)?;
        to.flush()
    }
}

/// What happened inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// All is set up; the command starts now.
    Ready {
        /// Whether the tree holds only what is written from now on.
        overlay: bool,
    },
    /// The command could not be started.
    NotStarted(String),
    /// It ended by itself.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
    /// The sandbox could not be set up.
    Failed(String),
}

/// Where reports go: stderr of the guard and of what it starts, kept away from the command.
#[derive(Debug)]
pub(super) struct Reports(std::fs::File);

impl Reports {
    pub fn new() -> Result<Reports, String> {
        use std::os::fd::AsFd as _;
        let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(|error| format!("stderr: {error}"))?;
        Ok(Reports::to(stderr))
    }

    pub fn to(pipe: OwnedFd) -> Reports {
        Reports(pipe.into())
    }

    /// Sends one. Nobody is left to be told where that fails.
    pub fn send(&self, report: &Report) {
        let mut line = serde_json::to_vec(report).expect("a report is plain data");
        line.push(b'\n');
        let _ = (&self.0).write_all(&line);
    }
}
