//! Files of compose, judged by Docker Compose.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use deployments::ENVIRONMENTS;
use deployments::compose::{Condition, dotenv};
use serde_json::Value;

use crate::common::{entry, project, root, schema};
use crate::run;

fn compose(environment: &str, arguments: &[&str]) -> String {
    let file = entry(environment);
    let mut all = vec!["compose", "-f", file.to_str().unwrap(), "--profile", "*", "config"];
    all.extend(arguments);
    run("docker", &all, "")
}

#[test]
fn real_compose_merges_and_interpolates_as_we_do() {
    for environment in ENVIRONMENTS {
        let theirs: Value = serde_json::from_str(&compose(environment, &["--format", "json"])).unwrap();
        let ours = project(environment);
        assert_eq!(theirs["name"], ours.name);
        let services = ours.services();
        let theirs = theirs["services"].as_object().unwrap();
        assert_eq!(theirs.keys().collect::<Vec<_>>(), services.keys().collect::<Vec<_>>(), "{environment}");
        for (name, service) in &services {
            let at = format!("{environment}: {name}");
            let it = &theirs[name];
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            assert_eq!(it["image"], service.image, "{at}");
            assert_eq!(it["user"].as_str(), service.user.as_deref(), "{at}");
            assert_eq!(it["restart"].as_str(), service.restart.as_deref(), "{at}");
            assert_eq!(it["read_only"].as_bool().unwrap_or(false), service.read_only, "{at}");
            let mapping = |value: &Value| -> BTreeMap<String, String> {
                value.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
            };
            assert_eq!(mapping(&it["environment"]), service.environment, "{at}");
            assert_eq!(mapping(&it["labels"]), service.labels, "{at}");
            let names: BTreeSet<String> =
                it["networks"].as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect();
            assert_eq!(names, service.networks, "{at}");
            let waits: BTreeMap<String, Condition> = it["depends_on"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(on, value)| {
                    let condition = match value["condition"].as_str().unwrap() {
                        "service_healthy" => Condition::Healthy,
                        "service_completed_successfully" => Condition::Completed,
                        _ => Condition::Started,
                    };
                    (on.clone(), condition)
                })
                .collect();
            assert_eq!(waits, service.depends_on, "{at}");
            let list = |value: &Value| -> Vec<Value> { value.as_array().cloned().unwrap_or_default() };
            let health: Vec<String> = list(&it["healthcheck"]["test"]).iter().map(text).collect();
            // Compose prints a dollar sign as it is written in a file.
            let ours: Vec<String> = service.health.iter().map(|word| word.replace('$', "$$")).collect();
            assert_eq!(health, ours, "{at}");
            let ports: Vec<(Option<u16>, u64)> = list(&it["ports"])
                .iter()
                .map(|port| {
                    (port["published"].as_str().and_then(|it| it.parse().ok()), port["target"].as_u64().unwrap())
                })
                .collect();
            let ours: Vec<(Option<u16>, u64)> =
                service.ports.iter().map(|port| (port.host, u64::from(port.container))).collect();
            assert_eq!(ports, ours, "{at}");
            let mounts: BTreeSet<(String, bool)> = list(&it["volumes"])
                .iter()
                .map(|it| (it["target"].as_str().unwrap().to_owned(), it["read_only"].as_bool().unwrap_or(false)))
                .collect();
            let ours: BTreeSet<(String, bool)> =
                service.mounts.iter().map(|mount| (mount.target.clone(), mount.read_only)).collect();
            assert_eq!(mounts, ours, "{at}");
            let secrets: BTreeSet<String> = list(&it["secrets"]).iter().map(|it| text(&it["source"])).collect();
            assert_eq!(secrets, service.secrets, "{at}");
        }
    }
}

#[test]
fn real_compose_knows_no_variable_that_the_schema_lacks() {
    let schema = schema();
    for environment in ENVIRONMENTS {
        let table = compose(environment, &["--variables"]);
        let names: Vec<&str> = table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
        assert!(names.len() > 50, "{environment}: {table}");
        for name in names {
            let known = schema.variable(name).is_some_and(|variable| variable.is_setting());
            assert!(known, "{environment}: compose reads `{name}`, env/schema.toml does not know it as a setting");
        }
    }
}

