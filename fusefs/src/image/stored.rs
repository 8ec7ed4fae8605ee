//! Opening an image by its index, and making that index where it is missing or no good.
//!
//! Correctness never depends on an index: whatever is wrong with one, or keeps one from being
//! written, is said in the log, and the image is merged on demand.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::lazy::Lazy;
use super::{Image, ImageId, Stack, Tree};
use crate::error::{Error, Result};
use crate::index::{BlobLayer, Entry, Flaw, Index, IndexedLayer, Kind, Stamp, build, save};
use crate::layer::{Below, DirLayer, EntryKind, Layer};
use crate::sys::memory::give_back;
use crate::types::FileKind;

/// Where one layer lies.
#[derive(Clone, Debug)]
pub enum LayerPlace {
    /// In a directory.
    Dir {
        /// That directory.
        dir: PathBuf,
        /// Its own index, for whoever keeps one. It is made if it is missing and the image's index
        /// has to be made.
        index: Option<PathBuf>,
    },
    /// In a blob, which its user has opened.
    Blob(Arc<BlobLayer>),
}

/// A layer that is open.
enum Opened {
    Dir(Arc<DirLayer>),
    Blob(Arc<BlobLayer>),
}

impl Image {
    /// The image of these layers, the topmost first, by its index at `index`. The index is made if
    /// it is missing, damaged, or one of other layers. Where that fails the image has none.
    pub fn open_indexed(layers: &[LayerPlace], index: &Path) -> Result<Arc<Image>> {
        let opened: Vec<Opened> = layers.iter().map(Opened::of).collect::<Result<_>>()?;
        if opened.is_empty() {
            return Image::new(Vec::new());
        }
        let stamps: Vec<Stamp> = opened.iter().map(Opened::stamp).collect();
        let found = open(index, &stamps).or_else(|error| {
            if !is_missing(&error) {
                tracing::warn!(%error, "an index is made again");
            }
            make(layers, &opened, &stamps, index)?;
            open(index, &stamps)
        });
        let opened = opened.into_iter().map(Opened::layer);
        match found {
            Ok(found) => Ok(Image::indexed(opened.collect(), found)),
            Err(error) => {
                tracing::warn!(
                    %error, index = %index.display(),
                    "an image has no index, and is merged on demand"
                );
                Image::new(opened.collect())
            }
        }
    }
}

/// Looks whether a file is a sound index of this kind, made of these layers.
pub fn verify_index(path: &Path, kind: Kind, layers: &[LayerPlace]) -> Result<()> {
    let index = Index::open(path, kind)?;
    let stamps = layers.iter().map(|layer| Ok(Opened::of(layer)?.stamp()));
    let stamps = stamps.collect::<Result<Vec<_>>>()?;
    index.check_stamps(&stamps).map_err(|flaw| flaw.of(path))
}

/// Where the index of an image of these layers lies in a directory of indexes: the name follows
/// from the paths. Whether it is still one of what lies there is seen when it is opened.
pub fn index_in(dir: &Path, layers: &[PathBuf]) -> PathBuf {
    let mut hash = Sha256::new();
    for layer in layers {
        let path = layer.as_os_str().as_bytes();
        hash.update((path.len() as u64).to_le_bytes());
        hash.update(path);
    }
    // Half of the hash tells enough.
    let half = hash.finalize().first_chunk().copied().unwrap_or_default();
    dir.join(format!("{:032x}.index", u128::from_be_bytes(half)))
}

impl LayerPlace {
    /// The layer, as it is without an index of its own.
    pub fn open(&self) -> Result<Arc<dyn Layer>> {
        Ok(Opened::of(self)?.layer())
    }

    /// The layer with its index. That of a directory is made if it is missing, damaged, or one of
    /// another directory; one that can't be written is used all the same, once.
    pub fn open_indexed(&self) -> Result<Arc<dyn Layer>> {
        self.indexed(&Opened::of(self)?)
    }

