//! Another team's catalogue: a static page in an image without an operating system.
//!
//! ```sh
//! cargo build --manifest-path examples/hello-catalogue/Cargo.toml
//! imgbuild --catalogue examples/hello-catalogue build --context examples/hello-catalogue/context
//! ```
//!
//! `assets` holds what is made once; `hello` takes from it, so none of its other files are shipped.

use std::process::ExitCode;

use layers::*;

/// Everything that several images need a part of.
fn assets() -> Stage {
    Stage::scratch()
        .layer(files("www", path!("/assets/www")).include(["**/*.html", "**/*.css"]).exclude(["draft.html"]))
        .layer(inline("not for shipping\n", path!("/assets/notes.txt")))
}

/// The page, for a web server of somebody else's to mount or to stand on.
fn hello() -> Image {
    Stage::scratch()
        .layer(dir(path!("/srv")).mode(0o755))
        .layer(assets().take(path!("/assets/www")).to(path!("/srv/www")))
        .layer(link(path!("/srv/htdocs"), "www"))
        .layer(inline("hello:x:20001:20001::/srv:/sbin/nologin\n", path!("/etc/passwd")))
        .layer(inline("hello:x:20001:\n", path!("/etc/group")))
        .layer(dir(path!("/srv/upload")).owner(20001, 20001).mode(0o750))
        .image()
        .description("A page that says hello")
        .user("20001:20001")
        .workdir(path!("/srv"))
        .label("org.opencontainers.image.title", "Hello")
}

/// The same page with a note of its own on top.
fn greeting() -> Image {
    hello()
        .stage()
        .layer(inline("Hello from the greeting image.\n", path!("/srv/greeting.txt")).mode(0o444))
        .image()
        .description("The page with a greeting")
        .user("20001:20001")
}

fn main() -> ExitCode {
    Catalogue::new("hello").with("hello", hello()).with("greeting", greeting()).print_plan()
}
