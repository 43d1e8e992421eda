//! In which order the data is saved and put back.
//!
//! The plan follows from the labels of the volumes (`obelisk.backup`). Milvus keeps metadata in etcd that refers to
//! objects in the bucket and to files of its own: the three are only worth something when taken together, so whoever
//! writes is stopped first. PostgreSQL is dumped while it runs: a dump is one consistent moment by itself.

use std::fmt::Write as _;

use thiserror::Error;

use crate::compose::{Project, Service};

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
    /// Services that only read what is copied as files: they make something of it at their start, so a restore stops them, too.
    pub readers: Vec<String>,
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
    let reads = |service: &Service| {
        let saved = |source: &str| items.iter().any(|it| it.method == Method::Tar && it.volume == source);
        !service.is_job() && service.profiles.is_empty() && service.mounts.iter().any(|mount| saved(&mount.source))
    };
    let readers = services.values().filter(|it| reads(it) && !writers.contains(&it.name.as_str()));
    Ok(Plan {
        readers: readers.map(|it| it.name.clone()).collect(),
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
        line(&mut out, format!("stop {}", self.stopped(restore).join(", ")));
        for item in self.items.iter().filter(|item| item.method != Method::PgDump) {
            line(&mut out, format!("{} {arrow} {} ({})", item.volume, item.file(), how(item.method, restore)));
        }
        let (store, others): (Vec<&str>, Vec<&str>) = self.started(restore).partition(|writer| *writer == STORE);
        if restore {
            line(&mut out, format!("start {} again", store.join(", ")));
            line(&mut out, "run init: what is not saved is made of what is".to_owned());
            line(&mut out, format!("start {} again", others.join(", ")));
        } else {
            line(&mut out, format!("start {} again", [store, others].concat().join(", ")));
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
        let started: Vec<&str> = self.started(false).collect();
        out.push_str(&start_again(&started, "the backup is not complete"));
        out.push_str(&self.while_nobody_writes(false, |volume, service, file, method| match method {
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
            "trap - EXIT\n\n(cd \"$folder\" && find . -type f ! -name SHA256SUMS ! -name complete -print0 | sort -z | xargs -0 -r sha256sum > SHA256SUMS)\n\
             date -u +%Y-%m-%dT%H:%M:%SZ > \"$folder/complete\"\nsay \"complete: $folder\"\n",
        );
        out
    }

    /// A bash script that puts everything back from the folder that is its first argument.
    pub fn restore_script(&self) -> String {
        let mut out = self.head("restore", "puts back the data of");
        out.push_str(
            "[ -e \"$folder/complete\" ] || { echo \"error: $folder holds no complete backup\" >&2; exit 1; }\n",
        );
        // What another environment saved is whole and yet not enough.
        let files: Vec<String> = self.items.iter().map(Item::file).collect();
        let _ = writeln!(
            out,
            "for file in {}; do\n  [ -e \"$folder/$file\" ] || {{ echo \"error: $folder has no $file: it is no backup of this environment\" >&2; exit 1; }}\ndone",
            files.join(" ")
        );
        out.push_str(
            "folder=$(cd \"$folder\" && pwd)\nsay 'check every file'\n(cd \"$folder\" && sha256sum --quiet --check SHA256SUMS >&2)\n\n",
        );
        // Who is asked for data before who asks.
        let of = |method| self.items.iter().filter(move |it| it.method == method).map(|it| it.service.as_str());
        let stopped: Vec<&str> = of(Method::PgDump)
            .chain(of(Method::EtcdSnapshot))
            .chain(of(Method::PgDump).flat_map(|_| CLIENTS))
            .chain(self.started(true))
            .collect();
        out.push_str(&start_again(&stopped, "half restored: run it again"));
        for item in &self.items {
            if item.method == Method::PgDump {
                let _ = write!(
                    out,
                    "say '{volume}: into a new database'\nrunning {service}\n\
                     compose exec -T {service} sh -ec '{NEW_DATABASE}drop \"$new\"\n\
                     createdb -U \"$POSTGRES_USER\" --maintenance-db=template1 --template=template0 \"$new\"\n\
                     pg_restore -U \"$POSTGRES_USER\" -d \"$new\" --exit-on-error --no-owner || {{ drop \"$new\"; exit 1; }}' \
                     < \"$folder/{file}\"\n\
                     say '{volume}: in place of the old one'\ncompose stop {clients}\n\
                     compose exec -T {service} sh -ec '{NEW_DATABASE}drop \"$POSTGRES_DB\"\n\
                     echo \"ALTER DATABASE :\\\"new\\\" RENAME TO :\\\"old\\\"\" | psql -X -q -U \"$POSTGRES_USER\" -d template1 \
                     -v ON_ERROR_STOP=1 -v new=\"$new\" -v old=\"$POSTGRES_DB\"'\n\
                     running {clients}\n\n",
                    volume = item.volume,
                    service = item.service,
                    file = item.file(),
                    clients = CLIENTS.join(" ")
                );
            }
        }
        out.push_str(&self.while_nobody_writes(true, |volume, service, file, method| match method {
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
        out.push_str("trap - EXIT\nsay \"restored from $folder\"\n");
        out
    }

    /// The part of a script in which the writers are stopped: `step` says what is done with each volume that is not dumped,
    /// given its name, its service, its file in the backup and its method. In a restore init runs before those that read what it
    /// makes of the tokens that were put back.
    fn while_nobody_writes(&self, restore: bool, step: impl Fn(&str, &str, &str, Method) -> String) -> String {
        let mut out = format!("say 'stop the writers'\ncompose stop {}\n\n", self.stopped(restore).join(" "));
        for item in self.items.iter().filter(|item| item.method != Method::PgDump) {
            out.push_str(&step(&item.volume, &item.service, &item.file(), item.method));
        }
        out.push_str("say 'start them again'\n");
        let mut init = restore.then_some("say 'what init makes of it'\ncompose run --rm -T --no-deps init >&2\n");
        for writer in self.started(restore) {
            if writer != STORE {
                out.push_str(init.take().unwrap_or_default());
            }
            let _ = writeln!(out, "running {writer}");
        }
        out
    }

    /// Who is stopped, in this order: the readers' site or page would be of the old files.
    fn stopped(&self, restore: bool) -> Vec<&str> {
        let readers = self.readers.iter().filter(|_| restore);
        readers.chain(&self.writers).map(String::as_str).collect()
    }

    /// The same in the order in which they wait for each other.
    fn started(&self, restore: bool) -> impl Iterator<Item = &str> {
        self.stopped(restore).into_iter().rev()
    }

    fn head(&self, name: &str, verb: &str) -> String {
        format!(
            r#"#!/bin/bash
# Made by `imgbuild deploy {name}`: {verb} {project}. Run it where the compose files are.
#   {name}.sh FOLDER
set -euo pipefail
umask 077
folder=${{1:?usage: {name}.sh FOLDER}}
entry=${{COMPOSE_ENTRY:-}}
[ -n "$entry" ] || entry={entry}
# An image that is there anyway: containers of it copy, and empty volumes.
image={image}
say() {{ echo "$(date -u +%H:%M:%S) $*" >&2; }}
# One at a time: a backup in the night of a restore would start what the restore has stopped.
exec {{lock}}< "$entry"
flock --nonblock "$lock" || {{ say 'another backup or restore is at work: waiting for its end'; flock "$lock"; }}
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
  helper=$(docker create --network none -v "${{project}}_$volume:/volume" "$image" true)
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
    --entrypoint /bin/bash "$image" -c 'shopt -s dotglob nullglob; rm -rf -- /volume/*'
}}

"#,
            // In a comment, which a line break would end.
            project = self.project.escape_debug(),
            entry = quoted(&self.entry),
            image = quoted(&self.helper_image),
        )
    }
}

/// The writer that init itself waits for; the others read what it makes.
const STORE: &str = "milvus";

/// Who holds connections to the dumped database.
const CLIENTS: [&str; 1] = ["litellm"];

/// The database that a dump goes into, which takes the old one's place once it is whole, and how one is dropped.
const NEW_DATABASE: &str = "new=${POSTGRES_DB}_new\n\
                            drop() { dropdb -U \"$POSTGRES_USER\" --if-exists --force --maintenance-db=template1 \"$1\"; }\n";

/// A word that the shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// From here on an end of the script that is not its last line is said and starts the services again, in this order, each
/// whatever becomes of the others.
fn start_again(services: &[&str], said: &str) -> String {
    format!(
        "# From here to `trap - EXIT`: whatever happens, they are started again.\n\
         again() {{\n  local status=$? service\n  trap - EXIT\n  [ \"$status\" != 0 ] || status=1\n\
         \x20 echo 'error: {said}' >&2\n\
         \x20 for service in {}; do running \"$service\" || echo \"error: $service does not start\" >&2; done\n\
         \x20 exit \"$status\"\n}}\ntrap again EXIT\n\n",
        services.join(" ")
    )
}

/// The object store's credentials, from where the service reads them, by the standard input: a list of arguments is read by
/// every process of the machine. `printf` is the shell's own.
const LOGIN: &str = "printf \"%s\\n%s\\n\" \"$(cat /run/secrets/minio_root_user)\" \"$(cat /run/secrets/minio_root_password)\" | \
                     mc --config-dir /tmp/mc alias set store http://minio:9000 > /dev/null && ";

/// The head of a loop over the buckets that there are: `mc ls` ends each line with `NAME/`. The image has a shell and
/// coreutils for sure, and nothing else.
const EACH_BUCKET: &str = "listed=$(mc --config-dir /tmp/mc ls store)\n\
                           printf \"%s\\n\" \"$listed\" | while read -r line; do name=${line##* }; name=${name%/}; \
                           [ -n \"$name\" ] || continue; ";

fn how(method: Method, restore: bool) -> &'static str {
    match (method, restore) {
        (Method::PgDump, false) => "pg_dump, while it runs",
        (Method::PgDump, true) => "pg_restore into a new database, which then takes the old one's place",
        (Method::EtcdSnapshot, false) => "etcdctl snapshot save",
        (Method::EtcdSnapshot, true) => "etcdutl snapshot restore into an empty folder",
        (Method::Mirror, false) => "mc mirror of every bucket",
        (Method::Mirror, true) => "mc mirror of every bucket; a bucket that the backup lacks is removed",
        (Method::Tar, _) => "all files with owners and times",
    }
}
