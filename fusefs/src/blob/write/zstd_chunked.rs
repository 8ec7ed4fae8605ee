//! What zstd:chunked has besides the frames of the archive (containers/storage,
//! pkg/chunked/internal/minimal): two skippable frames, with the table of contents and with the
//! footer. A decoder reads over both, so the archive stays as it was.

use std::io::Write;

use super::{Blob, Flaw, LEVEL, annotation};
use crate::blob::Digest;
use crate::blob::footer::zstd_chunked::{CHECKSUM, FRAME_HEADER, POSITION, TYPE};

/// What a skippable frame begins with (RFC 8878, 3.1.2).
const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// What the footer ends with.
const MAGIC: &[u8] = b"GNUlInUx";

/// Ends a blob.
pub(super) fn end<W: Write>(
    blob: &mut Blob<W>,
    json: &[u8],
) -> Result<Vec<(&'static str, String)>, Flaw> {
    let packed = zstd::bulk::compress(json, LEVEL).map_err(Flaw::Source)?;
    let (length, uncompressed) = (packed.len() as u64, json.len() as u64);
    let start = blob.size + FRAME_HEADER;
    skippable(blob, &packed)?;
    // No description of the archive's headers (tar-split): where three numbers are 0, there is none.
    let numbers = [start, length, uncompressed, TYPE, 0, 0, 0];
    let mut footer: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
    footer.extend_from_slice(MAGIC);
    skippable(blob, &footer)?;
    let position = format!("{start}:{length}:{uncompressed}:{TYPE}");
    Ok(vec![
        annotation(CHECKSUM[0], Digest::of(&packed)),
        annotation(POSITION[0], position),
    ])
}

fn skippable<W: Write>(blob: &mut Blob<W>, bytes: &[u8]) -> Result<(), Flaw> {
    let length = u32::try_from(bytes.len())
        .map_err(|_| Flaw::Source(std::io::ErrorKind::FileTooLarge.into()))?;
    blob.append(&SKIPPABLE)?;
    blob.append(&length.to_le_bytes())?;
    blob.append(bytes)
}
