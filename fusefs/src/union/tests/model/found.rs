//! Failures that were found, each as small as it became.

use super::check;
use super::steps::{Play, Step, Step::*};
use crate::union::tests::script::words::*;
use crate::union::tests::script::{Access, Act, Path, Script};

fn passes(layers: &[&[(Path, Entry)]], steps: &[Step]) {
    let layers = Script::new(layers, &[]).layers;
    for in_part in [false, true] {
        let play = Play {
            layers: layers.clone(),
            in_part,
            steps: steps.to_vec(),
        };
        if let Err(why) = check(&play) {
            panic!("in part: {in_part}: {why}");
        }
    }
}

const EMPTY: Entry = Entry::File {
    content: Content {
        head: 0,
        hole: 0,
        tail: 0,
        byte: 0,
    },
    meta: PLAIN,
};

const SHORT: Entry = Entry::File {
    content: Content {
        head: 7,
        hole: 0,
        tail: 0,
        byte: 0,
    },
    meta: PLAIN,
};

/// A copy of data that failed left the time of the copy.
#[test]
fn a_seal_that_the_disk_refuses_changes_no_time() {
    passes(
        &[&[("a", SHORT)]],
        &[
            Do(Op::Chown {
                path: "a",
                uid: Some(0),
                gid: None,
            }),
            FailInCommit(2, super::steps::Refusal::Full),
        ],
    );
}

/// The link that a name of the index gets before a rename changed its directory's time, although
/// the rename failed.
#[test]
fn a_rename_that_is_refused_changes_no_time() {
    passes(
        &[&[("a/b/c", EMPTY), ("b/c", Entry::HardLink { to: "a/b/c" })]],
        &[
            Do(Op::Create {
                path: "a/b/c",
                exclusive: false,
                mode: Mode(0o755),
            }),
            Do(Op::Rename {
                from: "b/c",
                to: "a",
                how: Plain,
            }),
        ],
    );
}

/// Random plays come here seldom.
#[test]
fn what_has_no_name_any_more_is_changed_by_its_handle() {
    let held = |act| Do(Op::Held { slot: 0, act });
    passes(
        &[&[("a", SHORT), ("b/c", SHORT)]],
        &[
            Do(Op::Open {
                slot: 0,
                path: "a",
                access: ReadOnly,
            }),
            Do(Op::Unlink { path: "a" }),
            held(Chmod { mode: Mode(0o600) }),
            held(Stat),
            held(Read),
            Do(Op::Open {
                slot: 0,
                path: "b",
                access: ReadOnly,
            }),
            held(Sync),
            Do(Op::Unlink { path: "b/c" }),
            held(Sync),
            Do(Op::Rmdir { path: "b" }),
            held(ReadDir),
            held(Stat),
        ],
    );
}

/// The model took an empty file for copied up with its data when its attributes were.
#[test]
fn an_empty_file_has_its_data_in_the_image_like_any_other() {
    passes(
        &[&[("c", EMPTY)]],
        &[
            Do(Op::Chmod {
                path: "c",
                mode: Mode(0o755),
            }),
            Do(Op::Open {
                slot: 0,
                path: "c",
                access: Access::ReadOnly,
            }),
            Do(Op::Truncate { path: "c", size: 1 }),
            Do(Op::Held {
                slot: 0,
                act: Act::Read,
            }),
        ],
    );
}
