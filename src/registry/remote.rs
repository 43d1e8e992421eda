//! The synchronous edge: the rest of the program waits, here things happen at once.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use cache::{Blob, Store};
use layers::Platform;

use super::ahead::{Ahead, Announced};
use super::auth::{Credential, Found};
use super::client::Client;
use super::config::ClientConfig;
use super::document::Document;
use super::error::RegistryError;
use super::pull::{Glimpse, Pulled};
use super::push::{Planned, Pushed};
use super::reference::{Reference, Repository};
use super::supply::{Delivery, Supply};
use crate::observe::Observer;

/// All registries. Cheap until it is used.
#[derive(Debug)]
pub struct Registries {
    client: Client,
    runtime: OnceLock<Result<tokio::runtime::Runtime, String>>,
}

impl Drop for Registries {
    fn drop(&mut self) {
        // Nobody waits for its threads: what they did for somebody is done.
        if let Some(Ok(runtime)) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Registries {
    /// Registries that are not connected to yet.
    pub fn new(config: ClientConfig) -> Registries {
        Registries { client: Client::new(config), runtime: OnceLock::new() }
    }

    /// The client, for what is not offered here.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Waits for something that the client does.
    pub fn wait<T>(&self, work: impl Future<Output = Result<T, RegistryError>>) -> Result<T, RegistryError> {
        let runtime = self.runtime.get_or_init(|| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(2).enable_all().build().map_err(|error| error.to_string())
        });
        match runtime {
            Ok(runtime) => runtime.block_on(work),
            Err(why) => Err(RegistryError::Setup(why.clone())),
        }
    }

    /// Finds the credentials of a repository: before the long work, so that a broken helper is noticed early.
    pub fn credentials(&self, repository: &Repository) -> Result<Found, RegistryError> {
        Ok(self.client.keyring().find(repository)?)
    }

    /// Asks every source for the credentials of a repository, past those that are broken, up to the first that answers.
    pub fn explain(&self, repository: &Repository) -> Result<Found, RegistryError> {
        Ok(self.client.keyring().explain(repository)?)
    }

    /// Pushes images; see [`Client::push`].
    pub fn push(
        &self,
        deliveries: &[Delivery],
        supply: &Supply,
        observer: &dyn Observer,
    ) -> Result<Vec<Pushed>, RegistryError> {
        self.wait(self.client.push(deliveries, supply, observer))
    }

    /// Finds out whether somebody may push to these repositories, and does what can be done ahead; see [`Client::may_push`].
    pub fn may_push(&self, repositories: &BTreeMap<&Repository, Ahead>) -> Result<(), RegistryError> {
        let asked = repositories.iter().map(|(repository, ahead)| self.client.may_push(repository, ahead));
        self.wait(futures_util::future::try_join_all(asked)).map(drop)
    }

    /// Says that a layer will be sent; see [`Client::announce`].
    pub fn announce(&self, store: &Store, repository: &Repository, layer: Blob) -> Option<Announced> {
        self.client.announce(store, repository, layer)
    }

    /// Sends a layer before it is known what will be pushed; see [`Client::send_ahead`].
    pub fn send_ahead(&self, announced: Announced, store: &Store, observer: &dyn Observer) {
        let _ = self.wait(async {
            self.client.send_ahead(announced, store, observer).await;
            Ok(())
        });
    }

    /// Ends what is sent ahead and not there yet: what a push that succeeded did not wait for, nobody needs.
    pub fn stop_ahead(&self) {
        self.client.stop_ahead();
    }

    /// Ends the uploads that were begun and not needed; see [`Client::end_uploads`].
    pub fn end_uploads(&self) {
        let _ = self.wait(async {
            self.client.end_uploads(None).await;
            Ok(())
        });
    }

    /// What a push would do; see [`Client::plan_push`].
    pub fn plan_push(
        &self,
        deliveries: &[Delivery],
        supply: &Supply,
        observer: &dyn Observer,
    ) -> Result<Vec<Planned>, RegistryError> {
        self.wait(self.client.plan_push(deliveries, supply, observer))
    }

    /// Reads a manifest; see [`Client::manifest`].
    pub fn manifest(&self, reference: &Reference) -> Result<Document, RegistryError> {
        self.wait(self.client.manifest(reference))
    }

    /// Asks for a manifest without its bytes; see [`Client::glimpse`].
    pub fn glimpse(&self, reference: &Reference) -> Result<Option<Glimpse>, RegistryError> {
        self.wait(self.client.glimpse(reference))
    }

    /// Reads an image's documents; see [`Client::image`].
    pub fn image(&self, reference: &Reference, platform: Platform) -> Result<Pulled, RegistryError> {
        self.wait(self.client.image(reference, platform))
    }

    /// Tries whether a registry accepts a credential.
    pub fn try_login(&self, registry: &str, credential: &Credential) -> Result<(), RegistryError> {
        self.wait(self.client.try_login(registry, credential))
    }
}
