//! The first change of an image file brings it into the upper, whole and unchanged otherwise.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::FileType;

use crate::system::{Layers, each_system};
use crate::tools::{
    append, chmod, exists, lchown, mknod, mode, open_rw, read, set_xattr, stat, truncate, write,
    xattr,
};

/// An image with one file: text, mode 0640, an owner, an xattr and a time with nanoseconds.
fn one_file(layers: &Layers) {
    let path = layers.bottom("dir/file");
    write(&path, "image");
    chmod(&path, 0o640);
    lchown(&path, 7, 8);
    set_xattr(&path, "user.kept", b"value").unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    let times = FileTimes::new().set_accessed(then).set_modified(then);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_times(times)
        .unwrap();
}

#[test]
fn metadata_changes_keep_all_the_rest() {
    each_system(one_file, |m| {
        let file = m.path("dir/file");
        chmod(&file, 0o604);
        assert_eq!(
            (mode(&file), stat(&file).uid(), stat(&file).gid()),
            (0o604, 7, 8)
        );
        lchown(&file, 9, 10);
        assert_eq!(
            (mode(&file), stat(&file).uid(), stat(&file).gid()),
            (0o604, 9, 10)
        );
        assert_eq!(
            (stat(&file).mtime(), stat(&file).mtime_nsec()),
            (1_000_000_000, 123_456_789)
        );
        assert_eq!(read(&file), "image");
        assert_eq!(xattr(&file, "user.kept").unwrap(), b"value");
        assert!(exists(m.upper("dir/file")));
        assert_eq!(read(m.layers.bottom("dir/file")), "image");
        assert_eq!(mode(m.layers.bottom("dir/file")), 0o640);
    });
}

#[test]
fn times_are_set_to_the_nanosecond_before_1970_too() {
    each_system(one_file, |m| {
        let file = m.path("dir/file");
        let before = SystemTime::UNIX_EPOCH - Duration::new(1, 250_000_000);
        let after = SystemTime::UNIX_EPOCH + Duration::new(2_000_000_000, 999_999_999);
        let times = FileTimes::new().set_accessed(after).set_modified(before);
        File::open(&file).unwrap().set_times(times).unwrap();
        assert_eq!(stat(&file).modified().unwrap(), before);
        assert_eq!(stat(&file).accessed().unwrap(), after);
        assert_eq!(read(&file), "image");
    });
}

#[test]
fn appending_keeps_the_start() {
    each_system(one_file, |m| {
        let file = m.path("dir/file");
        append(&file, " and more");
        assert_eq!(read(&file), "image and more");
        assert_eq!(stat(&file).len(), 14);
        assert_eq!((mode(&file), stat(&file).uid()), (0o640, 7));
        assert_eq!(read(m.layers.bottom("dir/file")), "image");
    });
}

#[test]
fn truncating_by_path_by_handle_and_at_open() {
    each_system(
        |layers| {
            for name in ["path", "longer", "open", "handle"] {
                write(layers.bottom(name), "0123456789");
            }
        },
        |m| {
            rustix::fs::ftruncate(open_rw(m.path("handle")), 4).unwrap();
            assert_eq!(read(m.path("handle")), "0123");
            truncate(m.path("path"), 3).unwrap();
            assert_eq!(read(m.path("path")), "012");
            truncate(m.path("longer"), 12).unwrap();
            assert_eq!(read(m.path("longer")), "0123456789\0\0");
            let open = OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(m.path("open"))
                .unwrap();
            assert_eq!(stat(m.path("open")).len(), 0);
            open.write_all_at(b"ab", 0).unwrap();
            assert_eq!(read(m.path("open")), "ab");
        },
    );
}

/// Gives a file a modification time long ago.
fn make_old(path: impl AsRef<Path>) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
}

fn is_old(path: impl AsRef<Path>) -> bool {
    stat(path).modified().unwrap() == SystemTime::UNIX_EPOCH
}

#[test]
fn a_truncation_of_an_image_file_changes_its_mtime() {
    let all = [
        ("nothing", 0),
        ("less", 3),
        ("more", 10),
        ("same", 5),
        ("open", 0),
    ];
    each_system(
        |layers| {
            for (name, _) in all {
                write(layers.bottom(name), "image");
                make_old(layers.bottom(name));
            }
        },
        |m| {
            let reader = File::open(m.path("open")).unwrap();
            for (name, length) in all {
                assert!(is_old(m.path(name)));
                truncate(m.path(name), length).unwrap();
                assert_eq!(stat(m.path(name)).len(), length.cast_unsigned(), "{name}");
                assert!(!is_old(m.path(name)), "{name}");
            }
            drop(reader);
        },
    );
}