/// Files of settings, and whether we refuse what Compose takes: nobody means it.
const ENVIRONMENT_FILES: &[(&str, bool)] = &[
    ("A=1", false),
    ("export A=1\n export  B = 2 \nexport\tC=3", false),
    ("A=a b  \nB=a # c\nC=a#c\nD=#c\nE= # c\nF=x #\nG=x\t# y", false),
    ("A=\"x # y\" # z\nB='x # y' # z\nC=\"x\"# y\nD=x\"y\"z\nE=it's\nF=\"a'b\"\nG='a\"b'", false),
    (
        r#"A="a\nb|\t|\r|\\|\a|\v|\q|\c"
B='a\nb'
C="a\"b"
D='a\'b'
E=a\nb
F=a\ b
G=\"x
H=x\"#,
        false,
    ),
    ("B=2\nA=$B\nC=${B}x\nD='$B'\nE=\"$B\"\nF=$B$B-$G\nG=1", false),
    ("A=$$b\nB=\"a$$b\"\nC='$$'\nD=5$\nE=$(x)\nF=$1\nG=\"\\$B\"\nH=\\$B", false),
    ("A=${Z:-d}\nB=${Z-d}\nC=\"${Z:-d e}\"\nD=\nE=${D:-d}\nF=${D-d}\nG=${A:+y}${Z:+n}\nH=${Z:-${A}}", false),
    ("A=${OUTSIDE}\nB=$OUTSIDE\nOUTSIDE=inside\nC=$OUTSIDE", false),
    ("A=1\nA=2\nB=1\nB=\nC=\nC=1", false),
    ("A=\nB=\"\"\nC=''\nD= \nE=\t", false),
    ("A=1\r\nB=\"2\"\r\nC='3' # x\r\n# d\r\nD=4 # x\r\n\r\nE=$B\r\n", false),
    ("\u{feff}A=1", false),
    ("A=\"line1\nline2\"\nB='l1\nl2'\nC=3", false),
    ("# c\n  # d\n\n  A=1\n\tB=2\n", false),
    ("A: 1\nB:\"x\"\nC : 3", false),
    ("A=1;B=2\nC=a=b=c\nD=`x`\nE=\u{65e5}\u{672c}\nF=a\tb\nG=\u{a0}1", false),
    ("A=\"x\" B=2\nC='y'D=3", false),
    ("1A=2\nA-B=1\nA.B=1\nA[0]=1\nA=3", false),
    ("exporting=1\nA=2", false),
    ("A", false),
    ("=x", false),
    ("A B=1", false),
    ("A+=1", false),
    ("A=\"x", false),
    ("A='x\nB=1", false),
    ("A=\"x\"y", false),
    ("A='a''b'", false),
    ("A=\"x\" y # z", false),
    ("A=${B", false),
    ("A=${Z:?must}", false),
    ("A=\"${B:-\"q\"}\"", false),
    ("A\nB=1", true),
    ("export A\nB=1", true),
    ("A=\"\\0101\"", true),
];

#[test]
fn real_compose_reads_environment_files_as_we_do() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let names = ["A", "B", "C", "D", "E", "F", "G", "H"];
    let lines: String = names.iter().map(|name| format!("      {name}: '<${{{name}-unset}}>'\n")).collect();
    let file = write("c.yaml", &format!("name: x\nservices:\n  s:\n    image: i\n    environment:\n{lines}"));
    for (text, refused) in ENVIRONMENT_FILES {
        let path = write("e.env", text);
        let mut compose = Command::new("docker");
        compose.args(["compose", "--env-file"]).arg(&path).arg("-f").arg(&file).args(["config", "--format", "json"]);
        for name in names {
            compose.env_remove(name);
        }
        let output = compose.env("OUTSIDE", "o").output().unwrap();
        let theirs = output.status.success().then(|| {
            let model: Value = serde_json::from_slice(&output.stdout).unwrap();
            // Compose prints a dollar sign as it is written in a file.
            let value = |name: &str| model["services"]["s"]["environment"][name].as_str().unwrap().replace("$$", "$");
            names.map(value)
        });
        let ours = dotenv(&path, text, &|name| (name == "OUTSIDE").then(|| "o".to_owned()));
        let ours = ours.map(|it| names.map(|name| it.get(name).map_or("<unset>".into(), |value| format!("<{value}>"))));
        match (ours, theirs) {
            (Ok(ours), Some(theirs)) => assert_eq!(ours, theirs, "{text:?}"),
            (Err(_), None) => {}
            (Err(error), Some(theirs)) => assert!(*refused, "{text:?}: {error}, Compose reads {theirs:?}"),
            (Ok(ours), None) => panic!("{text:?}: {ours:?}, Compose: {}", String::from_utf8_lossy(&output.stderr)),
        }
        assert!(!refused || dotenv(&path, text, &|_| None).is_err(), "{text:?} is not refused");
    }
}

#[test]
fn real_compose_parses_each_base_file_with_what_it_stands_on() {
    let base = |name: &str| root().join(format!("docker/compose/base/{name}.yaml")).display().to_string();
    let (core, vectors, rag) = (base("core"), base("vector-db"), base("rag"));
    run("docker", &["compose", "-f", &core, "config", "--quiet"], "");
    run("docker", &["compose", "-f", &vectors, "config", "--quiet"], "");
    run("docker", &["compose", "-f", &core, "-f", &vectors, "-f", &rag, "config", "--quiet"], "");
    let (dev, gpu) = (entry("dev"), root().join("docker/compose/overrides/gpu.yaml"));
    let text = run("docker", &["compose", "-f", dev.to_str().unwrap(), "-f", gpu.to_str().unwrap(), "config"], "");
    assert!(text.contains("driver: nvidia") && !text.contains("runtime:"), "{text}");
}
