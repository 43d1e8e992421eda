//! How often a push of what is there already has to wait for the other side: each trip counted, with what TLS, a challenge
//! and a token add. The numbers are those of docs/push.md.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use layers::Platform;

use crate::registry::{Images, hurried, known_to, push, push_with, registry};
use crate::registry_real::{Real, certificates};
use crate::support::registry::{Auth, CANARY_PASSWORD};
use imgbuild::output::NamedImage;
use imgbuild::registry::auth::{Credential, Given, Secret, Sources};
use imgbuild::registry::{ClientConfig, Registries, Supply};

/// How long what a client says is on its way: long beside what it says in one breath, so that this counts as one.
const ON_ITS_WAY: Duration = Duration::from_millis(150);

/// Passes connections on and notes the turns: from the first word of the client to the first one of the server.
struct Relay {
    address: SocketAddr,
    turns: Turns,
}

type Turns = Arc<Mutex<Vec<(Instant, Instant)>>>;

impl Relay {
    fn to(server: String) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let turns = Turns::default();
        let noted = turns.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&server).unwrap();
                // When the client began to speak, if it spoke last.
                let asked = Arc::new(Mutex::new(None));
                let (up, answered, noted) = (asked.clone(), asked, noted.clone());
                let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    pass(from_client, to_server, ON_ITS_WAY, || {
                        up.lock().unwrap().get_or_insert_with(Instant::now);
                    });
                });
                std::thread::spawn(move || {
                    pass(server, client, Duration::ZERO, || {
                        let began = answered.lock().unwrap().take();
                        noted.lock().unwrap().extend(began.map(|began| (began, Instant::now())));
                    });
                });
            }
        });
        Relay { address, turns }
    }

    /// How often something waits for the other side: the longest chain of turns of which each began after the one before
    /// had ended. A client may open a connection for later meanwhile, and what becomes of that does not count.
    fn trips(&self, work: impl FnOnce()) -> usize {
        let began = Instant::now();
        work();
        let ended = Instant::now();
        let mut turns = self.turns.lock().unwrap().clone();
        turns.retain(|turn| turn.0 >= began && turn.1 <= ended);
        turns.sort_by_key(|(_, ended)| *ended);
        let (mut count, mut free) = (0, None);
        for (began, ended) in turns {
            if free.is_none_or(|free| began >= free) {
                (count, free) = (count + 1, Some(ended));
            }
        }
        count
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, late: Duration, seen: impl Fn()) {
    let (sender, pieces) = std::sync::mpsc::channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        for (due, piece) in pieces {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let mut piece = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        seen();
        if sender.send((Instant::now() + late, piece[..count].to_vec())).is_err() {
            break;
        }
    }
}

/// A client that reaches `registry.example` by the relay.
fn through(relay: &Relay, credential: Option<Credential>) -> (ClientConfig, String) {
    let host = format!("registry.example:{}", relay.address.port());
    let given = credential.map_or(Given::Nothing, |credential| Given::For(host.clone(), credential));
    let config = ClientConfig {
        addresses: [("registry.example".to_owned(), relay.address)].into(),
        sources: Sources { given, ..Sources::default() },
        ..hurried()
    };
    (config, host)
}

fn password() -> Option<Credential> {
    Some(Credential::Password { user: "user".into(), password: Secret::new(CANARY_PASSWORD) })
}

/// Pushes an image with a new client.
fn trips_of_a_push(relay: &Relay, config: ClientConfig, host: &str, images: &Images, image: &NamedImage) -> usize {
    let named = std::slice::from_ref(image);
    let deliveries = crate::registry::deliveries(host, named, "v1");
    let supply = Supply::of(named, &images.store);
    let registries = Registries::new(config);
    relay.trips(|| {
        registries.push(&deliveries, &supply, &imgbuild::observe::Silent).map_err(crate::registry::shown).unwrap();
    })
}

#[test]
fn slow_a_challenge_costs_one_trip_and_a_token_another() {
    for (auth, trips) in [("none", 2), ("basic", 3), ("bearer", 4)] {
        let registry = registry(|_| {});
        let relay = Relay::to(registry.host());
        // The relay is on this machine, so it is spoken to without TLS at once.
        let host = relay.address.to_string();
        registry.state().kind.auth = match auth {
            "none" => Auth::None,
            "basic" => Auth::Basic,
            _ => Auth::Bearer { realm: Some(format!("http://{host}/token")), lives: None, uses: None, oauth: false },
        };
        let images = Images::new();
        let image = images.image("app", &Platform::ALL, &[b"layer"]);
        let given = Given::For(host.clone(), password().unwrap());
        let config = ClientConfig { sources: Sources { given, ..Sources::default() }, ..hurried() };
        let found = [(); 2].map(|()| trips_of_a_push(&relay, config.clone(), &host, &images, &image));
        assert_eq!(found[1], trips, "{auth}");
        // Four images at once wait no longer than one, with everything answered late.
        let named: Vec<_> = ["a", "b", "c", "d"].map(|name| images.image(name, &Platform::ALL, &[b"layer"])).into();
        let all = || push(&registry, known_to(&registry), &images, &named).unwrap();
        if auth == "bearer" {
            registry.state().kind.auth = Auth::Bearer { realm: None, lives: None, uses: None, oauth: false };
        }
        all();
        registry.clear_log();
        registry.state().kind.latency = Duration::from_millis(50);
        all();
        assert_eq!(registry.round_trips(), trips, "{auth}: {:?}", registry.requests(""));
        // A second push by the same client knows already what it is asked for.
        let registries = Registries::new(known_to(&registry));
        push_with(&registries, &registry, &images, &named, "v1").unwrap();
        registry.clear_log();
        push_with(&registries, &registry, &images, &named, "v2").unwrap();
        assert_eq!(registry.round_trips(), 2, "{auth}");
    }
}

#[test]
fn real_tls_costs_one_trip_a_connection() {
    for (auth, trips) in [("", 3), ("auth: {htpasswd: {realm: test, path: FOLDER/htpasswd}}\n", 4)] {
        let folder = tempfile::tempdir().unwrap();
        let authority = certificates(folder.path());
        let line = crate::support::run::tool("htpasswd", ["-nbB", "user", CANARY_PASSWORD]);
        std::fs::write(folder.path().join("htpasswd"), line).unwrap();
        // HTTP/2 acknowledges settings in between, which is nothing that anybody waits for.
        let tls = format!(
            "  tls: {{certificate: FOLDER/server.pem, key: FOLDER/server.key}}\n  http2: {{disabled: true}}\n{auth}"
        );
        let real = Real::start_in(folder, &tls);
        let relay = Relay::to(real.host());
        let (config, host) = through(&relay, password().filter(|_| !auth.is_empty()));
        let config = ClientConfig { extra_ca: vec![authority], ..config };
        let images = Images::new();
        let image = images.image("app", &Platform::ALL, &[b"layer"]);
        let found = [(); 2].map(|()| trips_of_a_push(&relay, config.clone(), &host, &images, &image));
        assert_eq!(found[1], trips, "{auth}");
    }
}
