//! What the Python images stand on: Debian's Python 3.13, certificates, time zones and the user they run as.

use layers::source::Debian;
use layers::*;

/// User and group of every image: numeric, so that Kubernetes' `runAsNonRoot` can check it.
pub const USER: &str = "10001:10001";

const UID: u32 = 10001;

/// Packages that every image has, Python or not.
pub const COMMON: [&str; 5] = ["base-files", "base-passwd", "ca-certificates", "netbase", "tzdata"];

/// What the packages of all images depend on and no running container needs: dpkg and debconf configure packages on an
/// installed system, debianutils serves maintainer scripts, readline-common is documentation.
pub const LEFT_OUT: [&str; 2] = ["debconf", "debianutils"];

/// Base's files: other images stand on them.
pub fn stage() -> Stage {
    stage_with([])
}

/// The same with more packages: as one source they share with base what they have in common, and are set up in one layer.
pub fn stage_with<const N: usize>(more: [&str; N]) -> Stage {
    Stage::scratch().layer(packages(more)).layer(account()).layer(
        // A shell and curl would cost megabytes only to ask for one status line.
        inline(include_str!("../base/healthy.py"), path!("/usr/local/lib/obelisk/healthy.py")).mode(0o755),
    )
}

/// `dash` is there for `/bin/sh`: entry points, `docker exec` and Python's `subprocess` with a shell need one; `libc-bin`
/// has the `ldconfig` that Python's `ctypes.util.find_library` asks.
fn packages<const N: usize>(more: [&str; N]) -> Debian {
    debian(COMMON.into_iter().chain(["dash", "libc-bin", "python3"]).chain(more))
        .without(LEFT_OUT)
        .without(["dpkg", "readline-common", "tar"])
        .slim()
}

/// The user without a home or a login; the same layer in every image.
pub fn account() -> source::User {
    user("obelisk", UID)
}

/// Settings that hold for every image: text is UTF-8, times are UTC, and the only writable place is `/tmp`.
pub fn settings(image: Image, path: &str) -> Image {
    image
        .user(USER)
        .env("PATH", path)
        .env("LANG", "C.UTF-8")
        .env("TZ", "Etc/UTC")
        .env("HOME", "/tmp")
        .env("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
        .label("org.opencontainers.image.source", env!("CARGO_PKG_REPOSITORY"))
        .label("org.opencontainers.image.vendor", "Obelisk")
        .label("org.opencontainers.image.version", env!("CARGO_PKG_VERSION"))
        .label("org.opencontainers.image.licenses", "MIT OR Apache-2.0")
}

/// Settings of the images that run Python from the virtual environment `/opt/venv`, if they have one.
pub fn python_settings(image: Image) -> Image {
    settings(image, "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        // The root is read-only, so byte-code could only be written to be thrown away.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONUNBUFFERED", "1")
}

/// The check of an image that answers HTTP on port 8000: Python asks, without the network stack of the site packages.
pub(crate) fn answers(path: &str) -> [String; 4] {
    ["/usr/bin/python3", "-IS", "/usr/local/lib/obelisk/healthy.py", path].map(str::to_owned)
}

/// The image.
pub fn image() -> Image {
    python_settings(stage().image())
        .description("Debian's Python 3.13 with certificates and time zones, for Obelisk's images to stand on")
        .label("org.opencontainers.image.title", "Obelisk base")
        .workdir(path!("/tmp"))
        .cmd(["/usr/bin/python3"])
        .healthcheck(["/usr/bin/python3", "-I", "-c", "import encodings, ssl, zoneinfo; zoneinfo.ZoneInfo('Etc/UTC')"])
}
