//! The link index: it keeps hard links of image files links, after one of them is copied up.
//!
//! All names of one image file lead to one upper file: the link in `index/` that is named by the
//! image file's handle. A name that exists in the image alone finds the upper file through it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, fstat};
use rustix::io::Errno;

use crate::error::Result;
use crate::marks::{decode_origin, encode_origin};
use crate::sys::change::unlinkat;
use crate::sys::dir::read_dir;
use crate::sys::handle::FileHandle;
use crate::sys::place::Place;

/// The index directory, and what it held when it was opened.
#[derive(Debug)]
pub(crate) struct LinkIndex {
    dir: Arc<OwnedFd>,
    /// The file name in the index, by (device, inode number) of the image file.
    names: Mutex<HashMap<(u64, u64), OsString>>,
    /// Entries of which the image file is still to be found; see [`LinkIndex::resolve`].
    unresolved: Mutex<Vec<(OsString, FileHandle)>>,
}

impl LinkIndex {
    pub(super) fn open(dir: OwnedFd) -> Result<LinkIndex> {
        let unresolved = read_dir(dir.as_fd())?
            .into_iter()
            .filter_map(|entry| {
                let handle = from_hex(&entry.name).and_then(|bytes| decode_origin(&bytes));
                if handle.is_none() {
                    tracing::warn!(name = ?entry.name, "the link index holds a file of another kind");
                }
                Some((entry.name, handle?))
            })
            .collect();
        Ok(LinkIndex {
            dir: Arc::new(dir),
            names: Mutex::default(),
            unresolved: Mutex::new(unresolved),
        })
    }

    /// Finds the image files of the entries, on the file systems of the layers.
    pub(crate) fn resolve(&self, file_systems: &[BorrowedFd<'_>]) {
        let mut names = self.names.lock();
        for (name, handle) in self.unresolved.lock().drain(..) {
            let found = file_systems
                .iter()
                .find_map(|mount| handle.open(*mount).ok());
            if let Some(stat) = found.and_then(|fd| fstat(&fd).ok()) {
                names.insert((stat.st_dev, stat.st_ino), name);
            } else {
                tracing::warn!(?name, "the link index names a file that no layer has");
            }
        }
    }

    /// The upper file of an image file, if it was copied up.
    pub(crate) fn get(&self, device: u64, ino: u64) -> Option<Place> {
        let names = self.names.lock();
        let name = names.get(&(device, ino))?;
        Some(Place::at(&self.dir, name))
    }

    /// Links a complete upper file into the index.
    pub(crate) fn insert(
        &self,
        device: u64,
        ino: u64,
        handle: &FileHandle,
        file: &Place,
    ) -> Result<Place, Errno> {
        let name = to_hex(&encode_origin(handle));
        file.link_to(&self.dir, &name)?;
        self.names.lock().insert((device, ino), name.clone());
        Ok(Place::at(&self.dir, &name))
    }

    /// Removes a file that has no name in the union any more.
    pub(crate) fn remove(&self, place: &Place) -> Result<(), Errno> {
        let Place::At(dir, name) = place else {
            return Ok(());
        };
        self.names.lock().retain(|_, known| known != name);
        unlinkat(dir, name, AtFlags::empty())
    }

    /// All entries.
    pub(crate) fn places(&self) -> Vec<((u64, u64), Place)> {
        let names = self.names.lock();
        names
            .iter()
            .map(|(key, name)| (*key, Place::at(&self.dir, name)))
            .collect()
    }
}

fn to_hex(bytes: &[u8]) -> OsString {
    use std::fmt::Write;
    let mut hex = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(hex, "{byte:02x}");
    }
    hex.into()
}

fn from_hex(name: &OsStr) -> Option<Vec<u8>> {
    let hex = name.to_str()?;
    if hex.len() % 2 != 0 || !hex.is_ascii() {
        return None;
    }
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_handles_bytes() {
        let bytes = [0, 0xfb, 0x10, 0xff];
        assert_eq!(from_hex(&to_hex(&bytes)).unwrap(), bytes);
        assert_eq!(from_hex(OsStr::new("0")), None);
        assert_eq!(from_hex(OsStr::new("zz")), None);
    }
}
