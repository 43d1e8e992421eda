//! In which order the data is saved and put back.
//!
//! The plan follows from the labels of the volumes (`obelisk.backup`). Milvus keeps metadata in etcd that refers to
//! objects in the bucket and to files of its own: the three are only worth something when taken together, so whoever
//! writes is stopped first. PostgreSQL is dumped while it runs: a dump is one consistent moment by itself.

use std::fmt::Write as _;

use thiserror::Error;

use crate::compose::Project;

/// How a volume is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// `pg_dump --format=custom` and `pg_restore`.
    PgDump,
    /// `etcdctl snapshot save` and `etcdutl snapshot restore`.
    EtcdSnapshot,
    /// `mc mirror` of every bucket.
    Mirror,
    /// The volume's files as a tar archive.
    Tar,
}

/// A volume that is saved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    /// How.
    pub method: Method,
    /// The volume.
    pub volume: String,
    /// The service that owns its data.
    pub service: String,
}

impl Item {
    /// The file or folder that it becomes in a backup.
    pub fn file(&self) -> String {
        let suffix = match self.method {
            Method::PgDump => ".dump",
            Method::EtcdSnapshot => ".db",
            Method::Mirror => "",
            Method::Tar => ".tar",
        };
        format!("{}{suffix}", self.volume)
    }
}

/// A backup of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The project's name.
    pub project: String,
    /// Its entry file.
    pub entry: String,
    /// What is saved.
    pub items: Vec<Item>,
    /// Volumes that are not saved: they can be made again, or belong to a profile.
    pub left_out: Vec<String>,
    /// Services that write to what is copied as files, in the order in which they are stopped.
    pub writers: Vec<String>,
    /// An image that is there anyway; helper containers are made of it and never started.
    pub helper_image: String,
}

/// A project whose data cannot be saved by the rules.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BackupError {
    /// The label is missing or unknown.
    #[error("volume `{volume}`: `{label}` is not a way to save it (label obelisk.backup)")]
    Label {
        /// The volume.
        volume: String,
        /// The label's value.
        label: String,
    },
    /// No service mounts it.
    #[error("volume `{volume}`: no service mounts it")]
    Unmounted {
        /// The volume.
        volume: String,
    },
}

/// The plan of a project.
pub fn plan(project: &Project) -> Result<Plan, BackupError> {
    let services = project.services();
    let (mut items, mut left_out) = (Vec::new(), Vec::new());
    for (volume, value) in project.top("volumes") {
        let label = value.pointer("/labels/obelisk.backup").and_then(|label| label.as_str()).unwrap_or_default();
        let method = match label {
            "pg_dump" => Method::PgDump,
            "etcd-snapshot" => Method::EtcdSnapshot,
            "s3-mirror" => Method::Mirror,
            "tar" => Method::Tar,
            "none" => {
                left_out.push(volume);
                continue;
            }
            other => return Err(BackupError::Label { volume, label: other.to_owned() }),
        };
        // A service that runs in any case counts before one of a profile, and both before jobs.
        let mounting = services.values().filter(|it| it.mounts.iter().any(|mount| mount.source == volume));
        let Some(owner) = mounting.min_by_key(|service| (service.is_job(), !service.profiles.is_empty())) else {
            // Development mounts a folder of the host in its place.
            if services.values().flat_map(|service| &service.mounts).any(|mount| mount.bind) {
                left_out.push(volume);
                continue;
            }
            return Err(BackupError::Unmounted { volume });
        };
        // What belongs to a profile alone is saved by whoever runs it.
        if owner.profiles.is_empty() {
            items.push(Item { method, volume, service: owner.name.clone() });
        } else {
            left_out.push(volume);
        }
    }
    items.sort();
    // Whoever writes to Milvus, then Milvus; etcd and the object store stay up, they are asked for their data.
    let writers = ["open-webui", "rag", "milvus"];
    let is_profile_only = |name: &str| services.get(name).is_some_and(|service| !service.profiles.is_empty());
    Ok(Plan {
        project: project.name.clone(),
        entry: project.files.first().map(|path| path.display().to_string()).unwrap_or_default(),
        items,
        left_out,
        writers: writers
            .into_iter()
            .filter(|name| services.contains_key(*name) && !is_profile_only(name))
            .map(str::to_owned)
            .collect(),
        helper_image: services.get("init").map(|service| service.image.clone()).unwrap_or_default(),
    })
}

