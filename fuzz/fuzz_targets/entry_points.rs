//! entry_points.txt of a wheel: scripts land in bin, one line imports, and nothing of the wheel's words becomes code.
#![no_main]

use std::io::Cursor;

use imgbuild_fuzz::{Packed, check_path, limits, wheel};
use layers::format::wheel::{Content, Scheme, Wheel, WheelName};
use layers::format::zip::Archive;
use layers::path;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let bytes = wheel(vec![Packed::new("x-1.dist-info/entry_points.txt", data)]);
    let archive = Archive::open(Cursor::new(&bytes), &limits()).expect("the archive is good");
    let name: WheelName = "x-1-py3-none-any.whl".parse().expect("a good name");
    let Ok(wheel) = Wheel::open(archive, &name, &limits()) else { return };
    let scheme = Scheme::new(path!("/opt/venv"), "3.13").expect("a good scheme");
    let Ok(installed) = wheel.install(&scheme) else { return };
    let mut scripts = 0;
    for file in &installed.files {
        check_path(&file.path);
        let Some(script) = file.path.as_str().strip_prefix("/opt/venv/bin/") else {
            assert!(file.path.starts_with(&installed.dist_info), "{}", file.path);
            continue;
        };
        scripts += 1;
        assert!(!script.contains('/') && file.mode == 0o755, "{script}");
        let Content::Bytes(content) = &file.content else { panic!("a script is written here") };
        let text = std::str::from_utf8(content).expect("scripts are UTF-8");
        // Python also ends lines at carriage returns and form feeds.
        let lines: Vec<&str> = text.split(['\n', '\r', '\x0c']).collect();
        assert_eq!(lines.len(), 9, "{text}");
        assert_eq!(lines[0], "#!/opt/venv/bin/python");
        let (module, import) = lines[4]
            .strip_prefix("from ")
            .and_then(|line| line.split_once(" import "))
            .expect("the fourth line imports");
        let word = |c: char| c.is_alphanumeric() || c == '_';
        assert!(module.split('.').all(|part| !part.is_empty() && part.chars().all(word)), "{module}");
        assert!(!import.is_empty() && import.chars().all(word), "{import}");
        assert!(lines[7].starts_with(&format!("    sys.exit({import}")), "{}", lines[7]);
    }
    assert!(scripts <= data.len());
});
