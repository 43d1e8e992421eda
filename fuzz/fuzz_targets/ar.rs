//! Members of an ar archive lie inside the file, one after the other, and written again they read the same.
#![no_main]

use std::io::Cursor;

use layers::format::ar::{Member, members};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(found) = members(&mut Cursor::new(data), 64) else { return };
    assert!(found.len() <= 64);
    let mut end = 8;
    for Member { name, offset, size } in &found {
        imgbuild_fuzz::check_member_name(name);
        // A header of 60 bytes before the content, at most one byte of padding before the header.
        assert!((60..=61).contains(&(offset - end)), "{name} starts at {offset}, what is before ends at {end}");
        end = offset + size;
        assert!(end <= data.len() as u64);
    }
    let mut again = b"!<arch>\n".to_vec();
    for Member { name, offset, size } in &found {
        again.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 0, 644).bytes());
        again.extend(&data[*offset as usize..(offset + size) as usize]);
        if size % 2 == 1 {
            again.push(b'\n');
        }
    }
    let names = |list: &[Member]| list.iter().map(|it| (it.name.clone(), it.size)).collect::<Vec<_>>();
    let read = members(&mut Cursor::new(&again), 64).expect("what was read can be written");
    assert_eq!(names(&read), names(&found));
});
