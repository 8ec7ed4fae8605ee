//! Hard links and symbolic links.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use rustix::io::Errno;

use crate::system::each_system;
use crate::tools::{append, chmod, exists, fails, mode, read, stat, write};

#[test]
fn hard_links_of_new_files() {
    each_system(
        |_| {},
        |m| {
            write(m.path("one"), "1");
            fs::hard_link(m.path("one"), m.path("two")).unwrap();
            assert_eq!(stat(m.path("one")).nlink(), 2);
            assert_eq!(stat(m.path("one")).ino(), stat(m.path("two")).ino());
            append(m.path("two"), "2");
            assert_eq!(read(m.path("one")), "12");
            fs::remove_file(m.path("one")).unwrap();
            assert_eq!(read(m.path("two")), "12");
            assert_eq!(stat(m.path("two")).nlink(), 1);
        },
    );
}

#[test]
fn a_new_link_to_an_image_file() {
    each_system(
        |layers| write(layers.bottom("one"), "1"),
        |m| {
            let number = stat(m.path("one")).ino();
            fs::hard_link(m.path("one"), m.path("two")).unwrap();
            assert_eq!(stat(m.path("two")).ino(), number);
            append(m.path("one"), "!");
            assert_eq!(read(m.path("two")), "1!");
            fails(fs::hard_link(m.path("one"), m.path("two")), Errno::EXIST);
            m.remount();
            assert_eq!(stat(m.path("one")).ino(), stat(m.path("two")).ino());
            assert_eq!(read(m.path("two")), "1!");
        },
    );
}

#[test]
fn a_new_link_to_an_open_image_file_is_known_at_both_names() {
    each_system(
        |layers| write(layers.bottom("one"), "1"),
        |m| {
            let reader = fs::File::open(m.path("one")).unwrap();
            fs::hard_link(m.path("one"), m.path("two")).unwrap();
            assert_eq!(stat(m.path("one")).nlink(), 2);
            append(m.path("two"), "2");
            assert_eq!(
                (stat(m.path("one")).len(), &*read(m.path("one"))),
                (2, "12")
            );
            drop(reader);
        },
    );
}

#[test]
fn links_in_the_image_stay_links_after_copy_up() {
    each_system(
        |layers| {
            write(layers.bottom("one"), "1");
            fs::create_dir(layers.bottom("dir")).unwrap();
            for other in ["two", "dir/three", "gone"] {
                fs::hard_link(layers.bottom("one"), layers.bottom(other)).unwrap();
            }
        },
        |m| {
            let number = stat(m.path("one")).ino();
            append(m.path("two"), "2");
            assert_eq!(read(m.path("one")), "12");
            assert_eq!(read(m.path("dir/three")), "12");
            chmod(m.path("dir/three"), 0o600);
            assert_eq!(mode(m.path("one")), 0o600);
            fs::remove_file(m.path("gone")).unwrap();
            m.remount();
            for name in ["one", "two", "dir/three"] {
                assert_eq!(
                    (read(m.path(name)), stat(m.path(name)).ino()),
                    ("12".into(), number)
                );
            }
            append(m.path("dir/three"), "3");
            assert_eq!(read(m.path("one")), "123");
            assert_eq!(read(m.layers.bottom("one")), "1");
            assert!(!exists(m.path("gone")));
        },
    );
}

#[test]
fn symbolic_links() {
    each_system(
        |layers| {
            write(layers.bottom("target"), "t");
            symlink("target", layers.bottom("lower")).unwrap();
        },
        |m| {
            symlink("lower", m.path("upper")).unwrap();
            symlink("missing", m.path("dangling")).unwrap();
            assert_eq!(read(m.path("upper")), "t");
            assert_eq!(
                fs::read_link(m.path("upper")).unwrap().to_str(),
                Some("lower")
            );
            assert_eq!(stat(m.path("upper")).len(), 5);
            fails(fs::read(m.path("dangling")), Errno::NOENT);
            fails(symlink("x", m.path("lower")), Errno::EXIST);
            fs::rename(m.path("lower"), m.path("moved")).unwrap();
            assert_eq!(read(m.path("moved")), "t");
            let long = "x/".repeat(2000);
            symlink(&long, m.path("long")).unwrap();
            assert_eq!(
                fs::read_link(m.path("long")).unwrap().to_str(),
                Some(&*long)
            );
        },
    );
}
