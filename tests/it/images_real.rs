//! The four images, judged by what runs and reads images: Docker, podman, skopeo, umoci.

use std::fs;
use std::process::Command;

use crate::support::layout::{Layout, applied};
use crate::support::listing;
use crate::support::obelisk::{IMAGES, loaded, obelisk};
use crate::support::run::{outcome, tool};

/// Pages of the vault, and something that each says.
const PAGES: [(&str, &str); 3] =
    [("/", "turns a folder of Markdown notes"), ("/guide/writing/", "Writing pages"), ("/notes/chunking/", "<h1")];

#[test]
fn real_core_answers_with_the_pages_of_the_vault_in_each_mode() {
    for mode in ["static", "serve", "site"] {
        let container = loaded().start_container("core:latest", &[], &[mode]);
        container.wait_for(8000, "/", 120);
        for (path, says) in PAGES {
            let (status, body) = container.get(8000, path);
            assert!(status == 200 && body.contains(says), "{mode} {path}: {status}\n{body}\n{}", container.logs());
        }
        assert_eq!(container.get(8000, "/no/such/page/").0, 404, "{mode}");
        assert_eq!(
            container.exec(&["python3", "-c", "import os; print(os.getuid(), os.getgid())"]).stdout,
            "10001 10001\n"
        );
        let healthy = container.exec(&["/usr/bin/python3", "-IS", "/usr/local/lib/obelisk/healthy.py", "/"]);
        assert_eq!(healthy.status, 0, "{mode}: {}", healthy.stderr);
    }
}

#[test]
fn real_rag_answers_healthz_and_stats() {
    let settings = ["--env", "VECTOR_DB=memory"];
    let container = loaded().start_container("rag:latest", &settings, &[]);
    container.wait_for(8000, "/healthz", 180);
    let (status, stats) = container.get(8000, "/stats");
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap_or_default();
    assert!(status == 200 && stats.is_object(), "{status} {stats}\n{}", container.logs());
    // There is no Ollama: the service is alive and says that it is not ready.
    assert_eq!(container.get(8000, "/readyz").0, 503, "{}", container.logs());
    assert_eq!(container.inspect("{{.Config.User}}"), "10001:10001");
}

#[test]
fn real_init_s_scripts_are_sound_and_start() {
    let scripts = ["configure-services.sh", "download-models.sh", "generate-tokens.sh", "init-sequence.sh"];
    let folder = tempfile::tempdir().unwrap();
    let image = "init:latest";
    let id = loaded().docker(["create", image]).trim().to_owned();
    for (from, to) in [("/usr/local/bin/.", "bin"), ("/usr/local/lib/obelisk/.", "lib")] {
        let to = folder.path().join(to);
        loaded().docker(["cp".as_ref(), format!("{id}:{from}").as_ref(), to.as_os_str()]);
    }
    loaded().docker(["rm", &id]);
    for script in scripts {
        let path = folder.path().join("bin").join(script);
        let path = path.to_str().unwrap();
        tool("bash", ["-n", path]);
        let lib = folder.path().join("lib");
        tool("shellcheck", ["--external-sources", "--source-path", lib.to_str().unwrap(), path]);
        // Without their settings they say which one is missing, and do not fall over.
        let started = loaded().run(image, &["--entrypoint", &format!("/usr/local/bin/{script}")], &[]);
        assert!((1..=50).contains(&started.status), "{script}: {started:?}");
        assert!(started.stderr.contains("error") && !started.stderr.contains("unforeseen"), "{script}: {started:?}");
    }
    for program in ["bash", "curl", "jq", "openssl"] {
        let version = if program == "openssl" { "version" } else { "--version" };
        let said = loaded().run(image, &["--entrypoint", program], &[version]);
        assert_eq!(said.status, 0, "{program}: {said:?}");
    }
}

#[test]
fn real_docker_reads_both_kinds_of_archive() {
    let docker = loaded();
    let id = |name: &str| docker.docker(["image", "inspect", "--format", "{{.Id}}", name]).trim().to_owned();
    let first = id("init:latest");
    let said = docker.load(&obelisk().file("oci.tar"), "init:latest");
    assert!(said.contains("Loaded image: init:latest"), "{said}");
    assert_eq!(id("init:latest"), first);
    // Docker names an image by the digest of its configuration.
    let init = &obelisk().layout().image("init")[0];
    assert_eq!(init.manifest["config"]["digest"], first);
}

