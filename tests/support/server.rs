//! Servers that end with the tests, also where a test fails or the whole run is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::run::wrapped;

/// A server that somebody else wrote.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: PathBuf,
}

type Order = (Command, Sender<io::Result<Child>>);

/// The thread that starts all servers. The kernel ends them when the *thread* that started them ends, so it must be one
/// that lives as long as the tests do.
fn spawner() -> Sender<Order> {
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    SPAWNER
        .get_or_init(|| {
            let (sender, orders) = channel::<Order>();
            thread::spawn(move || {
                for (mut command, answer) in orders {
                    let _ = answer.send(command.spawn());
                }
            });
            sender
        })
        .clone()
}

impl Server {
    /// Starts a server whose output goes to `log`, and waits until it is `ready`.
    #[track_caller]
    pub fn start(command: &Command, log: &Path, mut ready: impl FnMut() -> bool) -> Server {
        let file = File::create(log).unwrap();
        let mut wrapped = wrapped("setpriv", &["--pdeathsig", "TERM", "--"], command);
        wrapped.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let (sender, answer) = channel();
        spawner().send((wrapped, sender)).unwrap();
        let child = answer.recv().unwrap().unwrap();
        let mut server = Server { child, log: log.into() };
        let limit = Instant::now() + Duration::from_secs(120);
        while !ready() {
            let ended = server.child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > limit {
                panic!("{command:?} did not come up ({ended:?}):\n{}", server.log());
            }
            thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").arg(&pid).status();
        let limit = Instant::now() + Duration::from_secs(20);
        while Instant::now() < limit {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port of loopback that nobody uses.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server of files over HTTP/1.1 on loopback, with ranges, which can be told to fail and remembers what was asked.
#[derive(Debug)]
pub struct Files {
    port: u16,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    root: PathBuf,
    asked: Mutex<Vec<String>>,
    faults: Mutex<BTreeMap<String, u16>>,
    held: Mutex<BTreeSet<String>>,
    let_go: Condvar,
    ended: AtomicBool,
}

impl Files {
    /// Serves what is in `root`, as it is when it is asked for.
    pub fn serve(root: &Path) -> Files {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            root: root.into(),
            asked: Mutex::default(),
            faults: Mutex::default(),
            held: Mutex::default(),
            let_go: Condvar::new(),
            ended: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.ended.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&shared);
                thread::spawn(move || stream.map(|stream| answer(&state, stream)));
            }
        });
        Files { port, state }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Answers with this status to whoever asks for a path (with its leading slash).
    pub fn fault(&self, path: &str, status: u16) {
        self.state.faults.lock().unwrap().insert(path.to_owned(), status);
    }

    /// Lets whoever asks for a path (with its leading slash) wait, until [`Files::let_go`].
    pub fn hold(&self, path: &str) {
        self.state.held.lock().unwrap().insert(path.to_owned());
    }

    /// Answers all that wait.
    pub fn let_go(&self) {
        self.state.held.lock().unwrap().clear();
        self.state.let_go.notify_all();
    }

    /// Answers nobody any more: connections are refused, open ones are closed after their next request.
    pub fn stop(&self) {
        if !self.state.ended.swap(true, Ordering::SeqCst) {
            let _ = TcpStream::connect(("127.0.0.1", self.port));
        }
    }

    /// Methods and paths that were asked for since the last call.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.asked.lock().unwrap())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.stop();
    }
}

fn answer(state: &State, mut stream: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or("/").to_owned());
        let mut last = words.next() == Some("HTTP/1.0");
        let mut from: Option<u64> = None;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            last |= header == "connection: close";
            if let Some(range) = header.strip_prefix("range: bytes=") {
                from = range.split('-').next().and_then(|start| start.parse().ok());
            }
        }
        if state.ended.load(Ordering::SeqCst) {
            return Ok(());
        }
        state.asked.lock().unwrap().push(format!("{method} {path}"));
        let plain = path
            .split('?')
            .next()
            .unwrap_or_default()
            .replace("%2B", "+")
            .replace("%2b", "+")
            .replace("%7E", "~")
            .replace("%3A", ":");
        let held = state.held.lock().unwrap();
        drop(state.let_go.wait_while(held, |held| held.contains(&plain)).unwrap());
        let fault = state.faults.lock().unwrap().get(&plain).copied();
        let page = if plain.ends_with('/') { "index.html" } else { "" };
        let file = state.root.join(format!("{plain}{page}").trim_start_matches('/'));
        let inside = !plain.split('/').any(|part| part == "..");
        let body = match fault {
            Some(status) => Err(status),
            None if inside && file.is_file() => fs::read(&file).map_err(|_| 500),
            None => Err(404),
        };
        let (status, range, body) = match body {
            Ok(body) => match from {
                Some(from) if from >= body.len() as u64 => (416, String::new(), Vec::new()),
                Some(from) => {
                    let range = format!("Content-Range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
                    (206, range, body[from as usize..].to_vec())
                }
                None => (200, String::new(), body),
            },
            Err(status) => (status, String::new(), Vec::new()),
        };
        write!(stream, "HTTP/1.1 {status} It\r\nContent-Length: {}\r\n{range}\r\n", body.len())?;
        if method != "HEAD" {
            stream.write_all(&body)?;
        }
        stream.flush()?;
        if last {
            return Ok(());
        }
    }
}

/// The body of a page of a server on loopback, without any proxy.
pub fn get(url: &str) -> io::Result<String> {
    let address = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = address.split_once('/').unwrap_or((address, ""));
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
