//! Caches in buckets of a real S3 service.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::registry::registry;
use crate::remote::{Project, STORES};
use crate::support::server::{Server, free_port};

const KEY: &str = "test-key";
const SECRET: &str = "canary-of-the-secret";

/// SeaweedFS with one bucket.
struct S3 {
    server: Server,
    url: String,
    _folder: tempfile::TempDir,
}

/// One for all tests.
fn s3() -> &'static S3 {
    static SERVICE: OnceLock<S3> = OnceLock::new();
    SERVICE.get_or_init(S3::start)
}

impl S3 {
    fn start() -> S3 {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            r#"{{"identities":[{{"name":"t","credentials":[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}],"actions":["Admin","Read","Write","List"]}}]}}"#
        );
        std::fs::write(folder.path().join("s3.json"), config).unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        let port = free_port();
        let mut command = Command::new("weed");
        command.args(["-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=100", "-master.volumeSizeLimitMB=64"]);
        command.arg(format!("-dir={}", folder.path().join("data").display()));
        command.arg(format!("-s3.config={}", folder.path().join("s3.json").display()));
        command.arg(format!("-s3.port={port}"));
        for other in ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port"] {
            command.arg(format!("-{other}={}", free_port()));
        }
        for other in ["filer.port.grpc", "s3.port.grpc"] {
            command.arg(format!("-{other}={}", free_port()));
        }
        let url = format!("http://127.0.0.1:{port}");
        // A bucket can be made once all of its services have found each other.
        let bucket = |url: &str| {
            let mut curl = Command::new("curl");
            curl.args([
                "--silent",
                "--fail",
                "--noproxy",
                "*",
                "--request",
                "PUT",
                "--aws-sigv4",
                "aws:amz:us-east-1:s3",
            ]);
            curl.args(["--user", &format!("{KEY}:{SECRET}"), &format!("{url}/bucket")]);
            curl.stdin(Stdio::null()).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
        };
        let server = Server::start(&command, &folder.path().join("log"), || bucket(&url));
        S3 { server, url, _folder: folder }
    }

    fn settings(&self) -> [(&str, &str); 3] {
        [("AWS_ENDPOINT_URL_S3", &self.url), ("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET)]
    }
}

#[test]
fn real_s3_serves_an_empty_machine_and_keeps_its_secret() {
    let s3 = s3();
    let project = Project::new();
    let (first, second, third, fourth) = (project.machine(), project.machine(), project.machine(), project.machine());
    let store = "s3://bucket/team/cache";
    let settings = s3.settings();
    let trusting = [&settings[..], &[(STORES, store)]].concat();
    let (right, said, _) = first.build(&["--cache-to", store], &settings);
    assert!(!said.contains("warning"), "{said}\n{}", s3.server.log());
    let (found, said, asked) = second.build(&["--cache-from", store], &trusting);
    assert_eq!((found, asked), (right.clone(), 0), "{said}");
    assert!(!said.contains(SECRET) && !said.contains("X-Amz"), "{said}");

    // A file of credentials serves as well, and an edit makes its own layer.
    third.sandbox.write("src/main", "changed");
    let file = third.sandbox.write("aws/credentials", format!(
        "[default]\naws_access_key_id = none\naws_secret_access_key = none\n\n[team]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    ));
    let by_file = [
        ("AWS_ENDPOINT_URL", s3.url.as_str()),
        ("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap()),
        ("AWS_PROFILE", "team"),
        (STORES, store),
    ];
    let (found, said, asked) = third.build(&["--cache-from", store], &by_file);
    assert_eq!(asked, 0, "{said}");
    assert_ne!(found, right);

    // Layers that are in the bucket alone are brought when a registry lacks them, and only then.
    let registry = registry(|_| {});
    let tag = format!("{}/team/{{image}}:v1", registry.host());
    fourth.run(&["push", "--tag", &tag, "--cache-from", store], &trusting).success();
    registry.assert_whole();
    let fifth = project.machine();
    fifth.run(&["push", "--tag", &tag, "--cache-from", store], &trusting).success();
    let (brought, left) = (blobs(fourth.sandbox.cache()), blobs(fifth.sandbox.cache()));
    assert_eq!(brought, left + 4, "all but the four layers: documents are made here");
}

/// The number of blobs in a cache.
fn blobs(cache: &Path) -> usize {
    let folders = std::fs::read_dir(cache.join("blobs-v1")).unwrap();
    folders.map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count()).sum()
}

#[test]
fn real_s3_that_refuses_is_a_warning_that_says_why() {
    let s3 = s3();
    let project = Project::new();
    let machine = project.machine();
    let store = "s3://bucket/cache";
    let wrong = [("AWS_ENDPOINT_URL", s3.url.as_str()), ("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", "wrong")];
    let (_, said, asked) = machine.build(&["--cache-from", store, "--cache-to", store], &wrong);
    assert!(asked > 0 && said.matches("warning").count() >= 2, "{said}");
    assert!(said.contains("403") && said.contains("AWS_ACCESS_KEY_ID"), "{said}");
    let half = machine.run(&["build", "--cache-from", store], &[("AWS_ACCESS_KEY_ID", KEY)]);
    half.failure(2, &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]);
    let none = machine.run(&["build", "--cache-from", store], &[("AWS_PROFILE", "nobody")]);
    none.failure(2, &["AWS_PROFILE", "nobody"]);
    machine
        .run(&["build", "--cache-from", "s3://Not_a_bucket"], &[])
        .failure(2, &["s3://Not_a_bucket", "small letters"]);
}

#[test]
fn real_a_layer_that_rotted_here_does_not_end_a_bucket() {
    let project = Project::new();
    let machine = project.machine();
    let registry = registry(|_| {});
    let tag = format!("{}/team/one:v1", registry.host());
    machine.build(&[], &[]);
    machine.run(&["push", "one", "--tag", &tag], &[]).success();
    // The registry has it, so the push does not read it.
    machine.rot_lowest_layer();
    machine.sandbox.write("src/main", "changed");
    let words = ["push", "one", "--tag", &tag, "--cache-to", "s3://bucket/rotten"];
    let said = machine.run(&words, &s3().settings());
    let why = "was not told of an image: sha256:";
    assert!(said.stderr.contains(why) && said.stderr.contains("is damaged in the cache"), "{}", said.stderr);
    said.success();
}
