//! What a blob holds: found out once, written down, and used from then on without the blob.

use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::checkpoints::{Checkpoint, Inflating, Places};
use super::digest::Digest;
use super::entry::{Chunk, Data, Told, What};
use super::footer::Toc;
use super::limits::{Cap, Limits};
use super::tar::Archive;
use super::tree::Tree;
use super::{Compression, Flaw, table, toc};
use crate::error::Result;
use crate::index::{Stamp, save};
use crate::types::{Attr, Timestamp};

/// Bytes of a chunk of an ordinary blob.
const CHUNK: usize = 1 << 20;
/// How hard it is tried to make what is repacked small: a disk writes slower than this compresses.
const REPACKED: i32 = 1;
/// Bytes of output between two checkpoints of an ordinary blob, at least: what is inflated in vain
/// for a small file, against 10 to 30 KiB that each costs in the table.
const APART: u64 = 1 << 20;
/// The most bytes of output that are inflated in vain for a chunk.
const IN_VAIN: u64 = 64 << 20;

/// zstd's error code for it, as its library returns it (`ZSTD_error_frameParameter_windowTooLarge`).
const WINDOW_TOO_LARGE: usize = 0usize.wrapping_sub(16);

/// The tree of a blob's layer, and where in the blob the bytes of its files are.
#[derive(Debug)]
pub struct Contents {
    tree: Tree,
    compression: Compression,
    checkpoints: Vec<Checkpoint>,
    prefetch: u64,
    /// What tells this blob from others.
    identity: Digest,
}

/// What an ordinary blob turned out to be. Whoever asked has to hold the digests against those of
/// the image's manifest and configuration before the contents are used.
#[derive(Debug)]
pub struct Ordinary {
    /// What it holds.
    pub contents: Contents,
    /// The digest of the blob.
    pub digest: Digest,
    /// The digest of the archive that it is uncompressed: the layer's diff ID.
    pub diff_id: Digest,
}

impl Contents {
    /// What a table of contents tells.
    pub fn of_toc(toc: &Toc, limits: &Limits) -> Result<Contents, Flaw> {
        let told = toc::read(toc, limits)?;
        let tree = Tree::new(told.entries, limits)?;
        limits.check_bytes(tree.bytes(), Some(toc.data_end))?;
        Ok(Contents {
            tree,
            compression: toc.compression,
            checkpoints: Vec::new(),
            prefetch: told.prefetch,
            identity: Digest::of(&toc.json),
        })
    }

    /// What an ordinary gzip blob holds, by reading all of it once.
    pub fn of_gzip(blob: impl Read, limits: &Limits) -> Result<Ordinary, Flaw> {
        let failed = |source| Flaw::Compression {
            what: "the blob",
            source,
        };
        let inflating = Inflating::new(Hashing::of(blob), APART).map_err(failed)?;
        let capped = Capped::of(inflating, limits, |inflating| Some(inflating.used()));
        let mut archive = Archive::new(Hashing::of(capped), limits);
        let mut entries = read_entries(&mut archive, limits, |_, _| Ok(()))?;
        let (capped, diff_id, _) = archive.finish().finish();
        let (blob, places) = capped.from.finish();
        let (_, digest, _) = blob.finish();
        for told in &mut entries {
            if let What::Regular(data) = &mut told.what {
                for chunk in &mut data.chunks {
                    place(chunk, &places)?;
                }
            }
        }
        let contents = Contents {
            tree: Tree::new(entries, limits)?,
            compression: Compression::Checkpoints,
            checkpoints: places.checkpoints,
            prefetch: 0,
            identity: digest,
        };
        Ok(Ordinary {
            contents,
            digest,
            diff_id,
        })
    }

    /// What an ordinary zstd blob holds, by reading all of it once and writing the bytes of its files
    /// to `to`, in zstd frames of their own: such a blob can't be read from the middle. The answer's
    /// contents are those of what was written.
    pub fn of_zstd(blob: impl Read, to: impl Write, limits: &Limits) -> Result<Ordinary, Flaw> {
        let archive = Unpacking::new(Hashing::of(blob), limits).map_err(Flaw::Source)?;
        let archive = Capped::of(archive, limits, |archive| {
            Some(archive.decoder.get_ref().get_ref().length)
        });
        let (tree, archive, diff_id) = repack(archive, to, limits)?;
        let blob = archive.from.decoder.finish().into_inner();
        let (_, digest, _) = blob.finish();
        Ok(Ordinary {
            contents: Contents::repacked(tree, digest),
            digest,
            diff_id,
        })
    }

