//! Listing directories.
//!
//! Nothing is kept for a reader: all that it says is after which entry it wants to go on, and
//! the kernel may have remembered that for it from another reader's listing. So an entry's offset
//! says where its **name** belongs, and is the same in every listing of the directory (`Offsets`).
//! What is there all the time is told once, whatever else comes and goes.
//!
//! A listing that is begun is kept until its end was reached (`Listings`), so that a reader sees
//! the directory as it was when it began, and a large one is not merged for every batch. It may be
//! lost at any time: the offsets lead to the right place in a new one.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, openat};

use super::{Union, is_impure};
use crate::error::Result;
use crate::inode::Node;
use crate::marks;
use crate::sys::change::{fdatasync, fsync};
use crate::sys::dir::read_dir;
use crate::sys::place::Place;
use crate::types::{DirEntry, Entry, FileKind, Ino, NodeId};

/// Listings that are kept at once: as many readers may be in the middle of a directory.
const KEPT: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Offsets of `.` and `..`.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// Offsets have so many bits where that is enough: more is EOVERFLOW to an old 32-bit program.
const NARROW: u32 = 31;

/// Offsets of directories of which the image has more than 65,536 entries.
const WIDE: u32 = 63;

impl Union {
    /// Lists a directory after `offset` (0: from the start, with `.` and `..`) until `visit` answers
    /// false ("this one did not fit").
    pub fn readdir(
        &self,
        dir: NodeId,
        offset: u64,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        let node = self.dir_node(dir)?;
        for entry in after(&self.listing(&node, offset)?, offset) {
            if !visit(entry) {
                break;
            }
        }
        Ok(())
    }

    /// The same with the entry looked up; the client holds a reference to each entry for which
    /// `visit` answered true. `None` for `.` and `..`, where looking up failed, and for what was
    /// removed since the listing was taken.
    pub fn readdirplus(
        &self,
        dir: NodeId,
        offset: u64,
        visit: &mut dyn FnMut(&DirEntry, Option<&Entry>) -> bool,
    ) -> Result<()> {
        let node = self.dir_node(dir)?;
        for entry in after(&self.listing(&node, offset)?, offset) {
            let is_dot = entry.next_offset <= DOT_DOT;
            let found = if is_dot {
                None
            } else {
                self.look_up_listed(&node, entry)
            };
            if !visit(entry, found.as_ref()) {
                if let Some(found) = found {
                    self.forget(found.node, 1);
                }
                break;
            }
        }
        Ok(())
    }

    /// Looks up an entry of a listing.
    fn look_up_listed(&self, dir: &Arc<Node>, listed: &DirEntry) -> Option<Entry> {
        let _names = self.names.read();
        let found = match self.resolve(dir, &listed.name) {
            Ok(Some(found)) => self.entry(dir, &listed.name, &found),
            Ok(None) => return self.renamed_since(listed),
            Err(error) => Err(error),
        };
        // The others are to be seen all the same.
        found
            .inspect_err(|error| {
                tracing::warn!(name = ?listed.name, %error, "an entry can't be looked up");
            })
            .ok()
    }

    /// A file that had the listed name when the listing was taken, and has another now. The
    /// listing has its old name alone, so leaving that out would lose the file. It may not be
    /// remembered under this name. (A directory could not be either, and has one name.)
    fn renamed_since(&self, listed: &DirEntry) -> Option<Entry> {
        if listed.kind == FileKind::Directory {
            return None;
        }
        let node = self.nodes.by_ino(listed.ino)?;
        let has_a_name = node.kind == listed.kind && !node.state.lock().names.is_empty();
        if !has_a_name {
            return None;
        }
        let mut attr = self.attr(&node).ok()?;
        attr.cacheable = false;
        self.nodes.refer(&node);
        Some(Entry {
            node: node.id,
            generation: node.generation,
            attr,
        })
    }

