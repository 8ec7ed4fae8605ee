//! Where a layer's entries and bytes come from.
//!
//! A [`Layer`] is one immutable tree with marks: whiteouts, opaque directories and redirects, read
//! as overlayfs reads them. [`DirLayer`] is one that lies unpacked in a directory of this host.
//! Paths are relative to the layer's root; the empty path is the root.

mod dir_layer;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

pub use dir_layer::DirLayer;

use crate::error::Result;
use crate::types::{Attr, FileKind, Ino};

/// What one name of a layer's directory is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EntryKind {
    /// Nothing: the name is hidden in the layers below too.
    Whiteout,
    /// A file of this kind.
    File(FileKind),
}

/// One name of a layer's directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LayerEntry {
    /// The name.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
    /// The layer's own inode number.
    pub ino: Ino,
}

/// Everything that a layer tells of one entry, for whoever writes it down.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) name: OsString,
    pub(crate) kind: EntryKind,
    /// Attributes with the layer's own inode number; a whiteout's mean nothing.
    pub(crate) attr: Attr,
    /// All xattrs, marks included.
    pub(crate) xattrs: Vec<(OsString, Vec<u8>)>,
    /// The target of a symlink.
    pub(crate) target: Option<OsString>,
    /// How it continues below: a directory, or the data of a file.
    pub(crate) below: Below,
}

/// How a directory of a layer continues in the layers below, or where the data of a file are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Below {
    /// At the same path.
    SamePath,
    /// Not at all: the directory is opaque, the file is complete.
    Nothing,
    /// At this path from the root of the tree below.
    Redirect(std::path::PathBuf),
    /// At this name beside the same path.
    Sibling(OsString),
}

/// A regular file of a layer whose bytes come piece by piece, as they are wanted.
pub trait Arriving: Send + Sync {
    /// The file: as long as it will be, with holes for what has not come.
    fn file(&self) -> &File;

    /// Whether these bytes are in the file. What lies behind its end always is.
    fn has(&self, range: Range<u64>) -> bool;

    /// Waits until they are.
    fn fetch(&self, range: Range<u64>) -> Result<()>;
}

/// One immutable layer.
///
/// Its answers never change while it is in use. All methods fail with an I/O error if what is
/// below fails, and with [`crate::Error::BadLayer`] if the layer holds what no layer may hold.
pub trait Layer: Send + Sync {
    /// Its name for people: the directory, or the digest.
    fn name(&self) -> &str;

    /// A number that differs between layers whose inode numbers may clash (the device number).
    fn device(&self) -> u64;

    /// All entries of a directory, without `.` and `..`, in any order.
    fn read_dir(&self, dir: &Path) -> Result<Vec<LayerEntry>>;

    /// What the layer says of one path whose parent is a directory of it; `None`: nothing.
    fn entry(&self, path: &Path) -> Result<Option<EntryKind>>;

    /// How a directory continues below.
    fn below(&self, dir: &Path) -> Result<Below>;

    /// Attributes; `ino` is the layer's own inode number.
    fn attr(&self, path: &Path) -> Result<Attr>;

    /// The target of a symlink.
    fn readlink(&self, path: &Path) -> Result<OsString>;

    /// The value of an xattr, marks included; `None` if it is not there.
    fn xattr(&self, path: &Path, name: &OsStr) -> Result<Option<Vec<u8>>>;

    /// The names of all xattrs, marks included.
    fn xattr_names(&self, path: &Path) -> Result<Vec<OsString>>;

    /// Where the data of a regular file are; [`Below::Nothing`]: in this layer.
    fn data(&self, path: &Path) -> Result<Below>;

    /// Whether the bytes of its files may be elsewhere than on this host.
    fn is_remote(&self) -> bool {
        false
    }

    /// Whether [`Self::open`] has not to wait: the bytes of the file are on this host.
    fn is_here(&self, _path: &Path) -> Result<bool> {
        Ok(true)
    }

    /// Opens a regular file for reading, whose data are in this layer. Bytes that are not on this
    /// host are waited for.
    fn open(&self, path: &Path) -> Result<File>;

    /// A regular file that is too large to wait for all of it, while it is not here.
    fn arriving(&self, _path: &Path) -> Result<Option<Arc<dyn Arriving>>> {
        Ok(None)
    }

    /// A descriptor on the file system that holds the layer, for `statfs` and file handles; `None`
    /// where there is no such thing.
    fn file_system(&self) -> Option<BorrowedFd<'_>>;

    /// An `O_PATH` descriptor of an entry, where the layer's files are files of this host.
    fn host_file(&self, path: &Path) -> Result<Option<std::os::fd::OwnedFd>>;
}