    /// The same of a blob that is the archive itself.
    pub fn of_tar(blob: impl Read, to: impl Write, limits: &Limits) -> Result<Ordinary, Flaw> {
        let archive = Capped::of(blob, limits, |_| None);
        let (tree, _, digest) = repack(archive, to, limits)?;
        Ok(Ordinary {
            contents: Contents::repacked(tree, digest),
            digest,
            diff_id: digest,
        })
    }

    fn repacked(tree: Tree, identity: Digest) -> Contents {
        Contents {
            tree,
            compression: Compression::Zstd,
            checkpoints: Vec::new(),
            prefetch: 0,
            identity,
        }
    }

    /// The bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        self.tree.bytes()
    }

    /// The attributes of the layer's root.
    pub fn root(&self) -> Option<Attr> {
        self.tree.root()
    }

    /// The directories that the blob has files in, but no entry for. Where a layer below has a
    /// symlink at such a path, unpacking would follow it: then the layer has to be unpacked.
    pub fn implied(&self) -> Vec<PathBuf> {
        self.tree.implied()
    }

    /// Writes down all of it: the layer's index, and the table of its chunks.
    pub fn save(&self, index: &Path, table: &Path) -> Result<()> {
        let (index_bytes, table_bytes) = self.bytes()?;
        save(table, &table_bytes)?;
        save(index, &index_bytes)
    }

    /// What [`Self::save`] writes: the bytes of the index, and those of the table.
    pub fn to_bytes(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let bytes = self.bytes();
        bytes.map_err(|flaw| flaw.of(Path::new("an index that is to be shared")))
    }

    /// The layer's index, and the table of its chunks.
    pub(crate) fn bytes(&self) -> Result<(Vec<u8>, Vec<u8>), crate::index::Flaw> {
        let files = self.tree.files().map(|(ino, data)| {
            let only = data.chunks.first().map(|chunk| chunk.digest);
            let digest = data.digest.or(only).unwrap_or_else(|| Digest::of(b""));
            (ino, digest, data)
        });
        let table = table::build(files, &self.checkpoints, self.compression, self.prefetch)?;
        Ok((self.tree.index(stamp_of(self.identity))?, table))
    }
}

/// A blob's stamp in its index. No directory has one with a time so far away.
pub(super) fn stamp_of(identity: Digest) -> Stamp {
    let (ino, rest) = identity.as_bytes().split_at(8);
    let number = |bytes: &[u8]| bytes.first_chunk().copied().map_or(0, u64::from_le_bytes);
    Stamp {
        ino: number(ino),
        ctime: Timestamp {
            secs: number(rest).cast_signed(),
            nanos: 0,
        },
    }
}

/// Reads an archive to its end, and writes the bytes of its files to `to`, packed anew. Answers what
/// it read from, and the digest of all that was read.
fn repack<R: Read>(
    archive: R,
    mut to: impl Write,
    limits: &Limits,
) -> Result<(Tree, R, Digest), Flaw> {
    let mut archive = Archive::new(Hashing::of(archive), limits);
    let mut end = 0;
    let entries = read_entries(&mut archive, limits, |chunk, bytes| {
        let frame = zstd::bulk::compress(bytes, REPACKED).map_err(Flaw::Source)?;
        to.write_all(&frame).map_err(Flaw::Source)?;
        chunk.stretch = end..end + frame.len() as u64;
        end = chunk.stretch.end;
        Ok(())
    })?;
    to.flush().map_err(Flaw::Source)?;
    let (archive, diff_id, _) = archive.finish().finish();
    Ok((Tree::new(entries, limits)?, archive, diff_id))
}

/// Reads all entries of an archive; `show` sees each chunk of a file with its bytes.
fn read_entries<R: Read>(
    archive: &mut Archive<R>,
    limits: &Limits,
    mut show: impl FnMut(&mut Chunk, &[u8]) -> Result<(), Flaw>,
) -> Result<Vec<Told>, Flaw> {
    let mut entries = Vec::new();
    let mut chunks = 0;
    while let Some(mut told) = archive.next_entry()? {
        if let What::Regular(data) = &mut told.what {
            read_data(archive, data, CHUNK, |chunk, bytes| {
                chunks += 1;
                if chunks > limits.chunks {
                    return Err(limits.exceeded(Cap::Chunks));
                }
                show(chunk, bytes)
            })?;
        }
        entries.push(told);
    }
    Ok(entries)
}

