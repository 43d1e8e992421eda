//! The programs that lie in the images beside what the build context brings: the server of the built site and the health
//! check, run by the machine's own Python.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("images").join(name)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A served site of two pages and a folder without an index.
struct Site {
    _folder: TempDir,
    server: Child,
    port: u16,
}

impl Site {
    fn start() -> Site {
        let folder = TempDir::new().unwrap();
        let site = folder.path().join("site");
        fs::create_dir_all(site.join("guide")).unwrap();
        fs::create_dir_all(site.join("assets")).unwrap();
        fs::write(site.join("index.html"), "<h1>Home</h1>").unwrap();
        fs::write(site.join("guide/index.html"), "<h1>Guide</h1>").unwrap();
        fs::write(site.join("404.html"), "<h1>Lost</h1>").unwrap();
        fs::write(site.join("assets/a.css"), "body{}").unwrap();
        fs::write(folder.path().join("secret"), "canary").unwrap();
        let port = free_port();
        let server = Command::new("python3")
            .arg("-B")
            .arg(script("core/serve.py"))
            .arg(&site)
            .arg(port.to_string())
            .spawn()
            .unwrap_or_else(|error| panic!("python3 is needed: apt-get install python3 ({error})"));
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(60), "the site is not served");
            std::thread::sleep(Duration::from_millis(20));
        }
        Site { _folder: folder, server, port }
    }

    /// The head and the body of an answer.
    fn ask(&self, method: &str, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    fn healthy(&self, path: &str) -> Output {
        let mut check = Command::new("python3");
        check.arg("-IS").arg(script("base/healthy.py")).arg(path);
        // The check of the image asks port 8000 unless the variable of the service says otherwise.
        check.env("API_PORT", self.port.to_string()).output().unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn a_built_site_is_served_and_nothing_else() {
    let site = Site::start();
    let (head, body) = site.ask("GET", "/");
    assert!(head.starts_with("HTTP/1.1 200") && body == "<h1>Home</h1>", "{head}\n{body}");
    assert!(head.contains("Cache-Control: no-cache") && head.contains("X-Content-Type-Options: nosniff"), "{head}");
    assert_eq!(site.ask("GET", "/guide/").1, "<h1>Guide</h1>");
    assert!(site.ask("GET", "/guide").0.starts_with("HTTP/1.1 301"));
    assert!(site.ask("GET", "/assets/a.css").0.contains("text/css"));
    for path in ["/nothing", "/assets/", "/../secret", "/%2e%2e/secret", "/guide/../../secret"] {
        let (head, body) = site.ask("GET", path);
        assert!(head.starts_with("HTTP/1.1 404") && body == "<h1>Lost</h1>", "{path}: {head}\n{body}");
    }
    let (head, body) = site.ask("HEAD", "/nothing");
    assert!(head.starts_with("HTTP/1.1 404") && body.is_empty(), "{head}\n{body}");
    assert!(site.ask("POST", "/").0.starts_with("HTTP/1.1 501"));
}

#[test]
fn the_server_of_the_site_ends_when_it_is_told() {
    for signal in ["-TERM", "-INT"] {
        let mut site = Site::start();
        assert!(Command::new("kill").args([signal, &site.server.id().to_string()]).status().unwrap().success());
        assert!(site.server.wait().unwrap().success(), "{signal}");
    }
}

#[test]
fn the_health_check_says_what_it_saw() {
    let site = Site::start();
    assert!(site.healthy("/").status.success());
    assert!(site.healthy("/guide").status.success(), "a redirection is an answer");
    let lost = site.healthy("/nothing");
    assert_eq!(lost.status.code(), Some(1));
    let said = String::from_utf8(lost.stderr).unwrap();
    assert!(said.contains("answers /nothing with 404"), "{said}");
    let port = free_port();
    let mut gone = Command::new("python3");
    gone.arg("-IS").arg(script("base/healthy.py")).arg("/").env("API_PORT", port.to_string());
    let gone = gone.output().unwrap();
    assert_eq!(gone.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("does not answer"), "{gone:?}");
}
