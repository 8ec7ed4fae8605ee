//! The image: a stack of layers merged to one immutable tree, shared by every container.
//!
//! A directory is merged when it is first looked at, and kept: from then on a lookup is one hash
//! lookup, for 1 layer as for 128. Nodes live in an arena and name each other by number, so an
//! image is dropped in one piece when its last union goes.

mod ino_map;
mod merge;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;

pub(crate) use ino_map::InoMap;
use merge::Part;

use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::types::{Attr, FileKind, Ino, Timestamp};

/// The number of a node of an image.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct ImageId(u32);

impl ImageId {
    /// The root directory.
    pub(crate) const ROOT: ImageId = ImageId(0);
}

/// The entries of a merged directory.
pub(crate) type Children = HashMap<OsString, ImageId>;

/// One file or directory of the image.
struct Node {
    /// The directory that holds it (the root holds itself).
    parent: ImageId,
    name: OsString,
    kind: FileKind,
    /// The topmost layer that has it. `None` only for the root of an image without layers.
    layer: Option<usize>,
    ino: Ino,
    /// Read once, when first asked for.
    attr: OnceLock<Attr>,
    /// For a directory: where its entries come from, the topmost first. For a regular file: where
    /// its data are.
    parts: OnceLock<Vec<Part>>,
    /// For a directory: its entries.
    children: OnceLock<Children>,
}

/// The merge of a stack of layers: one immutable tree, shared by all unions over it.
pub struct Image {
    layers: Vec<Arc<dyn Layer>>,
    inos: InoMap,
    nodes: RwLock<Vec<Arc<Node>>>,
}

impl Image {
    /// Merges `layers`, the topmost first (as in overlayfs's `lowerdir`). Without layers the image
    /// is an empty tree, for a container that has no parent.
    pub fn new(layers: Vec<Arc<dyn Layer>>) -> Result<Arc<Image>> {
        let root = Node {
            parent: ImageId::ROOT,
            name: OsString::new(),
            kind: FileKind::Directory,
            layer: (!layers.is_empty()).then_some(0),
            ino: Ino(0),
            attr: OnceLock::new(),
            parts: OnceLock::new(),
            children: OnceLock::new(),
        };
        let inos = InoMap::new(layers.iter().map(|layer| layer.device()));
        Ok(Arc::new(Image {
            layers,
            inos,
            nodes: RwLock::new(vec![Arc::new(root)]),
        }))
    }

    /// The layers, the topmost first.
    pub(crate) fn layers(&self) -> &[Arc<dyn Layer>] {
        &self.layers
    }

    /// How the layers' inode numbers become `st_ino`.
    pub(crate) fn inos(&self) -> &InoMap {
        &self.inos
    }

    /// Whether the image has a root directory of its own (it has at least one layer).
    pub(crate) fn has_root(&self) -> bool {
        !self.layers.is_empty()
    }

    /// The entry `name` of a directory.
    pub(crate) fn lookup(&self, dir: ImageId, name: &OsStr) -> Result<Option<ImageId>> {
        self.with_children(dir, |children| children.get(name).copied())
    }

    /// Runs `look` on the entries of a directory, merging it first if nobody did.
    pub(crate) fn with_children<T>(
        &self,
        dir: ImageId,
        look: impl FnOnce(&Children) -> T,
    ) -> Result<T> {
        let node = self.node(dir);
        if let Some(children) = node.children.get() {
            return Ok(look(children));
        }
        let children = merge::children(self, dir, &node)?;
        // Two threads may have merged it at once; the first one's numbers stand.
        Ok(look(node.children.get_or_init(|| children)))
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
        let mut names = Vec::new();
        let mut at = id;
        while at != ImageId::ROOT {
            let node = self.node(at);
            names.push(node.name.clone());
            at = node.parent;
        }
        names.iter().rev().collect()
    }

    /// The sort of file.
    pub(crate) fn kind(&self, id: ImageId) -> FileKind {
        self.node(id).kind
    }