impl Plan {
    /// The plan for people.
    pub fn text(&self, restore: bool) -> String {
        let mut out = String::new();
        let (verb, arrow) = if restore { ("restore", "<-") } else { ("back up", "->") };
        let _ = writeln!(out, "{verb} {}:", self.project);
        let mut step = 1..;
        let mut line = |out: &mut String, text: String| {
            let _ = writeln!(out, "{:>3}. {text}", step.next().unwrap_or_default());
        };
        for item in self.items.iter().filter(|item| item.method == Method::PgDump) {
            line(&mut out, format!("{} {arrow} {} ({})", item.volume, item.file(), how(item.method, restore)));
        }
        line(&mut out, format!("stop {}", self.writers.join(", ")));
        for item in self.items.iter().filter(|item| item.method != Method::PgDump) {
            line(&mut out, format!("{} {arrow} {} ({})", item.volume, item.file(), how(item.method, restore)));
        }
        line(&mut out, format!("start {} again", self.writers.join(", ")));
        if restore {
            line(&mut out, "run init: what is not saved is made of what is".to_owned());
        }
        let _ = writeln!(
            out,
            "not saved, because it is made again when needed or belongs to a profile: {}",
            self.left_out.join(", ")
        );
        out
    }

    /// A bash script that saves everything into the folder that is its first argument.
    pub fn backup_script(&self) -> String {
        let mut out = self.head("backup", "saves the data of");
        out.push_str(
            "[ ! -e \"$folder/complete\" ] || { echo \"error: $folder already holds a backup\" >&2; exit 1; }\n\
             mkdir -p \"$folder\"\nfolder=$(cd \"$folder\" && pwd)\nchmod 0700 \"$folder\"\n\n",
        );
        for item in &self.items {
            if item.method == Method::PgDump {
                let _ = write!(
                    out,
                    "say '{volume}: dump while it runs'\n\
                     compose exec -T {service} sh -c 'pg_dump -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" --format=custom' \
                     > \"$folder/{file}.part\"\nmv \"$folder/{file}.part\" \"$folder/{file}\"\n\n",
                    volume = item.volume,
                    service = item.service,
                    file = item.file()
                );
            }
        }
        out.push_str(&self.while_nobody_writes(|volume, service, file, method| match method {
            Method::EtcdSnapshot => format!(
                "say '{volume}: snapshot'\nbeside {service} etcdctl --endpoints=http://{service}:2379 snapshot save /backup/{file}\n\n"
            ),
            Method::Mirror => format!(
                "say '{volume}: mirror of every bucket'\nrm -rf \"$folder/{file}\"\nmkdir -p \"$folder/{file}\"\n\
                 beside {service} sh -ec '{LOGIN}mc --config-dir /tmp/mc mirror --overwrite --remove store /backup/{file}\n\
                 {EACH_BUCKET}mkdir -p \"/backup/{file}/$name\"; done'\n\n"
            ),
            _ => format!("say '{volume}: files'\nsave {volume} \"$folder/{file}\"\n\n"),
        }));
        out.push_str(
            "(cd \"$folder\" && find . -type f ! -name SHA256SUMS ! -name complete -print0 | sort -z | xargs -0 -r sha256sum > SHA256SUMS)\n\
             date -u +%Y-%m-%dT%H:%M:%SZ > \"$folder/complete\"\nsay \"complete: $folder\"\n",
        );
        out
    }

