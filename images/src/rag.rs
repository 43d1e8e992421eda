//! The retrieval service: questions answered from the vault.

use layers::*;

use crate::base;

/// The image. Its argument is a command of `obelisk rag`: `serve`, `index`, `query`, `stats`, `config`.
pub fn image() -> Image {
    // numpy, pandas and grpcio are C++; manylinux leaves its run-time library to the distribution.
    let stage = base::stage_with(["libstdc++6"])
        .layer(inline(include_str!("../rag/entrypoint.sh"), path!("/app/entrypoint.sh")).mode(0o755))
        .layer(python(poetry_lock("poetry.lock").group("rag")))
        .layer(files("src", path!("/app/src")))
        .layer(files("vault", path!("/app/vault")));
    base::python_settings(stage.image())
        .description("The retrieval service: answers questions from the vault, with its sources")
        .label("org.opencontainers.image.title", "Obelisk RAG")
        .workdir(path!("/app"))
        .env("PYTHONPATH", "/app/src")
        .env("VAULT_DIR", "/app/vault")
        .env("API_HOST", "0.0.0.0")
        .env("API_PORT", "8000")
        .env("OLLAMA_URL", "http://ollama:11434")
        .env("MILVUS_URI", "http://milvus:19530")
        .expose(8000)
        .healthcheck(base::answers("/healthz"))
        .stop_signal("SIGTERM")
        .entrypoint(["/app/entrypoint.sh"])
        .cmd(["serve"])
}
