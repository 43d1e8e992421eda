//! Users and groups: passwd(5), group(5), shadow(5), gshadow(5), sysusers.d(5).
//!
//! Files are kept as bytes, so comments in other encodings survive. Dates of password changes stay empty: they would
//! be today's, and no two builds would be equal.

use layers::encode::Entry;
use layers::source::User;

use super::draft::Draft;
use super::{EffectError, Package};

pub(super) const VERSION: u32 = 1;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
const SHADOW: &str = "/etc/shadow";
const GSHADOW: &str = "/etc/gshadow";
/// The group that may read shadow files (Debian policy 9.2.2).
const SHADOW_GID: u32 = 42;

/// One of the four files: lines of fields between colons.
struct Table {
    path: &'static str,
    bytes: Vec<u8>,
    there: bool,
}

impl Table {
    fn read(draft: &Draft<'_>, path: &'static str) -> Result<Table, EffectError> {
        let bytes = draft.text(path)?;
        Ok(Table { path, there: bytes.is_some(), bytes: bytes.unwrap_or_default() })
    }

    fn rows(&self) -> impl Iterator<Item = Vec<&[u8]>> {
        let lines = self.bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| line.split(|&byte| byte == b':').collect())
    }

    /// The first row whose field at `index` is `value`.
    fn find(&self, index: usize, value: &str) -> Option<Vec<&[u8]>> {
        self.rows().find(|row| row.get(index).is_some_and(|field| *field == value.as_bytes()))
    }

    /// A number at `index`, as decimal digits; leading zeros do not hide a clash.
    fn has_number(&self, index: usize, number: u32) -> bool {
        self.rows().any(|row| row.get(index).and_then(|field| number_of(field)) == Some(number))
    }

    fn push(&mut self, line: &str) {
        if self.bytes.last().is_some_and(|&last| last != b'\n') {
            self.bytes.push(b'\n');
        }
        self.bytes.extend_from_slice(line.as_bytes());
        self.bytes.push(b'\n');
    }

    fn write(self, draft: &mut Draft<'_>) -> Result<(), EffectError> {
        draft.rewrite(self.path, 0o644, self.bytes)
    }
}

