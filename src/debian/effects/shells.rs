//! `/etc/shells`, as update-shells(8) of debianutils keeps it.

use super::draft::Draft;
use super::{EffectError, Package};
use crate::debian::follow;

const FIRST: &str = "/usr/share/debianutils/shells";
const PARTS: &str = "/usr/share/debianutils/shells.d";
const SHELLS: &str = "/etc/shells";
const STATE: &str = "/var/lib/shells.state";

pub(super) fn debianutils(draft: &mut Draft<'_>, _: &Package) -> Result<(), EffectError> {
    draft.copy_new(FIRST, SHELLS)
}

/// Adds the shells that packages registered. Runs for every tree that has `/etc/shells` and the template beside it.
pub(super) fn update(draft: &mut Draft<'_>) -> Result<(), EffectError> {
    let (Some(old), Some(first)) = (draft.text(SHELLS)?, draft.text(FIRST)?) else { return Ok(()) };
    let mut packaged: Vec<String> = Vec::new();
    let mut parts = vec![first];
    for path in draft.files(PARTS) {
        parts.extend(draft.text(path.as_str())?);
    }
    for part in &parts {
        for shell in names(part) {
            let (directory, name) = shell.rsplit_once('/').unwrap_or(("", &shell));
            let real =
                follow::resolve(draft, directory).map(|path| format!("{}/{name}", path.as_str().trim_end_matches('/')));
            for shell in [Some(shell.clone()), real].into_iter().flatten() {
                if !packaged.contains(&shell) {
                    packaged.push(shell);
                }
            }
        }
    }
    let known: Vec<String> = draft.text(STATE)?.map(|state| names(&state)).unwrap_or_default();
    let mut listed: Vec<String> = Vec::new();
    let mut text = String::new();
    for line in String::from_utf8_lossy(&old).lines() {
        let shell = line.split('#').next().unwrap_or_default();
        let stays = shell.is_empty() || packaged.iter().any(|p| p == shell) || !known.iter().any(|k| k == shell);
        if stays && (shell.is_empty() || !listed.iter().any(|known| known == shell)) {
            text.push_str(line);
            text.push('\n');
            listed.push(shell.to_owned());
        }
    }
    for shell in packaged.iter().filter(|shell| !listed.contains(shell) && !known.contains(shell)) {
        text.push_str(shell);
        text.push('\n');
    }
    let state: String = packaged.iter().map(|shell| format!("{shell}\n")).collect();
    if old != text.as_bytes() {
        draft.rewrite(SHELLS, 0o644, text.into_bytes())?;
    }
    if draft.text(STATE)?.as_deref() != Some(state.as_bytes()) {
        draft.rewrite(STATE, 0o644, state.into_bytes())?;
    }
    Ok(())
}

fn names(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    text.lines().filter_map(|line| line.split('#').next()).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::follow::tests::Sketch;

    #[test]
    fn registered_shells_are_added_once_under_both_names() {
        let tree = Sketch::default()
            .link("/bin", "usr/bin")
            .dir("/usr/bin")
            .file(FIRST, "# valid login shells\n/bin/sh\n")
            .file(SHELLS, "# valid login shells\n/bin/sh\n")
            .file("/usr/share/debianutils/shells.d/bash", "/bin/bash\n/usr/bin/bash\n");
        let mut draft = Draft::new(&tree, 0);
        update(&mut draft).expect("shells fit");
        let text = draft.text(SHELLS).expect("readable").expect("there");
        assert_eq!(
            String::from_utf8_lossy(&text),
            "# valid login shells\n/bin/sh\n/usr/bin/sh\n/bin/bash\n/usr/bin/bash\n"
        );
        let state = draft.text(STATE).expect("readable").expect("there");
        assert_eq!(String::from_utf8_lossy(&state), "/bin/sh\n/usr/bin/sh\n/bin/bash\n/usr/bin/bash\n");
    }
}
