//! Which steps share a layer.
//!
//! Every layer costs whoever pulls the image something, however small it is. Steps that are a few entries each (a user,
//! directories, links, short texts) therefore share one layer where they follow each other and none of them writes where
//! another one does. They do not share across the top of an image: its layers are also the first ones of the images that
//! stand on it.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::op::{ACCOUNTS, Op, Part};
use crate::path::ImagePath;

/// What the texts of a layer have at most together, bytes.
const TEXTS: usize = 64 << 10;

/// What the small steps of a layer write.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Whether another step may join them.
    is_open: bool,
    texts: usize,
    /// Paths, and whether each is a directory.
    written: BTreeMap<ImagePath, bool>,
}

impl Shared {
    /// A layer that begins with this step.
    pub fn of(part: &Part) -> Shared {
        let mut shared = Shared { is_open: part.ops.iter().all(is_small), ..Shared::default() };
        shared.add(part);
        shared
    }

    /// Nobody joins this layer any more.
    pub fn close(&mut self) {
        self.is_open = false;
    }

    /// Takes a step in, if it may share the layer.
    pub fn joined_by(&mut self, part: &Part) -> bool {
        // A user is added to the account files below, so it can only be the first.
        let is_small = part.ops.iter().all(|op| is_small(op) && !matches!(op, Op::AddUser(_)));
        let texts = self.texts + part.ops.iter().map(text).sum::<usize>();
        let may = self.is_open && is_small && texts <= TEXTS;
        let may = may && part.ops.iter().flat_map(written).all(|(path, is_dir)| self.is_apart(&path, is_dir));
        if may {
            self.add(part);
        }
        may
    }

    fn add(&mut self, part: &Part) {
        if self.is_open {
            self.texts += part.ops.iter().map(text).sum::<usize>();
            self.written.extend(part.ops.iter().flat_map(written));
        }
    }

    /// Whether nothing is at this path, and nothing above or below it but what lies in directories: what does does not care when
    /// that was given its attributes; below a link it would have gone somewhere else.
    fn is_apart(&self, path: &ImagePath, is_dir: bool) -> bool {
        let is_free = !self.written.contains_key(path);
        let is_in_dirs = path.ancestors().all(|above| self.written.get(&above) != Some(&false));
        let is_empty = is_dir || {
            let after = (Bound::Excluded(path.clone()), Bound::Unbounded);
            // `/a-b` comes between `/a` and what is below it.
            let near = self.written.range(after).take_while(|(other, _)| other.as_str().starts_with(path.as_str()));
            near.into_iter().all(|(other, _)| !other.starts_with(path))
        };
        is_free && is_in_dirs && is_empty
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

/// What a small operation writes, besides the directories above, and whether that is a directory.
fn written(op: &Op) -> Vec<(ImagePath, bool)> {
    match op {
        Op::Dir(dir) => vec![(dir.path.clone(), true)],
        Op::Link(link) => vec![(link.path.clone(), false)],
        Op::Inline(inline) => vec![(inline.path.clone(), false)],
        Op::AddUser(user) => {
            let files = ACCOUNTS.map(|name| (ImagePath::new(name).expect("a normal path"), false));
            files.into_iter().chain([(user.home.clone(), true)]).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use crate::lock::Lock;
    use crate::lower::lower;
    use crate::source::{dir, files, inline, link, user};
    use crate::{Catalogue, Plan, Platform, Stage, path};

    /// The layers of a stage, each as the labels of its steps.
    fn layers(stage: Stage) -> Vec<String> {
        layers_of(&Catalogue::new("x").with("other", stage.image()).plan())
    }

    /// The same of the image `other`.
    fn layers_of(plan: &Plan) -> Vec<String> {
        let top = plan.images["other"].stage;
        let resolved = lower(plan, top, &Lock::default(), Platform::Amd64, &|_| None).expect("nothing needs a lock");
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
    fn an_image_ends_a_layer() {
        let base = Stage::scratch().layer(dir(path!("/a"))).layer(dir(path!("/b")));
        let other = base.layer(dir(path!("/c"))).layer(dir(path!("/d")));
        let alone = Catalogue::new("x").with("other", other.clone().image()).plan();
        let both = Catalogue::new("x").with("base", base.clone().image()).with("other", other.image()).plan();
        assert_eq!(layers_of(&alone), ["dir /a, dir /b, dir /c, dir /d"]);
        // Also where the plan is cut down to the image on top, or has been a text.
        for plan in [both.of_images(&["other"]), Plan::from_json(&both.to_json()).expect("reads"), both] {
            assert_eq!(layers_of(&plan), ["dir /a, dir /b", "dir /c, dir /d"]);
        }
    }

    #[test]
    fn many_small_steps_have_a_short_label() {
        let at = |at: usize| crate::ImagePath::new(format!("/d{at}")).expect("a path");
        let all = (0..1000).fold(Stage::scratch(), |stage, number| stage.layer(dir(at(number))));
        assert_eq!(
            layers(all),
            ["dir /d0, dir /d1, dir /d2, dir /d3, dir /d4, dir /d5, dir /d6, dir /d7, dir /d8, dir /d9, and 990 more"]
        );
    }

    #[test]
    fn long_texts_do_not_travel_with_others() {
        let text = |size: usize, path| inline("x".repeat(size), path);
        let half = super::TEXTS / 2;
        let stage = Stage::scratch().layer(text(half, path!("/a"))).layer(text(half, path!("/b")));
        assert_eq!(layers(stage.layer(text(1, path!("/c")))), ["inline /a, inline /b", "inline /c"]);
    }
}
