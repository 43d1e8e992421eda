//! `/etc/pam.d/common-*`, as pam-auth-update(8) writes them on a fresh install: every profile of
//! `/usr/share/pam-configs` that is on by default, by priority.

use std::collections::BTreeMap;

use super::draft::Draft;
use super::{EffectError, Package};

const PROFILES: &str = "/usr/share/pam-configs";

/// A profile: its fields by name; the lines of a block are kept apart.
struct Profile {
    name: String,
    fields: BTreeMap<String, Vec<String>>,
}

impl Profile {
    fn parse(name: &str, text: &str) -> Profile {
        let mut fields: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut last = String::new();
        for line in text.lines() {
            if line.starts_with([' ', '\t']) {
                fields.entry(last.clone()).or_default().push(line.trim_start().to_owned());
            } else if let Some((field, value)) = line.split_once(':') {
                last = field.trim().to_owned();
                let value = value.trim();
                fields.entry(last.clone()).or_default().extend((!value.is_empty()).then(|| value.to_owned()));
            }
        }
        Profile { name: name.to_owned(), fields }
    }

    fn field(&self, name: &str) -> &str {
        self.fields.get(name).and_then(|lines| lines.first()).map_or("", String::as_str)
    }

    fn priority(&self) -> i32 {
        self.field("Priority").parse().unwrap_or(0)
    }

    /// The lines of a module in a stack; the first of a stack may differ.
    fn lines(&self, stack: &str, first: bool) -> &[String] {
        let initial = if first { self.fields.get(&format!("{stack}-Initial")) } else { None };
        initial.or_else(|| self.fields.get(stack)).map_or(&[], Vec::as_slice)
    }
}

pub(super) fn runtime(draft: &mut Draft<'_>, _: &Package) -> Result<(), EffectError> {
    let mut profiles = Vec::new();
    for path in draft.files(PROFILES) {
        if let Some(text) = draft.text(path.as_str())? {
            profiles.push(Profile::parse(path.file_name(), &String::from_utf8_lossy(&text)));
        }
    }
    profiles.sort_by_key(|profile| (-profile.priority(), profile.name.clone()));
    // Every known profile is remembered, so that a later run does not switch on what was off.
    let seen: String = profiles.iter().map(|profile| format!("{}\n", profile.name)).collect();
    let on: Vec<&Profile> = profiles.iter().filter(|profile| profile.field("Default") == "yes").collect();
    for kind in ["auth", "account", "password", "session", "session-noninteractive"] {
        let (target, template) = (format!("/etc/pam.d/common-{kind}"), format!("/usr/share/pam/common-{kind}"));
        let Some(template) = draft.text(&template)?.filter(|_| draft.at(&target).is_none()) else { continue };
        let (text, saved) = stack(&on, kind, &String::from_utf8_lossy(&template));
        draft.file(&target, 0o644, (0, 0), text.into_bytes())?;
        draft.file(&format!("/var/lib/pam/{kind}"), 0o644, (0, 0), saved.into_bytes())?;
    }
    if !seen.is_empty() {
        draft.new_file("/var/lib/pam/seen", 0o644, seen.as_bytes())?;
    }
    Ok(())
}

/// The file of a stack and the record of its modules.
fn stack(profiles: &[&Profile], kind: &str, template: &str) -> (String, String) {
    let word = kind.split('-').next().unwrap_or(kind);
    let stack: String = word[..1].to_uppercase() + &word[1..];
    let fits =
        |profile: &&&Profile| kind != "session-noninteractive" || profile.field("Session-Interactive-Only") != "yes";
    let of = |place: &str| -> Vec<(&str, Vec<String>)> {
        let chosen = profiles.iter().filter(fits).filter(|profile| profile.field(&format!("{stack}-Type")) == place);
        let lines = chosen
            .enumerate()
            .map(|(index, profile)| (profile.name.as_str(), profile.lines(&stack, index == 0).to_vec()));
        lines.filter(|(_, lines)| !lines.is_empty()).collect()
    };
    let (mut primary, additional) = (of("Primary"), of("Additional"));
    let is_null = primary.is_empty();
    if is_null {
        primary.push(("null", vec!["[default=1]\t\t\tpam_permit.so".to_owned()]));
    }
    let saved =
        primary.iter().chain(&additional).map(|(name, lines)| format!("Module: {name}\n{}\n", lines.join("\n")));
    let saved: String = saved.collect();
    let mut blocks = [String::new(), String::new()];
    for (block, (modules, is_null)) in blocks.iter_mut().zip([(&primary, is_null), (&additional, false)]) {
        let lines: Vec<&String> = modules.iter().flat_map(|(_, lines)| lines).collect();
        for (index, line) in lines.iter().enumerate() {
            // `end` jumps behind the last line of the block and the fallback that follows it.
            let jump = (lines.len() - index).to_string();
            // The module of a profile and its options are printed with a space between them, whether there are options or not.
            let space = if line.ends_with(".so") && !is_null { " " } else { "" };
            block.push_str(&format!("{word}\t{}{space}\n", line.replace("=end", &format!("={jump}"))));
        }
    }
    let variable = if kind == "session-noninteractive" { "session_nonint" } else { word };
    let mut text = String::new();
    for line in template.split_inclusive('\n') {
        match line.trim_end() {
            name if name == format!("${variable}_primary") => text.push_str(&blocks[0]),
            name if name == format!("${variable}_additional") => text.push_str(&blocks[1]),
            _ => text.push_str(line),
        }
    }
    (text, saved)
}
