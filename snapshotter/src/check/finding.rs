//! What `lamina check` can find in a root, in words that tell what to do about it.

use std::fmt;
use std::path::PathBuf;

use lamina_fusefs::check::{self as upper, Severity};

use crate::store::layout::PRIVATE;
use crate::store::records::Kind;

/// Something that is not as it should be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Finding {
    /// The metadata store can't be read; nothing else could be checked.
    Store(String),
    /// A directory of a snapshot that the store does not know.
    Orphan(PathBuf),
    /// What a verb that was cut off left.
    Leftover(PathBuf),
    /// Something in `snapshots/` that Lamina did not make.
    Foreign(PathBuf),
    /// A snapshot without a directory that it must have.
    MissingDirectory {
        /// Its key.
        key: String,
        /// The directory.
        path: PathBuf,
    },
    /// A snapshot whose parent is not in the store.
    MissingParent {
        /// Its key.
        key: String,
        /// The parent's key.
        parent: String,
    },
    /// A snapshot whose parent is not committed.
    ParentNotCommitted {
        /// Its key.
        key: String,
        /// The parent's key.
        parent: String,
        /// What the parent is.
        kind: Kind,
    },
    /// A snapshot that is older than its parent.
    ParentTooYoung {
        /// Its key.
        key: String,
        /// The parent's key.
        parent: String,
    },
    /// Two snapshots with one number.
    DuplicateId {
        /// The number.
        id: u64,
        /// The keys.
        keys: Vec<String>,
    },
    /// The table of numbers says something else than the snapshots.
    IdIndex {
        /// The number.
        id: u64,
        /// The key that the snapshots have for it.
        snapshot: Option<String>,
        /// The key that the table has for it.
        index: Option<String>,
    },
    /// The table of children says something else than the snapshots.
    ChildIndex {
        /// The parent's number.
        parent: u64,
        /// The child's number.
        child: u64,
        /// Whether the table has a row that it should not have, or lacks one.
        surplus: bool,
    },
    /// A number that is in use would be given out again.
    NextId {
        /// The number that would be given out.
        next: u64,
        /// The greatest one in use.
        greatest: u64,
    },
    /// A directory that others can enter.
    Mode {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// An index that can't be used: the error names it.
    Index(String),
    /// A layer that turned out to be another one than its image says.
    Refused {
        /// Its key.
        key: String,
        /// What was found.
        why: String,
    },
    /// A snapshot whose entries don't fit the chain below it.
    Upper {
        /// Its key.
        key: String,
        /// What is wrong with which entry.
        finding: upper::Finding,
    },
    /// A snapshot whose entries can't be looked at.
    Unreadable {
        /// Its key.
        key: String,
        /// Why.
        reason: String,
    },
}

impl Finding {
    /// Whether the next start of the daemon, or the next use, clears it away by itself.
    pub fn is_leftover(&self) -> bool {
        match self {
            Finding::Orphan(_)
            | Finding::Leftover(_)
            | Finding::Mode { .. }
            | Finding::Index(_) => true,
            Finding::Upper { finding, .. } => finding.problem == upper::Problem::Leftover,
            _ => false,
        }
    }

    /// Whether it does no harm.
    pub fn is_note(&self) -> bool {
        match self {
            Finding::Refused { .. } => true,
            Finding::Upper { finding, .. } => finding.severity() == Severity::Note,
            _ => false,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Store(reason) => write!(f, "{reason}"),
            Finding::Orphan(path) => {
                write!(
                    f,
                    "{} belongs to no snapshot: the next start removes it",
                    path.display()
                )
            }
            Finding::Leftover(path) => write!(
                f,
                "{} was left by a call that was cut off: the next start removes it",
                path.display()
            ),
            Finding::Foreign(path) => {
                write!(
                    f,
                    "{} was not made by Lamina: move it elsewhere",
                    path.display()
                )
            }
            Finding::MissingDirectory { key, path } => write!(
                f,
                "snapshot {key:?} has no directory {}: remove the snapshot, or restore it",
                path.display()
            ),
            Finding::MissingParent { key, parent } => {
                write!(
                    f,
                    "snapshot {key:?} stands on {parent:?}, which does not exist"
                )
            }
            Finding::ParentNotCommitted { key, parent, kind } => {
                write!(
                    f,
                    "snapshot {key:?} stands on {parent:?}, which is {kind}, not committed"
                )
            }
            Finding::ParentTooYoung { key, parent } => {
                write!(
                    f,
                    "snapshot {key:?} stands on {parent:?}, which was made after it"
                )
            }
            Finding::DuplicateId { id, keys } => {
                write!(
                    f,
                    "number {id} belongs to {} snapshots: {keys:?}",
                    keys.len()
                )
            }
            Finding::IdIndex {
                id,
                snapshot,
                index,
            } => {
                let shown = |key: &Option<String>| {
                    key.as_ref()
                        .map_or_else(|| "nobody".to_owned(), |key| format!("{key:?}"))
                };
                let (index, snapshot) = (shown(index), shown(snapshot));
                write!(
                    f,
                    "number {id} belongs to {snapshot}, but the table of numbers says {index}"
                )
            }
            Finding::ChildIndex {
                parent,
                child,
                surplus: true,
            } => write!(
                f,
                "the table of children says that number {child} stands on {parent}, but it does not"
            ),
            Finding::ChildIndex {
                parent,
                child,
                surplus: false,
            } => write!(
                f,
                "number {child} stands on {parent}, but the table of children does not say so"
            ),
            Finding::NextId { next, greatest } => {
                write!(
                    f,
                    "the next number would be {next}, but {greatest} is in use"
                )
            }
            Finding::Mode { path, mode } => write!(
                f,
                "{} has mode {mode:04o} instead of {PRIVATE:04o}: others could reach containers' files",
                path.display()
            ),
            Finding::Index(error) => {
                write!(f, "{error}: it is made again when it is needed next")
            }
            Finding::Refused { key, why } => write!(
                f,
                "note: snapshot {key:?} is not what its image says, and not served: remove the image ({why})"
            ),
            Finding::Upper { key, finding } => {
                let note = if self.is_note() { "note: " } else { "" };
                let (path, problem) = (finding.path.display(), &finding.problem);
                write!(f, "{note}snapshot {key:?}: {path}: {problem}")
            }
            Finding::Unreadable { key, reason } => {
                write!(f, "snapshot {key:?} can't be looked at: {reason}")
            }
        }
    }
}
