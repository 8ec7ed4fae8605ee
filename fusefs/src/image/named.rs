//! The handles by which an upper remembers files of its image.
//!
//! A file of a directory has the handle that its file system gives it (`name_to_handle_at(2)`). A file
//! of a blob is no file of this host, so it gets one of our own making, which says which blob it is of,
//! its inode number there, and its number of links: all of which never change. The kernel knows no
//! such type of handle, and nobody asks it.

use std::os::fd::AsFd as _;

use rustix::fs::fstat;
use rustix::io::Errno;

use super::{Image, ImageId};
use crate::error::Result;
use crate::sys::handle::FileHandle;
use crate::types::FileKind;

/// The type of our own handles. The kernel has none of this number (`enum fid_type`).
const OF_BLOB: u8 = 0xb1;

/// The bit that no file system's number has.
const BLOB_DEVICE: u64 = 1 << 63;

/// What a handle names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Named {
    /// Device and inode number: the key of hard links.
    pub(crate) key: (u64, u64),
    /// How many links the file has.
    pub(crate) nlink: u64,
}

impl Image {
    /// The handle of a file; `None` where its file system has none, or without the privilege to ask.
    pub(crate) fn handle(&self, id: ImageId) -> Result<Option<FileHandle>> {
        let key = self.link_key(id)?;
        if key.0 & BLOB_DEVICE != 0 {
            let is_dir = self.kind(id) == FileKind::Directory;
            let nlink = if is_dir {
                1
            } else {
                self.attr(id)?.nlink.into()
            };
            return Ok(Some(of_blob(Named { key, nlink })));
        }
        let Some(file) = self.host_file(id)? else {
            return Ok(None);
        };
        match FileHandle::of(file.as_fd()) {
            Ok(handle) => Ok(Some(handle)),
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::OVERFLOW) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What a handle names, on the file systems of the layers, whether one of them holds it or not, or
    /// in a blob; `None`: nothing any more. EPERM: without the privilege nothing can be said.
    pub(crate) fn by_handle(&self, handle: &FileHandle) -> Result<Option<Named>, Errno> {
        if let Some(named) = in_blob(handle) {
            let mut layers = self.layers().iter();
            let is_ours = layers.any(|layer| layer.device() == named.key.0);
            return Ok(Some(named).filter(|_| is_ours));
        }
        let layers = self.layers().iter();
        for file_system in layers.filter_map(|layer| layer.file_system()) {
            // It carries the inode's generation: a stale one finds nothing.
            match handle.open(file_system) {
                Ok(fd) => {
                    let stat = fstat(&fd)?;
                    return Ok(Some(Named {
                        key: (stat.st_dev, stat.st_ino),
                        nlink: stat.st_nlink,
                    }));
                }
                Err(Errno::PERM) => return Err(Errno::PERM),
                Err(_) => {}
            }
        }
        Ok(None)
    }
}

fn of_blob(named: Named) -> FileHandle {
    let numbers = [named.key.0, named.key.1, named.nlink];
    FileHandle {
        kind: OF_BLOB,
        bytes: numbers.into_iter().flat_map(u64::to_le_bytes).collect(),
    }
}

fn in_blob(handle: &FileHandle) -> Option<Named> {
    let (numbers, rest) = handle.bytes.as_chunks::<8>();
    let &[device, ino, nlink] = numbers else {
        return None;
    };
    let [device, ino, nlink] = [device, ino, nlink].map(u64::from_le_bytes);
    let is_one = handle.kind == OF_BLOB && rest.is_empty() && device & BLOB_DEVICE != 0;
    is_one.then_some(Named {
        key: (device, ino),
        nlink,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_of_a_blob_comes_back_and_no_other_is_taken_for_one() {
        let named = Named {
            key: (BLOB_DEVICE | 5, 77),
            nlink: 3,
        };
        let handle = of_blob(named);
        assert_eq!(in_blob(&handle), Some(named));
        let mut other = handle.clone();
        other.kind = 1;
        assert_eq!(in_blob(&other), None);
        for bytes in [0, 8, 23, 25, 32] {
            let mut other = handle.clone();
            other.bytes.resize(bytes, 0xff);
            assert_eq!(in_blob(&other), None, "{bytes} bytes");
        }
        let of_device = Named {
            key: (5, 77),
            ..named
        };
        assert_eq!(in_blob(&of_blob(of_device)), None);
    }
}
