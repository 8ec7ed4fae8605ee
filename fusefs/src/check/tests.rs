//! A sound upper has no findings; each damage is found, and nothing else.

use std::fs;
use std::os::unix::fs::symlink;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

use super::*;
use crate::marks::{Mark, encode_origin};
use crate::sys::handle::FileHandle;
use crate::upper::to_hex;

/// An upper over two layers, with a bit of everything that is sound.
struct Damaged(tempfile::TempDir);

impl Damaged {
    fn new() -> Damaged {
        let at = Damaged(tempfile::tempdir().unwrap());
        for dir in [
            "top/dir",
            "bottom/dir/deep",
            "bottom/old",
            "upper/dir",
            "work/work",
            "work/index",
        ] {
            fs::create_dir_all(at.path(dir)).unwrap();
        }
        for file in [
            "bottom/dir/file",
            "bottom/old/inside",
            "bottom/other",
            "top/dir/above",
        ] {
            fs::write(at.path(file), file).unwrap();
        }
        fs::hard_link(at.path("bottom/other"), at.path("bottom/linked")).unwrap();
        at.whiteout("upper/dir/above");
        // The image's `old` is `new` now.
        fs::create_dir(at.path("upper/new")).unwrap();
        at.whiteout("upper/old");
        at.mark("upper/new", Mark::Redirect, b"/old");
        at.mark("upper", Mark::Impure, b"y");
        // A copy of a file, and one of a file with two links.
        fs::write(at.path("upper/dir/file"), "copy").unwrap();
        at.mark(
            "upper/dir/file",
            Mark::Origin,
            &at.origin("bottom/dir/file"),
        );
        at.mark("upper/dir", Mark::Impure, b"y");
        fs::write(at.path("upper/other"), "copy").unwrap();
        at.mark("upper/other", Mark::Origin, &at.origin("bottom/other"));
        at.mark("upper/other", Mark::Nlink, b"U+0");
        fs::hard_link(at.path("upper/other"), at.index()).unwrap();
        symlink("/etc", at.path("upper/link")).unwrap();
        at
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn index(&self) -> PathBuf {
        let name = to_hex(&self.origin("bottom/other"));
        self.path("work/index").join(name)
    }

    fn origin(&self, path: &str) -> Vec<u8> {
        let file = fs::File::open(self.path(path)).unwrap();
        encode_origin(&FileHandle::of(file.as_fd()).expect("handles need root"))
    }

    fn mark(&self, path: &str, mark: Mark, value: &[u8]) {
        lsetxattr(self.path(path), mark.name(), value, XattrFlags::empty())
            .expect("marks need root");
    }

    fn whiteout(&self, path: &str) {
        let kind = FileType::CharacterDevice;
        mknodat(CWD, self.path(path), kind, Mode::empty(), 0).expect("whiteouts need root");
    }

    fn check(&self) -> Vec<Finding> {
        let layers = [self.path("top"), self.path("bottom")];
        let (upper, work) = (self.path("upper"), self.path("work"));
        let mut found = check_upper(&upper, Some(&work), &layers).unwrap();
        found.sort_by_key(ToString::to_string);
        found
    }
}

#[test]
fn a_sound_upper_has_no_findings() {
    let at = Damaged::new();
    assert_eq!(at.check(), []);
    assert_eq!(check_lowest(&at.path("bottom")).unwrap(), []);
}

#[test]
fn each_damage_is_found_and_nothing_else() {
    type Damage = fn(&Damaged);
    let bad = |mark: Mark, value: &str| Problem::BadValue {
        mark: mark.name(),
        value: value.to_owned(),
    };
    let cases: Vec<(Damage, &str, Problem)> = vec![
        (
            |at| at.whiteout("upper/dir/none"),
            "upper/dir/none",
            Problem::WhiteoutHidesNothing,
        ),
        (
            |at| at.mark("upper/dir", Mark::Opaque, b"n"),
            "upper/dir",
            bad(Mark::Opaque, "n"),
        ),
        (
            |at| {
                fs::create_dir(at.path("upper/empty")).unwrap();
                at.mark("upper/empty", Mark::Redirect, b"a/b");
            },
            "upper/empty",
            bad(Mark::Redirect, "a/b"),
        ),
        (
            |at| at.mark("upper/link", Mark::Origin, b"\x01\x02"),
            "upper/link",
            bad(Mark::Origin, "\\x01\\x02"),
        ),
        (
            |at| at.mark("upper/dir", Mark::Metacopy, b"\0\x09\0\0"),
            "upper/dir",
            bad(Mark::Metacopy, "\\x00\\t\\x00\\x00"),
        ),
        (
            |at| at.mark("upper/dir/file", Mark::Nlink, b"U"),
            "upper/dir/file",
            bad(Mark::Nlink, "U"),
        ),
        (
            |at| at.mark("upper/new", Mark::Impure, b"yes"),
            "upper/new",
            bad(Mark::Impure, "yes"),
        ),
        (
            |at| at.mark("upper/new", Mark::Redirect, b"/../old"),
            "upper/new",
            Problem::RedirectOutside {
                target: "/../old".into(),
            },
        ),
        (
            |at| at.mark("upper/new", Mark::Redirect, b"/other"),
            "upper/new",
            Problem::RedirectNowhere {
                target: "/other".into(),
            },
        ),
        (
            |at| at.mark("upper/new", Mark::Redirect, b"none"),
            "upper/new",
            Problem::RedirectNowhere {
                target: "/none".into(),
            },
        ),
        (
            |at| {
                fs::create_dir(at.path("upper/dir/deep")).unwrap();
                at.mark("upper/dir/deep", Mark::Redirect, b"/dir");
            },
            "upper/dir/deep",
            Problem::RedirectToShown {
                target: "/dir".into(),
            },
        ),
        (
            |at| {
                let origin = at.origin("bottom/old/inside");
                fs::remove_file(at.path("bottom/old/inside")).unwrap();
                at.mark("upper/link", Mark::Origin, &origin);
            },
            "upper/link",
            Problem::OriginUnknown,
        ),
        (
            |at| {
                fs::write(at.path("elsewhere"), "").unwrap();
                at.mark("upper/link", Mark::Origin, &at.origin("elsewhere"));
            },
            "upper/link",
            Problem::OriginElsewhere,
        ),
        (
            |at| {
                fs::create_dir(at.path("upper/plain")).unwrap();
                fs::write(at.path("upper/plain/moved"), "").unwrap();
                at.mark(
                    "upper/plain/moved",
                    Mark::Origin,
                    &at.origin("bottom/old/inside"),
                );
            },
            "upper/plain",
            Problem::NotImpure {
                entry: "plain/moved".into(),
            },
        ),
        (
            |at| {
                fs::write(at.path("upper/fresh"), "").unwrap();
                at.mark("upper/fresh", Mark::Metacopy, b"");
            },
            "upper/fresh",
            Problem::MetacopyWithoutData,
        ),
        (
            |at| {
                fs::write(at.path("upper/fresh"), "").unwrap();
                at.mark("upper/fresh", Mark::Redirect, b"/old/inside");
                at.mark("upper/fresh", Mark::Metacopy, b"P");
                at.mark("upper/fresh", Mark::Partial, b"1");
            },
            "upper/fresh",
            Problem::Partial,
        ),
        (
            |at| fs::write(at.path("work/index/00zz"), "").unwrap(),
            "work/index/00zz",
            Problem::IndexName,
        ),
        (
            |at| fs::write(at.path("work/work/#1"), "").unwrap(),
            "work/work/#1",
            Problem::Leftover,
        ),
        (
            |at| fs::write(at.path("upper/.wh.gone"), "").unwrap(),
            "upper/.wh.gone",
            Problem::OciWhiteout,
        ),
    ];
    for (damage, path, problem) in cases {
        let at = Damaged::new();
        damage(&at);
        let path = at.path(path);
        let finding = Finding { path, problem };
        assert_eq!(at.check(), std::slice::from_ref(&finding));
        assert!(finding.to_string().len() > 40, "{finding}");
    }
}

#[test]
fn two_redirects_to_one_directory() {
    let at = Damaged::new();
    fs::create_dir(at.path("upper/newer")).unwrap();
    at.mark("upper/newer", Mark::Redirect, b"old");
    let [
        Finding {
            path,
            problem: Problem::RedirectTwice { other },
        },
    ] = &at.check()[..]
    else {
        panic!("{:?}", at.check())
    };
    let mut both = [path.clone(), at.path("upper").join(other)];
    both.sort();
    assert_eq!(both, [at.path("upper/new"), at.path("upper/newer")]);
}

#[test]
fn directories_that_changed_places_are_sound() {
    let at = Damaged::new();
    fs::create_dir(at.path("bottom/b")).unwrap();
    fs::create_dir(at.path("upper/b")).unwrap();
    fs::remove_file(at.path("upper/old")).unwrap();
    fs::rename(at.path("upper/new"), at.path("upper/b2")).unwrap();
    fs::remove_dir(at.path("upper/b2")).unwrap();
    fs::create_dir(at.path("upper/old")).unwrap();
    at.mark("upper/b", Mark::Redirect, b"/old");
    at.mark("upper/old", Mark::Redirect, b"b");
    assert_eq!(at.check(), []);
}

#[test]
fn an_index_of_other_layers() {
    let at = Damaged::new();
    fs::write(at.path("elsewhere"), "").unwrap();
    let name = to_hex(&at.origin("elsewhere"));
    let entry = at.path("work/index").join(name);
    fs::write(&entry, "").unwrap();
    let found = at.check();
    assert_eq!(
        found,
        [Finding {
            path: entry,
            problem: Problem::IndexUnknown
        }]
    );
}

#[test]
fn a_link_count_that_cannot_be() {
    for (value, count) in [("U-2", 0), ("U+2", 4), ("L-2", 0), ("L+2", 4)] {
        let at = Damaged::new();
        at.mark("upper/other", Mark::Nlink, value.as_bytes());
        let problem = Problem::IndexLinks {
            count,
            upper: 1,
            image: 2,
        };
        let path = at.index();
        assert_eq!(at.check(), [Finding { path, problem }], "{value}");
    }
    for value in ["U-1", "U+1", "L+0", "L-1"] {
        let at = Damaged::new();
        at.mark("upper/other", Mark::Nlink, value.as_bytes());
        assert_eq!(at.check(), [], "{value}");
    }
}

#[test]
fn directories_that_do_not_fit_together() {
    let at = Damaged::new();
    let layers = [at.path("top"), at.path("bottom")];
    for (upper, work, problem) in [
        ("upper", "upper/dir", Problem::WorkInUpper),
        ("upper", "upper", Problem::WorkInUpper),
        ("work/work", "work", Problem::UpperInWork),
    ] {
        let (upper, work) = (at.path(upper), at.path(work));
        let found = check_upper(&upper, Some(&work), &layers).unwrap();
        assert_eq!(
            found,
            [Finding {
                path: work,
                problem
            }]
        );
    }
    let elsewhere = Path::new("/dev/shm");
    let found = check_upper(&at.path("upper"), Some(elsewhere), &layers).unwrap();
    let problem = Problem::OtherFileSystem;
    assert!(
        found.contains(&Finding {
            path: elsewhere.to_owned(),
            problem
        }),
        "{found:?}"
    );
}

#[test]
fn a_whiteout_in_the_lowest_layer() {
    let at = Damaged::new();
    at.whiteout("bottom/dir/deep/gone");
    let found = check_lowest(&at.path("bottom")).unwrap();
    let path = at.path("bottom/dir/deep/gone");
    assert_eq!(
        found,
        [Finding {
            path,
            problem: Problem::WhiteoutInLowest
        }]
    );
    assert_eq!(found[0].severity(), Severity::Note);
}

#[test]
fn a_layer_with_a_bad_redirect_is_named() {
    let at = Damaged::new();
    at.mark("top/dir", Mark::Redirect, b"/../out");
    let found = at.check();
    assert!(!found.is_empty());
    for finding in found {
        assert!(
            finding.to_string().contains("dir: its redirect leads out"),
            "{finding}"
        );
    }
}

#[test]
fn a_check_changes_nothing_and_follows_no_symlink() {
    let at = Damaged::new();
    let before = fs::metadata(at.path("upper")).unwrap().modified().unwrap();
    symlink("/dev/null", at.path("upper/dir/away")).unwrap();
    symlink(at.path("elsewhere"), at.path("work/work/link")).unwrap();
    fs::create_dir(at.path("elsewhere")).unwrap();
    fs::write(at.path("elsewhere/.wh.x"), "").unwrap();
    symlink(at.path("elsewhere"), at.path("upper/dir/dir-away")).unwrap();
    let problem = Problem::Leftover;
    let path = at.path("work/work/link");
    assert_eq!(at.check(), [Finding { path, problem }]);
    assert_eq!(
        fs::metadata(at.path("upper")).unwrap().modified().unwrap(),
        before
    );
}

#[test]
fn a_deep_tree_needs_neither_stack_nor_descriptors() {
    let at = Damaged::new();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = rustix::fs::open(at.path("upper"), flags, Mode::empty()).unwrap();
    for _ in 0..1_500 {
        rustix::fs::mkdirat(&dir, "deep", Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, "deep", flags, Mode::empty()).unwrap();
    }
    mknodat(&dir, "gone", FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    // On a stack that recursion would not fit on.
    let (found, at) = std::thread::Builder::new()
        .stack_size(256 * 1024)
        .spawn(move || (at.check(), at))
        .unwrap()
        .join()
        .unwrap();
    assert!(matches!(
        found[..],
        [Finding {
            problem: Problem::WhiteoutHidesNothing,
            ..
        }]
    ));
    // Nor does rm, other than the temporary directory's own removal.
    let removed = std::process::Command::new("rm")
        .arg("-r")
        .arg(at.path("upper/deep"))
        .status();
    assert!(removed.unwrap().success());
}
