//! Checks a closure by other means than it was made by: from the packages' own fields, name by name.

use std::collections::{BTreeMap, BTreeSet};

use super::{Chosen, Request, ResolveError};
use crate::debian::packages::Package;
use crate::debian::relation::{self, Atom, Operator};

/// What is there under one name: the package itself (`own`) or one that provides it.
struct There<'a> {
    owner: &'a str,
    version: Option<&'a str>,
    own: bool,
}

/// Fails unless every package can work: needs met, nothing excluded, nothing twice. `left_out` are the names that
/// count as there, those that left-out packages provide included.
pub(super) fn check(
    added: &[Chosen],
    request: &Request<'_>,
    left_out: &BTreeSet<&str>,
    architecture: &str,
) -> Result<(), ResolveError> {
    let broken = |why: String| Err(ResolveError::Broken { why });
    let unreadable = |package: &Package, why: relation::InvalidRelation| ResolveError::Broken {
        why: format!("{} {}: {why}", package.name(), package.version()),
    };
    let mut names: BTreeMap<String, Vec<There<'_>>> = BTreeMap::new();
    for package in request.installed.iter().chain(added).map(|chosen| &chosen.package) {
        let name = package.name();
        if names.get(name).is_some_and(|all| all.iter().any(|there| there.own)) {
            return broken(format!("`{name}` is there twice"));
        }
        if request.without.contains(name) && !request.installed.iter().any(|below| below.package.name() == name) {
            return broken(format!("`{name}` was to be left out"));
        }
        let own = There { owner: name, version: Some(package.version()), own: true };
        names.entry(name.to_owned()).or_default().push(own);
        if package.multi_arch() == "allowed" {
            let any = There { owner: name, version: Some(package.version()), own: false };
            names.entry(format!("{name}:any")).or_default().push(any);
        }
        let provided = relation::parse(package.provides()).map_err(|why| unreadable(package, why))?;
        for atom in provided.iter().flatten() {
            let version = atom.version.filter(|(operator, _)| *operator == Operator::Equal).map(|(_, text)| text);
            let there = There { owner: name, version, own: false };
            names.entry(key(atom, architecture)).or_default().push(there);
        }
    }
    let finds = |atom: &Atom<'_>, except: Option<&str>| {
        names.get(&key(atom, architecture)).is_some_and(|all| {
            all.iter().any(|there| {
                let fits = match (there.own, there.version) {
                    (true, Some(version)) => atom.fits(version),
                    (_, version) => atom.fits_provided(version),
                };
                fits && except != Some(there.owner)
            })
        })
    };
    for package in added.iter().map(|chosen| &chosen.package) {
        for field in [package.pre_depends(), package.depends()] {
            for group in relation::parse(field).map_err(|why| unreadable(package, why))? {
                let met = |atom: &Atom<'_>| left_out.contains(&*key(atom, architecture)) || finds(atom, None);
                if !group.iter().any(met) {
                    return broken(format!("`{}` needs `{}`", package.name(), relation::shown(&group)));
                }
            }
        }
    }
    for package in request.installed.iter().chain(added).map(|chosen| &chosen.package) {
        for field in [package.conflicts(), package.breaks()] {
            for atom in relation::parse(field).map_err(|why| unreadable(package, why))?.iter().flatten() {
                if finds(atom, Some(package.name())) {
                    return broken(format!("`{}` does not go with `{atom}`", package.name()));
                }
            }
        }
    }
    Ok(())
}

fn key(atom: &Atom<'_>, architecture: &str) -> String {
    match atom.qualifier {
        Some(qualifier) if qualifier != "native" && qualifier != architecture => format!("{}:{qualifier}", atom.name),
        _ => atom.name.to_owned(),
    }
}
