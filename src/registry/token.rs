//! Answers to challenges: Basic, and tokens from the server that a registry names.
//!
//! The token server may be another host (Docker Hub's is); what it gets is only what was found for the registry that
//! named it. It has to be reached at least as safely as the registry, and it may not pass us on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use super::auth::Credential;
use super::auth::challenge::{self, Challenge};
use super::body::Outgoing;
use super::client::{Answer, Ask, Client, Failure};
use super::error::RegistryError;
use super::reference::Repository;
use super::retry;
use crate::fetch::shown;
use crate::hide;

/// What is known about how a registry wants to be spoken to.
#[derive(Debug, Default)]
pub(super) struct Session {
    way: Option<Way>,
    /// A slot for each set of scopes, held while its token is fetched: who needs the same one waits for it instead of asking
    /// too, and who needs another one asks at the same time.
    tokens: HashMap<String, Arc<tokio::sync::Mutex<Option<Token>>>>,
    /// Scopes that the registry asked for beyond those that a request names.
    wider: HashMap<String, String>,
}

#[derive(Debug, Clone, PartialEq)]
enum Way {
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

#[derive(Debug, Clone)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

#[derive(Deserialize)]
struct Granted {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
}

/// The shortest time that a token lives, whatever its server says (distribution's token specification).
const SHORTEST: u64 = 60;
/// The largest answer of a token server, bytes.
const LARGEST: usize = 1 << 20;

impl Client {
    /// The header for a request, and whether it was fetched for this one; `refused` is what the registry just did not
    /// accept.
    pub(super) async fn authorization(
        &self,
        repository: &Repository,
        home: &Url,
        scopes: &[String],
        refused: Option<Option<HeaderValue>>,
    ) -> Result<(Option<HeaderValue>, bool), Failure> {
        let session = self.session(repository.host());
        let Some(way) = session.lock().await.way.clone() else { return Ok((None, false)) };
        let found = self.keyring.find(repository).map_err(RegistryError::from)?;
        let credential = found.credential;
        guard(&credential);
        match (way, &credential) {
            (_, Credential::RegistryToken(token)) => Ok((header("Bearer", token.reveal()), true)),
            (Way::Basic, Credential::Password { user, password }) => {
                Ok((header("Basic", &basic(user, password.reveal())), true))
            }
            (Way::Basic, _) => Ok((None, true)),
            (Way::Bearer { realm, service }, credential) => {
                let mut wanted: Vec<String> = scopes.to_vec();
                let slot = {
                    let mut session = session.lock().await;
                    wanted.extend(session.wider.get(&scopes.join(" ")).cloned());
                    wanted.sort();
                    wanted.dedup();
                    // Podman keeps credentials by path: tokens of one repository's are not another's.
                    let key = format!("{} {}", wanted.join(" "), credential.shown());
                    session.tokens.entry(key).or_default().clone()
                };
                let mut slot = slot.lock().await;
                if let Some(token) = slot.as_ref() {
                    let stale = refused.flatten().is_some_and(|refused| refused == token.header);
                    if !stale && token.until > Instant::now() {
                        return Ok((Some(token.header.clone()), false));
                    }
                }
                let token = self.fetch_token(repository, home, &realm, service.as_deref(), &wanted, credential).await?;
                let header = token.header.clone();
                *slot = Some(token);
                Ok((Some(header), true))
            }
        }
    }

