//! The chunk table: where in a blob the bytes of its files are, in one file that is mapped into
//! memory.
//!
//! It stands beside the layer's index, which tells everything else, and is written, checked and
//! replaced as that is (`crate::index`). A file is known by its inode number there. All numbers are
//! little endian:
//!
//! | section | bytes | fields |
//! | --- | --- | --- |
//! | header | 64 | magic `LAMINACT`, version (u32), compression (u32), length (u64), checksum (u64), numbers of files, chunks and checkpoints (u32), 0 (u32), bytes of the heap (u64), end of what is to be fetched first (u64) |
//! | files | 48 each | inode number (u64), first chunk (u32), number of chunks (u32), digest (32) |
//! | chunks | 72 each | offset in the file, length, start and end in the blob, bytes to skip (u64 each), digest (32) |
//! | checkpoints | 32 each | start in the blob, place in the output (u64), window in the heap: offset and length (u32), bits (u64) |
//! | heap | | windows, compressed by zstd |

use std::ops::Range;
use std::path::Path;

use super::Compression;
use super::checkpoints::Checkpoint;
use super::digest::Digest;
use super::entry::{Chunk, Data};
use super::limits::Limits;
use crate::error::Result;
use crate::index::{Bytes, CHECKSUM, Flaw, checksum, seal, u32_at, u64_at};
use crate::types::Ino;

const MAGIC: [u8; 8] = *b"LAMINACT";
const VERSION: u32 = 1;
const HEADER: usize = 64;
const FILE: usize = 48;
const CHUNK: usize = 72;
const CHECKPOINT: usize = 32;

/// The table of one blob. All of it was verified when it was opened.
#[derive(Debug)]
pub(crate) struct Table {
    bytes: Bytes,
    compression: Compression,
    files: usize,
    chunks: usize,
    checkpoints: usize,
    heap: usize,
    prefetch: u64,
}

/// A file in a table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Found {
    /// Its number.
    pub(crate) number: usize,
    /// The digest of all of it.
    pub(crate) digest: Digest,
    /// Its length in bytes.
    pub(crate) size: u64,
    /// Its chunks, in order.
    pub(crate) chunks: Range<usize>,
}

impl Table {
    /// Opens a table, and verifies all of it.
    pub(crate) fn open(path: &Path, limits: &Limits) -> Result<Table> {
        Table::verified(Bytes::map(path)?, limits).map_err(|flaw| flaw.of(path))
    }