    /// Makes the entries of a directory durable.
    pub fn fsyncdir(&self, dir: NodeId, datasync: bool) -> Result<()> {
        let node = self.dir_node(dir)?;
        let upper = {
            let _names = self.names.read();
            self.upper_dir_if_any(&node)?
        };
        let Some(upper) = upper else {
            return Ok(());
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let readable = openat(&upper, c".", flags, Mode::empty())?;
        if datasync {
            fdatasync(&readable)?;
        } else {
            fsync(&readable)?;
        }
        Ok(())
    }

    /// The listing in which a reader goes on; a new one at the start.
    fn listing(&self, dir: &Arc<Node>, offset: u64) -> Result<Listing> {
        if offset > 0
            && let Some(kept) = self.listings.go_on(dir, offset)
        {
            return Ok(kept);
        }
        let listing = Arc::new(self.take_listing(dir)?);
        self.listings.keep(dir, &listing);
        Ok(listing)
    }

    fn take_listing(&self, node: &Arc<Node>) -> Result<Vec<DirEntry>> {
        let _names = self.names.read();
        let parent = node.state.lock().names.first().map(|name| name.parent.ino);
        let dot = |name: &str, ino, next_offset| DirEntry {
            name: name.into(),
            ino,
            kind: FileKind::Directory,
            next_offset,
        };
        let mut listing = vec![
            dot(".", node.ino, DOT),
            dot("..", parent.unwrap_or(node.ino), DOT_DOT),
        ];
        let entries = self.merged_entries(node)?;
        let mut image = Vec::new();
        if let Some(id) = node.image() {
            (self.image).each_child(id, |child| image.push(child.name.to_owned()))?;
        }
        let names = image.iter().map(OsString::as_os_str);
        listing.extend(with_offsets(entries, names));
        Ok(listing)
    }

    /// All entries of a directory but `.` and `..`: the upper's, then what of the image shows
    /// through.
    pub(super) fn merged_entries(&self, node: &Node) -> Result<Vec<(OsString, Ino, FileKind)>> {
        let mut entries = Vec::new();
        let mut decided = HashSet::new();
        let (image, removed) = {
            let state = node.state.lock();
            (state.image, state.orphan.is_some())
        };
        if removed {
            return Ok(entries);
        }
        if let Some(dir) = self.upper_dir_if_any(node)? {
            let impure = is_impure(node, &dir)?;
            let device = self.upper()?.device();
            for raw in read_dir(dir.as_fd())? {
                let whiteout = raw.kind == FileKind::CharDevice
                    && marks::is_whiteout(&Place::at(&dir, &raw.name).stat()?);
                if !whiteout {
                    let below = self.image_entry(node, &raw.name)?.is_some();
                    // Only then can number and kind be others than the upper's own.
                    let shown = if impure || (below && raw.kind == FileKind::Directory) {
                        match self.resolve(node, &raw.name) {
                            Ok(found) => found.map(|found| (found.attr.ino, found.attr.kind)),
                            // It is there, and looking it up will say what is wrong with it.
                            Err(_) => Some((self.inos.map(device, raw.ino), raw.kind)),
                        }
                    } else {
                        Some((self.inos.map(device, raw.ino), raw.kind))
                    };
                    if let Some((ino, kind)) = shown {
                        entries.push((raw.name.clone(), ino, kind));
                    }
                }
                if image.is_some() {
                    decided.insert(raw.name);
                }
            }
        }
        if let Some(image) = image {
            self.image.each_child(image, |child| {
                if !decided.contains(child.name) {
                    entries.push((child.name.to_owned(), child.ino, child.kind));
                }
            })?;
        }
        Ok(entries)
    }
}

/// The entries of a listing after an offset.
fn after(listing: &[DirEntry], offset: u64) -> &[DirEntry] {
    let told = listing.partition_point(|entry| entry.next_offset <= offset);
    listing.get(told..).unwrap_or_default()
}

/// The entries of a directory at one time, in the order of their offsets.
type Listing = Arc<Vec<DirEntry>>;

/// A directory: its number comes back for another one, with another generation.
type Generation = (NodeId, u32);

/// Listings whose end nobody has reached.
#[derive(Debug)]
pub(super) struct Listings {
    kept: Mutex<LruCache<Generation, Listing>>,
}

impl Default for Listings {
    fn default() -> Self {
        Self {
            kept: Mutex::new(LruCache::new(KEPT)),
        }
    }
}

impl Listings {
    fn keep(&self, dir: &Node, listing: &Listing) {
        let key = (dir.id, dir.generation);
        self.kept.lock().put(key, Arc::clone(listing));
    }

