//! Putting an index on disk: all of it under its name, or nothing.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::sys::beneath::open_root;
use crate::sys::change::{create, fsync, renameat, unlinkat, write_all_at};

/// What stands between the name of an index and a number while it is written.
const UNDER_CONSTRUCTION: &str = ".new-";

/// The most that is written by one system call, in bytes.
const PIECE: usize = 4 << 20;

/// Whether a file of this name is an index whose writing was cut off, if nobody writes one now.
pub fn is_leftover(name: &OsStr) -> bool {
    let mark = UNDER_CONSTRUCTION.as_bytes();
    name.as_bytes().windows(mark.len()).any(|part| part == mark)
}

/// Writes an index beside its place, makes it durable, and renames it. Whoever has the one before
/// mapped keeps that one. After an error the one before is still there.
pub(crate) fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, bytes).map_err(|errno| Error::Path {
        action: "cannot write the index",
        path: path.to_owned(),
        source: errno.into(),
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Errno> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL);
    };
    let dir = open_root(dir)?;
    let (temp, file) = create_beside(&dir, name)?;
    let written = fill(&file, bytes).and_then(|()| renameat(&dir, &temp, &dir, name));
    if let Err(error) = written {
        if let Err(error) = unlinkat(&dir, &temp, AtFlags::empty()) {
            tracing::warn!(%error, name = ?temp, "an unfinished index stays");
        }
        return Err(error);
    }
    fsync(&dir)
}

/// A new file beside the index, under a name that nobody else uses.
fn create_beside(dir: &OwnedFd, name: &OsStr) -> Result<(OsString, File), Errno> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut temp = name.to_owned();
        temp.push(format!(
            "{UNDER_CONSTRUCTION}{}-{number}",
            std::process::id()
        ));
        match create(dir, &temp, Mode::RUSR | Mode::WUSR) {
            // What a process of the same number left.
            Err(Errno::EXIST) => {}
            made => return made.map(|fd| (temp, fd.into())),
        }
    }
}

fn fill(file: &File, bytes: &[u8]) -> Result<(), Errno> {
    let mut offset = 0;
    for piece in bytes.chunks(PIECE) {
        write_all_at(file, piece, offset)?;
        offset += piece.len() as u64;
    }
    fsync(file)
}
