//! The choice of wheels, judged by pip, uv and Poetry. Needs `python3` with pip, `uv`, `poetry` with its export plugin,
//! and a package index.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use imgbuild::python::tags::Tags;
use imgbuild::python::{Wheel, read_lock, select};
use layers::Platform;
use layers::source::{LockSelection, poetry_lock, uv_lock};

use crate::python::target;

/// Runs a tool in `folder`; its failure is the test's.
fn run(folder: &Path, tool: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new(tool)
        .args(arguments)
        .current_dir(folder)
        .env("UV_PYTHON_DOWNLOADS", "never")
        .output()
        .unwrap_or_else(|error| {
            panic!("`{tool}` cannot be run ({error}): install it with pip, in a virtual environment")
        });
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "`{tool} {}` failed:\n{stderr}", arguments.join(" "));
    String::from_utf8(stdout).unwrap() + &stderr
}

/// The index that pip uses when nothing is configured, or the configured one.
fn index(folder: &Path) -> String {
    let code = "import os; from pip._internal.models.index import PyPI; \
                print(os.environ.get('PIP_INDEX_URL') or PyPI.simple_url)";
    run(folder, "python3", &["-c", code]).trim().to_owned()
}

fn wheels(folder: &Path, selection: &LockSelection, platform: Platform) -> Vec<Wheel> {
    let set = read_lock(selection, &|path| fs::read(folder.join(path))).unwrap();
    select(&set, &target(platform)).unwrap()
}

/// What uv would install from requirements on a platform, as `name==version`. uv knows no newer glibc than 2.40 by name,
/// which no wheel of these projects notices.
fn uv_installs(folder: &Path, requirements: &str, platform: Platform) -> Vec<String> {
    fs::write(folder.join("r.txt"), requirements).unwrap();
    let platform = format!("{}-manylinux_2_40", platform.machine());
    let arguments =
        ["pip", "install", "--dry-run", "--no-deps", "--python-version", "3.13.5", "--only-binary", ":all:"];
    let more = ["--python-platform", &platform, "--target", "never-written", "-r", "r.txt"];
    let output = run(folder, "uv", &[&arguments[..], &more[..]].concat());
    let mut found: Vec<String> =
        output.lines().filter_map(|line| line.trim().strip_prefix("+ ")).map(str::to_owned).collect();
    found.sort();
    found
}

/// The files that pip would install for these pins on a platform.
fn pip_chooses(folder: &Path, wheels: &[Wheel], platform: Platform) -> Vec<String> {
    let pins: Vec<String> = wheels.iter().map(|wheel| format!("{}=={}", wheel.name, wheel.version)).collect();
    let mut platforms: Vec<String> = Vec::new();
    for tag in Tags::of(&target(platform)).ordered().iter().filter_map(|tag| tag.strip_prefix("cp313-cp313-")) {
        platforms.extend(["--platform".to_owned(), tag.to_owned()]);
    }
    let mut arguments = vec!["-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"];
    // pip compares the metadata with the Python that runs it, whatever `--python-version` says; uv has checked it.
    arguments.push("--ignore-requires-python");
    arguments.extend(["--only-binary", ":all:", "--target", "never-written", "--report", "report.json"]);
    arguments.extend(["--python-version", "3.13.5", "--implementation", "cp", "--abi", "cp313"]);
    arguments.extend(platforms.iter().chain(&pins).map(String::as_str));
    run(folder, "python3", &arguments);
    let report: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("report.json")).unwrap()).unwrap();
    let mut files: Vec<String> = report["install"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| imgbuild::python::path_of(item["download_info"]["url"].as_str().unwrap()))
        .collect();
    files.sort();
    files
}

/// Compares our choice from a lock with uv's versions and pip's files, on both platforms.
fn compare(folder: &Path, selection: &LockSelection, requirements: &str) {
    for platform in Platform::ALL {
        let ours = wheels(folder, selection, platform);
        let mut pins: Vec<String> = ours.iter().map(|wheel| format!("{}=={}", wheel.name, wheel.version)).collect();
        pins.sort();
        assert!(!pins.is_empty(), "{selection:?} on {platform} is empty");
        assert_eq!(pins, uv_installs(folder, requirements, platform), "{selection:?} on {platform}");
        let mut files: Vec<String> = ours.iter().map(|wheel| wheel.file.clone()).collect();
        files.sort();
        assert_eq!(files, pip_chooses(folder, &ours, platform), "{selection:?} on {platform}");
    }
}