/// Reads the bytes of a file, and notes its chunks of `most` bytes, which `show` sees with their
/// bytes: for now, with their places in the archive.
pub(super) fn read_data<R: Read>(
    archive: &mut Archive<R>,
    data: &mut Data,
    most: usize,
    mut show: impl FnMut(&mut Chunk, &[u8]) -> Result<(), Flaw>,
) -> Result<(), Flaw> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; most.min(usize::try_from(data.size).unwrap_or(most))];
    let mut offset = 0;
    while offset < data.size {
        let at = archive.at();
        let mut len = 0;
        while let Some(room) = buffer.get_mut(len..).filter(|room| !room.is_empty()) {
            match archive.read(room)? {
                0 => break,
                count => len += count,
            }
        }
        let bytes = buffer.get(..len).unwrap_or_default();
        hash.update(bytes);
        let mut chunk = Chunk {
            offset,
            len: len as u64,
            digest: Digest::of(bytes),
            stretch: at..at + len as u64,
            skip: 0,
        };
        show(&mut chunk, bytes)?;
        data.chunks.push(chunk);
        offset += len as u64;
    }
    data.digest = Some(Digest::from(hash));
    Ok(())
}

/// Says of a chunk, of which the place in the archive is known, where it is in the blob.
fn place(chunk: &mut Chunk, places: &Places) -> Result<(), Flaw> {
    let Range { start, end } = chunk.stretch;
    if let (Some(point), Some(end)) = (places.before(start), places.end(end)) {
        chunk.stretch = point.start()..end;
        chunk.skip = start - point.output;
    }
    // A block of deflate may be as long as its maker likes.
    if chunk.skip > IN_VAIN {
        return Err(Flaw::Compression {
            what: "the blob from its middle",
            source: io::Error::other("it has blocks that are too long"),
        });
    }
    Ok(())
}

/// A reader that ends with an error when more comes out of a blob than is allowed.
struct Capped<'l, R, F> {
    from: R,
    limits: &'l Limits,
    /// How many bytes of the blob were used, if that says anything.
    used: F,
    bytes: u64,
}

impl<'l, R, F: Fn(&R) -> Option<u64>> Capped<'l, R, F> {
    fn of(from: R, limits: &'l Limits, used: F) -> Capped<'l, R, F> {
        Capped {
            from,
            limits,
            used,
            bytes: 0,
        }
    }
}

impl<R: Read, F: Fn(&R) -> Option<u64>> Read for Capped<'_, R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.bytes += count as u64;
        let checked = self.limits.check_bytes(self.bytes, (self.used)(&self.from));
        checked.map_err(io::Error::other)?;
        Ok(count)
    }
}

/// A reader of zstd frames.
struct Unpacking<'l, R: Read> {
    decoder: zstd::Decoder<'static, BufReader<R>>,
    limits: &'l Limits,
}

impl<'l, R: Read> Unpacking<'l, R> {
    fn new(from: R, limits: &'l Limits) -> io::Result<Unpacking<'l, R>> {
        let mut decoder = zstd::Decoder::new(from)?;
        decoder.window_log_max(limits.window_log)?;
        Ok(Unpacking { decoder, limits })
    }
}

impl<R: Read> Read for Unpacking<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // The library tells its errors by their texts alone.
        let is_window = |error: &io::Error| {
            error.to_string() == zstd::zstd_safe::get_error_name(WINDOW_TOO_LARGE)
        };
        self.decoder.read(buffer).map_err(|error| {
            if is_window(&error) {
                io::Error::other(self.limits.exceeded(Cap::Window))
            } else {
                error
            }
        })
    }
}

/// A reader that hashes what is read through it.
pub(super) struct Hashing<R> {
    from: R,
    hash: Sha256,
    length: u64,
}

impl<R> Hashing<R> {
    pub(super) fn of(from: R) -> Hashing<R> {
        Hashing {
            from,
            hash: Sha256::new(),
            length: 0,
        }
    }

    /// What it reads from, and the digest and the length of what was read.
    pub(super) fn finish(self) -> (R, Digest, u64) {
        (self.from, Digest::from(self.hash), self.length)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.hash.update(buffer.get(..count).unwrap_or_default());
        self.length += count as u64;
        Ok(count)
    }
}
