//! Images into the engines of this machine.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::archive::{is_zstd, write_archive, write_plain};
use super::docker::{known_layers, left_out};
use super::{Held, PlaceError, Reach};
use crate::observe::Event;
use crate::registry::AnyDigest;

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// Docker, by its API.
    Docker,
    /// Podman, by its command.
    Podman,
    /// containerd, by `ctr`.
    Containerd,
}

/// A single-platform image and the name that it gets.
#[derive(Debug)]
pub struct Loading {
    /// The image.
    pub held: Held,
    /// Its name in the engine, with a tag.
    pub name: String,
}

/// What was done for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its name in the engine.
    pub name: String,
    /// The digest of its configuration, by which engines know it.
    pub id: AnyDigest,
    /// What was done, and why.
    pub way: String,
}

/// Loads images; what is there is not sent.
pub fn load(reach: &Reach<'_>, into: Into, images: &[Loading]) -> Result<Vec<Loaded>, PlaceError> {
    let mut chains = None;
    images
        .iter()
        .map(|image| {
            let blobs = image.held.bundle.blobs.last().map(Vec::as_slice).unwrap_or_default();
            let Some(config) = blobs.first() else {
                let why = "it has no configuration".into();
                return Err(PlaceError::Content { place: image.name.clone(), why });
            };
            let way = match into {
                Into::Docker => load_docker(reach, image, &mut chains)?,
                Into::Podman => load_podman(reach, image)?,
                Into::Containerd => load_containerd(reach, image)?,
            };
            reach.observer.on(Event::Note(&format!("{}: {way}", image.name)));
            Ok(Loaded { name: image.name.clone(), id: config.digest, way })
        })
        .collect()
}

