//! A whole root has no findings; each damage is found, and nothing else.

use std::fs::Permissions;
use std::sync::Arc;

use std::path::PathBuf;

use super::*;
use crate::serve::testing::FakeMounter;
use crate::snapshots::{Snapshots, Stop};
use crate::store::records::Labels;
use crate::store::tables::damage;

/// A root with a layer, a layer on it, a container and a view; ids 1, 2, 3 and 4.
fn root() -> (tempfile::TempDir, Layout) {
    let dir = tempfile::tempdir().expect("tempdir");
    let none = Labels::new();
    let (all, _) = Snapshots::open(dir.path(), Arc::new(FakeMounter::default())).expect("open");
    all.prepare("a1", "", &none).expect("prepare");
    all.commit("base", "a1", &none).expect("commit");
    all.prepare("a2", "base", &none).expect("prepare");
    all.commit("top", "a2", &none).expect("commit");
    all.prepare("run", "top", &none).expect("prepare");
    all.view("look", "top", &none).expect("view");
    all.close(Stop::End);
    drop(all);
    let layout = Layout::of(dir.path()).expect("layout");
    assert_eq!(check(dir.path()).expect("check"), [], "a whole root");
    (dir, layout)
}

fn unfinished(at: &Layout) -> PathBuf {
    at.snapshot(1).join("layer.index.new-7-0")
}

fn key(key: &str) -> String {
    key.to_owned()
}