    /// Attributes, with the union's inode number. A merged directory has those of its topmost
    /// part, and its own number of links.
    pub(crate) fn attr(&self, id: ImageId) -> Result<Attr> {
        let node = self.node(id);
        if let Some(attr) = node.attr.get() {
            return Ok(*attr);
        }
        let Some((layer, path)) = self.source(id)? else {
            return Ok(empty_root_attr());
        };
        let mut attr = self.layers[layer].attr(&path)?;
        attr.ino = self.inos.map(self.layers[layer].device(), attr.ino.0);
        if node.kind == FileKind::Regular && is_hollow(&attr) {
            let data = merge::data(self, id, &node)?;
            attr.blocks = self.layers[data.layer].attr(&data.path)?.blocks;
        }
        if node.kind == FileKind::Directory && merge::parts(self, id, &node)?.len() > 1 {
            let subdirs = self.with_children(id, |children| self.count_dirs(children.values()))?;
            attr.nlink = dir_nlink(subdirs);
        }
        Ok(*node.attr.get_or_init(|| attr))
    }

    /// How many of these nodes are directories.
    pub(crate) fn count_dirs<'a>(&self, nodes: impl Iterator<Item = &'a ImageId>) -> u32 {
        let all = self.nodes.read();
        let dirs = nodes.filter(|id| all[id.0 as usize].kind == FileKind::Directory);
        u32::try_from(dirs.count()).unwrap_or(u32::MAX)
    }

    /// The inode number, known without asking the layer for attributes (but the root's).
    pub(crate) fn ino(&self, id: ImageId) -> Result<Ino> {
        if id == ImageId::ROOT {
            return Ok(self.attr(id)?.ino);
        }
        Ok(self.node(id).ino)
    }

    /// The target of a symlink.
    pub(crate) fn readlink(&self, id: ImageId) -> Result<OsString> {
        let (layer, path) = self.existing(id)?;
        layer.readlink(&path)
    }

    /// The value of an xattr, marks included.
    pub(crate) fn xattr(&self, id: ImageId, name: &OsStr) -> Result<Option<Vec<u8>>> {
        match self.source(id)? {
            Some((layer, path)) => self.layers[layer].xattr(&path, name),
            None => Ok(None),
        }
    }

    /// The names of all xattrs, marks included.
    pub(crate) fn xattr_names(&self, id: ImageId) -> Result<Vec<OsString>> {
        match self.source(id)? {
            Some((layer, path)) => self.layers[layer].xattr_names(&path),
            None => Ok(Vec::new()),
        }
    }

    /// Opens a regular file for reading, in the layer that has its data.
    pub(crate) fn open(&self, id: ImageId) -> Result<File> {
        let node = self.node(id);
        let data = merge::data(self, id, &node)?;
        self.layers[data.layer].open(&data.path)
    }

    /// Device and inode number on the host, the key of hard links.
    pub(crate) fn link_key(&self, id: ImageId) -> Result<(u64, u64)> {
        let (layer, path) = self.existing(id)?;
        Ok((layer.device(), layer.attr(&path)?.ino.0))
    }

    /// The file on the host, if the layer's files are files of this host.
    pub(crate) fn host_file(&self, id: ImageId) -> Result<Option<OwnedFd>> {
        let (layer, path) = self.existing(id)?;
        layer.host_file(&path)
    }

    /// A descriptor on the topmost layer's file system.
    pub(crate) fn file_system(&self) -> Option<BorrowedFd<'_>> {
        self.layers.first().and_then(|layer| layer.file_system())
    }

    fn existing(&self, id: ImageId) -> Result<(&Arc<dyn Layer>, PathBuf)> {
        let (layer, path) = self.source(id)?.ok_or(Error::NotFound)?;
        Ok((&self.layers[layer], path))
    }

    /// The topmost layer that has the node, and the node's path in it.
    fn source(&self, id: ImageId) -> Result<Option<(usize, PathBuf)>> {
        let node = self.node(id);
        let Some(layer) = node.layer else {
            return Ok(None);
        };
        if id == ImageId::ROOT {
            return Ok(Some((layer, PathBuf::new())));
        }
        let parent = self.node(node.parent);
        let parts = merge::parts(self, node.parent, &parent)?;
        let part = parts.iter().find(|part| part.layer == layer);
        let dir = part.map(|part| &part.path).ok_or(Error::NotFound)?;
        Ok(Some((layer, dir.join(&node.name))))
    }

    fn node(&self, id: ImageId) -> Arc<Node> {
        Arc::clone(&self.nodes.read()[id.0 as usize])
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.layers.iter().map(|layer| layer.name()).collect();
        f.debug_struct("Image")
            .field("layers", &names)
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
