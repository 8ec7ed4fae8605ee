//! Opening a path below a root: `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, so that
//! nothing that a layer holds (a symlink, a `..`) leads out of it (openat2(2)).

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat, openat2};
use rustix::io::Errno;

/// A piece of a path that is surely shorter than `PATH_MAX` (4,096 bytes).
const PIECE: usize = 3_500;

/// Opens `path` below `root`; the empty path is `root` itself. `O_NOFOLLOW` and `O_CLOEXEC` are
/// implied.
pub(crate) fn open_beneath(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return open_piece(root, Path::new("."), flags);
    }
    // A path of a deep tree may be longer than one system call takes.
    let mut rest = bytes;
    let mut dir: Option<OwnedFd> = None;
    while rest.len() > PIECE {
        let Some(cut) = rest[..PIECE].iter().rposition(|byte| *byte == b'/') else {
            return Err(Errno::NAMETOOLONG);
        };
        let at = dir.as_ref().map_or(root, |dir| dir.as_fd());
        let piece = Path::new(OsStr::from_bytes(&rest[..cut]));
        dir = Some(open_piece(at, piece, OFlags::PATH | OFlags::DIRECTORY)?);
        rest = &rest[cut + 1..];
    }
    let at = dir.as_ref().map_or(root, |dir| dir.as_fd());
    open_piece(at, Path::new(OsStr::from_bytes(rest)), flags)
}

fn open_piece(at: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    // With O_PATH the last component may be a symlink (that is opened itself, not followed), so
    // NO_SYMLINKS, which refuses that too, is for every other open.
    let resolve = if flags.contains(OFlags::PATH) && !flags.contains(OFlags::DIRECTORY) {
        let (parent, name) = (path.parent(), path.file_name());
        if let (Some(parent), Some(name)) = (parent, name)
            && !parent.as_os_str().is_empty()
        {
            let dir = open_piece(at, parent, OFlags::PATH | OFlags::DIRECTORY)?;
            return openat(&dir, name, flags, Mode::empty());
        }
        resolve
    } else {
        resolve | ResolveFlags::NO_SYMLINKS
    };
    openat2(at, path, flags, Mode::empty(), resolve)
}

/// Opens a directory that the administrator named: symlinks in its path are theirs to make.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Opens the process's own view of a descriptor: `/proc/self/fd/N`.
pub(crate) fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = super::place::proc_path(fd, None);
    openat(CWD, &path, flags | OFlags::CLOEXEC, Mode::empty())
}
