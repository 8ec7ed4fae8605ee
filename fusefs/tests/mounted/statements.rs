//! Statements of `docs/semantics.md` that are too small for a module of their own.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::system::{Access, System, each_lamina, each_system};
use crate::tools::{
    append, chmod, fails, names, open_rw, read, set_xattr, stat, write, xattr, xattr_names,
};

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
        },
    );
}

#[test]
fn a_byte_that_is_appended_to_a_large_file_copies_a_block() {
    const SIZE: u64 = 4 << 20;
    let data = || vec![b'x'; usize::try_from(SIZE).unwrap()];
    each_lamina(
        |layers| write(layers.bottom("file"), data()),
        |m| {
            let mut expected = data();
            append(m.path("file"), "!");
            expected.push(b'!');
            open_rw(m.path("file")).write_all_at(b"?", 70_000).unwrap();
            expected[70_000] = b'?';
            for _ in 0..2 {
                assert!(fs::read(m.path("file")).unwrap() == expected);
                let upper = stat(m.upper("file"));
                assert!(upper.blocks() * 512 < 64 << 10, "{}", upper.blocks());
                assert_eq!(upper.len(), SIZE + 1);
                m.remount();
            }
        },
    );
}

#[test]
fn overlayfs_finds_a_file_that_was_partial_whole() {
    each_lamina(
        |layers| write(layers.bottom("dir/file"), vec![b'x'; 2 << 20]),
        |m| {
            append(m.path("dir/file"), "!");
            m.switch(System::Overlayfs);
            let seen = fs::read(m.path("dir/file")).unwrap();
            assert_eq!(seen.len(), (2 << 20) + 1);
            assert!(seen.ends_with(b"x!"));
            assert!(
                xattr_names(m.upper("dir/file"))
                    .iter()
                    .all(|name| !name.contains("metacopy"))
            );
        },
    );
}

#[test]
fn overlayfs_refuses_a_file_that_is_partial() {
    each_lamina(
        |layers| write(layers.bottom("file"), vec![b'x'; 2 << 20]),
        |m| {
            append(m.path("file"), "!");
            // As after a crash: nobody has completed it.
            m.unmount();
            for metacopy in ["on", "off"] {
                let options = [("metacopy", metacopy), ("index", "off")];
                m.layers.mount_overlay(Access::Write, &options);
                fails(File::open(m.path("file")), Errno::IO);
                m.unmount();
            }
            m.mount();
            assert!(fs::read(m.path("file")).unwrap().ends_with(b"x!"));
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