    /// A table that was just built, or any bytes.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of_bytes(bytes: Vec<u8>, limits: &Limits) -> Result<Table, Flaw> {
        Table::verified(Bytes::Owned(bytes), limits)
    }

    /// How the blob is compressed.
    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    /// Up to where in the blob the files are that should be fetched first; 0: none.
    pub(crate) fn prefetch(&self) -> u64 {
        self.prefetch
    }

    /// The numbers of all files.
    pub(crate) fn files(&self) -> Range<usize> {
        0..self.files
    }

    /// How many chunks there are.
    pub(crate) fn chunks(&self) -> usize {
        self.chunks
    }

    /// A file by its inode number.
    pub(crate) fn find(&self, ino: Ino) -> Option<Found> {
        let mut range = self.files();
        while !range.is_empty() {
            let middle = range.start + range.len() / 2;
            match u64_at(&self.bytes, Table::file_at(middle)).cmp(&ino.0) {
                std::cmp::Ordering::Less => range.start = middle + 1,
                std::cmp::Ordering::Greater => range.end = middle,
                std::cmp::Ordering::Equal => return Some(self.file(middle)),
            }
        }
        None
    }

    /// A file by its number.
    pub(crate) fn file(&self, number: usize) -> Found {
        let at = Table::file_at(number);
        let first = u32_at(&self.bytes, at + 8) as usize;
        let chunks = first..first + u32_at(&self.bytes, at + 12) as usize;
        let size = chunks
            .end
            .checked_sub(1)
            .filter(|last| chunks.contains(last));
        Found {
            number,
            digest: self.digest(at + 16),
            size: size.map_or(0, |last| {
                let last = self.chunk(last);
                last.offset + last.len
            }),
            chunks,
        }
    }

    /// A chunk by its number.
    pub(crate) fn chunk(&self, number: usize) -> Chunk {
        let at = self.chunk_at(number);
        let field = |field: usize| u64_at(&self.bytes, at + 8 * field);
        Chunk {
            offset: field(0),
            len: field(1),
            stretch: field(2)..field(3),
            skip: field(4),
            digest: self.digest(at + 40),
        }
    }

    /// The checkpoint whose bytes begin here in the blob.
    pub(crate) fn checkpoint(&self, start: u64) -> Option<Checkpoint> {
        let mut range = 0..self.checkpoints;
        while !range.is_empty() {
            let middle = range.start + range.len() / 2;
            let at = self.checkpoint_at(middle);
            match u64_at(&self.bytes, at).cmp(&start) {
                std::cmp::Ordering::Less => range.start = middle + 1,
                std::cmp::Ordering::Greater => range.end = middle,
                std::cmp::Ordering::Equal => {
                    let bits = u64_at(&self.bytes, at + 24);
                    let window =
                        self.heap(u32_at(&self.bytes, at + 16), u32_at(&self.bytes, at + 20));
                    return Some(Checkpoint {
                        blob: start + u64::from(bits > 0),
                        bits: u8::try_from(bits).ok()?,
                        output: u64_at(&self.bytes, at + 8),
                        window: window
                            .filter(|window| !window.is_empty())
                            .map(<[u8]>::to_vec),
                    });
                }
            }
        }
        None
    }

    fn verified(bytes: Bytes, limits: &Limits) -> Result<Table, Flaw> {
        if bytes.len() < HEADER {
            return Err(Flaw::Truncated);
        }
        if bytes[..8] != MAGIC {
            return Err(Flaw::Magic);
        }
        if u32_at(&bytes, 8) != VERSION {
            return Err(Flaw::Version(u32_at(&bytes, 8)));
        }
        if u64_at(&bytes, 16) != bytes.len() as u64 {
            return Err(Flaw::Truncated);
        }
        if u64_at(&bytes, CHECKSUM.start) != checksum(&bytes) {
            return Err(Flaw::Checksum);
        }
        let count = |at| u32_at(&bytes, at) as usize;
        let table = Table {
            compression: compression(u32_at(&bytes, 12)).ok_or(Flaw::Header)?,
            files: count(32),
            chunks: count(36),
            checkpoints: count(40),
            heap: usize::try_from(u64_at(&bytes, 48)).map_err(|_| Flaw::Header)?,
            prefetch: u64_at(&bytes, 56),
            bytes,
        };
        let fits = table.heap_at().checked_add(table.heap) == Some(table.bytes.len());
        if !fits || u32_at(&table.bytes, 44) != 0 {
            return Err(Flaw::Header);
        }
        table.verify(limits)?;
        // All of it was read for that, and little of it is wanted at a time.
        table.bytes.release();
        Ok(table)
    }

    /// Holds every record against the others: files and their chunks follow each other, and the
    /// chunks of a file are all of it.
    fn verify(&self, limits: &Limits) -> Result<(), Flaw> {
        let (mut next_chunk, mut ino) = (0, 0);
        for number in self.files() {
            let at = Table::file_at(number);
            let bad = || Flaw::Table {
                table: "file",
                entry: u32::try_from(number).unwrap_or(u32::MAX),
            };
            let (own, first) = (
                u64_at(&self.bytes, at),
                u32_at(&self.bytes, at + 8) as usize,
            );
            let chunks = first..first + u32_at(&self.bytes, at + 12) as usize;
            if own <= ino || first != next_chunk || chunks.end > self.chunks {
                return Err(bad());
            }
            (ino, next_chunk) = (own, chunks.end);
            let mut offset = 0u64;
            for chunk in chunks.map(|chunk| self.chunk(chunk)) {
                let end = offset.checked_add(chunk.len).ok_or_else(bad)?;
                let Range { start, end: behind } = chunk.stretch;
                let is_sound = chunk.offset == offset
                    && (1..=limits.chunk_bytes).contains(&chunk.len)
                    && start < behind
                    && chunk.skip <= limits.chunk_bytes;
                if !is_sound {
                    return Err(bad());
                }
                offset = end;
            }
        }
        if next_chunk != self.chunks {
            return Err(Flaw::Header);
        }
        let mut before = None;
        for number in 0..self.checkpoints {
            let at = self.checkpoint_at(number);
            let start = u64_at(&self.bytes, at);
            let window = self.heap(u32_at(&self.bytes, at + 16), u32_at(&self.bytes, at + 20));
            let bits = u64_at(&self.bytes, at + 24);
            if before.is_some_and(|before| before >= start) || window.is_none() || bits > 7 {
                return Err(Flaw::Table {
                    table: "checkpoint",
                    entry: u32::try_from(number).unwrap_or(u32::MAX),
                });
            }
            before = Some(start);
        }
        Ok(())
    }

    fn digest(&self, at: usize) -> Digest {
        let bytes: Option<&[u8; 32]> = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        Digest::from(bytes.copied().unwrap_or_default())
    }

    fn heap(&self, start: u32, len: u32) -> Option<&[u8]> {
        let heap = self.bytes.get(self.heap_at()..)?;
        heap.get(start as usize..(start as usize).checked_add(len as usize)?)
    }

    fn file_at(number: usize) -> usize {
        HEADER + number * FILE
    }

    fn chunk_at(&self, number: usize) -> usize {
        Table::file_at(self.files) + number * CHUNK
    }

    fn checkpoint_at(&self, number: usize) -> usize {
        self.chunk_at(self.chunks) + number * CHECKPOINT
    }

    fn heap_at(&self) -> usize {
        self.checkpoint_at(self.checkpoints)
    }
}

