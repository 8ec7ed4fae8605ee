//! Which parts of a file have data of their own, and on which file systems that can be relied on.
//!
//! A hole that nobody wrote to stays one, whatever happens to the blocks beside it, where
//!
//! - the file system's block is a page, so that no write gives data to more than what it covers;
//! - blocks become visible with their data only: what a power loss cuts off is a hole again or an
//!   unwritten extent, which is told apart here.
//!
//! ext4 (`data=ordered`) and xfs keep both promises. btrfs does not: growing a file whose last block is
//! a hole writes that block (`btrfs_cont_expand`); but it can clone. tmpfs keeps the first unless it
//! uses huge pages, so it is tried. `docs/decisions/0009-partial-copy-up.md` has the sources.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags, SeekFrom, fstatfs, openat, seek};
use rustix::io::Errno;
use rustix::ioctl::{Updater, ioctl};
use rustix::param::page_size;

/// The unit in which data are told apart from holes (bytes).
pub(crate) const BLOCK: u64 = BLOCK_LENGTH as u64;
const BLOCK_LENGTH: usize = 4096;

/// `statfs(2)`, `f_type`.
const EXT4: i64 = 0xEF53;
const XFS: i64 = 0x5846_5342;
const TMPFS: i64 = 0x0102_1994;

/// A part of a file that has space on disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Extent {
    pub(crate) start: u64,
    /// Exclusive.
    pub(crate) end: u64,
    /// Whether the space has data. It does not if it was reserved alone.
    pub(crate) is_written: bool,
}

/// Whether the holes of files in this directory's file system are what nobody wrote to.
pub(crate) fn holes_are_exact(dir: &OwnedFd) -> Result<bool, Errno> {
    let stat = fstatfs(dir)?;
    let size = u64::try_from(stat.f_bsize).unwrap_or(0);
    if size != BLOCK || page_size() as u64 != BLOCK {
        return Ok(false);
    }
    match stat.f_type {
        EXT4 | XFS => Ok(true),
        TMPFS => one_block_alone(dir),
        _ => Ok(false),
    }
}

/// Whether one written block in the middle of a hole is all that has data then.
fn one_block_alone(dir: &OwnedFd) -> Result<bool, Errno> {
    const SIZE: u64 = 8 << 20;
    const AT: u64 = 3 << 20;
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file = File::from(openat(dir, c".", flags, Mode::RUSR | Mode::WUSR)?);
    rustix::fs::ftruncate(&file, SIZE)?;
    let written = file.write_all_at(&[1; BLOCK_LENGTH], AT);
    written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let alone = Extent {
        start: AT,
        end: AT + BLOCK,
        is_written: true,
    };
    Ok(extents(&file, SIZE)? == [alone])
}

/// The parts of a file that have space, in order, up to `end`. What is written is on disk then.
pub(crate) fn extents(file: &File, end: u64) -> Result<Vec<Extent>, Errno> {
    match mapped(file, end) {
        // tmpfs: nothing is reserved there, and nothing outlives a power loss.
        Err(Errno::OPNOTSUPP | Errno::NOTTY) => data_ranges(file, end),
        other => other,
    }
}

fn data_ranges(file: &File, end: u64) -> Result<Vec<Extent>, Errno> {
    let mut found = Vec::new();
    let mut offset = 0;
    while offset < end {
        let start = match seek(file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        offset = seek(file, SeekFrom::Hole(start))?;
        found.push(Extent {
            start,
            end: offset,
            is_written: true,
        });
    }
    found.retain(|extent| extent.start < end);
    Ok(found)
}

/// How many extents one call tells.
const ROOM: usize = 128;
const COUNT: u32 = 128;

/// `FS_IOC_FIEMAP` (`Documentation/filesystems/fiemap.rst`).
const FIEMAP: rustix::ioctl::Opcode = 0xC020_660B;
/// Writes to the disk first, so that no data are in the page cache alone.
const FIEMAP_FLAG_SYNC: u32 = 1;
const FIEMAP_EXTENT_LAST: u32 = 1;
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;

/// `struct fiemap` with room for its extents.
#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [RawExtent; ROOM],
}

