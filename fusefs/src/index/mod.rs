//! The index: a tree of names, attributes and marks in one file that is mapped into memory.
//!
//! A layer and an image never change, so what is to be known of their entries is written down
//! once, and looked up from then on without asking the layers' file systems. An index of a layer
//! ([`Kind::Layer`]) has what its directory holds, marks included; an index of an image
//! ([`Kind::Image`]) has the merged tree, and which layer each entry and its data are in.
//!
//! - `format` has the bytes, which `docs/index-format.md` describes.
//! - `tree` is an index that is open: all questions are answered from the mapping.
//! - `verify` looks at everything in an index before anybody uses it. A file that is damaged, of
//!   another version or of another tree is refused, and its user makes a new one.
//! - `build` makes the bytes from a walk over a tree; `save` puts them on disk, all or nothing.
//! - `layer` answers for a layer from its index.

mod build;
mod format;
mod layer;
mod save;
mod tree;
mod verify;

use std::path::{Path, PathBuf};

pub(crate) use build::{Entry, build};
pub(crate) use format::{CHECKSUM, checksum, seal, u32_at, u64_at};
pub use layer::{BlobLayer, IndexedLayer, LayerData};
pub use save::is_leftover;
pub(crate) use save::save;
pub(crate) use tree::{Bytes, Index};

use crate::error::Error;

/// What an index tells of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// One layer, with its marks.
    Layer,
    /// A stack of layers, merged.
    Image,
}

impl Kind {
    fn raw(self) -> u32 {
        match self {
            Kind::Layer => 1,
            Kind::Image => 2,
        }
    }

    fn from_raw(raw: u32) -> Option<Kind> {
        match raw {
            1 => Some(Kind::Layer),
            2 => Some(Kind::Image),
            _ => None,
        }
    }
}

/// What tells one layer's directory from another, or from a copy of itself: inode number and ctime
/// of its root. Not the device: its number may be another one after the next boot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stamp {
    pub(crate) ino: u64,
    pub(crate) ctime: crate::types::Timestamp,
}

/// Why an index can't be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Flaw {
    /// It does not begin as one.
    #[error("it is no index of Lamina")]
    Magic,
    /// Another program version wrote it.
    #[error("its version is {0}, and only {version} is known", version = format::VERSION)]
    Version(u32),
    /// It is shorter or longer than it says, or than a header.
    #[error("it does not have the length that it should have")]
    Truncated,
    /// Its bytes are not those that were written.
    #[error("its checksum is wrong")]
    Checksum,
    /// Counts or sections that make no sense.
    #[error("its header makes no sense")]
    Header,
    /// It tells of a layer where an image was asked for, or the other way.
    #[error("it is one of another kind")]
    Kind,
    /// The layers are not those that it was made of.
    #[error("it was made of other layers")]
    Stale,
    /// A record that no tree can have.
    #[error("record {record}: {what}")]
    Record {
        /// Its number.
        record: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A table entry that no tree can have.
    #[error("{table} {entry} makes no sense")]
    Table {
        /// Which table: "xattr" or "place".
        table: &'static str,
        /// The entry's number.
        entry: u32,
    },
    /// The tree has more than the format can hold.
    #[error("the tree is too large for an index")]
    TooLarge,
}

impl Flaw {
    /// The error of a file that has this flaw.
    pub(crate) fn of(self, path: &Path) -> Error {
        Error::BadIndex {
            path: PathBuf::from(path),
            flaw: self,
        }
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod asked;
#[cfg(test)]
mod tests;