/// Builds a table: all files in the order of their inode numbers, each with the digest of all of it,
/// and the checkpoints of a blob that is read by such.
pub(crate) fn build<'d>(
    files: impl IntoIterator<Item = (Ino, Digest, &'d Data)>,
    checkpoints: &[Checkpoint],
    compression: Compression,
    prefetch: u64,
) -> Result<Vec<u8>, Flaw> {
    let count = |length: usize| u32::try_from(length).map_err(|_| Flaw::TooLarge);
    let (mut table, mut chunks) = (Vec::new(), Vec::new());
    let (mut points, mut heap) = (Vec::new(), Vec::new());
    for (ino, digest, data) in files {
        table.extend_from_slice(&ino.0.to_le_bytes());
        table.extend_from_slice(&count(chunks.len() / CHUNK)?.to_le_bytes());
        table.extend_from_slice(&count(data.chunks.len())?.to_le_bytes());
        table.extend_from_slice(digest.as_bytes());
        for chunk in &data.chunks {
            let Range { start, end } = chunk.stretch;
            for field in [chunk.offset, chunk.len, start, end, chunk.skip] {
                chunks.extend_from_slice(&field.to_le_bytes());
            }
            chunks.extend_from_slice(chunk.digest.as_bytes());
        }
    }
    for point in checkpoints {
        let window = point.window.as_deref().unwrap_or_default();
        for field in [point.start(), point.output] {
            points.extend_from_slice(&field.to_le_bytes());
        }
        for field in [count(heap.len())?, count(window.len())?] {
            points.extend_from_slice(&field.to_le_bytes());
        }
        points.extend_from_slice(&u64::from(point.bits).to_le_bytes());
        heap.extend_from_slice(window);
    }
    let counts = [
        count(table.len() / FILE)?,
        count(chunks.len() / CHUNK)?,
        count(checkpoints.len())?,
        0,
    ];
    let sections = [table, chunks, points];
    let length = HEADER + sections.iter().map(Vec::len).sum::<usize>() + heap.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&raw_of(compression).to_le_bytes());
    bytes.extend_from_slice(&(length as u64).to_le_bytes());
    bytes.extend_from_slice(&0u64.to_le_bytes());
    for count in counts {
        bytes.extend_from_slice(&count.to_le_bytes());
    }
    bytes.extend_from_slice(&(heap.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&prefetch.to_le_bytes());
    for section in sections {
        bytes.extend_from_slice(&section);
    }
    bytes.extend_from_slice(&heap);
    seal(&mut bytes);
    Ok(bytes)
}

fn raw_of(compression: Compression) -> u32 {
    match compression {
        Compression::Gzip => 1,
        Compression::Zstd => 2,
        Compression::Checkpoints => 3,
    }
}

fn compression(raw: u32) -> Option<Compression> {
    match raw {
        1 => Some(Compression::Gzip),
        2 => Some(Compression::Zstd),
        3 => Some(Compression::Checkpoints),
        _ => None,
    }
}

