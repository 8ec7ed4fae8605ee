//! Making the bytes of an index from a walk over a tree, level by level.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::format::{Header, RECORD, at, below, seal};
use super::tree::{Index, raw_of_kind};
use super::verify::can_be_kept;
use super::{Flaw, Kind, Stamp};
use crate::layer::{Below, EntryKind};
use crate::types::{Attr, FileKind, Timestamp};

/// All that an index tells of one entry.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The name; the root's is empty.
    pub(crate) name: OsString,
    pub(crate) kind: EntryKind,
    /// With the layer's own inode number. `None` for a whiteout.
    pub(crate) attr: Option<Attr>,
    /// Marks included.
    pub(crate) xattrs: Vec<(OsString, Vec<u8>)>,
    /// The target of a symlink.
    pub(crate) target: Option<OsString>,
    /// For a layer: how it continues below.
    pub(crate) below: Below,
    /// For an image: the topmost layer that has it.
    pub(crate) layer: usize,
    /// For an image: its path there, if that is not its path in the image.
    pub(crate) source: Option<PathBuf>,
    /// For an image: the layer and path of its data, if they are not in that file.
    pub(crate) data: Option<(usize, PathBuf)>,
}

/// Builds the index of a tree. `children` answers the entries of a directory, in any order; `T` is
/// what it knows a directory by.
pub(crate) fn build<T, E: From<Flaw>>(
    kind: Kind,
    stamps: &[Stamp],
    root: (Entry, T),
    mut children: impl FnMut(&T) -> Result<Vec<(Entry, T)>, E>,
) -> Result<Vec<u8>, E> {
    let mut builder = Builder::default();
    let (entry, key) = root;
    builder.push(Index::ROOT, &entry)?;
    let mut dirs = VecDeque::from([(Index::ROOT, key)]);
    while let Some((dir, key)) = dirs.pop_front() {
        let mut entries = children(&key)?;
        entries.sort_unstable_by(|(one, _), (other, _)| one.name.cmp(&other.name));
        let first = builder.count()?;
        for (entry, key) in entries {
            let number = builder.push(dir, &entry)?;
            if entry.kind == EntryKind::File(FileKind::Directory) {
                dirs.push_back((number, key));
            }
        }
        let count = builder.count()? - first;
        builder.set_children(dir, first, count);
    }
    Ok(builder.finish(kind, stamps)?)
}

/// The sections of an index that grows.
#[derive(Default)]
struct Builder {
    records: Vec<u8>,
    xattrs: Vec<u8>,
    places: Vec<u8>,
    heap: Vec<u8>,
    /// Lists of xattrs that were written: many files have the same. By name and value; where they
    /// begin in the table.
    known_xattrs: HashMap<Vec<(OsString, Vec<u8>)>, u32>,
}

impl Builder {
    /// How many records there are.
    fn count(&self) -> Result<u32, Flaw> {
        u32::try_from(self.records.len() / RECORD).map_err(|_| Flaw::TooLarge)
    }

