//! Just enough HTTP/1.1 over a real socket, with control over every byte.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A request's head.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn parameters(&self, name: &str) -> Vec<&str> {
        self.query.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Method and target, as a log shows them.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn new(status: u16) -> Response {
        Response { status, ..Response::default() }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Response {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Response {
        self.body = body.into();
        self
    }

    /// An error of the distribution specification.
    pub fn error(status: u16, code: &str, message: &str) -> Response {
        let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
        Response::new(status).with("Content-Type", "application/json").body(body)
    }
}

/// How slowly an answer is sent.
#[derive(Debug, Clone, Copy)]
pub enum Pause {
    /// Its body in sixteen pieces, a pause before each.
    EachPiece(Duration),
    /// All of it, a pause behind each byte.
    EachByte(Duration),
}

/// One connection.
pub struct Connection {
    reader: BufReader<TcpStream>,
    left: Body,
}

enum Body {
    Length(u64),
    Chunked { left: u64, ended: bool },
}

impl Connection {
    pub fn new(stream: TcpStream) -> Connection {
        Connection { reader: BufReader::new(stream), left: Body::Length(0) }
    }

    /// The next request's head; `None` when the client is gone.
    pub fn request(&mut self) -> Option<Request> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let mut words = line.split_ascii_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':')?;
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        self.left = match headers.get("transfer-encoding") {
            Some(_) => Body::Chunked { left: 0, ended: false },
            None => Body::Length(headers.get("content-length").and_then(|it| it.parse().ok()).unwrap_or(0)),
        };
        // A proxy is asked with the whole URL (RFC 9112, section 3.2.2).
        let target = match target.strip_prefix("http://") {
            Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
            None => &target,
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        Some(Request { method, path: path.to_owned(), query, headers })
    }

    /// Up to `limit` bytes of the request's body; fewer where it ends or the client goes away.
    pub fn body(&mut self, limit: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let mut piece = vec![0; 64 << 10];
        while (out.len() as u64) < limit {
            let left = match &mut self.left {
                Body::Length(left) => *left,
                Body::Chunked { ended: true, .. } => 0,
                Body::Chunked { left: 0, ended } => {
                    let mut line = String::new();
                    if self.reader.read_line(&mut line).is_err() {
                        return out;
                    }
                    let size = u64::from_str_radix(line.trim(), 16).unwrap_or(0);
                    if size == 0 {
                        *ended = true;
                        let _ = self.reader.read_line(&mut String::new());
                        return out;
                    }
                    self.left = Body::Chunked { left: size, ended: false };
                    continue;
                }
                Body::Chunked { left, .. } => *left,
            };
            let wanted = left.min(limit - out.len() as u64).min(piece.len() as u64) as usize;
            if wanted == 0 {
                return out;
            }
            let Ok(count) = self.reader.read(&mut piece[..wanted]) else { return out };
            if count == 0 {
                return out;
            }
            out.extend_from_slice(&piece[..count]);
            let mut done = false;
            match &mut self.left {
                Body::Length(left) => *left -= count as u64,
                Body::Chunked { left, .. } => {
                    *left -= count as u64;
                    done = *left == 0;
                }
            }
            if done {
                let _ = self.reader.read_line(&mut String::new());
            }
        }
        out
    }

    /// Whether the request's body was read to its end.
    pub fn is_read(&self) -> bool {
        match &self.left {
            Body::Length(left) => *left == 0,
            Body::Chunked { ended, .. } => *ended,
        }
    }

    /// As [`Connection::body`], a MiB at a time with a pause behind each.
    pub fn body_slowly(&mut self, pause: Duration) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let piece = self.body(1 << 20);
            if piece.is_empty() {
                return out;
            }
            out.extend(piece);
            std::thread::sleep(pause);
        }
    }

    /// Sends an answer; `cut` sends only so many bytes of its body.
    pub fn respond(
        &mut self,
        request: &Request,
        response: &Response,
        cut: Option<usize>,
        pause: Option<Pause>,
    ) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Status\r\n", response.status);
        let has_length = response.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        if !has_length && response.status != 204 {
            head += &format!("Content-Length: {}\r\n", response.body.len());
        }
        for (name, value) in &response.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        let body = match request.method.as_str() {
            "HEAD" => &[],
            _ => &response.body[..cut.unwrap_or(response.body.len()).min(response.body.len())],
        };
        let stream = self.reader.get_mut();
        match pause {
            // In one piece, as one packet where it fits.
            None => stream.write_all(&[head.as_bytes(), body].concat())?,
            Some(Pause::EachByte(pause)) => {
                for byte in head.as_bytes().iter().chain(body) {
                    stream.write_all(&[*byte])?;
                    std::thread::sleep(pause);
                }
            }
            Some(Pause::EachPiece(pause)) => {
                stream.write_all(head.as_bytes())?;
                for piece in body.chunks((body.len() / 16).max(1)) {
                    std::thread::sleep(pause);
                    stream.write_all(piece)?;
                }
            }
        }
        stream.flush()
    }
}
