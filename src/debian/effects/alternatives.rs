//! update-alternatives(1) in automatic mode: the links, and dpkg's record of the groups.
//!
//! The record (`/var/lib/dpkg/alternatives/<name>`) is written as dpkg writes it, and read again when a later layer adds
//! a choice to a group of a layer below. Where two choices have the same priority, the one whose path sorts first wins:
//! with dpkg it would depend on the order of configuration.

use std::collections::{BTreeMap, BTreeSet};

use layers::encode::Kind;

use super::draft::Draft;
use super::{EffectError, Package};
use crate::debian::scripts::{Alternative, Slave};

pub(super) const VERSION: u32 = 1;

const RECORDS: &str = "/var/lib/dpkg/alternatives";
const LINKS: &str = "/etc/alternatives";

/// A choice: its priority and the paths of the slaves that it has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Choice {
    priority: i32,
    slaves: BTreeMap<String, String>,
}

/// A link group.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    manual: bool,
    link: String,
    /// Names of slaves to their links.
    slaves: BTreeMap<String, String>,
    choices: BTreeMap<String, Choice>,
}

impl Group {
    fn new(link: &str) -> Group {
        Group { manual: false, link: link.to_owned(), slaves: BTreeMap::new(), choices: BTreeMap::new() }
    }

    /// Reads dpkg's format: mode, link, pairs of slaves, an empty line, then for each choice its path, its priority and
    /// a line for each slave, and at last an empty line.
    fn parse(text: &str) -> Option<Group> {
        let mut lines = text.lines();
        let manual = match lines.next()? {
            "auto" => false,
            "manual" => true,
            _ => return None,
        };
        let mut group = Group { manual, ..Group::new(lines.next()?) };
        loop {
            match lines.next()? {
                "" => break,
                name => group.slaves.insert(name.to_owned(), lines.next()?.to_owned()),
            };
        }
        loop {
            let path = lines.next()?;
            if path.is_empty() {
                return Some(group);
            }
            let mut choice = Choice { priority: lines.next()?.parse().ok()?, slaves: BTreeMap::new() };
            for name in group.slaves.keys() {
                match lines.next()? {
                    "" => {}
                    path => drop(choice.slaves.insert(name.clone(), path.to_owned())),
                }
            }
            group.choices.insert(path.to_owned(), choice);
        }
    }

    fn print(&self) -> String {
        let mut text = format!("{}\n{}\n", if self.manual { "manual" } else { "auto" }, self.link);
        for (name, link) in &self.slaves {
            text.push_str(&format!("{name}\n{link}\n"));
        }
        text.push('\n');
        for (path, choice) in &self.choices {
            text.push_str(&format!("{path}\n{}\n", choice.priority));
            for name in self.slaves.keys() {
                text.push_str(choice.slaves.get(name).map_or("", String::as_str));
                text.push('\n');
            }
        }
        text.push('\n');
        text
    }

    fn best(&self) -> Option<(&String, &Choice)> {
        // `max_by_key` gives the last of equals: seen from the back, that is the first path.
        self.choices.iter().rev().max_by_key(|(_, choice)| choice.priority)
    }
}

pub(super) fn install<'a>(
    draft: &mut Draft<'_>,
    alternatives: impl IntoIterator<Item = &'a Alternative>,
) -> Result<(), EffectError> {
    let mut changed: BTreeMap<String, Group> = BTreeMap::new();
    for alternative in alternatives {
        // dpkg refuses a choice that is not there, such as a manual page that `path-exclude` left out.
        if !draft.exists(&alternative.path) {
            continue;
        }
        let group = match changed.remove(&alternative.name) {
            Some(group) => group,
            None => recorded(draft, &alternative.name)?.unwrap_or_else(|| Group::new(&alternative.link)),
        };
        let mut group = Group { link: alternative.link.clone(), ..group };
        let mut choice = Choice { priority: alternative.priority, slaves: BTreeMap::new() };
        for slave in &alternative.slaves {
            group.slaves.insert(slave.name.clone(), slave.link.clone());
            choice.slaves.insert(slave.name.clone(), slave.path.clone());
        }
        group.choices.insert(alternative.path.clone(), choice);
        changed.insert(alternative.name.clone(), group);
    }
    for (name, group) in changed {
        apply(draft, &name, &group)?;
        draft.file(&format!("{RECORDS}/{name}"), 0o644, (0, 0), group.print().into_bytes())?;
    }
    Ok(())
}

