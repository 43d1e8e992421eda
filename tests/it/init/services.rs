//! Ollama and LiteLLM as far as the initialisation speaks to them: on a real socket, with faults on demand.
//!
//! LiteLLM's rules that matter are kept: ids and aliases are unique, a key is known by its own bearer, fields that it
//! does not have are refused (the real one drops them silently, which is how limits once got lost).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A request that arrived.
#[derive(Debug, Clone)]
pub struct Arrived {
    pub method: String,
    pub path: String,
}

/// How Ollama pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pull {
    /// With progress, to the end.
    Works,
    /// Not at all: there is no such model.
    Unknown,
    /// Says nothing more after its first line.
    Silent,
    /// Says the same line for ever.
    Repeats,
    /// Breaks off in the middle; the next one works.
    BreaksOnce,
}

/// What the services hold and how they fail.
pub struct State {
    pub pulled: BTreeSet<String>,
    pub models: BTreeMap<String, Value>,
    pub keys: BTreeMap<String, Value>,
    pub arrived: Vec<Arrived>,
    pub pull: Pull,
    /// Requests that are answered with 503 before anything works.
    pub unwell: u32,
    /// Readiness answers without a database before one is connected.
    pub without_database: u32,
    /// Writes that are carried out but answered with 500.
    pub lost_answers: u32,
    /// The status with which LiteLLM refuses writes to paths that begin so. As the real one does, it repeats what it was
    /// sent: with 422 in FastAPI's way, otherwise in its words.
    pub refuse_writes: Option<(u16, &'static str)>,
}

/// Both services on one port; their paths do not overlap.
pub struct Services {
    pub url: String,
    pub state: Arc<Mutex<State>>,
}

pub const MASTER: &str = "sk-canary-master-4a1f0c77d2e94b7a";

impl Services {
    pub fn start() -> Services {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            pulled: BTreeSet::new(),
            models: BTreeMap::new(),
            keys: BTreeMap::new(),
            arrived: Vec::new(),
            pull: Pull::Works,
            unwell: 0,
            without_database: 0,
            lost_answers: 0,
            refuse_writes: None,
        }));
        let shared = state.clone();
        // The thread ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || drop(serve(stream, &state)));
            }
        });
        Services { url, state }
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    /// Requests since the last call that were not just questions.
    pub fn writes(&self) -> Vec<String> {
        self.with(|state| {
            let writes = state.arrived.iter().filter(|it| it.method != "GET");
            let writes = writes.map(|it| format!("{} {}", it.method, it.path)).collect();
            state.arrived.clear();
            writes
        })
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
    let (method, path) = (method.to_owned(), path.to_owned());
    let (mut length, mut bearer) = (0, String::new());
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap_or(0),
            "authorization" => bearer = value.trim().trim_start_matches("Bearer ").to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let pull = {
        let mut state = state.lock().unwrap();
        state.arrived.push(Arrived { method: method.clone(), path: path.clone() });
        (path == "/api/pull" && state.unwell == 0).then_some(state.pull)
    };
    if let Some(how) = pull {
        return pull_model(&mut stream, state, how, body["model"].as_str().unwrap_or_default());
    }
    let (status, answer) = answer(&mut state.lock().unwrap(), &method, &path, &bearer, &body);
    let text = answer.to_string();
    write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len())
}

fn pull_model(stream: &mut TcpStream, state: &Mutex<State>, how: Pull, model: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n")?;
    let mut say = |line: Value| writeln!(stream, "{line}").and_then(|()| stream.flush());
    let part =
        |completed: u64| json!({"status": "downloading", "digest": "sha256:0", "total": 100, "completed": completed});
    match how {
        Pull::Unknown => return say(json!({"error": "pull model manifest: file does not exist"})),
        Pull::Silent => {
            say(part(1))?;
            thread::sleep(Duration::from_secs(20));
            return Ok(());
        }
        Pull::Repeats => {
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(20) {
                say(part(1))?;
                thread::sleep(Duration::from_millis(200));
            }
            return Ok(());
        }
        Pull::BreaksOnce => {
            say(part(40))?;
            state.lock().unwrap().pull = Pull::Works;
            return Ok(());
        }
        Pull::Works => {}
    }
    say(json!({"status": "pulling manifest"}))?;
    for completed in [1, 50, 100] {
        say(part(completed))?;
    }
    let tagged = if model.contains(':') { model.to_owned() } else { format!("{model}:latest") };
    state.lock().unwrap().pulled.insert(tagged);
    say(json!({"status": "success"}))
}

