//! Reading a directory, and removing a tree.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, RenameFlags, openat, statat};
use rustix::io::Errno;
use rustix::path::Arg;

use super::change::{mkdirat, renameat_with, unlinkat};
use super::{kind_of, kind_of_type};
use crate::types::FileKind;

const OPEN_DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// One entry as the host's file system lists it.
#[derive(Clone, Debug)]
pub(crate) struct RawEntry {
    pub(crate) name: OsString,
    pub(crate) kind: FileKind,
    /// The host's inode number.
    pub(crate) ino: u64,
}

/// Opens the directory `name` of `at` for reading.
pub(crate) fn open_dir(at: impl AsFd, name: impl Arg) -> Result<OwnedFd, Errno> {
    openat(at, name, OPEN_DIR, Mode::empty())
}

/// The same for one that is made if it is missing.
pub(crate) fn make_dir(at: &OwnedFd, name: impl Arg + Copy) -> Result<OwnedFd, Errno> {
    match mkdirat(at, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => open_dir(at, name),
        Err(error) => Err(error),
    }
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

/// Removes everything in the directory `dir`.
pub(crate) fn clear(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    for entry in read_dir(dir)? {
        remove_tree(dir, &entry.name, entry.kind)?;
    }
    Ok(())
}

/// Removes the entry `name` of `dir` with everything in it.
///
/// A tree is as deep as its maker liked, and neither the stack nor the number of descriptors may
/// grow with it: directories two levels down are moved up to the first before they are emptied.
pub(crate) fn remove_tree(dir: BorrowedFd<'_>, name: &OsStr, kind: FileKind) -> Result<(), Errno> {
    if kind != FileKind::Directory {
        return unlinkat(dir, name, AtFlags::empty());
    }
    let top = open_dir(dir, name)?;
    let mut moved = 0;
    loop {
        let entries = read_dir(top.as_fd())?;
        if entries.is_empty() {
            return unlinkat(dir, name, AtFlags::REMOVEDIR);
        }
        for entry in entries {
            if entry.kind == FileKind::Directory {
                empty(&top, &entry.name, &mut moved)?;
                unlinkat(&top, &entry.name, AtFlags::REMOVEDIR)?;
            } else {
                unlinkat(&top, &entry.name, AtFlags::empty())?;
            }
        }
    }
}

/// Empties the directory `name` of `top`: the directories in it are moved to `top`.
fn empty(top: &OwnedFd, name: &OsStr, moved: &mut u64) -> Result<(), Errno> {
    let dir = openat(top, name, OPEN_DIR, Mode::empty())?;
    for child in read_dir(dir.as_fd())? {
        if child.kind != FileKind::Directory {
            unlinkat(&dir, &child.name, AtFlags::empty())?;
            continue;
        }
        loop {
            *moved += 1;
            let free = format!("moved-{moved}");
            match renameat_with(&dir, &child.name, top, &*free, RenameFlags::NOREPLACE) {
                Ok(()) => break,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn open_for_reading(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(dir, c".", flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{CWD, mkdirat};

    use super::*;

    #[test]
    fn a_tree_of_any_depth_is_cleared_with_few_descriptors_and_a_small_stack() {
        const LEVELS: usize = 3_000;
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("moved-1/a/b")).unwrap();
        fs::write(top.path().join("moved-1/a/b/file"), "x").unwrap();
        let top_fd = openat(CWD, top.path(), OPEN_DIR, Mode::empty()).unwrap();
        let mut at = openat(&top_fd, ".", OPEN_DIR, Mode::empty()).unwrap();
        for _ in 0..LEVELS {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", OPEN_DIR, Mode::empty()).unwrap();
        }
        drop(at);
        let small = std::thread::Builder::new().stack_size(128 << 10);
        let work = move || clear(top_fd.as_fd());
        small.spawn(work).unwrap().join().unwrap().unwrap();
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 0);
    }
}
