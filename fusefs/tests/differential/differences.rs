//! What may differ between overlayfs and Lamina, and why.
//!
//! [`WANTED`] is on purpose, [`FAULTS`] is not. What no comparison can meet is in four other
//! places: what overlayfs does not do at all (`run::is_beyond_overlayfs`, `run::is_special`), how a system may contradict itself (`seen::Quirks`), what is read through a descriptor
//! that was opened before a copy-up (`run::Outcome::OldImage`), and hard links of the image in what
//! the other system wrote (`exchange::is_linked`).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::script::{Act, Op, User};
use crate::seen::Attributes;

/// A difference between the two.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    /// What was done; `None` where trees are compared.
    pub(crate) op: Option<&'a Op>,
    /// Everything that was done so far, if the two did the same.
    pub(crate) done: &'a [Op],
    /// Whether a rename failed before.
    pub(crate) rename_failed: bool,
    /// Of what file, as Lamina sees it, if it is known.
    pub(crate) of: Option<&'a Attributes>,
    /// Which of the things that are compared.
    pub(crate) what: &'static str,
    pub(crate) overlayfs: String,
    pub(crate) lamina: String,
}

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            overlayfs,
            lamina,
            ..
        } = self;
        write!(f, "{what}: overlayfs says {overlayfs}, Lamina {lamina}")
    }
}

/// A difference that is known.
pub(crate) struct Known {
    /// In the words of `docs/semantics.md`.
    pub(crate) what: &'static str,
    pub(crate) why: &'static str,
    /// Whether something found is this.
    is: fn(&Found<'_>) -> bool,
    /// How often it was met.
    met: AtomicU64,
}

/// All differences on purpose.
pub(crate) static WANTED: [Known; 11] = [
    Known {
        what: "link count of a directory",
        why: "overlayfs says 1 for a merged directory; Lamina counts the directories in it, which \
              is checked wherever a tree is looked at",
        is: |found| found.what == "nlink" && found.of.is_some_and(Attributes::is_dir),
        met: AtomicU64::new(0),
    },
    Known {
        what: "mtime of the directory in which a rename failed",
        why: "overlayfs changes the upper before it finds that the rename is impossible",
        is: |found| {
            found.what == "mtime"
                && found.rename_failed
                && found.overlayfs == "Now"
                && found.of.is_some_and(Attributes::is_dir)
        },
        met: AtomicU64::new(0),
    },
    Known {
        what: "removing an xattr whose name is in no namespace is ENODATA",
        why: "overlayfs asks the upper's file system, which says EOPNOTSUPP; Lamina looks first \
              whether it is there",
        is: |found| match found.op {
            Some(Op::RemoveXattr { name, .. }) => !name.contains('.'),
            _ => false,
        },
        met: AtomicU64::new(0),
    },
    Known {
        what: "names of `trusted.*` attributes are listed for users without privilege too",
        why: "overlayfs hides the names, and FUSE does not tell who has CAP_SYS_ADMIN; the values \
              cannot be read (ENODATA)",
        is: |found| {
            matches!(found.op, Some(Op::ReadXattrs { .. }))
                && found.overlayfs.starts_with("Xattrs(")
                && found.lamina.contains("code: 61,")
        },
        met: AtomicU64::new(0),
    },
    Known {
        what: "truncate(2) to the length that a file has already changes its mtime",
        why: "as on ext4; overlayfs leaves the decision to the upper's file system, and tmpfs leaves an \
              empty file alone",
        is: |found| {
            let truncates = |op: &Op| matches!(op, Op::Truncate { .. });
            found.what == "mtime" && found.lamina == "Now" && found.done.iter().any(truncates)
        },
        met: AtomicU64::new(0),
    },
    Known {
        what: "chown(2) of a stranger's setuid file that names no owner does nothing",
        why: "overlayfs refuses it (EPERM); FUSE sends no more than a change of nothing",
        is: |found| {
            matches!(
                found.op,
                Some(Op::Chown {
                    uid: None,
                    gid: None,
                    ..
                })
            ) && found.overlayfs.contains("code: 1,")
                && found.lamina == "Done"
        },
        met: AtomicU64::new(0),
    },
    Known {
        what: "setgid of a file that its group may not execute survives a write by a stranger",
        why: "the kernel clears it for who is not in the group, and FUSE does not tell the groups; \
              without execution the bit means nothing",
        is: |found| {
            found.what == "mode"
                && found.of.is_some_and(|of| of.mode & 0o2010 == 0o2000)
                && found.done.contains(&Op::Become {
                    user: User::Unprivileged,
                })
        },
        met: AtomicU64::new(0),
    },
    Known {
        what: "setuid that was set while a file was open survives a write by that handle",
        why: "with passthrough the kernel writes by itself, and with our privileges; only a handle \
              that is opened on a file with setuid writes through us",
        is: |found| {
            let sets = |op: &Op| match op {
                Op::Chmod { mode, .. }
                | Op::Held {
                    act: Act::Chmod { mode },
                    ..
                } => mode.0 & 0o6000 != 0,
                _ => false,
            };
            let writes = |op: &Op| {
                matches!(
                    op,
                    Op::Held {
                        act: Act::Write { .. },
                        ..
                    }
                )
            };
            found.what == "mode"
                && found.of.is_some_and(|of| of.mode & 0o6000 != 0)
                && found.done.iter().any(sets)
                && found.done.iter().any(writes)
        },
        met: AtomicU64::new(0),
    },
    Known {
        what: "fchmod(2) of a removed image file changes the file without a name",
        why: "overlayfs wants to copy it up, to a name that its index has (EEXIST) or that is gone",
        is: |found| {
            matches!(
                found.op,
                Some(Op::Held {
                    act: Act::Chmod { .. },
                    ..
                })
            ) && found.overlayfs.contains("Failed")
                && found.lamina == "Done"
        },
        met: AtomicU64::new(0),
    },
    Known {
        what: "link(2) that is refused for two reasons may give the other errno",
        why: "the kernel looks at the setgid bit that it remembers, and a write has just cleared it",
        is: |found| {
            matches!(found.op, Some(Op::Link { .. }))
                && found.overlayfs.contains("code: 13,")
                && found.lamina.contains("code: 1,")
        },
        met: AtomicU64::new(0),
    },
    Known {
        what: "fstat(2) of a removed image file says no link",
        why: "as on ext4; overlayfs goes on saying what the image's file has",
        is: |found| {
            matches!(found.op, Some(Op::Held { act: Act::Stat, .. }))
                && found.what == "nlink"
                && found.lamina == "0"
        },
        met: AtomicU64::new(0),
    },
];

/// What differs, should not, and is known. Each goes when it is mended.
pub(crate) static FAULTS: [Known; 0] = [];

/// Whether a difference is in one of the tables.
pub(crate) fn is_known(found: &Found<'_>) -> bool {
    let known = WANTED.iter().chain(&FAULTS).find(|known| (known.is)(found));
    if let Some(known) = known {
        known.met.fetch_add(1, Ordering::Relaxed);
    }
    known.is_some()
}

/// Prints how often each difference was met.
pub(crate) fn report() {
    for Known { what, why, met, .. } in WANTED.iter().chain(&FAULTS) {
        let met = met.load(Ordering::Relaxed);
        eprintln!("met {met} times: {what} ({why})");
    }
}
