//! The image: a stack of layers merged to one immutable tree, shared by every container.
//!
//! The tree is known in one of two ways, and both give the same answers. With an index
//! (`indexed`) everything but the bytes of files is read from one mapped file, which all unions of
//! all processes share: memory and the time to open it do not depend on how many entries or layers
//! the image has. Without one (`lazy`, `merge`) each directory is merged from the layers when it is
//! first looked at. `stored` chooses: it opens an image by its index, and makes that if need be.

mod indexed;
mod ino_map;
mod lazy;
mod merge;
mod named;
mod stored;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use ino_map::InoMap;
pub(crate) use named::Named;
pub use stored::{LayerPlace, index_in, verify_index};

use self::indexed::Indexed;
use self::lazy::Lazy;
use crate::error::{Error, Result};
use crate::index::Index;
use crate::layer::{Arriving, Layer};
use crate::types::{Attr, FileKind, Ino, Timestamp};

/// The number of a node of an image.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct ImageId(u32);

impl ImageId {
    /// The root directory.
    pub(crate) const ROOT: ImageId = ImageId(0);
}

/// One entry of a merged directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Child<'t> {
    pub(crate) name: &'t OsStr,
    pub(crate) id: ImageId,
    pub(crate) kind: FileKind,
    /// The union's inode number.
    pub(crate) ino: Ino,
}

/// The layers of an image.
struct Stack {
    /// The topmost first.
    layers: Vec<Arc<dyn Layer>>,
    inos: InoMap,
    /// Whether a layer's bytes may be elsewhere than on this host.
    is_remote: bool,
}

/// Bytes of an image that are not on this host.
pub enum Absent {
    /// All of a file.
    File {
        /// The layer that has it.
        layer: Arc<dyn Layer>,
        /// Its path there.
        path: PathBuf,
    },
    /// Some of a large file.
    Range {
        /// The file.
        file: Arc<dyn Arriving>,
        /// Which of its bytes.
        range: Range<u64>,
    },
}

impl Absent {
    /// Waits until the bytes are here. They stay for as long as the answer is held.
    pub fn fetch(&self) -> Result<Option<File>> {
        match self {
            Absent::File { layer, path } => Ok(Some(layer.open(path)?)),
            Absent::Range { file, range } => {
                file.fetch(range.clone())?;
                Ok(None)
            }
        }
    }
}

