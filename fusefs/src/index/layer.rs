//! A layer that is known from its index. Only files that are opened are looked for in what holds
//! them: a directory of this host, or a blob.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Entry, Index, Kind, Stamp, build, save};
use crate::error::{Error, Result};
use crate::layer::{Arriving, Below, Described, DirLayer, EntryKind, Layer, LayerEntry};
use crate::types::{Attr, FileKind, Ino};

/// What holds the bytes of a layer whose entries an index tells.
pub trait LayerData: Send + Sync {
    /// Its name for people.
    fn name(&self) -> &str;

    /// The layer's [`Layer::device`]; `identity` tells its index from those of other layers. No file
    /// system's number has the topmost bit.
    fn device(&self, identity: u64) -> u64 {
        identity | 1 << 63
    }

    /// As [`Layer::is_remote`].
    fn is_remote(&self) -> bool {
        false
    }

    /// As [`Layer::is_here`]; the file is named by its path and by its inode number in the index.
    fn is_here(&self, _path: &Path, _ino: Ino) -> Result<bool> {
        Ok(true)
    }

    /// As [`Layer::open`].
    fn open(&self, path: &Path, ino: Ino) -> Result<File>;

    /// As [`Layer::arriving`].
    fn arriving(&self, _ino: Ino) -> Result<Option<Arc<dyn Arriving>>> {
        Ok(None)
    }

    /// As [`Layer::file_system`].
    fn file_system(&self) -> Option<BorrowedFd<'_>>;

    /// As [`Layer::host_file`].
    fn host_file(&self, path: &Path) -> Result<Option<OwnedFd>>;
}

impl LayerData for DirLayer {
    fn name(&self) -> &str {
        Layer::name(self)
    }

    fn device(&self, _identity: u64) -> u64 {
        Layer::device(self)
    }

    fn open(&self, path: &Path, _ino: Ino) -> Result<File> {
        Layer::open(self, path)
    }

    fn file_system(&self) -> Option<BorrowedFd<'_>> {
        Layer::file_system(self)
    }

    fn host_file(&self, path: &Path) -> Result<Option<OwnedFd>> {
        Layer::host_file(self, path)
    }
}

/// A layer with its index.
pub struct IndexedLayer<D: ?Sized = DirLayer> {
    index: Arc<Index>,
    data: Arc<D>,
}

/// A layer that is still a blob.
pub type BlobLayer = IndexedLayer<dyn LayerData>;

impl BlobLayer {
    /// The layer of a blob, with the index at `path` that was written together with its chunk
    /// table.
    pub fn of_blob(data: Arc<dyn LayerData>, path: &Path) -> Result<BlobLayer> {
        let index = Arc::new(Index::open(path, Kind::Layer)?);
        Ok(IndexedLayer { index, data })
    }

    /// The same layer, its bytes asked of somebody else.
    #[must_use]
    pub fn with_data(&self, data: Arc<dyn LayerData>) -> BlobLayer {
        let index = Arc::clone(&self.index);
        IndexedLayer { index, data }
    }

    /// The index.
    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// What tells this blob from others.
    pub(crate) fn stamp(&self) -> Stamp {
        self.index.stamp(0)
    }
}

impl IndexedLayer {
    /// The layer with the index at `path`, if that is one of this directory.
    pub fn open(dir: Arc<DirLayer>, path: &Path) -> Result<IndexedLayer> {
        let index = Index::open(path, Kind::Layer)?;
        let stamped = index.check_stamps(&[dir.stamp()]);
        stamped.map_err(|flaw| flaw.of(path))?;
        let index = Arc::new(index);
        Ok(IndexedLayer { data: dir, index })
    }

    /// Walks the layer, once, and keeps what it found in memory.
    pub fn walk(dir: Arc<DirLayer>) -> Result<IndexedLayer> {
        let bytes = bytes_of(&dir)?;
        let index = Index::of_bytes(bytes, Kind::Layer);
        let index = index.map_err(|flaw| flaw.of(Path::new(Layer::name(&*dir))))?;
        let index = Arc::new(index);
        Ok(IndexedLayer { data: dir, index })
    }

    /// Writes the index to a file.
    pub fn save(&self, path: &Path) -> Result<()> {
        save(path, self.index.bytes())
    }
}

impl<D: ?Sized> IndexedLayer<D> {
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

impl<D: LayerData + ?Sized> std::fmt::Debug for IndexedLayer<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("IndexedLayer")
            .field(&self.data.name())
            .finish()
    }
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

impl<D: LayerData + ?Sized> Layer for IndexedLayer<D> {
    fn name(&self) -> &str {
        self.data.name()
    }

    fn device(&self) -> u64 {
        self.data.device(self.index.stamp(0).ino)
    }

    fn is_remote(&self) -> bool {
        self.data.is_remote()
    }

    fn is_here(&self, path: &Path) -> Result<bool> {
        let ino = self.index.ino(self.find(path)?);
        self.data.is_here(path, ino)
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
        let ino = self.index.ino(self.find(path)?);
        self.data.open(path, ino)
    }

    fn arriving(&self, path: &Path) -> Result<Option<Arc<dyn Arriving>>> {
        let ino = self.index.ino(self.find(path)?);
        self.data.arriving(ino)
    }

    fn data(&self, path: &Path) -> Result<Below> {
        Ok(self.index.below(self.find(path)?))
    }

    fn file_system(&self) -> Option<BorrowedFd<'_>> {
        self.data.file_system()
    }

    fn host_file(&self, path: &Path) -> Result<Option<OwnedFd>> {
        self.data.host_file(path)
    }
}
