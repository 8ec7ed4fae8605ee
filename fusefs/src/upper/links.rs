//! The link index: it keeps hard links of image files links, after one of them is copied up.
//!
//! All names of one image file lead to one upper file: the link in `index/` that is named by the
//! image file's handle. A name that exists in the image alone finds the upper file through it.
//!
//! **How many links such a file has.** Some of its names are links on disk, others the image alone
//! has, and the link in the index is no name at all. So the number that the union shows is kept in
//! the nlink mark, as overlayfs does (`ovl_set_nlink_upper`, `ovl_set_nlink_lower`), in one of two
//! forms:
//!
//! ```text
//! U+n    the links of the upper's file on disk, the index's own among them, + n
//! L+n    the links of the image's file + n
//! ```
//!
//! The number is exact at each moment, whatever a crash cuts off, because each step on disk runs
//! under the form that fits it:
//!
//! - A step that changes the file's links on disk and its names in the union together (`link`,
//!   `unlink`, a rename over it) runs under `U`: both go up or down in one system call.
//! - A step that changes the links on disk alone (the index's own link; a link for a name that so
//!   far the image alone had) runs under `L`, which does not look at them.
//! - A name that the image alone has is never hidden as it is: it gets its link first, and then
//!   that link and the name go together.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::image::Named;
use crate::marks::{self, Nlink, decode_origin, encode_origin};
use crate::sys::change::unlinkat;
use crate::sys::dir::read_dir;
use crate::sys::handle::FileHandle;
use crate::sys::place::Place;

/// The index directory, and what it held when it was opened.
#[derive(Debug)]
pub(crate) struct LinkIndex {
    dir: Arc<OwnedFd>,
    entries: Mutex<Entries>,
    /// Entries of which the image file is still to be found; see [`LinkIndex::resolve`].
    unresolved: Mutex<Vec<(OsString, FileHandle)>>,
}

/// The copied-up files.
#[derive(Debug, Default)]
struct Entries {
    /// The name in the index, by (device, inode number) of the image file.
    names: HashMap<(u64, u64), OsString>,
    /// How many links the image's file has, by the name in the index.
    image_nlink: HashMap<OsString, i64>,
}

impl LinkIndex {
    pub(super) fn open(dir: OwnedFd) -> Result<LinkIndex> {
        let dir = Arc::new(dir);
        let unresolved = read_dir(dir.as_fd())?
            .into_iter()
            .filter_map(|entry| {
                let handle = handle_of(&dir, &entry.name);
                if handle.is_none() {
                    tracing::warn!(name = ?entry.name, "the link index holds a file of another kind");
                }
                Some((entry.name, handle?))
            })
            .collect();
        Ok(LinkIndex {
            dir,
            entries: Mutex::default(),
            unresolved: Mutex::new(unresolved),
        })
    }

    /// Finds the image files of the entries, by their handles. A file of which a crash left nothing but
    /// its entry here goes.
    pub(crate) fn resolve(
        &self,
        find: impl Fn(&FileHandle) -> Result<Option<Named>, Errno>,
    ) -> Result<(), Errno> {
        for (name, handle) in self.unresolved.lock().drain(..) {
            let Some(named) = find(&handle).ok().flatten() else {
                tracing::warn!(?name, "the link index names a file that no layer has");
                continue;
            };
            let place = Place::at(&self.dir, &name);
            self.note(named.key, name, named.nlink);
            self.remove_if_unused(&place)?;
        }
        Ok(())
    }

    fn note(&self, key: (u64, u64), name: OsString, image_nlink: u64) {
        let image_nlink = i64::try_from(image_nlink).unwrap_or(i64::MAX);
        let mut entries = self.entries.lock();
        entries.image_nlink.insert(name.clone(), image_nlink);
        entries.names.insert(key, name);
    }

    /// The upper file of an image file, if it was copied up.
    pub(crate) fn get(&self, device: u64, ino: u64) -> Option<Place> {
        let entries = self.entries.lock();
        let name = entries.names.get(&(device, ino))?;
        Some(Place::at(&self.dir, name))
    }

    /// Links a complete upper file into the index; until then nothing else leads to it. It counts
    /// as many links as the image's file has (`image_nlink`).
    pub(crate) fn insert(
        &self,
        key: (u64, u64),
        image_nlink: u32,
        handle: &FileHandle,
        file: &Place,
    ) -> Result<Place, Errno> {
        let name = name_of(handle);
        marks::set_nlink(file, Nlink::Image(0))?;
        file.link_to(&self.dir, &name)?;
        self.note(key, name.clone(), image_nlink.into());
        Ok(Place::at(&self.dir, &name))
    }

    /// How many links the file of an entry has in the union; `stat` is what it has on disk.
    pub(crate) fn nlink(&self, link: &Place, stat: &Stat) -> Result<u32, Errno> {
        let count = self.count(link, stat)?;
        Ok(u32::try_from(count.max(0)).unwrap_or(u32::MAX))
    }

