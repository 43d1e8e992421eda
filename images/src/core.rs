//! The documentation site: MkDocs Material over the vault.

use layers::*;

use crate::base;

/// The image. Its argument chooses: `serve` rebuilds on each change of a page, `static` builds once and serves files.
pub fn image() -> Image {
    let stage = base::stage()
        .layer(python(poetry_lock("poetry.lock").group("docs")))
        .layer(inline(include_str!("../core/serve.py"), path!("/app/serve.py")).mode(0o755))
        .layer(inline(include_str!("../core/entrypoint.sh"), path!("/app/entrypoint.sh")).mode(0o755))
        .layer(files("mkdocs.yml", path!("/app/mkdocs.yml")))
        .layer(files("vault", path!("/app/vault")));
    base::python_settings(stage.image())
        .description("The documentation site: MkDocs Material over the vault, live or static")
        .env("NO_MKDOCS_2_WARNING", "1")
        .label("org.opencontainers.image.title", "Obelisk core")
        .workdir(path!("/app"))
        .expose(8000)
        .healthcheck(base::answers("/"))
        // Python handles no SIGTERM by itself, and as process 1 it would then ignore it.
        .stop_signal("SIGINT")
        .entrypoint(["/app/entrypoint.sh"])
        .cmd(["serve"])
}
