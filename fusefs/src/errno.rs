//! The one place where an [`Error`] becomes an errno.

use std::io;

use rustix::io::Errno;

use crate::error::Error;

impl Error {
    /// The errno that the caller of the file system sees.
    pub fn errno(&self) -> Errno {
        match self {
            Error::Io(error) | Error::Path { source: error, .. } => errno_of(error),
            Error::NotFound => Errno::NOENT,
            Error::Exists => Errno::EXIST,
            Error::NotDirectory => Errno::NOTDIR,
            Error::IsDirectory => Errno::ISDIR,
            Error::NotEmpty => Errno::NOTEMPTY,
            Error::ReadOnly => Errno::ROFS,
            Error::NotPermitted => Errno::PERM,
            Error::Running => Errno::TXTBSY,
            Error::Invalid => Errno::INVAL,
            Error::NameTooLong => Errno::NAMETOOLONG,
            Error::NoXattr => Errno::NODATA,
            Error::NotSupported => Errno::OPNOTSUPP,
            // The VFS answers ESTALE by walking the path again with LOOKUP_REVAL; a node that
            // is not known any more is the same situation (path_openat, fs/namei.c).
            Error::HandedOver | Error::UnknownNode(_) => Errno::STALE,
            Error::UnknownHandle(_) => Errno::BADF,
            // The layer or the index is damaged: the same answer as for a damaged disk.
            Error::BadLayer { .. }
            | Error::BadIndex { .. }
            | Error::Blob { .. }
            | Error::Record { .. } => Errno::IO,
        }
    }
}

/// An I/O error that came from no system call is a fault of ours or of a layer: EIO.
fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
