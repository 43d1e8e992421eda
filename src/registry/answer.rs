//! What answers say that are no success.

use super::auth::Credential;
use super::client::{Answer, Client};
use super::error::RegistryError;
use super::reference::Repository;
use crate::fetch::shown;
use crate::hide::hidden;

impl Client {
    /// What an answer says about why it is no success: the codes and messages of the distribution specification.
    pub(super) async fn reason(&self, mut answer: Answer) -> String {
        let status = answer.status;
        // Who says a byte now and then would never end.
        let body = tokio::time::timeout(self.config.patience.idle, self.body(&mut answer, 64 << 10));
        let body = body.await.ok().and_then(Result::ok).flatten().unwrap_or_default();
        let said = said(&body);
        match said.is_empty() {
            true => format!("it answered {status}"),
            false => format!("it answered {status}: {}", clean(&said)),
        }
    }

    /// The error for an answer that is no success.
    pub(super) async fn failed(&self, repository: &Repository, what: &str, answer: Answer) -> RegistryError {
        match answer.status.as_u16() {
            401 | 403 => self.denied(repository, what, answer).await,
            status => {
                let url = shown(&answer.url);
                let why = self.reason(answer).await;
                RegistryError::Answer { what: what.into(), url, status, why }
            }
        }
    }

    pub(super) async fn denied(&self, repository: &Repository, what: &str, answer: Answer) -> RegistryError {
        let credential = self.keyring.find(repository).map(|found| found.credential).unwrap_or_default();
        let why = self.reason(answer).await;
        let hint = match credential {
            Credential::Anonymous => format!("; log in with `imgbuild login {}`", repository.registry),
            _ if repository.path.is_empty() => String::new(),
            _ => format!("; see `imgbuild auth explain {repository}`"),
        };
        RegistryError::Denied {
            registry: repository.registry.clone(),
            what: if repository.path.is_empty() { what.to_owned() } else { format!("{what} in {}", repository.path) },
            who: credential.shown(),
            why: why + &hint,
        }
    }
}

/// A server's text, fit to be shown: short, printable, without secrets.
pub(super) fn clean(text: &str) -> String {
    hidden(text).chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// The messages of an error answer.
fn said(body: &[u8]) -> String {
    let Ok(document) = serde_json::from_slice::<serde_json::Value>(body) else {
        // Some say it in plain words; a page of HTML says nothing.
        let text = String::from_utf8_lossy(body);
        let text = text.trim();
        return if text.len() < 200 && !text.contains('<') { text.to_owned() } else { String::new() };
    };
    let text = |value: &serde_json::Value, name: &str| value.get(name).and_then(|it| it.as_str()).map(str::to_owned);
    let errors = document.get("errors").and_then(|errors| errors.as_array());
    let lines = errors.into_iter().flatten().filter_map(|error| match (text(error, "code"), text(error, "message")) {
        (Some(code), Some(message)) if !message.is_empty() => {
            // The registry of Docker says there which blobs it misses.
            let detail = error.get("detail").map(ToString::to_string).unwrap_or_default();
            let words = detail.split(|it: char| !it.is_ascii_alphanumeric() && it != ':');
            let digests: Vec<&str> = words.filter(|word| word.parse::<super::AnyDigest>().is_ok()).take(8).collect();
            let digests = if digests.is_empty() { String::new() } else { format!(" ({})", digests.join(", ")) };
            Some(format!("{code}: {message}{digests}"))
        }
        (code, message) => code.or(message),
    });
    let lines: Vec<String> = lines.collect();
    match lines.is_empty() {
        true => ["error_description", "details", "message", "error"]
            .iter()
            .find_map(|name| text(&document, name))
            .unwrap_or_default(),
        false => lines.join("; "),
    }
}

/// Why TLS with a host does not come about, and what to do; `None` where the host seems not to speak it.
pub(super) fn no_tls(host: &str, why: &str) -> Option<String> {
    let folder = format!(
        "put `client.cert` and `client.key` into the folder `{host}` of `/etc/docker/certs.d` or \
         `~/.config/containers/certs.d`"
    );
    let is = |part: &str| why.to_ascii_lowercase().contains(part);
    // An alert that comes from there is about the certificate from here.
    if is("received fatal alert") && (is("certificate") || is("unknownca")) {
        return Some(format!("it wants to see a client's certificate that it trusts ({why}): {folder}"));
    }
    if is("certificate") {
        return Some(format!(
            "it wants TLS, and its certificate is not trusted ({why}); name its authority's file with IMGBUILD_CA, or \
             the registry with `--insecure {host}`"
        ));
    }
    // What a server of plain HTTP sends is no TLS; who asks for a certificate may hang up before his alert is read.
    (!is("corrupt message")).then(|| {
        format!(
            "it answers 400 to plain HTTP and hangs up on TLS ({why}); if it wants to see a client's certificate, {folder}"
        )
    })
}
