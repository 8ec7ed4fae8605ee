//! What can be wrong with an upper, in words that tell what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is not as it should be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// The entry, on the host.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// How serious a finding is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Severity {
    /// The tree that a mount shows is not the one that was written.
    Error,
    /// Harmless, or a matter of taste.
    Note,
}

/// What is wrong with an entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Problem {
    /// Upper and work directory are on two file systems, so nothing can be renamed between them.
    OtherFileSystem,
    /// The work directory is the upper or lies in it.
    WorkInUpper,
    /// The upper lies in its work directory.
    UpperInWork,
    /// A mark has a value that no overlay writes.
    BadValue {
        /// The xattr's name.
        mark: &'static str,
        /// The value, made printable.
        value: String,
    },
    /// A redirect leads out of the tree.
    RedirectOutside {
        /// Where to.
        target: PathBuf,
    },
    /// A redirect leads to what is no directory of the image.
    RedirectNowhere {
        /// Where to.
        target: PathBuf,
    },
    /// A redirect leads to a directory that is shown at its own path too, so that the tree holds
    /// it twice, and perhaps in itself.
    RedirectToShown {
        /// Where to.
        target: PathBuf,
    },
    /// Two redirects lead to one directory.
    RedirectTwice {
        /// The other directory of the upper.
        other: PathBuf,
    },
    /// The origin is a file that does not exist any more, or of another file system.
    OriginUnknown,
    /// The origin is a file that no layer holds.
    OriginElsewhere,
    /// A directory lacks the mark that it holds copied-up files or redirected directories.
    NotImpure {
        /// One of those entries.
        entry: PathBuf,
    },
    /// A file has its attributes here and its data nowhere.
    MetacopyWithoutData,
    /// A file has some of its data here and the others in the image.
    Partial,
    /// An entry of the index whose name is no file handle.
    IndexName,
    /// An entry of the index that belongs to no file of the image.
    IndexUnknown,
    /// An entry of the index with a link count that can't be.
    IndexLinks {
        /// The count that it tells.
        count: i64,
        /// How many names it has in the upper.
        upper: i64,
        /// How many links the image's file has.
        image: i64,
    },
    /// The entry can't be looked at.
    Unreadable(String),
    /// A whiteout at a name that the image has not.
    WhiteoutHidesNothing,
    /// A whiteout in the lowest layer.
    WhiteoutInLowest,
    /// A name that is a whiteout in an OCI layer's archive, and an ordinary name here.
    OciWhiteout,
    /// A thing that a crash left under construction.
    Leftover,
}

impl Finding {
    /// A finding at a path below `root`.
    pub(super) fn new(root: &Path, path: &Path, problem: Problem) -> Finding {
        // Joining an empty path would leave a slash at the end.
        let path = if path.as_os_str().is_empty() {
            root.to_owned()
        } else {
            root.join(path)
        };
        Finding { path, problem }
    }

    /// How serious it is.
    pub fn severity(&self) -> Severity {
        match self.problem {
            Problem::WhiteoutHidesNothing
            | Problem::WhiteoutInLowest
            | Problem::OciWhiteout
            | Problem::Partial
            | Problem::Leftover => Severity::Note,
            _ => Severity::Error,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.severity() == Severity::Note {
            f.write_str("note: ")?;
        }
        write!(f, "{}: {}", self.path.display(), self.problem)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::OtherFileSystem => f.write_str(
                "the work directory is not on the upper's file system: use a new, empty one that is",
            ),
            Problem::WorkInUpper => f.write_str(
                "the work directory lies in the upper, where containers see it: use one beside it",
            ),
            Problem::UpperInWork => f.write_str(
                "the work directory holds the upper, which mounts may clear: use one beside it",
            ),
            Problem::BadValue { mark, value } => write!(
                f,
                "{mark} has the value \"{value}\", which no overlay writes: remove the attribute"
            ),
            Problem::RedirectOutside { target } => write!(
                f,
                "its redirect leads out of the tree, to {}: remove the attribute",
                target.display()
            ),
            Problem::RedirectNowhere { target } => write!(
                f,
                "its redirect leads to {}, which is no directory of the image: use the layers it \
                 was written over, or remove the attribute",
                target.display()
            ),
            Problem::RedirectToShown { target } => write!(
                f,
                "its redirect leads to {}, which is shown at its own place too: put a whiteout \
                 there, or remove the attribute",
                target.display()
            ),
            Problem::RedirectTwice { other } => write!(
                f,
                "its redirect leads where that of {} leads: remove one of the attributes",
                other.display()
            ),
            Problem::OriginUnknown => f.write_str(
                "its origin is a file that is gone or was never here: use the layers it was \
                 written over, or its inode number changes",
            ),
            Problem::OriginElsewhere => f.write_str(
                "its origin is a file of another image: use the layers it was written over",
            ),
            Problem::NotImpure { entry } => write!(
                f,
                "it holds {}, which comes from the image, and has no impure mark: set \
                 {} to \"y\", or inode numbers change",
                entry.display(),
                crate::marks::Mark::Impure.name()
            ),
            Problem::MetacopyWithoutData => f.write_str(
                "its data are in the image, but the image has no such file: use the layers it was \
                 written over",
            ),
            Problem::Partial => f.write_str(
                "only some of its data are here, the others in the image: kernel overlayfs refuses \
                 to read it (mount and unmount it by Lamina to make it whole)",
            ),
            Problem::IndexName => {
                f.write_str("its name is no file handle: delete it, the index holds nothing else")
            }
            Problem::IndexUnknown => f.write_str(
                "it belongs to no file of the image: use the layers it was written over",
            ),
            Problem::IndexLinks {
                count,
                upper,
                image,
            } => write!(
                f,
                "it tells {count} links, but with {upper} names in the upper and {image} links in \
                 the image that can't be"
            ),
            Problem::Unreadable(reason) => write!(f, "it can't be looked at: {reason}"),
            Problem::WhiteoutHidesNothing => {
                f.write_str("a whiteout that hides nothing; it does no harm")
            }
            Problem::WhiteoutInLowest => f.write_str(
                "a whiteout in the lowest layer, where it hides nothing; it does no harm",
            ),
            Problem::OciWhiteout => f.write_str(
                "a whiteout of an OCI archive that was not converted: it is shown as a file",
            ),
            Problem::Leftover => f.write_str("left by a crash; the next mount clears it away"),
        }
    }
}
