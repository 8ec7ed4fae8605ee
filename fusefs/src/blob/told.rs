//! An index and a chunk table of an ordinary gzip blob, as somebody else tells them.
//!
//! Each file is verified by itself when it is opened. What is looked for here is that the two belong
//! together and to this blob, so that whatever is wrong with them shows before a container does.
//! Whether they tell the truth about the blob only reading all of it can say. Until then they can't give a
//! container bytes that are not in the blob, nor anything that no archive could have had.

use std::collections::HashMap;
use std::path::Path;

use super::contents::stamp_of;
use super::digest::Digest;
use super::limits::{Cap, Limits};
use super::table::Table;
use super::{Compression, Flaw};
use crate::error::Result;
use crate::index::{Index, Kind};
use crate::layer::{Below, EntryKind};
use crate::marks;
use crate::types::{Attr, FileKind, Ino};

/// What an index and a table were held against.
const TOLD: &str = "an index that somebody else has made";

/// Looks through the index and the chunk table of a gzip blob with this digest and size in bytes. Answers
/// the attributes of the layer's root, and the bytes of its files.
pub fn check_told(
    index: &Path,
    table: &Path,
    blob: (Digest, u64),
    limits: &Limits,
) -> Result<Result<(Attr, u64), Flaw>> {
    let (digest, size) = blob;
    let index_path = index;
    let index = Index::open(index, Kind::Layer)?;
    let stamped = index.check_stamps(&[stamp_of(digest)]);
    stamped.map_err(|flaw| flaw.of(index_path))?;
    let table = Table::open(table, limits)?;
    Ok(check(&index, &table, size, limits))
}

fn check(index: &Index, table: &Table, size: u64, limits: &Limits) -> Result<(Attr, u64), Flaw> {
    check_table(table, size, limits)?;
    let mut told = Told {
        index,
        table,
        limits,
        blob_bytes: size,
        entries: 0,
        bytes: 0,
        known: HashMap::new(),
        files: 0,
    };
    told.check_entry(Index::ROOT)?;
    // Directories, with how many names and bytes the paths in them have before their own.
    let mut dirs = vec![(Index::ROOT, 0, 0)];
    while let Some((dir, names, bytes)) = dirs.pop() {
        for record in index.children(dir) {
            let (names, bytes) = told.check_path((names, bytes), index.name(record).len())?;
            told.check_entry(record)?;
            if index.kind(record) == EntryKind::File(FileKind::Directory) {
                // And a slash.
                dirs.push((record, names, bytes + 1));
            }
        }
    }
    if told.files != table.files().len() {
        return Err(whole("it has bytes of files that it does not have"));
    }
    Ok((index.attr(Index::ROOT), told.bytes))
}

/// Every chunk lies in the blob, at a place where inflating can begin.
fn check_table(table: &Table, size: u64, limits: &Limits) -> Result<(), Flaw> {
    if table.chunks() > limits.chunks {
        return Err(limits.exceeded(Cap::Chunks));
    }
    if table.compression() != Compression::Checkpoints || table.prefetch() != 0 {
        return Err(whole("it is one of another sort of blob"));
    }
    for number in 0..table.chunks() {
        let stretch = table.chunk(number).stretch;
        if stretch.end > size || table.checkpoint(stretch.start).is_none() {
            return Err(whole("a chunk is not where the blob can be read"));
        }
    }
    Ok(())
}

/// Entries, one after another.
struct Told<'t> {
    index: &'t Index,
    table: &'t Table,
    limits: &'t Limits,
    /// Bytes of the blob.
    blob_bytes: u64,
    entries: usize,
    /// Bytes of the regular files so far.
    bytes: u64,
    /// The first entry of each inode.
    known: HashMap<Ino, u32>,
    /// Regular files, each counted once.
    files: usize,
}

impl Told<'_> {
    /// How many names and bytes a path has, with a last name of so many bytes behind what it begins with.
    fn check_path(
        &self,
        (names, bytes): (usize, usize),
        name: usize,
    ) -> Result<(usize, usize), Flaw> {
        let (names, bytes) = (names + 1, bytes + name);
        let exceeded = if name > self.limits.name_bytes {
            Cap::Name
        } else if bytes > self.limits.path_bytes {
            Cap::Path
        } else if names > self.limits.depth {
            Cap::Depth
        } else {
            return Ok((names, bytes));
        };
        Err(self.limits.exceeded(exceeded))
    }

    /// An entry is one that an archive can have.
    fn check_entry(&mut self, record: u32) -> Result<(), Flaw> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(self.limits.exceeded(Cap::Entries));
        }
        self.check_marks(record)
            .map_err(|what| wrong(&self.index.path(record), what))?;
        let EntryKind::File(kind) = self.index.kind(record) else {
            return Ok(());
        };
        if let Some(first) = self.known.insert(self.index.ino(record), record) {
            // Hard links are several names of one file.
            let is_same = kind != FileKind::Directory
                && self.index.kind(first) == EntryKind::File(kind)
                && self.index.attr(first) == self.index.attr(record);
            return is_same
                .then_some(())
                .ok_or_else(|| wrong(&self.index.path(record), "its inode is another one's"));
        }
        if kind == FileKind::Regular {
            let length = self.index.attr(record).size;
            let found = self.table.find(self.index.ino(record));
            if found.is_none_or(|found| found.size != length) {
                return Err(wrong(
                    &self.index.path(record),
                    "its bytes are told otherwise",
                ));
            }
            self.files += 1;
            self.bytes = self.bytes.saturating_add(length);
            self.limits.check_bytes(self.bytes, Some(self.blob_bytes))?;
        }
        Ok(())
    }

    /// Nothing is said of the layers below but that a directory goes on there, and no xattr is one of
    /// those by which a union knows its own files.
    fn check_marks(&self, record: u32) -> Result<(), &'static str> {
        let is_dir = self.index.kind(record) == EntryKind::File(FileKind::Directory);
        match self.index.below(record) {
            Below::Nothing => {}
            Below::SamePath if is_dir => {}
            _ => return Err("it has a mark that no archive can have"),
        }
        let names = self.index.xattr_names(record);
        let mut bytes = 0;
        for name in &names {
            if marks::is_private(name) {
                return Err("it has an extended attribute that no archive may have");
            }
            let value = self.index.xattr(record, name);
            bytes += name.len() + value.map_or(0, |value| value.len());
        }
        let fits = bytes <= self.limits.xattr_bytes;
        fits.then_some(()).ok_or("too many extended attributes")
    }
}

fn wrong(path: &Path, what: &'static str) -> Flaw {
    Flaw::Entry {
        path: path.to_owned(),
        what,
    }
}

fn whole(what: &'static str) -> Flaw {
    wrong(Path::new(TOLD), what)
}

#[cfg(test)]
mod tests;
