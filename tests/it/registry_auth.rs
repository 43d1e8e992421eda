//! Credentials: who gets them, and who does not.

use std::collections::BTreeMap;

use imgbuild::registry::ClientConfig;
use imgbuild::registry::auth::{Credential, Given, Secret};

use crate::registry::{Images, hurried, known_to, push, registry, with_credential};
use crate::support::registry::{Act, Auth, CANARY_IDENTITY, Place, Registry, Response};

fn bearer() -> Auth {
    Auth::Bearer { realm: None, lives: Some(300), uses: None, oauth: true }
}

fn identity(registry: &Registry) -> ClientConfig {
    let token = Secret::new(CANARY_IDENTITY);
    with_credential(registry, Credential::IdentityToken { user: String::new(), token })
}

/// Pushes two images that share a layer.
fn outcome(registry: &Registry, config: ClientConfig) -> Result<(), String> {
    let images = Images::new();
    let named = [images.simple("app", &[b"shared", b"a"]), images.simple("team/other", &[b"shared", b"b"])];
    let pushed = push(registry, config, &images, &named).map(drop);
    if pushed.is_ok() {
        assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())));
        assert_eq!(registry.check_tag("team/other", "v1"), Some(Ok(())));
    }
    pushed
}

#[test]
fn challenges_are_answered() {
    let basic = registry(|kind| kind.auth = Auth::Basic);
    outcome(&basic, known_to(&basic)).unwrap();
    let token = registry(|kind| kind.auth = bearer());
    outcome(&token, known_to(&token)).unwrap();
    outcome(&token, identity(&token)).unwrap();
    let refresh = registry(|kind| kind.auth = bearer());
    outcome(&refresh, identity(&refresh)).unwrap();
    assert!(
        refresh.requests("/token").iter().all(|it| it.line.starts_with("POST")),
        "{:?}",
        refresh.requests("/token")
    );
    // A token server without OAuth2 takes the token as a password.
    let old = registry(|kind| kind.auth = Auth::Bearer { realm: None, lives: None, uses: None, oauth: false });
    outcome(&old, identity(&old)).unwrap();
    assert!(old.requests("/token").iter().any(|it| it.line.starts_with("GET")));
    let anonymous = registry(|kind| (kind.auth, kind.user) = (bearer(), String::new()));
    outcome(&anonymous, hurried()).unwrap();
}

#[test]
fn one_token_serves_a_repository_and_a_mount_asks_for_both() {
    let registry = registry(|kind| kind.auth = bearer());
    outcome(&registry, known_to(&registry)).unwrap();
    let scopes: Vec<String> = registry
        .requests("/token")
        .iter()
        .map(|it| {
            it.query
                .iter()
                .filter(|(name, _)| name == "scope")
                .map(|(_, value)| value.as_str())
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    let mut sorted = scopes.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), scopes.len(), "no token is fetched twice: {scopes:?}");
    assert!(scopes.contains(&"repository:app:pull repository:team/other:pull,push".to_owned()), "{scopes:?}");
    assert_eq!(
        registry.requests("POST").iter().filter(|it| it.status == 201).count(),
        1,
        "the shared layer was mounted"
    );
    // Nothing is sent before the registry asks for it.
    assert_eq!(registry.requests("/v2/")[0].authorization, None);
}

#[test]
fn tokens_are_renewed_whenever_they_are_refused() {
    for uses in [2, 3, 5] {
        let registry =
            registry(|kind| kind.auth = Auth::Bearer { realm: None, lives: Some(3600), uses: Some(uses), oauth: true });
        let config = ClientConfig { requests: 1, transfers: 1, ..known_to(&registry) };
        outcome(&registry, config).unwrap_or_else(|error| panic!("{uses}: {error}"));
        assert!(registry.requests("/token").len() > 4, "{uses}");
    }
}

