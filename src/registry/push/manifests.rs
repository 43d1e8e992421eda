//! Manifests: asked for and written, by digest or tag.

use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE};

use super::super::body::Outgoing;
use super::super::client::{Ask, Client};
use super::super::digest::AnyDigest;
use super::super::document::{Document, accept_of};
use super::super::error::RegistryError;
use super::super::reference::Repository;
use super::super::token::push_scope;

impl Client {
    /// Whether a repository has a manifest of this type, or of any where it is empty; asked with the right to push so that one token
    /// does for everything.
    pub(in crate::registry) async fn has_manifest(
        &self,
        repository: &Repository,
        digest: AnyDigest,
        media_type: &str,
    ) -> Result<bool, RegistryError> {
        let _permit = self.requests.acquire().await;
        let what = "look for a manifest";
        let url = self.url(repository, &format!("{}/manifests/{digest}", repository.path)).await?;
        let ask =
            Ask::new(what, Method::HEAD, url, vec![push_scope(repository)]).header(ACCEPT, &accept_of(media_type));
        let answer = self.ask(repository, &ask).await?;
        match answer.status.as_u16() {
            200 => Ok(true),
            // One of another type (406) is not this one.
            404 | 406 | 410 => Ok(false),
            _ => Err(self.failed(repository, what, answer).await),
        }
    }

    /// Writes a manifest under its digest or a tag. Returns the subject that the registry says it has noted.
    pub async fn put_manifest(
        &self,
        repository: &Repository,
        document: &Document,
        tag: Option<&str>,
    ) -> Result<Option<AnyDigest>, RegistryError> {
        let _permit = self.requests.acquire().await;
        let version = tag.map_or_else(|| document.digest.to_string(), str::to_owned);
        let what = if tag.is_some() { "write a tag" } else { "push a manifest" };
        let url = self.url(repository, &format!("{}/manifests/{version}", repository.path)).await?;
        let mut ask =
            Ask::new(what, Method::PUT, url, vec![push_scope(repository)]).header(CONTENT_TYPE, &document.media_type);
        ask.body = Outgoing::Bytes(document.bytes.clone());
        ask.slow = true;
        let answer = self.ask(repository, &ask).await?;
        if !answer.status.is_success() {
            return Err(self.failed(repository, what, answer).await);
        }
        let parsed = |name: &str| {
            answer
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .and_then(|text| text.parse::<AnyDigest>().ok())
        };
        let subject = parsed("oci-subject");
        match parsed("docker-content-digest") {
            Some(said) if said.algorithm() == document.digest.algorithm() && said != document.digest => {
                let why = format!("it stored the manifest as {said}");
                Err(RegistryError::Mismatch { registry: repository.registry.clone(), digest: document.digest, why })
            }
            _ => Ok(subject),
        }
    }
}
