//! Compatibility tags (PEP 425, PEP 600, PEP 656) of CPython on glibc, and the wheels that have them.
//!
//! The order is pip's: `cp313-cp313` on the newest manylinux first, `py30-none-any` last. musllinux tags are never
//! compatible: the images hold glibc.

use std::collections::BTreeMap;
use std::str::FromStr;

use layers::Platform;
use layers::format::wheel::WheelName;
use pep440_rs::Version;

use super::Target;

/// Most combinations that a compressed tag set may expand to.
const MOST_COMBINATIONS: usize = 4096;

/// The tags that a target can install, from the best to the worst.
#[derive(Debug, Clone)]
pub struct Tags {
    ordered: Vec<String>,
    ranks: BTreeMap<String, usize>,
}

impl Tags {
    /// The tags of `target`.
    pub fn of(target: &Target) -> Tags {
        let (major, minor) = target.minor();
        let interpreter = format!("cp{major}{minor}");
        let platforms = platforms(target.platform(), target.glibc());
        let mut ordered = Vec::new();
        let mut on_platforms = |python: &str, abi: &str| {
            ordered.extend(platforms.iter().map(|platform| format!("{python}-{abi}-{platform}")));
        };
        on_platforms(&interpreter, &interpreter);
        on_platforms(&interpreter, "abi3");
        on_platforms(&interpreter, "none");
        // The stable ABI began with 3.2 (PEP 384).
        for older in (2..minor).rev() {
            on_platforms(&format!("cp{major}{older}"), "abi3");
        }
        let mut generic = vec![format!("py{major}{minor}"), format!("py{major}")];
        generic.extend((0..minor).rev().map(|older| format!("py{major}{older}")));
        for python in &generic {
            on_platforms(python, "none");
        }
        ordered.push(format!("{interpreter}-none-any"));
        ordered.extend(generic.iter().map(|python| format!("{python}-none-any")));
        let ranks = ordered.iter().enumerate().map(|(rank, tag)| (tag.clone(), rank)).collect();
        Tags { ordered, ranks }
    }

    /// All tags, the best first.
    pub fn ordered(&self) -> &[String] {
        &self.ordered
    }

    /// The place of the best tag of `wheel`, 0 being the best; `None` if it does not fit.
    pub fn rank(&self, wheel: &Candidate) -> Option<usize> {
        wheel.tags().filter_map(|tag| self.ranks.get(&tag).copied()).min()
    }
}

/// Platform tags, the best first. PEP 600: a wheel for an older glibc runs on a newer one.
fn platforms(platform: Platform, (major, minor): (u32, u32)) -> Vec<String> {
    let machine = platform.machine();
    let oldest = match platform {
        Platform::Amd64 => 5,
        // PEP 599 brought the machine, with glibc 2.17.
        Platform::Arm64 => 17,
    };
    let mut platforms = Vec::new();
    for version in (oldest..=minor).rev() {
        platforms.push(format!("manylinux_{major}_{version}_{machine}"));
        let legacy = match version {
            17 => "manylinux2014",
            12 => "manylinux2010",
            5 => "manylinux1",
            _ => continue,
        };
        platforms.push(format!("{legacy}_{machine}"));
    }
    platforms.push(format!("linux_{machine}"));
    platforms
}

/// A wheel as its file name tells of it, to choose from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The distribution, normalised.
    pub name: String,
    /// The version.
    pub version: Version,
    /// The parts of its file name, the tags in lower case.
    file: WheelName,
}

impl Candidate {
    /// Parses a file name; `None` where it is no [`WheelName`], its version is none (PEP 440), or it has too many tags.
    pub fn parse(file: &str) -> Option<Candidate> {
        let mut file: WheelName = file.parse().ok()?;
        let sets = [&mut file.python, &mut file.abi, &mut file.platform];
        let mut combinations = 1usize;
        for set in sets {
            combinations = combinations.saturating_mul(set.len());
            set.iter_mut().for_each(|tag| tag.make_ascii_lowercase());
        }
        if combinations > MOST_COMBINATIONS {
            return None;
        }
        // A local version's `+` is written as it is, or as `_` by old tools.
        let version = Version::from_str(&file.version);
        let version = version.or_else(|_| Version::from_str(&file.version.replacen('_', "+", 1))).ok()?;
        Some(Candidate { name: file.normalised(), version, file })
    }

    /// The build tag: its number and the rest. A wheel without one sorts before all others.
    pub fn build(&self) -> Option<&(u64, String)> {
        self.file.build.as_ref()
    }

    /// Whether it has no compiled parts: a wheel for each platform.
    pub fn fits_anywhere(&self) -> bool {
        self.file.platform.iter().all(|platform| platform == "any")
    }

    /// Whether it was made for a platform as compilers make it there: `linux_aarch64`, no promise about the system's age.
    pub fn is_made_for(&self, platform: Platform) -> bool {
        self.file.platform.iter().all(|tag| tag.strip_prefix("linux_") == Some(platform.machine()))
    }

    /// The tags of the compressed set, such as `cp313-cp313-manylinux_2_28_x86_64`.
    pub fn tags(&self) -> impl Iterator<Item = String> {
        let WheelName { python, abi, platform, .. } = &self.file;
        python.iter().flat_map(move |python| {
            abi.iter().flat_map(move |abi| platform.iter().map(move |platform| format!("{python}-{abi}-{platform}")))
        })
    }

