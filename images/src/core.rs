//! The documentation site: MkDocs Material over the vault.

use std::time::Duration;

use layers::*;

use crate::base;

/// The image. Its argument chooses: `serve` rebuilds on each change of a page, `static` builds once and serves files, `site`
/// serves the site that was built with the image.
pub fn image() -> Image {
    let tools = base::stage().layer(python(poetry_lock("poetry.lock").group("docs")));
    let (config, vault) = (files("mkdocs.yml", path!("/app/mkdocs.yml")), files("vault", path!("/app/vault")));
    let mkdocs =
        ["/opt/venv/bin/mkdocs", "build", "--quiet", "--config-file", "/app/mkdocs.yml", "--site-dir", "/site"];
    // Pages are inputs: an edited one leaves the stage as it is.
    let built = tools.run(
        command(mkdocs)
            .input(config.clone())
            .input(vault.clone())
            .env("NO_MKDOCS_2_WARNING", "1")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .timeout(Duration::from_secs(600)),
    );
    let stage = tools
        .layer(inline(include_str!("../core/serve.py"), path!("/app/serve.py")).mode(0o755))
        .layer(inline(include_str!("../core/entrypoint.sh"), path!("/app/entrypoint.sh")).mode(0o755))
        .layer(config)
        .layer(vault)
        // The same on every platform.
        .layer(built.take(path!("/site")).to(path!("/app/site")).portable());
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
