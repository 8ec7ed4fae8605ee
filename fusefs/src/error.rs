//! What can go wrong in the union, as types.
//!
//! A system call that failed is [`Error::Io`] and keeps its errno; the rest are the union's own
//! refusals. `errno.rs` is the one place that turns an error into an errno.

use std::io;
use std::path::PathBuf;

use crate::index::Flaw;
use crate::types::{Fh, NodeId};

/// The result of an operation of the union.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation of the union failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a layer or on the upper failed; its errno goes to the caller.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A set-up step failed on a path that a person can look at.
    #[error("{action} {path}: {source}")]
    Path {
        /// What was tried, as a phrase that ends before the path: "cannot open the layer".
        action: &'static str,
        /// The path on the host.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The name does not exist.
    #[error("no such file or directory")]
    NotFound,
    /// The name exists already.
    #[error("the file exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// A directory was not allowed here.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// The union has no upper, or the operation would change an image.
    #[error("the file system is read-only")]
    ReadOnly,
    /// Not allowed, whoever asks.
    #[error("the operation is not permitted")]
    NotPermitted,
    /// A program runs from the file.
    #[error("a program runs from the file")]
    Running,
    /// The arguments make no sense together.
    #[error("invalid argument")]
    Invalid,
    /// A name is longer than 255 bytes.
    #[error("the name is too long")]
    NameTooLong,
    /// The extended attribute does not exist.
    #[error("no such extended attribute")]
    NoXattr,
    /// The operation, or the xattr name space, is not offered.
    #[error("the operation is not supported")]
    NotSupported,
    /// The inode has moved to a new node by a data copy-up while handles on its image file were
    /// open: look the path up again and open what is found there.
    #[error("the file was copied up: look it up again")]
    HandedOver,
    /// The client named a node that it holds no reference to.
    #[error("unknown node {}", .0.0)]
    UnknownNode(NodeId),
    /// The client named a handle that is not open.
    #[error("unknown handle {}", .0.0)]
    UnknownHandle(Fh),
    /// A layer holds something that no correct layer holds.
    #[error("layer {layer}: {path}: {what}", path = .path.display())]
    BadLayer {
        /// The layer's name (its directory).
        layer: String,
        /// The path in the layer.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The bytes of a layer that was not unpacked can't be had, or are not the right ones.
    #[error("layer {layer}: {flaw}")]
    Blob {
        /// The layer's name.
        layer: String,
        /// Why.
        flaw: std::sync::Arc<crate::blob::Flaw>,
    },
    /// A mount can't be taken over from an earlier process.
    #[error("cannot take over the mount {path}: {flaw}", path = .path.display())]
    Record {
        /// The mount point.
        path: PathBuf,
        /// Why.
        flaw: crate::record::Flaw,
    },
    /// An index can't be used, and has to be made again.
    #[error("index {path}: {flaw}", path = .path.display())]
    BadIndex {
        /// Its file; for one that was never written, the layer's directory.
        path: PathBuf,
        /// Why.
        flaw: Flaw,
    },
}

impl From<Flaw> for Error {
    /// For a flaw that is found before there is a file.
    fn from(flaw: Flaw) -> Self {
        flaw.of(std::path::Path::new(""))
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Error::Io(errno.into())
    }
}
