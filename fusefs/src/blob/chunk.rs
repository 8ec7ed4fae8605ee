//! The bytes of a file, out of the bytes of a blob.

use std::io::{self, Read};

use flate2::bufread::GzDecoder;

use super::Flaw;
use super::checkpoints::Resumed;
use super::digest::Digest;
use super::entry::Chunk;
use super::limits::{Cap, Limits};

/// How the stretch of a chunk is to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Packing {
    /// It is one gzip member, or begins as one.
    Member,
    /// It is zstd frames.
    Frames,
}

/// Makes a chunk's bytes of the stretch of the blob that has them, and answers them only if they
/// are the right ones.
pub(crate) fn unpack(
    chunk: &Chunk,
    stretch: &[u8],
    packing: Packing,
    limits: &Limits,
) -> Result<Vec<u8>, Flaw> {
    verified(chunk, limits, |len| match packing {
        Packing::Member => read(GzDecoder::new(stretch), chunk),
        // In one piece: whatever window a frame asks for, it takes no more memory than this.
        Packing::Frames => {
            let most = usize::try_from(chunk.skip).map_or(usize::MAX, |skip| skip + len);
            read(&zstd::bulk::decompress(stretch, most)?[..], chunk)
        }
    })
}

/// The same of a stretch that begins at a checkpoint, where inflating has begun.
pub(crate) fn unpack_after(
    chunk: &Chunk,
    stretch: &[u8],
    from: &mut Resumed,
    limits: &Limits,
) -> Result<Vec<u8>, Flaw> {
    verified(chunk, limits, |len| {
        from.read(stretch, chunk.skip, len).map(<[u8]>::to_vec)
    })
}

/// The bytes that `unpack` makes of a chunk, if they are no more than is allowed and the right ones. It is
/// told how many they are.
fn verified(
    chunk: &Chunk,
    limits: &Limits,
    unpack: impl FnOnce(usize) -> io::Result<Vec<u8>>,
) -> Result<Vec<u8>, Flaw> {
    let what = "a chunk";
    if chunk.len.max(chunk.skip) > limits.chunk_bytes {
        return Err(limits.exceeded(Cap::Chunk));
    }
    let len = usize::try_from(chunk.len).unwrap_or(usize::MAX);
    let bytes = unpack(len).map_err(|source| Flaw::Compression { what, source })?;
    let found = Digest::of(&bytes);
    if found != chunk.digest {
        return Err(Flaw::Digest {
            what,
            found,
            wanted: chunk.digest,
        });
    }
    Ok(bytes)
}

/// Reads what a chunk has, and nothing behind it.
fn read(mut from: impl Read, chunk: &Chunk) -> io::Result<Vec<u8>> {
    let skipped = io::copy(&mut from.by_ref().take(chunk.skip), &mut io::sink())?;
    let mut bytes = Vec::with_capacity(usize::try_from(chunk.len).unwrap_or(0));
    from.take(chunk.len).read_to_end(&mut bytes)?;
    if skipped != chunk.skip || bytes.len() as u64 != chunk.len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::testing::{gzip, zstd};

    fn chunk(bytes: &[u8], skip: u64) -> Chunk {
        Chunk {
            offset: 0,
            len: bytes.len() as u64,
            digest: Digest::of(bytes),
            stretch: 0..0,
            skip,
        }
    }

    #[test]
    fn only_the_right_bytes_come_out() {
        let limits = Limits::default();
        for (packing, packed) in [
            (Packing::Member, gzip(b"abcdefgh")),
            (Packing::Frames, zstd(b"abcdefgh")),
        ] {
            let unpack = |chunk: &Chunk, from: &[u8]| unpack(chunk, from, packing, &limits);
            assert_eq!(
                unpack(&chunk(b"abcdefgh", 0), &packed).unwrap(),
                b"abcdefgh"
            );
            // Other bytes, too few of them, and none.
            let digest = unpack(&chunk(b"abcdefgx", 0), &packed).unwrap_err();
            assert!(matches!(digest, Flaw::Digest { .. }), "{digest}");
            for (wanted, skip) in [(&b"gh!"[..], 6), (b"a", 9)] {
                let short = unpack(&chunk(wanted, skip), &packed).unwrap_err();
                assert!(matches!(short, Flaw::Compression { .. }), "{short}");
            }
            for bad in [&packed[..packed.len() / 2], b"", b"no compression"] {
                let cut = unpack(&chunk(b"abcdefgh", 0), bad).unwrap_err();
                assert!(matches!(cut, Flaw::Compression { .. }), "{cut}");
            }
        }
    }

    #[test]
    fn a_chunk_in_the_middle_of_a_member_is_found() {
        let (packed, limits) = (gzip(b"abcdefgh"), Limits::default());
        let found = unpack(&chunk(b"cde", 2), &packed, Packing::Member, &limits);
        assert_eq!(found.unwrap(), b"cde");
    }
}
