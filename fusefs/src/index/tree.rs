//! An index that is open.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::format::{
    Header, PLACE, RECORD, STAMP, WHITEOUT, XATTR, at, below, i64_at, u16_at, u32_at, u64_at,
};
use super::{Flaw, Kind, Stamp, verify};
use crate::error::{Error, Result};
use crate::layer::{Below, EntryKind};
use crate::sys::map::Map;
use crate::types::{Attr, FileKind, Ino, Timestamp};

/// A tree in one piece of memory. Its records are numbered; 0 is the root.
///
/// Everything was verified when it was opened, so what a method reads is there.
#[derive(Debug)]
pub(crate) struct Index {
    bytes: Bytes,
    header: Header,
}

/// Where an index lies.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// In a file, shared with everybody who uses it.
    Mapped(Map),
    /// In this process's own memory.
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

impl Bytes {
    /// Maps a file.
    pub(crate) fn map(path: &Path) -> Result<Bytes> {
        let failed = |source: io::Error| Error::Path {
            action: "cannot open the index",
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        // Nothing can be mapped of an empty file.
        if file.metadata().map_err(failed)?.len() == 0 {
            return Err(Flaw::Truncated.of(path));
        }
        Ok(Bytes::Mapped(Map::of(&file).map_err(failed)?))
    }

    /// Gives memory back that can be read from the file again ([`Map::release`]).
    pub(crate) fn release(&self) {
        if let Bytes::Mapped(map) = self {
            map.release();
        }
    }
}

impl Index {
    /// The root's record.
    pub(crate) const ROOT: u32 = 0;

    /// Opens an index, and verifies all of it.
    pub(crate) fn open(path: &Path, kind: Kind) -> Result<Index> {
        Index::verified(Bytes::map(path)?, kind).map_err(|flaw| flaw.of(path))
    }

    /// An index that was just built, or any bytes.
    pub(crate) fn of_bytes(bytes: Vec<u8>, kind: Kind) -> Result<Index, Flaw> {
        Index::verified(Bytes::Owned(bytes), kind)
    }

    fn verified(bytes: Bytes, kind: Kind) -> Result<Index, Flaw> {
        let header = Header::read(&bytes)?;
        let index = Index { bytes, header };
        verify::verify(&index)?;
        // All of it was read for that, and little of it is wanted at a time.
        index.release();
        if header.kind == kind {
            Ok(index)
        } else {
            Err(Flaw::Kind)
        }
    }

    /// Gives memory back that can be read from its file again.
    pub(crate) fn release(&self) {
        self.bytes.release();
    }

    /// Refuses an index that was made of other layers than these.
    pub(crate) fn check_stamps(&self, stamps: &[Stamp]) -> Result<(), Flaw> {
        let own = (0..self.header.layers as usize).map(|layer| self.stamp(layer));
        if own.eq(stamps.iter().copied()) {
            Ok(())
        } else {
            Err(Flaw::Stale)
        }
    }

    /// What tells a layer from others.
    pub(super) fn stamp(&self, layer: usize) -> Stamp {
        let start = Header::STAMPS + layer * STAMP;
        Stamp {
            ino: u64_at(&self.bytes, start),
            ctime: Timestamp {
                secs: i64_at(&self.bytes, start + 8),
                nanos: u32_at(&self.bytes, start + 16),
            },
        }
    }

