//! An image that is known from its index: the layers are asked for nothing but open files.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

use super::{Child, ImageId, Stack, Tree};
use crate::error::{Error, Result};
use crate::index::Index;
use crate::types::{Attr, FileKind, Ino};

/// A merged tree in an index. The number of a node is that of its record.
pub(super) struct Indexed {
    stack: Arc<Stack>,
    index: Index,
}

impl Indexed {
    pub(super) fn new(stack: Arc<Stack>, index: Index) -> Indexed {
        Indexed { stack, index }
    }

    fn ino_of(&self, record: u32) -> Ino {
        let device = self.device_of(record);
        self.stack.inos.map(device, self.index.ino(record).0)
    }

    fn device_of(&self, record: u32) -> u64 {
        self.stack.layers[self.index.layer(record)].device()
    }

    fn source_of(&self, record: u32) -> (usize, PathBuf) {
        let path = self.index.source(record);
        let path = path.unwrap_or_else(|| self.index.path(record));
        (self.index.layer(record), path)
    }
}

impl Tree for Indexed {
    fn lookup(&self, dir: ImageId, name: &OsStr) -> Result<Option<ImageId>> {
        if self.kind(dir) != FileKind::Directory {
            return Err(Error::NotDirectory);
        }
        Ok(self.index.find(dir.0, name).map(ImageId))
    }

    fn each_child(&self, dir: ImageId, visit: &mut dyn FnMut(&Child<'_>)) -> Result<()> {
        if self.kind(dir) != FileKind::Directory {
            return Err(Error::NotDirectory);
        }
        for child in self.index.children(dir.0) {
            visit(&Child {
                name: self.index.name(child),
                id: ImageId(child),
                kind: self.index.file_kind(child),
                ino: self.ino_of(child),
            });
        }
        Ok(())
    }

    fn path(&self, id: ImageId) -> PathBuf {
        self.index.path(id.0)
    }

    fn kind(&self, id: ImageId) -> FileKind {
        self.index.file_kind(id.0)
    }

    fn attr(&self, id: ImageId) -> Result<Attr> {
        let mut attr = self.index.attr(id.0);
        attr.ino = self.ino_of(id.0);
        Ok(attr)
    }

    fn ino(&self, id: ImageId) -> Result<Ino> {
        Ok(self.ino_of(id.0))
    }

    fn readlink(&self, id: ImageId) -> Result<OsString> {
        Ok(self.index.text(id.0).to_owned())
    }

    fn xattr(&self, id: ImageId, name: &OsStr) -> Result<Option<Vec<u8>>> {
        Ok(self.index.xattr(id.0, name))
    }

    fn xattr_names(&self, id: ImageId) -> Result<Vec<OsString>> {
        Ok(self.index.xattr_names(id.0))
    }

    fn link_key(&self, id: ImageId) -> Result<(u64, u64)> {
        Ok((self.device_of(id.0), self.index.ino(id.0).0))
    }

    fn source(&self, id: ImageId) -> Result<Option<(usize, PathBuf)>> {
        Ok(Some(self.source_of(id.0)))
    }

    fn data(&self, id: ImageId) -> Result<(usize, PathBuf)> {
        let apart = self.index.data(id.0);
        Ok(apart.unwrap_or_else(|| self.source_of(id.0)))
    }
}
