//! What a blob says of its entries.

use std::ffi::OsString;
use std::ops::Range;

use super::digest::Digest;
use crate::types::Timestamp;

/// What a blob says of one entry. `tree` looks whether it can be so.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Told {
    /// The path, as it stands there.
    pub(crate) name: OsString,
    pub(crate) what: What,
    /// Permissions, with setuid, setgid and sticky.
    pub(crate) perm: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: Vec<(OsString, Vec<u8>)>,
}

/// What sort of entry it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum What {
    Directory,
    Regular(Data),
    /// Another name of the entry with this path.
    HardLink(OsString),
    /// With its target.
    Symlink(OsString),
    /// Major and minor number.
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// The bytes of a regular file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Data {
    /// Its length in bytes.
    pub(crate) size: u64,
    /// The digest of all of it, where the blob tells one.
    pub(crate) digest: Option<Digest>,
    /// All of its bytes, in order and without gaps.
    pub(crate) chunks: Vec<Chunk>,
}

/// Some bytes of a file, and where they are in the blob.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Chunk {
    /// Where they begin in the file.
    pub(crate) offset: u64,
    /// How many they are, at least 1.
    pub(crate) len: u64,
    /// Their digest.
    pub(crate) digest: Digest,
    /// The stretch of the blob that has them, compressed.
    pub(crate) stretch: Range<u64>,
    /// How many other bytes come first when the stretch is decompressed.
    pub(crate) skip: u64,
}
