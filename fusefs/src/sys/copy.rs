//! Copying a file's data, holes included.

use std::fs::File;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::change::{clone_data, copy_file_range, ftruncate, write_all_at};

/// The most that one call copies, so that none keeps the kernel busy for long (bytes).
const STEP: u64 = 64 << 20;

/// Copies all data of `from` to the empty file `to`: as a reflink where the file system can share
/// blocks, else range by range, leaving holes as holes.
pub(crate) fn copy_data(from: &File, to: &File, size: u64) -> Result<(), Errno> {
    if size == 0 || clone_data(from, to).is_ok() {
        return Ok(());
    }
    ftruncate(to, size)?;
    copy_within(from, to, 0..size, 1)
}

/// Copies the data that `from` has in a range to the same place in `to`, leaving holes as they are.
/// Each piece begins and ends at a multiple of `unit` bytes, or at the end of the range.
pub(crate) fn copy_within(
    from: &File,
    to: &File,
    range: Range<u64>,
    unit: u64,
) -> Result<(), Errno> {
    let mut offset = range.start;
    while offset < range.end {
        let (start, end) = match seek(from, SeekFrom::Data(offset)) {
            Ok(start) => (start, seek(from, SeekFrom::Hole(start))?),
            // No data behind this point.
            Err(Errno::NXIO) => return Ok(()),
            // A file system that does not tell: all is data.
            Err(Errno::INVAL) => (offset, range.end),
            Err(error) => return Err(error),
        };
        let start = (start / unit * unit).max(offset);
        let end = end.next_multiple_of(unit).min(range.end);
        if start < end {
            copy_range(from, to, start, end)?;
        }
        offset = end;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> Result<(), Errno> {
    let mut offset = start;
    while offset < end {
        let step = usize::try_from((end - offset).min(STEP)).unwrap_or(usize::MAX);
        match copy_file_range((from, offset), (to, offset), step) {
            Ok(0) => return Ok(()),
            Ok(copied) => offset += copied as u64,
            // Two file systems, or one that can't: through our memory.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                return copy_by_hand(from, to, offset, end);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, start: u64, end: u64) -> Result<(), Errno> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 256 * 1024];
    let mut offset = start;
    while offset < end {
        let want = usize::try_from(end - offset)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let got = from
            .read_at(&mut buffer[..want], offset)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if got == 0 {
            return Ok(());
        }
        write_all_at(to, &buffer[..got], offset)?;
        offset += got as u64;
    }
    Ok(())
}
