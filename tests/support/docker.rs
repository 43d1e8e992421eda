//! A Docker engine of the tests' own: its folders, socket and pid are apart from the machine's.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use super::run::{Outcome, outcome, tool};
use super::server::Server;
use super::shared;

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    socket: PathBuf,
    server: Server,
}

/// The engine that all tests share; it ends with the process.
pub fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::start("docker"))
}

/// An engine whose containers have networks. It lives in a network namespace of its own: its bridges and its firewall are
/// not the machine's, and nothing in it reaches the internet. It ends when it is dropped.
pub fn networked_engine() -> Engine {
    Engine::start("docker-networked")
}

impl Engine {
    fn start(name: &str) -> Engine {
        let root = shared::folder(name);
        let temporary = std::env::temp_dir();
        let short = &format!("imgbuild-test-{name}-");
        // Engines end with their tests, their folders do not.
        for old in fs::read_dir(&root).unwrap() {
            let old = old.unwrap();
            let pid = old.file_name().into_string().unwrap();
            if !Path::new("/proc").join(&pid).exists() {
                for left in [old.path(), temporary.join(format!("{short}{pid}"))] {
                    unmount(&left);
                    tool("rm", ["-rf".as_ref(), left.as_os_str()]);
                }
            }
        }
        let folder = root.join(std::process::id().to_string());
        // A socket's path holds at most 107 bytes, so it does not lie below `target`.
        let short = temporary.join(format!("{short}{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(&short).unwrap();
        let socket = short.join("docker.sock");
        let networked = name == "docker-networked";
        let mut command = Command::new(if networked { "unshare" } else { "dockerd" });
        if networked {
            // Forwarding between the bridges and out of them is decided by the engine's rules, as on any machine.
            command.args(["--net", "sh", "-ec", "ip link set lo up; exec dockerd \"$@\"", "dockerd"]);
        }
        command.arg("--data-root").arg(folder.join("data")).arg("--exec-root").arg(short.join("exec"));
        command.arg("--pidfile").arg(folder.join("pid")).arg("--host").arg(format!("unix://{}", socket.display()));
        command.args(["--bridge", "none", "--ip6tables=false"]);
        if !networked {
            // Containers are asked from inside their network namespace: no bridge, and no rule in the machine's firewall.
            command.args(["--iptables=false", "--ip-forward=false"]);
        }
        let probe = socket.clone();
        let server = Server::start(&command, &folder.join("log"), || {
            let mut info = client(&probe);
            info.arg("info");
            info.output().is_ok_and(|output| output.status.success())
        });
        Engine { socket, server }
    }

    /// An engine that somebody else started.
    pub fn of(socket: PathBuf, server: Server) -> Engine {
        Engine { socket, server }
    }

    /// Whether an engine answers.
    pub fn answers(socket: &Path) -> bool {
        client(socket).arg("info").output().is_ok_and(|output| output.status.success())
    }

    /// What `DOCKER_HOST` has to be.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The client, ready for its arguments.
    pub fn command(&self) -> Command {
        client(&self.socket)
    }

    /// Runs the client, which must succeed.
    #[track_caller]
    pub fn docker<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        self.try_docker(arguments).success()
    }

    /// Runs the client.
    #[track_caller]
    pub fn try_docker<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome {
        outcome(self.command().args(arguments))
    }

    /// Loads an archive; gives the names of what was loaded. An image that is there already would hide a broken archive.
    #[track_caller]
    pub fn load(&self, archive: &Path, name: &str) -> String {
        let _ = self.try_docker(["image", "rm", "--force", name]);
        self.docker(["load".as_ref(), "--input".as_ref(), archive.as_os_str()])
    }

    /// Starts a container as the deployments do: read-only, a tmpfs for `/tmp`, no network, no privileges.
    #[track_caller]
    pub fn start_container(&self, image: &str, more: &[&str], command: &[&str]) -> Container<'_> {
        let mut arguments = vec!["run", "--detach", "--read-only", "--tmpfs", "/tmp", "--network", "none"];
        arguments.extend(["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]);
        arguments.extend(more);
        arguments.push(image);
        arguments.extend(command);
        Container { engine: self, id: self.docker(arguments).trim().to_owned() }
    }

    /// Runs a container to its end, set up like [`Engine::start_container`]'s.
    #[track_caller]
    pub fn run(&self, image: &str, more: &[&str], command: &[&str]) -> Outcome {
        let mut arguments = vec!["run", "--rm", "--read-only", "--tmpfs", "/tmp", "--network", "none"];
        arguments.extend(["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]);
        arguments.extend(more);
        arguments.push(image);
        arguments.extend(command);
        self.try_docker(arguments)
    }
}

/// Unmounts what an engine that was killed left mounted: roots and networks of its containers.
fn unmount(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for mounted in below.filter(|path| Path::new(path).starts_with(folder)) {
        // Another run may be tidying as well: whether it is gone is seen when the folder is removed.
        let _ = Command::new("umount").args(["--lazy", mounted]).output();
    }
}

fn client(socket: &Path) -> Command {
    // The machine may have another client earlier on its PATH; Debian's belongs to Debian's engine.
    let debian = "/usr/bin/docker";
    let mut command = Command::new(if Path::new(debian).exists() { debian } else { "docker" });
    command.arg("--host").arg(format!("unix://{}", socket.display())).env_remove("DOCKER_HOST");
    command
}

/// A container, removed at the end.
#[derive(Debug)]
pub struct Container<'a> {
    engine: &'a Engine,
    id: String,
}

impl Container<'_> {
    pub fn logs(&self) -> String {
        let outcome = self.engine.try_docker(["logs", &self.id]);
        outcome.stdout + &outcome.stderr
    }

    /// Runs a program inside.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> Outcome {
        self.engine.try_docker([&["exec", &self.id][..], command].concat())
    }

    /// A field of `docker inspect`.
    #[track_caller]
    pub fn inspect(&self, format: &str) -> String {
        self.engine.docker(["inspect", "--format", format, &self.id]).trim().to_owned()
    }

    /// Asks a server inside, over TCP from the machine's curl: status and body.
    #[track_caller]
    pub fn get(&self, port: u16, path: &str) -> (u16, String) {
        let pid = self.inspect("{{.State.Pid}}");
        let url = format!("http://127.0.0.1:{port}{path}");
        let arguments = ["-t", &pid, "-n", "curl", "--silent", "--noproxy", "*", "--max-time", "20"];
        let asked = outcome(Command::new("nsenter").args(arguments).args(["--write-out", "\n%{http_code}", &url]));
        let (body, status) = asked.stdout.rsplit_once('\n').unwrap_or(("", "0"));
        (status.parse().unwrap_or(0), body.to_owned())
    }

    /// Waits until a page answers 200; gives its body.
    #[track_caller]
    pub fn wait_for(&self, port: u16, path: &str, seconds: u64) -> String {
        let limit = Instant::now() + Duration::from_secs(seconds);
        loop {
            let running = self.inspect("{{.State.Running}}") == "true";
            let (status, body) = if running { self.get(port, path) } else { (0, String::new()) };
            if status == 200 {
                return body;
            }
            if !running || Instant::now() > limit {
                panic!("{path} answered {status}, not 200 (running: {running}); the container said:\n{}", self.logs());
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits for its end; gives the exit status.
    #[track_caller]
    pub fn wait(&self) -> i32 {
        self.engine.docker(["wait", &self.id]).trim().parse().unwrap()
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.engine.command().args(["rm", "--force", "--volumes", &self.id]).output();
    }
}
