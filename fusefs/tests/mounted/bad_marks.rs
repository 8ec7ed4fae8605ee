//! Marks that no overlay writes: redirects that lead out or in circles, values that mean nothing,
//! whiteouts that hide nothing.
//!
//! Each has to end in an error, or in overlayfs's own answer, and never in a hang or in a file from
//! outside the layers.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::io::Errno;

use crate::bad_input::image;
use crate::system::{Mounted, each_lamina, each_system, each_system_over};
use crate::tools::{append, exists, fails, names, read, set_xattr, stat, whiteout, write};

/// Redirects that lead out of the tree, or are none.
const LEADING_OUT: [&str; 6] = ["..", "../..", "/..", "/../outside", "/dir/../..", "a/b"];

#[test]
fn a_redirect_in_a_layer_that_leads_out() {
    for value in LEADING_OUT {
        each_system(
            |layers| {
                image(layers);
                fs::create_dir(layers.top("moved")).unwrap();
                set_redirect(layers.top("moved"), value);
            },
            redirect_is_refused,
        );
    }
}

#[test]
fn a_redirect_in_the_upper_that_leads_out() {
    for value in LEADING_OUT {
        each_system(
            |layers| {
                image(layers);
                fs::create_dir(layers.upper().join("moved")).unwrap();
                set_redirect(layers.upper().join("moved"), value);
            },
            redirect_is_refused,
        );
    }
}

fn set_redirect(dir: impl AsRef<Path>, value: &str) {
    set_xattr(dir, "trusted.overlay.redirect", value.as_bytes()).unwrap();
}

/// The directory `moved` can't be used, and everything else can.
fn redirect_is_refused(m: &mut Mounted) {
    let refused = fs::read_dir(m.path("moved"));
    if m.is_lamina() {
        fails(refused, Errno::IO);
    } else {
        assert!(refused.is_err());
    }
    assert!(fs::read(m.path("moved/only-outside")).is_err());
    assert_eq!(names(m.path("")), ["dir", "moved", "other"]);
    assert_eq!(read(m.path("dir/file")), "image");
    append(m.path("other"), "!");
}

#[test]
fn a_redirect_through_a_symlink_finds_nothing() {
    each_system(
        |layers| {
            image(layers);
            symlink(layers.beside("outside"), layers.bottom("link")).unwrap();
            symlink("../outside", layers.bottom("climbs")).unwrap();
            for (dir, target) in [("a", "/link"), ("b", "/climbs"), ("c", "link")] {
                write(layers.top(dir).join("own"), "");
                set_redirect(layers.top(dir), target);
            }
        },
        |m| {
            for dir in ["a", "b", "c"] {
                assert_eq!(names(m.path(dir)), ["own"], "{dir}");
                assert!(!exists(m.path(dir).join("only-outside")));
            }
        },
    );
}

#[test]
fn redirects_in_a_circle_end_at_the_lowest_layer() {
    each_system_over(
        5,
        |layers| {
            for (number, layer) in layers.lowers().iter().enumerate() {
                for (dir, target) in [("a", "/b"), ("b", "/a"), ("self", "/self")] {
                    write(layer.join(dir).join(format!("{dir}{number}")), "");
                    set_redirect(layer.join(dir), target);
                }
            }
        },
        |m| {
            assert_eq!(names(m.path("a")), ["a0", "a2", "a4", "b1", "b3"]);
            assert_eq!(names(m.path("b")), ["a1", "a3", "b0", "b2", "b4"]);
            let own = ["self0", "self1", "self2", "self3", "self4"];
            assert_eq!(names(m.path("self")), own);
        },
    );
}

#[test]
fn redirects_that_multiply_end() {
    each_system_over(
        60,
        |layers| {
            // Each part of each path leads to the whole path again, one layer below.
            for layer in layers.lowers() {
                fs::create_dir_all(layer.join("a/a/a")).unwrap();
                for dir in ["a", "a/a", "a/a/a"] {
                    set_redirect(layer.join(dir), "/a/a/a");
                }
            }
        },
        |m| assert_eq!(names(m.path("a/a/a")), [""; 0]),
    );
}

#[test]
fn a_whiteout_that_hides_nothing() {
    each_system(
        |layers| {
            image(layers);
            whiteout(layers.bottom("nothing"));
            whiteout(layers.bottom("dir/nothing"));
            whiteout(layers.upper().join("nothing-either"));
        },
        |m| {
            assert_eq!(names(m.path("")), ["dir", "other"]);
            // overlayfs looks for whiteouts only where it merges, so it lists this one.
            if m.is_lamina() {
                assert_eq!(names(m.path("dir")), ["file"]);
            }
            for name in ["nothing", "dir/nothing", "nothing-either"] {
                assert!(!exists(m.path(name)));
                write(m.path(name), "here now");
                assert_eq!(read(m.path(name)), "here now");
                fs::remove_file(m.path(name)).unwrap();
                assert!(!exists(m.path(name)));
            }
        },
    );
}

#[test]
fn marks_with_values_that_nobody_writes() {
    let values: [&[u8]; 5] = [b"", b"n", b"\0\xfb\xff\0", b"U+", &[0xff; 300]];
    for value in values {
        each_system(
            |layers| {
                image(layers);
                let upper = layers.upper();
                write(upper.join("dir/upper"), "upper");
                for mark in ["opaque", "impure", "origin", "nlink"] {
                    let mark = format!("trusted.overlay.{mark}");
                    for path in [
                        upper.join("dir"),
                        upper.join("dir/upper"),
                        layers.bottom("dir"),
                        layers.bottom("dir/file"),
                    ] {
                        set_xattr(path, &mark, value).unwrap();
                    }
                }
            },
            |m| {
                // A mark that is none is not there.
                assert_eq!(names(m.path("dir")), ["file", "upper"]);
                assert_eq!(read(m.path("dir/file")), "image");
                append(m.path("dir/file"), "!");
                assert_eq!(stat(m.path("dir/upper")).len(), 5);
                assert_eq!(read(m.path("dir/upper")), "upper");
                fs::remove_file(m.path("dir/upper")).unwrap();
                assert_eq!(names(m.path("dir")), ["file"]);
            },
        );
    }
}

#[test]
fn a_file_whose_data_is_elsewhere_is_no_file_of_zeros() {
    for value in [&b""[..], b"nonsense"] {
        each_lamina(
            |layers| {
                image(layers);
                write(layers.upper().join("other"), "\0\0\0\0\0");
                set_xattr(
                    layers.upper().join("other"),
                    "trusted.overlay.metacopy",
                    value,
                )
                .unwrap();
            },
            |m| {
                fails(fs::read(m.path("other")), Errno::IO);
                assert_eq!(names(m.path("")), ["dir", "other"]);
                fs::remove_file(m.path("other")).unwrap();
            },
        );
    }
}