#[test]
fn real_images_of_arm64_run_under_emulation() {
    let docker = loaded();
    let layout = Layout::open(&obelisk().file("dist-arm64"));
    let folder = tempfile::tempdir().unwrap();
    for name in ["base", "init"] {
        let image = &layout.image(name)[0];
        assert_eq!(image.platform, "linux/arm64");
        // Under a name of its own: the tags belong to the images of amd64.
        let from = format!("oci:{}:{name}", obelisk().file("dist-arm64").display());
        let renamed = folder.path().join(format!("{name}.tar"));
        let to = format!("docker-archive:{}:{name}-arm64:latest", renamed.display());
        let os = ["--insecure-policy", "--override-arch", "arm64", "copy", "--quiet"];
        tool("skopeo", [&os[..], &[&from, &to]].concat());
        docker.load(&renamed, &format!("{name}-arm64:latest"));
    }
    let program = "import platform, ssl, zoneinfo; zoneinfo.ZoneInfo('Europe/Berlin'); \
                   print(platform.machine(), ssl.create_default_context().cert_store_stats()['x509_ca'] > 100)";
    let ran = docker.run("base-arm64:latest", &["--platform", "linux/arm64"], &["python3", "-c", program]);
    assert_eq!(ran.stdout, "aarch64 True\n", "{ran:?}");
    let shell = ["--platform", "linux/arm64", "--entrypoint", "bash"];
    let ran = docker.run(
        "init-arm64:latest",
        &shell,
        &["-c", "uname -m; echo '{\"a\":1}' | jq .a; curl --version | head -c 4"],
    );
    assert_eq!(ran.stdout, "aarch64\n1\ncurl", "{ran:?}");
}

#[test]
fn real_base_has_a_working_python_for_its_user_on_a_read_only_root() {
    let program = "import os, pwd, ssl, sqlite3, lzma, bz2, zoneinfo, encodings.idna, decimal\n\
        print(os.getuid(), pwd.getpwuid(10001).pw_name)\n\
        print(ssl.create_default_context().cert_store_stats()['x509_ca'] > 100, zoneinfo.ZoneInfo('Asia/Tokyo'))\n\
        open('/tmp/x', 'w').close()\n\
        try: open('/x', 'w')\n\
        except OSError as error: print(error.strerror)\n";
    let ran = loaded().run("base:latest", &[], &["python3", "-c", program]);
    let expected = "10001 obelisk\nTrue Asia/Tokyo\nRead-only file system\n";
    assert_eq!(ran.stdout, expected, "{ran:?}");
}

#[test]
fn real_podman_runs_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("root"), folder.path().join("run"));
    let storage =
        ["--root", root.to_str().unwrap(), "--runroot", state.to_str().unwrap(), "--storage-driver", "overlay"];
    let podman = |arguments: &[&str]| {
        let common = ["--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none"];
        outcome(Command::new("podman").args(storage).args(common).args(arguments))
    };
    podman(&["load", "--quiet", "--input", obelisk().file("init.tar").to_str().unwrap()]).success();
    let run = ["run", "--rm", "--network", "none", "--read-only", "--entrypoint", "bash"];
    // podman asks for more than a machine may allow.
    let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
    let ran = podman(&[&run[..1], &limits, &run[1..], &["init:latest", "-c", "id -u; echo podman"]].concat());
    assert_eq!(ran.stdout, "10001\npodman\n", "{ran:?}");
    podman(&["system", "reset", "--force"]);
}

#[test]
fn real_skopeo_inspects_and_copies_the_layout() {
    let dist = obelisk().file("dist");
    for (name, digest) in obelisk().layout().names() {
        let from = format!("oci:{}:{name}", dist.display());
        let seen: serde_json::Value = serde_json::from_str(&tool("skopeo", ["inspect", &from])).unwrap();
        assert_eq!(seen["Digest"], digest, "{name}");
        assert_eq!((&seen["Os"], &seen["Architecture"]), (&"linux".into(), &"amd64".into()));
        let config: serde_json::Value = serde_json::from_str(&tool("skopeo", ["inspect", "--config", &from])).unwrap();
        assert_eq!(config["config"]["User"], "10001:10001", "{name}");
        let copied = tempfile::tempdir().unwrap();
        let to = format!("oci:{}:{name}", copied.path().display());
        tool("skopeo", ["--insecure-policy", "copy", "--quiet", &from, &to]);
        assert_eq!(Layout::open(copied.path()).image(name.as_str())[0].digest, digest);
    }
}

#[test]
fn real_two_platforms_are_an_index_of_single_images() {
    let both = Layout::open(&obelisk().file("dist-both")).image("base");
    let platforms: Vec<&str> = both.iter().map(|image| image.platform.as_str()).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    assert_eq!(both[0].digest, obelisk().layout().names()["base"]);
    assert_eq!(both[1].digest, Layout::open(&obelisk().file("dist-arm64")).names()["base"]);
}

