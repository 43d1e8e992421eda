//! The retrieval service's own tests, by pytest in the Python of its stage: trixie's 3.13, the wheels of its lock file.

use std::fs;
use std::process::Command;

use crate::support::run::{Sandbox, outcome, repository, tool};
use crate::support::shared::in_trixie;

#[test]
fn real_rag_passes_its_own_tests() {
    let sandbox = Sandbox::new();
    let project = sandbox.work().join("obelisk");
    tool("cp", ["-a".as_ref(), repository().join("images/obelisk").as_os_str(), project.as_os_str()]);
    let wanted = sandbox.work().join("requirements.txt");
    let export = ["export", "--only", "rag,test", "--without-urls", "-f", "requirements.txt", "-o"];
    outcome(Command::new("poetry").args(export).arg(&wanted).current_dir(&project)).success();
    // pip would judge the markers by the machine's own Python.
    let pins = fs::read_to_string(&wanted).unwrap();
    let unmarked = pins.lines().map(|line| match line.split_once(" ; ") {
        Some((pin, rest)) if rest.ends_with('\\') => format!("{pin} \\\n"),
        Some((pin, _)) => format!("{pin}\n"),
        None => format!("{line}\n"),
    });
    fs::write(&wanted, unmarked.collect::<String>()).unwrap();
    // The index is asked here, where it is configured; in trixie nothing is downloaded.
    let wheels = sandbox.path().join("wheels");
    let download = ["-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version", "3.13", "--no-deps"];
    let platforms = ["2_17", "2_24", "2_26", "2_27", "2_28", "2_31", "2_34", "2_35"]
        .map(|it| format!("--platform=manylinux_{it}_x86_64"));
    let mut pip = Command::new("python3");
    pip.args(download).args(platforms).arg("--require-hashes").arg("-r").arg(&wanted).arg("-d").arg(&wheels);
    outcome(&mut pip).success();
    let folder = sandbox.path().display();
    let script = format!(
        "unset PIP_FIND_LINKS PIP_CONFIG_FILE PIP_CERT; export HOME=/tmp PYTHONDONTWRITEBYTECODE=1
         mount -t tmpfs opt /opt; python3 -m venv --without-pip /opt/venv
         python3 -m pip --python /opt/venv/bin/python install --quiet --no-compile --no-cache-dir --no-index \
           --find-links '{folder}/wheels' --require-hashes -r '{}'
         cd '{}' && /opt/venv/bin/python -m pytest -q -rs -p no:cacheprovider",
        wanted.display(),
        project.display()
    );
    let said = outcome(&mut in_trixie(&[sandbox.path()], &script));
    let summary = said.stdout.lines().last().unwrap_or_default().to_owned();
    assert_eq!(said.status, 0, "{}\n{}", said.stdout, said.stderr);
    let counted = |what: &str| -> u32 {
        let words: Vec<&str> = summary.split_whitespace().collect();
        words.windows(2).find(|it| it[1].trim_end_matches(',') == what).map_or(0, |it| it[0].parse().unwrap())
    };
    assert!(counted("passed") >= 90 && counted("skipped") == 0, "{}", said.stdout);
}
