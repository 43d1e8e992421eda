//! Referrers: artifacts that say that they are about an image (distribution specification, "Listing Referrers").
//!
//! A registry that knows referrers notes the subject itself and answers `OCI-Subject`. For others the client keeps the
//! list in an index under the tag `sha256-<hex>`. Nothing in the specification makes that update atomic, so it is looked
//! at again after it was written, twice: at once, and when writers that had read the old list must be done. Whoever
//! misses its entry adds it again.

use std::time::Duration;

use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, LINK};
use serde_json::json;

use super::client::{Ask, Client};
use super::digest::AnyDigest;
use super::document::{self, Descriptor, Document};
use super::error::RegistryError;
use super::reference::Repository;
use super::retry;
use super::token::pull_scope;

/// Pages of a list that are read.
const PAGES: usize = 100;
/// How often a lost entry is added again.
const ROUNDS: u32 = 30;

/// The tag under which a registry without the API keeps the referrers of an image.
pub fn fallback_tag(subject: &AnyDigest) -> String {
    // A tag holds 128 characters: a digest of SHA-512 is cut, as the specification has it.
    format!("{}-{}", subject.algorithm(), subject.hex()).chars().take(128).collect()
}

impl Client {
    /// The referrers of an image, of one kind where `artifact_type` names one.
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: &AnyDigest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let found = match self.listed(repository, subject, artifact_type).await? {
            Some(found) => found,
            None => self.fallback(repository, subject).await?.unwrap_or_default(),
        };
        // Registries may filter, and some fill `artifactType` with what they like; the kind is compared here too.
        let fits = |it: &Descriptor| artifact_type.is_none_or(|wanted| it.artifact_type.as_deref() == Some(wanted));
        Ok(found.into_iter().filter(fits).collect())
    }

    /// The list of the API; `None` where the registry does not have it.
    async fn listed(
        &self,
        repository: &Repository,
        subject: &AnyDigest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let what = "list referrers";
        let mut url = self.url(repository, &format!("{}/referrers/{subject}", repository.path)).await?;
        if let Some(wanted) = artifact_type {
            url.query_pairs_mut().append_pair("artifactType", wanted);
        }
        let home = self.url(repository, "").await?;
        let mut all = Vec::new();
        for _ in 0..PAGES {
            let ask = Ask::new(what, Method::GET, url.clone(), vec![pull_scope(repository)])
                .header(ACCEPT, layers::oci::INDEX);
            let mut answer = self.ask(repository, &ask).await?;
            let media_type =
                answer.headers.get(CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned();
            match answer.status.as_u16() {
                200 if media_type.starts_with(layers::oci::INDEX) => {}
                // Anything but an index is a registry that does not know what it was asked.
                200 | 400 | 404 | 405 | 501 => return Ok(None),
                _ => return Err(self.failed(repository, what, answer).await),
            }
            let next = answer.headers.get(LINK).and_then(|it| it.to_str().ok()).and_then(next_page);
            let wrong = |why: String| RegistryError::Document { what: format!("list of referrers of {subject}"), why };
            let bytes = self.body(&mut answer, document::LARGEST).await.ok().flatten();
            let bytes = bytes.ok_or_else(|| wrong("it broke off".into()))?;
            all.extend(document::read(&bytes, layers::oci::INDEX).map_err(wrong)?.manifests);
            match next.and_then(|next| answer.url.join(&next).ok()) {
                Some(next) => {
                    self.check_place(repository, &home, &next).await?;
                    url = next;
                }
                None => break,
            }
        }
        Ok(Some(all))
    }

    /// The list under the fallback tag; `None` where there is none.
    async fn fallback(
        &self,
        repository: &Repository,
        subject: &AnyDigest,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let tag = fallback_tag(subject);
        let found = match self.manifest(&repository.tagged(&tag)).await {
            Ok(found) => found,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let wrong = |why: String| RegistryError::Document { what: format!("{repository}:{tag}"), why };
        let said = found.read().map_err(wrong)?;
        match said.is_index {
            true => Ok(Some(said.manifests)),
            // Overwriting what somebody else put there would destroy it.
            false => Err(wrong("it is no index, so it cannot list referrers; remove that tag".into())),
        }
    }

    /// Writes a manifest with a `subject` and sees to it that it is listed. Its blobs are there already.
    pub async fn attach(&self, repository: &Repository, document: &Document) -> Result<(), RegistryError> {
        let wrong = |why: String| RegistryError::Document { what: document.digest.to_string(), why };
        let said = document.read().map_err(wrong)?;
        let subject = said.subject.ok_or_else(|| wrong("it has no subject".into()))?.digest;
        if self.put_manifest(repository, document, None).await? == Some(subject) {
            return Ok(());
        }
        // Not every registry that has the API answers `OCI-Subject`.
        if self
            .listed(repository, &subject, None)
            .await?
            .is_some_and(|all| all.iter().any(|it| it.digest == document.digest))
        {
            return Ok(());
        }
        let config = said.has_config.then(|| said.blobs.first().map(|config| config.media_type.clone())).flatten();
        let entry = Descriptor {
            artifact_type: said.artifact_type.or(config),
            annotations: said.annotations,
            ..document.descriptor()
        };
        self.list_by_tag(repository, &subject, &entry).await
    }

    async fn list_by_tag(
        &self,
        repository: &Repository,
        subject: &AnyDigest,
        entry: &Descriptor,
    ) -> Result<(), RegistryError> {
        let tag = fallback_tag(subject);
        let has = |list: &Option<Vec<Descriptor>>| list.iter().flatten().any(|it| it.digest == entry.digest);
        for round in 0..ROUNDS {
            let began = std::time::Instant::now();
            let mut list = self.fallback(repository, subject).await?;
            if !has(&list) {
                let mut manifests = list.take().unwrap_or_default();
                manifests.push(entry.clone());
                let index = json!({"schemaVersion": 2, "mediaType": layers::oci::INDEX, "manifests": manifests});
                let index = Document::json(layers::oci::INDEX, &index);
                self.put_manifest(repository, &index, Some(&tag)).await?;
                if !has(&self.fallback(repository, subject).await?) {
                    tokio::time::sleep(jitter(round)).await;
                    continue;
                }
            }
            // Another writer may have read the list before ours was in it, and not have written yet.
            tokio::time::sleep(began.elapsed() * 2 + jitter(round)).await;
            if has(&self.fallback(repository, subject).await?) {
                return Ok(());
            }
        }
        let why = "others change the list faster than an entry can be added".to_owned();
        Err(RegistryError::Document { what: format!("{repository}:{tag}"), why })
    }
}

fn jitter(round: u32) -> Duration {
    Duration::from_millis(20 + 30 * u64::from(round.min(10))).mul_f64(0.5 + retry::random())
}

/// The target of `Link: <...>; rel="next"` (RFC 8288).
fn next_page(header: &str) -> Option<String> {
    header.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let next = parameters.split(';').any(|it| matches!(it.trim(), "rel=next" | "rel=\"next\""));
        next.then(|| target.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_links_are_as_the_specification_has_them() {
        let digest = AnyDigest::from(layers::Digest::of(b""));
        assert_eq!(fallback_tag(&digest), "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let long: AnyDigest = format!("sha512:{}", "0".repeat(128)).parse().expect("parses");
        assert_eq!(fallback_tag(&long).len(), 128);
        assert_eq!(next_page("</v2/a?n=2>; rel=\"next\""), Some("/v2/a?n=2".into()));
        assert_eq!(next_page("</x>; rel=\"prev\", </y>; rel=next"), Some("/y".into()));
        assert_eq!(next_page("nonsense"), None);
    }
}