/// Gives any bytes the checksum that fits, and asks a table of them everything. Whether it is one.
#[cfg(any(test, fuzzing))]
pub(crate) fn seal_and_ask(bytes: &[u8], limits: &Limits) -> bool {
    let mut bytes = bytes.to_vec();
    seal(&mut bytes);
    let Ok(table) = Table::of_bytes(bytes, limits) else {
        return false;
    };
    for number in table.files() {
        let file = table.file(number);
        let chunks = file.chunks.clone().map(|chunk| table.chunk(chunk));
        let mut end = 0;
        for chunk in chunks {
            assert_eq!(chunk.offset, end, "chunks follow each other");
            end += chunk.len;
            if let Some(point) = table.checkpoint(chunk.stretch.start) {
                assert!(point.bits < 8 && point.start() == chunk.stretch.start);
            }
        }
        assert_eq!(file.size, end);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(offset: u64, len: u64, start: u64) -> Chunk {
        Chunk {
            offset,
            len,
            digest: Digest::of(&[7]),
            stretch: start..start + 5,
            skip: 3,
        }
    }

    fn data(chunks: Vec<Chunk>) -> Data {
        Data {
            size: chunks.iter().map(|chunk| chunk.len).sum(),
            digest: None,
            chunks,
        }
    }

    fn bytes(files: &[(u64, &Data)], checkpoints: &[Checkpoint]) -> Vec<u8> {
        let files = files
            .iter()
            .map(|(ino, data)| (Ino(*ino), Digest::of(b"x"), *data));
        build(files, checkpoints, Compression::Checkpoints, 99).unwrap()
    }

    fn read(bytes: Vec<u8>) -> Result<Table, Flaw> {
        Table::of_bytes(bytes, &Limits::default())
    }

    fn checkpoints() -> [Checkpoint; 2] {
        let first = Checkpoint {
            blob: 0,
            bits: 0,
            output: 0,
            window: None,
        };
        let second = Checkpoint {
            blob: 100,
            bits: 5,
            output: 1000,
            window: Some(b"window".to_vec()),
        };
        [first, second]
    }

    #[test]
    fn what_is_written_is_read() {
        let (one, none) = (
            data(vec![chunk(0, 10, 50), chunk(10, 20, 60)]),
            data(vec![]),
        );
        let two = data(vec![chunk(0, 1, 0)]);
        let points = checkpoints();
        let table = read(bytes(&[(2, &one), (5, &none), (9, &two)], &points)).unwrap();
        assert_eq!(table.compression(), Compression::Checkpoints);
        assert_eq!(table.prefetch(), 99);
        assert_eq!(table.files().len(), 3);
        for (ino, data) in [(2, &one), (5, &none), (9, &two)] {
            let found = table.find(Ino(ino)).unwrap();
            assert_eq!((found.digest, found.size), (Digest::of(b"x"), data.size));
            let chunks: Vec<_> = found.chunks.map(|chunk| table.chunk(chunk)).collect();
            assert_eq!(chunks, data.chunks);
        }
        for ino in [0, 3, 10] {
            assert_eq!(table.find(Ino(ino)), None);
        }
        assert_eq!(table.checkpoint(0).as_ref(), Some(&points[0]));
        assert_eq!(table.checkpoint(99).as_ref(), Some(&points[1]));
        assert_eq!(table.checkpoint(100), None);
        read(bytes(&[], &[])).expect("nothing");
    }

    #[test]
    fn it_is_kept_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        let one = data(vec![chunk(0, 10, 50)]);
        crate::index::save(&path, &bytes(&[(2, &one)], &[])).unwrap();
        let table = Table::open(&path, &Limits::default()).unwrap();
        assert_eq!(table.find(Ino(2)).unwrap().size, 10);
        std::fs::write(&path, "").unwrap();
        Table::open(&path, &Limits::default()).unwrap_err();
    }

    #[test]
    fn damage_is_found() {
        let one = data(vec![chunk(0, 10, 50), chunk(10, 20, 60)]);
        let whole = bytes(&[(2, &one), (3, &one)], &checkpoints());
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            read(damaged).expect_err("a damaged byte");
            read(whole[..at].to_vec()).expect_err("cut off");
        }
        // What a checksum does not find, because somebody made it fit.
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            seal_and_ask(&changed, &Limits::default());
        }
    }

    #[test]
    fn files_that_make_no_sense_are_refused() {
        let sound = data(vec![chunk(0, 10, 50)]);
        read(bytes(&[(2, &sound)], &[])).expect("sound");
        for (chunks, what) in [
            (vec![chunk(1, 10, 50)], "a gap at the beginning"),
            (vec![chunk(0, 10, 50), chunk(11, 1, 60)], "a gap"),
            (vec![chunk(0, 10, 50), chunk(9, 1, 60)], "an overlap"),
            (vec![chunk(0, 0, 50)], "an empty chunk"),
            (vec![chunk(0, 1 << 40, 50)], "a huge chunk"),
        ] {
            let odd = Data {
                size: 0,
                digest: None,
                chunks,
            };
            read(bytes(&[(2, &odd)], &[])).expect_err(what);
        }
        read(bytes(&[(2, &sound), (2, &sound)], &[])).expect_err("an inode twice");
        read(bytes(&[(3, &sound), (2, &sound)], &[])).expect_err("inodes out of order");
        let [first, second] = checkpoints();
        read(bytes(&[], &[second.clone(), first])).expect_err("checkpoints out of order");
        let odd = Checkpoint { bits: 8, ..second };
        read(bytes(&[], &[odd])).expect_err("bits that can't be");
    }
}
