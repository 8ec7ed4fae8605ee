//! Which layer a name comes from: the topmost one, unless a whiteout or an opaque directory
//! hides what is below.

use std::fs;

use rustix::io::Errno;

use crate::system::each_system;
use crate::tools::{exists, fails, names, opaque, read, whiteout, write};

#[test]
fn the_topmost_layer_wins_and_directories_merge() {
    each_system(
        |layers| {
            write(layers.bottom("dir/below"), "below");
            write(layers.bottom("dir/both"), "old");
            write(layers.top("dir/above"), "above");
            write(layers.top("dir/both"), "new");
        },
        |m| {
            assert_eq!(read(m.path("dir/below")), "below");
            assert_eq!(read(m.path("dir/above")), "above");
            assert_eq!(read(m.path("dir/both")), "new");
            assert_eq!(names(m.path("dir")), ["above", "below", "both"]);
        },
    );
}

#[test]
fn a_whiteout_hides_the_name_below() {
    each_system(
        |layers| {
            write(layers.bottom("dir/gone"), "");
            write(layers.bottom("dir/stays"), "");
            write(layers.bottom("tree/deep/file"), "");
            fs::create_dir(layers.top("dir")).unwrap();
            whiteout(layers.top("dir/gone"));
            whiteout(layers.top("tree"));
        },
        |m| {
            assert!(!exists(m.path("dir/gone")));
            assert_eq!(names(m.path("dir")), ["stays"]);
            assert_eq!(names(m.path("")), ["dir"]);
            fails(fs::read(m.path("tree/deep/file")), Errno::NOENT);
        },
    );
}

#[test]
fn an_opaque_directory_hides_everything_below() {
    each_system(
        |layers| {
            write(layers.bottom("dir/below"), "");
            write(layers.bottom("dir/sub/below"), "");
            opaque(layers.top("dir"));
            write(layers.top("dir/sub/above"), "");
        },
        |m| {
            assert_eq!(names(m.path("dir")), ["sub"]);
            assert_eq!(names(m.path("dir/sub")), ["above"]);
            assert!(!exists(m.path("dir/below")));
        },
    );
}

#[test]
fn a_file_hides_a_directory_and_a_directory_a_file() {
    each_system(
        |layers| {
            write(layers.bottom("was-dir/file"), "");
            write(layers.top("was-dir"), "file now");
            write(layers.bottom("was-file"), "");
            write(layers.top("was-file/inside"), "");
        },
        |m| {
            assert_eq!(read(m.path("was-dir")), "file now");
            assert_eq!(names(m.path("was-file")), ["inside"]);
            fails(fs::read(m.path("was-dir/file")), Errno::NOTDIR);
        },
    );
}

#[test]
fn a_name_that_was_missing_appears_when_it_is_made() {
    each_system(
        |_| {},
        |m| {
            // The kernel remembers that it is missing.
            for _ in 0..3 {
                assert!(!exists(m.path("late")));
            }
            write(m.path("late"), "here");
            assert_eq!(read(m.path("late")), "here");
            fs::remove_file(m.path("late")).unwrap();
            assert!(!exists(m.path("late")));
            fs::create_dir(m.path("late")).unwrap();
            assert!(m.path("late").is_dir());
        },
    );
}