/// Whoever asks first may find that others used the token up that was fetched for it, or that it came late.
#[test]
fn a_token_that_ended_on_its_way_is_renewed_a_few_times() {
    for (refused, works) in [(3, true), (9, false)] {
        let registry = registry(|kind| kind.auth = bearer());
        let realm = format!("Bearer realm=\"http://{}/token\",error=\"invalid_token\"", registry.host());
        let ended = Response::error(401, "UNAUTHORIZED", "it ended").with("WWW-Authenticate", realm);
        registry.fail_if(|it| it.method == "HEAD" && it.path.contains("/blobs/"), 0, refused, Act::Answer(ended));
        let config = ClientConfig { requests: 1, transfers: 1, ..known_to(&registry) };
        let outcome = outcome(&registry, config);
        match works {
            true => outcome.unwrap(),
            false => assert!(outcome.unwrap_err().contains("it answered 401")),
        }
    }
}

#[test]
fn a_source_that_may_not_be_read_is_not_mounted_from() {
    let registry = registry(|kind| kind.auth = bearer());
    registry.state().kind.unreadable = ["app:pull".to_owned()].into();
    // The token server leaves the scope out; the registry then begins an upload instead.
    registry.fail_if(
        |it| it.path == "/token" && it.parameters("scope").len() == 2,
        0,
        9,
        Act::Answer(Response::error(403, "DENIED", "not yours")),
    );
    outcome(&registry, known_to(&registry)).unwrap();
}

#[test]
fn refusals_are_told_with_who_was_refused() {
    let basic = registry(|kind| kind.auth = Auth::Basic);
    let error = outcome(&basic, hurried()).unwrap_err();
    assert!(error.contains("as anonymous: it answered 401 Unauthorized"), "{error}");
    assert!(error.contains(&format!("log in with `imgbuild login {}`", basic.host())), "{error}");
    basic.state().kind.password = "another".into();
    let wrong = with_credential(
        &basic,
        Credential::Password { user: "user".into(), password: Secret::new(crate::support::registry::CANARY_PASSWORD) },
    );
    let error = outcome(&basic, wrong).unwrap_err();
    assert!(error.contains("as user `user` with a password"), "{error}");
    // The token server of the fake repeats what it was sent; we do not.
    let token = registry(|kind| kind.auth = bearer());
    token.state().kind.password = "another".into();
    let wrong = with_credential(
        &token,
        Credential::Password { user: "user".into(), password: Secret::new(crate::support::registry::CANARY_PASSWORD) },
    );
    let error = outcome(&token, wrong).unwrap_err();
    assert!(error.contains("its token server") && error.contains("***"), "{error}");
    token.state().kind.identity = "another".into();
    let error = outcome(&token, identity(&token)).unwrap_err();
    assert!(error.contains("***"), "{error}");
}

#[test]
fn challenges_that_make_no_sense_are_errors() {
    for challenges in [vec![], vec!["Negotiate"], vec!["Bearer"], vec!["\"\"==,,"], vec!["Bearer realm=\"\""]] {
        let registry = registry(|kind| kind.auth = Auth::Raw(challenges.iter().map(|it| (*it).to_owned()).collect()));
        let error = outcome(&registry, known_to(&registry)).unwrap_err();
        assert!(error.contains("it answered 401"), "{challenges:?}: {error}");
        assert!(registry.requests("").iter().all(|it| it.authorization.is_none()), "{challenges:?}");
    }
    // Both at once: the token is preferred, and a registry that takes neither is not asked for ever.
    let both = registry(|_| {});
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", both.host());
    both.state().kind.auth = Auth::Raw(vec!["Basic realm=\"x\"".into(), realm]);
    let error = outcome(&both, known_to(&both)).unwrap_err();
    assert!(!error.is_empty());
    assert!(both.requests("").len() < 20, "{}", both.requests("").len());
}

/// A client for which `registry.example` and `other.example` are public hosts that lead to fakes.
fn public(registry: &Registry, other: &Registry) -> ClientConfig {
    let mut config = known_to(registry);
    config.addresses = BTreeMap::from([
        ("registry.example".to_owned(), registry.address),
        ("other.example".to_owned(), other.address),
    ]);
    config.insecure = vec![
        format!("registry.example:{}", registry.address.port()),
        format!("other.example:{}", other.address.port()),
    ];
    let Given::For(_, credential) = config.sources.given else { panic!("a credential is given") };
    config.sources.given = Given::For(format!("registry.example:{}", registry.address.port()), credential);
    config
}