#[test]
fn real_pip_lists_the_same_tags_in_the_same_order() {
    let code = "import sys\n\
        from pip._vendor.packaging import tags, _manylinux\n\
        _manylinux._get_glibc_version = lambda: (2, 41)\n\
        _manylinux._is_compatible = lambda *anything: True\n\
        _manylinux._have_compatible_abi = lambda *anything: True\n\
        machine = sys.argv[1]\n\
        try: platforms = list(_manylinux.platform_tags([machine]))\n\
        except TypeError: platforms = list(_manylinux.platform_tags('linux_' + machine, machine))\n\
        platforms = [p for p in platforms if p.endswith('_' + machine)] + ['linux_' + machine]\n\
        for tag in tags.cpython_tags((3, 13), ['cp313'], platforms): print(tag)\n\
        for tag in tags.compatible_tags((3, 13), 'cp313', platforms): print(tag)\n";
    for platform in Platform::ALL {
        let listed = run(Path::new("."), "python3", &["-c", code, platform.machine()]);
        let theirs: Vec<&str> = listed.lines().collect();
        assert!(theirs.len() > 500, "{listed}");
        assert_eq!(Tags::of(&target(platform)).ordered(), theirs, "{platform}");
    }
}

#[test]
fn real_uv_and_pip_choose_what_we_choose_from_uv_lock() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let project = include_str!("../fixtures/python/uv-pyproject.toml")
        .replace(">=3.13", ">=3.10")
        .replace("yaml = [", "native = [\"numpy\", \"cryptography\", \"msgpack\", \"psutil\"]\nyaml = [");
    fs::write(folder.join("pyproject.toml"), project).unwrap();
    run(folder, "uv", &["lock"]);
    let lock = uv_lock("uv.lock");
    for (selection, flags) in [
        (lock.clone(), &["--no-default-groups"][..]),
        (lock.clone().extra("native"), &["--no-default-groups", "--extra", "native"]),
        (lock.clone().extra("all").extra("old"), &["--no-default-groups", "--extra", "all", "--extra", "old"]),
        (lock.clone().extra("new"), &["--no-default-groups", "--extra", "new"]),
        (lock.clone().group("docs"), &["--only-group", "docs"]),
        (lock.clone().group("rag"), &["--only-group", "rag"]),
        (lock.group("main").group("rag").extra("yaml"), &["--no-default-groups", "--group", "rag", "--extra", "yaml"]),
    ] {
        let export = ["export", "--quiet", "--no-hashes", "--no-emit-project", "--no-header", "--no-annotate"];
        let requirements = run(folder, "uv", &[&export[..], flags].concat());
        compare(folder, &selection, &requirements);
    }
}

#[test]
fn real_poetry_uv_and_pip_choose_what_we_choose_from_poetry_lock() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let project = format!(
        r#"
        [project]
        name = "sample"
        version = "0.1.0"
        requires-python = ">=3.11,<4"
        dependencies = ["markupsafe>=2", "click"]
        [project.optional-dependencies]
        yaml = ["pyyaml>=6"]
        [tool.poetry]
        package-mode = false
        [[tool.poetry.source]]
        name = "index"
        url = "{}"
        priority = "primary"
        [tool.poetry.group.docs.dependencies]
        jinja2 = "*"
        colorama = {{version = "*", markers = "sys_platform == 'win32'"}}
        [tool.poetry.group.rag.dependencies]
        httpx = {{version = "*", extras = ["http2"]}}
        numpy = [{{version = "<2", python = "<3.13"}}, {{version = ">=2", python = ">=3.13"}}]
        jinja2 = {{version = "*", markers = "platform_machine == 'aarch64'"}}
        "#,
        index(folder)
    );
    fs::write(folder.join("pyproject.toml"), project).unwrap();
    run(folder, "poetry", &["lock", "--no-interaction"]);
    let lock = poetry_lock("poetry.lock");
    for (selection, flags) in [
        (lock.clone(), &["--only", "main"][..]),
        (lock.clone().extra("yaml"), &["--only", "main", "--extras", "yaml"]),
        (lock.clone().group("docs"), &["--only", "docs"]),
        (lock.clone().group("rag"), &["--only", "rag"]),
        (lock.group("docs").group("rag"), &["--only", "docs,rag"]),
    ] {
        let export = ["export", "--without-hashes", "--without-urls", "-f", "requirements.txt", "-o", "exported.txt"];
        run(folder, "poetry", &[&export[..], flags].concat());
        compare(folder, &selection, &fs::read_to_string(folder.join("exported.txt")).unwrap());
    }
}