/// A merged tree: what there is, and where it comes from.
trait Tree: Send + Sync {
    /// The entry `name` of a directory.
    fn lookup(&self, dir: ImageId, name: &OsStr) -> Result<Option<ImageId>>;
    /// Shows all entries of a directory, in the order of their names.
    fn each_child(&self, dir: ImageId, visit: &mut dyn FnMut(&Child<'_>)) -> Result<()>;
    /// The path from the root.
    fn path(&self, id: ImageId) -> PathBuf;
    /// The sort of file.
    fn kind(&self, id: ImageId) -> FileKind;
    /// Attributes, as the union shows them.
    fn attr(&self, id: ImageId) -> Result<Attr>;
    /// The union's inode number.
    fn ino(&self, id: ImageId) -> Result<Ino>;
    /// The target of a symlink.
    fn readlink(&self, id: ImageId) -> Result<OsString>;
    /// The value of an xattr.
    fn xattr(&self, id: ImageId, name: &OsStr) -> Result<Option<Vec<u8>>>;
    /// The names of all xattrs.
    fn xattr_names(&self, id: ImageId) -> Result<Vec<OsString>>;
    /// Device and inode number on the host.
    fn link_key(&self, id: ImageId) -> Result<(u64, u64)>;
    /// The topmost layer that has the node, and the node's path in it. `None` only for the root of
    /// an image without layers.
    fn source(&self, id: ImageId) -> Result<Option<(usize, PathBuf)>>;
    /// The layer that has a regular file's data, and their path in it.
    fn data(&self, id: ImageId) -> Result<(usize, PathBuf)>;
}

/// The merge of a stack of layers: one immutable tree, shared by all unions over it.
pub struct Image {
    stack: Arc<Stack>,
    tree: Box<dyn Tree>,
    indexed: bool,
}

impl Image {
    /// Merges `layers`, the topmost first (as in overlayfs's `lowerdir`), on demand. Without layers
    /// the image is an empty tree, for a container that has no parent.
    pub fn new(layers: Vec<Arc<dyn Layer>>) -> Result<Arc<Image>> {
        let stack = Stack::new(layers);
        let tree = Box::new(Lazy::new(Arc::clone(&stack)));
        Ok(Arc::new(Image {
            stack,
            tree,
            indexed: false,
        }))
    }

    /// The image that an index of these layers tells of.
    fn indexed(layers: Vec<Arc<dyn Layer>>, index: Index) -> Arc<Image> {
        let stack = Stack::new(layers);
        let tree = Box::new(Indexed::new(Arc::clone(&stack), index));
        Arc::new(Image {
            stack,
            tree,
            indexed: true,
        })
    }

    /// Whether the tree comes from an index.
    pub fn is_indexed(&self) -> bool {
        self.indexed
    }

    /// The layers, the topmost first.
    pub(crate) fn layers(&self) -> &[Arc<dyn Layer>] {
        &self.stack.layers
    }

    /// How the layers' inode numbers become `st_ino`.
    pub(crate) fn inos(&self) -> &InoMap {
        &self.stack.inos
    }

    /// Whether the image has a root directory of its own (it has at least one layer).
    pub(crate) fn has_root(&self) -> bool {
        !self.stack.layers.is_empty()
    }

    /// The entry `name` of a directory.
    pub(crate) fn lookup(&self, dir: ImageId, name: &OsStr) -> Result<Option<ImageId>> {
        self.tree.lookup(dir, name)
    }

    /// Shows all entries of a directory, in the order of their names.
    pub(crate) fn each_child(&self, dir: ImageId, mut visit: impl FnMut(&Child<'_>)) -> Result<()> {
        self.tree.each_child(dir, &mut visit)
    }

    /// Whether there is anything at a path from the root. No symlink is followed.
    pub fn has(&self, path: &Path) -> Result<bool> {
        Ok(self.find(path)?.is_some())
    }

    /// The directory or file at a path from the root.
    pub(crate) fn find(&self, path: &Path) -> Result<Option<ImageId>> {
        let mut at = ImageId::ROOT;
        for name in path {
            if self.kind(at) != FileKind::Directory {
                return Ok(None);
            }
            match self.lookup(at, name)? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// The path of a node from the root of the image.
    pub(crate) fn path(&self, id: ImageId) -> PathBuf {
        self.tree.path(id)
    }

    /// The sort of file.
    pub(crate) fn kind(&self, id: ImageId) -> FileKind {
        self.tree.kind(id)
    }

    /// Attributes, with the union's inode number. A merged directory has those of its topmost
    /// part, and its own number of links.
    pub(crate) fn attr(&self, id: ImageId) -> Result<Attr> {
        self.tree.attr(id)
    }

    /// The inode number, known without asking the layer for attributes (but the root's).
    pub(crate) fn ino(&self, id: ImageId) -> Result<Ino> {
        self.tree.ino(id)
    }

    /// The target of a symlink.
    pub(crate) fn readlink(&self, id: ImageId) -> Result<OsString> {
        self.tree.readlink(id)
    }

    /// The value of an xattr, marks included.
    pub(crate) fn xattr(&self, id: ImageId, name: &OsStr) -> Result<Option<Vec<u8>>> {
        self.tree.xattr(id, name)
    }

    /// The names of all xattrs, marks included.
    pub(crate) fn xattr_names(&self, id: ImageId) -> Result<Vec<OsString>> {
        self.tree.xattr_names(id)
    }

    /// Whether the bytes of its files may be elsewhere than on this host.
    pub(crate) fn is_remote(&self) -> bool {
        self.stack.is_remote
    }

    /// A regular file, if its bytes are not on this host: opening it would have to wait.
    pub(crate) fn absent(&self, id: ImageId) -> Result<Option<Absent>> {
        if self.kind(id) != FileKind::Regular {
            return Ok(None);
        }
        let (layer, path) = self.tree.data(id)?;
        let layer = &self.stack.layers[layer];
        let is_here = !layer.is_remote() || layer.is_here(&path)?;
        Ok((!is_here).then(|| Absent::File {
            layer: Arc::clone(layer),
            path,
        }))
    }

    /// A regular file whose bytes come as they are read, so that opening it need not wait.
    pub(crate) fn arriving(&self, id: ImageId) -> Result<Option<Arc<dyn Arriving>>> {
        if !self.is_remote() || self.kind(id) != FileKind::Regular {
            return Ok(None);
        }
        let (layer, path) = self.tree.data(id)?;
        self.stack.layers[layer].arriving(&path)
    }

    /// Opens a regular file for reading, in the layer that has its data. Bytes that are not on this
    /// host are waited for.
    pub(crate) fn open(&self, id: ImageId) -> Result<File> {
        if self.kind(id) != FileKind::Regular {
            return Err(Error::Invalid);
        }
        let (layer, path) = self.tree.data(id)?;
        self.stack.layers[layer].open(&path)
    }

    /// Device and inode number on the host, the key of hard links.
    pub(crate) fn link_key(&self, id: ImageId) -> Result<(u64, u64)> {
        self.tree.link_key(id)
    }

    /// The file on the host, if the layer's files are files of this host.
    pub(crate) fn host_file(&self, id: ImageId) -> Result<Option<OwnedFd>> {
        let (layer, path) = self.tree.source(id)?.ok_or(Error::NotFound)?;
        self.stack.layers[layer].host_file(&path)
    }

    /// A descriptor on the topmost layer's file system.
    pub(crate) fn file_system(&self) -> Option<BorrowedFd<'_>> {
        let top = self.stack.layers.first();
        top.and_then(|layer| layer.file_system())
    }
}

impl Stack {
    fn new(layers: Vec<Arc<dyn Layer>>) -> Arc<Stack> {
        let inos = InoMap::new(layers.iter().map(|layer| layer.device()));
        let is_remote = layers.iter().any(|layer| layer.is_remote());
        Arc::new(Stack {
            layers,
            inos,
            is_remote,
        })
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.stack.layers.iter().map(|layer| layer.name()).collect();
        f.debug_struct("Image")
            .field("layers", &names)
            .field("indexed", &self.indexed)
            .finish_non_exhaustive()
    }
}

/// Whether a file has fewer blocks than its length asks for: it has holes, or its data are
/// elsewhere. (One whose xattrs take a block may pass as whole; then it tells those blocks.)
pub(crate) fn is_hollow(attr: &Attr) -> bool {
    attr.blocks.saturating_mul(512) < attr.size
}

/// The links of a directory with so many directories in it: its name, its `.`, and their `..`.
pub(crate) fn dir_nlink(subdirs: u32) -> u32 {
    subdirs.saturating_add(2)
}

/// The root of an image without layers; nobody sees it but a read-only union of nothing.
fn empty_root_attr() -> Attr {
    Attr {
        ino: Ino(1),
        size: 0,
        blocks: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        kind: FileKind::Directory,
        perm: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        cacheable: true,
    }
}

#[cfg(test)]
mod tests;