    fn count(&self, link: &Place, stat: &Stat) -> Result<i64, Errno> {
        Ok(match marks::nlink(link)? {
            Nlink::Upper(difference) => on_disk(stat).saturating_add(difference),
            Nlink::Image(difference) => self.image_nlink(link).saturating_add(difference),
        })
    }

    fn image_nlink(&self, link: &Place) -> i64 {
        let Place::At(_, name) = link else {
            return 0;
        };
        let entries = self.entries.lock();
        entries.image_nlink.get(name).copied().unwrap_or(0)
    }

    /// Before a step that changes the links on disk and the names in the union together.
    pub(crate) fn count_with_upper(&self, link: &Place) -> Result<(), Errno> {
        if matches!(marks::nlink(link)?, Nlink::Upper(_)) {
            return Ok(());
        }
        let stat = link.stat()?;
        let difference = self.count(link, &stat)? - on_disk(&stat);
        marks::set_nlink(link, Nlink::Upper(difference))
    }

    /// Before a step that changes the links on disk alone.
    pub(crate) fn count_with_image(&self, link: &Place) -> Result<(), Errno> {
        if matches!(marks::nlink(link)?, Nlink::Image(_)) {
            return Ok(());
        }
        let difference = self.count(link, &link.stat()?)? - self.image_nlink(link);
        marks::set_nlink(link, Nlink::Image(difference))
    }

    /// Removes an entry.
    pub(crate) fn remove(&self, place: &Place) -> Result<(), Errno> {
        let Place::At(dir, name) = place else {
            return Ok(());
        };
        {
            let mut entries = self.entries.lock();
            entries.names.retain(|_, known| known != name);
            entries.image_nlink.remove(name);
        }
        unlinkat(dir, name, AtFlags::empty())
    }

    /// Removes a file that has no name in the union any more, and says whether it did.
    pub(crate) fn remove_if_unused(&self, link: &Place) -> Result<bool, Errno> {
        let stat = link.stat()?;
        // One link is the index's own.
        let unused = stat.st_nlink == 1 && self.nlink(link, &stat)? == 0;
        if unused {
            self.remove(link)?;
        }
        Ok(unused)
    }

    /// All entries.
    pub(crate) fn places(&self) -> Vec<((u64, u64), Place)> {
        let entries = self.entries.lock();
        entries
            .names
            .iter()
            .map(|(key, name)| (*key, Place::at(&self.dir, name)))
            .collect()
    }
}

fn on_disk(stat: &Stat) -> i64 {
    i64::try_from(stat.st_nlink).unwrap_or(i64::MAX)
}

/// What the name of an entry begins with, if the handle is too long to be a name.
const HASHED: &str = "sha256-";
const NAME_MAX: usize = 255;

/// The name of an entry: the origin mark's value in hexadecimal, or a hash of it.
fn name_of(handle: &FileHandle) -> OsString {
    let origin = encode_origin(handle);
    let name = to_hex(&origin);
    if name.len() <= NAME_MAX {
        return name;
    }
    let mut hashed = OsString::from(HASHED);
    hashed.push(to_hex(&Sha256::digest(&origin)));
    hashed
}

/// The handle of an entry: by its name, or by the file's own origin mark if the name is a hash.
pub(crate) fn handle_of(dir: &Arc<OwnedFd>, name: &OsStr) -> Option<FileHandle> {
    if let Some(bytes) = from_hex(name) {
        return decode_origin(&bytes);
    }
    let handle = marks::origin(&Place::at(dir, name)).ok().flatten()?;
    (name_of(&handle) == name).then_some(handle)
}

pub(crate) fn to_hex(bytes: &[u8]) -> OsString {
    use std::fmt::Write;
    let mut hex = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(hex, "{byte:02x}");
    }
    hex.into()
}

/// The bytes that the name of an entry of the index stands for.
pub(crate) fn from_hex(name: &OsStr) -> Option<Vec<u8>> {
    let hex = name.to_str()?;
    // The number parser alone would take a sign for a digit.
    if hex.len() % 2 != 0 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
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
    fn a_handle_that_is_too_long_for_a_name_is_found_again() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Arc::new(crate::sys::beneath::open_root(temp.path()).unwrap());
        for len in [8, 106, 107, 128] {
            let handle = FileHandle {
                kind: 1,
                bytes: vec![0xab; len],
            };
            let name = name_of(&handle);
            std::fs::write(temp.path().join(&name), "").unwrap();
            marks::set_origin(&Place::at(&dir, &name), &handle).unwrap();
            assert_eq!(handle_of(&dir, &name), Some(handle), "{len} bytes");
        }
    }

    #[test]
    fn names_are_the_handles_bytes() {
        let bytes = [0, 0xfb, 0x10, 0xff];
        assert_eq!(from_hex(&to_hex(&bytes)).unwrap(), bytes);
        assert_eq!(from_hex(OsStr::new("0")), None);
        assert_eq!(from_hex(OsStr::new("zz")), None);
        assert_eq!(from_hex(OsStr::new("+f")), None);
    }
}
