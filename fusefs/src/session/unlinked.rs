//! An answer to READDIRPLUS of one entry that leads to no node.
//!
//! Node 0 there means "listed, but look it up if you need it" (`fuse_direntplus_link`,
//! fs/fuse/readdir.c). fuser puts an entry's node and its `d_ino` into one number, so it can't say
//! that, nor the `d_ino` of a file whose node has another number. Few entries need it: those that
//! can't be looked up, and files that were handed over. So the bytes are written here, to the
//! kernel itself.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

use crate::sys::type_of_kind;
use crate::types::DirEntry;

/// `struct fuse_out_header`: length, error, the request's number.
const HEADER: usize = 16;

/// `struct fuse_entry_out`: all zeros, so no node.
const ENTRY: usize = 128;

/// `struct fuse_dirent` without the name.
const DIRENT: usize = 24;

/// Answers the request of this number with one entry.
pub(super) fn answer(mut device: &File, unique: u64, entry: &DirEntry) -> io::Result<()> {
    // One write is one answer.
    let answer = encode(unique, entry)?;
    let written = device.write(&answer)?;
    if written < answer.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

fn encode(unique: u64, entry: &DirEntry) -> io::Result<Vec<u8>> {
    let name = entry.name.as_bytes();
    let length = HEADER + ENTRY + (DIRENT + name.len()).next_multiple_of(8);
    let short = |number: usize| u32::try_from(number).map_err(io::Error::other);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(short(length)?.to_ne_bytes());
    bytes.extend(0_i32.to_ne_bytes());
    bytes.extend(unique.to_ne_bytes());
    bytes.resize(HEADER + ENTRY, 0);
    bytes.extend(entry.ino.0.to_ne_bytes());
    bytes.extend(entry.next_offset.to_ne_bytes());
    bytes.extend(short(name.len())?.to_ne_bytes());
    // IFTODT of dirent.h.
    let d_type = type_of_kind(entry.kind).as_raw_mode() >> 12;
    bytes.extend(d_type.to_ne_bytes());
    bytes.extend(name);
    bytes.resize(length, 0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{FileKind, Ino};

    #[test]
    fn the_bytes_are_the_kernels_structures() {
        let entry = DirEntry {
            name: "nine-char".into(),
            ino: Ino(0x0102_0304_0506_0708),
            kind: FileKind::Symlink,
            next_offset: 77,
        };
        let bytes = encode(5, &entry).unwrap();
        assert_eq!(bytes.len(), 16 + 128 + 40);
        assert_eq!(bytes[..4], 184_u32.to_ne_bytes());
        assert_eq!(bytes[8..16], 5_u64.to_ne_bytes());
        assert_eq!(bytes[16..144], [0; 128]);
        assert_eq!(bytes[144..152], 0x0102_0304_0506_0708_u64.to_ne_bytes());
        assert_eq!(bytes[152..160], 77_u64.to_ne_bytes());
        assert_eq!(bytes[160..164], 9_u32.to_ne_bytes());
        assert_eq!(bytes[164..168], 10_u32.to_ne_bytes());
        assert_eq!(&bytes[168..], b"nine-char\0\0\0\0\0\0\0");
    }
}