/// The manual pages of PostgreSQL's programs, all as slaves of psql's: `maintscripts-functions` of postgresql-client-common.
pub(super) fn postgresql_client(draft: &mut Draft<'_>, package: &Package) -> Result<(), EffectError> {
    const MASTER: &str = "psql.1.gz";
    let version = package.name.rsplit('-').next().unwrap_or_default();
    const SECTIONS: [&str; 3] = ["man1", "man3", "man7"];
    let mut slaves = Vec::new();
    for section in SECTIONS {
        for page in draft.files(&format!("/usr/share/postgresql/{version}/man/{section}")) {
            let (name, path) = (page.file_name().to_owned(), page.as_str().to_owned());
            if name != MASTER {
                slaves.push(Slave { link: format!("/usr/share/man/{section}/{name}"), name, path });
            }
        }
    }
    if slaves.is_empty() {
        return Ok(());
    }
    for section in SECTIONS {
        draft.new_dir(&format!("/usr/share/man/{section}"), 0o755)?;
    }
    let master = Alternative {
        link: format!("/usr/share/man/man1/{MASTER}"),
        name: MASTER.to_owned(),
        path: format!("/usr/share/postgresql/{version}/man/man1/{MASTER}"),
        priority: version.parse::<i32>().map_or(0, |version| version * 10),
        slaves,
    };
    install(draft, [&master])
}

fn recorded(draft: &Draft<'_>, name: &str) -> Result<Option<Group>, EffectError> {
    let path = format!("{RECORDS}/{name}");
    let Some(bytes) = draft.text(&path)? else { return Ok(None) };
    let group = std::str::from_utf8(&bytes).ok().and_then(Group::parse);
    let why = "it is not a record of update-alternatives".to_owned();
    group.map(Some).ok_or(EffectError::Malformed { path, why })
}

