//! Opening an image by its index, and making that index where it is missing or no good.
//!
//! Correctness never depends on an index: whatever is wrong with one, or keeps one from being
//! written, is said in the log, and the image is merged on demand.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::lazy::Lazy;
use super::{Image, ImageId, Stack, Tree};
use crate::error::{Error, Result};
use crate::index::{Entry, Flaw, Index, IndexedLayer, Kind, Stamp, build, save};
use crate::layer::{Below, DirLayer, EntryKind, Layer};
use crate::types::FileKind;

/// Where one layer lies.
#[derive(Clone, Debug)]
pub struct LayerPlace {
    /// Its directory.
    pub dir: PathBuf,
    /// Its own index, for whoever keeps one. It is made if it is missing and the image's index has
    /// to be made.
    pub index: Option<PathBuf>,
}

impl Image {
    /// The image of these layers, the topmost first, by its index at `index`. The index is made if
    /// it is missing, damaged, or one of other layers. Where that fails the image has none.
    pub fn open_indexed(layers: &[LayerPlace], index: &Path) -> Result<Arc<Image>> {
        let opened: Vec<DirLayer> = layers
            .iter()
            .map(|layer| DirLayer::open(&layer.dir))
            .collect::<Result<_>>()?;
        if opened.is_empty() {
            return Image::new(Vec::new());
        }
        let stamps: Vec<Stamp> = opened.iter().map(DirLayer::stamp).collect();
        let found = open(index, &stamps).or_else(|error| {
            if !is_missing(&error) {
                tracing::warn!(%error, "an index is made again");
            }
            make(layers, &stamps, index)?;
            open(index, &stamps)
        });
        let opened = opened
            .into_iter()
            .map(|layer| Arc::new(layer) as Arc<dyn Layer>);
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

impl LayerPlace {
    /// The layer with its index, which is made if it is missing, damaged, or one of another
    /// directory. An index that can't be written is used all the same, once.
    pub fn open_indexed(&self) -> Result<IndexedLayer> {
        let Some(index) = &self.index else {
            return IndexedLayer::walk(DirLayer::open(&self.dir)?);
        };
        match IndexedLayer::open(DirLayer::open(&self.dir)?, index) {
            Ok(layer) => return Ok(layer),
            Err(error) if is_missing(&error) => {}
            Err(error) => tracing::warn!(%error, "an index is made again"),
        }
        let layer = IndexedLayer::walk(DirLayer::open(&self.dir)?)?;
        if let Err(error) = layer.save(index) {
            tracing::warn!(%error, "a layer has no index");
        }
        Ok(layer)
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
fn make(layers: &[LayerPlace], stamps: &[Stamp], at: &Path) -> Result<()> {
    let layers: Vec<Arc<dyn Layer>> = layers
        .iter()
        .map(|layer| Ok(Arc::new(layer.open_indexed()?) as Arc<dyn Layer>))
        .collect::<Result<_>>()?;
    let tree = Lazy::new(Stack::new(layers));
    let bytes = bytes_of(&tree, stamps)?;
    drop(tree);
    save(at, &bytes)
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
