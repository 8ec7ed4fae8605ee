//! A blob read from its beginning to its end: its files get into the cache, and whether it is what its
//! image says is known afterwards.
//!
//! ```text
//! whoever fetches → raw bytes → [hash, decompress, hash] → blocks → [read as an archive, hash and
//!                               a thread of its own                  write files] the caller's thread
//! ```
//!
//! The blocks are few at a time, so that neither side runs far ahead. Of two things nothing is believed
//! before the last byte: that the bytes are the blob, and that the blob is the layer. A file gets into
//! the cache as soon as it has the digest that it should have, as ever.
//!
//! Nobody waits for this: a file that somebody wants meanwhile is fetched by itself, and one that is
//! being fetched so is only hashed here.

use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use super::{Files, Found, Role};
use crate::blob::compare::compare;
use crate::blob::digest::Digest;
use crate::blob::entry::What;
use crate::blob::tar::Archive;
use crate::blob::tree::{Tree, clean};
use crate::blob::{Compression, Flaw, toc};
use crate::error::{Error, Result};
use crate::index::{BlobLayer, Index};

/// Bytes of a block of the archive.
const BLOCK: usize = 256 << 10;
/// So many blocks may wait to be read.
const BLOCKS: usize = 8;
/// Bytes of the blob that are decompressed at a time.
const INPUT: usize = 128 << 10;
/// The largest window that a zstd blob may ask for, as a power of two: 128 MiB.
const WINDOW_LOG: u32 = 27;

/// What is said of a layer's blob, by its image for the most part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Promised {
    /// The digest of the blob, by the manifest.
    pub digest: Digest,
    /// The digest of the archive in it, by the configuration: the diff ID.
    pub diff_id: Digest,
    /// The digest of the directories without an entry, by whoever told of the layer; `None`: it was not
    /// noted.
    pub implied: Option<Digest>,
}

/// What a whole blob turned out to be.
#[derive(Debug)]
pub enum Whole {
    /// What its image says, and the layer is served as the archive says.
    Right,
    /// What came is not the blob, but something with this digest: the registry, or the way from there,
    /// may be to blame, and of the blob nothing is known.
    OtherBlob(Digest),
    /// It is the blob, and something in it is not what the image or its table of contents says.
    Lie(Flaw),
}

/// Why an archive was not read to its end.
enum Broken {
    /// By what it is.
    Lie(Flaw),
    /// By something on this host.
    Here(Error),
}

impl From<Flaw> for Broken {
    fn from(flaw: Flaw) -> Broken {
        Broken::Lie(flaw)
    }
}

impl Files {
    /// Reads all of the blob, keeps the files that are not here, and holds all of it against what was
    /// told of it: by its image, and by `layer`, the layer with these files. Bytes that can't be had
    /// are an error, and so is what keeps files from being written.
    pub fn read_whole(
        &self,
        raw: impl Read + Send,
        promised: &Promised,
        layer: &BlobLayer,
    ) -> Result<Whole> {
        let is_over = AtomicBool::new(false);
        let raw = Raw {
            from: raw,
            hash: Sha256::new(),
            failed: None,
            is_over: &is_over,
            fetched: &self.counters.fetched,
        };
        let compression = self.table.compression();
        let (sender, receiver) = sync_channel(BLOCKS);
        let (read, raw) = thread::scope(|scope| {
            let unpacking = thread::Builder::new()
                .name("lamina-unpack".to_owned())
                .spawn_scoped(scope, move || decompress(raw, compression, &sender))?;
            let read = self.read_archive(Blocks::of(receiver), layer.index());
            if matches!(read, Err(Broken::Here(_))) {
                is_over.store(true, Ordering::Relaxed);
            }
            let raw = unpacking.join();
            Ok::<_, Error>((read, raw))
        })?;
        let read = match read {
            Err(Broken::Here(error)) => return Err(error),
            Err(Broken::Lie(flaw)) => Err(flaw),
            Ok(read) => Ok(read),
        };
        let raw = raw.unwrap_or_else(|_| Err(io::Error::other("the thread that unpacks it died")));
        let (digest, diff_id) = raw.map_err(|error| self.failed(Flaw::Source(error).into()))?;
        if digest != promised.digest {
            return Ok(Whole::OtherBlob(digest));
        }
        let tree = match read {
            Ok(tree) => tree,
            Err(flaw) => return Ok(Whole::Lie(flaw)),
        };
        if diff_id != promised.diff_id {
            return Ok(Whole::Lie(Flaw::Digest {
                what: "the archive in the blob",
                found: diff_id,
                wanted: promised.diff_id,
            }));
        }
        let difference = compare(layer.index(), &self.table, promised.implied, &tree)?;
        Ok(difference.map_or(Whole::Right, Whole::Lie))
    }