fn apply(draft: &mut Draft<'_>, name: &str, group: &Group) -> Result<(), EffectError> {
    if group.manual {
        return Ok(());
    }
    let Some((path, choice)) = group.best() else { return Ok(()) };
    let mut links: Vec<(&str, &str, &str)> = vec![(name, &group.link, path)];
    for (name, link) in &group.slaves {
        if let Some(path) = choice.slaves.get(name).filter(|path| draft.exists(path)) {
            links.push((name, link, path));
        }
    }
    let mut seen = BTreeSet::new();
    for (name, link, path) in links {
        // A file that a package owns is never replaced by a link.
        let free = match draft.at(link).map(|entry| &entry.kind) {
            None => true,
            Some(Kind::Symlink { .. }) => true,
            Some(_) => false,
        };
        if !seen.insert(name) {
            continue;
        }
        draft.link(&format!("{LINKS}/{name}"), path)?;
        if free {
            draft.link(link, &format!("{LINKS}/{name}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::follow::tests::Sketch;

    fn alternative(path: &str, priority: i32, slave: Option<&str>) -> Alternative {
        let slaves = slave.map(|path| Slave { link: "/usr/bin/nawk".into(), name: "nawk".into(), path: path.into() });
        Alternative {
            link: "/bin/awk".into(),
            name: "awk".into(),
            path: path.into(),
            priority,
            slaves: slaves.into_iter().collect(),
        }
    }

    fn sketch() -> Sketch {
        Sketch::default().link("/bin", "usr/bin").file("/usr/bin/mawk", "").file("/usr/bin/gawk", "")
    }

    fn listing(tree: &Sketch, alternatives: &[Alternative]) -> Vec<String> {
        let mut draft = Draft::new(tree, 7);
        install(&mut draft, alternatives).expect("alternatives fit");
        let show = |(entry, content): super::super::Made| match entry.kind {
            Kind::Symlink { target } => format!("{} -> {target}", entry.path),
            Kind::File { .. } => {
                format!("{}: {}", entry.path, String::from_utf8(content.expect("content")).expect("text"))
            }
            _ => format!("{}/", entry.path),
        };
        draft.finish().into_iter().map(show).collect()
    }

    #[test]
    fn the_highest_priority_wins_whatever_the_order() {
        let mut both = [alternative("/usr/bin/mawk", 5, Some("/usr/bin/mawk")), alternative("/usr/bin/gawk", 10, None)];
        let expected = [
            "/etc/",
            "/etc/alternatives/",
            "/etc/alternatives/awk -> /usr/bin/gawk",
            "/usr/bin/awk -> /etc/alternatives/awk",
            "/var/",
            "/var/lib/",
            "/var/lib/dpkg/",
            "/var/lib/dpkg/alternatives/",
            "/var/lib/dpkg/alternatives/awk: auto\n/bin/awk\nnawk\n/usr/bin/nawk\n\n/usr/bin/gawk\n10\n\n/usr/bin/mawk\n5\n/usr/bin/mawk\n\n",
        ];
        assert_eq!(listing(&sketch(), &both), expected);
        both.reverse();
        assert_eq!(listing(&sketch(), &both), expected);
    }

    #[test]
    fn pages_of_postgresql_follow_that_of_psql() {
        let man = "/usr/share/postgresql/17/man";
        let tree = ["man1/createdb.1.gz", "man1/psql.1.gz", "man7/ABORT.7.gz"]
            .iter()
            .fold(Sketch::default(), |tree, page| tree.file(&format!("{man}/{page}"), ""));
        let package = Package {
            name: "postgresql-client-17".into(),
            version: "17.1-1".into(),
            architecture: "amd64".into(),
            scripts: Default::default(),
        };
        let mut draft = Draft::new(&tree, 7);
        postgresql_client(&mut draft, &package).expect("the pages fit");
        let links = draft.finish().into_iter().filter_map(|(entry, _)| match entry.kind {
            Kind::Symlink { target } => Some(format!("{} -> {target}", entry.path)),
            _ => None,
        });
        let expected = [
            format!("/etc/alternatives/ABORT.7.gz -> {man}/man7/ABORT.7.gz"),
            format!("/etc/alternatives/createdb.1.gz -> {man}/man1/createdb.1.gz"),
            format!("/etc/alternatives/psql.1.gz -> {man}/man1/psql.1.gz"),
            "/usr/share/man/man1/createdb.1.gz -> /etc/alternatives/createdb.1.gz".into(),
            "/usr/share/man/man1/psql.1.gz -> /etc/alternatives/psql.1.gz".into(),
            "/usr/share/man/man7/ABORT.7.gz -> /etc/alternatives/ABORT.7.gz".into(),
        ];
        assert_eq!(links.collect::<Vec<_>>(), expected);
        // Without pages there is nothing to be done.
        let tree = Sketch::default();
        let mut draft = Draft::new(&tree, 7);
        postgresql_client(&mut draft, &package).expect("nothing is in the way");
        assert!(draft.finish().is_empty());
    }

    #[test]
    fn a_group_below_is_taken_up_again() {
        let record = "auto\n/bin/awk\nnawk\n/usr/bin/nawk\n\n/usr/bin/mawk\n5\n/usr/bin/mawk\n\n";
        let tree = sketch().file("/var/lib/dpkg/alternatives/awk", record);
        let lower = listing(&tree, &[alternative("/usr/bin/gawk", 1, None)]);
        assert!(lower.contains(&"/etc/alternatives/awk -> /usr/bin/mawk".to_owned()), "{lower:?}");
        assert_eq!(Group::parse(record).expect("a record").print(), record);
    }

    #[test]
    fn files_of_packages_stay_and_missing_choices_are_skipped() {
        let tree = sketch().file("/usr/bin/awk", "a program");
        let made = listing(&tree, &[alternative("/usr/bin/mawk", 5, None), alternative("/usr/bin/none", 50, None)]);
        assert!(!made.iter().any(|line| line.starts_with("/usr/bin/awk")), "{made:?}");
        assert!(made.contains(&"/etc/alternatives/awk -> /usr/bin/mawk".to_owned()), "{made:?}");
    }

    #[test]
    fn of_equal_priorities_the_first_path_wins() {
        let made = listing(&sketch(), &[alternative("/usr/bin/mawk", 5, None), alternative("/usr/bin/gawk", 5, None)]);
        assert!(made.contains(&"/etc/alternatives/awk -> /usr/bin/gawk".to_owned()), "{made:?}");
    }

    #[test]
    fn a_broken_record_is_an_error() {
        let tree = sketch().file("/var/lib/dpkg/alternatives/awk", "auto\n/bin/awk\nnawk");
        let error = install(&mut Draft::new(&tree, 0), &[alternative("/usr/bin/mawk", 5, None)]).expect_err("broken");
        assert!(error.to_string().contains("/var/lib/dpkg/alternatives/awk"), "{error}");
    }
}