    fn indexed(&self, opened: &Opened) -> Result<Arc<dyn Layer>> {
        let dir = match opened {
            Opened::Blob(layer) => return Ok(Arc::clone(layer) as Arc<dyn Layer>),
            Opened::Dir(dir) => Arc::clone(dir),
        };
        let LayerPlace::Dir {
            index: Some(index), ..
        } = self
        else {
            return Ok(Arc::new(IndexedLayer::walk(dir)?));
        };
        match IndexedLayer::open(Arc::clone(&dir), index) {
            Ok(layer) => return Ok(Arc::new(layer)),
            Err(error) if is_missing(&error) => {}
            Err(error) => tracing::warn!(%error, "an index is made again"),
        }
        let layer = IndexedLayer::walk(dir)?;
        if let Err(error) = layer.save(index) {
            tracing::warn!(%error, "a layer has no index");
        }
        Ok(Arc::new(layer))
    }
}

impl Opened {
    fn of(place: &LayerPlace) -> Result<Opened> {
        Ok(match place {
            LayerPlace::Dir { dir, .. } => Opened::Dir(Arc::new(DirLayer::open(dir)?)),
            LayerPlace::Blob(layer) => Opened::Blob(Arc::clone(layer)),
        })
    }

    fn stamp(&self) -> Stamp {
        match self {
            Opened::Dir(layer) => layer.stamp(),
            Opened::Blob(layer) => layer.stamp(),
        }
    }

    /// Gives memory back that can be read from its index again.
    fn release(&self) {
        if let Opened::Blob(layer) = self {
            layer.index().release();
        }
    }

    fn layer(self) -> Arc<dyn Layer> {
        match self {
            Opened::Dir(layer) => layer,
            Opened::Blob(layer) => layer,
        }
    }
}

fn open(path: &Path, stamps: &[Stamp]) -> Result<Index> {
    let index = Index::open(path, Kind::Image)?;
    index.check_stamps(stamps).map_err(|flaw| flaw.of(path))?;
    Ok(index)
}

fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Path { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// Makes the index of an image: merges the layers, each known from its own index, and writes down
/// what comes out.
fn make(places: &[LayerPlace], opened: &[Opened], stamps: &[Stamp], at: &Path) -> Result<()> {
    let layers = places.iter().zip(opened);
    let layers = layers.map(|(place, opened)| place.indexed(opened));
    let tree = Lazy::new(Stack::new(layers.collect::<Result<_>>()?));
    let bytes = bytes_of(&tree, stamps)?;
    drop(tree);
    let saved = save(at, &bytes);
    drop(bytes);
    give_back();
    // All of the layers' own indexes was read, and the image's tells the same from now on.
    opened.iter().for_each(Opened::release);
    saved
}

/// The index of a merged tree, by a walk over it.
fn bytes_of(tree: &Lazy, stamps: &[Stamp]) -> Result<Vec<u8>> {
    let root = entry(tree, ImageId::ROOT, "".into())?;
    build(Kind::Image, stamps, (root, ImageId::ROOT), |dir| {
        let mut children = Vec::new();
        tree.each_child(*dir, &mut |child| {
            children.push((child.name.to_owned(), child.id));
        })?;
        let entries = children.into_iter();
        let entries = entries.map(|(name, id)| Ok((entry(tree, id, name)?, id)));
        entries.collect::<Result<Vec<_>>>()
    })
}

/// What an index tells of a node.
fn entry(tree: &Lazy, id: ImageId, name: std::ffi::OsString) -> Result<Entry> {
    let kind = tree.kind(id);
    let (layer, path) = tree.source(id)?.ok_or(Flaw::Header)?;
    let mut attr = tree.attr(id)?;
    attr.ino.0 = tree.link_key(id)?.1;
    let names = tree.xattr_names(id)?.into_iter();
    let xattrs = names.map(|name| {
        let value = tree.xattr(id, &name)?.unwrap_or_default();
        Ok((name, value))
    });
    let data = match kind {
        FileKind::Regular => Some(tree.data(id)?).filter(|data| *data != (layer, path.clone())),
        _ => None,
    };
    let target = (kind == FileKind::Symlink).then(|| tree.readlink(id));
    Ok(Entry {
        name,
        kind: EntryKind::File(kind),
        attr: Some(attr),
        xattrs: xattrs.collect::<Result<_>>()?,
        target: target.transpose()?,
        below: Below::Nothing,
        layer,
        source: Some(path).filter(|path| *path != tree.path(id)),
        data,
    })
}
