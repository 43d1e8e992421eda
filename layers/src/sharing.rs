//! Which steps share a layer.
//!
//! Every layer costs whoever pulls the image something, however small it is. Steps that are a few entries each (a user,
//! directories, links, short texts) therefore share one layer where they follow each other and none of them writes where another one does, so
//! that it makes no difference which comes first. It depends on these steps alone: not on what else stands on them, nor on
//! the other images.

use crate::op::{ACCOUNTS, LayerPlan, Op, Part};
use crate::path::ImagePath;

/// What the texts of a layer have at most together, bytes.
const TEXTS: usize = 64 << 10;

/// Whether a step goes into the layer that is just below.
pub(crate) fn joins(below: &LayerPlan, next: &Part) -> bool {
    // A user is added to the account files below, so it can only be the first.
    let all_small =
        below.ops().all(is_small) && next.ops.iter().all(|op| is_small(op) && !matches!(op, Op::AddUser(_)));
    if !all_small || below.ops().chain(&next.ops).map(text).sum::<usize>() > TEXTS {
        return false;
    }
    let new: Vec<Written> = next.ops.iter().flat_map(written).collect();
    below.ops().flat_map(written).all(|one| new.iter().all(|other| one.is_apart(other)))
}

/// A path that an operation writes.
struct Written {
    path: ImagePath,
    is_dir: bool,
}

impl Written {
    fn dir(path: &ImagePath) -> Written {
        Written { path: path.clone(), is_dir: true }
    }

    fn other(path: &ImagePath) -> Written {
        Written { path: path.clone(), is_dir: false }
    }

    /// Whether it makes no difference which of them is written first. What lies in a directory does not care when that was
    /// given its attributes; below a link it would have gone somewhere else.
    fn is_apart(&self, other: &Written) -> bool {
        let is_in = |one: &Written, other: &Written| one.path.starts_with(&other.path);
        match (is_in(self, other), is_in(other, self)) {
            (false, false) => true,
            (true, true) => false,
            (true, false) => other.is_dir,
            (false, true) => self.is_dir,
        }
    }
}

/// Whether it is an entry or a few, for which nothing is fetched or read but account files.
fn is_small(op: &Op) -> bool {
    matches!(op, Op::AddUser(_) | Op::Dir(_) | Op::Link(_) | Op::Inline(_))
}

/// The length of its text, bytes.
fn text(op: &Op) -> usize {
    if let Op::Inline(inline) = op { inline.text.len() } else { 0 }
}

/// What a small operation writes, besides the directories above.
fn written(op: &Op) -> Vec<Written> {
    match op {
        Op::Dir(dir) => vec![Written::dir(&dir.path)],
        Op::Link(link) => vec![Written::other(&link.path)],
        Op::Inline(inline) => vec![Written::other(&inline.path)],
        Op::AddUser(user) => {
            let files = ACCOUNTS.map(|name| Written::other(&ImagePath::new(name).expect("a normal path")));
            files.into_iter().chain([Written::dir(&user.home)]).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use crate::lock::Lock;
    use crate::lower::lower;
    use crate::source::{dir, files, inline, link, user};
    use crate::{Catalogue, Platform, Stage, path};

    /// The layers of a stage, each as the labels of its steps.
    fn layers(stage: Stage) -> Vec<String> {
        let plan = Catalogue::new("x").with("image", stage.image()).plan();
        let top = plan.images["image"].stage;
        let resolved = lower(&plan, top, &Lock::default(), Platform::Amd64, &|_| None).expect("nothing needs a lock");
        assert_eq!(resolved.layers.last().map(|layer| layer.stage), Some(top));
        resolved.layers.iter().map(|layer| layer.label()).collect()
    }

    #[test]
    fn small_steps_that_follow_each_other_share_a_layer() {
        let stage = Stage::scratch()
            .layer(dir(path!("/data")).owner(7, 7))
            .layer(user("one", 7))
            .layer(dir(path!("/app")))
            .layer(inline("x", path!("/app/x")))
            .layer(link(path!("/bin/y"), "../app/x"))
            .layer(files("src", path!("/app/src")))
            .layer(inline("z", path!("/z")));
        let shared = "user one (7:7), dir /app, inline /app/x, link /bin/y -> ../app/x";
        assert_eq!(layers(stage), ["dir /data", shared, "files src -> /app/src", "inline /z"]);
    }

    #[test]
    fn steps_that_write_where_others_do_have_layers_of_their_own() {
        let apart = |one: Stage, labels: [&str; 2]| assert_eq!(layers(one), labels);
        let at = |path| inline("", path);
        // The second one is seen, in the place of the first.
        apart(Stage::scratch().layer(at(path!("/a"))).layer(at(path!("/a"))), ["inline /a", "inline /a"]);
        apart(Stage::scratch().layer(dir(path!("/a"))).layer(dir(path!("/a"))), ["dir /a", "dir /a"]);
        // Below a link it goes somewhere else.
        let on_link = Stage::scratch().layer(link(path!("/a"), "b"));
        apart(on_link.layer(at(path!("/a/x"))), ["link /a -> b", "inline /a/x"]);
        apart(Stage::scratch().layer(at(path!("/a/x"))).layer(link(path!("/a"), "b")), ["inline /a/x", "link /a -> b"]);
        // These hold the user.
        let on_user = || Stage::scratch().layer(user("u", 7).home(path!("/home/u")));
        apart(on_user().layer(at(path!("/etc/shadow"))), ["user u (7:7)", "inline /etc/shadow"]);
        apart(on_user().layer(dir(path!("/home/u"))), ["user u (7:7)", "dir /home/u"]);
        apart(on_user().layer(user("v", 8)), ["user u (7:7)", "user v (8:8)"]);
        assert_eq!(layers(on_user().layer(at(path!("/home/u/.profile")))), ["user u (7:7), inline /home/u/.profile"]);
    }

    #[test]
    fn long_texts_do_not_travel_with_others() {
        let text = |size: usize, path| inline("x".repeat(size), path);
        let half = super::TEXTS / 2;
        let stage = Stage::scratch().layer(text(half, path!("/a"))).layer(text(half, path!("/b")));
        assert_eq!(layers(stage.layer(text(1, path!("/c")))), ["inline /a, inline /b", "inline /c"]);
    }
}
