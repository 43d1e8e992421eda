//! Where links of the stage below lead what a download brings: it goes through `/bin -> usr/bin`, never over it.
//!
//! Archives are converted as their definition says before anything is known of the stage. Only where the walk finds a link on the
//! way of one is it converted once more, to where the link leads.

use std::collections::BTreeMap;
use std::sync::Arc;

use layers::ImagePath;
use layers::encode::Kind;
use layers::op::{Archive, Conversion};

use super::EngineError;
use super::convert::{Drops, MERGED};
use super::index::Fragment;
use super::local::Local;
use super::tree::Tree as _;
use super::view::{View, ViewError};

impl Local<'_> {
    /// What a converted archive comes to on top of this view.
    pub(super) fn led(
        &self,
        archive: &Archive,
        conversion: &Conversion,
        fragment: &Arc<Fragment>,
        view: &View<'_>,
    ) -> Result<Arc<Fragment>, EngineError> {
        match led(conversion, fragment, view)? {
            Some(led) => self.unpack(archive, &led, &Drops::new()),
            None => Ok(fragment.clone()),
        }
    }
}

/// The conversion by which all goes where links lead; `None` where that is this one. Packages have a rule of their own.
fn led(conversion: &Conversion, fragment: &Fragment, view: &View<'_>) -> Result<Option<Conversion>, ViewError> {
    Ok(match conversion {
        Conversion::Deb { .. } | Conversion::Wheel { .. } => None,
        Conversion::File { to, mode, owner } => {
            let led = view.through_links(to)?;
            (led != *to).then_some(Conversion::File { to: led, mode: *mode, owner: *owner })
        }
        Conversion::Unpack { how, to, strip_components, owner, .. } => {
            let led = view.through_links_into(to)?;
            let mut aliases = BTreeMap::new();
            for name in MERGED.into_iter().filter(|_| led.is_root()) {
                let (Ok(alias), Ok(held)) = (led.join(name), to.join(name)) else { continue };
                let is_link = view.entry(&alias).is_some_and(|entry| matches!(entry.kind, Kind::Symlink { .. }));
                if is_link && has_inside(fragment, &held) {
                    let place = view.through_links_into(&alias)?;
                    aliases.extend((place != alias).then_some((alias, place)));
                }
            }
            (led != *to || !aliases.is_empty()).then_some(Conversion::Unpack {
                how: *how,
                to: led,
                strip_components: *strip_components,
                owner: *owner,
                aliases,
            })
        }
    })
}

/// Whether a fragment has this directory, or something in it.
fn has_inside(fragment: &Fragment, dir: &ImagePath) -> bool {
    fragment.dirs.iter().any(|it| it.path.starts_with(dir))
        || fragment.entries.iter().any(|it| it.entry.path.starts_with(dir) && it.entry.path != *dir)
}
