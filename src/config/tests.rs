use std::path::{Path, PathBuf};

use super::*;
use crate::fetch::Proxies;
use crate::sandbox::Level;

/// A machine with its own root, home and project.
struct Machine {
    root: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Machine {
    fn new() -> Machine {
        let machine = Machine { root: tempfile::tempdir().unwrap(), variables: Vec::new() };
        std::fs::create_dir_all(machine.path("project/sub/dir")).unwrap();
        std::fs::create_dir_all(machine.path("project/.git")).unwrap();
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn file(self, path: &str, text: &str) -> Machine {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Machine {
        self.variables.push((name.into(), value.into()));
        self
    }

    fn environment(&self) -> Environment {
        let variables = self.variables.iter().map(|(name, value)| (name.into(), value.into()));
        Environment::new(variables, self.path("project/sub/dir")).with_root(self.root.path())
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.environment(), None)
    }

    fn config(&self) -> Config {
        self.load().unwrap()
    }

    /// An error's text with this machine's root as `ROOT`.
    fn error(&self, error: ConfigError) -> String {
        error.to_string().replace(&self.root.path().display().to_string(), "ROOT")
    }
}

fn shown(urls: Result<Vec<Url>, ConfigError>) -> Vec<String> {
    urls.unwrap().into_iter().map(String::from).collect()
}

#[test]
fn every_key_is_documented() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).unwrap();
    for (key, _) in file::KEYS {
        let shown = key.replace('*', "NAME").replace("python.pins.NAME", "python.pins.PROJECT");
        assert!(text.contains(&format!("`{shown}`")), "docs/configuration.md lacks `{shown}`");
    }
}

#[test]
fn the_nearest_file_up_to_the_repository_counts() {
    let machine = Machine::new().file("imgbuild.toml", "jobs = 1").file("project/imgbuild.toml", "jobs = 2");
    assert_eq!(machine.config().path(), Some(machine.path("project/imgbuild.toml").as_path()));
    let machine = machine.file("project/sub/imgbuild.toml", "jobs = 3");
    assert_eq!(machine.config().jobs(None).unwrap(), 3);
    let explicit = Config::load(&machine.environment(), Some(Path::new("../../imgbuild.toml"))).unwrap();
    assert_eq!(explicit.jobs(None).unwrap(), 2);
    let machine = machine.file("other.toml", "jobs = 4");
    let named = machine.path("other.toml").display().to_string();
    let machine = machine.variable("IMGBUILD_CONFIG", &named);
    assert_eq!(machine.config().jobs(None).unwrap(), 4);
}

#[test]
fn without_a_repository_only_the_working_directory_counts() {
    let machine = Machine::new().file("project/imgbuild.toml", "jobs = 2");
    std::fs::remove_dir(machine.path("project/.git")).unwrap();
    assert_eq!(machine.config().path(), None);
    let machine = machine.file("project/sub/dir/imgbuild.toml", "jobs = 5");
    assert_eq!(machine.config().jobs(None).unwrap(), 5);
}

#[test]
fn mistakes_in_the_file_are_named_with_their_line() {
    for (text, expected) in [
        ("jobs = 2\n[debian]\nmirrro = 'x'", "line 3: there is no key `debian.mirrro`; did you mean `mirror`?"),
        ("[debain]", "line 1: there is no key `debain`; did you mean `debian`?"),
        ("colour = 1", "line 1: there is no key `colour`"),
        ("\njobs = 'two'", "line 2: `jobs` must be a whole number"),
        ("jobs = -1", "line 1: `jobs` must be a whole number"),
        ("debian = 1", "line 1: `debian` must be a table"),
        ("[debian]\nmirror = ['a', 1]", "line 2: `debian.mirror` must be a string or a list of strings"),
        (
            "[debian.repositories.x]\nuri = 'y'",
            "line 2: there is no key `debian.repositories.x.uri`; did you mean `url`?",
        ),
        ("[python.indexes]\nx = ['y']", "line 2: `python.indexes.x` must be a string"),
        ("jobs = 1\njobs = 2", "line 2: duplicate key"),
        ("a =", "line 1: string values must be quoted, expected literal string"),
    ] {
        let machine = Machine::new().file("project/imgbuild.toml", text);
        let error = machine.error(machine.load().unwrap_err());
        assert_eq!(error, format!("`ROOT/project/imgbuild.toml`, {expected}"));
    }
    let machine = Machine::new();
    let error = Config::load(&machine.environment(), Some(Path::new("absent.toml"))).unwrap_err();
    assert_eq!(
        machine.error(error),
        "cannot read `ROOT/project/sub/dir/absent.toml`: No such file or directory (os error 2)"
    );
}

