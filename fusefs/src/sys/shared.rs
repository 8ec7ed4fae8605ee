//! Memory that outlives this process, for as long as somebody keeps its descriptor.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::io::Errno;

/// A memory file (`memfd_create(2)`) that is mapped. What was written is there for whoever maps it
/// next, wherever a `kill -9` cut its writer off. Pages that were never touched take no memory.
#[derive(Debug)]
pub(crate) struct Shared {
    file: File,
    map: MmapRaw,
}

impl Shared {
    /// New memory of `len` bytes, all of them zero.
    pub(crate) fn create(name: &str, len: u64) -> io::Result<Shared> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC)?;
        ftruncate(&file, len)?;
        Shared::open(file.into())
    }

    /// Memory that somebody made and kept.
    pub(crate) fn open(file: File) -> io::Result<Shared> {
        // Not by `File`'s metadata alone: a file of a disk would be mapped as well, and whoever
        // truncates it ends this process.
        if rustix::fs::fcntl_get_seals(&file).is_err() {
            return Err(Errno::INVAL.into());
        }
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let map = MmapOptions::new().len(len).map_raw(&file)?;
        Ok(Shared { file, map })
    }

    /// The descriptor that keeps it.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Writes bytes at an offset; `false` if they don't fit.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) -> bool {
        if !self.has(at, bytes.len()) {
            return false;
        }
        // SAFETY: the range lies in the mapping, which `bytes` can't be a part of: nobody gets a
        // reference into it. Who writes at the same time is the caller's business, and a matter of
        // values only: the bytes have no invariants.
        #[allow(unsafe_code)]
        unsafe {
            let target = self.map.as_mut_ptr().add(at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
        true
    }

    /// A copy of `len` bytes at an offset; `None` if there are not so many.
    pub(crate) fn read(&self, at: usize, len: usize) -> Option<Vec<u8>> {
        if !self.has(at, len) {
            return None;
        }
        let mut bytes = vec![0; len];
        // SAFETY: as in `write`.
        #[allow(unsafe_code)]
        unsafe {
            let source = self.map.as_ptr().add(at);
            std::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), len);
        }
        Some(bytes)
    }

    /// The number at an offset, a multiple of 8 within the memory (0 if it is not). What was written
    /// before it was stored is seen by whoever loads it.
    pub(crate) fn load(&self, at: usize) -> u64 {
        self.number(at)
            .map_or(0, |number| number.load(Ordering::Acquire))
    }

    /// Stores a number at an offset, after all that was written before.
    pub(crate) fn store(&self, at: usize, value: u64) {
        if let Some(number) = self.number(at) {
            number.store(value, Ordering::Release);
        }
    }

    /// Gives the pages of a range back; they read as zeros afterwards.
    pub(crate) fn clear(&self, at: u64, len: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = fallocate(&self.file, flags, at, len) {
            tracing::debug!(%error, "memory of a record was not given back");
        }
    }

    fn number(&self, at: usize) -> Option<&AtomicU64> {
        if !at.is_multiple_of(8) || !self.has(at, 8) {
            return None;
        }
        // SAFETY: the mapping begins at a page and `at` is a multiple of 8, so it is aligned; it lies
        // within the mapping, which lives as long as `self`. A number is only accessed this way
        // while others may.
        #[allow(unsafe_code)]
        Some(unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(at).cast()) })
    }

    fn has(&self, at: usize, len: usize) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_for_whoever_maps_it_next() {
        let first = Shared::create("test", 1 << 30).unwrap();
        assert!(first.write(4096, b"hello"));
        first.store(8, 7);
        let file = first.file().try_clone().unwrap();
        drop(first);
        let second = Shared::open(file).unwrap();
        assert_eq!(second.read(4096, 5).unwrap(), b"hello");
        assert_eq!(second.load(8), 7);
        second.clear(4096, 4096);
        assert_eq!(second.read(4096, 5).unwrap(), [0; 5]);
    }

    #[test]
    fn nothing_is_touched_beyond_the_end() {
        let shared = Shared::create("test", 4096).unwrap();
        assert!(!shared.write(4095, b"ab") && !shared.write(usize::MAX, b"a"));
        assert!(shared.read(4090, 7).is_none());
        shared.store(4092, 1);
        shared.store(4096, 1);
        assert_eq!((shared.load(4092), shared.load(4096)), (0, 0));
    }
}
