//! From a file handle to the image file that it names.
//!
//! A handle names an inode of a file system, whether a layer holds it or not. So a file that it
//! opens is compared with the image's files: first with the one that is likely, then with all.

use std::collections::HashSet;
use std::path::PathBuf;

use crate::error::Result;
use crate::image::{Image, ImageId, Named};
use crate::layer::EntryKind;
use crate::marks::decode_origin;

/// Device and inode number on the host.
type Key = (u64, u64);

/// Finds the image files of handles.
pub(super) struct Origins<'i> {
    image: &'i Image,
    /// Files that the image is known to have.
    known: HashSet<Key>,
    /// Whether `known` has all.
    complete: bool,
}

/// What a handle names.
#[derive(Debug)]
pub(super) enum Origin {
    /// Nothing: it is empty, or broken, which is a finding of its own.
    None,
    /// This file of the image.
    InImage(Named),
    /// A file that is gone, or of another file system.
    Gone,
    /// A file that no layer holds.
    Elsewhere,
}

impl<'i> Origins<'i> {
    pub(super) fn new(image: &'i Image) -> Origins<'i> {
        Origins {
            image,
            known: HashSet::new(),
            complete: false,
        }
    }

    /// Finds the file that an origin's value names; `likely` is the image's file that it probably
    /// is.
    pub(super) fn find(&mut self, value: &[u8], likely: Option<ImageId>) -> Result<Origin> {
        let Some(handle) = decode_origin(value) else {
            return Ok(Origin::None);
        };
        let Some(named) = self.image.by_handle(&handle)? else {
            return Ok(Origin::Gone);
        };
        Ok(if self.has(named.key, likely)? {
            Origin::InImage(named)
        } else {
            Origin::Elsewhere
        })
    }

    fn has(&mut self, key: Key, likely: Option<ImageId>) -> Result<bool> {
        if let Some(id) = likely {
            self.known.insert(self.image.link_key(id)?);
        }
        if !self.known.contains(&key) && !self.complete {
            self.collect()?;
            self.complete = true;
        }
        Ok(self.known.contains(&key))
    }

    /// Collects every file of every layer, hidden ones too: an older upper may have copied them up.
    fn collect(&mut self) -> Result<()> {
        for layer in self.image.layers() {
            let root = PathBuf::new();
            self.known
                .insert((layer.device(), layer.attr(&root)?.ino.0));
            let mut pending = vec![root];
            while let Some(dir) = pending.pop() {
                for entry in layer.read_dir(&dir)? {
                    let EntryKind::File(kind) = entry.kind else {
                        continue;
                    };
                    self.known.insert((layer.device(), entry.ino.0));
                    if kind == crate::types::FileKind::Directory {
                        pending.push(dir.join(entry.name));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Origin {
    /// How many links the image's file has.
    pub(super) fn links(&self) -> Option<i64> {
        match self {
            Origin::InImage(named) => Some(i64::try_from(named.nlink).unwrap_or(i64::MAX)),
            _ => None,
        }
    }
}