/// Pushes to `registry.example`, which leads to the fake.
fn outcome_in_public(registry: &Registry, other: &Registry) -> Result<(), String> {
    use imgbuild::registry::{Registries, Supply};
    let images = Images::new();
    let named = [images.simple("app", &[b"layer"])];
    let host = format!("registry.example:{}", registry.address.port());
    let deliveries = crate::registry::deliveries(&host, &named, "v1");
    let registries = Registries::new(public(registry, other));
    let pushed = registries.push(&deliveries, &Supply::of(&named, &images.store), &imgbuild::observe::Silent);
    registry.assert_whole();
    pushed.map(drop).map_err(crate::registry::shown)
}

#[test]
fn credentials_stay_at_home() {
    // Uploads that go on at a storage service.
    let (home, storage) = (registry(|kind| kind.auth = Auth::Basic), registry(|_| {}));
    home.state().kind.place = Place::Elsewhere(format!("http://other.example:{}", storage.address.port()));
    let error = outcome_in_public(&home, &storage).unwrap_err();
    // The storage of this test knows no uploads; what matters is what it was told.
    assert!(error.contains("gave up"), "{error}");
    assert!(!storage.requests("PUT").is_empty());
    for seen in storage.requests("") {
        assert_eq!(seen.authorization, None, "{}", seen.line);
        assert!(!format!("{:?}", seen.headers).contains("canary"), "{seen:?}");
    }
    // Redirects of every kind.
    for status in [301, 302, 303, 307, 308] {
        let (home, other) = (registry(|kind| kind.auth = Auth::Basic), registry(|_| {}));
        let there = format!("http://other.example:{}/v2/", other.address.port());
        home.fail("HEAD", 1, 1, Act::Answer(Response::new(status).with("Location", there)));
        let _ = outcome_in_public(&home, &other);
        assert_eq!(other.requests("HEAD").len(), 1, "{status}");
        assert!(other.requests("").iter().all(|it| it.authorization.is_none()), "{status}");
    }
}

#[test]
fn a_public_registry_may_not_send_us_into_the_private_network() {
    for inside in [
        "http://127.0.0.1:PORT",
        "http://localhost:PORT",
        "http://169.254.169.254",
        "http://[::1]:PORT",
        "http://10.0.0.1",
    ] {
        // A registry of its own for each way: what one push left on its way would meet the next one's faults.
        let (home, victim) = (registry(|_| {}), registry(|_| {}));
        let inside = inside.replace("PORT", &victim.address.port().to_string());
        home.state().kind.place = Place::Elsewhere(inside.clone());
        let error = outcome_in_public(&home, &victim).unwrap_err();
        assert!(error.contains("which is refused"), "{inside}: {error}");
        let home = registry(|_| {});
        home.fail("HEAD", 0, 1, Act::Answer(Response::new(307).with("Location", format!("{inside}/x"))));
        let error = outcome_in_public(&home, &victim).unwrap_err();
        assert!(error.contains("which is refused"), "{inside}: {error}");
        let home = registry(|_| {});
        home.state().kind.auth =
            Auth::Bearer { realm: Some(format!("{inside}/token")), lives: None, uses: None, oauth: true };
        let error = outcome_in_public(&home, &victim).unwrap_err();
        assert!(error.contains("as its token server"), "{inside}: {error}");
        assert!(victim.requests("").is_empty(), "{inside}");
    }
}

