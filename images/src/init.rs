//! The initialisation job: tokens, models and the configuration of the services around Obelisk.

use layers::*;

use crate::base;

/// The program by which jobs wait for each other, of a package that holds a hundred others. It needs the C library alone.
fn flock() -> source::Debian {
    debian(["util-linux"])
        .without(["libblkid1", "libcap-ng0", "libcrypt1", "liblastlog2-2", "libmount1", "libpam0g", "libpam-modules"])
        .without(["libpam-runtime", "libselinux1", "libsmartcols1", "libsystemd0", "libtinfo6", "libudev1", "libuuid1"])
        .without(["util-linux-extra", "zlib1g"])
        .exclude(["/*", "!/usr/bin/flock", "!/usr/share/doc/util-linux/copyright"])
        .ignore_script("util-linux", "its scripts are for programs that are left out")
}

/// The image. It runs `init-sequence.sh`, which runs the other scripts, and ends.
pub fn image() -> Image {
    let bin = path!("/usr/local/bin");
    let script = |name: &str, text: &'static str| inline(text, bin.join(name).expect("a plain name joins")).mode(0o755);
    // A fresh volume takes owner and mode from the folder that it covers.
    let data = |path: ImagePath| dir(path).owner(10001, 10001).mode(0o750);
    let stage = Stage::scratch()
        .layer(
            debian(base::COMMON.into_iter().chain(["bash", "coreutils", "curl", "jq", "openssl"]))
                .without(base::LEFT_OUT)
                .slim(),
        )
        .layer(flock())
        .layer(base::account())
        .layer(data(path!("/app/tokens")))
        .layer(data(path!("/app/config/rag")))
        .layer(data(path!("/app/config/openwebui")))
        .layer(inline(include_str!("../init/common.sh"), path!("/usr/local/lib/obelisk/common.sh")))
        .layer(script("generate-tokens.sh", include_str!("../init/generate-tokens.sh")))
        .layer(script("download-models.sh", include_str!("../init/download-models.sh")))
        .layer(script("configure-services.sh", include_str!("../init/configure-services.sh")))
        .layer(script("init-sequence.sh", include_str!("../init/init-sequence.sh")));
    base::settings(stage.image(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .description("The initialisation job: tokens, models and the configuration of the services")
        .label("org.opencontainers.image.title", "Obelisk init")
        .workdir(path!("/tmp"))
        .env("OLLAMA_API_URL", "http://ollama:11434")
        .env("LITELLM_API_URL", "http://litellm:4000")
        .env("TOKENS_DIR", "/app/tokens")
        .env("CONFIG_DIR", "/app/config")
        .volume(path!("/app/tokens"))
        // The job ends by itself; while it runs it is well as long as its own shell is there.
        .healthcheck(["/usr/local/bin/init-sequence.sh", "--alive"])
        .stop_signal("SIGTERM")
        .entrypoint(["/usr/local/bin/init-sequence.sh"])
}
