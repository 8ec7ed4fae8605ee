//! The indexes of layers and images, beside the layers that they tell of.
//!
//! `snapshots/<id>/layer.index` has what the committed snapshot's own directory holds, and
//! `snapshots/<id>/image.index` the whole chain with that snapshot on top. Both can be made again at
//! any time, so nothing waits for one, fails for want of one, or is lost with one. They go with
//! their snapshot.

use std::fs;
use std::io;
use std::path::PathBuf;

use lamina_fusefs::image::{LayerPlace, verify_index};
use lamina_fusefs::index::{self, Kind};

use crate::error::{Error, Result};
use crate::lazy::{self, Lazy};
use crate::store::layout::Layout;

/// The index of a layer that was just committed, so that the first container need not wait for it.
pub(crate) fn make(layout: &Layout, id: u64) {
    let indexed = place(layout, id, None).and_then(|place| place.open_indexed());
    if let Err(error) = indexed {
        tracing::warn!(id, %error, "a layer has no index");
    }
}

/// Where a committed snapshot's layer lies, with its index. `lazy` opens one that was not unpacked, for
/// the image on a chain; without it, all but its files can be read.
pub(crate) fn place(
    layout: &Layout,
    id: u64,
    lazy: Option<(&Lazy, &[u64])>,
) -> lamina_fusefs::Result<LayerPlace> {
    if !layout.blob_record(id).exists() {
        return Ok(LayerPlace::Dir {
            dir: layout.fs(id),
            index: Some(layout.layer_index(id)),
        });
    }
    Ok(LayerPlace::Blob(match lazy {
        Some((lazy, chain)) => lazy.layer_of(layout, id, chain)?,
        None => lazy::unread(layout, id)?,
    }))
}

/// Deletes indexes of a snapshot whose writing was cut off, and answers them. Nobody may be writing
/// one.
pub(crate) fn remove_leftovers(layout: &Layout, id: u64) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for path in leftovers(layout, id)? {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot remove a leftover");
            }
        }
    }
    Ok(removed)
}

/// Indexes of a snapshot whose writing was cut off, if nobody is writing one.
pub(crate) fn leftovers(layout: &Layout, id: u64) -> Result<Vec<PathBuf>> {
    let dir = layout.snapshot(id);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("cannot list", &dir))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("cannot list", &dir))?;
        if index::is_leftover(&entry.file_name()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// What is wrong with the indexes of a committed snapshot; `chain` is its own number and those
/// below. One that is missing is not wrong, but for a layer that was not unpacked.
pub(crate) fn check(layout: &Layout, id: u64, chain: &[u64]) -> Vec<lamina_fusefs::Error> {
    let places = chain.iter().map(|id| place(layout, *id, None));
    let places = match places.collect::<lamina_fusefs::Result<Vec<_>>>() {
        Ok(places) => places,
        Err(error) => return vec![error],
    };
    let layer = (layout.layer_index(id), Kind::Layer, &places[..1]);
    let image = (layout.image_index(id), Kind::Image, &places[..]);
    let there = [layer, image]
        .into_iter()
        .filter(|(path, ..)| path.exists());
    let flawed = there.filter_map(|(path, kind, layers)| verify_index(&path, kind, layers).err());
    let mut flawed: Vec<_> = flawed.collect();
    if layout.blob_record(id).exists() {
        flawed.extend(lazy::check(layout, id).err());
    }
    flawed
}

#[cfg(test)]
mod tests;
