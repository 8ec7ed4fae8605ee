//! Copy-up while the image file is in use: who opens it again sees the new file, who has it
//! mapped keeps what he has.
//!
//! The systems differ for one who has it open and reads: overlayfs opens the new file behind his
//! descriptor (since Linux 4.19), Lamina's hand-over leaves him the image file, to which the
//! kernel has bound his descriptor.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::system::{Mounted, each_system, each_system_with_mappings};
use crate::tools::{
    Map, append, chmod, fails, mode, open_rw, read, read_open, sh, stat, truncate, write,
};

/// What is done, how, and what the file (once `image`) holds afterwards.
type Change = (&'static str, fn(&Mounted, &str), &'static str);

/// Every way to change a file's data that needs a new open of it.
const CHANGES: [Change; 6] = [
    (
        "read-write",
        |m, name| open_rw(m.path(name)).write_all_at(b"NEW", 0).unwrap(),
        "NEWge",
    ),
    ("append", |m, name| append(m.path(name), "!"), "image!"),
    (
        "truncate at open",
        |m, name| drop(File::create(m.path(name)).unwrap()),
        "",
    ),
    (
        "truncate, no create",
        |m, name| {
            drop(
                OpenOptions::new()
                    .write(true)
                    .truncate(true)
                    .open(m.path(name))
                    .unwrap(),
            );
        },
        "",
    ),
    (
        "create or open",
        |m, name| {
            let mut options = OpenOptions::new();
            let file = options
                .write(true)
                .create(true)
                .truncate(false)
                .open(m.path(name));
            file.unwrap().write_all_at(b"I", 0).unwrap();
        },
        "Image",
    ),
    (
        "truncate(2)",
        |m, name| truncate(m.path(name), 2).unwrap(),
        "im",
    ),
];

/// What a descriptor reads that was opened before the copy-up.
fn seen_by_old<'a>(m: &Mounted, image: &'a str, now: &'a str) -> &'a str {
    if m.is_lamina() { image } else { now }
}

#[test]
fn an_open_reader_does_not_keep_the_file_from_changing() {
    for (change, apply, expected) in CHANGES {
        each_system(
            |layers| write(layers.bottom("dir/file"), "image"),
            |m| {
                let old = File::open(m.path("dir/file")).unwrap();
                assert_eq!(read_open(&old), "image");
                apply(m, "dir/file");
                assert_eq!(
                    read_open(&old),
                    seen_by_old(m, "image", expected),
                    "{change}"
                );
                assert_eq!(read(m.path("dir/file")), expected, "{change}");
                assert_eq!(
                    stat(m.path("dir/file")).len(),
                    expected.len() as u64,
                    "{change}"
                );
                // And again, now that it is in the upper and open there.
                let new = File::open(m.path("dir/file")).unwrap();
                append(m.path("dir/file"), "+");
                let appended = format!("{expected}+");
                assert_eq!(read_open(&new), appended, "{change}");
                assert_eq!(
                    read_open(&old),
                    seen_by_old(m, "image", &appended),
                    "{change}"
                );
            },
        );
    }
}

#[test]
fn a_mapping_keeps_the_image_file() {
    for (change, apply, expected) in CHANGES {
        each_system_with_mappings(
            |layers| write(layers.bottom("file"), "image"),
            |m| {
                let map = Map::read_only(&File::open(m.path("file")).unwrap());
                assert_eq!(map.get(0), b'i');
                apply(m, "file");
                let mapped: Vec<_> = (0..5).map(|offset| map.get(offset)).collect();
                assert_eq!(mapped, b"image", "{change}");
                assert_eq!(read(m.path("file")), expected, "{change}");
            },
        );
    }
}

#[test]
fn a_running_program_can_be_replaced_but_not_written() {
    each_system(
        |layers| {
            fs::copy("/bin/sleep", layers.bottom("sleep")).unwrap();
            fs::copy("/bin/true", layers.bottom("true")).unwrap();
            chmod(layers.bottom("sleep"), 0o755);
            chmod(layers.bottom("true"), 0o755);
        },
        |m| {
            let mut command = Command::new(m.path("sleep"));
            let mut running = command.arg("60").stdout(Stdio::null()).spawn().unwrap();
            fails(
                OpenOptions::new().write(true).open(m.path("sleep")),
                Errno::TXTBSY,
            );
            chmod(m.path("sleep"), 0o711);
            assert_eq!(mode(m.path("sleep")), 0o711);
            fs::rename(m.path("true"), m.path("sleep")).unwrap();
            assert!(Command::new(m.path("sleep")).status().unwrap().success());
            assert!(running.try_wait().unwrap().is_none(), "it still runs");
            running.kill().unwrap();
            running.wait().unwrap();
        },
    );
}