    /// The listing to go on in, which is forgotten if nothing comes after the offset.
    fn go_on(&self, dir: &Node, offset: u64) -> Option<Listing> {
        let key = (dir.id, dir.generation);
        let mut kept = self.kept.lock();
        let listing = Arc::clone(kept.get(&key)?);
        if after(&listing, offset).is_empty() {
            kept.pop(&key);
        }
        Some(listing)
    }
}

/// Gives the entries of a directory their offsets, and sorts them by those. `image`: all names
/// that the image has there, sorted.
///
/// An image's entry has its place among the image's, which never changes. Between two of them
/// there is room for names that are the upper's alone: there the hash of the name decides. Two of
/// one hash follow each other, so that their offsets depend on each other: a reader that stops
/// just between them may miss one, if the other goes and the listing is lost.
fn with_offsets<'i>(
    mut entries: Vec<(OsString, Ino, FileKind)>,
    image: impl ExactSizeIterator<Item = &'i OsStr>,
) -> Vec<DirEntry> {
    let bits = if image.len() > 1 << 16 { WIDE } else { NARROW };
    // Ranks are 0 to the number of the image's names.
    let shift = bits - (usize::BITS - image.len().leading_zeros());
    let room = (1 << shift) - 1 - DOT_DOT;

    entries.sort_unstable_by(|(left, ..), (right, ..)| left.cmp(right));
    let (mut image, mut rank) = (image.peekable(), 0_u64);
    let mut listed: Vec<_> = entries
        .into_iter()
        .map(|(name, ino, kind)| {
            while image.next_if(|other| **other < *name).is_some() {
                rank += 1;
            }
            let place = if image.next_if(|other| **other == *name).is_some() {
                rank += 1;
                0
            } else {
                1 + DOT_DOT + hash(&name) % room
            };
            DirEntry {
                name,
                ino,
                kind,
                next_offset: (rank << shift) + place,
            }
        })
        .collect();
    // Stable: of one hash by name.
    listed.sort_by_key(|entry| entry.next_offset);
    let mut last = DOT_DOT;
    for entry in &mut listed {
        last = entry.next_offset.max(last + 1);
        entry.next_offset = last;
    }
    listed
}

/// FNV-1a: the same in every process, so that an offset outlives ours.
fn hash(name: &OsStr) -> u64 {
    name.as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(image: &[&str], all: &[&str]) -> Vec<(String, u64)> {
        let entries = all
            .iter()
            .map(|name| (name.into(), Ino(1), FileKind::Regular));
        let listed = with_offsets(entries.collect(), image.iter().map(OsStr::new));
        let text = |entry: &DirEntry| entry.name.to_str().unwrap().to_owned();
        listed
            .iter()
            .map(|entry| (text(entry), entry.next_offset))
            .collect()
    }

    #[test]
    fn an_offset_depends_on_the_name_and_the_image_alone() {
        let image = ["b", "d", "f"];
        let all = offsets(&image, &["z", "a", "b", "c", "d", "e", "f"]);
        let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d", "e", "f", "z"]);
        for some in [&["e", "z"][..], &["f", "d"], &["a", "c", "b"], &["d"]] {
            for found in offsets(&image, some) {
                assert!(all.contains(&found), "{found:?} of {some:?}, not {all:?}");
            }
        }
    }

    #[test]
    fn offsets_grow_and_fit_also_where_there_is_no_room() {
        let many: Vec<String> = (0..70_000).map(|number| format!("{number:05}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let image_of = |len: usize| &many[..len];
        for (image, limit) in [(0, 31), (1, 31), (65_536, 31), (65_537, 63), (70_000, 63)] {
            let listed = offsets(image_of(image), &many);
            assert_eq!(listed.len(), many.len());
            assert!(listed.is_sorted_by(|(_, left), (_, right)| left < right));
            assert!(listed[0].1 > DOT_DOT && listed[listed.len() - 1].1 < 1 << limit);
        }
    }
}
