//! unlink and rmdir, and the names that come back after them.

use std::fs;

use rustix::io::Errno;

use crate::system::{Layers, each_system};
use crate::tools::{exists, fails, names, read, whiteout, write};

fn image(layers: &Layers) {
    write(layers.bottom("file"), "old");
    write(layers.bottom("dir/a"), "a");
    write(layers.bottom("dir/sub/b"), "b");
    write(layers.top("dir/c"), "c");
}

#[test]
fn a_removed_name_stays_removed() {
    each_system(image, |m| {
        fs::remove_file(m.path("file")).unwrap();
        fs::remove_file(m.path("dir/a")).unwrap();
        fails(fs::remove_file(m.path("file")), Errno::NOENT);
        assert_eq!(names(m.path("dir")), ["c", "sub"]);
        m.remount();
        assert!(!exists(m.path("file")));
        assert_eq!(names(m.path("dir")), ["c", "sub"]);
        assert_eq!(read(m.layers.bottom("file")), "old");
    });
}

#[test]
fn a_made_again_file_is_a_new_one() {
    each_system(image, |m| {
        fs::remove_file(m.path("file")).unwrap();
        fs::create_dir(m.path("file")).unwrap();
        assert_eq!(names(m.path("file")).len(), 0);
        fs::remove_dir(m.path("file")).unwrap();
        assert!(!exists(m.path("file")));
        write(m.path("file"), "new");
        m.remount();
        assert_eq!(read(m.path("file")), "new");
    });
}

#[test]
fn a_made_again_directory_is_empty() {
    each_system(image, |m| {
        fails(fs::remove_dir(m.path("dir")), Errno::NOTEMPTY);
        fs::remove_dir_all(m.path("dir")).unwrap();
        assert!(!exists(m.path("dir")));
        fs::create_dir(m.path("dir")).unwrap();
        assert_eq!(names(m.path("dir")).len(), 0);
        fs::create_dir(m.path("dir/sub")).unwrap();
        assert_eq!(names(m.path("dir/sub")).len(), 0);
        write(m.path("dir/a"), "new");
        m.remount();
        assert_eq!(names(m.path("dir")), ["a", "sub"]);
        assert_eq!(names(m.path("dir/sub")).len(), 0);
        assert_eq!(read(m.path("dir/a")), "new");
    });
}

#[test]
fn a_directory_with_nothing_but_whiteouts_can_be_removed() {
    each_system(
        |layers| {
            write(layers.bottom("dir/a"), "");
            fs::create_dir(layers.top("dir")).unwrap();
            whiteout(layers.top("dir/a"));
            write(layers.bottom("two/a"), "");
        },
        |m| {
            fs::remove_dir(m.path("dir")).unwrap();
            fs::remove_file(m.path("two/a")).unwrap();
            fs::remove_dir(m.path("two")).unwrap();
            assert_eq!(names(m.path("")).len(), 0);
            m.remount();
            assert_eq!(names(m.path("")).len(), 0);
        },
    );
}

#[test]
fn kinds_are_not_mixed_up() {
    each_system(image, |m| {
        fails(fs::remove_dir(m.path("file")), Errno::NOTDIR);
        fails(fs::remove_file(m.path("dir")), Errno::ISDIR);
        fails(fs::remove_dir(m.path("missing")), Errno::NOENT);
        fails(fs::create_dir(m.path("file")), Errno::EXIST);
        fails(fs::create_dir(m.path("file/x")), Errno::NOTDIR);
        fails(fs::create_dir(m.path("missing/x")), Errno::NOENT);
    });
}
