//! Commands in build stages.

use layers::{Catalogue, Image, Network, Stage, command, files, inline, path};

use crate::support::run::Sandbox;

/// A catalogue of one image, `app`, written into a sandbox.
fn with(image: Image) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("plan.json", Catalogue::new("commands").with("app", image).plan().to_json());
    sandbox
}

#[test]
fn plan_shows_commands_below_what_is_taken_from_them() {
    let tool = Stage::scratch().run(command(["fetch-it"]).network(Network::Open));
    let made = Stage::scratch()
        .layer(inline("", path!("/a")))
        .run(command(["make", "all"]).input(tool.take(path!("/tool"))).input(files("src", path!("/src"))));
    let sandbox = with(Stage::scratch().layer(made.take(path!("/out"))).image());
    sandbox.imgbuild(["--catalogue", "plan.json", "lock"]).success();
    let text = sandbox.imgbuild(["--catalogue", "plan.json", "plan", "--platform", "amd64"]).success();
    let shown: Vec<&str> = text.lines().map(|line| line.split("  (tests/").next().unwrap()).collect();
    let expected = [
        "app linux/amd64: 1 layers",
        "  take /out -> /out",
        "    run make all",
        "      run fetch-it, network open: not reproducible",
    ];
    assert_eq!(shown, expected);
    assert!(text.contains("(tests/it/commands.rs:"), "{text}");
    let dot = sandbox.imgbuild(["--catalogue", "plan.json", "plan", "--format", "dot"]).success();
    assert!(dot.contains("[label=\"run make all\", style=rounded]"), "{dot}");
    assert_eq!(dot.matches("style=dashed").count(), 2, "{dot}");
}

#[test]
fn an_image_that_stands_on_a_command_is_refused_with_both_places() {
    let sandbox = with(Stage::scratch().run(["make"]).layer(inline("", path!("/a"))).image());
    let said = ["image `app` (tests/it/commands.rs:", "`run make` (tests/it/commands.rs:", "stage.take("];
    sandbox.imgbuild(["--catalogue", "plan.json", "plan"]).failure(2, &said);
}

#[test]
fn a_command_without_a_program_is_refused_with_its_place() {
    let nothing = Stage::scratch().run(command(Vec::<String>::new()));
    let sandbox = with(Stage::scratch().layer(nothing.take(path!("/a"))).image());
    let said = ["tests/it/commands.rs:", "no program"];
    sandbox.imgbuild(["--catalogue", "plan.json", "plan"]).failure(2, &said);
}

#[test]
fn what_a_take_says_more_reaches_the_image() {
    use crate::support::layout::Layout;
    let made = Stage::scratch().layer(inline("a\n", path!("/out/a")));
    let sandbox =
        with(Stage::scratch().layer(made.take(path!("/out")).to(path!("/srv")).owner(7, 8).portable()).image());
    sandbox.imgbuild(["--catalogue", "plan.json", "lock"]).success();
    sandbox.imgbuild(["--catalogue", "plan.json", "build", "--platform", "amd64,arm64"]).success();
    let images = Layout::open(&sandbox.work().join("dist")).image("app");
    let owners = |at: usize| {
        let members = images[at].layers.iter().flat_map(|layer| layer.members());
        members.map(|member| (member.path, member.owner)).collect::<Vec<_>>()
    };
    assert_eq!(owners(0), [("srv/".to_owned(), (7, 8)), ("srv/a".to_owned(), (7, 8))]);
    assert_eq!(owners(0), owners(1));
}
