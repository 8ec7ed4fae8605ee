//! The system calls of the union, and the only place with `unsafe` code.
//!
//! - [`place`] addresses one file without ever following a symlink or leaving a directory.
//! - [`beneath`] opens a path below a root that nobody can lead out of.
//! - [`descriptor`] gets descriptors from whoever started the process, and compares them.
//! - [`device`] asks `/dev/fuse` what no request says.
//! - [`dir`] reads directories.
//! - [`change`] has every call that changes what is on disk; tests stop it at any point.
//! - [`caller`] creates things in another user's name.
//! - [`handle`] turns files to handles that outlive names, and back.
//! - [`copy`] copies data, keeping its holes.
//! - [`extents`] tells which parts of a file have data of their own.
//! - [`inflate`] inflates from the middle of a stream.
//! - [`map`] maps files into memory.
//! - [`memory`] keeps large buffers from taking memory that they don't use.
//! - [`shared`] is memory that outlives the process.
//! - [`urgent`] lets a thread go first.

pub(crate) mod beneath;
pub(crate) mod caller;
pub(crate) mod change;
pub(crate) mod copy;
pub(crate) mod descriptor;
pub(crate) mod device;
pub(crate) mod dir;
pub(crate) mod extents;
pub(crate) mod handle;
pub(crate) mod inflate;
pub(crate) mod lease;
pub(crate) mod map;
pub(crate) mod memory;
pub(crate) mod place;
pub(crate) mod shared;
pub(crate) mod urgent;

use rustix::fs::{FileType, Stat};

use crate::types::{Attr, FileKind, Ino, Timestamp};

/// The attributes in the answer of `stat`, with the union's own inode number.
pub(crate) fn attr_of(stat: &Stat, ino: Ino) -> Attr {
    let time = |secs: i64, nanos: u64| Timestamp {
        secs,
        nanos: u32::try_from(nanos).unwrap_or(0),
    };
    Attr {
        ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        kind: kind_of(stat),
        perm: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev,
        blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
        cacheable: true,
    }
}

/// The sort of file in the answer of `stat`.
pub(crate) fn kind_of(stat: &Stat) -> FileKind {
    kind_of_type(FileType::from_raw_mode(stat.st_mode)).unwrap_or(FileKind::Regular)
}

/// The sort of file in a directory entry; `None` if the file system does not tell.
pub(crate) fn kind_of_type(file_type: FileType) -> Option<FileKind> {
    match file_type {
        FileType::RegularFile => Some(FileKind::Regular),
        FileType::Directory => Some(FileKind::Directory),
        FileType::Symlink => Some(FileKind::Symlink),
        FileType::CharacterDevice => Some(FileKind::CharDevice),
        FileType::BlockDevice => Some(FileKind::BlockDevice),
        FileType::Fifo => Some(FileKind::Fifo),
        FileType::Socket => Some(FileKind::Socket),
        FileType::Unknown => None,
    }
}

/// The type of such a file, which has the bits of `st_mode` and, shifted, those of `d_type`.
pub(crate) fn type_of_kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharacterDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
    }
}