fn number_of(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

/// Everything about accounts that is in the tree.
struct Accounts {
    passwd: Table,
    group: Table,
    shadow: Table,
    gshadow: Table,
}

impl Accounts {
    fn read(draft: &Draft<'_>) -> Result<Accounts, EffectError> {
        Ok(Accounts {
            passwd: Table::read(draft, PASSWD)?,
            group: Table::read(draft, GROUP)?,
            shadow: Table::read(draft, SHADOW)?,
            gshadow: Table::read(draft, GSHADOW)?,
        })
    }

    fn write(self, draft: &mut Draft<'_>) -> Result<(), EffectError> {
        for table in [self.passwd, self.group] {
            table.write(draft)?;
        }
        for table in [self.shadow, self.gshadow] {
            if table.there {
                table.write(draft)?;
            }
        }
        Ok(())
    }

    fn push_user(&mut self, name: &str, uid: u32, gid: u32, comment: &str, home: &str, shell: &str) {
        // Without a shadow file `x` would point nowhere; `*` is no password either way.
        let password = if self.shadow.there { "x" } else { "*" };
        self.passwd.push(&format!("{name}:{password}:{uid}:{gid}:{comment}:{home}:{shell}"));
        if self.shadow.there && self.shadow.find(0, name).is_none() {
            self.shadow.push(&format!("{name}:!::0:99999:7:::"));
        }
    }

    fn push_group(&mut self, name: &str, gid: u32) {
        self.group.push(&format!("{name}:{}:{gid}:", if self.gshadow.there { "x" } else { "*" }));
        if self.gshadow.there && self.gshadow.find(0, name).is_none() {
            self.gshadow.push(&format!("{name}:!::"));
        }
    }

    fn gid_of(&self, group: &str) -> Option<u32> {
        number_of(self.group.find(0, group)?.get(2)?)
    }
}

/// Names as useradd(8) takes them; they must not break a line or a field.
fn check_name(name: &str) -> Result<(), EffectError> {
    let good = |index: usize, byte: u8| {
        byte.is_ascii_lowercase() || byte == b'_' || index > 0 && (byte.is_ascii_digit() || byte == b'-')
    };
    if !name.is_empty() && name.len() <= 32 && name.bytes().enumerate().all(|(index, byte)| good(index, byte)) {
        return Ok(());
    }
    let why = "a name is 1 to 32 of `a-z`, `_`, and after the first also `0-9` and `-`";
    Err(EffectError::Account { name: name.chars().take(60).collect(), why: why.into() })
}

pub(super) fn add_user(draft: &mut Draft<'_>, user: &User) -> Result<(), EffectError> {
    check_name(&user.name)?;
    let clash = |why: String| EffectError::Account { name: user.name.clone(), why };
    for (what, path) in [("home", &user.home), ("shell", &user.shell)] {
        if path.as_str().contains([':', '\n']) {
            return Err(clash(format!("its {what} `{}` has a `:` or a line break", path.as_str().escape_debug())));
        }
    }
    for (what, number) in [("uid", user.uid), ("gid", user.gid)] {
        // -1 and (for 16 bits) 65535 mean "none" to chown(2) and others.
        if number == u32::MAX || number == 65_535 {
            return Err(clash(format!("{what} {number} is reserved")));
        }
    }
    let mut accounts = Accounts::read(draft)?;
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    let mut changed = false;
    match accounts.group.find(0, &user.name) {
        Some(row) if row.get(2).and_then(|field| number_of(field)) == Some(user.gid) => {}
        Some(row) => {
            let found = row.get(2).map_or_else(String::new, |field| text(field));
            return Err(clash(format!("group `{}` exists with gid {found}, not {gid}", user.name)));
        }
        None => match accounts.group.find(2, &gid) {
            Some(row) if user.uid == user.gid => {
                return Err(clash(format!(
                    "gid {gid} belongs to group `{}`; choose another number, or name the group's with `.gid({gid})`",
                    text(row[0])
                )));
            }
            Some(_) => {}
            None => {
                accounts.push_group(&user.name, user.gid);
                changed = true;
            }
        },
    }
    match accounts.passwd.find(0, &user.name) {
        Some(row) => {
            let wanted = [uid.as_str(), &gid, user.home.as_str(), user.shell.as_str()];
            let same =
                [2, 3, 5, 6].iter().zip(wanted).all(|(&at, want)| row.get(at).is_some_and(|f| *f == want.as_bytes()));
            if !same {
                let found = row.iter().map(|field| text(field)).collect::<Vec<_>>().join(":");
                return Err(clash(format!("a user of that name exists: `{found}`")));
            }
        }
        None => {
            if let Some(row) = accounts.passwd.find(2, &uid) {
                return Err(clash(format!("uid {uid} belongs to user `{}`", text(row[0]))));
            }
            accounts.push_user(&user.name, user.uid, user.gid, "", user.home.as_str(), user.shell.as_str());
            changed = true;
        }
    }
    if changed {
        accounts.write(draft)?;
    }
    let home = user.home.as_str();
    if home == "/nonexistent" || user.home.is_root() {
        return Ok(());
    }
    let owner = (user.uid, user.gid);
    match draft.at(home).filter(|entry| entry.is_dir()).map(|entry| (entry.mode, (entry.uid, entry.gid))) {
        Some((_, found)) if found == owner => Ok(()),
        Some((mode, _)) => draft.dir(home, mode, owner),
        None => draft.dir(home, 0o755, owner),
    }
}

/// Does for one file of sysusers.d what systemd-sysusers(8) does: `u`, `g` and `m` lines.
pub(super) fn sysusers(draft: &mut Draft<'_>, file: &str) -> Result<(), EffectError> {
    let file = file.rsplit('/').next().unwrap_or(file);
    let mut found = None;
    for directory in ["/etc/sysusers.d", "/usr/lib/sysusers.d"] {
        found = found.or(draft.text(&format!("{directory}/{file}"))?);
    }
    let path = format!("/usr/lib/sysusers.d/{file}");
    let malformed = |why: String| EffectError::Malformed { path: path.clone(), why };
    let bytes = found.ok_or_else(|| malformed("a maintainer script names it, but it is not there".into()))?;
    let mut accounts = Accounts::read(draft)?;
    for line in String::from_utf8_lossy(&bytes).lines() {
        let words = words(line);
        let field = |index: usize| words.get(index).map(String::as_str).filter(|word| *word != "-");
        let Some(kind) = words.first().filter(|word| !word.starts_with('#')) else { continue };
        let name = field(1).unwrap_or_default();
        // `u!` locks the account more firmly; its password is never set here anyway.
        match kind.trim_end_matches('!') {
            "g" => {
                check_name(name)?;
                let gid = field(2)
                    .map(|id| id.parse().map_err(|_| malformed(format!("`{line}` has no number"))))
                    .transpose()?;
                ensure_group(&mut accounts, name, gid)?;
            }
            "u" => {
                check_name(name)?;
                if accounts.passwd.find(0, name).is_some() {
                    continue;
                }
                let (uid, group) = match field(2) {
                    None => (None, None),
                    Some(id) => {
                        let (uid, group) = id.split_once(':').map_or((id, None), |(uid, group)| (uid, Some(group)));
                        let number =
                            |text: &str| text.parse().map_err(|_| malformed(format!("`{line}` has no number")));
                        (if uid == "-" { None } else { Some(number(uid)?) }, group)
                    }
                };
                let gid = match group {
                    Some(group) => match group.parse().ok().or_else(|| accounts.gid_of(group)) {
                        Some(gid) => gid,
                        None => return Err(malformed(format!("`{line}` names a group that is not there"))),
                    },
                    None => ensure_group(&mut accounts, name, uid)?,
                };
                let wanted = uid.unwrap_or(gid);
                let uid = if accounts.passwd.has_number(2, wanted) { free(&accounts, name)? } else { wanted };
                let comment = field(3).unwrap_or_default().replace([':', '\n'], " ");
                let shell = field(5).unwrap_or("/usr/sbin/nologin");
                accounts.push_user(name, uid, gid, &comment, field(4).unwrap_or("/"), shell);
            }
            "m" => {
                let group = field(2).unwrap_or_default();
                check_name(name)?;
                check_name(group)?;
                ensure_group(&mut accounts, group, None)?;
                join(&mut accounts.group, group, name);
            }
            "r" => {}
            other => return Err(malformed(format!("`{other}` is not a type of line"))),
        }
    }
    accounts.write(draft)
}

fn ensure_group(accounts: &mut Accounts, name: &str, gid: Option<u32>) -> Result<u32, EffectError> {
    if let Some(gid) = accounts.gid_of(name) {
        return Ok(gid);
    }
    let gid = match gid.filter(|gid| !accounts.group.has_number(2, *gid)) {
        Some(gid) => gid,
        None => free(accounts, name)?,
    };
    accounts.push_group(name, gid);
    Ok(gid)
}

/// The highest system number that is neither a user's nor a group's, as systemd-sysusers chooses it.
fn free(accounts: &Accounts, name: &str) -> Result<u32, EffectError> {
    let is_free = |number: &u32| !accounts.passwd.has_number(2, *number) && !accounts.group.has_number(2, *number);
    let why = "no number from 100 to 999 is free";
    (100..1000).rev().find(is_free).ok_or_else(|| EffectError::Account { name: name.to_owned(), why: why.into() })
}

/// Adds a member to a group that exists.
fn join(table: &mut Table, group: &str, member: &str) {
    let mut bytes = Vec::with_capacity(table.bytes.len() + member.len() + 1);
    for line in table.bytes.split_inclusive(|&byte| byte == b'\n') {
        let plain = line.strip_suffix(b"\n").unwrap_or(line);
        let row: Vec<&[u8]> = plain.split(|&byte| byte == b':').collect();
        bytes.extend_from_slice(plain);
        if let [name, _, _, members] = row.as_slice()
            && *name == group.as_bytes()
            && !members.split(|&byte| byte == b',').any(|known| known == member.as_bytes())
        {
            if !members.is_empty() {
                bytes.push(b',');
            }
            bytes.extend_from_slice(member.as_bytes());
        }
        bytes.push(b'\n');
    }
    table.bytes = bytes;
}

/// Fields of a line, with quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
        let (word, more) = match quote {
            Some(quote) => rest[1..].split_once(quote).unwrap_or((&rest[1..], "")),
            None => rest.split_once([' ', '\t']).unwrap_or((rest, "")),
        };
        words.push(word.to_owned());
        rest = more.trim_start();
    }
    words
}