    /// A bash script that puts everything back from the folder that is its first argument.
    pub fn restore_script(&self) -> String {
        let mut out = self.head("restore", "puts back the data of");
        out.push_str(
            "[ -e \"$folder/complete\" ] || { echo \"error: $folder holds no complete backup\" >&2; exit 1; }\n\
             folder=$(cd \"$folder\" && pwd)\nsay 'check every file'\n(cd \"$folder\" && sha256sum --quiet --check SHA256SUMS >&2)\n\n",
        );
        for item in &self.items {
            if item.method == Method::PgDump {
                let clients = ["litellm"];
                let _ = write!(
                    out,
                    "say '{volume}: into an empty database'\ncompose stop {clients}\n\
                     running {service}\n\
                     compose exec -T {service} sh -c 'dropdb -U \"$POSTGRES_USER\" --if-exists --force --maintenance-db=template1 \"$POSTGRES_DB\" \
                     && createdb -U \"$POSTGRES_USER\" --maintenance-db=template1 --template=template0 \"$POSTGRES_DB\"'\n\
                     compose exec -T {service} sh -c 'pg_restore -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" --exit-on-error --no-owner' \
                     < \"$folder/{file}\"\nrunning {clients}\n\n",
                    volume = item.volume,
                    service = item.service,
                    file = item.file(),
                    clients = clients.join(" ")
                );
            }
        }
        out.push_str(&self.while_nobody_writes(|volume, service, file, method| match method {
            Method::EtcdSnapshot => format!(
                "say '{volume}: a new data folder from the snapshot'\ncompose stop {service}\nempty {volume}\n\
                 inside {service} {file} etcdutl snapshot restore /backup/{file} --data-dir /etcd/data\n\
                 running {service}\n\n"
            ),
            Method::Mirror => format!(
                "say '{volume}: every bucket, and no other'\nbeside {service} sh -ec '{LOGIN}for bucket in /backup/{file}/*/; do \
                 [ -d \"$bucket\" ] || continue; name=$(basename \"$bucket\"); mc --config-dir /tmp/mc mb --ignore-existing \"store/$name\"; \
                 mc --config-dir /tmp/mc mirror --overwrite --remove \"$bucket\" \"store/$name\"; done\n\
                 {EACH_BUCKET}[ -d \"/backup/{file}/$name\" ] || mc --config-dir /tmp/mc rb --force \"store/$name\"; done'\n\n"
            ),
            _ => format!("say '{volume}: files'\nempty {volume}\nload {volume} \"$folder/{file}\"\n\n"),
        }));
        // What is not saved is made of what is: the tokens that were put back.
        out.push_str(
            "say 'what init makes of it'\ncompose run --rm -T --no-deps init >&2\nsay \"restored from $folder\"\n",
        );
        out
    }

    /// The part of a script in which the writers are stopped: `step` says what is done with each volume that is not dumped,
    /// given its name, its service, its file in the backup and its method.
    fn while_nobody_writes(&self, step: impl Fn(&str, &str, &str, Method) -> String) -> String {
        // In the order in which they wait for each other.
        let started: Vec<String> = self.writers.iter().rev().map(|writer| format!("running {writer}")).collect();
        let mut out = format!(
            "say 'stop the writers'\n# Whatever happens from here on, they are started again.\n\
             trap '{}' EXIT\ncompose stop {}\n\n",
            started.join("; "),
            self.writers.join(" ")
        );
        for item in self.items.iter().filter(|item| item.method != Method::PgDump) {
            out.push_str(&step(&item.volume, &item.service, &item.file(), item.method));
        }
        let _ = write!(out, "say 'start them again'\ntrap - EXIT\n{}\n\n", started.join("\n"));
        out
    }