#[test]
fn the_token_server_gets_only_what_is_its_own_and_may_not_pass_us_on() {
    let (home, other) = (registry(|_| {}), registry(|kind| kind.auth = bearer()));
    let realm = |registry: &Registry| Some(format!("http://other.example:{}/token", registry.address.port()));
    // Another host is allowed, as Docker Hub's is, and gets the credentials of the registry that named it.
    home.state().kind.auth = Auth::Bearer { realm: realm(&other), lives: None, uses: None, oauth: true };
    let error = outcome_in_public(&home, &other).unwrap_err();
    assert!(error.contains("401"), "its tokens are not those of this registry: {error}");
    assert!(other.requests("/token").iter().all(|it| it.authorization.is_some()));
    other.clear_log();
    for to in ["http://127.0.0.1:1/token", "http://other.example/elsewhere", "https://registry.example/token"] {
        other.fail("/token", 0, 1, Act::Answer(Response::new(307).with("Location", to)));
        let error = outcome_in_public(&home, &other).unwrap_err();
        assert!(error.contains("it passes credentials on to another place"), "{to}: {error}");
    }
    for realm in [
        "http://user:pw@other.example/token",
        "ftp://other.example/token",
        "file:///etc/passwd",
        "http://public.example/token",
    ] {
        home.state().kind.auth = Auth::Bearer { realm: Some(realm.into()), lives: None, uses: None, oauth: true };
        let error = outcome_in_public(&home, &other).unwrap_err();
        assert!(error.contains("as its token server"), "{realm}: {error}");
    }
}

#[test]
fn token_servers_fail_in_every_way() {
    for (act, expected) in [
        (Act::Answer(Response::new(503)), ""),
        (Act::Answer(Response::new(429).with("Retry-After", "0")), ""),
        (Act::Reset(0), ""),
        (Act::Answer(Response::new(200).body("not JSON canary-token-x")), "holds no token"),
        (Act::Answer(Response::new(200).body("{}")), "holds no token"),
        (Act::Answer(Response::new(200).body("{\"token\": \"a\\nb\"}")), "holds no token"),
        (Act::Answer(Response::new(200).body("{\"token\": \"x\", \"expires_in\": -1}")), "it answered 401"),
        (
            Act::Answer(Response::new(400).body("{\"error\": \"bad\", \"error_description\": \"no such scope\"}")),
            "no such scope",
        ),
        (Act::Cut(3), ""),
    ] {
        let registry = registry(|kind| kind.auth = bearer());
        let shown = format!("{act:?}");
        // A token that is refused is renewed, and may be a better one.
        let times = if expected == "it answered 401" { 9 } else { 1 };
        registry.fail("/token", 0, times, act);
        match (expected, outcome(&registry, known_to(&registry))) {
            ("", result) => result.unwrap_or_else(|error| panic!("{shown}: {error}")),
            (expected, Err(error)) => assert!(error.contains(expected), "{shown}: {error}"),
            (_, Ok(())) => panic!("{shown}: succeeded"),
        }
    }
}

#[test]
fn look_alike_hosts_get_nothing() {
    let registry = registry(|kind| kind.auth = Auth::Basic);
    // The same server under another name, and the same name with another port.
    for host in ["localhost", "registry.example"] {
        let mut config = known_to(&registry);
        config.addresses = BTreeMap::from([("registry.example".to_owned(), registry.address)]);
        let name = format!("{host}:{}", registry.address.port());
        config.insecure = vec![name.clone()];
        let images = Images::new();
        let named = [images.simple("app", &[b"layer"])];
        let deliveries = crate::registry::deliveries(&name, &named, "v1");
        let supply = imgbuild::registry::Supply::of(&named, &images.store);
        let error = imgbuild::registry::Registries::new(config).push(&deliveries, &supply, &imgbuild::observe::Silent);
        assert!(error.unwrap_err().to_string().contains("as anonymous"), "{host}");
    }
    assert!(registry.requests("").iter().all(|it| it.authorization.is_none()));
}

#[test]
fn a_login_is_tried_before_it_is_kept() {
    let registries = |registry: &Registry| (imgbuild::registry::Registries::new(hurried()), registry.host());
    for auth in [Auth::Basic, bearer()] {
        let registry = registry(|kind| kind.auth = auth);
        let good = Credential::Password {
            user: "user".into(),
            password: Secret::new(crate::support::registry::CANARY_PASSWORD),
        };
        let bad = Credential::Password { user: "user".into(), password: Secret::new("canary-password-no") };
        let (client, host) = registries(&registry);
        client.try_login(&host, &good).unwrap();
        let (client, host) = registries(&registry);
        let error = client.try_login(&host, &bad).unwrap_err().to_string();
        assert!(error.contains("401") && !error.contains("canary"), "{error}");
    }
}
