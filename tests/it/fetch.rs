//! Downloads from servers that are slow, broken, elsewhere or hostile.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use cache::Store;
use imgbuild::fetch::{Credential, Download, FetchError, Http, HttpConfig, Proxies, Url};
use imgbuild::observe::Silent;
use layers::Digest;

use crate::server::{Answer, Request, Server};
use crate::support::registry::{Act, Kind, Registry};

fn credential(server: &Server, path: &str) -> Credential {
    let url = server.url("/");
    let host = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
    Credential { host, path: path.into(), user: "me".into(), password: "s3cret".into() }
}

fn text(http: &Http, url: &Url) -> String {
    String::from_utf8(http.get(url, None, 1 << 20).unwrap().unwrap().bytes).unwrap()
}

/// `Basic` of `me:s3cret`.
const BASIC: &str = "Basic bWU6czNjcmV0";

fn sent(request: &Request) -> Option<&str> {
    request.headers.get("authorization").map(String::as_str)
}

#[test]
fn a_password_goes_to_its_host_and_path_and_is_not_sent_on_by_redirects() {
    let other = Server::start(|_| Answer::ok("other"));
    let elsewhere = other.url("/stolen").to_string();
    let server = Server::start(move |request| match request.path.as_str() {
        "/private/away" => Answer::status(302).header("Location", &elsewhere),
        _ => Answer::ok("here"),
    });
    let credentials = vec![credential(&server, "/private/")];
    let http = Http::new(HttpConfig { credentials, ..HttpConfig::default() });
    assert_eq!(text(&http, &server.url("/private/a")), "here");
    assert_eq!(text(&http, &server.url("/public/a")), "here");
    assert_eq!(text(&http, &server.url("/private/away")), "other");
    let requests = server.requests();
    assert_eq!(requests.iter().map(sent).collect::<Vec<_>>(), [Some(BASIC), None, Some(BASIC)]);
    assert_eq!(sent(&other.requests()[0]), None);
}

#[test]
fn an_error_shows_no_password() {
    let server = Server::start(|_| Answer::status(403));
    let mut url = server.url("/x?token=s3cret");
    url.set_username("me").unwrap();
    url.set_password(Some("s3cret")).unwrap();
    let error = Http::new(HttpConfig::default()).get(&url, None, 10).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    assert_eq!(sent(&server.requests()[0]), Some(BASIC));
}

#[test]
fn a_proxy_is_asked_for_everything_but_what_it_is_not_for() {
    let proxy = Server::start(|request| Answer::ok(format!("proxied {}", request.path)));
    let server = Server::start(|_| Answer::ok("direct"));
    let at = |server: &Server| server.url("/").to_string();
    let with = |proxies: Proxies| Http::new(HttpConfig { proxies, ..HttpConfig::default() });
    let far: Url = "http://mirror.example/debian/x".parse().unwrap();

    let all = with(Proxies { http: Some(at(&proxy)), none_for: Some("127.0.0.1".into()), ..Proxies::default() });
    assert_eq!(text(&all, &far), "proxied http://mirror.example/debian/x");
    assert_eq!(text(&all, &server.url("/y")), "direct");

    let hosts = vec![("mirror.example".into(), Some(at(&proxy))), ("127.0.0.1".into(), None)];
    let of_apt = with(Proxies { hosts, http: Some("http://127.0.0.1:9".into()), ..Proxies::default() });
    assert_eq!(text(&of_apt, &far), "proxied http://mirror.example/debian/x");
    assert_eq!(text(&of_apt, &server.url("/y")), "direct");
}

fn download(server: &Server, store: &Store, body: &[u8], paths: &[&str]) -> Result<Vec<u8>, FetchError> {
    let wanted = Download {
        name: "thing".into(),
        urls: paths.iter().map(|path| server.url(path)).collect(),
        digest: Digest::of(body),
        size: Some(body.len() as u64),
    };
    let path = Http::new(HttpConfig::default()).download(&wanted, store, &Silent)?;
    Ok(std::fs::read(path).unwrap())
}

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_at(folder.path()).unwrap();
    let body: Vec<u8> = (0..100_000_u32).map(|number| (number % 251) as u8).collect();
    let whole = body.clone();
    let server = Server::start(move |request| {
        let from: usize = match request.headers.get("range") {
            Some(range) => range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap(),
            None => return Answer::ok(whole.clone()).cut(40_000),
        };
        let rest = whole[from..].to_vec();
        let mut answer = Answer::ok(rest);
        answer.status = 206;
        answer.header("Content-Range", &format!("bytes {from}-{}/{}", whole.len() - 1, whole.len()))
    });
    assert_eq!(download(&server, &store, &body, &["/thing"]).unwrap(), body);
    let ranges: Vec<Option<String>> =
        server.requests().iter().map(|request| request.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [None, Some("bytes=40000-".to_owned())]);
}

#[test]
fn a_server_that_ignores_ranges_or_answers_other_ones_is_coped_with() {
    let body: Vec<u8> = vec![7; 50_000];
    for lie in [200, 206] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_at(folder.path()).unwrap();
        let whole = body.clone();
        let server = Server::start(move |request| match request.headers.contains_key("range") {
            false => Answer::ok(whole.clone()).cut(10_000),
            true => {
                let mut answer = Answer::ok(whole.clone()).header("Content-Range", "bytes 0-49999/50000");
                answer.status = lie;
                answer
            }
        });
        assert_eq!(download(&server, &store, &body, &["/thing"]).unwrap(), body, "{lie}");
    }
}