    /// Adds a record, and answers its number.
    fn push(&mut self, parent: u32, entry: &Entry) -> Result<u32, Flaw> {
        let number = self.count()?;
        let mut record = [0; RECORD];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(field) = record.get_mut(at..at + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(at::PARENT, &parent.to_le_bytes());
        put(at::KIND, &[raw_of_kind(entry.kind)]);
        put(at::NAME, &self.add(&entry.name)?.to_le_bytes());
        put(at::NAME_LEN, &length(&entry.name)?.to_le_bytes());
        let layer = u32::try_from(entry.layer).map_err(|_| Flaw::TooLarge)?;
        put(at::LAYER, &layer.to_le_bytes());
        if let Some(attr) = &entry.attr {
            put_attr(attr, &mut put);
        }
        let (mark, text) = mark(entry)?;
        put(at::BELOW, &[mark]);
        put(at::TEXT, &self.add(text)?.to_le_bytes());
        put(at::TEXT_LEN, &length(text)?.to_le_bytes());
        let count = u16::try_from(entry.xattrs.len()).map_err(|_| Flaw::TooLarge)?;
        put(at::XATTRS, &count.to_le_bytes());
        put(
            at::FIRST_XATTR,
            &self.add_xattrs(&entry.xattrs)?.to_le_bytes(),
        );
        if let Some(path) = &entry.source {
            put(at::SOURCE, &self.add_place(layer, path)?.to_le_bytes());
        }
        if let Some((layer, path)) = &entry.data {
            let layer = u32::try_from(*layer).map_err(|_| Flaw::TooLarge)?;
            put(at::DATA, &self.add_place(layer, path)?.to_le_bytes());
        }
        self.records.extend_from_slice(&record);
        Ok(number)
    }

    fn set_children(&mut self, dir: u32, first: u32, count: u32) {
        let start = dir as usize * RECORD;
        for (at, value) in [(at::FIRST_CHILD, first), (at::CHILDREN, count)] {
            if let Some(field) = self.records.get_mut(start + at..start + at + 4) {
                field.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    /// Adds bytes to the heap, and answers where they begin.
    fn add(&mut self, text: &OsStr) -> Result<u32, Flaw> {
        let start = u32::try_from(self.heap.len()).map_err(|_| Flaw::TooLarge)?;
        self.heap.extend_from_slice(text.as_bytes());
        Ok(start)
    }

    fn add_xattrs(&mut self, list: &[(OsString, Vec<u8>)]) -> Result<u32, Flaw> {
        if list.is_empty() {
            return Ok(0);
        }
        if let Some(first) = self.known_xattrs.get(list) {
            return Ok(*first);
        }
        let first = self.xattrs.len() / super::format::XATTR;
        let first = u32::try_from(first).map_err(|_| Flaw::TooLarge)?;
        for (name, value) in list {
            for text in [name.as_os_str(), OsStr::from_bytes(value)] {
                let len = u32::try_from(text.len()).map_err(|_| Flaw::TooLarge)?;
                let start = self.add(text)?;
                self.xattrs.extend_from_slice(&start.to_le_bytes());
                self.xattrs.extend_from_slice(&len.to_le_bytes());
            }
        }
        self.known_xattrs.insert(list.to_vec(), first);
        Ok(first)
    }

    /// Adds a place, and answers its number, which begins at 1.
    fn add_place(&mut self, layer: u32, path: &std::path::Path) -> Result<u32, Flaw> {
        let start = self.add(path.as_os_str())?;
        let len = u32::try_from(path.as_os_str().len()).map_err(|_| Flaw::TooLarge)?;
        for field in [layer, start, len, 0] {
            self.places.extend_from_slice(&field.to_le_bytes());
        }
        let number = self.places.len() / super::format::PLACE;
        u32::try_from(number).map_err(|_| Flaw::TooLarge)
    }

    /// Puts the sections together.
    fn finish(self, kind: Kind, stamps: &[Stamp]) -> Result<Vec<u8>, Flaw> {
        let count = |len: usize, size: usize| u32::try_from(len / size).map_err(|_| Flaw::TooLarge);
        let header = Header {
            kind,
            layers: count(stamps.len(), 1)?,
            records: count(self.records.len(), RECORD)?,
            xattrs: count(self.xattrs.len(), super::format::XATTR)?,
            places: count(self.places.len(), super::format::PLACE)?,
            heap: count(self.heap.len(), 1)?,
        };
        let mut bytes = Vec::with_capacity(header.length());
        header.write(&mut bytes);
        for stamp in stamps {
            bytes.extend_from_slice(&stamp.ino.to_le_bytes());
            bytes.extend_from_slice(&stamp.ctime.secs.to_le_bytes());
            bytes.extend_from_slice(&stamp.ctime.nanos.to_le_bytes());
            bytes.extend_from_slice(&[0; 4]);
        }
        for section in [self.records, self.xattrs, self.places, self.heap] {
            bytes.extend_from_slice(&section);
        }
        seal(&mut bytes);
        Ok(bytes)
    }
}

fn put_attr(attr: &Attr, put: &mut impl FnMut(usize, &[u8])) {
    for (at, value) in [
        (at::INO, attr.ino.0),
        (at::SIZE, attr.size),
        (at::BLOCKS, attr.blocks),
        (at::RDEV, attr.rdev),
    ] {
        put(at, &value.to_le_bytes());
    }
    for (secs, nanos, time) in [
        (at::ATIME, at::ATIME_NANOS, attr.atime),
        (at::MTIME, at::MTIME_NANOS, attr.mtime),
        (at::CTIME, at::CTIME_NANOS, attr.ctime),
    ] {
        let Timestamp {
            secs: whole,
            nanos: part,
        } = time;
        put(secs, &whole.to_le_bytes());
        put(nanos, &part.to_le_bytes());
    }
    for (at, value) in [
        (at::NLINK, attr.nlink),
        (at::UID, attr.uid),
        (at::GID, attr.gid),
        (at::BLKSIZE, attr.blksize),
    ] {
        put(at, &value.to_le_bytes());
    }
    put(at::PERM, &attr.perm.to_le_bytes());
}

/// The raw mark of an entry, and its text: the target of a symlink, or where it continues.
fn mark(entry: &Entry) -> Result<(u8, &OsStr), Flaw> {
    Ok(match (&entry.below, &entry.target) {
        (Below::Nothing, Some(target)) => (below::NOTHING, target),
        (Below::Nothing, None) => (below::NOTHING, OsStr::new("")),
        (Below::SamePath, _) => (below::SAME_PATH, OsStr::new("")),
        (Below::Redirect(path), _) if can_be_kept(path) => (below::REDIRECT, path.as_os_str()),
        (Below::Redirect(_), _) => return Err(Flaw::TooLarge),
        (Below::Sibling(name), _) => (below::SIBLING, name),
    })
}

/// The length of a name or text.
fn length(text: &OsStr) -> Result<u16, Flaw> {
    u16::try_from(text.len()).map_err(|_| Flaw::TooLarge)
}
