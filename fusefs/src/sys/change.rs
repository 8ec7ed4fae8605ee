//! The system calls that change what is on disk. All of the union's go through here, so that tests
//! can stop the world before any one of them.
//!
//! A crash shows the disk as it was between two of these calls; a full or failing disk refuses one
//! of them. Unit tests do both, at every call of every operation ([`faults`]). Elsewhere
//! [`step`] is nothing.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::path::Arg;

/// The moment before a change.
#[cfg(not(test))]
#[allow(clippy::unnecessary_wraps)] // in tests it can fail
#[inline]
pub(crate) fn step() -> Result<(), Errno> {
    Ok(())
}

/// As much of what is written as the disk has room for.
#[cfg(not(test))]
#[allow(clippy::unnecessary_wraps)] // as `step`
#[inline]
fn room(data: &[u8]) -> Result<&[u8], Errno> {
    Ok(data)
}

#[cfg(test)]
use faults::room;
#[cfg(test)]
pub(crate) use faults::step;

/// Makes a regular file, which must not exist.
pub(crate) fn create(dir: impl AsFd, name: impl Arg, mode: Mode) -> Result<OwnedFd, Errno> {
    step()?;
    let how = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, how, mode)
}

/// `mkdirat(2)`.
pub(crate) fn mkdirat(dir: impl AsFd, name: impl Arg, mode: Mode) -> Result<(), Errno> {
    step()?;
    rustix::fs::mkdirat(dir, name, mode)
}

/// `mknodat(2)`.
pub(crate) fn mknodat(
    dir: impl AsFd,
    name: impl Arg,
    kind: FileType,
    mode: Mode,
    device: u64,
) -> Result<(), Errno> {
    step()?;
    rustix::fs::mknodat(dir, name, kind, mode, device)
}

/// `symlinkat(2)`.
pub(crate) fn symlinkat(target: impl Arg, dir: impl AsFd, name: impl Arg) -> Result<(), Errno> {
    step()?;
    rustix::fs::symlinkat(target, dir, name)
}

/// `linkat(2)`.
pub(crate) fn linkat(
    from: impl AsFd,
    old: impl Arg,
    to: impl AsFd,
    new: impl Arg,
    flags: AtFlags,
) -> Result<(), Errno> {
    step()?;
    rustix::fs::linkat(from, old, to, new, flags)
}

/// `renameat(2)`.
pub(crate) fn renameat(
    from: impl AsFd,
    old: impl Arg,
    to: impl AsFd,
    new: impl Arg,
) -> Result<(), Errno> {
    step()?;
    rustix::fs::renameat(from, old, to, new)
}

/// `renameat2(2)`.
pub(crate) fn renameat_with(
    from: impl AsFd,
    old: impl Arg,
    to: impl AsFd,
    new: impl Arg,
    flags: RenameFlags,
) -> Result<(), Errno> {
    step()?;
    rustix::fs::renameat_with(from, old, to, new, flags)
}

/// `unlinkat(2)`.
pub(crate) fn unlinkat(dir: impl AsFd, name: impl Arg, flags: AtFlags) -> Result<(), Errno> {
    step()?;
    rustix::fs::unlinkat(dir, name, flags)
}

/// `ftruncate(2)`.
pub(crate) fn ftruncate(file: impl AsFd, size: u64) -> Result<(), Errno> {
    step()?;
    rustix::fs::ftruncate(file, size)
}

/// `fallocate(2)`.
pub(crate) fn fallocate(
    file: impl AsFd,
    mode: FallocateFlags,
    offset: u64,
    len: u64,
) -> Result<(), Errno> {
    step()?;
    rustix::fs::fallocate(file, mode, offset, len)
}

/// `copy_file_range(2)` at explicit offsets (bytes).
pub(crate) fn copy_file_range(
    from: (&File, u64),
    to: (&File, u64),
    len: usize,
) -> Result<usize, Errno> {
    step()?;
    let (mut from_at, mut to_at) = (from.1, to.1);
    rustix::fs::copy_file_range(from.0, Some(&mut from_at), to.0, Some(&mut to_at), len)
}