    fn head(&self, name: &str, verb: &str) -> String {
        format!(
            r#"#!/bin/bash
# Made by `imgbuild deploy {name}`: {verb} {project}. Run it where the compose files are.
#   {name}.sh FOLDER
set -euo pipefail
umask 077
folder=${{1:?usage: {name}.sh FOLDER}}
entry=${{COMPOSE_ENTRY:-{entry}}}
say() {{ echo "$(date -u +%H:%M:%S) $*" >&2; }}
compose() {{ docker compose -f "$entry" "$@"; }}
# Volumes are called after the project, and COMPOSE_PROJECT_NAME or `.env` may name another one than the file does.
project=$(compose config | sed -n 's/^name: //p')
# volume NAME: the volume of the project; one that is not there would be made, empty, by whoever mounts it.
volume() {{
  docker volume inspect "${{project}}_$1" > /dev/null || {{ echo "error: there is no volume ${{project}}_$1" >&2; exit 1; }}
}}
# running SERVICE...: these containers, as they are, until they are healthy; none of the jobs that they once waited for.
running() {{ compose up --detach --wait --no-deps --no-recreate "$@"; }}

# beside SERVICE COMMAND...: a command of the service's image in its networks, with the backup at /backup, as this user.
beside() {{
  local service=$1 program=$2; shift 2
  compose run --rm -T --no-deps --user "$(id -u):$(id -g)" -v "$folder:/backup" --entrypoint "$program" "$service" "$@"
}}
# inside SERVICE FILE COMMAND...: the same as the service's own user, with its volumes and one file of the backup. That user
# must be able to read the file; nobody else passes the folder.
inside() {{
  local service=$1 file=$2 program=$3 status=0; shift 3
  chmod 0700 "$folder"
  chmod a+r "$folder/$file"
  compose run --rm -T --no-deps -v "$folder/$file:/backup/$file:ro" --entrypoint "$program" "$service" "$@" || status=$?
  chmod go-rwx "$folder/$file"
  return "$status"
}}
# A container that is never started lends Docker a place to copy from and to; no image needs tar for that.
with_volume() {{
  local volume=$1 helper; shift
  volume "$volume"
  helper=$(docker create --network none -v "${{project}}_$volume:/volume" {image} true)
  local status=0
  "$@" "$helper" || status=$?
  docker rm "$helper" > /dev/null
  return "$status"
}}
save() {{ saving=$2 with_volume "$1" save_from; }}
save_from() {{ docker cp "$1:/volume" - > "$saving.part" && mv "$saving.part" "$saving"; }}
load() {{ loading=$2 with_volume "$1" load_into; }}
load_into() {{ docker cp - "$1:/" < "$loading"; }}
# empty VOLUME: as root in a container without network, because files belong to the services' users.
empty() {{
  volume "$1"
  docker run --rm --network none --user 0:0 --cap-drop ALL --cap-add DAC_OVERRIDE -v "${{project}}_$1:/volume" \
    --entrypoint /bin/bash {image} -c 'shopt -s dotglob nullglob; rm -rf -- /volume/*'
}}

"#,
            project = self.project,
            entry = self.entry,
            image = self.helper_image,
        )
    }
}

/// The object store's credentials, from where the service reads them.
const LOGIN: &str = "mc --config-dir /tmp/mc alias set store http://minio:9000 \"$(cat /run/secrets/minio_root_user)\" \
                     \"$(cat /run/secrets/minio_root_password)\" > /dev/null && ";

/// The head of a loop over the buckets that there are: `mc ls` ends each line with `NAME/`. The image has a shell and
/// coreutils for sure, and nothing else.
const EACH_BUCKET: &str = "listed=$(mc --config-dir /tmp/mc ls store)\n\
                           printf \"%s\\n\" \"$listed\" | while read -r line; do name=${line##* }; name=${name%/}; \
                           [ -n \"$name\" ] || continue; ";

fn how(method: Method, restore: bool) -> &'static str {
    match (method, restore) {
        (Method::PgDump, false) => "pg_dump, while it runs",
        (Method::PgDump, true) => "pg_restore into an empty database",
        (Method::EtcdSnapshot, false) => "etcdctl snapshot save",
        (Method::EtcdSnapshot, true) => "etcdutl snapshot restore into an empty folder",
        (Method::Mirror, false) => "mc mirror of every bucket",
        (Method::Mirror, true) => "mc mirror of every bucket; a bucket that the backup lacks is removed",
        (Method::Tar, _) => "all files with owners and times",
    }
}
