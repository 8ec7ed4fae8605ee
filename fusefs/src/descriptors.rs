//! What a process can do with descriptors as such: get them from whoever started it, keep them from
//! its children, and tell whether two of them are one.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::sys::descriptor;

/// The descriptors that the service manager passed to this process (`LISTEN_FDS`), in its order. Only
/// the first call gets them.
pub fn take_passed() -> io::Result<Vec<OwnedFd>> {
    descriptor::take_passed()
}

/// Keeps everything but the standard streams from the programs that this process starts (Linux 5.11).
pub fn close_all_on_exec() -> io::Result<()> {
    descriptor::close_all_on_exec()
}

/// Whether two descriptors are duplicates of one. Where the kernel can't tell, the answer is no.
pub fn are_one(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    descriptor::are_one(a, b)
}

/// Refuses with EMFILE where so few descriptors are left that what lives for a moment needs them. Whoever
/// keeps one for as long as somebody else wants asks here first.
pub fn require_room() -> io::Result<()> {
    descriptor::require_room()
}
