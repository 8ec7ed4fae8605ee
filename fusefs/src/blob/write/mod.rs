//! Makes blobs whose files can be had one by one: eStargz and zstd:chunked.
//!
//! [`convert`] reads an archive once. What stands between the bytes of the files (headers, extended
//! headers, padding) is taken over as it came, never written anew, so that whoever unpacks the blob
//! gets what the source has. The bytes of each file begin a gzip member or zstd frame of their own,
//! and large files are cut into chunks. The table of contents comes last; before the blob counts,
//! Lamina's own reader has to accept it.
//!
//! zstd:chunked keeps the archive byte for byte, and with it the layer's diff ID. eStargz adds files
//! of its own to the archive, so that its diff ID is another; such files of the source are left out.

mod estargz;
mod toc;
mod zstd_chunked;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Read, Write};
use std::ops::Range;

use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use super::contents::{Contents, Hashing, read_data};
use super::entry::What;
use super::footer;
use super::tar::Archive;
use super::{Cap, Compression, Digest, Flaw, Limits};

/// Bytes of a chunk of a large file, as other writers have it.
const CHUNK: usize = 4 << 20;
/// Bytes of headers that are put into one member or frame.
const HEADERS: usize = 1 << 20;
/// Bytes of a header in a tar archive.
const BLOCK: usize = 512;
/// How hard zstd tries.
const LEVEL: i32 = 9;

/// The format of a blob.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// eStargz: gzip.
    Estargz,
    /// zstd:chunked.
    ZstdChunked,
}

/// A blob that was written, and what its manifest and configuration have to say of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Written {
    /// The digest of the blob.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// The digest of its archive: the layer's diff ID.
    pub diff_id: Digest,
    /// The digest of the archive that was read. Whoever asked holds it against the diff ID of the
    /// source before the blob is used.
    pub source_diff_id: Digest,
    /// The annotations of its descriptor.
    pub annotations: BTreeMap<String, String>,
}

/// Reads an uncompressed archive, and writes a blob of it.
pub fn convert(
    archive: impl Read,
    to: impl Write,
    format: Format,
    limits: &Limits,
) -> Result<Written, Flaw> {
    let mut archive = Archive::new(Tap::of(Hashing::of(archive), limits), limits);
    let mut blob = Blob::new(to, format);
    let mut toc = toc::Toc::new();
    if format == Format::Estargz {
        estargz::begin(&mut blob, &mut toc)?;
    }
    let mut headers = Vec::new();
    // What fills up the last file's block comes before the next header.
    let mut filling = Filling::default();
    while let Some(mut told) = archive.next_entry()? {
        let raw = archive.source().taken();
        let raw = filling.put(&mut headers, &raw);
        let left_out = format == Format::Estargz && estargz::is_own(&told.name);
        if !left_out {
            headers.extend_from_slice(raw);
        }
        filling = Filling::default();
        if let What::Regular(data) = &mut told.what {
            archive.source().keeps = false;
            if left_out {
                read_data(&mut archive, data, CHUNK, |_, _| Ok(()))?;
            } else {
                if data.size > 0 {
                    blob.piece(&std::mem::take(&mut headers))?;
                }
                read_data(&mut archive, data, CHUNK, |chunk, bytes| {
                    chunk.stretch = blob.piece(bytes)?;
                    Ok(())
                })?;
            }
            archive.source().keeps = true;
            filling = Filling::of(data.size, left_out);
        }
        if !left_out {
            toc.add(&told, format)?;
        }
        if headers.len() >= HEADERS {
            blob.piece(&std::mem::take(&mut headers))?;
        }
    }
    let raw = archive.source().taken();
    let raw = filling.put(&mut headers, &raw);
    match format {
        Format::ZstdChunked => headers.extend_from_slice(raw),
        // Others follow. An archive may end without filling up its last block.
        Format::Estargz => {
            let written = blob.archive_size + headers.len() as u64;
            let missing = written.wrapping_neg() % BLOCK as u64;
            headers.extend((0..missing).map(|_| 0));
        }
    }
    blob.piece(&headers)?;
    let (_, source_diff_id, _) = archive.finish().from.finish();
    blob.finish(toc, source_diff_id, limits)
}