#[test]
fn a_running_program_cannot_be_truncated() {
    each_system(
        |_| {},
        |m| {
            let program = m.path("sleep");
            // By another process: what we open for writing, a child of another test may inherit.
            assert!(sh(m.path("."), "cp /bin/sleep sleep"));
            let mut command = Command::new(&program);
            let mut running = command.arg("60").stdout(Stdio::null()).spawn().unwrap();
            for access in [OFlags::RDONLY, OFlags::WRONLY] {
                let opened = rustix::fs::open(&program, access | OFlags::TRUNC, Mode::empty());
                fails(opened.map_err(Into::into), Errno::TXTBSY);
            }
            assert!(fs::read(&program).unwrap() == fs::read("/bin/sleep").unwrap());
            running.kill().unwrap();
            running.wait().unwrap();
        },
    );
}

#[test]
fn metadata_changes_through_an_old_handle_reach_the_file() {
    each_system(
        |layers| write(layers.bottom("file"), "image"),
        |m| {
            let old = File::open(m.path("file")).unwrap();
            rustix::fs::fchmod(&old, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
            assert_eq!(mode(m.path("file")), 0o600);
            rustix::fs::fsetxattr(&old, "user.a", b"1", rustix::fs::XattrFlags::empty()).unwrap();
            assert_eq!(crate::tools::xattr(m.path("file"), "user.a").unwrap(), b"1");
            assert_eq!(read_open(&old), "image");
            append(m.path("file"), "!");
            assert_eq!(read(m.path("file")), "image!");
            assert_eq!(mode(m.path("file")), 0o600);
        },
    );
}

#[test]
fn many_readers_and_one_writer() {
    each_system(
        |layers| write(layers.bottom("file"), "image"),
        |m| {
            let readers: Vec<_> = (0..50)
                .map(|_| File::open(m.path("file")).unwrap())
                .collect();
            append(m.path("file"), "!");
            let seen = seen_by_old(m, "image", "image!");
            assert!(readers.iter().all(|reader| read_open(reader) == seen));
            let writers: Vec<_> = (0..20).map(|_| open_rw(m.path("file"))).collect();
            writers[7].write_all_at(b"I", 0).unwrap();
            assert!(writers.iter().all(|writer| read_open(writer) == "Image!"));
            drop(readers);
            assert_eq!(read(m.path("file")), "Image!");
        },
    );
}

#[test]
fn an_old_handle_tells_the_length_that_it_reads() {
    for (change, apply, _) in CHANGES {
        each_system(
            |layers| write(layers.bottom("file"), "image"),
            |m| {
                let old = File::open(m.path("file")).unwrap();
                apply(m, "file");
                let agree = |when: &str| {
                    let (len, text) = (old.metadata().unwrap().len(), read_open(&old));
                    assert_eq!(len, text.len() as u64, "{change}, {when}: {text:?}");
                };
                agree("after it");
                // The answer carries attributes; they must not be those of another length.
                rustix::fs::fchmod(&old, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
                agree("after fchmod");
                assert_eq!(mode(m.path("file")), 0o600, "{change}");
            },
        );
    }
}

#[test]
fn a_file_that_was_copied_up_under_a_reader_is_a_file_like_any_other() {
    each_system(
        |layers| {
            write(layers.bottom("dir/file"), "image");
            fs::create_dir(layers.bottom("other")).unwrap();
        },
        |m| {
            let number = stat(m.path("dir/file")).ino();
            let old = File::open(m.path("dir/file")).unwrap();
            append(m.path("dir/file"), "!");
            let new = open_rw(m.path("dir/file"));
            fs::rename(m.path("dir/file"), m.path("other/moved")).unwrap();
            fs::hard_link(m.path("other/moved"), m.path("dir/link")).unwrap();
            append(m.path("dir/link"), "!");
            assert_eq!(read(m.path("other/moved")), "image!!");
            assert_eq!(read_open(&new), "image!!");
            assert_eq!(read_open(&old), seen_by_old(m, "image", "image!!"));
            for (name, links) in [("other/moved", 2), ("dir/link", 2)] {
                let meta = stat(m.path(name));
                assert_eq!((meta.ino(), meta.nlink()), (number, links), "{name}");
            }
            fs::remove_file(m.path("other/moved")).unwrap();
            fs::remove_file(m.path("dir/link")).unwrap();
            new.write_all_at(b"I", 0).unwrap();
            assert_eq!(read_open(&new), "Image!!");
            assert_eq!(new.metadata().unwrap().nlink(), 0);
            assert_eq!(read_open(&old), seen_by_old(m, "image", "Image!!"));
            assert!(!crate::tools::exists(m.path("dir/file")));
            // The name is free, and what takes it is another file.
            write(m.path("dir/file"), "another");
            assert_eq!(read(m.path("dir/file")), "another");
            assert_ne!(stat(m.path("dir/file")).ino(), number);
            drop((old, new));
            m.remount();
            assert_eq!(read(m.path("dir/file")), "another");
        },
    );
}