    /// The whole index.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// The entry `name` of a directory.
    pub(crate) fn find(&self, dir: u32, name: &OsStr) -> Option<u32> {
        let Range { mut start, mut end } = self.children(dir);
        while start < end {
            let middle = start + (end - start) / 2;
            match self.name(middle).cmp(name) {
                std::cmp::Ordering::Less => start = middle + 1,
                std::cmp::Ordering::Greater => end = middle,
                std::cmp::Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    /// The entry at a path from the root.
    pub(crate) fn find_path(&self, path: &Path) -> Option<u32> {
        path.iter()
            .try_fold(Index::ROOT, |dir, name| self.find(dir, name))
    }

    /// The records of a directory's entries, in the order of their names.
    pub(crate) fn children(&self, dir: u32) -> Range<u32> {
        let record = self.record(dir);
        let first = u32_at(record, at::FIRST_CHILD);
        first..first.saturating_add(u32_at(record, at::CHILDREN))
    }

    /// The directory that holds an entry; the root holds itself.
    pub(crate) fn parent(&self, record: u32) -> u32 {
        u32_at(self.record(record), at::PARENT)
    }

    /// The name of an entry; the root's is empty.
    pub(crate) fn name(&self, record: u32) -> &OsStr {
        let record = self.record(record);
        self.heap(
            u32_at(record, at::NAME),
            u16_at(record, at::NAME_LEN).into(),
        )
    }

    /// The path of an entry from the root.
    pub(crate) fn path(&self, record: u32) -> PathBuf {
        let mut names = Vec::new();
        let mut at = record;
        while at != Index::ROOT {
            names.push(self.name(at));
            at = self.parent(at);
        }
        names.iter().rev().collect()
    }

    /// What an entry is.
    pub(crate) fn kind(&self, record: u32) -> EntryKind {
        let raw = self.record(record).get(at::KIND).copied();
        raw.and_then(kind_of_raw).unwrap_or(EntryKind::Whiteout)
    }

    /// The sort of file that an entry of an image is, where no whiteout is.
    pub(crate) fn file_kind(&self, record: u32) -> FileKind {
        match self.kind(record) {
            EntryKind::File(kind) => kind,
            EntryKind::Whiteout => FileKind::CharDevice,
        }
    }

    /// The inode number in the layer.
    pub(crate) fn ino(&self, record: u32) -> Ino {
        Ino(u64_at(self.record(record), at::INO))
    }

    /// Attributes; `ino` is the layer's own number.
    pub(crate) fn attr(&self, record: u32) -> Attr {
        let bytes = self.record(record);
        let time = |secs, nanos| Timestamp {
            secs: i64_at(bytes, secs),
            nanos: u32_at(bytes, nanos),
        };
        Attr {
            ino: Ino(u64_at(bytes, at::INO)),
            size: u64_at(bytes, at::SIZE),
            blocks: u64_at(bytes, at::BLOCKS),
            atime: time(at::ATIME, at::ATIME_NANOS),
            mtime: time(at::MTIME, at::MTIME_NANOS),
            ctime: time(at::CTIME, at::CTIME_NANOS),
            kind: self.file_kind(record),
            perm: u16_at(bytes, at::PERM),
            nlink: u32_at(bytes, at::NLINK),
            uid: u32_at(bytes, at::UID),
            gid: u32_at(bytes, at::GID),
            rdev: u64_at(bytes, at::RDEV),
            blksize: u32_at(bytes, at::BLKSIZE),
            cacheable: true,
        }
    }

    /// The names of an entry's xattrs.
    pub(crate) fn xattr_names(&self, record: u32) -> Vec<OsString> {
        let own = self.xattrs(record);
        own.map(|(name, _)| name.to_owned()).collect()
    }

    /// The value of an entry's xattr.
    pub(crate) fn xattr(&self, record: u32, name: &OsStr) -> Option<Vec<u8>> {
        let found = self.xattrs(record).find(|(own, _)| *own == name);
        found.map(|(_, value)| value.as_bytes().to_vec())
    }

    fn xattrs(&self, record: u32) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        let record = self.record(record);
        let first = u32_at(record, at::FIRST_XATTR);
        let count = u32::from(u16_at(record, at::XATTRS));
        (first..first.saturating_add(count)).map(|xattr| {
            let start = self.header.xattrs_at() + xattr as usize * XATTR;
            let field = |offset| u32_at(&self.bytes, start + offset);
            (
                self.heap(field(0), field(4)),
                self.heap(field(8), field(12)),
            )
        })
    }

    /// The target of a symlink, or of a layer's redirect.
    pub(crate) fn text(&self, record: u32) -> &OsStr {
        let record = self.record(record);
        self.heap(
            u32_at(record, at::TEXT),
            u16_at(record, at::TEXT_LEN).into(),
        )
    }

    /// How a directory or a file of a layer continues below.
    pub(crate) fn below(&self, record: u32) -> Below {
        match self.record(record).get(at::BELOW) {
            Some(&below::SAME_PATH) => Below::SamePath,
            Some(&below::REDIRECT) => Below::Redirect(self.text(record).into()),
            Some(&below::SIBLING) => Below::Sibling(self.text(record).to_owned()),
            _ => Below::Nothing,
        }
    }

    /// The layer of an image's entry; 0 is the topmost.
    pub(crate) fn layer(&self, record: u32) -> usize {
        u32_at(self.record(record), at::LAYER) as usize
    }

    /// The path of an image's entry in its layer, where that is not its path in the image.
    pub(crate) fn source(&self, record: u32) -> Option<PathBuf> {
        let place = u32_at(self.record(record), at::SOURCE);
        self.place(place).map(|(_, path)| path)
    }

    /// Where the data of an image's file are, if they are not where its attributes are.
    pub(crate) fn data(&self, record: u32) -> Option<(usize, PathBuf)> {
        self.place(u32_at(self.record(record), at::DATA))
    }

    /// A place by its number, which begins at 1: 0 is none.
    pub(super) fn place(&self, number: u32) -> Option<(usize, PathBuf)> {
        let index = number.checked_sub(1)?;
        let start = self.header.places_at() + index as usize * PLACE;
        let field = |offset| u32_at(&self.bytes, start + offset);
        let path = self.heap(field(4), field(8)).as_bytes().to_vec();
        Some((field(0) as usize, OsString::from_vec(path).into()))
    }

    /// The bytes of one record.
    pub(super) fn record(&self, number: u32) -> &[u8] {
        let start = self.header.records_at() + number as usize * RECORD;
        self.bytes.get(start..start + RECORD).unwrap_or_default()
    }

    fn heap(&self, start: u32, len: u32) -> &OsStr {
        let start = self.header.heap_at() + start as usize;
        let bytes = self.bytes.get(start..start + len as usize);
        OsStr::from_bytes(bytes.unwrap_or_default())
    }
}

/// The kind that a raw value stands for.
pub(super) fn kind_of_raw(raw: u8) -> Option<EntryKind> {
    let kind = match raw {
        1 => FileKind::Regular,
        2 => FileKind::Directory,
        3 => FileKind::Symlink,
        4 => FileKind::CharDevice,
        5 => FileKind::BlockDevice,
        6 => FileKind::Fifo,
        7 => FileKind::Socket,
        WHITEOUT => return Some(EntryKind::Whiteout),
        _ => return None,
    };
    Some(EntryKind::File(kind))
}

/// The raw value of a kind.
pub(super) fn raw_of_kind(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::Whiteout => WHITEOUT,
        EntryKind::File(FileKind::Regular) => 1,
        EntryKind::File(FileKind::Directory) => 2,
        EntryKind::File(FileKind::Symlink) => 3,
        EntryKind::File(FileKind::CharDevice) => 4,
        EntryKind::File(FileKind::BlockDevice) => 5,
        EntryKind::File(FileKind::Fifo) => 6,
        EntryKind::File(FileKind::Socket) => 7,
    }
}
