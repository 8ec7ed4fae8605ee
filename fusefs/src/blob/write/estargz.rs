//! What eStargz has besides the members of the files (stargz-snapshotter, docs/estargz.md): the
//! landmark, the table of contents as the last file of the archive, and the footer.

use std::ffi::{OsStr, OsString};
use std::io::Write;

use super::toc::Toc;
use super::{BLOCK, Blob, Flaw, Format, annotation};
use crate::blob::Digest;
use crate::blob::entry::{Chunk, Data, Told, What};
use crate::blob::toc::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, STARGZ_TOC};
use crate::types::Timestamp;

/// The annotation with the digest of the TOC.
pub(super) const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// The annotation with the length of the archive.
pub(super) const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";

/// All that is in a landmark.
const LANDMARK: &[u8] = &[0x0f];
/// The permissions of the files that are the format's own.
const PERM: u16 = 0o444;

/// Whether this name is one of the format's own.
pub(super) fn is_own(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let name = name.strip_prefix('/').unwrap_or(name);
    let name = name.strip_prefix("./").unwrap_or(name);
    [STARGZ_TOC, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK].contains(&name)
}

/// Begins a blob: nothing in it is to be fetched before it is wanted.
pub(super) fn begin<W: Write>(blob: &mut Blob<W>, toc: &mut Toc) -> Result<(), Flaw> {
    blob.piece(&header(NO_PREFETCH_LANDMARK, LANDMARK.len()))?;
    let digest = Digest::of(LANDMARK);
    let stretch = blob.piece(LANDMARK)?;
    blob.piece(&padding(LANDMARK.len()))?;
    let landmark = Told {
        name: OsString::from(NO_PREFETCH_LANDMARK),
        what: What::Regular(Data {
            size: LANDMARK.len() as u64,
            digest: Some(digest),
            chunks: vec![Chunk {
                offset: 0,
                len: LANDMARK.len() as u64,
                digest,
                stretch,
                skip: 0,
            }],
        }),
        perm: PERM,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        xattrs: Vec::new(),
    };
    toc.add(&landmark, Format::Estargz)
}

/// Ends a blob: the TOC and the end of the archive in one member, and the footer, which says where
/// that begins.
pub(super) fn end<W: Write>(
    blob: &mut Blob<W>,
    json: &[u8],
) -> Result<Vec<(&'static str, String)>, Flaw> {
    let start = blob.size;
    let header = header(STARGZ_TOC, json.len());
    blob.piece(&[&header, json, &padding(json.len()), &[0; 2 * BLOCK]].concat())?;
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0];
    footer.extend_from_slice(b"SG\x16\x00");
    footer.extend_from_slice(format!("{start:016x}STARGZ").as_bytes());
    footer.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    blob.append(&footer)?;
    Ok(vec![
        annotation(TOC_DIGEST, Digest::of(json)),
        annotation(UNCOMPRESSED_SIZE, blob.archive_size),
    ])
}

/// The header of a regular file of the format's own: ustar, of root, of 1970.
fn header(name: &str, size: usize) -> Vec<u8> {
    let fields = |sum: &str| {
        let mut header = Vec::with_capacity(BLOCK);
        let mut field = |text: &str, len: usize| {
            let end = header.len() + len;
            header.extend_from_slice(text.as_bytes());
            header.resize(end, 0);
        };
        field(name, 100);
        field(&format!("{PERM:07o}"), 8);
        field("0000000", 8);
        field("0000000", 8);
        field(&format!("{size:011o}"), 12);
        field("00000000000", 12);
        field(sum, 8);
        field("0", 101);
        field("ustar", 6);
        field("00", 66);
        field("0000000", 8);
        field("0000000", BLOCK - 337);
        header
    };
    // The sum is that of a header with blanks in its place.
    let sum: u32 = fields("        ").into_iter().map(u32::from).sum();
    fields(&format!("{sum:06o}\0 "))
}

/// What fills up the last block of so many bytes.
fn padding(size: usize) -> Vec<u8> {
    vec![0; size.wrapping_neg() % BLOCK]
}
