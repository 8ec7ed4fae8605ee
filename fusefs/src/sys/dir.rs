//! Reading a directory.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, openat, statat};
use rustix::io::Errno;

use super::change::unlinkat;
use super::{kind_of, kind_of_type};
use crate::types::FileKind;

/// One entry as the host's file system lists it.
#[derive(Clone, Debug)]
pub(crate) struct RawEntry {
    pub(crate) name: OsString,
    pub(crate) kind: FileKind,
    /// The host's inode number.
    pub(crate) ino: u64,
}

/// All entries of the directory `dir` but `.` and `..`. `dir` may be an `O_PATH` descriptor.
pub(crate) fn read_dir(dir: BorrowedFd<'_>) -> Result<Vec<RawEntry>, Errno> {
    let fd = open_for_reading(dir)?;
    let mut buffer = vec![MaybeUninit::uninit(); 32 * 1024];
    let mut raw = RawDir::new(&fd, &mut buffer);
    let mut entries = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let kind = match kind_of_type(entry.file_type()) {
            Some(kind) => kind,
            // A file system without d_type.
            None => kind_of(&statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)?),
        };
        entries.push(RawEntry {
            name: name.to_owned(),
            kind,
            ino: entry.ino(),
        });
    }
    Ok(entries)
}

/// Removes everything in the directory `dir`, as deep as it goes.
pub(crate) fn clear(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    for entry in read_dir(dir)? {
        remove_tree(dir, &entry.name, entry.kind)?;
    }
    Ok(())
}

/// Removes the entry `name` of `dir` with everything in it.
pub(crate) fn remove_tree(dir: BorrowedFd<'_>, name: &OsStr, kind: FileKind) -> Result<(), Errno> {
    if kind != FileKind::Directory {
        return unlinkat(dir, name, AtFlags::empty());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = openat(dir, name, flags, Mode::empty())?;
    clear(std::os::fd::AsFd::as_fd(&inner))?;
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}

fn open_for_reading(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(dir, c".", flags, Mode::empty())
}
