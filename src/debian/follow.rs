//! Following symbolic links inside a tree, never out of it (path_resolution(7), with the image's root as `/`).

use layers::ImagePath;
use layers::encode::Kind;

use crate::engine::tree::Tree;

/// As many links as Linux follows.
const MAX_LINKS: usize = 40;

/// Where `path` leads once all links are followed, the last component included. What does not exist is taken
/// literally; `None` is a loop, or a path through something that cannot be named.
pub fn resolve(tree: &dyn Tree, path: &str) -> Option<ImagePath> {
    walk(tree, path, true, &mut |_| ())
}

/// The literal name of `path`: links are followed in its directories, not in its last component.
pub fn place(tree: &dyn Tree, path: &str) -> Option<ImagePath> {
    walk(tree, path, false, &mut |_| ())
}

/// Every path that is looked at on the way to where `path` leads, in order: what is at all of these decides it.
pub fn looked_at(tree: &dyn Tree, path: &str) -> Vec<ImagePath> {
    let mut looked_at = Vec::new();
    walk(tree, path, true, &mut |path| looked_at.push(path.clone()));
    looked_at
}

/// [`resolve`], where something is there.
pub fn existing(tree: &dyn Tree, path: &str) -> Option<ImagePath> {
    resolve(tree, path).filter(|found| found.is_root() || tree.entry(found).is_some())
}

fn walk(tree: &dyn Tree, path: &str, last: bool, each: &mut dyn FnMut(&ImagePath)) -> Option<ImagePath> {
    let mut pending: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let mut at = ImagePath::root();
    let mut links = 0;
    while let Some(component) = pending.pop() {
        match component.as_str() {
            "" | "." => continue,
            ".." => {
                at = at.parent().unwrap_or_else(ImagePath::root);
                continue;
            }
            _ => {}
        }
        let next = at.join(&component).ok()?;
        each(&next);
        let more = pending.iter().any(|rest| !rest.is_empty());
        match tree.entry(&next).map(|entry| &entry.kind) {
            Some(Kind::Symlink { target }) if last || more => {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                if target.starts_with('/') {
                    at = ImagePath::root();
                }
                pending.extend(target.split('/').rev().map(str::to_owned));
            }
            _ => at = next,
        }
    }
    Some(at)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use layers::encode::Entry;

    use super::*;
    use crate::debian::elf::{self, ElfFacts};
    use crate::engine::tree::TreeError;

    /// A tree for tests, written down as a list.
    #[derive(Default)]
    pub(crate) struct Sketch {
        entries: BTreeMap<ImagePath, (Entry, Vec<u8>, Option<ElfFacts>)>,
    }

    impl Sketch {
        fn put(&mut self, path: &str, kind: Kind, mode: u32, content: &[u8]) {
            let path = ImagePath::new(path).expect("a good path");
            for parent in path.ancestors() {
                let entry = Entry::new(parent.clone(), Kind::Dir, 0o755, 0);
                self.entries.entry(parent).or_insert((entry, Vec::new(), None));
            }
            let facts = elf::facts(content);
            self.entries.insert(path.clone(), (Entry::new(path, kind, mode, 0), content.to_vec(), facts));
        }

        pub(crate) fn dir(mut self, path: &str) -> Sketch {
            self.put(path, Kind::Dir, 0o755, b"");
            self
        }

        pub(crate) fn file(mut self, path: &str, content: impl AsRef<[u8]>) -> Sketch {
            let content = content.as_ref();
            self.put(path, Kind::File { size: content.len() as u64 }, 0o644, content);
            self
        }

        pub(crate) fn link(mut self, path: &str, target: &str) -> Sketch {
            self.put(path, Kind::Symlink { target: target.into() }, 0o777, b"");
            self
        }

        pub(crate) fn entries(&mut self) -> impl Iterator<Item = &mut Entry> {
            self.entries.values_mut().map(|(entry, ..)| entry)
        }
    }

    impl Tree for Sketch {
        fn entry(&self, path: &ImagePath) -> Option<&Entry> {
            self.entries.get(path).map(|(entry, ..)| entry)
        }

        fn read(&self, path: &ImagePath) -> Result<Vec<u8>, TreeError> {
            match self.entries.get(path) {
                Some((_, content, _)) => Ok(content.clone()),
                None => Err(TreeError { path: path.clone(), why: "it is not there".into() }),
            }
        }

        fn below<'a>(&'a self, path: &ImagePath) -> Box<dyn Iterator<Item = &'a Entry> + 'a> {
            let path = path.clone();
            Box::new(self.entries.values().map(|(entry, ..)| entry).filter(move |entry| entry.path.starts_with(&path)))
        }

        fn elf(&self, path: &ImagePath) -> Option<&ElfFacts> {
            self.entries.get(path)?.2.as_ref()
        }
    }

    #[test]
    fn links_lead_inside_the_tree_only() {
        let tree = Sketch::default()
            .link("/bin", "usr/bin")
            .file("/usr/bin/nc.x", "")
            .link("/etc/alternatives/nc", "/bin/nc.x")
            .link("/usr/bin/nc", "/etc/alternatives/nc")
            .link("/out", "../../../../etc")
            .link("/loop", "loop/x");
        let text = |path: Option<ImagePath>| path.map(|path| path.to_string());
        assert_eq!(text(resolve(&tree, "/bin/nc")).as_deref(), Some("/usr/bin/nc.x"));
        assert_eq!(text(place(&tree, "/bin/nc")).as_deref(), Some("/usr/bin/nc"));
        assert_eq!(text(place(&tree, "/bin/new/deep")).as_deref(), Some("/usr/bin/new/deep"));
        assert_eq!(text(resolve(&tree, "/out/alternatives")).as_deref(), Some("/etc/alternatives"));
        assert_eq!(resolve(&tree, "/loop"), None);
        assert_eq!(existing(&tree, "/bin/none"), None);
    }
}
