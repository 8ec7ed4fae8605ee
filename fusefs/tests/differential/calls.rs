//! The system calls that an operation is made of.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid, XattrFlags};
use rustix::io::Errno;

use crate::script::disk;
use crate::script::{Allocate, Device, Renaming, Setting, Special, Time, User, data};
use crate::seen::Moment;

/// What [`User::Unprivileged`] is.
const USER: u32 = 1000;

/// Does something as a user; afterwards the thread is root again.
pub(crate) fn as_user<T>(user: User, act: impl FnOnce() -> T) -> T {
    match user {
        User::Root => act(),
        User::Unprivileged => {
            let identify = |id: u32| {
                rustix::thread::set_thread_res_gid(None, Gid::from_raw(id), None).unwrap();
                rustix::thread::set_thread_res_uid(None, Uid::from_raw(id), None).unwrap();
            };
            rustix::thread::set_thread_groups(&[]).unwrap();
            identify(USER);
            let result = act();
            rustix::thread::set_thread_res_uid(None, Uid::ROOT, None).unwrap();
            identify(0);
            result
        }
    }
}

pub(crate) fn open(path: &Path, flags: OFlags, mode: u32) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::from_raw_mode(mode))
}

pub(crate) fn mknod(path: &Path, kind: Special, mode: u32) -> rustix::io::Result<()> {
    let (kind, (major, minor)) = match kind {
        Special::Regular => (FileType::RegularFile, (0, 0)),
        Special::Pipe => (FileType::Fifo, (0, 0)),
        Special::Socket => (FileType::Socket, (0, 0)),
        Special::Of(Device::Char(major, minor)) => (FileType::CharacterDevice, (major, minor)),
        Special::Of(Device::Block(major, minor)) => (FileType::BlockDevice, (major, minor)),
    };
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(mode), device)
}

pub(crate) fn renaming(how: Renaming) -> RenameFlags {
    match how {
        Renaming::Plain => RenameFlags::empty(),
        Renaming::NoReplace => RenameFlags::NOREPLACE,
        Renaming::Exchange => RenameFlags::EXCHANGE,
        Renaming::LeaveWhiteout => RenameFlags::WHITEOUT,
    }
}

pub(crate) fn allocating(how: Allocate) -> FallocateFlags {
    match how {
        Allocate::Extend => FallocateFlags::empty(),
        Allocate::KeepSize => FallocateFlags::KEEP_SIZE,
        Allocate::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        Allocate::ZeroRange => FallocateFlags::ZERO_RANGE,
    }
}

pub(crate) fn setting(how: Setting) -> XattrFlags {
    match how {
        Setting::AnyWay => XattrFlags::empty(),
        Setting::MustCreate => XattrFlags::CREATE,
        Setting::MustReplace => XattrFlags::REPLACE,
    }
}

pub(crate) fn write(file: &File, at: u64, len: u32, byte: u8) -> rustix::io::Result<()> {
    file.write_all_at(&data(byte, len), at).map_err(errno)
}

/// From the start, whatever was read before; what has no start is read on.
pub(crate) fn read_all(file: &File) -> rustix::io::Result<Vec<u8>> {
    let _ = rustix::fs::seek(file.as_fd(), rustix::fs::SeekFrom::Start(0));
    let mut content = Vec::new();
    (&*file).read_to_end(&mut content).map_err(errno)?;
    Ok(content)
}

#[allow(unsafe_code)]
pub(crate) fn truncate(path: &Path, size: u64) -> rustix::io::Result<()> {
    if stat(path)?.is_symlink() {
        return Err(Errno::LOOP);
    }
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a string that ends with NUL, and outlives the call.
    match unsafe { libc::truncate(path.as_ptr(), size.try_into().unwrap()) } {
        0 => Ok(()),
        _ => Err(errno(std::io::Error::last_os_error())),
    }
}

pub(crate) fn chmod(path: &Path, mode: u32) -> rustix::io::Result<()> {
    if stat(path)?.is_symlink() {
        return Err(Errno::OPNOTSUPP);
    }
    rustix::fs::chmod(path, Mode::from_raw_mode(mode))
}

/// The times that were set are seen at once: reading changes one of them.
pub(crate) fn utimens(
    path: &Path,
    atime: Option<Time>,
    mtime: Option<Time>,
) -> rustix::io::Result<(Moment, Moment)> {
    disk::set_times(path, atime, mtime)?;
    let meta = stat(path)?;
    let accessed = match atime {
        Some(_) => Moment::new(meta.atime(), meta.atime_nsec()),
        None => Moment::Now,
    };
    Ok((accessed, Moment::new(meta.mtime(), meta.mtime_nsec())))
}

pub(crate) fn stat(path: &Path) -> rustix::io::Result<fs::Metadata> {
    fs::symlink_metadata(path).map_err(errno)
}

#[allow(clippy::needless_pass_by_value)] // for map_err
pub(crate) fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or_else(|| panic!("no errno: {error}"))
}