/// `struct fiemap_extent`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

fn mapped(file: &File, end: u64) -> Result<Vec<Extent>, Errno> {
    let mut found = Vec::new();
    let mut start = 0;
    while start < end {
        let mut request = Request {
            start,
            length: end - start,
            flags: FIEMAP_FLAG_SYNC,
            mapped: 0,
            count: COUNT,
            reserved: 0,
            extents: [RawExtent::default(); ROOM],
        };
        // SAFETY: `Request` has the layout of struct fiemap with `count` extents behind it, and the
        // kernel writes no more than those.
        #[allow(unsafe_code)]
        unsafe {
            ioctl(file.as_fd(), Updater::<FIEMAP, Request>::new(&mut request))?;
        }
        let told = usize::try_from(request.mapped).unwrap_or(0).min(ROOM);
        let told = &request.extents[..told];
        found.extend(told.iter().map(|raw| Extent {
            start: raw.logical,
            end: raw.logical.saturating_add(raw.length),
            is_written: raw.flags & FIEMAP_EXTENT_UNWRITTEN == 0,
        }));
        match told.last() {
            Some(last) if last.flags & FIEMAP_EXTENT_LAST == 0 => {
                start = last.logical.saturating_add(last.length);
            }
            _ => break,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_told_and_nothing_else() {
        // One of them is a tmpfs.
        for dir in [std::path::Path::new("/dev/shm"), &std::env::temp_dir()] {
            let file = tempfile::tempfile_in(dir).unwrap();
            file.set_len(1 << 20).unwrap();
            for block in [3, 4, 9] {
                file.write_all_at(&[7; BLOCK_LENGTH], block * BLOCK)
                    .unwrap();
            }
            let told = extents(&file, 1 << 20).unwrap();
            let mut blocks = Vec::new();
            for extent in &told {
                assert!(extent.is_written, "{told:?}");
                blocks.extend(extent.start / BLOCK..extent.end / BLOCK);
            }
            assert_eq!(blocks, [3, 4, 9], "{dir:?}");
        }
    }

    #[test]
    fn a_file_that_ends_in_a_hole_still_does_when_it_grows() {
        for dir in [std::path::Path::new("/dev/shm"), &std::env::temp_dir()] {
            let file = tempfile::tempfile_in(dir).unwrap();
            file.set_len(BLOCK + 904).unwrap();
            file.set_len(10 * BLOCK + 1).unwrap();
            file.write_all_at(b"x", 20 * BLOCK).unwrap();
            let told = extents(&file, 20 * BLOCK).unwrap();
            let exact = holes_are_exact(&File::open(dir).unwrap().into()).unwrap();
            assert!(told.is_empty() || !exact, "{dir:?}: {told:?}");
        }
    }

    #[test]
    fn reserved_space_is_not_data() {
        let file = tempfile::tempfile().unwrap();
        let reserve = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, reserve, 0, 4 * BLOCK).unwrap();
        // Read into the page cache, SEEK_DATA calls it data.
        file.read_exact_at(&mut [0; 4 * BLOCK_LENGTH], 0).unwrap();
        let told = extents(&file, 4 * BLOCK).unwrap();
        assert!(!told.is_empty());
        assert!(told.iter().all(|extent| !extent.is_written), "{told:?}");
    }

    #[test]
    fn more_extents_than_one_call_tells_are_all_told() {
        let count = 3 * ROOM as u64;
        let file = tempfile::tempfile().unwrap();
        for block in 0..count {
            file.write_all_at(&[7; BLOCK_LENGTH], 2 * block * BLOCK)
                .unwrap();
        }
        let told = extents(&file, 2 * count * BLOCK).unwrap();
        let starts: Vec<_> = told.iter().map(|extent| extent.start).collect();
        let wanted: Vec<_> = (0..count).map(|block| 2 * block * BLOCK).collect();
        assert_eq!(starts, wanted);
    }
}
