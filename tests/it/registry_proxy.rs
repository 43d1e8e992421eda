//! Registries behind a proxy. The in-process registry plays both: asked with whole URLs, it answers for any host.

use std::process::Command;

use crate::push_cli::project;
use crate::registry::{assert_secret, registry};
use crate::support::registry::{Act, CANARY_PASSWORD, Registry, Response};
use crate::support::run::{Outcome, Sandbox, outcome};

/// A push to a registry that exists only behind the proxy.
fn push(sandbox: &Sandbox, proxy: &Registry, change: impl FnOnce(&mut Command)) -> Outcome {
    let mut command = sandbox.command(["--catalogue", "plan.json", "--context", "context", "push"]);
    command.args(["--tag", "registry.example:5000/team/one:v1", "--insecure", "registry.example:5000"]);
    for name in ["NO_PROXY", "no_proxy", "http_proxy", "https_proxy", "all_proxy", "ALL_PROXY", "HTTPS_PROXY"] {
        command.env_remove(name);
    }
    command.env("HTTP_PROXY", format!("http://user:{CANARY_PASSWORD}@{}", proxy.host()));
    change(&mut command);
    let done = outcome(&mut command);
    assert_secret(&format!("{}{}", done.stdout, done.stderr));
    done
}

#[test]
fn a_registry_is_reached_through_the_proxy_which_alone_gets_the_proxys_password() {
    let (proxy, sandbox) = (registry(|_| {}), project(&["one"]));
    push(&sandbox, &proxy, |_| {}).success();
    assert_eq!(proxy.check_tag("team/one", "v1"), Some(Ok(())));
    for seen in proxy.requests("/v2/") {
        assert_eq!(seen.headers.get("host").map(String::as_str), Some("registry.example:5000"), "{}", seen.line);
        assert!(seen.headers.contains_key("proxy-authorization"), "{}", seen.line);
        assert_eq!(seen.authorization, None, "{}", seen.line);
    }
    // A registry on this machine is reached without it.
    let (near, before) = (registry(|_| {}), proxy.requests("").len());
    push(&sandbox, &proxy, |command| {
        command.args(["--tag", &format!("{}/near:v1", near.host())]);
    })
    .success();
    assert_eq!(near.check_tag("near", "v1"), Some(Ok(())));
    assert!(near.requests("").iter().all(|it| !it.headers.contains_key("proxy-authorization")));
    assert!(proxy.requests("").iter().skip(before).all(|it| !it.line.contains("near")));
}

#[test]
fn a_proxy_that_fails_is_told_or_tried_again() {
    for (name, times, act, expected) in [
        ("it is out of order", 2, Act::Answer(Response::new(502)), ""),
        ("it hangs up", 2, Act::Reset(0), ""),
        ("it hangs up after the request", 1, Act::Swallow, ""),
        ("it wants another password", 99, Act::Answer(Response::new(407)), "407 Proxy Authentication Required"),
        ("it forbids", 99, Act::Answer(Response::new(403).body("<html>not here</html>")), "403 Forbidden"),
    ] {
        let (proxy, sandbox) = (registry(|_| {}), project(&["one"]));
        proxy.fail("/v2/", 0, times, act);
        let done = push(&sandbox, &proxy, |_| {});
        match expected {
            "" => drop(done.success()),
            said => drop(done.failure(1, &[said])),
        }
        let there = proxy.check_tag("team/one", "v1");
        assert_eq!(there, expected.is_empty().then_some(Ok(())), "{name}");
    }
}

#[test]
fn slow_a_tunnel_that_is_refused_is_an_error_without_a_secret() {
    let (proxy, sandbox) = (registry(|_| {}), project(&["one"]));
    proxy.fail("CONNECT", 0, 99, Act::Answer(Response::new(403)));
    let mut command = sandbox.command(["--catalogue", "plan.json", "inspect", "registry.example:5000/team/one:v1"]);
    for name in ["NO_PROXY", "no_proxy", "http_proxy", "https_proxy", "HTTP_PROXY"] {
        command.env_remove(name);
    }
    command.env("HTTPS_PROXY", format!("http://user:{CANARY_PASSWORD}@{}", proxy.host()));
    let done = outcome(&mut command);
    assert_secret(&format!("{}{}", done.stdout, done.stderr));
    done.failure(1, &["registry.example:5000", "gave up"]);
    assert!(proxy.requests("CONNECT").iter().all(|it| it.headers.contains_key("proxy-authorization")));
    assert!(!proxy.requests("CONNECT").is_empty());
}