#[test]
fn a_flag_is_stronger_than_the_environment_and_that_than_the_file() {
    let machine = Machine::new()
        .file("project/imgbuild.toml", "jobs = 2\ncache-dir = 'c'\nregistry = 'file.example/x'\nsandbox = 'chroot'");
    assert_eq!(machine.config().cache_dir(None).unwrap(), machine.path("project/c"));
    assert_eq!(machine.config().registry(None).unwrap(), "file.example/x");
    assert_eq!(machine.config().sandbox(None).unwrap(), Some(Level::Chroot));
    let machine = machine
        .variable("IMGBUILD_JOBS", "7")
        .variable("IMGBUILD_CACHE_DIR", "e")
        .variable("IMGBUILD_SANDBOX", "namespaces")
        .variable("IMGBUILD_REGISTRY", "env.example");
    let config = machine.config();
    assert_eq!(config.jobs(None).unwrap(), 7);
    assert_eq!(config.jobs(Some(3)).unwrap(), 3);
    assert_eq!(config.cache_dir(None).unwrap(), machine.path("project/sub/dir/e"));
    assert_eq!(config.cache_dir(Some(Path::new("/f"))).unwrap(), Path::new("/f"));
    assert_eq!(config.registry(None).unwrap(), "env.example");
    assert_eq!(config.registry(Some("flag.example")).unwrap(), "flag.example");
    assert_eq!(config.sandbox(None).unwrap(), Some(Level::Namespaces));
    assert_eq!(config.sandbox(Some(Level::Proot)).unwrap(), Some(Level::Proot));
}