#[test]
fn writing_in_the_middle_keeps_the_rest() {
    each_system(
        |layers| write(layers.bottom("big"), vec![b'x'; 3 << 20]),
        |m| {
            let big = open_rw(m.path("big"));
            big.write_all_at(b"here", 1 << 20).unwrap();
            let data = fs::read(m.path("big")).unwrap();
            assert_eq!(data.len(), 3 << 20);
            assert_eq!(&data[(1 << 20) - 1..(1 << 20) + 5], b"xherex");
            assert_eq!(
                data.iter().filter(|byte| **byte == b'x').count(),
                (3 << 20) - 4
            );
        },
    );
}

#[test]
fn holes_stay_holes() {
    each_system(
        |layers| {
            let sparse = File::create(layers.bottom("sparse")).unwrap();
            sparse.write_all_at(b"start", 0).unwrap();
            sparse.write_all_at(b"end", 64 << 20).unwrap();
        },
        |m| {
            append(m.path("sparse"), "!");
            let meta = stat(m.path("sparse"));
            assert_eq!(meta.len(), (64 << 20) + 4);
            assert!(meta.blocks() * 512 < 4 << 20, "{} blocks", meta.blocks());
            let mut end = [0; 4];
            File::open(m.path("sparse"))
                .unwrap()
                .read_exact_at(&mut end, 64 << 20)
                .unwrap();
            assert_eq!(&end, b"end!");
        },
    );
}

#[test]
fn what_is_no_file_is_copied_up_as_what_it_is() {
    each_system(
        |layers| {
            symlink("target", layers.bottom("symlink")).unwrap();
            mknod(layers.bottom("fifo"), FileType::Fifo, (0, 0)).unwrap();
            mknod(layers.bottom("null"), FileType::CharacterDevice, (1, 3)).unwrap();
            mknod(layers.bottom("block"), FileType::BlockDevice, (259, 300)).unwrap();
            UnixListener::bind(layers.bottom("socket")).unwrap();
            fs::create_dir(layers.bottom("dir")).unwrap();
        },
        |m| {
            for name in ["symlink", "fifo", "null", "block", "socket", "dir"] {
                lchown(m.path(name), 5, 6);
                assert_eq!(
                    (stat(m.path(name)).uid(), stat(m.path(name)).gid()),
                    (5, 6),
                    "{name}"
                );
                assert!(exists(m.upper(name)), "{name}");
            }
            assert_eq!(
                fs::read_link(m.path("symlink")).unwrap().to_str(),
                Some("target")
            );
            assert!(stat(m.path("fifo")).file_type().is_fifo());
            assert!(stat(m.path("socket")).file_type().is_socket());
            assert!(stat(m.path("null")).file_type().is_char_device());
            assert_eq!(stat(m.path("null")).rdev(), rustix::fs::makedev(1, 3));
            assert!(stat(m.path("block")).file_type().is_block_device());
            assert_eq!(stat(m.path("block")).rdev(), rustix::fs::makedev(259, 300));
            assert!(stat(m.path("dir")).is_dir());
        },
    );
}

#[test]
fn the_parents_come_up_with_their_attributes() {
    each_system(
        |layers| {
            write(layers.bottom("a/b/file"), "");
            chmod(layers.bottom("a"), 0o711);
            chmod(layers.bottom("a/b"), 0o2750);
            lchown(layers.bottom("a/b"), 3, 4);
            chmod(layers.bottom("a/b"), 0o2750);
            set_xattr(layers.bottom("a/b"), "user.dir", b"d").unwrap();
        },
        |m| {
            append(m.path("a/b/file"), "x");
            assert_eq!((mode(m.path("a")), mode(m.path("a/b"))), (0o711, 0o2750));
            assert_eq!((mode(m.upper("a")), mode(m.upper("a/b"))), (0o711, 0o2750));
            assert_eq!(
                (stat(m.upper("a/b")).uid(), stat(m.upper("a/b")).gid()),
                (3, 4)
            );
            assert_eq!(xattr(m.path("a/b"), "user.dir").unwrap(), b"d");
        },
    );
}

#[test]
fn opening_for_writing_without_a_write_changes_nothing_visible() {
    each_system(one_file, |m| {
        drop(open_rw(m.path("dir/file")));
        assert_eq!(read(m.path("dir/file")), "image");
        assert_eq!(mode(m.path("dir/file")), 0o640);
        assert_eq!(stat(m.path("dir/file")).mtime_nsec(), 123_456_789);
    });
}

/// git reads a file again whose ctime it does not know, so the time may not change once more at
/// the next mount.
#[test]
fn the_ctime_of_an_open_that_copies_up_is_seen_at_once() {
    let ctime = |path: &Path| (stat(path).ctime(), stat(path).ctime_nsec());
    each_system(one_file, |m| {
        let file = m.path("dir/file");
        let before = ctime(&file);
        drop(File::options().append(true).open(&file).unwrap());
        let after = ctime(&file);
        assert!(after > before, "a copy-up changes the file");
        m.remount();
        assert_eq!(ctime(&m.path("dir/file")), after);
    });
}