    /// Reads the archive to its end, and keeps its files. Answers its tree.
    fn read_archive(&self, blocks: Blocks, index: &Index) -> Result<Tree, Broken> {
        let mut archive = Archive::new(blocks, &self.limits);
        let mut entries = Vec::new();
        let mut buffer = vec![0; BLOCK];
        while let Some(mut told) = archive.next_entry()? {
            if self.table.compression() == Compression::Gzip
                && toc::is_of_format(told.name.as_encoded_bytes())
            {
                continue;
            }
            if let What::Regular(data) = &mut told.what {
                let found = clean(&told.name, &self.limits).ok().and_then(|parts| {
                    let path: PathBuf = parts.iter().map(|part| as_path(part)).collect();
                    self.table.find(index.ino(index.find_path(&path)?))
                });
                let found = found.filter(|found| found.size == data.size);
                let digest = match found {
                    Some(found) if self.is_wanted(&found).map_err(Broken::Here)? => {
                        self.keep(&mut archive, &found, &mut buffer)?
                    }
                    _ => hash(&mut archive, &mut buffer)?,
                };
                data.digest = Some(digest);
            }
            entries.push(told);
        }
        Ok(Tree::new(entries, &self.limits)?)
    }

    /// Whether a file is not here, and nobody fetches it.
    fn is_wanted(&self, found: &Found) -> Result<bool> {
        Ok(!self.flights.is_under_way(found.digest) && !self.cache.holds_file(found.digest)?)
    }

    /// Writes the data of the archive's entry into the cache, if they are the right ones, and answers
    /// the digest that they have.
    fn keep(
        &self,
        archive: &mut Archive<Blocks>,
        found: &Found,
        buffer: &mut [u8],
    ) -> Result<Digest, Broken> {
        // Whoever comes when all is read waits until it has its name, and not longer.
        let land = || match self.flights.join(found.digest) {
            Role::Lead(flight) => Some(self.landing(found.digest, flight)),
            Role::Wait(_) => None,
        };
        // Most files are small.
        let room = usize::try_from(found.size).ok();
        if let Some(bytes) = room.and_then(|size| buffer.get_mut(..size)) {
            archive.read_exact(bytes)?;
            let digest = Digest::of(bytes);
            if digest == found.digest {
                let _landing = land();
                self.cache.put(digest, bytes).map_err(Broken::Here)?;
            }
            return Ok(digest);
        }
        let (mut flaw, mut landing) = (None, None);
        let pieces = std::iter::from_fn(|| match archive.read(buffer) {
            Ok(0) => {
                landing = land();
                None
            }
            Ok(count) => Some(Ok(buffer.get(..count).unwrap_or_default().to_vec())),
            Err(error) => {
                flaw = Some(error);
                Some(Err(Error::Io(io::ErrorKind::InvalidData.into())))
            }
        });
        let added = self.cache.add(found.digest, pieces);
        drop(landing);
        if let Some(flaw) = flaw {
            return Err(Broken::Lie(flaw));
        }
        match added.map_err(Broken::Here)? {
            Ok(_) => Ok(found.digest),
            Err(other) => Ok(other),
        }
    }
}

