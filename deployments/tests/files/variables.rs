//! Variables: what services read, what is described, and what follows from each.

use std::collections::BTreeSet;

use deployments::ENVIRONMENTS;
use deployments::compose::{Project, Settings};

use super::common::{entry, project, root, schema};

/// Each variable of a limit changes the limit of the services that it is for, and no other, in every environment.
#[test]
fn every_limit_follows_its_variable_in_every_environment() {
    let schema = schema();
    let is_limit = |name: &str| name.ends_with("_CPU_LIMIT") || name.ends_with("_MEMORY_LIMIT");
    let mut changed = 0;
    for environment in ENVIRONMENTS {
        let limits = |settings: &Settings| -> Vec<(String, &'static str, String)> {
            let project = Project::with(&entry(environment), &[], settings, &|_| None).unwrap();
            let services = project.services().into_values();
            services
                .flat_map(|it| {
                    ["cpus", "memory"]
                        .map(|kind| (it.name.clone(), kind, it.limits.get(kind).cloned().unwrap_or_default()))
                })
                .collect()
        };
        let before = limits(&Settings::new());
        assert!(before.iter().all(|(name, kind, limit)| !limit.is_empty() || panic!("{environment}: {name} {kind}")));
        let variables = schema.variables.iter().filter(|it| is_limit(&it.name) && it.is_known_in(environment));
        for variable in variables {
            let kind = if variable.name.ends_with("_CPU_LIMIT") { "cpus" } else { "memory" };
            let value = if kind == "cpus" { "0.123" } else { "123m" };
            let after = limits(&Settings::from([(variable.name.clone(), value.to_owned())]));
            let differ: Vec<&(String, &str, String)> =
                after.iter().zip(&before).filter(|(now, then)| now != then).map(|(now, _)| now).collect();
            assert!(!differ.is_empty(), "{environment}: {} changes nothing", variable.name);
            assert!(differ.iter().all(|(_, of, limit)| *of == kind && limit == value), "{}: {differ:?}", variable.name);
            changed += differ.len();
        }
    }
    assert!(changed > 60, "{changed}");
    // What differs: the stand-ins of the tests need a fraction of what models need, and a whole processor to start at once.
    let limit =
        |environment: &str, service: &str, kind: &str| project(environment).services()[service].limits[kind].clone();
    for (service, kind, test, prod) in [
        ("ollama", "cpus", "1.0", "4.0"),
        ("ollama", "memory", "1g", "8g"),
        ("milvus", "memory", "1g", "4g"),
        ("postgres", "cpus", "1.0", "0.5"),
    ] {
        assert_eq!((limit("test", service, kind), limit("prod", service, kind)), (test.to_owned(), prod.to_owned()));
    }
}

#[test]
fn what_a_service_of_ours_is_told_is_what_it_reads() {
    let read = |path: &str| std::fs::read_to_string(root().join("../images").join(path)).unwrap();
    let all = |paths: &[&str]| paths.iter().map(|path| read(path)).collect::<String>();
    let config = read("obelisk/src/obelisk/rag/config.py");
    let init = ["common", "init-sequence", "generate-tokens", "download-models", "configure-services"];
    let init = all(&init.map(|name| format!("init/{name}.sh")).each_ref().map(String::as_str));
    let core = all(&["core/entrypoint.sh", "core/serve.py", "obelisk/mkdocs.yml"]);
    let word = |text: &str, name: &str| {
        text.lines().filter(|line| !line.trim_start().starts_with('#')).any(|line| {
            line.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').any(|it| it == name)
        })
    };
    let reads = |service: &str, name: &str| match service {
        // Where the file is stands before all settings.
        "rag" if name == "OBELISK_CONFIG" => config.contains("environ.get(\"OBELISK_CONFIG\")"),
        // Each setting is a line of one table; a secret may be told as a file.
        "rag" => [name, name.strip_suffix("_FILE").unwrap_or(name)].iter().enumerate().any(|(at, it)| {
            config.lines().skip_while(|line| !line.starts_with("class Settings")).any(|line| {
                line.starts_with(&format!(
                    "    {}: {}",
                    it.to_lowercase(),
                    if at == 1 && *it != name { "Secret" } else { "" }
                ))
            })
        }),
        "init" => {
            let secret = name.strip_suffix("_FILE").is_some_and(|it| init.contains(&format!("secret {it}\n")));
            secret || word(&init, name)
        }
        // The C library reads TZ.
        "core" => name == "TZ" || word(&core, name),
        other => panic!("{other}"),
    };
    assert!(!reads("init", "WAIT_TIMEOUTS") && !reads("rag", "CHUNK") && !reads("rag", "OLLAMA_URL_FILE"));
    let mut seen = 0;
    for environment in ENVIRONMENTS {
        let services = project(environment).services();
        for service in ["rag", "init", "core"] {
            for name in services[service].environment.keys() {
                assert!(reads(service, name), "{environment}: `{service}` is told `{name}` and does not read it");
                seen += 1;
            }
        }
    }
    assert!(seen > 100, "{seen}");
}