#[test]
fn real_every_layer_keeps_the_rules() {
    for (layout, names) in [("dist", &IMAGES[..]), ("dist-arm64", &["base", "init"]), ("dist-both", &["base"])] {
        let layout = Layout::open(&obelisk().file(layout));
        for name in names {
            for image in layout.image(name) {
                assert_eq!(image.faults(), Vec::<String>::new(), "{name} {}", image.platform);
                assert!(image.layers.len() <= 40, "{name} has {} layers", image.layers.len());
            }
        }
    }
}

#[test]
fn real_umoci_unpacks_what_the_layers_say() {
    let layout = obelisk().layout();
    for name in ["base", "init"] {
        let folder = tempfile::tempdir().unwrap();
        let image = format!("{}:{name}", obelisk().file("dist").display());
        let bundle = folder.path().join("bundle");
        tool("umoci", ["unpack", "--image", &image, bundle.to_str().unwrap()]);
        let unpacked = listing::of_folder(&bundle.join("rootfs"));
        let mut ours = listing::Tree::new();
        let tree = applied(&layout.image(name)[0].layers);
        for (path, member) in &tree {
            let (mode, owner) = (member.mode, format!("{}:{}", member.owner.0, member.owner.1));
            let line = match member.kind {
                tar::EntryType::Directory => format!("dir {mode:04o} {owner}"),
                tar::EntryType::Symlink => format!("link -> {}", member.link.as_ref().unwrap()),
                _ => {
                    let file = match &member.link {
                        Some(first) => &tree[first],
                        None => member,
                    };
                    format!("file {mode:04o} {owner} {} {}", &file.sha256[7..19], file.size)
                }
            };
            ours.insert(path.clone(), line);
        }
        listing::assert_same(&ours, &unpacked, name);
    }
}

#[test]
fn real_images_are_as_small_as_promised() {
    for (name, most) in [("base", 23_000_000), ("init", 23_000_000), ("core", 80_000_000)] {
        let image = &obelisk().layout().image(name)[0];
        let size: usize = image.layers.iter().map(|layer| layer.compressed.len()).sum();
        assert!(size <= most, "{name} has {size} compressed bytes, more than {most}");
    }
}

#[test]
fn real_images_share_the_layers_of_their_packages() {
    let layout = obelisk().layout();
    let digests =
        |name: &str| -> Vec<String> { layout.image(name)[0].layers.iter().map(|layer| layer.digest.clone()).collect() };
    let base = digests("base");
    assert_eq!(digests("core")[..base.len()], base, "core stands on base");
    // Above the packages is what configures them, of which rag has more, and the user with a script.
    let [packages @ .., _, _] = base.as_slice() else { panic!("{base:?}") };
    assert!(packages.len() > 3 && digests("rag").starts_with(packages));
    let init = digests("init");
    let (mut shared, mut all) = (0, 0);
    for layer in &layout.image("base")[0].layers {
        all += layer.compressed.len();
        shared += if init.contains(&layer.digest) { layer.compressed.len() } else { 0 };
    }
    assert!(shared * 2 > all, "init shares {shared} of base's {all} bytes");
}

#[test]
fn real_a_configuration_says_how_the_image_runs() {
    for name in IMAGES {
        let image = &obelisk().layout().image(name)[0];
        let config = &image.config["config"];
        let labels = &config["Labels"];
        let created = labels["org.opencontainers.image.created"].as_str().unwrap();
        assert_eq!(image.config["created"], created, "{name}");
        assert!(created.ends_with('Z') && !created.starts_with("1970"), "{name}: {created}");
        assert!(config["Healthcheck"]["Test"].as_array().is_some_and(|test| test.len() > 1), "{name}: {config:#}");
        assert_eq!(config["User"], "10001:10001");
    }
    let label = obelisk().imgbuild(&[
        "build",
        "base",
        "--platform",
        "linux/amd64",
        "--output",
        "oci:labelled",
        "--label",
        "org.example.a=b",
    ]);
    label.success();
    let labelled = Layout::open(&obelisk().file("labelled")).image("base").remove(0);
    assert_eq!(labelled.config["config"]["Labels"]["org.example.a"], "b");
    let plain = obelisk().layout().image("base").remove(0);
    assert_eq!(labelled.config["rootfs"], plain.config["rootfs"], "a label changes no layer");
    assert!(fs::metadata(obelisk().file("labelled/index.json")).is_ok());
}
