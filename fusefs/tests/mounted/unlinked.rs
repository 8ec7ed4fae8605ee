//! A file without a name lives until its last handle is closed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use rustix::fs::Mode;

use crate::system::{each_lamina, each_system};
use crate::tools::{exists, open_rw, read, read_open, write};

/// Everything that can be done with an open file that has no name.
fn use_it(file: &File) {
    assert_eq!(read_open(file), "content");
    file.write_all_at(b"CON", 0).unwrap();
    file.write_all_at(b"!", 7).unwrap();
    assert_eq!(read_open(file), "CONtent!");
    assert_eq!(file.metadata().unwrap().len(), 8);
    rustix::fs::ftruncate(file, 3).unwrap();
    assert_eq!(read_open(file), "CON");
    rustix::fs::fchmod(file, Mode::from_raw_mode(0o604)).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o604);
    rustix::fs::fchown(file, Some(rustix::fs::Uid::from_raw(5)), None).unwrap();
    assert_eq!(file.metadata().unwrap().uid(), 5);
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.sync_all().unwrap();
}

#[test]
fn a_removed_directory_can_be_changed_through_a_descriptor() {
    each_lamina(
        |layers| fs::create_dir(layers.bottom("dir")).unwrap(),
        |m| {
            let dir = fs::File::open(m.path("dir")).unwrap();
            fs::remove_dir(m.path("dir")).unwrap();
            dir.set_permissions(Permissions::from_mode(0o700)).unwrap();
            let seen = dir.metadata().unwrap();
            assert_eq!((seen.mode() & 0o7777, seen.nlink()), (0o700, 0));
            assert!(!m.path("dir").exists());
        },
    );
}

#[test]
fn a_new_file() {
    each_system(
        |_| {},
        |m| {
            write(m.path("file"), "content");
            let file = open_rw(m.path("file"));
            fs::remove_file(m.path("file")).unwrap();
            use_it(&file);
            assert!(!exists(m.path("file")));
        },
    );
}

#[test]
fn an_image_file_open_for_writing() {
    each_system(
        |layers| write(layers.bottom("dir/file"), "content"),
        |m| {
            let file = open_rw(m.path("dir/file"));
            fs::remove_file(m.path("dir/file")).unwrap();
            use_it(&file);
            // Another one takes the name.
            write(m.path("dir/file"), "another");
            assert_eq!(read_open(&file), "CON");
            assert_eq!(read(m.path("dir/file")), "another");
        },
    );
}

#[test]
fn an_image_file_open_for_reading() {
    each_system(
        |layers| write(layers.bottom("file"), "content"),
        |m| {
            let file = File::open(m.path("file")).unwrap();
            fs::remove_file(m.path("file")).unwrap();
            assert_eq!(read_open(&file), "content");
            assert_eq!(file.metadata().unwrap().len(), 7);
        },
    );
}

#[test]
fn a_file_that_another_replaced() {
    each_system(
        |layers| write(layers.bottom("file"), "content"),
        |m| {
            let file = open_rw(m.path("file"));
            write(m.path("new"), "new");
            fs::rename(m.path("new"), m.path("file")).unwrap();
            use_it(&file);
            assert_eq!(read(m.path("file")), "new");
        },
    );
}

#[test]
fn a_file_that_never_had_a_name_long() {
    each_system(
        |_| {},
        |m| {
            let mut options = OpenOptions::new();
            let file = options
                .read(true)
                .write(true)
                .create_new(true)
                .open(m.path("tmp"))
                .unwrap();
            fs::remove_file(m.path("tmp")).unwrap();
            file.write_all_at(b"content", 0).unwrap();
            use_it(&file);
            assert_eq!(fs::read_dir(m.path("")).unwrap().count(), 0);
        },
    );
}

#[test]
fn a_directory_in_use() {
    each_system(
        |layers| write(layers.bottom("dir/file"), ""),
        |m| {
            let listing = fs::read_dir(m.path("dir")).unwrap();
            let open = File::open(m.path("dir")).unwrap();
            fs::remove_dir_all(m.path("dir")).unwrap();
            assert!(open.metadata().unwrap().is_dir());
            drop(listing);
            assert!(!exists(m.path("dir")));
        },
    );
}
