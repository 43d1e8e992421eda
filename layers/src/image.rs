//! Images: a finished stage and how to run it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::path::ImagePath;
use crate::stage::{Location, Stage};

/// How Docker asks a container whether it is well (a Docker extension of the OCI config; Kubernetes ignores it).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Healthcheck {
    /// The command and its arguments, run without a shell.
    pub command: Vec<String>,
    /// Seconds between two checks.
    pub interval_seconds: u32,
    /// Seconds after which a check has failed.
    pub timeout_seconds: u32,
    /// Seconds in which failures do not count.
    pub start_period_seconds: u32,
    /// Failures in a row that make a container unhealthy.
    pub retries: u32,
}

/// The run-time configuration of an image (OCI image spec, config.md "config").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageConfig {
    /// Numeric `uid:gid`, so that Kubernetes' `runAsNonRoot` can check it; `None` keeps the base's.
    pub user: Option<String>,
    /// Working directory; `None` keeps the base's.
    pub workdir: Option<ImagePath>,
    /// Environment in the order of definition; a later value of the same name replaces the earlier one.
    pub env: Vec<(String, String)>,
    /// TCP ports that the image listens on.
    pub expose: BTreeSet<u16>,
    /// Mount points that hold data.
    pub volumes: BTreeSet<ImagePath>,
    /// The command that always runs; `None` keeps the base's.
    pub entrypoint: Option<Vec<String>>,
    /// Default arguments; `None` keeps the base's.
    pub cmd: Option<Vec<String>>,
    /// Labels; those of the command line come on top.
    pub labels: BTreeMap<String, String>,
    /// Health check.
    pub healthcheck: Option<Healthcheck>,
    /// The signal that stops a container, such as `SIGINT`.
    pub stop_signal: Option<String>,
}

/// A stage that is done, and how to run it.
#[derive(Debug, Clone)]
pub struct Image {
    pub(crate) stage: Stage,
    pub(crate) config: ImageConfig,
    pub(crate) layer_budget: u8,
    pub(crate) description: String,
    pub(crate) at: Location,
}

/// Layers an image may have, those of its base included, unless it says otherwise.
pub(crate) const DEFAULT_LAYER_BUDGET: u8 = 40;

impl Image {
    #[track_caller]
    pub(crate) fn of(stage: Stage) -> Image {
        Image {
            stage,
            config: ImageConfig::default(),
            layer_budget: DEFAULT_LAYER_BUDGET,
            description: String::new(),
            at: Location::caller(),
        }
    }

    /// The files of this image, to be taken from or extended by another definition.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// One line for `imgbuild list` and the label `org.opencontainers.image.description`.
    pub fn description(mut self, text: impl Into<String>) -> Image {
        self.description = text.into();
        self
    }

    /// Limits the number of layers, those of the base included; packages and wheels are grouped to fit. At most 125, which is what Docker takes.
    pub fn layer_budget(mut self, layers: u8) -> Image {
        self.layer_budget = layers;
        self
    }

    /// Runs as this numeric `uid:gid` (`USER`).
    pub fn user(mut self, user: impl Into<String>) -> Image {
        self.config.user = Some(user.into());
        self
    }

    /// Sets the working directory (`WORKDIR`). It is not created: add `dir(...)` where no layer brings it.
    pub fn workdir(mut self, path: ImagePath) -> Image {
        self.config.workdir = Some(path);
        self
    }

    /// Sets an environment variable (`ENV`).
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Image {
        let (name, value) = (name.into(), value.into());
        match self.config.env.iter_mut().find(|(known, _)| *known == name) {
            Some(slot) => slot.1 = value,
            None => self.config.env.push((name, value)),
        }
        self
    }

    /// Declares a TCP port (`EXPOSE`).
    pub fn expose(mut self, port: u16) -> Image {
        self.config.expose.insert(port);
        self
    }

    /// Declares a mount point for data (`VOLUME`).
    pub fn volume(mut self, path: ImagePath) -> Image {
        self.config.volumes.insert(path);
        self
    }

    /// Sets the command that always runs (`ENTRYPOINT`, exec form).
    pub fn entrypoint<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Image {
        self.config.entrypoint = Some(command.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the default arguments (`CMD`, exec form).
    pub fn cmd<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Image {
        self.config.cmd = Some(command.into_iter().map(Into::into).collect());
        self
    }

    /// Sets a label (`LABEL`).
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Image {
        self.config.labels.insert(name.into(), value.into());
        self
    }

    /// Sets the health check (`HEALTHCHECK`, exec form): every 30 s, 5 s each, 3 failures, unless changed by
    /// [`healthcheck_with`](Image::healthcheck_with).
    pub fn healthcheck<S: Into<String>>(self, command: impl IntoIterator<Item = S>) -> Image {
        self.healthcheck_with(Healthcheck {
            command: command.into_iter().map(Into::into).collect(),
            interval_seconds: 30,
            timeout_seconds: 5,
            start_period_seconds: 30,
            retries: 3,
        })
    }

    /// Sets the health check with its times.
    pub fn healthcheck_with(mut self, healthcheck: Healthcheck) -> Image {
        self.config.healthcheck = Some(healthcheck);
        self
    }

    /// Sets the signal that stops a container (`STOPSIGNAL`).
    pub fn stop_signal(mut self, signal: impl Into<String>) -> Image {
        self.config.stop_signal = Some(signal.into());
        self
    }
}
