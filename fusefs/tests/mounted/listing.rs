//! readdir: every name once, whatever happens meanwhile.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::RawDir;
use rustix::io::Errno;

use crate::system::each_system;
use crate::tools::{fails, names, read, whiteout, write};

#[test]
fn more_than_ten_thousand_entries() {
    each_system(
        |layers| {
            fs::create_dir(layers.bottom("dir")).unwrap();
            fs::create_dir(layers.top("dir")).unwrap();
            for number in 0..10_500 {
                fs::File::create(layers.bottom(&format!("dir/a-long-enough-name-{number:05}")))
                    .unwrap();
            }
            whiteout(layers.top("dir/a-long-enough-name-00007"));
            write(layers.top("dir/a-long-enough-name-00008"), "top");
        },
        |m| {
            write(m.path("dir/new"), "");
            fs::remove_file(m.path("dir/a-long-enough-name-10000")).unwrap();
            let mut expected: Vec<OsString> = (0..10_500)
                .filter(|number| ![7, 10_000].contains(number))
                .map(|number| format!("a-long-enough-name-{number:05}").into())
                .collect();
            expected.push("new".into());
            // Twice: the second time from what the kernel remembers.
            assert_eq!(names(m.path("dir")), expected);
            assert_eq!(names(m.path("dir")), expected);
        },
    );
}

#[test]
fn a_listing_is_complete_while_names_come_and_go() {
    each_system(
        |layers| {
            for number in 0..1_000 {
                write(layers.bottom(&format!("dir/image{number}")), "");
            }
        },
        |m| {
            for number in 0..1_000 {
                write(m.path(&format!("dir/stays{number}")), "");
                write(m.path(&format!("dir/goes{number}")), "");
            }
            let mut seen: HashMap<OsString, usize> = HashMap::new();
            for (count, entry) in fs::read_dir(m.path("dir")).unwrap().enumerate() {
                *seen.entry(entry.unwrap().file_name()).or_default() += 1;
                if count < 1_000 {
                    fs::remove_file(m.path(&format!("dir/goes{count}"))).unwrap();
                    write(m.path(&format!("dir/comes{count}")), "");
                }
            }
            for number in 0..1_000 {
                for name in ["image", "stays"] {
                    let name = OsString::from(format!("{name}{number}"));
                    assert_eq!(seen.get(&name), Some(&1), "{}", name.display());
                }
            }
            assert!(seen.values().all(|times| *times == 1), "a name came twice");
            assert_eq!(names(m.path("dir")).len(), 3_000);
        },
    );
}

#[test]
fn a_change_shows_in_the_next_listing() {
    each_system(
        |layers| write(layers.bottom("dir/image"), ""),
        |m| {
            for number in 0..20 {
                assert_eq!(names(m.path("dir")).len(), 1 + number);
                write(m.path(&format!("dir/{number:02}")), "");
            }
            fs::remove_file(m.path("dir/image")).unwrap();
            fs::rename(m.path("dir/00"), m.path("dir/zz")).unwrap();
            let listed = names(m.path("dir"));
            assert_eq!(
                (listed.len(), listed.last().unwrap().to_str()),
                (20, Some("zz"))
            );
        },
    );
}

#[test]
fn any_bytes_are_a_name() {
    let strange = OsStr::from_bytes(b"\xff\xfe not utf-8 \x01\n");
    let longest = "n".repeat(255);
    each_system(
        |layers| {
            write(layers.lowers()[0].join(strange), "lower");
            write(layers.bottom(&longest), "lower");
        },
        |m| {
            assert_eq!(names(m.path("")), [OsStr::new(&longest), strange]);
            assert_eq!(read(m.path("").join(strange)), "lower");
            fs::rename(m.path("").join(strange), m.path("plain")).unwrap();
            fs::rename(m.path("plain"), m.path("").join(strange)).unwrap();
            write(m.path("").join(strange), "upper");
            write(m.path(&longest), "upper");
            assert_eq!(names(m.path("")), [OsStr::new(&longest), strange]);
            fs::remove_file(m.path(&longest)).unwrap();
            assert_eq!(names(m.path("")), [strange]);
            let too_long = "n".repeat(256);
            fails(fs::write(m.path(&too_long), ""), Errno::NAMETOOLONG);
            fails(fs::metadata(m.path(&too_long)), Errno::NAMETOOLONG);
        },
    );
}

#[test]
fn whole_trees() {
    each_system(
        |layers| {
            for directory in 0..50 {
                for file in 0..20 {
                    write(layers.bottom(&format!("tree/d{directory}/f{file}")), "x");
                }
            }
        },
        |m| {
            let count = || crate::tools::tree(m.path("tree")).len();
            assert_eq!(count(), 1 + 50 + 1_000);
            assert_eq!(count(), 1 + 50 + 1_000);
            fs::remove_dir_all(m.path("tree/d7")).unwrap();
            assert_eq!(count(), 1 + 49 + 980);
            fs::remove_dir_all(m.path("tree")).unwrap();
            assert_eq!(names(m.path("")).len(), 0);
        },
    );
}

/// The reader of a part goes on in what another reader has made the kernel remember since.
#[test]
fn a_reader_goes_on_where_it_was_after_others_have_listed_a_change() {
    each_system(
        |layers| {
            for number in 0..400 {
                write(layers.bottom(&format!("dir/image{number:03}")), "");
            }
        },
        |m| {
            // The kernel may remember the listing now, and the reader begins with that.
            assert_eq!(names(m.path("dir")).len(), 400);
            let dir = fs::File::open(m.path("dir")).unwrap();
            let mut seen = part_of(&dir);
            assert!(seen.len() < 100, "the first part is all of it");
            // Some that were seen go, and the others move up.
            let gone: Vec<OsString> = seen.iter().skip(2).step_by(2).cloned().collect();
            for name in &gone {
                fs::remove_file(m.path("dir").join(name)).unwrap();
            }
            assert_eq!(names(m.path("dir")).len(), 400 - gone.len());
            loop {
                let part = part_of(&dir);
                if part.is_empty() {
                    break;
                }
                seen.extend(part);
            }
            let mut times: HashMap<OsString, usize> = HashMap::new();
            for name in seen {
                *times.entry(name).or_default() += 1;
            }
            for number in 0..400 {
                let name = OsString::from(format!("image{number:03}"));
                assert_eq!(times.get(&name), Some(&1), "{}", name.display());
            }
            assert!(times.values().all(|times| *times == 1), "a name came twice");
        },
    );
}

/// What one getdents(2) with a small buffer tells of an open directory.
fn part_of(dir: &fs::File) -> Vec<OsString> {
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut raw = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = raw.next() {
        names.push(OsStr::from_bytes(entry.unwrap().file_name().to_bytes()).to_owned());
        if raw.is_buffer_empty() {
            break;
        }
    }
    names
}
