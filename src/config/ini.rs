//! pip.conf, AWS's credentials: what Python's configparser makes of them, as far as these options need.

use std::collections::BTreeMap;

/// Options by section; later ones win. Option names are in small letters, parted by dashes, without pip's leading ones.
pub(super) fn parse(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut sections: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut section = String::new();
    let mut option = String::new();
    for line in text.trim_start_matches('\u{feff}').lines() {
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with(['#', ';']) {
            continue;
        }
        let options = sections.entry(section.clone()).or_default();
        if line.starts_with([' ', '\t']) && !option.is_empty() {
            if let Some(value) = options.get_mut(&option) {
                value.push('\n');
                value.push_str(bare);
            }
        } else if let Some(name) = bare.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            section = name.0.to_owned();
            option.clear();
        } else if let Some((name, value)) = bare.split_once(['=', ':']) {
            option = name.trim().to_ascii_lowercase().replace('_', "-").trim_start_matches("--").to_owned();
            options.insert(option.clone(), value.trim().to_owned());
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_pip_reads_them() {
        let parsed = parse(
            "\u{feff}; a comment\n[global]\nindex_url = https://one.example/simple\nextra-index-url:\n    https://two.example/\n\
            \thttps://three.example/\n# x\n[install]\n--index-url=https://four.example\nnonsense\n",
        );
        assert_eq!(parsed["global"]["index-url"], "https://one.example/simple");
        assert_eq!(parsed["global"]["extra-index-url"], "\nhttps://two.example/\nhttps://three.example/");
        assert_eq!(parsed["install"]["index-url"], "https://four.example");
    }
}
