//! File handles: they name an inode with its generation, whatever becomes of its names
//! (`name_to_handle_at(2)`). They need `CAP_DAC_READ_SEARCH` and a file system that exports them.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// The most that the kernel writes (`MAX_HANDLE_SZ`).
const MAX_BYTES: u32 = 128;
const ROOM: usize = MAX_BYTES as usize;

/// The handle of one inode, within its file system.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct FileHandle {
    /// The file system's own type of handle, one byte wide on disk.
    pub(crate) kind: u8,
    /// Its opaque bytes.
    pub(crate) bytes: Vec<u8>,
}

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct RawHandle {
    handle_bytes: u32,
    handle_type: i32,
    f_handle: [u8; ROOM],
}

impl FileHandle {
    /// The handle of the file behind `fd`, which may be opened with `O_PATH`.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Result<FileHandle, Errno> {
        let mut raw = RawHandle {
            handle_bytes: MAX_BYTES,
            handle_type: 0,
            f_handle: [0; ROOM],
        };
        let mut mount_id = 0;
        // SAFETY: `raw` has the layout of struct file_handle with `handle_bytes` bytes behind it,
        // the path is a C string, and both outlive the call.
        #[allow(unsafe_code)]
        let result = unsafe {
            libc::name_to_handle_at(
                fd.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        };
        if result != 0 {
            return Err(last_errno());
        }
        let len = usize::try_from(raw.handle_bytes).unwrap_or(0).min(ROOM);
        Ok(FileHandle {
            kind: u8::try_from(raw.handle_type).map_err(|_| Errno::OPNOTSUPP)?,
            bytes: raw.f_handle[..len].to_vec(),
        })
    }

    /// Opens the inode (`O_PATH`); `mount` is any descriptor on its file system.
    pub(crate) fn open(&self, mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        if self.bytes.len() > ROOM {
            return Err(Errno::STALE);
        }
        let mut raw = RawHandle {
            handle_bytes: u32::try_from(self.bytes.len()).map_err(|_| Errno::STALE)?,
            handle_type: i32::from(self.kind),
            f_handle: [0; ROOM],
        };
        raw.f_handle[..self.bytes.len()].copy_from_slice(&self.bytes);
        // SAFETY: as above; the kernel only reads `raw`.
        #[allow(unsafe_code)]
        let fd = unsafe {
            libc::open_by_handle_at(
                mount.as_raw_fd(),
                (&raw mut raw).cast(),
                libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW,
            )
        };
        if fd < 0 {
            return Err(last_errno());
        }
        // SAFETY: the call above made this descriptor, and nobody else owns it.
        #[allow(unsafe_code)]
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
