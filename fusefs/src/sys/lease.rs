//! Whether somebody has a file open.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Whether a file is open by any other descriptor, or mapped, or passed through. Asked by way of a write
/// lease (fcntl(2), `F_SETLEASE`), which is given to nobody if it is; where there are no leases, the
/// answer is no.
pub(crate) fn is_open_elsewhere(file: BorrowedFd<'_>) -> bool {
    let set = |lease: libc::c_int| {
        // SAFETY: the descriptor is open, and the argument is a number.
        #[allow(unsafe_code)]
        unsafe {
            libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, lease)
        }
    };
    if set(libc::F_WRLCK) == 0 {
        set(libc::F_UNLCK);
        return false;
    }
    std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_is_open_as_long_as_anybody_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        assert!(!is_open_elsewhere(file.as_fd()));
        let other = File::open(&path).unwrap();
        assert!(is_open_elsewhere(file.as_fd()));
        drop(other);
        assert!(!is_open_elsewhere(file.as_fd()));
    }
}