/// What init writes for the retrieval service is what it uses: no variable of its container, of compose or of its image, says
/// something else.
#[test]
fn nothing_wins_over_what_init_writes_for_rag() {
    let read = |path: &str| std::fs::read_to_string(root().join("../images").join(path)).unwrap();
    let init = read("init/configure-services.sh");
    let written = init.split_once("write 0444 rag/rag.yaml").unwrap().1;
    let settings = written.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(": "));
    let names: BTreeSet<String> = settings.map(|(name, _)| name.to_uppercase()).collect();
    assert!(names.len() >= 7 && names.contains("MILVUS_URI") && names.contains("OLLAMA_MODEL"), "{names:?}");
    let image = read("src/rag.rs");
    for environment in ENVIRONMENTS {
        let rag = &project(environment).services()["rag"];
        assert_eq!(rag.environment["OBELISK_CONFIG"], "/app/config/rag.yaml");
        for name in &names {
            let told = rag.environment.get(name).map(String::as_str);
            let of_image = image.contains(&format!(".env(\"{name}\""));
            assert!(
                told == Some("") || (told.is_none() && !of_image),
                "{environment}: {name}: {told:?}, image: {of_image}"
            );
        }
    }
}

/// What is read and is no setting of the deployments: the service, the variable, why.
const INTERNAL: [(&str, &str, &str); 21] = [
    ("init", "OBELISK_LIB", "where common.sh is: its tests run the scripts from another place"),
    ("init", "OLLAMA_API_BASE", "follows OLLAMA_API_URL; differs where LiteLLM reaches Ollama by another address"),
    ("init", "TOKENS_DIR", "the image says where its volume is"),
    ("init", "CONFIG_DIR", "the image says where its volume is"),
    ("init", "TOKENS_GID", "who reads tokens here runs as the job's own group"),
    ("init", "INIT_DEADLINE_SECONDS", "an older name of WAIT_TIMEOUT"),
    ("init", "LITELLM_MASTER_KEY", "given as a file"),
    ("init", "OPENAI_API_KEY", "given as a file"),
    ("rag", "API_TOKEN", "given as a file"),
    ("rag", "MILVUS_TOKEN", "given as a file"),
    ("rag", "OPENAI_API_KEY", "given as a file"),
    ("rag", "LITELLM_API_KEY", "given as a file"),
    ("rag", "TOKENS_FILE", "LITELLM_API_KEY_FILE says it"),
    ("rag", "MILVUS_HOST", "an older form of MILVUS_URI, which wins"),
    ("rag", "MILVUS_PORT", "an older form of MILVUS_URI, which wins"),
    ("rag", "EMBEDDING_MODEL", "in the file that init writes"),
    ("rag", "OLLAMA_MODEL", "in the file that init writes"),
    ("rag", "LITELLM_API_URL", "in the file that init writes"),
    ("core", "API_PORT", "the image says its port"),
    ("core", "MKDOCS_CONFIG", "the image says where the file is"),
    ("core", "SITE_DIR", "the entry point says where the site is built"),
];

