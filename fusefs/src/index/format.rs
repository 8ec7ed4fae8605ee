//! The bytes of an index: where each field lies, and how it is read.
//!
//! `docs/index-format.md` says the same for whoever reads an index with other tools. All numbers
//! are little endian, and no field needs an alignment.

use super::{Flaw, Kind};

/// What an index begins with.
pub(super) const MAGIC: [u8; 8] = *b"LAMINAIX";
/// The version that is written, and the only one that is read.
pub(super) const VERSION: u32 = 1;

/// Bytes of the header.
pub(super) const HEADER: usize = 64;
/// Where the checksum lies, which covers all bytes but its own.
pub(crate) const CHECKSUM: std::ops::Range<usize> = 24..32;
/// Bytes of a stamp.
pub(super) const STAMP: usize = 24;
/// Bytes of a record.
pub(super) const RECORD: usize = 136;
/// Bytes of an entry of the table of extended attributes.
pub(super) const XATTR: usize = 16;
/// Bytes of a place.
pub(super) const PLACE: usize = 16;

/// `u16` at an offset; 0 beyond the end, which no caller asks for.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    chunk(bytes, at).map_or(0, u16::from_le_bytes)
}

/// `u32` at an offset.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    chunk(bytes, at).map_or(0, u32::from_le_bytes)
}

/// `u64` at an offset.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    chunk(bytes, at).map_or(0, u64::from_le_bytes)
}

/// `i64` at an offset.
pub(super) fn i64_at(bytes: &[u8], at: usize) -> i64 {
    chunk(bytes, at).map_or(0, i64::from_le_bytes)
}

fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The header, and where the sections behind it begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// How many layers the tree was made of, each with a stamp.
    pub(super) layers: u32,
    pub(super) records: u32,
    pub(super) xattrs: u32,
    pub(super) places: u32,
    /// Bytes of the heap.
    pub(super) heap: u32,
}

impl Header {
    /// Where the stamps begin.
    pub(super) const STAMPS: usize = HEADER;

    /// Where the records begin.
    pub(super) fn records_at(&self) -> usize {
        Header::STAMPS + self.layers as usize * STAMP
    }

    /// Where the extended attributes begin.
    pub(super) fn xattrs_at(&self) -> usize {
        self.records_at() + self.records as usize * RECORD
    }

    /// Where the places begin.
    pub(super) fn places_at(&self) -> usize {
        self.xattrs_at() + self.xattrs as usize * XATTR
    }

    /// Where the heap begins.
    pub(super) fn heap_at(&self) -> usize {
        self.places_at() + self.places as usize * PLACE
    }

    /// The length of the whole index.
    pub(super) fn length(&self) -> usize {
        self.heap_at() + self.heap as usize
    }

    /// Reads a header, and holds it against the length of what it stands before.
    pub(super) fn read(bytes: &[u8]) -> Result<Header, Flaw> {
        if bytes.len() < HEADER {
            return Err(Flaw::Truncated);
        }
        if bytes[..8] != MAGIC {
            return Err(Flaw::Magic);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(Flaw::Version(version));
        }
        if u64_at(bytes, 16) != bytes.len() as u64 {
            return Err(Flaw::Truncated);
        }
        let kind = Kind::from_raw(u32_at(bytes, 12)).ok_or(Flaw::Header)?;
        let header = Header {
            kind,
            layers: u32_at(bytes, 32),
            records: u32_at(bytes, 36),
            xattrs: u32_at(bytes, 40),
            places: u32_at(bytes, 44),
            heap: u32::try_from(u64_at(bytes, 48)).map_err(|_| Flaw::Header)?,
        };
        // All counts are 32 bits wide, so their sum does not overflow.
        if header.length() != bytes.len() || u64_at(bytes, 56) != 0 {
            return Err(Flaw::Header);
        }
        Ok(header)
    }

    /// Writes it before the sections; the checksum comes last ([`seal`]).
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.kind.raw().to_le_bytes());
        bytes.extend_from_slice(&(self.length() as u64).to_le_bytes());
        bytes.extend_from_slice(&0u64.to_le_bytes());
        for count in [self.layers, self.records, self.xattrs, self.places] {
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        bytes.extend_from_slice(&u64::from(self.heap).to_le_bytes());
        bytes.extend_from_slice(&0u64.to_le_bytes());
    }
}

/// The checksum of an index: XXH3-64 of everything but the checksum.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    use std::hash::Hasher;
    let mut hasher = twox_hash::XxHash3_64::new();
    hasher.write(bytes.get(..CHECKSUM.start).unwrap_or_default());
    hasher.write(bytes.get(CHECKSUM.end..).unwrap_or_default());
    hasher.finish()
}

/// Puts the checksum into a finished index.
pub(crate) fn seal(bytes: &mut [u8]) {
    let sum = checksum(bytes).to_le_bytes();
    if let Some(field) = bytes.get_mut(CHECKSUM) {
        field.copy_from_slice(&sum);
    }
}

/// Offsets of the fields of a record.
pub(super) mod at {
    pub(in crate::index) const NAME: usize = 0;
    pub(in crate::index) const NAME_LEN: usize = 4;
    pub(in crate::index) const KIND: usize = 6;
    pub(in crate::index) const BELOW: usize = 7;
    pub(in crate::index) const PARENT: usize = 8;
    pub(in crate::index) const FIRST_CHILD: usize = 12;
    pub(in crate::index) const CHILDREN: usize = 16;
    pub(in crate::index) const LAYER: usize = 20;
    pub(in crate::index) const INO: usize = 24;
    pub(in crate::index) const SIZE: usize = 32;
    pub(in crate::index) const BLOCKS: usize = 40;
    pub(in crate::index) const RDEV: usize = 48;
    pub(in crate::index) const ATIME: usize = 56;
    pub(in crate::index) const MTIME: usize = 64;
    pub(in crate::index) const CTIME: usize = 72;
    pub(in crate::index) const ATIME_NANOS: usize = 80;
    pub(in crate::index) const MTIME_NANOS: usize = 84;
    pub(in crate::index) const CTIME_NANOS: usize = 88;
    pub(in crate::index) const NLINK: usize = 92;
    pub(in crate::index) const UID: usize = 96;
    pub(in crate::index) const GID: usize = 100;
    pub(in crate::index) const BLKSIZE: usize = 104;
    pub(in crate::index) const PERM: usize = 108;
    pub(in crate::index) const XATTRS: usize = 110;
    pub(in crate::index) const FIRST_XATTR: usize = 112;
    pub(in crate::index) const TEXT: usize = 116;
    pub(in crate::index) const TEXT_LEN: usize = 120;
    pub(in crate::index) const RESERVED: usize = 122;
    pub(in crate::index) const SOURCE: usize = 124;
    pub(in crate::index) const DATA: usize = 128;
    pub(in crate::index) const RESERVED_2: usize = 132;
}

/// Values of the field `below`.
pub(super) mod below {
    pub(in crate::index) const NOTHING: u8 = 0;
    pub(in crate::index) const SAME_PATH: u8 = 1;
    pub(in crate::index) const REDIRECT: u8 = 2;
    pub(in crate::index) const SIBLING: u8 = 3;
}

/// The value of `kind` for a whiteout.
pub(super) const WHITEOUT: u8 = 8;