    /// The tags as they are written, for messages.
    pub(super) fn written_tags(&self) -> String {
        let WheelName { python, abi, platform, .. } = &self.file;
        format!("{}-{}-{}", python.join("."), abi.join("."), platform.join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(platform: Platform) -> Tags {
        Tags::of(&Target::trixie(platform, "3.13.5").unwrap())
    }

    #[test]
    fn the_order_is_pips() {
        let amd64 = tags(Platform::Amd64);
        let rank = |tag: &str| amd64.ranks.get(tag).copied().unwrap_or_else(|| panic!("{tag} is missing"));
        let order = [
            "cp313-cp313-manylinux_2_41_x86_64",
            "cp313-cp313-manylinux_2_28_x86_64",
            "cp313-cp313-manylinux_2_17_x86_64",
            "cp313-cp313-manylinux2014_x86_64",
            "cp313-cp313-manylinux_2_12_x86_64",
            "cp313-cp313-manylinux2010_x86_64",
            "cp313-cp313-manylinux_2_5_x86_64",
            "cp313-cp313-manylinux1_x86_64",
            "cp313-cp313-linux_x86_64",
            "cp313-abi3-manylinux_2_41_x86_64",
            "cp313-none-linux_x86_64",
            "cp312-abi3-manylinux_2_41_x86_64",
            "cp32-abi3-linux_x86_64",
            "py313-none-manylinux_2_41_x86_64",
            "py3-none-linux_x86_64",
            "py312-none-linux_x86_64",
            "py30-none-linux_x86_64",
            "cp313-none-any",
            "py313-none-any",
            "py3-none-any",
            "py312-none-any",
            "py30-none-any",
        ];
        for pair in order.windows(2) {
            assert!(rank(pair[0]) < rank(pair[1]), "{} before {}", pair[0], pair[1]);
        }
        assert_eq!(amd64.ordered()[0], order[0]);
        assert_eq!(amd64.ordered().last().map(String::as_str), Some("py30-none-any"));
    }

    #[test]
    fn what_does_not_run_has_no_tag() {
        let amd64 = tags(Platform::Amd64);
        for absent in [
            "cp313-cp313-manylinux_2_42_x86_64",
            "cp313-cp313-manylinux_2_4_x86_64",
            "cp313-cp313-musllinux_1_2_x86_64",
            "cp313-cp313t-manylinux_2_28_x86_64",
            "cp312-cp312-manylinux_2_28_x86_64",
            "cp314-abi3-manylinux_2_28_x86_64",
            "cp31-abi3-manylinux_2_28_x86_64",
            "cp313-cp313-manylinux_2_28_aarch64",
            "cp313-cp313-win_amd64",
            "py2-none-any",
        ] {
            assert!(!amd64.ranks.contains_key(absent), "{absent}");
        }
        let arm64 = tags(Platform::Arm64);
        assert!(arm64.ranks.contains_key("cp313-cp313-manylinux_2_17_aarch64"));
        assert!(arm64.ranks.contains_key("cp313-cp313-manylinux2014_aarch64"));
        assert!(!arm64.ranks.contains_key("cp313-cp313-manylinux_2_16_aarch64"));
        assert!(!arm64.ranks.contains_key("cp313-cp313-manylinux2010_aarch64"));
    }

    #[test]
    fn file_names_are_parsed() {
        let name = Candidate::parse("Foo_Bar.baz-1!2.0rc1+local-12a-cp313.py3-abi3.none-manylinux_2_17_x86_64.ANY.whl");
        let name = name.unwrap();
        assert_eq!((name.name.as_str(), name.version.to_string().as_str()), ("foo-bar-baz", "1!2.0rc1+local"));
        assert_eq!(name.build(), Some(&(12, "a".to_owned())));
        assert_eq!(name.tags().count(), 8);
        assert!(name.tags().any(|tag| tag == "py3-none-any"));
        assert_eq!(
            Candidate::parse("torch-2.1_cpu-cp313-cp313-linux_x86_64.whl").unwrap().version.to_string(),
            "2.1+cpu"
        );
        for odd in [
            "foo-1.0.tar.gz",
            "foo-1.0-py3-none.whl",
            "foo-1.0-x1-py3-none-any.whl",
            "foo-one-py3-none-any.whl",
            "-1.0-py3-none-any.whl",
            "../foo-1.0-py3-none-any.whl",
            "foo-1.0-py3..py2-none-any.whl",
            "foo-1.0-py3-none-any/x.whl",
            "foo-1.0-1-2-py3-none-any.whl",
            "foo-1.0-99999999999999999999-py3-none-any.whl",
            "f\u{e9}-1.0-py3-none-any.whl",
            "f-1-1/x-py3-none-any.whl",
            "_foo-1.0-py3-none-any.whl",
        ] {
            assert_eq!(Candidate::parse(odd), None, "{odd}");
        }
        let many = vec!["a"; 100].join(".");
        assert_eq!(Candidate::parse(&format!("foo-1-{many}-{many}-any.whl")), None);
    }
}