/// Variables that scripts of the shell read from outside: those that get a default or are never given a value.
fn read_by_shell(text: &str) -> BTreeSet<String> {
    let is_name = |letter: char| letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '_';
    let take = |text: &str| text.chars().take_while(|letter| is_name(*letter)).collect::<String>();
    let (mut read, mut wanted, mut given) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for line in text.lines().map(str::trim_start).filter(|line| !line.starts_with('#')) {
        for (at, _) in line.match_indices('$') {
            let rest = line[at + 1..].trim_start_matches(['{', '!', '#']);
            let name = take(rest);
            let is_default = rest[name.len()..].starts_with(":=") && line[at..].starts_with("${");
            if is_default { &mut read } else { &mut wanted }.insert(name);
        }
        if let Some(name) = line.strip_prefix("secret ").map(take).filter(|name| !name.is_empty()) {
            read.extend([name.clone(), format!("{name}_FILE")]);
        }
        for word in line.split(|letter: char| letter.is_whitespace() || "({;!".contains(letter)) {
            let name = take(word);
            let behind = &word[name.len()..];
            let declared = behind.is_empty()
                && ["readonly ", "local ", "export ", "declare "].iter().any(|it| line.starts_with(it));
            if behind.starts_with(['=', '[']) || behind.starts_with("+=") || declared {
                given.insert(name);
            }
        }
    }
    read.extend(wanted.difference(&given).cloned());
    // `$1`, what the shell itself knows, and jq's `$ARGS`.
    let shell = ["ARGS", "BASH_REMATCH", "EPOCHSECONDS", "LINENO", "RANDOM"];
    read.retain(|name| name.starts_with(|letter: char| letter.is_ascii_uppercase()) && !shell.contains(&name.as_str()));
    read
}

#[test]
fn every_variable_that_our_services_read_is_described() {
    let read = |path: &str| std::fs::read_to_string(root().join("../images").join(path)).unwrap();
    let scripts = |paths: &[&str]| paths.iter().map(|path| read(path)).collect::<String>();
    let names = ["common", "init-sequence", "generate-tokens", "download-models", "configure-services"];
    let init = read_by_shell(&scripts(&names.map(|name| format!("init/{name}.sh")).each_ref().map(String::as_str)));

    let mut rag = read_by_shell(&read("rag/entrypoint.sh"));
    let code = read("obelisk/src/obelisk/rag/config.py");
    let options =
        code.lines().skip_while(|line| !line.starts_with("class Settings")).take_while(|line| !line.contains("def "));
    for line in options.filter(|line| line.contains(" = _option(")) {
        let (name, kind) = line.trim().split_once(": ").unwrap();
        rag.insert(name.to_uppercase());
        rag.extend(kind.starts_with("Secret").then(|| format!("{}_FILE", name.to_uppercase())));
    }
    let asked = |text: &str, before: &str| -> Vec<String> {
        let after = text.split(before).skip(1).filter_map(|rest| rest.strip_prefix(['"', '\'']));
        after.filter_map(|rest| rest.split(['"', '\'']).next()).map(str::to_owned).collect()
    };
    let code = code + &read("obelisk/src/obelisk/cli.py");
    rag.extend([asked(&code, "environ.get("), asked(&code, "environ[")].concat());

    let mut core = read_by_shell(&read("core/entrypoint.sh"));
    let site = read("obelisk/mkdocs.yml");
    core.extend(site.split("!ENV [").skip(1).filter_map(|rest| rest.split([',', ']']).next()).map(str::to_owned));
    let serve = read("core/serve.py");
    core.extend([asked(&serve, "environ.get("), asked(&serve, "environ[")].concat());

    let (schema, mut internal) = (schema(), BTreeSet::new());
    for (service, names) in [("init", init), ("rag", rag), ("core", core)] {
        assert!(names.len() >= if service == "core" { 4 } else { 25 }, "{service}: {names:?}");
        for name in names.into_iter().filter(|name| name != "HOME") {
            let described =
                schema.variable(&name).is_some_and(|it| it.is_seen() && it.services.iter().any(|of| of == service));
            let excused = INTERNAL.iter().any(|(of, it, _)| *of == service && *it == name);
            assert!(described != excused, "`{service}` reads `{name}`: described {described}, internal {excused}");
            internal.extend(excused.then_some((service, name)));
        }
    }
    let gone: Vec<_> = INTERNAL.iter().filter(|(of, it, _)| !internal.contains(&(*of, (*it).to_owned()))).collect();
    assert!(gone.is_empty(), "nobody reads {gone:?} any more");
}