/// The `FICLONE` ioctl (`ioctl_ficlone(2)`): shares all blocks of `from`.
pub(crate) fn clone_data(from: &File, to: &File) -> Result<(), Errno> {
    step()?;
    rustix::fs::ioctl_ficlone(to, from)
}

/// Writes all of `data` at `offset` (bytes).
pub(crate) fn write_all_at(file: &File, data: &[u8], offset: u64) -> Result<(), Errno> {
    step()?;
    file.write_all_at(data, offset)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// `pwrite(2)`; fewer bytes than asked where the disk is full.
fn write_at(file: &File, data: &[u8], offset: u64) -> Result<usize, Errno> {
    step()?;
    rustix::io::pwrite(file, room(data)?, offset)
}

/// Writes `data` at `offset` as far as it can be: how much was written, and what ended it early.
pub(crate) fn write_most_at(file: &File, data: &[u8], offset: u64) -> (usize, Option<Errno>) {
    let mut done = 0;
    while done < data.len() {
        match write_at(file, &data[done..], offset + done as u64) {
            Ok(0) => return (done, Some(Errno::IO)),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return (done, Some(error)),
        }
    }
    (done, None)
}

/// The same for somebody who asks again for the rest: an error only if nothing was written.
pub(crate) fn write_some_at(file: &File, data: &[u8], offset: u64) -> Result<usize, Errno> {
    match write_most_at(file, data, offset) {
        (0, Some(error)) => Err(error),
        (done, _) => Ok(done),
    }
}

/// `fsync(2)`.
pub(crate) fn fsync(file: impl AsFd) -> Result<(), Errno> {
    step()?;
    rustix::fs::fsync(file)
}

/// `fdatasync(2)`.
pub(crate) fn fdatasync(file: impl AsFd) -> Result<(), Errno> {
    step()?;
    rustix::fs::fdatasync(file)
}

/// Faults for tests, on the thread that asks for them.
#[cfg(test)]
pub(crate) mod faults {
    use std::cell::Cell;

    use rustix::io::Errno;

    /// What happens to the changes of this thread.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    pub(crate) enum Fault {
        /// Nothing; the changes are counted.
        Never,
        /// After this many changes the world stops: no further one reaches the disk.
        CrashAfter(u64),
        /// After this many changes one fails with this errno; later ones work.
        FailAfter(u64, Errno),
        /// After this many bytes of files' data the disk is full.
        FullAfter(usize),
    }

    thread_local! {
        static FAULT: Cell<Fault> = const { Cell::new(Fault::Never) };
        static STEPS: Cell<u64> = const { Cell::new(0) };
    }

    /// Runs `work` under a fault. Returns its result, and how many changes it tried.
    pub(crate) fn with<T>(fault: Fault, work: impl FnOnce() -> T) -> (T, u64) {
        FAULT.set(fault);
        STEPS.set(0);
        let result = work();
        FAULT.set(Fault::Never);
        (result, STEPS.get())
    }

    pub(super) fn room(data: &[u8]) -> Result<&[u8], Errno> {
        match FAULT.get() {
            Fault::FullAfter(0) => Err(Errno::NOSPC),
            Fault::FullAfter(left) => {
                let fits = data.len().min(left);
                FAULT.set(Fault::FullAfter(left - fits));
                Ok(&data[..fits])
            }
            _ => Ok(data),
        }
    }

    /// Counts a change that can't fail, and says whether the world has stopped before it.
    pub(crate) fn has_stopped() -> bool {
        match FAULT.get() {
            Fault::CrashAfter(_) => step().is_err(),
            Fault::Never => {
                STEPS.set(STEPS.get() + 1);
                false
            }
            // An error is one of the disk.
            Fault::FailAfter(..) | Fault::FullAfter(_) => false,
        }
    }

    pub(crate) fn step() -> Result<(), Errno> {
        let before = STEPS.replace(STEPS.get() + 1);
        match FAULT.get() {
            Fault::CrashAfter(count) if before >= count => Err(Errno::IO),
            Fault::FailAfter(count, errno) if before == count => Err(errno),
            _ => Ok(()),
        }
    }
}