fn load_docker(
    reach: &Reach<'_>,
    image: &Loading,
    chains: &mut Option<Option<Vec<Vec<String>>>>,
) -> Result<String, PlaceError> {
    let (docker, registries) = (reach.docker, reach.registries);
    let blobs = &image.held.bundle.blobs[image.held.bundle.blobs.len() - 1];
    // The classic store names an image by its configuration, containerd's by its manifest.
    for id in [blobs[0].digest, image.held.top().digest] {
        let Some(found) = docker.image(registries, &id.to_string())? else { continue };
        let names = found["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str);
        if names.into_iter().any(|name| name == image.name) {
            return Ok("it is there already".into());
        }
        docker.tag(registries, &id.to_string(), &image.name)?;
        return Ok("it is there already and got another name".into());
    }
    let layers: Vec<AnyDigest> = blobs[1..].iter().map(|blob| blob.digest).collect();
    if chains.is_none() {
        *chains = Some(match docker.is_containerd(registries)? {
            true => None,
            false => Some(docker.chains(registries)?),
        });
    }
    let (known, way) = match chains.as_ref().and_then(Option::as_ref) {
        None => (0, format!("sent whole ({} layers), because the engine keeps images with containerd", layers.len())),
        Some(chains) => {
            let known = known_layers(&diff_ids(reach, image)?, chains);
            let others = if known > 0 { ", the engine has the others" } else { "" };
            (known, format!("sent {} of {} layers{others}", layers.len() - known, layers.len()))
        }
    };
    let skipped = left_out(&layers, known);
    reach.fetch(&image.held, &skipped)?;
    let old = match blobs[1..].iter().any(|layer| is_zstd(layer) && !skipped.contains(&layer.digest)) {
        true => docker.without_zstd(registries)?,
        false => None,
    };
    let way = match &old {
        Some(version) => format!("{way}; unpacked, because Docker {version} reads no zstd"),
        None => way,
    };
    let ids = if old.is_some() { diff_ids(reach, image)? } else { Vec::new() };
    docker.load(registries, |pipe| {
        let written = match old {
            Some(_) => write_plain(&image.held, Some(&image.name), &skipped, &ids, pipe),
            None => write_archive(&image.held, Some(&image.name), &skipped, pipe),
        };
        written
            .and_then(|mut pipe| pipe.flush().map_err(|source| PlaceError::File { path: "the archive".into(), source }))
    })?;
    if let Some(Some(chains)) = chains {
        chains.push(diff_ids(reach, image)?);
    }
    match docker.image(registries, &image.name)? {
        Some(_) => Ok(way),
        None => Err(PlaceError::Engine {
            engine: "docker".into(),
            why: format!("it took `{}` and does not have it", image.name),
        }),
    }
}

fn diff_ids(reach: &Reach<'_>, image: &Loading) -> Result<Vec<String>, PlaceError> {
    let config = &image.held.bundle.blobs[image.held.bundle.blobs.len() - 1][0];
    if let Some(from) = image.held.supply.origins.get(&config.digest).and_then(|it| it.first()) {
        let client = reach.registries.client();
        reach.registries.wait(client.blob_to_store(from, config, reach.store, reach.observer))?;
    }
    let config = image.held.config()?;
    let ids = config.pointer("/rootfs/diff_ids").and_then(Value::as_array);
    Ok(ids.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect())
}

fn load_podman(reach: &Reach<'_>, image: &Loading) -> Result<String, PlaceError> {
    let config = image.held.bundle.blobs[image.held.bundle.blobs.len() - 1][0].digest;
    let id = config.hex();
    let known = run("podman", &["image", "exists", &id], |_| Ok(()));
    if known.is_ok() {
        run("podman", &["tag", &id, &image.name], |_| Ok(()))?;
        return Ok("it is there already".into());
    }
    reach.fetch(&image.held, &BTreeSet::new())?;
    run("podman", &["load", "--quiet"], |out| {
        write_archive(&image.held, Some(&image.name), &BTreeSet::new(), out).map(drop)
    })?;
    Ok("sent whole in one stream, which is what podman takes".into())
}

fn load_containerd(reach: &Reach<'_>, image: &Loading) -> Result<String, PlaceError> {
    let full =
        image.name.parse::<crate::registry::Reference>().map_err(crate::registry::RegistryError::from)?.to_string();
    let listed = run_for("ctr", &["images", "list", &format!("name=={full}")])?;
    if listed.contains(&image.held.top().digest.to_string()) {
        return Ok("it is there already".into());
    }
    reach.fetch(&image.held, &BTreeSet::new())?;
    run("ctr", &["images", "import", "-"], |out| {
        write_archive(&image.held, Some(&image.name), &BTreeSet::new(), out).map(drop)
    })?;
    Ok("sent whole in one stream, which is what containerd takes".into())
}

/// Runs a command whose input is written while it runs.
fn run(
    program: &str,
    words: &[&str],
    write: impl FnOnce(&mut dyn Write) -> Result<(), PlaceError>,
) -> Result<(), PlaceError> {
    let failed = |why: String| PlaceError::Engine { engine: program.into(), why };
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(format!("it cannot be run: {error}")))?;
    let errors = child.stderr.take();
    let said = std::thread::Builder::new().spawn(move || {
        let mut text = String::new();
        let _ = errors.map(|mut errors| std::io::Read::read_to_string(&mut errors, &mut text));
        text
    });
    let said = said.map_err(|error| {
        let _ = child.kill();
        let _ = child.wait();
        failed(format!("no thread can be had: {error}"))
    })?;
    let written = match child.stdin.take() {
        Some(stdin) => {
            let mut out = BufWriter::with_capacity(256 << 10, stdin);
            write(&mut out)
                .and_then(|()| out.flush().map_err(|source| PlaceError::File { path: program.into(), source }))
        }
        None => Ok(()),
    };
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    let said = said.join().unwrap_or_default();
    match status.success() {
        true => written,
        false => Err(failed(format!("{status}: {}", said.trim().chars().take(500).collect::<String>()))),
    }
}

fn run_for(program: &str, words: &[&str]) -> Result<String, PlaceError> {
    let failed = |why: String| PlaceError::Engine { engine: program.into(), why };
    let done = Command::new(program).args(words).stdin(Stdio::null()).output();
    let done = done.map_err(|error| failed(format!("it cannot be run: {error}")))?;
    match done.status.success() {
        true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        false => Err(failed(format!("{}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim()))),
    }
}