/// Bytes of the archive that fill up the last block of a file.
#[derive(Default)]
struct Filling {
    len: usize,
    left_out: bool,
}

impl Filling {
    /// That of a file of this size.
    fn of(size: u64, left_out: bool) -> Filling {
        let len = size.wrapping_neg() % BLOCK as u64;
        Filling {
            len: usize::try_from(len).unwrap_or(0),
            left_out,
        }
    }

    /// Adds it to the bytes that are written, and answers what is behind it.
    fn put<'r>(&self, to: &mut Vec<u8>, raw: &'r [u8]) -> &'r [u8] {
        let (filling, rest) = raw.split_at_checked(self.len).unwrap_or((raw, &[]));
        if !self.left_out {
            to.extend_from_slice(filling);
        }
        rest
    }
}

/// A blob that is being written.
struct Blob<W> {
    to: W,
    format: Format,
    hash: Sha256,
    /// Bytes of the blob so far.
    size: u64,
    archive: Sha256,
    /// Bytes of its archive so far.
    archive_size: u64,
}

impl<W: Write> Blob<W> {
    fn new(to: W, format: Format) -> Blob<W> {
        Blob {
            to,
            format,
            hash: Sha256::new(),
            size: 0,
            archive: Sha256::new(),
            archive_size: 0,
        }
    }

    /// Appends bytes of the archive as a member or frame of their own, and answers where that is.
    fn piece(&mut self, bytes: &[u8]) -> Result<Range<u64>, Flaw> {
        let start = self.size;
        if !bytes.is_empty() {
            self.archive.update(bytes);
            self.archive_size += bytes.len() as u64;
            let packed = match self.format {
                Format::Estargz => gzip(bytes),
                Format::ZstdChunked => zstd::bulk::compress(bytes, LEVEL),
            };
            self.append(&packed.map_err(Flaw::Source)?)?;
        }
        Ok(start..self.size)
    }

    /// Appends bytes to the blob as they are.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Flaw> {
        self.to.write_all(bytes).map_err(Flaw::Source)?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Writes the end, and looks whether the whole can be read.
    fn finish(
        mut self,
        toc: toc::Toc,
        source_diff_id: Digest,
        limits: &Limits,
    ) -> Result<Written, Flaw> {
        let json = toc.json()?;
        drop(toc);
        if json.len() as u64 > limits.toc_bytes {
            return Err(limits.exceeded(Cap::Toc));
        }
        let data_end = self.size;
        let (annotations, compression) = match self.format {
            Format::Estargz => (estargz::end(&mut self, &json)?, Compression::Gzip),
            Format::ZstdChunked => (zstd_chunked::end(&mut self, &json)?, Compression::Zstd),
        };
        self.to.flush().map_err(Flaw::Source)?;
        let toc = footer::Toc {
            json,
            data_end,
            compression,
        };
        Contents::of_toc(&toc, limits)?;
        let annotations = annotations.into_iter();
        Ok(Written {
            digest: Digest::from(self.hash),
            size: self.size,
            diff_id: Digest::from(self.archive),
            source_diff_id,
            annotations: annotations
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        })
    }
}

/// One gzip member.
fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn annotation(name: &'static str, value: impl Display) -> (&'static str, String) {
    (name, value.to_string())
}

/// A reader that keeps what is read through it, but for the bytes of files.
struct Tap<R> {
    from: R,
    kept: Vec<u8>,
    keeps: bool,
    /// Bytes that it keeps at most.
    most: usize,
}

impl<R> Tap<R> {
    fn of(from: R, limits: &Limits) -> Tap<R> {
        Tap {
            from,
            kept: Vec::new(),
            keeps: true,
            most: usize::try_from(limits.chunk_bytes).unwrap_or(usize::MAX),
        }
    }

    /// What it kept since it was asked last.
    fn taken(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.kept)
    }
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        if self.keeps {
            if self.kept.len() + count > self.most {
                let what = "more bytes between two files than allowed";
                return Err(io::Error::other(what));
            }
            self.kept
                .extend_from_slice(buffer.get(..count).unwrap_or_default());
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
