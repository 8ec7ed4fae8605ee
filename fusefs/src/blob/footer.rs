//! Where the table of contents is in a blob, and whether it is the one that the manifest means.

use std::io::Read;
use std::ops::Range;

use flate2::bufread::GzDecoder;

use super::digest::Digest;
use super::limits::{Cap, Limits};
use super::{Compression, Flaw};

/// The table of contents of a blob.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Toc {
    /// Its JSON.
    pub json: Vec<u8>,
    /// Where the files' bytes end in the blob.
    pub data_end: u64,
    /// How all of it is compressed.
    pub compression: Compression,
}

/// eStargz (stargz-snapshotter, docs/estargz.md): gzip members, and a footer of 51 bytes, which is
/// an empty member whose extra field says where the TOC is.
pub mod estargz {
    use super::{Cap, Compression, Digest, Flaw, GzDecoder, Limits, Range, Read, Toc};

    /// Bytes of the footer.
    pub const FOOTER: usize = 51;

    /// The name of the TOC in the archive.
    const TOC_NAME: &str = "stargz.index.json";
    /// The extra field: subfield `SG` of 22 bytes, 16 hexadecimal digits and `STARGZ`.
    const EXTRA: Range<usize> = 12..38;
    /// Bytes of a header in a tar archive.
    const BLOCK: usize = 512;

    const BAD_FOOTER: Flaw = Flaw::Footer { format: "eStargz" };

    /// Where the TOC is in a blob of `size` bytes with this footer.
    pub fn toc(footer: &[u8; FOOTER], size: u64, limits: &Limits) -> Result<Range<u64>, Flaw> {
        let extra = footer.get(EXTRA).unwrap_or_default();
        let digits = extra
            .strip_prefix(b"SG\x16\x00")
            .and_then(|field| field.strip_suffix(b"STARGZ"))
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .ok_or(BAD_FOOTER)?;
        let start = u64::from_str_radix(digits, 16).map_err(|_| BAD_FOOTER)?;
        let end = size.checked_sub(FOOTER as u64).ok_or(BAD_FOOTER)?;
        if !footer.starts_with(&[0x1f, 0x8b, 8, 4]) || start >= end {
            return Err(BAD_FOOTER);
        }
        if end - start > limits.toc_bytes {
            return Err(limits.exceeded(Cap::Toc));
        }
        Ok(start..end)
    }

    /// Reads the TOC out of its member, which begins at `start` of the blob. `wanted`: its digest by
    /// the manifest's annotation `containerd.io/snapshot/stargz/toc.digest`.
    pub fn read(member: &[u8], start: u64, wanted: Digest, limits: &Limits) -> Result<Toc, Flaw> {
        let failed = |source| Flaw::Compression {
            what: "the table of contents",
            source,
        };
        let mut tar = GzDecoder::new(member);
        let mut header = [0; BLOCK];
        tar.read_exact(&mut header).map_err(failed)?;
        let size = size_in(&header).ok_or(BAD_FOOTER)?;
        if size > limits.toc_bytes {
            return Err(limits.exceeded(Cap::Toc));
        }
        let mut json = Vec::new();
        tar.take(size).read_to_end(&mut json).map_err(failed)?;
        super::check(&json, wanted)?;
        Ok(Toc {
            json,
            data_end: start,
            compression: Compression::Gzip,
        })
    }

    /// The size in the header of the TOC's entry. Its digest says whether it is right.
    fn size_in(header: &[u8; BLOCK]) -> Option<u64> {
        let name = header.get(..TOC_NAME.len() + 1)?;
        if name.strip_suffix(&[0])? != TOC_NAME.as_bytes() {
            return None;
        }
        let digits = std::str::from_utf8(header.get(124..136)?).ok()?;
        u64::from_str_radix(digits.trim_matches([' ', '\0']), 8).ok()
    }
}

/// zstd:chunked (containers/storage, pkg/chunked): zstd frames, and the TOC in a skippable frame,
/// compressed by zstd. Where that is stands in the manifest; the footer says it once more, and is
/// not needed.
pub mod zstd_chunked {
    use super::{Cap, Compression, Digest, Flaw, Limits, Range, Toc};

    /// The annotation with the digest of the TOC as it is compressed; the second name is that of
    /// skopeo and podman up to 2022.
    pub const CHECKSUM: [&str; 2] = [
        "io.github.containers.zstd-chunked.manifest-checksum",
        "io.containers.zstd-chunked.manifest-checksum",
    ];
    /// The annotation that says where it is: offset, length, uncompressed length and type, with
    /// colons between.
    pub const POSITION: [&str; 2] = [
        "io.github.containers.zstd-chunked.manifest-position",
        "io.containers.zstd-chunked.manifest-position",
    ];

    /// The only type of TOC that there is (`ManifestTypeCRFS`).
    pub(crate) const TYPE: u64 = 1;
    /// Bytes before the contents of a skippable frame (RFC 8878, 3.1.2).
    pub(crate) const FRAME_HEADER: u64 = 8;

    /// Where the TOC is in a blob of `size` bytes, and how long it is uncompressed, by the annotation
    /// [`POSITION`].
    pub fn toc(position: &str, size: u64, limits: &Limits) -> Result<(Range<u64>, u64), Flaw> {
        let bad = || Flaw::Annotation {
            name: POSITION[0],
            value: position.chars().take(100).collect(),
        };
        let numbers: Vec<u64> = position
            .split(':')
            .map(|number| number.parse().map_err(|_| bad()))
            .collect::<Result<_, _>>()?;
        let [start, length, uncompressed, TYPE] = numbers[..] else {
            return Err(bad());
        };
        let end = start.checked_add(length).ok_or_else(bad)?;
        if start < FRAME_HEADER || length == 0 || end > size {
            return Err(bad());
        }
        if length.max(uncompressed) > limits.toc_bytes {
            return Err(limits.exceeded(Cap::Toc));
        }
        Ok((start..end, uncompressed))
    }

    /// Reads the TOC out of its frame's contents, which begin at `start` of the blob. `wanted`: its
    /// digest by the annotation [`CHECKSUM`].
    pub fn read(
        frame: &[u8],
        (start, uncompressed): (u64, u64),
        wanted: Digest,
    ) -> Result<Toc, Flaw> {
        super::check(frame, wanted)?;
        let length = usize::try_from(uncompressed).unwrap_or(usize::MAX);
        // In one piece: whatever window the frame asks for, it takes no more memory than this.
        let json = zstd::bulk::decompress(frame, length).map_err(|source| Flaw::Compression {
            what: "the table of contents",
            source,
        })?;
        Ok(Toc {
            json,
            data_end: start.saturating_sub(FRAME_HEADER),
            compression: Compression::Zstd,
        })
    }
}

fn check(toc: &[u8], wanted: Digest) -> Result<(), Flaw> {
    let found = Digest::of(toc);
    if found != wanted {
        return Err(Flaw::Digest {
            what: "the table of contents",
            found,
            wanted,
        });
    }
    Ok(())
}