fn answer(state: &mut State, method: &str, path: &str, bearer: &str, body: &Value) -> (u16, Value) {
    if state.unwell > 0 {
        state.unwell -= 1;
        return (503, json!({"error": "starting"}));
    }
    match (method, path) {
        ("GET", "/api/version") => return (200, json!({"version": "0.6.5"})),
        ("GET", "/api/tags") => {
            let models: Vec<Value> = state.pulled.iter().map(|name| json!({"name": name, "model": name})).collect();
            return (200, json!({"models": models}));
        }
        ("GET", "/health/readiness") => {
            let connected = state.without_database == 0;
            state.without_database = state.without_database.saturating_sub(1);
            return (200, json!({"status": "healthy", "db": if connected { "connected" } else { "Not connected" }}));
        }
        ("GET", "/v1/models") => {
            let Some(key) = state.keys.get(bearer) else { return unknown_key() };
            let names: BTreeSet<&str> =
                state.models.values().filter_map(|model| model["model_name"].as_str()).collect();
            let allowed = key["models"].as_array().unwrap();
            let data: Vec<Value> =
                names.into_iter().filter(|it| allowed.contains(&json!(it))).map(|it| json!({"id": it})).collect();
            return (200, json!({"object": "list", "data": data}));
        }
        ("GET", "/key/info") => {
            return match state.keys.get(bearer) {
                Some(info) => (200, json!({"key": "sk-...", "info": info})),
                None => unknown_key(),
            };
        }
        _ => {}
    }
    if bearer != MASTER {
        return unknown_key();
    }
    if method == "POST"
        && let Some((status, below)) = state.refuse_writes
        && path.starts_with(below)
    {
        let answer = match status {
            422 => json!({"detail": [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": body}]}),
            _ => json!({"error": {"message": format!("no writes today: {body}"), "code": status}}),
        };
        return (status, answer);
    }
    let outcome = manage(state, method, path, body);
    if method == "POST" && outcome.0 == 200 && state.lost_answers > 0 {
        state.lost_answers -= 1;
        return (500, json!({"error": "the answer got lost"}));
    }
    outcome
}

fn unknown_key() -> (u16, Value) {
    (401, json!({"error": {"message": "Authentication Error, invalid proxy key", "code": "401"}}))
}

fn refused(why: String) -> (u16, Value) {
    (400, json!({"error": {"message": why}}))
}

/// What the master key may do.
fn manage(state: &mut State, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    match (method, path) {
        ("GET", "/model/info") => {
            let data: Vec<&Value> = state.models.values().collect();
            (200, json!({"data": data}))
        }
        ("POST", "/model/new") => {
            let id = body["model_info"]["id"].as_str().unwrap_or_default().to_owned();
            if body["litellm_params"]["model"].as_str().is_none() || text("model_name").is_empty() || id.is_empty() {
                return (422, json!({"detail": "model_name, litellm_params.model and model_info.id are needed"}));
            }
            if state.models.contains_key(&id) {
                return refused(format!("model {id} is there"));
            }
            state.models.insert(id, body.clone());
            (200, json!({}))
        }
        ("POST", "/model/delete") => match state.models.remove(&text("id")) {
            Some(_) => (200, json!({})),
            None => refused(format!("model {} is not there", text("id"))),
        },
        ("POST", "/key/generate" | "/key/update") => {
            let fields = ["key", "key_alias", "models", "tpm_limit", "rpm_limit", "metadata"];
            if let Some(field) = body.as_object().unwrap().keys().find(|name| !fields.contains(&name.as_str())) {
                return (422, json!({"detail": format!("unknown field {field}")}));
            }
            let key = text("key");
            let known = state.keys.contains_key(&key);
            if known != (path == "/key/update") {
                return refused(format!("the key is {}there", if known { "" } else { "not " }));
            }
            if state.keys.iter().any(|(other, info)| *other != key && info["key_alias"] == body["key_alias"]) {
                return refused("the alias is taken".into());
            }
            let mut info = body.clone();
            info.as_object_mut().unwrap().remove("key");
            state.keys.insert(key, info);
            (200, json!({}))
        }
        ("POST", "/key/delete") => {
            for key in body["keys"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                state.keys.remove(key);
            }
            (200, json!({}))
        }
        _ => (404, json!({"detail": "Not Found"})),
    }
}
