//! The merge on demand: nothing is known until somebody asks, and then it is kept.
//!
//! A directory is merged when it is first looked at: from then on a lookup is one search in
//! its names, for 1 layer as for 128. Nodes live in an arena and name each other by number. This is how an image
//! without an index works, and how its index is made.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;

use super::merge::{self, Part};
use super::{Child, ImageId, Stack, Tree, dir_nlink, empty_root_attr, is_hollow};
use crate::error::{Error, Result};
use crate::types::{Attr, FileKind, Ino};

/// The entries of a merged directory.
pub(super) type Children = BTreeMap<OsString, ImageId>;

/// One file or directory of the image.
pub(super) struct Node {
    /// The directory that holds it (the root holds itself).
    pub(super) parent: ImageId,
    pub(super) name: OsString,
    pub(super) kind: FileKind,
    /// The topmost layer that has it. `None` only for the root of an image without layers.
    pub(super) layer: Option<usize>,
    pub(super) ino: Ino,
    /// Read once, when first asked for.
    pub(super) attr: OnceLock<Attr>,
    /// For a directory: where its entries come from, the topmost first. For a regular file: where
    /// its data are.
    pub(super) parts: OnceLock<Vec<Part>>,
    /// For a directory: its entries.
    pub(super) children: OnceLock<Children>,
}

/// A tree that is merged on demand.
pub(super) struct Lazy {
    pub(super) stack: Arc<Stack>,
    pub(super) nodes: RwLock<Vec<Arc<Node>>>,
}

impl Lazy {
    /// Nothing but the root.
    pub(super) fn new(stack: Arc<Stack>) -> Lazy {
        let root = Node {
            parent: ImageId::ROOT,
            name: OsString::new(),
            kind: FileKind::Directory,
            layer: (!stack.layers.is_empty()).then_some(0),
            ino: Ino(0),
            attr: OnceLock::new(),
            parts: OnceLock::new(),
            children: OnceLock::new(),
        };
        Lazy {
            stack,
            nodes: RwLock::new(vec![Arc::new(root)]),
        }
    }

    pub(super) fn node(&self, id: ImageId) -> Arc<Node> {
        Arc::clone(&self.nodes.read()[id.0 as usize])
    }

    /// Runs `look` on the entries of a directory, merging it first if nobody did.
    fn with_children<T>(&self, dir: ImageId, look: impl FnOnce(&Children) -> T) -> Result<T> {
        let node = self.node(dir);
        if let Some(children) = node.children.get() {
            return Ok(look(children));
        }
        let children = merge::children(self, dir, &node)?;
        // Two threads may have merged it at once; the first one's numbers stand.
        Ok(look(node.children.get_or_init(|| children)))
    }

    /// How many directories a directory holds.
    fn count_dirs(&self, dir: ImageId) -> Result<u32> {
        self.with_children(dir, |children| {
            let all = self.nodes.read();
            let dirs = children.values();
            let dirs = dirs.filter(|id| all[id.0 as usize].kind == FileKind::Directory);
            u32::try_from(dirs.count()).unwrap_or(u32::MAX)
        })
    }
}

impl Tree for Lazy {
    fn lookup(&self, dir: ImageId, name: &OsStr) -> Result<Option<ImageId>> {
        self.with_children(dir, |children| children.get(name).copied())
    }

    fn each_child(&self, dir: ImageId, visit: &mut dyn FnMut(&Child<'_>)) -> Result<()> {
        self.with_children(dir, |children| {
            for (name, id) in children {
                let node = self.node(*id);
                visit(&Child {
                    name,
                    id: *id,
                    kind: node.kind,
                    ino: node.ino,
                });
            }
        })
    }

    fn path(&self, id: ImageId) -> PathBuf {
        let mut names = Vec::new();
        let mut at = id;
        while at != ImageId::ROOT {
            let node = self.node(at);
            names.push(node.name.clone());
            at = node.parent;
        }
        names.iter().rev().collect()
    }

    fn kind(&self, id: ImageId) -> FileKind {
        self.node(id).kind
    }

    fn attr(&self, id: ImageId) -> Result<Attr> {
        let node = self.node(id);
        if let Some(attr) = node.attr.get() {
            return Ok(*attr);
        }
        let Some((layer, path)) = self.source(id)? else {
            return Ok(empty_root_attr());
        };
        let layers = &self.stack.layers;
        let mut attr = layers[layer].attr(&path)?;
        attr.ino = self.stack.inos.map(layers[layer].device(), attr.ino.0);
        if node.kind == FileKind::Regular && is_hollow(&attr) {
            let data = merge::data(self, id, &node)?;
            attr.blocks = layers[data.layer].attr(&data.path)?.blocks;
        }
        if node.kind == FileKind::Directory && merge::parts(self, id, &node)?.len() > 1 {
            attr.nlink = dir_nlink(self.count_dirs(id)?);
        }
        Ok(*node.attr.get_or_init(|| attr))
    }

    fn ino(&self, id: ImageId) -> Result<Ino> {
        if id == ImageId::ROOT {
            return Ok(self.attr(id)?.ino);
        }
        Ok(self.node(id).ino)
    }

    fn readlink(&self, id: ImageId) -> Result<OsString> {
        let (layer, path) = self.source(id)?.ok_or(Error::NotFound)?;
        self.stack.layers[layer].readlink(&path)
    }

    fn xattr(&self, id: ImageId, name: &OsStr) -> Result<Option<Vec<u8>>> {
        match self.source(id)? {
            Some((layer, path)) => self.stack.layers[layer].xattr(&path, name),
            None => Ok(None),
        }
    }

    fn xattr_names(&self, id: ImageId) -> Result<Vec<OsString>> {
        match self.source(id)? {
            Some((layer, path)) => self.stack.layers[layer].xattr_names(&path),
            None => Ok(Vec::new()),
        }
    }

    fn link_key(&self, id: ImageId) -> Result<(u64, u64)> {
        let (layer, path) = self.source(id)?.ok_or(Error::NotFound)?;
        let layer = &self.stack.layers[layer];
        Ok((layer.device(), layer.attr(&path)?.ino.0))
    }

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

    fn data(&self, id: ImageId) -> Result<(usize, PathBuf)> {
        let node = self.node(id);
        let data = merge::data(self, id, &node)?;
        Ok((data.layer, data.path.clone()))
    }
}
