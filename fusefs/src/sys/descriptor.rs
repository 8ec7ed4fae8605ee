//! Descriptors as a process gets them, hands them on, and compares them.

use std::env;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Resource, getrlimit};

/// The first descriptor that a service manager passes (`sd_listen_fds(3)`).
const FIRST: RawFd = 3;

/// `kcmp(2)`: are these two numbers one open file?
const KCMP_FILE: libc::c_int = 0;

/// How many descriptors are reserved at most for what lives for a moment.
const MOST_RESERVED: u64 = 4096;

/// Whether each descriptor was taken already: each has one owner.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The descriptors that the service manager passed to this process, in its order; they are closed
/// on exec from here on. Only the first call gets them.
pub(crate) fn take_passed() -> io::Result<Vec<OwnedFd>> {
    let number = |name| env::var(name).ok()?.parse::<u32>().ok();
    let meant = number("LISTEN_PID") == Some(process::id());
    let count = number("LISTEN_FDS").filter(|_| meant).unwrap_or(0);
    if count == 0 || TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let count = RawFd::try_from(count).unwrap_or(RawFd::MAX - FIRST);
    let mut passed = Vec::new();
    for number in FIRST..FIRST.saturating_add(count) {
        // SAFETY: fcntl with F_SETFD changes one flag of a number, and says so if it is not open.
        #[allow(unsafe_code)]
        let answer = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the number is open, as fcntl has just said. Whoever started this process says by
        // LISTEN_PID and LISTEN_FDS that this process is the one to own it, so it was open before
        // `main` and nothing else in here has taken it for its own; `TAKEN` lets us do so once.
        #[allow(unsafe_code)]
        passed.push(unsafe { OwnedFd::from_raw_fd(number) });
    }
    Ok(passed)
}

/// Marks everything but the standard streams to be closed on exec. Rust opens files so; what the
/// process inherited may be open for its children, too.
pub(crate) fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC the call closes nothing and only sets a flag.
    #[allow(unsafe_code)]
    let answer = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether two descriptors are duplicates of one: not the same file only, but the same open of it.
/// Where the kernel can't tell, the answer is no.
pub(crate) fn are_one(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    let me = process::id();
    // SAFETY: kcmp compares two numbers of a process and changes nothing.
    #[allow(unsafe_code)]
    let answer = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            me,
            me,
            KCMP_FILE,
            a.as_raw_fd(),
            b.as_raw_fd(),
        )
    };
    answer == 0
}

/// Refuses with EMFILE where only the last eighth of the descriptors that this process may have is left.
/// What lives as long as somebody else wants (open files of containers, mounts) asks here first, so that what
/// lives for a moment (a lookup, a connection, a transaction) always finds one.
pub(crate) fn require_room() -> io::Result<()> {
    static PROBE: OnceLock<(File, u64)> = OnceLock::new();
    let (probe, limit) = if let Some(known) = PROBE.get() {
        known
    } else {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let file = File::open("/dev/null")?;
        PROBE.get_or_init(|| (file, limit))
    };
    // The number is the lowest that is free, so all below it are taken.
    let lowest = fcntl_dupfd_cloexec(probe, 0)?;
    if is_room(lowest.as_raw_fd(), *limit) {
        return Ok(());
    }
    Err(Errno::MFILE.into())
}

/// Whether descriptors with this number and below are few enough.
fn is_room(lowest: RawFd, limit: u64) -> bool {
    u64::try_from(lowest).is_ok_and(|taken| taken < limit - (limit / 8).min(MOST_RESERVED))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

    use super::*;

    #[test]
    fn a_duplicate_is_one_with_its_original_and_another_open_is_not() {
        let file = File::open("/dev/null").unwrap();
        let duplicate = file.try_clone().unwrap();
        let other = File::open("/dev/null").unwrap();
        assert!(are_one(file.as_fd(), duplicate.as_fd()));
        assert!(!are_one(file.as_fd(), other.as_fd()));
    }

    #[test]
    fn what_was_open_for_children_is_closed_on_exec() {
        let file = File::open("/dev/null").unwrap();
        fcntl_setfd(&file, FdFlags::empty()).unwrap();
        close_all_on_exec().unwrap();
        assert_eq!(fcntl_getfd(&file).unwrap(), FdFlags::CLOEXEC);
    }

    #[test]
    fn the_last_eighth_of_the_descriptors_is_no_room() {
        assert!(is_room(895, 1024));
        assert!(!is_room(896, 1024));
        assert!(is_room((1 << 20) - 4097, 1 << 20));
        assert!(!is_room((1 << 20) - 4096, 1 << 20));
        assert!(is_room(RawFd::MAX, u64::MAX));
        require_room().unwrap();
    }

    #[test]
    fn whoever_was_passed_nothing_gets_nothing() {
        assert!(take_passed().unwrap().is_empty());
    }
}
