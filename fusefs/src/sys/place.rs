//! Where one file is: a name in an open directory, or an open descriptor.
//!
//! Every call acts on the file itself, never on what a symlink points to. Calls that the kernel
//! offers only by path or only for readable descriptors go through `/proc/self/fd`, which takes a
//! descriptor that was opened with `O_PATH` too (`proc_pid_fd(5)`).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fstat, openat, readlinkat, statat, utimensat,
};
use rustix::io::Errno;

use super::beneath::reopen;
use super::change::{linkat, step};
use crate::types::SetTime;

/// The longest value of an extended attribute (`XATTR_SIZE_MAX`) and of a list of names.
const XATTR_MAX: usize = 65_536;

/// One file on the host.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// The entry `name` of an open directory (`.` is the directory itself).
    At(Arc<OwnedFd>, OsString),
    /// The file behind a descriptor, which may be opened with `O_PATH` and may have no name.
    Fd(Arc<OwnedFd>),
}

/// `/proc/self/fd/N`, or a name below it.
pub(crate) fn proc_path(fd: BorrowedFd<'_>, name: Option<&OsStr>) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    if let Some(name) = name {
        path.push(name);
    }
    path
}

impl Place {
    /// The entry `name` of `dir`.
    pub(crate) fn at(dir: &Arc<OwnedFd>, name: &OsStr) -> Place {
        Place::At(Arc::clone(dir), name.to_owned())
    }

    /// A descriptor that names the file and does nothing else.
    pub(crate) fn open_path(&self) -> Result<OwnedFd, Errno> {
        self.open(OFlags::PATH)
    }

    /// A descriptor of the file, which may do nothing else than name it.
    fn as_fd(&self) -> Result<Arc<OwnedFd>, Errno> {
        match self {
            Place::At(..) => self.open_path().map(Arc::new),
            Place::Fd(fd) => Ok(Arc::clone(fd)),
        }
    }

    /// Opens the file with `flags`.
    pub(crate) fn open(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        match self {
            Place::At(dir, name) => {
                let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(dir, name, flags, Mode::empty())
            }
            Place::Fd(fd) => reopen(fd.as_fd(), flags),
        }
    }

    /// Opens the file for I/O.
    pub(crate) fn open_file(&self, flags: OFlags) -> Result<File, Errno> {
        self.open(flags).map(File::from)
    }

    /// Attributes.
    pub(crate) fn stat(&self) -> Result<Stat, Errno> {
        match self {
            Place::At(dir, name) => statat(dir, name, AtFlags::SYMLINK_NOFOLLOW),
            Place::Fd(fd) => fstat(fd),
        }
    }

    /// The target of a symlink.
    pub(crate) fn readlink(&self) -> Result<OsString, Errno> {
        let target = match self {
            Place::At(dir, name) => readlinkat(dir, name, Vec::new())?,
            Place::Fd(fd) => readlinkat(fd, c"", Vec::new())?,
        };
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Sets the permission bits (12 bits).
    pub(crate) fn chmod(&self, mode: u32) -> Result<(), Errno> {
        // By descriptor: chmodat follows a symlink.
        let (opened, mode) = (self.as_fd()?, Mode::from_raw_mode(mode & 0o7777));
        step()?;
        chmodat(CWD, proc_path(opened.as_fd(), None), mode, AtFlags::empty())
    }

    /// Sets owner and group; `None` leaves one as it is.
    pub(crate) fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        step()?;
        match self {
            Place::At(dir, name) => chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
            Place::Fd(fd) => chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    /// Sets access and modification time.
    pub(crate) fn utimens(
        &self,
        atime: Option<SetTime>,
        mtime: Option<SetTime>,
    ) -> Result<(), Errno> {
        let times = Timestamps {
            last_access: timespec(atime),
            last_modification: timespec(mtime),
        };
        step()?;
        match self {
            Place::At(dir, name) => utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
            Place::Fd(fd) => utimensat(fd, c"", &times, AtFlags::EMPTY_PATH),
        }
    }

    /// Makes a hard link to the file: `name` in `dir`.
    pub(crate) fn link_to(&self, dir: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        match self {
            Place::At(from, old) => linkat(from, old, dir, name, AtFlags::empty()),
            Place::Fd(fd) => {
                let path = proc_path(fd.as_fd(), None);
                linkat(CWD, &path, dir, name, AtFlags::SYMLINK_FOLLOW)
            }
        }
    }

    /// The value of an xattr; `None` if it is not there or the file system has none.
    pub(crate) fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>, Errno> {
        // Most values are short; only the rest asks twice.
        let mut value = Vec::with_capacity(256);
        let mut answer = self.read_xattr(name, &mut value);
        if answer == Err(Errno::RANGE) {
            value.reserve(XATTR_MAX);
            answer = self.read_xattr(name, &mut value);
        }
        match answer {
            Ok(()) => Ok(Some(value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_xattr(&self, name: &OsStr, value: &mut Vec<u8>) -> Result<(), Errno> {
        let buffer = rustix::buffer::spare_capacity(value);
        match self {
            Place::At(dir, entry) => {
                rustix::fs::lgetxattr(proc_path(dir.as_fd(), Some(entry)), name, buffer)?
            }
            Place::Fd(fd) => rustix::fs::getxattr(proc_path(fd.as_fd(), None), name, buffer)?,
        };
        Ok(())
    }

    /// The names of all xattrs.
    pub(crate) fn xattr_names(&self) -> Result<Vec<OsString>, Errno> {
        let mut list = Vec::with_capacity(512);
        let mut answer = self.read_xattr_names(&mut list);
        if answer == Err(Errno::RANGE) {
            list.reserve(XATTR_MAX);
            answer = self.read_xattr_names(&mut list);
        }
        match answer {
            Ok(()) => Ok(list
                .split(|byte| *byte == 0)
                .filter(|name| !name.is_empty())
                .map(|name| OsStr::from_bytes(name).to_owned())
                .collect()),
            Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn read_xattr_names(&self, list: &mut Vec<u8>) -> Result<(), Errno> {
        let buffer = rustix::buffer::spare_capacity(list);
        match self {
            Place::At(dir, entry) => {
                rustix::fs::llistxattr(proc_path(dir.as_fd(), Some(entry)), buffer)?
            }
            Place::Fd(fd) => rustix::fs::listxattr(proc_path(fd.as_fd(), None), buffer)?,
        };
        Ok(())
    }

    /// Sets an xattr.
    pub(crate) fn set_xattr(
        &self,
        name: &OsStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<(), Errno> {
        step()?;
        match self {
            Place::At(dir, entry) => {
                rustix::fs::lsetxattr(proc_path(dir.as_fd(), Some(entry)), name, value, flags)
            }
            Place::Fd(fd) => rustix::fs::setxattr(proc_path(fd.as_fd(), None), name, value, flags),
        }
    }

    /// Removes an xattr.
    pub(crate) fn remove_xattr(&self, name: &OsStr) -> Result<(), Errno> {
        step()?;
        match self {
            Place::At(dir, entry) => {
                rustix::fs::lremovexattr(proc_path(dir.as_fd(), Some(entry)), name)
            }
            Place::Fd(fd) => rustix::fs::removexattr(proc_path(fd.as_fd(), None), name),
        }
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        Some(SetTime::At(time)) => Timespec {
            tv_sec: time.secs,
            tv_nsec: i64::from(time.nanos),
        },
    }
}