/// Reads the data of the archive's entry, and answers their digest.
fn hash(archive: &mut Archive<Blocks>, buffer: &mut [u8]) -> Result<Digest, Broken> {
    let mut hash = Sha256::new();
    loop {
        match archive.read(buffer)? {
            0 => return Ok(Digest::from(hash)),
            count => hash.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

fn as_path(name: &[u8]) -> &std::path::Path {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::OsStr::from_bytes(name).as_ref()
}

/// The bytes of the blob, which are hashed as they are read.
struct Raw<'r, R> {
    from: R,
    hash: Sha256,
    /// Why they can't be had.
    failed: Option<io::Error>,
    /// Whether nobody needs more of them.
    is_over: &'r AtomicBool,
    fetched: &'r AtomicU64,
}

impl<R: Read> Read for Raw<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_over.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody reads on"));
        }
        match self.from.read(buffer) {
            Ok(count) => {
                self.hash.update(buffer.get(..count).unwrap_or_default());
                self.fetched.fetch_add(count as u64, Ordering::Relaxed);
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let shown = io::Error::new(error.kind(), "the blob cannot be read");
                self.failed.get_or_insert(error);
                Err(shown)
            }
        }
    }
}

/// Decompresses the blob into blocks, and reads it to its end whatever becomes of those. Answers its
/// digest, and that of all blocks.
fn decompress<R: Read>(
    mut raw: Raw<'_, R>,
    compression: Compression,
    to: &SyncSender<io::Result<Vec<u8>>>,
) -> io::Result<(Digest, Digest)> {
    let mut hash = Sha256::new();
    let blocks = blocks(
        BufReader::with_capacity(INPUT, &mut raw),
        compression,
        &mut hash,
        to,
    );
    if let Err(error) = blocks {
        // If nobody reads on, nobody has to know.
        let _ = to.send(Err(error));
    }
    let rest = io::copy(&mut raw, &mut io::sink());
    match raw.failed.map_or(rest, Err) {
        Ok(_) => Ok((Digest::from(raw.hash), Digest::from(hash))),
        Err(error) => Err(error),
    }
}

/// Sends the archive in blocks, as long as somebody takes them.
fn blocks(
    raw: BufReader<impl Read>,
    compression: Compression,
    hash: &mut Sha256,
    to: &SyncSender<io::Result<Vec<u8>>>,
) -> io::Result<()> {
    match compression {
        Compression::Gzip | Compression::Checkpoints => {
            send_all(MultiGzDecoder::new(raw), hash, to)
        }
        Compression::Zstd => {
            let mut archive = zstd::Decoder::with_buffer(raw)?;
            archive.window_log_max(WINDOW_LOG)?;
            send_all(archive, hash, to)
        }
    }
}

fn send_all(
    archive: impl Read,
    hash: &mut Sha256,
    to: &SyncSender<io::Result<Vec<u8>>>,
) -> io::Result<()> {
    let mut archive = archive.take(0);
    loop {
        let mut block = Vec::with_capacity(BLOCK);
        archive.set_limit(BLOCK as u64);
        if archive.read_to_end(&mut block)? == 0 {
            return Ok(());
        }
        hash.update(&block);
        if to.send(Ok(block)).is_err() {
            return Ok(());
        }
    }
}

/// The archive.
struct Blocks {
    from: Receiver<io::Result<Vec<u8>>>,
    block: io::Cursor<Vec<u8>>,
}

impl Blocks {
    fn of(from: Receiver<io::Result<Vec<u8>>>) -> Blocks {
        Blocks {
            from,
            block: io::Cursor::default(),
        }
    }
}

impl Read for Blocks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.block.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let Ok(block) = self.from.recv() else {
                return Ok(0);
            };
            self.block = io::Cursor::new(block?);
        }
    }
}

#[cfg(test)]
mod tests;