#[test]
fn wrong_values_name_their_place() {
    let machine = Machine::new().variable("IMGBUILD_JOBS", "many");
    let machine =
        machine.file("project/imgbuild.toml", "sandbox = 'none'\n[debian]\nmirror = 'ftp://u:p4ss@deb.example/'");
    let config = machine.config();
    let error = |error: ConfigError| machine.error(error);
    assert_eq!(
        error(config.jobs(None).unwrap_err()),
        "the variable IMGBUILD_JOBS: it is no whole number from 1 to 1024"
    );
    assert_eq!(
        error(config.sandbox(None).unwrap_err()),
        "`sandbox` in `ROOT/project/imgbuild.toml`, line 1: it is none of `any`, `namespaces`, `chroot` and `proot`"
    );
    let mirror = error(config.debian_bases("trixie").unwrap_err());
    assert_eq!(
        mirror,
        "`debian.mirror` in `ROOT/project/imgbuild.toml`, line 3: it is not a usable URL: the scheme `ftp` is neither http nor https"
    );
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_unicode_is_an_error() {
    use std::os::unix::ffi::OsStringExt as _;
    let variables = [("IMGBUILD_JOBS".into(), OsString::from_vec(vec![0xff]))];
    let config = Config::load(&Environment::new(variables, "/nowhere"), None).unwrap();
    assert_eq!(config.jobs(None).unwrap_err().to_string(), "the variable IMGBUILD_JOBS: it is not UTF-8");
}

#[test]
fn the_cache_needs_a_home_or_a_word() {
    let machine = Machine::new();
    assert_eq!(
        machine.error(machine.config().cache_dir(None).unwrap_err()),
        "no cache directory is known: neither XDG_CACHE_HOME nor HOME is an absolute path; \
         set --cache-dir, IMGBUILD_CACHE_DIR, or `cache-dir` in imgbuild.toml"
    );
    let machine = machine.variable("HOME", "/home/me");
    assert_eq!(machine.config().cache_dir(None).unwrap(), Path::new("/home/me/.cache/imgbuild"));
    let machine = machine.variable("XDG_CACHE_HOME", "/var/cache");
    assert_eq!(machine.config().cache_dir(None).unwrap(), Path::new("/var/cache/imgbuild"));
}

const SOURCES: &str = "# c\nTypes: deb deb-src\nURIs: http://deb.example/debian\n http://near.example/debian/\nSuites: bookworm bookworm-updates\n\
    Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
    Types: deb\nURIs: http://deb.example/debian-security\nSuites: bookworm-security\nComponents: main\n\
    Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
    Types: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: trixie\nComponents: main\n\n\
    Types: deb-src\nURIs: http://src.example/debian\nSuites: trixie\nComponents: main\n";

const LIST: &str = "deb [arch=amd64 signed-by=/etc/apt/keyrings/vendor.gpg] https://vendor.example/linux bookworm stable\n\
    deb cdrom:[Debian 12]/ bookworm main\ndeb file:/srv/debian bookworm main\n# deb http://no.example/debian trixie main\n\
    deb-src http://src.example/debian trixie main\ndeb http://plain.example/debian trixie main # why\n\
    deb mirror+file:/etc/apt/mirrors.txt trixie main\ndeb\ndeb http://short.example\n";

#[test]
fn the_machines_mirrors_are_found_likely_ones_first() {
    let machine = Machine::new()
        .file("etc/apt/sources.list.d/debian.sources", SOURCES)
        .file(
            "etc/apt/sources.list.d/ignored.sources.bak",
            "Types: deb\nURIs: http://bak.example/debian\nSuites: sid\nComponents: main",
        )
        .file("etc/apt/sources.list", LIST)
        .file("etc/apt/mirrors.txt", "# c\nhttps://listed.example/debian\tpriority:1\n");
    let config = machine.config();
    assert_eq!(
        shown(config.debian_bases("trixie")),
        [
            "http://deb.example/debian",
            "http://near.example/debian/",
            "http://plain.example/debian",
            "https://listed.example/debian",
            "http://deb.example/debian-security",
        ]
    );
    assert_eq!(
        shown(config.debian_bases("trixie-security")),
        [
            "http://deb.example/debian-security",
            "http://near.example/debian-security/",
            "http://plain.example/debian-security/",
            "https://listed.example/debian-security/",
            "http://deb.example/debian",
            "http://near.example/debian/",
            "http://plain.example/debian",
            "https://listed.example/debian",
        ]
    );
    assert_eq!(config.foreign("trixie").unwrap(), Foreign::Skip);
}

#[test]
fn strangers_are_asked_only_where_there_is_nobody_else() {
    let machine = Machine::new().file("etc/apt/sources.list", "deb https://vendor.example/linux bookworm stable\n");
    assert_eq!(shown(machine.config().debian_bases("trixie")), ["https://vendor.example/linux"]);
}

#[test]
fn configured_mirrors_replace_the_machines() {
    let machine = Machine::new()
        .file("etc/apt/sources.list.d/debian.sources", SOURCES)
        .file("project/imgbuild.toml", "[debian]\nmirror = ['http://a.example/debian', 'http://b.example/debian']");
    let config = machine.config();
    assert_eq!(shown(config.debian_bases("trixie")), ["http://a.example/debian", "http://b.example/debian"]);
    assert_eq!(
        shown(config.debian_bases("trixie-security"))[..3],
        ["http://a.example/debian-security/", "http://b.example/debian-security/", "http://a.example/debian"]
    );
    assert_eq!(config.foreign("trixie-security").unwrap(), Foreign::Refuse);
    let machine = machine.variable("IMGBUILD_DEBIAN_SECURITY_MIRROR", "http://s.example/x http://t.example/x");
    assert_eq!(shown(machine.config().debian_bases("trixie-security")), ["http://s.example/x", "http://t.example/x"]);
    let machine = machine.variable("IMGBUILD_DEBIAN_MIRROR", "http://v.example/debian");
    assert_eq!(shown(machine.config().debian_bases("trixie-updates")), ["http://v.example/debian"]);
}

#[test]
fn apts_folder_can_be_another() {
    let machine = Machine::new().file("apt/sources.list", "deb http://o.example/debian trixie main");
    let folder = machine.path("apt").display().to_string();
    let machine = machine.variable("IMGBUILD_APT_DIR", &folder);
    assert_eq!(shown(machine.config().debian_bases("trixie")), ["http://o.example/debian"]);
}

#[test]
fn without_a_mirror_the_key_to_set_is_named() {
    let machine = Machine::new();
    assert_eq!(
        machine.error(machine.config().debian_bases("trixie").unwrap_err()),
        "no Debian mirror for `trixie` is known: apt's sources in `ROOT/etc/apt` name none; \
         set `debian.mirror` in imgbuild.toml or the variable IMGBUILD_DEBIAN_MIRROR to its URL"
    );
    assert_eq!(
        machine.error(machine.config().repository("my-tools").unwrap_err()),
        "no URL of the repository `my-tools` is known: the definitions name it, the configuration does not; \
         set `debian.repositories.my-tools.url` in imgbuild.toml or the variable IMGBUILD_REPOSITORY_MY_TOOLS"
    );
    assert_eq!(
        machine.error(machine.config().indexes().unwrap_err()),
        "no Python package index is known: neither variables nor uv.toml nor pip.conf name one, and neither pip nor uv \
         is installed; set `python.index` in imgbuild.toml or the variable IMGBUILD_PYTHON_INDEX to its URL"
    );
}

#[test]
fn repositories_are_found_by_name() {
    let machine =
        Machine::new().file("project/imgbuild.toml", "[debian.repositories.my-tools]\nurl = 'http://r.example/'");
    assert_eq!(shown(machine.config().repository("my-tools")), ["http://r.example/"]);
    let machine = machine.variable("IMGBUILD_REPOSITORY_MY_TOOLS", "http://e.example/");
    assert_eq!(shown(machine.config().repository("my-tools")), ["http://e.example/"]);
}

#[test]
fn the_keyring_may_be_the_machines_or_a_file() {
    let machine = Machine::new().file("project/imgbuild.toml", "[debian]\nkeyring = 'machine'");
    assert_eq!(
        machine.error(machine.config().debian_keyring().unwrap_err()),
        "`debian.keyring` in `ROOT/project/imgbuild.toml`, line 2: this machine has no debian-archive-keyring; install that package"
    );
    let machine = machine.file("usr/share/keyrings/debian-archive-keyring.gpg", "");
    let found = machine.config().debian_keyring().unwrap();
    assert_eq!(found, Some(machine.path("usr/share/keyrings/debian-archive-keyring.gpg")));
    let machine = machine.file("project/imgbuild.toml", "[debian]\nkeyring = 'keys/own.asc'");
    assert_eq!(machine.config().debian_keyring().unwrap(), Some(machine.path("project/keys/own.asc")));
    assert_eq!(Machine::new().config().debian_keyring().unwrap(), None);
}

#[test]
fn each_option_of_an_index_comes_from_the_first_place_that_sets_it() {
    let machine = Machine::new()
        .variable("HOME", "/absent")
        .file("etc/pip.conf", "[global]\nindex-url = https://machine.example/simple\nextra-index-url =\n  https://x.example/\n  https://y.example/");
    let all = ["https://x.example/", "https://y.example/", "https://machine.example/simple"];
    assert_eq!(shown(machine.config().indexes()), all);
    let home = machine.path("home").display().to_string();
    let mut machine = machine.file("home/.config/pip/pip.conf", "[global]\nindex-url = https://user.example/simple");
    machine.variables = vec![("HOME".into(), home)];
    assert_eq!(shown(machine.config().indexes())[2], "https://user.example/simple");
    let machine = machine.file(
        "home/.config/uv/uv.toml",
        "extra-index-url = ['https://uv.example/extra']\n[pip]\nindex-url = 'https://uv.example/'\n[[index]]\nname = 'corp'\nurl = 'https://corp.example/'\nexplicit = true",
    );
    assert_eq!(shown(machine.config().indexes()), ["https://uv.example/extra", "https://uv.example/"]);
    let machine = machine.file("project/imgbuild.toml", "[python]\nindex = 'https://file.example/simple/'");
    assert_eq!(shown(machine.config().indexes()), ["https://uv.example/extra", "https://file.example/simple/"]);
    let machine = machine.variable("PIP_INDEX_URL", "https://pip.example/");
    assert_eq!(shown(machine.config().indexes())[1], "https://pip.example/");
    let machine = machine.variable("UV_DEFAULT_INDEX", "main=https://uv-variable.example/");
    assert_eq!(shown(machine.config().indexes())[1], "https://uv-variable.example/");
    let machine = machine.variable("UV_INDEX", "one=https://one.example/ https://two.example/?a=b");
    assert_eq!(
        shown(machine.config().indexes()),
        ["https://one.example/", "https://two.example/?a=b", "https://uv-variable.example/"]
    );
    let machine = machine
        .variable("IMGBUILD_PYTHON_INDEX", "https://own.example/")
        .variable("IMGBUILD_PYTHON_EXTRA_INDEX", "https://own.example/");
    assert_eq!(shown(machine.config().indexes()), ["https://own.example/"]);
}

#[test]
fn pips_files_can_be_turned_off() {
    let machine = Machine::new().file("etc/pip.conf", "[global]\nindex-url = https://machine.example/simple");
    let machine = machine.variable("PIP_CONFIG_FILE", "/dev/null");
    assert!(matches!(machine.config().indexes(), Err(ConfigError::Missing { .. })));
}

#[test]
fn pinned_projects_come_from_the_named_index() {
    let machine = Machine::new().file(
        "project/imgbuild.toml",
        "[python.indexes]\ncorp = 'https://u:p@corp.example/simple'\n[python.pins]\nMy_Tool = 'corp'\nother = 'https://o.example/'",
    );
    let pins = machine.config().python_pins().unwrap();
    let pins: Vec<(String, String)> = pins.into_iter().map(|(name, url)| (name, url.into())).collect();
    assert_eq!(
        pins,
        [
            ("my-tool".to_owned(), "https://u:p@corp.example/simple".to_owned()),
            ("other".to_owned(), "https://o.example/".to_owned())
        ]
    );
    let machine = machine
        .file("project/imgbuild.toml", "[python.indexes]\ncorp = 'https://corp.example/'\n[python.pins]\na = 'crop'");
    assert_eq!(
        machine.error(machine.config().python_pins().unwrap_err()),
        "`python.pins.a` in `ROOT/project/imgbuild.toml`, line 4: there is no index `crop` in `python.indexes`; did you mean `corp`?"
    );
}

#[test]
fn credentials_come_from_urls_netrc_and_apt() {
    let machine = Machine::new()
        .file("home/.netrc", "machine netrc.example login me password one")
        .file("etc/apt/auth.conf.d/a.conf", "machine apt.example/debian login you password two")
        .file("project/imgbuild.toml", "[python.indexes]\ncorp = 'https://corp.example/simple'");
    let home = machine.path("home").display().to_string();
    let machine = machine
        .variable("HOME", &home)
        .variable("PIP_INDEX_URL", "https://them:th%40ree@index.example:8443/simple")
        .variable("UV_INDEX_CORP_USERNAME", "us")
        .variable("UV_INDEX_CORP_PASSWORD", "four");
    let http = machine.config().http().unwrap();
    let shown: Vec<String> =
        http.credentials.iter().map(|it| format!("{}{} {} {}", it.host, it.path, it.user, it.password)).collect();
    assert_eq!(
        shown,
        [
            "index.example:8443 them th@ree",
            "corp.example us four",
            "netrc.example me one",
            "apt.example/debian you two",
        ]
    );
    assert!(!format!("{http:?}").contains("four"));
}

#[test]
fn proxies_come_from_the_environment_the_file_or_apt() {
    let machine = Machine::new()
        .file(
            "etc/apt/sources.list",
            "deb http://deb.example/debian trixie main\ndeb http://near.example/debian trixie main",
        )
        .file(
            "etc/apt/apt.conf.d/01proxy",
            "Acquire::http::Proxy \"http://apt.example:3142\";\nAcquire::http::Proxy::near.example \"DIRECT\";",
        );
    let expected = Proxies {
        hosts: vec![("deb.example".into(), Some("http://apt.example:3142".into())), ("near.example".into(), None)],
        ..Proxies::default()
    };
    assert_eq!(machine.config().http().unwrap().proxies, expected);
    let machine = machine.file(
        "project/imgbuild.toml",
        "[network]\nproxy = 'http://file.example'\nno-proxy = ['a.example', 'b.example']",
    );
    let of_file = machine.config().http().unwrap().proxies;
    assert_eq!(
        (of_file.http.as_deref(), of_file.https.as_deref()),
        (Some("http://file.example"), Some("http://file.example"))
    );
    assert_eq!((of_file.none_for.as_deref(), of_file.hosts.len()), (Some("a.example,b.example"), 0));
    let machine = machine
        .variable("https_proxy", "http://s.example")
        .variable("HTTP_PROXY", "http://h.example")
        .variable("NO_PROXY", "c.example");
    let of_variables = machine.config().http().unwrap().proxies;
    assert_eq!(
        (of_variables.http.as_deref(), of_variables.https.as_deref()),
        (Some("http://h.example"), Some("http://s.example"))
    );
    assert_eq!(of_variables.none_for.as_deref(), Some("c.example"));
    let machine = machine.variable("REQUEST_METHOD", "GET");
    assert_eq!(machine.config().http().unwrap().proxies.http, None);
}

#[test]
fn certificates_come_from_the_file_and_from_what_other_tools_are_told() {
    let machine = Machine::new()
        .file("ca.pem", "")
        .file("project/own.pem", "")
        .file("project/imgbuild.toml", "[network]\nca = 'own.pem'");
    let ca = machine.path("ca.pem").display().to_string();
    let machine =
        machine.variable("SSL_CERT_FILE", &ca).variable("PIP_CERT", &ca).variable("CURL_CA_BUNDLE", "/absent.pem");
    let found = machine.config().http().unwrap().extra_ca;
    assert_eq!(found, [machine.path("project/own.pem"), machine.path("ca.pem")]);
    let machine = machine.file("project/imgbuild.toml", "[network]\nca = 'absent.pem'");
    assert_eq!(
        machine.error(machine.config().http().unwrap_err()),
        "`network.ca` in `ROOT/project/imgbuild.toml`, line 2: there is no file `ROOT/project/absent.pem`"
    );
}

#[test]
fn mirrors_of_registries_are_hosts_with_or_without_the_beginning_of_a_path() {
    for (text, good) in [
        ("mirror.example", true),
        ("mirror.example:5000", true),
        ("mirror.example/docker/io", true),
        ("localhost:5000", true),
        ("", false),
        ("https://mirror.example", false),
        ("mirror.example/UPPER", false),
        ("mirror.example//x", false),
        ("user:password@mirror.example", false),
    ] {
        let file = format!("[registries.mirrors]\n\"docker.io\" = [\"{text}\"]\n");
        let machine = Machine::new().file("project/imgbuild.toml", &file);
        let config = machine.config();
        let found = config.registries(&[], None).map(|it| it.mirrors.len()).map_err(|error| error.to_string());
        match good {
            true => assert_eq!(found, Ok(1), "{text}"),
            false => assert!(found.unwrap_err().contains("registries.mirrors.docker.io"), "{text}"),
        }
    }
}
