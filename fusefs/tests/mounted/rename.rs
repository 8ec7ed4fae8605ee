//! rename(2) and renameat2(2) across the image and the upper.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::system::{Layers, each_system};
use crate::tools::{append, exists, fails, names, read, stat, write};

fn rename2(from: impl AsRef<Path>, to: impl AsRef<Path>, flags: RenameFlags) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(
        CWD,
        from.as_ref(),
        CWD,
        to.as_ref(),
        flags,
    )?)
}

fn image(layers: &Layers) {
    write(layers.bottom("file"), "file");
    write(layers.bottom("other"), "other");
    write(layers.bottom("dir/a"), "a");
    write(layers.bottom("dir/deep/b"), "b");
    write(layers.top("dir/top"), "top");
    write(layers.bottom("dir2/c"), "c");
}

#[test]
fn files_of_the_image() {
    each_system(image, |m| {
        fs::rename(m.path("file"), m.path("moved")).unwrap();
        assert_eq!(read(m.path("moved")), "file");
        assert!(!exists(m.path("file")));
        fs::rename(m.path("moved"), m.path("other")).unwrap();
        assert_eq!(read(m.path("other")), "file");
        fs::rename(m.path("dir/a"), m.path("dir2/a")).unwrap();
        assert_eq!(read(m.path("dir2/a")), "a");
        assert_eq!(names(m.path("dir")), ["deep", "top"]);
        m.remount();
        assert_eq!(names(m.path("")), ["dir", "dir2", "other"]);
        assert_eq!(read(m.path("other")), "file");
    });
}

#[test]
fn directories_of_the_upper() {
    each_system(image, |m| {
        write(m.path("new/x/y"), "y");
        fs::rename(m.path("new"), m.path("newer")).unwrap();
        assert_eq!(read(m.path("newer/x/y")), "y");
        fs::rename(m.path("newer/x"), m.path("dir/x")).unwrap();
        assert_eq!(read(m.path("dir/x/y")), "y");
        assert_eq!(names(m.path("newer")).len(), 0);
    });
}

#[test]
fn directories_of_the_image() {
    each_system(image, |m| {
        let number = stat(m.path("dir")).ino();
        fs::rename(m.path("dir"), m.path("moved")).unwrap();
        assert_eq!(names(m.path("moved")), ["a", "deep", "top"]);
        assert_eq!(read(m.path("moved/deep/b")), "b");
        assert_eq!(stat(m.path("moved")).ino(), number);
        // A new directory under the old name does not see what was below it.
        fs::create_dir(m.path("dir")).unwrap();
        assert_eq!(names(m.path("dir")).len(), 0);
        // Moved again, into another one, and changed there.
        fs::rename(m.path("moved"), m.path("dir2/again")).unwrap();
        fs::rename(m.path("dir2/again/deep"), m.path("shallow")).unwrap();
        append(m.path("dir2/again/a"), "!");
        append(m.path("shallow/b"), "!");
        m.remount();
        assert_eq!(names(m.path("dir2/again")), ["a", "top"]);
        assert_eq!(read(m.path("dir2/again/a")), "a!");
        assert_eq!(read(m.path("shallow/b")), "b!");
        assert_eq!(names(m.path("dir")).len(), 0);
    });
}

#[test]
fn noreplace() {
    each_system(image, |m| {
        let noreplace = RenameFlags::NOREPLACE;
        fails(
            rename2(m.path("file"), m.path("other"), noreplace),
            Errno::EXIST,
        );
        assert_eq!(
            (read(m.path("file")), read(m.path("other"))),
            ("file".into(), "other".into())
        );
        fs::remove_file(m.path("other")).unwrap();
        rename2(m.path("file"), m.path("other"), noreplace).unwrap();
        assert_eq!(read(m.path("other")), "file");
        rename2(m.path("dir"), m.path("free"), noreplace).unwrap();
        assert_eq!(names(m.path("free")), ["a", "deep", "top"]);
    });
}

#[test]
fn exchange() {
    each_system(image, |m| {
        let exchange = RenameFlags::EXCHANGE;
        rename2(m.path("file"), m.path("other"), exchange).unwrap();
        assert_eq!(
            (read(m.path("file")), read(m.path("other"))),
            ("other".into(), "file".into())
        );
        rename2(m.path("file"), m.path("dir"), exchange).unwrap();
        assert_eq!(read(m.path("dir")), "other");
        assert_eq!(names(m.path("file")), ["a", "deep", "top"]);
        rename2(m.path("file"), m.path("dir2"), exchange).unwrap();
        assert_eq!(names(m.path("file")), ["c"]);
        assert_eq!(names(m.path("dir2")), ["a", "deep", "top"]);
        fails(
            rename2(m.path("file"), m.path("missing"), exchange),
            Errno::NOENT,
        );
        m.remount();
        assert_eq!(names(m.path("file")), ["c"]);
        assert_eq!(names(m.path("dir2")), ["a", "deep", "top"]);
        assert_eq!(read(m.path("dir")), "other");
    });
}

#[test]
fn over_a_whiteout() {
    each_system(image, |m| {
        fs::remove_file(m.path("other")).unwrap();
        fs::rename(m.path("file"), m.path("other")).unwrap();
        assert_eq!(read(m.path("other")), "file");
        fs::remove_dir_all(m.path("dir2")).unwrap();
        write(m.path("new/x"), "x");
        fs::rename(m.path("new"), m.path("dir2")).unwrap();
        assert_eq!(names(m.path("dir2")), ["x"]);
        m.remount();
        assert_eq!(names(m.path("dir2")), ["x"]);
        assert_eq!(names(m.path("")), ["dir", "dir2", "other"]);
    });
}

#[test]
fn over_a_directory_that_is_empty_by_whiteouts() {
    each_system(image, |m| {
        fs::remove_file(m.path("dir2/c")).unwrap();
        fs::rename(m.path("dir"), m.path("dir2")).unwrap();
        assert_eq!(names(m.path("dir2")), ["a", "deep", "top"]);
        fails(fs::create_dir(m.path("dir2")), Errno::EXIST);
        m.remount();
        assert_eq!(names(m.path("dir2")), ["a", "deep", "top"]);
    });
}

#[test]
fn what_does_not_fit() {
    each_system(image, |m| {
        fails(fs::rename(m.path("dir2"), m.path("dir")), Errno::NOTEMPTY);
        fails(fs::rename(m.path("file"), m.path("dir")), Errno::ISDIR);
        fails(fs::rename(m.path("dir"), m.path("file")), Errno::NOTDIR);
        fails(
            fs::rename(m.path("dir"), m.path("dir/deep/in-itself")),
            Errno::INVAL,
        );
        fails(fs::rename(m.path("missing"), m.path("file")), Errno::NOENT);
        // A file over itself: nothing happens.
        fs::rename(m.path("file"), m.path("file")).unwrap();
        assert_eq!(read(m.path("file")), "file");
    });
}
