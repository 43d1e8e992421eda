//! Commands for a platform that is not the machine's: emulated where the definition says so.

use std::process::Command;

use layers::{Catalogue, Stage, command, debian, path};

use crate::support::elsewhere::{commands, elsewhere, line};
use crate::support::layout::Layout;
use crate::support::run::{Sandbox, outcome};
use crate::support::shared::in_trixie;

/// The machine's platform, the other one, and what `uname -m` says there.
fn platforms() -> [(&'static str, &'static str); 2] {
    let (amd64, arm64) = (("amd64", "x86_64"), ("arm64", "aarch64"));
    if std::env::consts::ARCH == "x86_64" { [amd64, arm64] } else { [arm64, amd64] }
}

/// An image with a file in which a command wrote what it sees of its machine; the lock is made.
fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    let asked = Stage::scratch()
        .layer(debian(["base-files", "busybox-static"]).slim())
        .run(command(["busybox", "sh", "-c", "mkdir /out; uname -m > /out/machine"]).emulated());
    let image = Stage::scratch().layer(asked.take(path!("/out"))).image();
    sandbox.write("plan.json", Catalogue::new("emulated").with("app", image).plan().to_json());
    sandbox.imgbuild(["--catalogue", "plan.json", "lock"]).success();
    sandbox
}

#[test]
fn real_a_command_is_emulated_for_the_other_platform_and_plan_tells_the_price() {
    let sandbox = project();
    let [(native, machine), (foreign, other)] = platforms();
    let plan = |platform| sandbox.imgbuild(["--catalogue", "plan.json", "plan", "--platform", platform]).success();
    assert!(plan(foreign).contains("/out/machine', emulated  (tests/"), "{}", plan(foreign));
    let build = ["--catalogue", "plan.json", "build", "--metadata-file", "built.json", "--check-deterministic"];
    sandbox.imgbuild([&build[..], &["--platform", "amd64,arm64"]].concat()).success();
    let images = Layout::open(&sandbox.work().join("dist")).image("app");
    let said = |at: usize| String::from_utf8(images[at].content("out/machine")).unwrap();
    let mut both = [(native, format!("{machine}\n")), (foreign, format!("{other}\n"))];
    both.sort();
    assert_eq!([said(0), said(1)], both.map(|(_, text)| text));
    let told = commands(&sandbox);
    let outcome_of_foreign = told.iter().find(|it| it.get("emulated").is_some()).unwrap()["outcome"].clone();
    let emulated: Vec<_> = told.iter().map(|it| (it["platform"].clone(), it.get("emulated").is_some())).collect();
    let mut expected = [(format!("linux/{native}"), false), (format!("linux/{foreign}"), true)];
    expected.sort();
    assert_eq!(emulated, expected.map(|(platform, emulated)| (platform.into(), emulated)));
    // In a root of another machine, whose kernel gives no user namespaces: made anew by the sandbox `chroot`.
    let again = format!("--platform {foreign} --check-deterministic");
    let (other, program) = elsewhere(&sandbox, &["plan.json", "images.lock"], "0");
    let script = line(&other, &program, "2").replace("--platform amd64", &again).replace("--offline ", "");
    let script = script.replace(other.cache().to_str().unwrap(), sandbox.cache().to_str().unwrap());
    outcome(&mut in_trixie(&[other.path(), sandbox.path()], &script)).success();
    let told = commands(&other);
    assert_eq!((&told[0]["sandbox"], &told[0]["outcome"]), (&"chroot".into(), &outcome_of_foreign));
    assert!(plan(foreign).contains("/out/machine', emulated, ") && plan(foreign).contains(" s last time"));
    assert!(plan(native).contains(" s last time") && !plan(native).contains("emulated"), "{}", plan(native));
}

#[test]
fn real_what_a_machine_lacks_to_emulate_is_told() {
    let sandbox = project();
    let [_, (foreign, machine)] = platforms();
    // A user namespace has interpreters of its own, which whoever made it registers (since Linux 6.7).
    let build = |register: &str| {
        let script = format!(
            "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc; {register}
             exec \"$@\" --catalogue plan.json build --platform {foreign}"
        );
        let imgbuild = sandbox.command::<&str>([]);
        let mut command = Command::new("unshare");
        sandbox.place(&mut command);
        command.args(["--user", "--map-root-user", "--mount", "sh", "-ec", &script, "sh"]).arg(imgbuild.get_program());
        outcome(&mut command)
    };
    let none = format!("its kernel has no interpreter for programs of {machine}");
    build("").failure(1, &[&none, "qemu-user-static", "tests/it/emulation_real.rs:"]);
    let number = if machine == "aarch64" { "\\xb7" } else { "\\x3e" };
    let magic = format!("\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00{number}\\x00");
    let mask = "\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff";
    let register = |flags: &str| {
        let line = format!(":q:M::{magic}:{mask}:/usr/bin/qemu-{machine}-static:{flags}");
        format!("printf %s '{line}' > /proc/sys/fs/binfmt_misc/register;")
    };
    build(&register("")).failure(1, &["is registered without flag F"]);
    // What an ordinary user can do without anybody's help.
    build(&register("F")).success();
}
