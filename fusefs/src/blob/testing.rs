//! Blobs for tests, made as their formats ask for.

use std::io::Write;

use serde_json::{Value, json};

use super::digest::Digest;
use super::footer::{Toc, estargz, zstd_chunked};
use super::limits::Limits;

/// One gzip member.
pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// One zstd frame.
pub(super) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// Regular files, each with its chunks.
pub(super) type Files<'f> = &'f [(&'f str, &'f [&'f [u8]])];

/// A blob, and what the manifest says of it.
pub(super) struct Blob {
    pub(super) bytes: Vec<u8>,
    /// The digest of the table of contents.
    pub(super) digest: Digest,
    /// For zstd:chunked: where that is.
    pub(super) position: String,
}

impl Blob {
    /// An eStargz blob.
    pub(super) fn estargz(files: Files<'_>) -> Blob {
        let mut bytes = gzip(b"the header of the first file");
        let entries = entries(files, &mut bytes, gzip, false);
        let toc = serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap();
        let start = bytes.len();
        let mut tar = vec![0; 512];
        tar[..17].copy_from_slice(b"stargz.index.json");
        tar[124..136].copy_from_slice(format!("{:011o}\0", toc.len()).as_bytes());
        tar.extend_from_slice(&toc);
        bytes.extend(gzip(&tar));
        bytes.extend_from_slice(&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0]);
        bytes.extend_from_slice(b"SG\x16\x00");
        bytes.extend_from_slice(format!("{start:016x}STARGZ").as_bytes());
        bytes.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        Blob {
            bytes,
            digest: Digest::of(&toc),
            position: String::new(),
        }
    }

    /// A zstd:chunked blob.
    pub(super) fn zstd_chunked(files: Files<'_>) -> Blob {
        let mut bytes = zstd(b"the header of the first file");
        let entries = entries(files, &mut bytes, zstd, true);
        let toc = serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap();
        let packed = zstd(&toc);
        bytes.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18]);
        bytes.extend_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
        let position = format!("{}:{}:{}:1", bytes.len(), packed.len(), toc.len());
        bytes.extend_from_slice(&packed);
        Blob {
            bytes,
            digest: Digest::of(&packed),
            position,
        }
    }

    /// Its table of contents, by the footer or the annotation.
    pub(super) fn toc(&self) -> Result<Toc, super::Flaw> {
        let (limits, size) = (Limits::default(), self.bytes.len() as u64);
        let at = |range: std::ops::Range<u64>| {
            &self.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
        };
        if self.position.is_empty() {
            let footer = self.bytes.last_chunk().unwrap();
            let place = estargz::toc(footer, size, &limits)?;
            return estargz::read(at(place.clone()), place.start, self.digest, &limits);
        }
        let (place, length) = zstd_chunked::toc(&self.position, size, &limits)?;
        zstd_chunked::read(at(place.clone()), (place.start, length), self.digest)
    }
}

/// Adds files to a blob, and answers what the table of contents says of them.
fn entries(
    files: Files<'_>,
    bytes: &mut Vec<u8>,
    compress: impl Fn(&[u8]) -> Vec<u8>,
    with_ends: bool,
) -> Vec<Value> {
    let mut entries = Vec::new();
    for (name, chunks) in files {
        let all = chunks.concat();
        let first = entries.len();
        let mut offset = 0;
        for chunk in *chunks {
            let kind = if offset == 0 { "reg" } else { "chunk" };
            entries.push(json!({
                "type": kind, "name": name, "offset": bytes.len(), "chunkOffset": offset,
                "chunkSize": chunk.len(), "chunkDigest": Digest::of(chunk).to_string(),
            }));
            offset += chunk.len();
            bytes.extend(compress(chunk));
        }
        if chunks.is_empty() {
            entries.push(json!({"type": "reg", "name": name}));
            continue;
        }
        let entry = &mut entries[first];
        entry["size"] = all.len().into();
        entry["mode"] = 0o644.into();
        entry["digest"] = Digest::of(&all).to_string().into();
        if with_ends {
            entry["endOffset"] = bytes.len().into();
        }
    }
    entries
}