    /// Learns from a 401. Returns whether another attempt makes sense; `fresh` says that the one before was made with
    /// what the registry had asked for.
    pub(super) async fn challenged(
        &self,
        repository: &Repository,
        home: &Url,
        answer: &Answer,
        ask: &Ask<'_>,
        fresh: bool,
    ) -> Result<bool, Failure> {
        let challenges = read(&answer.headers);
        let credential = self.keyring.find(repository).map_err(RegistryError::from)?.credential;
        let session = self.session(repository.host());
        let mut session = session.lock().await;
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service, scope, error } => Some((realm, service, scope, error.as_deref())),
            Challenge::Basic => None,
        });
        if let Some((realm, service, scope, error)) = bearer {
            let realm = self.check_realm(repository, home, realm).await?;
            let way = Way::Bearer { realm, service: service.clone() };
            let known = session.way.as_ref() == Some(&way);
            session.way = Some(way);
            // A token that ended between its server and the registry is no refusal of who asks (RFC 6750, section 3.1).
            let ended = error == Some("invalid_token") && !matches!(credential, Credential::RegistryToken(_));
            if let Some(scope) = scope.as_ref().filter(|scope| !covers(&ask.scopes, scope)) {
                let wider = session.wider.insert(ask.scopes.join(" "), scope.clone());
                return Ok(!fresh || ended || wider.as_ref() != Some(scope));
            }
            return Ok(!fresh || ended || !known);
        }
        if challenges.contains(&Challenge::Basic) {
            session.way = Some(Way::Basic);
            return Ok(!fresh && matches!(credential, Credential::Password { .. } | Credential::RegistryToken(_)));
        }
        Ok(false)
    }

    /// Asks the registry for nothing in particular, as somebody: does it accept the credential?
    pub async fn try_login(&self, registry: &str, credential: &Credential) -> Result<(), RegistryError> {
        let repository = Repository { registry: registry.to_owned(), path: String::new() };
        self.keyring.assume(&repository, credential.clone());
        let url = self.url(&repository, "").await?;
        let answer = self.ask(&repository, &Ask::new("log in", Method::GET, url, Vec::new())).await?;
        match answer.status.as_u16() {
            200 => Ok(()),
            _ => Err(self.failed(&repository, "log in", answer).await),
        }
    }

    /// The token server's URL, if it may be asked.
    async fn check_realm(&self, repository: &Repository, home: &Url, realm: &str) -> Result<Url, RegistryError> {
        let refused = |url: String, why: &str| RegistryError::Refused {
            registry: repository.registry.clone(),
            url,
            why: format!("as its token server: {why}"),
        };
        let url = home.join(realm).map_err(|_| refused("something that is not a URL".into(), "it cannot be parsed"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused(shown(&url), "it contains a user name"));
        }
        self.check_place(repository, home, &url).await.map_err(|error| match error {
            RegistryError::Refused { url, why, .. } => refused(url, &why),
            other => other,
        })?;
        Ok(url)
    }

    async fn fetch_token(
        &self,
        repository: &Repository,
        home: &Url,
        realm: &Url,
        service: Option<&str>,
        scopes: &[String],
        credential: &Credential,
    ) -> Result<Token, Failure> {
        let mut failures = 0;
        loop {
            let granted = match credential {
                Credential::IdentityToken { user, token } => {
                    let mut fields = vec![("grant_type", "refresh_token"), ("refresh_token", token.reveal())];
                    fields.extend([("client_id", "imgbuild"), ("service", service.unwrap_or_default())]);
                    let scope = scopes.join(" ");
                    fields.push(("scope", &scope));
                    match self.grant_by_post(repository, home, realm, &fields).await {
                        // Servers without OAuth2 know no such resource; some take the token as a password.
                        Ok(None) => {
                            let pair = Some((user.as_str(), token.reveal()));
                            self.grant_by_get(repository, home, realm, service, scopes, pair).await
                        }
                        Ok(Some(granted)) => Ok(granted),
                        Err(failure) => Err(failure),
                    }
                }
                Credential::Password { user, password } => {
                    let pair = Some((user.as_str(), password.reveal()));
                    self.grant_by_get(repository, home, realm, service, scopes, pair).await
                }
                _ => self.grant_by_get(repository, home, realm, service, scopes, None).await,
            };
            match granted {
                Ok(granted) => return self.token(repository, realm, granted).map_err(Failure::from),
                Err(Failure::Broken { why, after, .. }) => {
                    failures += 1;
                    if failures >= self.config.patience.failures {
                        let (what, url) = ("get a token".to_owned(), shown(realm));
                        return Err(RegistryError::Unreachable { what, url, why, failures }.into());
                    }
                    self.rest(repository, failures, &why, after).await?;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    fn token(&self, repository: &Repository, realm: &Url, granted: Granted) -> Result<Token, RegistryError> {
        let text = granted.token.or(granted.access_token).filter(|text| !text.is_empty());
        let header = text.as_deref().and_then(|text| header("Bearer", text));
        let (Some(text), Some(header)) = (text, header) else {
            return Err(RegistryError::Answer {
                what: format!("get a token for {repository}"),
                url: shown(realm),
                status: 200,
                why: "the token server's answer holds no token".into(),
            });
        };
        hide::remember(&text);
        let seconds = granted.expires_in.filter(|it| it.is_finite() && *it > 0.0).map_or(SHORTEST, |it| it as u64);
        // Renewed before it ends: a large upload that is refused at its end is sent twice.
        let lives = Duration::from_secs(seconds.clamp(1, 86_400)).mul_f64(0.8);
        Ok(Token { header, until: Instant::now() + lives })
    }

    async fn grant_by_get(
        &self,
        repository: &Repository,
        home: &Url,
        realm: &Url,
        service: Option<&str>,
        scopes: &[String],
        pair: Option<(&str, &str)>,
    ) -> Result<Granted, Failure> {
        let mut url = realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            for scope in scopes {
                query.append_pair("scope", scope);
            }
            if let Some((user, _)) = pair.filter(|(user, _)| !user.is_empty()) {
                query.append_pair("account", user);
            }
        }
        let mut ask = Ask::new("get a token", Method::GET, url, Vec::new()).header(ACCEPT, "application/json");
        if let Some((user, password)) = pair {
            ask.headers.extend(header("Basic", &basic(user, password)).map(|value| (AUTHORIZATION, value)));
        }
        match self.grant(repository, home, realm, ask).await? {
            Ok(granted) => Ok(granted),
            Err(answer) => Err(self.not_granted(repository, answer).await.into()),
        }
    }

    /// `None` where the server does not know this way.
    async fn grant_by_post(
        &self,
        repository: &Repository,
        home: &Url,
        realm: &Url,
        fields: &[(&str, &str)],
    ) -> Result<Option<Granted>, Failure> {
        let form: String = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let mut ask = Ask::new("get a token", Method::POST, realm.clone(), Vec::new())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json");
        ask.body = Outgoing::Bytes(Bytes::from(form));
        match self.grant(repository, home, realm, ask).await? {
            Ok(granted) => Ok(Some(granted)),
            Err(answer) if matches!(answer.status.as_u16(), 404 | 405 | 501) => Ok(None),
            Err(answer) => Err(self.not_granted(repository, answer).await.into()),
        }
    }

    async fn grant(
        &self,
        repository: &Repository,
        home: &Url,
        realm: &Url,
        ask: Ask<'_>,
    ) -> Result<Result<Granted, Answer>, Failure> {
        let mut answer = self.send(home, &ask.url, &ask, None, &self.progress()).await?;
        if retry::is_temporary(answer.status) {
            let after = answer.headers.get(reqwest::header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let after = after.and_then(|text| retry::retry_after(text, retry::now()));
            let why = self.reason(answer).await;
            return Err(Failure::Broken { why, after });
        }
        if answer.status.is_redirection() {
            return Err(RegistryError::Refused {
                registry: repository.registry.clone(),
                url: shown(realm),
                why: "as its token server: it passes credentials on to another place".into(),
            }
            .into());
        }
        if answer.status != StatusCode::OK {
            return Ok(Err(answer));
        }
        let body = self.body(&mut answer, LARGEST).await?.unwrap_or_default();
        match serde_json::from_slice::<Granted>(&body) {
            Ok(granted) => Ok(Ok(granted)),
            // What it sent may hold a token and is not repeated.
            Err(_) => Ok(Ok(Granted { token: None, access_token: None, expires_in: None })),
        }
    }

    async fn not_granted(&self, repository: &Repository, answer: Answer) -> RegistryError {
        let who = self.keyring.find(repository).map(|found| found.credential.shown()).unwrap_or_default();
        let at = shown(&answer.url);
        let why = format!("its token server {at} says: {}", self.reason(answer).await);
        let what = format!("give a token for {}", repository.path);
        RegistryError::Denied { registry: repository.registry.clone(), what, who, why }
    }
}

fn basic(user: &str, password: &str) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    hide::remember(&text);
    text
}

fn guard(credential: &Credential) {
    match credential {
        Credential::Anonymous => {}
        Credential::Password { password: secret, .. }
        | Credential::IdentityToken { token: secret, .. }
        | Credential::RegistryToken(secret) => hide::remember(secret.reveal()),
    }
}

/// A header that no log shows; `None` where the text cannot be one.
fn header(scheme: &str, text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("{scheme} {text}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn read(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(challenge::parse).collect()
}

/// Whether the scopes that were asked for allow what the registry wants.
fn covers(ours: &[String], theirs: &str) -> bool {
    theirs.split_ascii_whitespace().all(|theirs| {
        let Some((resource, actions)) = theirs.rsplit_once(':') else { return true };
        ours.iter().any(|ours| match ours.rsplit_once(':') {
            Some((own, allowed)) => {
                own == resource && actions.split(',').all(|action| allowed.split(',').any(|it| it == action))
            }
            None => false,
        })
    })
}

/// The scope that reading from a repository needs.
pub(super) fn pull_scope(repository: &Repository) -> String {
    format!("repository:{}:pull", repository.path)
}

/// The scope that writing to a repository needs.
pub(super) fn push_scope(repository: &Repository) -> String {
    format!("repository:{}:pull,push", repository.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_scopes_are_noticed() {
        let ours = ["repository:a/b:pull,push".to_owned(), "repository:c:pull".to_owned()];
        for (theirs, covered) in [
            ("repository:a/b:pull", true),
            ("repository:a/b:push,pull", true),
            ("repository:a/b:pull repository:c:pull", true),
            ("repository:a/b:delete", false),
            ("repository:c:push", false),
            ("registry:catalog:*", false),
            ("", true),
        ] {
            assert_eq!(covers(&ours, theirs), covered, "{theirs}");
        }
    }
}
