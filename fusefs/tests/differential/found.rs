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

/// The kernel went on with the attributes that it had from before the copy-up.
#[test]
fn a_new_link_to_an_open_image_file_left_the_old_name_behind() {
    let (from, to) = ("c/c", "a");
    passes(
        &[&[(from, FILE)]],
        &[
            Op::Open {
                slot: 0,
                path: from,
                access: ReadOnly,
            },
            Op::Link { from, to },
            Op::Stat { path: from },
            Op::Append {
                path: to,
                len: 1,
                byte: 0,
            },
            Op::Stat { path: from },
            Op::Read { path: from },
        ],
    );
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