#[test]
fn wrong_bytes_are_never_visible_and_the_next_mirror_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_at(folder.path()).unwrap();
    let server = Server::of(BTreeMap::from([
        ("/evil".into(), b"evil!".to_vec()),
        ("/long".into(), b"good, and more".to_vec()),
        ("/good".into(), b"good.".to_vec()),
    ]));
    let error = download(&server, &store, b"good.", &["/evil", "/long", "/gone"]).unwrap_err();
    let shown = error.to_string();
    for part in [
        "/evil: its digest is sha256:",
        "/long: it is longer than the expected 5 bytes",
        "/gone: the server answered 404",
    ] {
        assert!(shown.contains(part), "`{shown}` lacks `{part}`");
    }
    assert!(matches!(error, FetchError::Mirrors { gone: false, .. }));
    assert_eq!(store.has(&Digest::of(b"good.")).unwrap(), None);
    assert_eq!(download(&server, &store, b"good.", &["/evil", "/good"]).unwrap(), b"good.");
    let error = download(&server, &store, b"other", &["/gone", "/lost"]).unwrap_err();
    assert!(matches!(error, FetchError::Mirrors { gone: true, .. }), "{error}");
}

#[test]
fn offline_asks_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_at(folder.path()).unwrap();
    let server = Server::start(|_| Answer::ok("x"));
    let http = Http::new(HttpConfig { offline: true, ..HttpConfig::default() });
    assert!(matches!(http.get(&server.url("/"), None, 1), Err(FetchError::Offline { .. })));
    let wanted = Download { name: "x".into(), urls: vec![server.url("/")], digest: Digest::of(b"x"), size: None };
    assert!(matches!(http.download(&wanted, &store, &Silent), Err(FetchError::Offline { .. })));
    assert!(server.asked().is_empty());
}

#[test]
fn slow_endless_and_circular_answers_end() {
    let server = Server::start(|request| match request.path.as_str() {
        "/big" => Answer::ok(vec![0; 2000]),
        _ => Answer::status(302).header("Location", "/again"),
    });
    let http = Http::new(HttpConfig::default());
    assert!(matches!(http.get(&server.url("/big"), None, 1999), Err(FetchError::TooLarge { .. })));
    let error = http.get(&server.url("/again"), None, 10).unwrap_err().to_string();
    assert!(error.contains("redirect"), "{error}");
    assert!(server.asked().len() < 50);
}

#[test]
fn a_busy_server_is_asked_again() {
    let times = std::sync::atomic::AtomicUsize::new(0);
    let server = Server::start(move |_| match times.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => Answer::status(503).header("Retry-After", "0"),
        1 => Answer::status(429).header("Retry-After", "0"),
        _ => Answer::ok("at last"),
    });
    assert_eq!(text(&Http::new(HttpConfig::default()), &server.url("/")), "at last");
    assert_eq!(server.asked().len(), 3);
}

/// A server with TLS, by openssl and Python: `/away` leads to `elsewhere`, everything else is there.
struct Secure {
    child: std::process::Child,
    port: String,
    folder: tempfile::TempDir,
}

impl Secure {
    fn start(elsewhere: &Url) -> Secure {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("openssl.cnf"), "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
        let openssl = |arguments: &[&str]| {
            let made = Command::new("openssl")
                .args(["req", "-config", "openssl.cnf", "-x509", "-newkey", "ec", "-pkeyopt"])
                .args(["ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
                .args(arguments)
                .current_dir(folder.path())
                .output()
                .expect("openssl is installed");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        };
        openssl(&[
            "-subj",
            "/CN=Tests",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ]);
        let name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
        let signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=CA:FALSE"];
        openssl(&[&name[..], &signed, &["-keyout", "key.pem", "-out", "server.pem"]].concat());
        let script = r#"
import http.server, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(302 if self.path == "/away" else 200)
        if self.path == "/away":
            self.send_header("Location", sys.argv[1])
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"here")
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("server.pem", "key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;
        let mut child = Command::new("python3")
            .args(["-I", "-c", script, elsewhere.as_str()])
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Secure { child, port: port.trim().to_owned(), folder }
    }

    fn url(&self, path: &str) -> Url {
        format!("https://localhost:{}{path}", self.port).parse().unwrap()
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn real_an_own_ca_is_trusted_when_it_is_named_and_no_redirect_leads_down_to_http() {
    let plain = Server::start(|_| Answer::ok("anybody's"));
    let secure = Secure::start(&plain.url("/"));
    let named = HttpConfig { extra_ca: vec![secure.folder.path().join("ca.pem")], ..HttpConfig::default() };
    let http = Http::new(named);
    assert_eq!(text(&http, &secure.url("/")), "here");
    let error = http.get(&secure.url("/away"), None, 100).unwrap_err().to_string();
    assert!(error.contains("redirect"), "{error}");
    assert!(plain.asked().is_empty());
    let error = Http::new(HttpConfig::default()).get(&secure.url("/"), None, 100).unwrap_err().to_string();
    assert!(error.contains("cannot connect"), "{error}");
}

#[test]
fn slow_a_document_that_keeps_coming_may_take_longer_than_there_is_patience() {
    let registry = Registry::start(Kind::default());
    let document = vec![b'd'; 1 << 20];
    registry.state().objects.insert("/bucket/document".into(), document.clone());
    registry.fail("GET", 0, usize::MAX, Act::Drip(Duration::from_millis(200)));
    let patience = Some(Duration::from_secs(2));
    let http = Http::new(HttpConfig { patience, ..HttpConfig::default() });
    let url = Url::parse(&format!("http://{}/bucket/document?X-Amz-Signature=x", registry.host())).unwrap();
    let found = http.get(&url, None, 2 << 20).unwrap().unwrap();
    assert!(found.bytes == document);
    assert_eq!(registry.requests("GET").len(), 1);
}
