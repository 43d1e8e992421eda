//! Where images meet the services around them: the compose files, the Kubernetes manifests and the one schema of
//! environment variables, read, validated, pinned and drawn.
//!
//! The files under `deployments/docker` and `deployments/kubernetes` are the truth; this crate never generates a
//! service. It reads what Docker and Kubernetes read, by the same rules ([`compose`] merges and interpolates as Docker
//! Compose does and is judged by it in the tests), and answers questions about it.
//!
//! | module | answers |
//! | --- | --- |
//! | [`compose`] | what is the project after includes, overrides and variables? |
//! | [`env`](mod@env) | are the settings complete, well-formed and not a known default? |
//! | [`validate`] | does everything that is named exist, and does every service keep the rules? |
//! | [`config`] | do the services' own configuration files say what the services understand? |
//! | [`kubernetes`] | do rendered manifests keep the same rules, and does the network equal compose's? |
//! | [`graph`] | who waits for whom, who reaches whom? |
//! | [`schema`] | does a value fit the Compose specification's JSON schema? |
//! | [`render`] | which exact images, as an override for compose and for kustomize? |
//! | [`backup`] | in which order is the data saved and put back? |
//!
//! It opens files only below the folder that it is given, asks no network and reads no environment.

pub mod backup;
pub mod compose;
pub mod config;
pub mod env;
pub mod graph;
pub mod kubernetes;
mod probe;
mod problem;
pub mod render;
pub mod schema;
pub mod validate;
mod yaml;

pub use problem::Problem;
pub use yaml::{YamlError, documents, value};

/// The environments that the compose folder knows, each an entry file of that name.
pub const ENVIRONMENTS: [&str; 3] = ["dev", "prod", "test"];

/// The images of the catalogue `images/stack`: what the test stack runs in place of images that come from elsewhere.
pub const STAND_INS: [&str; 6] = ["etcd", "litellm", "milvus", "ollama", "postgres", "s3"];