#[test]
fn each_damage_is_found() {
    type Damage = fn(&Layout);
    type Expected = fn(&Layout) -> Vec<Finding>;
    let cases: &[(&str, Damage, Expected)] = &[
        (
            "an orphan",
            |at| fs::create_dir_all(at.fs(77)).expect("mkdir"),
            |at| vec![Finding::Orphan(at.snapshot(77))],
        ),
        (
            "leftovers",
            |at| {
                fs::create_dir(at.new_snapshot(8)).expect("mkdir");
                fs::create_dir(at.trash(9)).expect("mkdir");
                fs::write(at.new_store(), "").expect("write");
            },
            |at| {
                let paths = [at.new_snapshot(8), at.trash(9), at.new_store()];
                paths.into_iter().map(Finding::Leftover).collect()
            },
        ),
        (
            "an index that is none",
            |at| {
                fs::write(at.layer_index(1), "x").expect("write");
                fs::write(at.image_index(2), "y").expect("write");
            },
            |at| {
                let paths = [at.layer_index(1), at.image_index(2)];
                let flaw = "it does not have the length that it should have";
                let errors = paths.map(|path| format!("index {}: {flaw}", path.display()));
                errors.into_iter().map(Finding::Index).collect()
            },
        ),
        (
            "an index whose writing was cut off",
            |at| fs::write(unfinished(at), "").expect("write"),
            |at| vec![Finding::Leftover(unfinished(at))],
        ),
        (
            "a foreign file",
            |at| fs::write(at.snapshots().join("notes"), "").expect("write"),
            |at| vec![Finding::Foreign(at.snapshots().join("notes"))],
        ),
        (
            "a missing layer",
            |at| fs::remove_dir_all(at.snapshot(1)).expect("remove"),
            |at| {
                vec![Finding::MissingDirectory {
                    key: key("base"),
                    path: at.fs(1),
                }]
            },
        ),
        (
            "a missing work directory",
            |at| fs::remove_dir_all(at.work(3)).expect("remove"),
            |at| {
                vec![Finding::MissingDirectory {
                    key: key("run"),
                    path: at.work(3),
                }]
            },
        ),
        (
            "a file in the place of a directory",
            |at| {
                fs::remove_dir_all(at.fs(4)).expect("remove");
                fs::write(at.fs(4), "").expect("write");
            },
            |at| {
                vec![Finding::MissingDirectory {
                    key: key("look"),
                    path: at.fs(4),
                }]
            },
        ),
        (
            "an open root",
            |at| fs::set_permissions(at.root(), Permissions::from_mode(0o755)).expect("chmod"),
            |at| {
                vec![Finding::Mode {
                    path: at.root().to_owned(),
                    mode: 0o755,
                }]
            },
        ),
        (
            "a parent that is not there",
            |at| {
                damage::edit(&at.store(), "run", |record| {
                    record.parent = Some(key("gone"));
                });
            },
            |_| {
                vec![
                    Finding::MissingParent {
                        key: key("run"),
                        parent: key("gone"),
                    },
                    Finding::ChildIndex {
                        parent: 2,
                        child: 3,
                        surplus: true,
                    },
                ]
            },
        ),
        (
            "a parent of the wrong kind",
            |at| damage::edit(&at.store(), "top", |record| record.kind = Kind::View),
            |_| {
                let wrong = |child| Finding::ParentNotCommitted {
                    key: key(child),
                    parent: key("top"),
                    kind: Kind::View,
                };
                vec![wrong("look"), wrong("run")]
            },
        ),
        (
            "a cycle",
            |at| {
                damage::edit(&at.store(), "base", |record| {
                    record.parent = Some(key("top"));
                });
            },
            |_| {
                vec![
                    Finding::ParentTooYoung {
                        key: key("base"),
                        parent: key("top"),
                    },
                    Finding::ChildIndex {
                        parent: 2,
                        child: 1,
                        surplus: false,
                    },
                ]
            },
        ),
        (
            "one number twice",
            |at| damage::edit(&at.store(), "run", |record| record.id = 4),
            |at| {
                vec![
                    Finding::DuplicateId {
                        id: 4,
                        keys: vec![key("look"), key("run")],
                    },
                    Finding::IdIndex {
                        id: 3,
                        snapshot: None,
                        index: Some(key("run")),
                    },
                    Finding::ChildIndex {
                        parent: 2,
                        child: 3,
                        surplus: true,
                    },
                    Finding::MissingDirectory {
                        key: key("run"),
                        path: at.work(4),
                    },
                    Finding::Orphan(at.snapshot(3)),
                ]
            },
        ),
        (
            "a number that points elsewhere",
            |at| damage::put_id(&at.store(), 3, "look"),
            |_| {
                let (snapshot, index) = (Some(key("run")), Some(key("look")));
                vec![Finding::IdIndex {
                    id: 3,
                    snapshot,
                    index,
                }]
            },
        ),
        (
            "a number without a row",
            |at| damage::remove_id(&at.store(), 3),
            |_| {
                vec![Finding::IdIndex {
                    id: 3,
                    snapshot: Some(key("run")),
                    index: None,
                }]
            },
        ),
        (
            "a child without a row",
            |at| damage::remove_child(&at.store(), 1, 2),
            |_| {
                vec![Finding::ChildIndex {
                    parent: 1,
                    child: 2,
                    surplus: false,
                }]
            },
        ),
        (
            "a child of a stranger",
            |at| damage::put_child(&at.store(), 1, 4),
            |_| {
                vec![Finding::ChildIndex {
                    parent: 1,
                    child: 4,
                    surplus: true,
                }]
            },
        ),
        (
            "an upper and a layer with entries that mean nothing",
            |at| {
                fs::write(at.fs(1).join(".wh.a"), "").expect("write");
                fs::write(at.work(3).join("work"), "").expect("write");
            },
            |at| {
                vec![
                    Finding::Upper {
                        key: key("base"),
                        finding: upper::Finding {
                            path: at.fs(1).join(".wh.a"),
                            problem: upper::Problem::OciWhiteout,
                        },
                    },
                    Finding::Unreadable {
                        key: key("run"),
                        reason: "Not a directory (os error 20)".to_owned(),
                    },
                ]
            },
        ),
        (
            "a number that would be given out again",
            |at| damage::set_next_id(&at.store(), 4),
            |_| {
                vec![Finding::NextId {
                    next: 4,
                    greatest: 4,
                }]
            },
        ),
    ];
    for (what, damage, expected) in cases {
        let (dir, layout) = root();
        damage(&layout);
        let found = check(dir.path()).expect("check");
        let expected = expected(&layout);
        assert_eq!(found, expected, "{what}");
        for finding in &found {
            assert!(finding.to_string().len() > 20, "{what}: {finding}");
        }
    }
}

#[test]
fn a_lost_record_shows_everywhere() {
    let (dir, layout) = root();
    damage::remove_record(&layout.store(), "base");
    let found = check(dir.path()).expect("check");
    let parent = Finding::MissingParent {
        key: key("top"),
        parent: key("base"),
    };
    for expected in [parent, Finding::Orphan(layout.snapshot(1))] {
        assert!(found.contains(&expected), "{found:?}");
    }
}

#[test]
fn a_store_that_cannot_be_read_is_a_finding() {
    let (dir, layout) = root();
    fs::write(layout.store(), "not a database").expect("write");
    let found = check(dir.path()).expect("check");
    let [Finding::Store(reason)] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert!(
        reason.contains("metadata.redb") && reason.contains("damaged"),
        "{reason}"
    );
}

#[test]
fn a_root_in_use_is_not_checked() {
    let dir = tempfile::tempdir().expect("tempdir");
    let open = Snapshots::open(dir.path(), Arc::new(FakeMounter::default())).expect("open");
    let error = check(dir.path()).expect_err("in use");
    assert!(matches!(error, Error::RootInUse { .. }), "{error}");
    drop(open);
}
