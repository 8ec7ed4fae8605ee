//! A layer that is known from its index. Only files that are opened are looked for in the
//! directory that holds it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Entry, Index, Kind, build, save};
use crate::error::{Error, Result};
use crate::layer::{Below, Described, DirLayer, EntryKind, Layer, LayerEntry};
use crate::types::{Attr, FileKind};

/// A layer in a directory, with its index.
#[derive(Debug)]
pub struct IndexedLayer {
    dir: Arc<DirLayer>,
    index: Index,
}

impl IndexedLayer {
    /// The layer with the index at `path`, if that is one of this directory.
    pub fn open(dir: Arc<DirLayer>, path: &Path) -> Result<IndexedLayer> {
        let index = Index::open(path, Kind::Layer)?;
        let stamped = index.check_stamps(&[dir.stamp()]);
        stamped.map_err(|flaw| flaw.of(path))?;
        Ok(IndexedLayer { dir, index })
    }

    /// Walks the layer, once, and keeps what it found in memory.
    pub fn walk(dir: Arc<DirLayer>) -> Result<IndexedLayer> {
        let bytes = bytes_of(&dir)?;
        let index = Index::of_bytes(bytes, Kind::Layer);
        let index = index.map_err(|flaw| flaw.of(Path::new(dir.name())))?;
        Ok(IndexedLayer { dir, index })
    }

    /// Writes the index to a file.
    pub fn save(&self, path: &Path) -> Result<()> {
        save(path, self.index.bytes())
    }

    fn find(&self, path: &Path) -> Result<u32> {
        self.index.find_path(path).ok_or(Error::NotFound)
    }

    fn find_dir(&self, path: &Path) -> Result<u32> {
        let found = self.find(path)?;
        match self.index.kind(found) {
            EntryKind::File(FileKind::Directory) => Ok(found),
            _ => Err(Error::NotDirectory),
        }
    }
}

/// The index of a layer, by a walk over its directory.
fn bytes_of(dir: &DirLayer) -> Result<Vec<u8>> {
    let root = (entry(dir.describe_root()?), PathBuf::new());
    build(Kind::Layer, &[dir.stamp()], root, |path| {
        let entries = dir.describe(path)?.into_iter();
        let keyed = entries.map(|described| {
            let path = path.join(&described.name);
            (entry(described), path)
        });
        Ok(keyed.collect())
    })
}

fn entry(described: Described) -> Entry {
    Entry {
        name: described.name,
        kind: described.kind,
        attr: Some(described.attr).filter(|_| described.kind != EntryKind::Whiteout),
        xattrs: described.xattrs,
        target: described.target,
        below: described.below,
        layer: 0,
        source: None,
        data: None,
    }
}

impl Layer for IndexedLayer {
    fn name(&self) -> &str {
        self.dir.name()
    }

    fn device(&self) -> u64 {
        self.dir.device()
    }

    fn read_dir(&self, dir: &Path) -> Result<Vec<LayerEntry>> {
        let children = self.index.children(self.find_dir(dir)?);
        let entries = children.map(|child| LayerEntry {
            name: self.index.name(child).to_owned(),
            kind: self.index.kind(child),
            ino: self.index.ino(child),
        });
        Ok(entries.collect())
    }

    fn entry(&self, path: &Path) -> Result<Option<EntryKind>> {
        let found = self.index.find_path(path);
        Ok(found.map(|found| self.index.kind(found)))
    }

    fn below(&self, dir: &Path) -> Result<Below> {
        Ok(self.index.below(self.find_dir(dir)?))
    }

    fn attr(&self, path: &Path) -> Result<Attr> {
        Ok(self.index.attr(self.find(path)?))
    }

    fn readlink(&self, path: &Path) -> Result<OsString> {
        Ok(self.index.text(self.find(path)?).to_owned())
    }

    fn xattr(&self, path: &Path, name: &OsStr) -> Result<Option<Vec<u8>>> {
        Ok(self.index.xattr(self.find(path)?, name))
    }

    fn xattr_names(&self, path: &Path) -> Result<Vec<OsString>> {
        Ok(self.index.xattr_names(self.find(path)?))
    }

    fn open(&self, path: &Path) -> Result<File> {
        self.dir.open(path)
    }

    fn data(&self, path: &Path) -> Result<Below> {
        Ok(self.index.below(self.find(path)?))
    }

    fn file_system(&self) -> Option<BorrowedFd<'_>> {
        self.dir.file_system()
    }

    fn host_file(&self, path: &Path) -> Result<Option<OwnedFd>> {
        self.dir.host_file(path)
    }
}
