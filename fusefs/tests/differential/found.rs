//! Scripts that once failed, each shrunk and under the name of what was wrong.

use crate::check;
use crate::script::words::*;

const FILE: Entry = Entry::File {
    content: Content {
        head: 10,
        hole: 0,
        tail: 0,
        byte: 0,
    },
    meta: PLAIN,
};

fn passes(layers: &[&[(&'static str, Entry)]], ops: &[Op]) {
    let script = Script::new(layers, ops);
    if let Err(error) = check(&script) {
        panic!("{error}\n{script:?}");
    }
}

/// It came as a SETATTR of nothing, and nothing was done.
#[test]
fn chown_to_nobody_left_setuid() {
    let mode = Mode(0o4755);
    passes(
        &[&[("a", FILE)]],
        &[
            Op::Chmod { path: "a", mode },
            Op::Chown {
                path: "a",
                uid: None,
                gid: None,
            },
            Op::Stat { path: "a" },
            Op::Create {
                path: "b",
                exclusive: true,
                mode,
            },
            Op::Become { user: Unprivileged },
            Op::Chown {
                path: "b",
                uid: None,
                gid: None,
            },
            Op::Stat { path: "b" },
        ],
    );
}

/// A name that a descriptor of the image's file was opened by, and that is then replaced.
#[test]
fn a_file_changed_while_the_image_is_read() {
    passes(
        &[&[("a", FILE), ("b", Entry::HardLink { to: "a" })]],
        &[
            Op::Open {
                slot: 0,
                path: "a",
                access: ReadOnly,
            },
            Op::Append {
                path: "b",
                len: 1,
                byte: 0,
            },
            Op::Read { path: "a" },
            Op::Remount,
            Op::Append {
                path: "a",
                len: 1,
                byte: 0,
            },
            Op::Read { path: "b" },
        ],
    );
}

#[test]
fn names_of_an_image_file_that_went_are_not_counted() {
    passes(
        &[&[("c", FILE), ("a/b", Entry::HardLink { to: "c" })]],
        &[Op::Unlink { path: "a/b" }, Op::Stat { path: "c" }],
    );
}
