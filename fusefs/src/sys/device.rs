//! What `/dev/fuse` has to be asked without a request.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// `FUSE_DEV_IOC_BACKING_CLOSE` of `<linux/fuse.h>`: `_IOW(229, 2, uint32_t)`.
const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;

/// Takes a number of a backing file back from the kernel. Files that are open with it stay so.
pub(crate) fn close_backing(device: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    // SAFETY: the call reads one number of 32 bits, which outlives it.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE as _, &raw const id) };
    checked(result)
}

/// Makes the descriptor `number` mean what `with` means, in one step.
pub(crate) fn replace(number: BorrowedFd<'_>, with: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: both are open; whoever owns the number owns it as before.
    #[allow(unsafe_code)]
    let result = unsafe { libc::dup3(with.as_raw_fd(), number.as_raw_fd(), libc::O_CLOEXEC) };
    checked(result)
}

fn checked(result: libc::c_int) -> Result<(), Errno> {
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(())
}
