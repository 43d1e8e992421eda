//! Effects of the packages that every image has, and of others that only copy a file or make a directory.

use super::draft::Draft;
use super::{EffectError, Package};
use layers::encode::Kind;

const ROOT: (u32, u32) = (0, 0);
/// Groups that Debian numbers in every system (policy 9.2.2).
const MAIL: u32 = 8;
const UTMP: u32 = 43;

type Done = Result<(), EffectError>;

pub(super) fn base_passwd(draft: &mut Draft<'_>, _: &Package) -> Done {
    draft.copy_new("/usr/share/base-passwd/passwd.master", "/etc/passwd")?;
    draft.copy_new("/usr/share/base-passwd/group.master", "/etc/group")?;
    draft.new_file("/etc/subuid", 0o644, b"")?;
    draft.new_file("/etc/subgid", 0o644, b"")
}

pub(super) fn base_files(draft: &mut Draft<'_>, _: &Package) -> Done {
    if draft.at("/etc/dpkg/origins/default").is_none() && draft.exists("/etc/dpkg/origins/debian") {
        draft.link("/etc/dpkg/origins/default", "debian")?;
    }
    for (from, to) in [
        ("dot.profile", "/root/.profile"),
        ("dot.bashrc", "/root/.bashrc"),
        ("profile", "/etc/profile"),
        ("motd", "/etc/motd"),
    ] {
        draft.copy_new(&format!("/usr/share/base-files/{from}"), to)?;
    }
    for path in ["/mnt", "/srv", "/opt", "/etc/opt", "/var/opt", "/media"] {
        draft.new_dir(path, 0o755)?;
    }
    if !draft.is_dir("/var/mail") {
        draft.dir("/var/mail", 0o2775, (0, MAIL))?;
    }
    if draft.at("/var/spool/mail").is_none() {
        draft.link("/var/spool/mail", "../mail")?;
    }
    if !draft.is_dir("/run/lock") {
        draft.dir("/run/lock", 0o1777, ROOT)?;
    }
    for (path, target) in [("/var/run", "/run"), ("/var/lock", "/run/lock")] {
        if !matches!(draft.at(path).map(|entry| &entry.kind), Some(Kind::Symlink { .. })) {
            draft.link(path, target)?;
        }
    }
    for name in ["", "/share", "/share/man", "/bin", "/games", "/lib", "/libexec", "/include", "/sbin", "/src", "/etc"]
    {
        draft.new_dir(&format!("/usr/local{name}"), 0o755)?;
    }
    if draft.at("/usr/local/man").is_none() {
        draft.link("/usr/local/man", "share/man")?;
    }
    for (path, mode) in [("/var/log/wtmp", 0o664), ("/var/log/btmp", 0o660), ("/var/log/lastlog", 0o664)] {
        if draft.at(path).is_none() {
            draft.file(path, mode, (0, UTMP), Vec::new())?;
        }
    }
    if draft.is_dir("/usr/share/info") && !draft.exists("/usr/info/dir") {
        draft.copy_new("/usr/share/base-files/info.dir", "/usr/share/info/dir")?;
    }
    Ok(())
}

pub(super) fn libc_bin(draft: &mut Draft<'_>, _: &Package) -> Done {
    draft.copy_new("/usr/share/libc-bin/nsswitch.conf", "/etc/nsswitch.conf")
}

pub(super) fn netbase(draft: &mut Draft<'_>, _: &Package) -> Done {
    let hosts = "127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\nff02::1\t\tip6-allnodes\nff02::2\t\tip6-allrouters\n\n";
    let networks = "default\t\t0.0.0.0\nloopback\t127.0.0.0\nlink-local\t169.254.0.0\n\n";
    draft.new_file("/etc/hosts", 0o644, hosts.as_bytes())?;
    draft.new_file("/etc/networks", 0o644, networks.as_bytes())
}

pub(super) fn sudo(draft: &mut Draft<'_>, _: &Package) -> Done {
    const RULES: &str = "/etc/sudoers";
    match draft.text(RULES)? {
        Some(rules) => draft.file(RULES, 0o440, ROOT, rules),
        None => Ok(()),
    }
}

/// `/etc/timezone` is only kept up where an older release left one.
pub(super) fn tzdata(draft: &mut Draft<'_>, _: &Package) -> Done {
    if draft.at("/etc/localtime").is_none() {
        draft.link("/etc/localtime", "/usr/share/zoneinfo/Etc/UTC")?;
    }
    Ok(())
}

pub(super) fn readline(draft: &mut Draft<'_>, _: &Package) -> Done {
    draft.copy_new("/usr/share/readline/inputrc", "/etc/inputrc")
}

pub(super) fn python3(draft: &mut Draft<'_>, _: &Package) -> Done {
    let text = "[DEFAULT]\n# how to byte-compile (comma separated: standard, optimize)\nbyte-compile = standard\n";
    draft.new_dir("/etc/python3", 0o755)?;
    draft.new_file("/etc/python3/debian_config", 0o644, text.as_bytes())
}

pub(super) fn python_minimal(draft: &mut Draft<'_>, package: &Package) -> Done {
    let version = package.name.trim_end_matches("-minimal");
    draft.new_dir(&format!("/usr/local/lib/{version}"), 0o755)?;
    draft.new_dir(&format!("/usr/local/lib/{version}/dist-packages"), 0o755)
}

pub(super) fn pam_modules(draft: &mut Draft<'_>, _: &Package) -> Done {
    draft.new_file("/etc/security/opasswd", 0o600, b"")?;
    draft.new_file("/etc/environment", 0o644, b"")
}

pub(super) fn fontconfig(draft: &mut Draft<'_>, _: &Package) -> Done {
    draft.new_dir("/var/cache/fontconfig", 0o755)
}

/// Programs abort when their settings schema is not in `gschemas.compiled`, so a tree with schemas is refused.
pub(super) fn glib(draft: &mut Draft<'_>, package: &Package) -> Done {
    let schemas = draft.files("/usr/share/glib-2.0/schemas");
    let compiled = schemas.iter().any(|path| path.file_name() == "gschemas.compiled");
    match schemas.iter().find(|path| path.as_str().ends_with(".gschema.xml")).filter(|_| !compiled) {
        Some(schema) => Err(EffectError::Unknown {
            packages: vec![(package.name.clone(), format!("postinst: glib-compile-schemas, for `{schema}`"))],
        }),
        None => Ok(()),
    }
}