/// What `shadowconfig on` leaves: pwconv(8) and grpconv(8) on what base-passwd wrote.
pub(super) fn passwd(draft: &mut Draft<'_>, _: &Package) -> Result<(), EffectError> {
    for (path, shadow, rest) in [(PASSWD, SHADOW, "::0:99999:7:::"), (GROUP, GSHADOW, "::")] {
        let table = Table::read(draft, path)?;
        if !table.there || draft.at(shadow).is_some() {
            continue;
        }
        let (mut open, mut secret) = (Vec::new(), Vec::new());
        for mut row in table.rows() {
            let members = row.get(3).map_or(String::new(), |field| text(field));
            if let [name, password, ..] = row.as_mut_slice() {
                secret.extend_from_slice(&[*name, b":", *password].concat());
                secret.extend_from_slice(rest.as_bytes());
                if shadow == GSHADOW {
                    secret.extend_from_slice(members.as_bytes());
                }
                secret.push(b'\n');
                *password = b"x";
            }
            open.extend_from_slice(&row.join(&b':'));
            open.push(b'\n');
        }
        draft.rewrite(path, 0o644, open)?;
        draft.file(shadow, 0o640, (0, SHADOW_GID), secret)?;
    }
    Ok(())
}

/// The group `_ssh`, to which `ssh-agent` is set so that no debugger may attach to it.
pub(super) fn openssh_client(draft: &mut Draft<'_>, package: &Package) -> Result<(), EffectError> {
    const AGENT: &str = "/usr/bin/ssh-agent";
    let mut accounts = Accounts::read(draft)?;
    let gid = match accounts.gid_of("_ssh") {
        Some(gid) => gid,
        None => {
            // addgroup(8) counts upwards.
            let why = "no number from 100 to 999 is free".to_owned();
            let free = (100..1000).find(|gid| !accounts.group.has_number(2, *gid));
            let gid = free.ok_or(EffectError::Account { name: package.name.clone(), why })?;
            accounts.push_group("_ssh", gid);
            accounts.write(draft)?;
            gid
        }
    };
    match draft.text(AGENT)? {
        Some(content) if draft.at(AGENT).map(|entry: &Entry| entry.gid) != Some(gid) => {
            draft.file(AGENT, 0o2755, (0, gid), content)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use layers::path;
    use layers::source::user;

    use super::*;
    use crate::debian::follow::tests::Sketch;

    const USERS: &str = "root:*:0:0:root:/root:/bin/bash\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin";
    const GROUPS: &str = "root:*:0:\nusers:*:100:\nnogroup:*:65534:\n";

    fn sketch() -> Sketch {
        Sketch::default().file(PASSWD, USERS).file(GROUP, GROUPS)
    }

    fn read(draft: &Draft<'_>, path: &str) -> String {
        text(&draft.text(path).expect("readable").expect("there"))
    }

    fn refusal(user: User) -> String {
        let tree = sketch();
        add_user(&mut Draft::new(&tree, 0), &user).expect_err("a clash").to_string()
    }

    #[test]
    fn a_user_is_appended_with_its_group_and_home() {
        let tree = sketch();
        let mut draft = Draft::new(&tree, 5);
        add_user(&mut draft, &user("app", 10_001).home(path!("/home/app"))).expect("no clash");
        assert_eq!(read(&draft, PASSWD), format!("{USERS}\napp:*:10001:10001::/home/app:/usr/sbin/nologin\n"));
        assert_eq!(read(&draft, GROUP), format!("{GROUPS}app:*:10001:\n"));
        let home = draft.at("/home/app").expect("made").clone();
        assert_eq!((home.mode, home.uid, home.gid, home.mtime), (0o755, 10_001, 10_001, 5));
        assert_eq!(draft.at("/home").expect("made").uid, 0);
        assert!(draft.at(SHADOW).is_none());
    }

    #[test]
    fn files_are_made_where_there_are_none() {
        let tree = Sketch::default();
        let mut draft = Draft::new(&tree, 0);
        add_user(&mut draft, &user("app", 1)).expect("no clash");
        assert_eq!(read(&draft, PASSWD), "app:*:1:1::/nonexistent:/usr/sbin/nologin\n");
        assert_eq!(read(&draft, GROUP), "app:*:1:\n");
        assert_eq!(draft.finish().len(), 3, "/etc and two files, no home");
    }

    #[test]
    fn shadow_files_keep_their_mode_and_owner() {
        let mut tree = sketch().file(SHADOW, "root:*:1:0:99999:7:::\n").file(GSHADOW, "root:*::\n");
        for entry in tree.entries().filter(|entry| entry.path.as_str().ends_with("shadow")) {
            (entry.mode, entry.gid) = (0o640, SHADOW_GID);
        }
        let mut draft = Draft::new(&tree, 0);
        add_user(&mut draft, &user("app", 7)).expect("no clash");
        assert!(read(&draft, PASSWD).ends_with("app:x:7:7::/nonexistent:/usr/sbin/nologin\n"));
        assert_eq!(read(&draft, SHADOW), "root:*:1:0:99999:7:::\napp:!::0:99999:7:::\n");
        assert_eq!(read(&draft, GSHADOW), "root:*::\napp:!::\n");
        let shadow = draft.at(SHADOW).expect("there");
        assert_eq!((shadow.mode, shadow.gid), (0o640, SHADOW_GID));
    }

    #[test]
    fn clashes_are_refused_by_name() {
        assert!(refusal(user("root", 5)).contains("group `root` exists with gid 0, not 5"));
        assert!(refusal(user("nobody", 7)).contains("a user of that name exists: `nobody:*:65534"));
        assert!(refusal(user("app", 65_534).gid(3)).contains("uid 65534 belongs to user `nobody`"));
        assert!(refusal(user("app", 100)).contains("gid 100 belongs to group `users`"));
        assert!(refusal(user("a:b", 9)).contains("a name is"));
        assert!(refusal(user("app", u32::MAX)).contains("reserved"));
        assert!(refusal(user("app", 9).home(path!("/a:b"))).contains("home"));
    }

    #[test]
    fn the_same_user_twice_and_a_group_of_others_are_fine() {
        let tree = sketch();
        let mut draft = Draft::new(&tree, 0);
        let app = user("app", 9).gid(100);
        add_user(&mut draft, &app).expect("joins `users`");
        assert!(read(&draft, PASSWD).contains("app:*:9:100:"));
        assert_eq!(read(&draft, GROUP), GROUPS);
        let before = read(&draft, PASSWD);
        add_user(&mut draft, &app).expect("is there already");
        assert_eq!(read(&draft, PASSWD), before);
    }

    #[test]
    fn sysusers_lines_become_accounts() {
        let lines =
            "# x\nu _rpc - \"RPC: daemon\" /run/rpc\ng render 105\ng other -\nm _rpc render\nu fix 60:users - -\n";
        let tree = sketch().file("/usr/lib/sysusers.d/x.conf", lines);
        let mut draft = Draft::new(&tree, 0);
        sysusers(&mut draft, "x.conf").expect("fits");
        assert!(
            read(&draft, PASSWD).ends_with(
                "_rpc:*:999:999:RPC  daemon:/run/rpc:/usr/sbin/nologin\nfix:*:60:100::/:/usr/sbin/nologin\n"
            )
        );
        assert_eq!(read(&draft, GROUP), format!("{GROUPS}_rpc:*:999:\nrender:*:105:_rpc\nother:*:998:\n"));
        assert!(sysusers(&mut draft, "none.conf").is_err());
    }

    #[test]
    fn shadow_files_are_made_from_open_ones() {
        let tree = sketch();
        let mut draft = Draft::new(&tree, 0);
        let package = Package {
            name: "passwd".into(),
            version: "1".into(),
            architecture: "amd64".into(),
            scripts: Default::default(),
        };
        passwd(&mut draft, &package).expect("fits");
        assert!(read(&draft, PASSWD).starts_with("root:x:0:0:"));
        assert!(read(&draft, SHADOW).starts_with("root:*::0:99999:7:::\n"));
        assert!(read(&draft, GSHADOW).starts_with("root:*::\n"));
        assert_eq!(draft.at(GSHADOW).map(|entry| (entry.mode, entry.gid)), Some((0o640, SHADOW_GID)));
    }
}
