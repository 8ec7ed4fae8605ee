//! Statements of `docs/semantics.md` that are too small for a module of their own.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::system::{each_lamina, each_system};
use crate::tools::{append, chmod, fails, names, read, set_xattr, stat, write, xattr, xattr_names};

#[test]
fn neither_files_without_a_name_nor_ioctls() {
    each_lamina(
        |layers| write(layers.bottom("file"), "image"),
        |m| {
            let unnamed = OFlags::TMPFILE | OFlags::RDWR;
            let opened = rustix::fs::open(m.path(""), unnamed, Mode::RUSR);
            fails(opened.map_err(Into::into), Errno::OPNOTSUPP);
            let file = File::open(m.path("file")).unwrap();
            let flags = rustix::fs::ioctl_getflags(&file);
            assert_eq!(flags.unwrap_err(), Errno::NOTTY);
        },
    );
}

#[test]
fn marks_that_any_user_can_set_mean_nothing() {
    let mark = "user.overlay.opaque";
    each_system(
        |layers| {
            write(layers.bottom("dir/image"), "");
            write(layers.upper().join("dir/upper"), "");
            set_xattr(layers.upper().join("dir"), mark, b"y").unwrap();
        },
        |m| {
            assert_eq!(names(m.path("dir")), ["image", "upper"]);
            assert_eq!(xattr(m.path("dir"), mark).unwrap(), b"y");
        },
    );
}

#[test]
fn a_change_of_attributes_takes_no_space_for_data() {
    each_lamina(
        |layers| write(layers.bottom("file"), vec![b'x'; 1 << 20]),
        |m| {
            chmod(m.path("file"), 0o600);
            fs::rename(m.path("file"), m.path("moved")).unwrap();
            let upper = m.upper("moved");
            assert!(stat(&upper).blocks() * 512 < 64 << 10);
            assert!(xattr_names(&upper).contains(&"trusted.overlay.metacopy".to_owned()));
            append(m.path("moved"), "!");
            assert!(stat(&upper).blocks() * 512 >= 1 << 20);
        },
    );
}

#[test]
fn an_open_image_file_whose_name_is_removed_has_no_link() {
    each_lamina(
        |layers| write(layers.bottom("file"), "image"),
        |m| {
            let file = File::open(m.path("file")).unwrap();
            fs::remove_file(m.path("file")).unwrap();
            assert_eq!(file.metadata().unwrap().nlink(), 0);
        },
    );
}

#[test]
fn an_old_descriptor_cannot_be_opened_again() {
    each_system(
        |layers| write(layers.bottom("file"), "image"),
        |m| {
            let old = File::open(m.path("file")).unwrap();
            append(m.path("file"), "!");
            let again = File::open(format!("/proc/self/fd/{}", old.as_raw_fd()));
            if m.is_lamina() {
                fails(again, Errno::STALE);
            } else {
                assert!(again.is_ok());
            }
            assert_eq!(read(m.path("file")), "image!");
        },
    );
}
