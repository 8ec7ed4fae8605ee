//! The data of a partial file: some blocks in the upper's file, the others in the image's.
//!
//! What is where is written down nowhere but in the upper's file itself: where it has a hole, the
//! image's file has the data, up to the *limit* (the image's length, or the shortest that the file
//! was truncated to since). So there is no second file whose order on disk would matter. While the
//! node lives, [`Blocks`] remembers it: the disk is asked once.
//!
//! Three rules keep a hole what it means:
//!
//! - a block is written whole: what a write covers only in part is fetched from the image first;
//! - what makes or fills holes in another way (fallocate, a reflink) finds the file complete;
//! - what a failed write may have left in a block that it did not finish is punched out again.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::fs::{FallocateFlags, SeekFrom, Stat, XattrFlags, fstat, seek};
use rustix::io::Errno;

use crate::error::Result;
use crate::marks::{self, Data};
use crate::sys::attr_of;
use crate::sys::change::{fallocate, ftruncate, write_most_at, write_some_at};
use crate::sys::copy::copy_within;
use crate::sys::extents::{BLOCK, extents};
use crate::sys::place::Place;
use crate::types::{Ino, SetTime};

/// How much is fetched while nobody else can read or write the file (bytes).
const STEP: u64 = 8 << 20;

/// Which blocks the upper's file has. One for each partial file, shared by whoever has it open.
#[derive(Debug)]
pub(crate) struct Blocks(RwLock<Map>);

#[derive(Debug, Default)]
struct Map {
    /// Whether the disk was asked.
    is_loaded: bool,
    /// Whether the image is not needed any more.
    is_whole: bool,
    /// How many bytes of the image may be seen. Never more than the file is long.
    limit: u64,
    /// Whether the mark on disk has this limit. If not, it has a greater one: then the file must not
    /// grow.
    is_limit_saved: bool,
    /// A bit for each block below the limit, set if the upper's file has it.
    present: Vec<u64>,
    /// How many of them are not set.
    missing: u64,
}

/// Where a run of bytes is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Source {
    Upper,
    Image,
}

impl Blocks {
    /// Of a file that has the mark on disk; which blocks it has is asked when it is opened.
    pub(crate) fn unloaded() -> Arc<Blocks> {
        Arc::new(Blocks(RwLock::new(Map::default())))
    }

    /// Of a file that is all hole, marked with this limit.
    pub(crate) fn none_yet(limit: u64) -> Arc<Blocks> {
        let mut map = Map::all_missing(limit);
        map.is_limit_saved = true;
        Arc::new(Blocks(RwLock::new(map)))
    }

    /// Asks the disk which blocks there are, unless somebody has. Space without data, which only a
    /// power loss leaves, becomes a hole again: a write beside it might turn all of it into zeros
    /// (`ext4_ext_convert_to_initialized`).
    pub(crate) fn load(&self, upper: &File) -> Result<()> {
        let mut map = self.0.write();
        if map.is_loaded || map.is_whole {
            return Ok(());
        }
        let Data::Partial { limit: marked } = marks::data(&place_of(upper)?)? else {
            return Err(Errno::IO.into());
        };
        let limit = marked.min(upper.metadata()?.len());
        let mut loaded = Map::all_missing(limit);
        loaded.is_limit_saved = limit == marked;
        for extent in extents(upper, limit)? {
            if extent.is_written {
                loaded.add(extent.start..extent.end);
            } else {
                punch(upper, extent.start..extent.end)?;
            }
        }
        *map = loaded;
        Ok(())
    }

    /// Whether the image is not needed any more.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.read().is_whole
    }

    /// Whether so much is there that the rest is worth being fetched.
    pub(crate) fn is_mostly_there(&self) -> bool {
        let map = self.0.read();
        map.is_loaded && map.missing * 2 <= blocks_below(map.limit)
    }

    /// Reads at `offset`; fewer bytes than asked only at the end of the file.
    pub(crate) fn read(
        &self,
        (upper, image): (&File, &File),
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize> {
        let map = self.0.read();
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (source, end) = map.run(at, offset + buf.len() as u64);
            let end = done + usize::try_from(end - at).unwrap_or(usize::MAX);
            let part = &mut buf[done..end];
            match source {
                Source::Image => image.read_exact_at(part, at)?,
                Source::Upper => {
                    let got = read_full_at(upper, part, at)?;
                    if got < part.len() {
                        return Ok(done + got);
                    }
                }
            }
            done = end;
        }
        Ok(done)
    }

    /// Writes at `offset`; fewer bytes than asked if the disk is full.
    pub(crate) fn write(&self, files: (&File, &File), offset: u64, data: &[u8]) -> Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        let range = offset..offset + data.len() as u64;
        {
            let map = self.0.read();
            if map.is_whole || (map.is_limit_saved && map.has(&range)) {
                return Ok(write_some_at(files.0, data, offset)?);
            }
        }
        let mut map = self.0.write();
        map.save_limit(files.0)?;
        let (start, padded) = map.padded(files.1, offset, data)?;
        let before = fstat(files.0)?;
        let (done, failed) = write_most_at(files.0, &padded, start);
        let written = start..start + padded.len() as u64;
        let Some(error) = failed else {
            map.add_covered(written);
            return Ok(data.len());
        };
        let before_data = usize::try_from(offset - start).unwrap_or(0);
        let kept = map.keep_written(files.0, written, done);
        match kept.saturating_sub(before_data).min(data.len()) {
            0 => {
                restore_times(&place_of(files.0)?, &before)?;
                Err(error.into())
            }
            kept => Ok(kept),
        }
    }

    /// Changes the length. What is cut off of the image is never seen again.
    pub(crate) fn truncate(&self, upper: &File, size: u64) -> Result<()> {
        let mut map = self.0.write();
        if !map.is_whole && size > map.limit {
            map.save_limit(upper)?;
        }
        ftruncate(upper, size)?;
        if !map.is_whole && size < map.limit {
            map.lower_limit(size);
            // A crash before this finds a file that is shorter than its limit, and lowers that.
            if let Err(error) = map.save_limit(upper) {
                tracing::warn!(%error, "a partial file can't grow until its mark is written");
            }
        }
        Ok(())
    }

    /// The next byte of data, or of a hole, at or after `offset` (`lseek(2)`).
    pub(crate) fn seek(
        &self,
        (upper, image): (&File, &File),
        offset: u64,
        wants_data: bool,
    ) -> Result<u64> {
        let map = self.0.read();
        let size = upper.metadata()?.len();
        let mut at = offset;
        while at < size {
            let (source, end) = map.run(at, size);
            let (file, in_image) = match source {
                Source::Upper => (upper, false),
                Source::Image => (image, true),
            };
            let target = if wants_data {
                SeekFrom::Data(at)
            } else {
                SeekFrom::Hole(at)
            };
            match seek(file, target) {
                Ok(found) if found < end => return Ok(found),
                Ok(_) | Err(Errno::NXIO) => at = end,
                Err(Errno::INVAL) if in_image && wants_data => return Ok(at),
                Err(Errno::INVAL) if in_image => at = end,
                Err(error) => return Err(error.into()),
            }
        }
        // Behind the last byte is a hole.
        if wants_data || offset >= size {
            Err(Errno::NXIO.into())
        } else {
            Ok(size)
        }
    }

    /// Fetches all that is missing, in steps between which others may read and write. Neither times
    /// nor capabilities change by it. Where the image has a hole, one stays.
    pub(crate) fn fetch_all(&self, (upper, image): (&File, &File)) -> Result<()> {
        let mut from = 0;
        loop {
            let mut map = self.0.write();
            let Some(range) = map.next_missing(from).filter(|_| !map.is_whole) else {
                return Ok(());
            };
            unnoticed(upper, || {
                let copied = copy_within(image, upper, range.clone(), BLOCK);
                if copied.is_err() {
                    map.punch_missing(upper, range.clone());
                }
                Ok(copied?)
            })?;
            from = range.end;
            map.add(range);
        }
    }

    /// Says that the image is not needed any more, once `on_disk` has written that down.
    pub(crate) fn become_whole(&self, on_disk: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut map = self.0.write();
        on_disk()?;
        *map = Map {
            is_whole: true,
            ..Map::default()
        };
        Ok(())
    }
}

impl Map {
    fn all_missing(limit: u64) -> Map {
        let blocks = blocks_below(limit);
        Map {
            is_loaded: true,
            limit,
            present: vec![0; usize::try_from(blocks.div_ceil(64)).unwrap_or(0)],
            missing: blocks,
            ..Map::default()
        }
    }

    fn is_present(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64).unwrap_or(usize::MAX);
        block >= blocks_below(self.limit)
            || self
                .present
                .get(word)
                .is_some_and(|bits| bits >> (block % 64) & 1 == 1)
    }

    fn set_present(&mut self, block: u64) {
        if !self.is_present(block) {
            self.present[usize::try_from(block / 64).unwrap_or(usize::MAX)] |= 1 << (block % 64);
            self.missing -= 1;
        }
    }

    /// Notes the blocks that lie in a range, or begin in it and end behind the limit.
    fn add(&mut self, range: Range<u64>) {
        let end = if range.end >= self.limit {
            blocks_below(self.limit)
        } else {
            range.end / BLOCK
        };
        for block in range.start.div_ceil(BLOCK)..end {
            self.set_present(block);
        }
    }

    /// Notes what a write has covered; where it covered a block in part, the rest was there.
    fn add_covered(&mut self, range: Range<u64>) {
        self.add(range.start / BLOCK * BLOCK..range.end.next_multiple_of(BLOCK));
    }

    /// Whether all blocks that a range touches are present.
    fn has(&self, range: &Range<u64>) -> bool {
        (range.start / BLOCK..range.end.min(self.limit).div_ceil(BLOCK))
            .all(|block| self.is_present(block))
    }

    /// Where the byte at `at` is, and where the run of such bytes ends, at most at `end`.
    fn run(&self, at: u64, end: u64) -> (Source, u64) {
        if self.is_whole || at >= self.limit {
            return (Source::Upper, end);
        }
        let is_present = self.is_present(at / BLOCK);
        let blocks = at / BLOCK + 1..end.div_ceil(BLOCK);
        let other = blocks
            .into_iter()
            .find(|block| self.is_present(*block) != is_present);
        let until = other.map_or(end, |block| block * BLOCK).min(end);
        if is_present {
            (Source::Upper, until)
        } else {
            (Source::Image, until.min(self.limit))
        }
    }

    /// The first blocks at or after `from` that are missing, not too many, up to the limit.
    fn next_missing(&self, from: u64) -> Option<Range<u64>> {
        if self.missing == 0 {
            return None;
        }
        let mut blocks = from / BLOCK..blocks_below(self.limit);
        let first = blocks.find(|block| !self.is_present(*block))?;
        let (_, end) = self.run(first * BLOCK, (first * BLOCK + STEP).min(self.limit));
        Some(first * BLOCK..end)
    }

    /// What a write has to write, and where: its data, and what the image has beside them in blocks
    /// that are missing and that it covers in part. One write then does both, or neither.
    fn padded<'d>(
        &self,
        image: &File,
        offset: u64,
        data: &'d [u8],
    ) -> Result<(u64, Cow<'d, [u8]>)> {
        let range = offset..offset + data.len() as u64;
        let is_cut = |edge: u64| !edge.is_multiple_of(BLOCK) && !self.is_present(edge / BLOCK);
        let (mut start, mut end) = (range.start, range.end);
        if is_cut(start) {
            start -= start % BLOCK;
        }
        if is_cut(end) {
            end = end.next_multiple_of(BLOCK).min(self.limit).max(end);
        }
        if start == range.start && end == range.end {
            return Ok((offset, Cow::Borrowed(data)));
        }
        let length = |from: u64, to: u64| usize::try_from(to - from).unwrap_or(0);
        let mut all = vec![0; length(start, end)];
        // Between the limit and the write nobody sees but zeros.
        let head = length(start, range.start.min(self.limit).max(start));
        image.read_exact_at(&mut all[..head], start)?;
        let (data_at, tail_at) = (length(start, range.start), length(start, range.end));
        all[data_at..tail_at].copy_from_slice(data);
        image.read_exact_at(&mut all[tail_at..], range.end)?;
        Ok((start, Cow::Owned(all)))
    }

    /// After a write that ended after `done` bytes: notes the blocks that it finished, and takes out
    /// of the others what it may have left there. Returns how many bytes are there.
    fn keep_written(&mut self, upper: &File, range: Range<u64>, done: usize) -> usize {
        let written = range.start + done as u64;
        let cut = (written / BLOCK * BLOCK).max(range.start);
        if range.start < cut {
            self.add_covered(range.start..cut);
        }
        let is_there = self.is_present(written / BLOCK);
        self.punch_missing(upper, cut..range.end);
        if is_there {
            return done;
        }
        usize::try_from(cut - range.start).unwrap_or(0)
    }

    /// Makes holes of the missing blocks that a range touches. If even that fails, the next mount
    /// would see zeros there.
    fn punch_missing(&self, upper: &File, range: Range<u64>) {
        for block in range.start / BLOCK..range.end.min(self.limit).div_ceil(BLOCK) {
            if self.is_present(block) {
                continue;
            }
            if let Err(error) = punch(upper, block * BLOCK..(block + 1) * BLOCK) {
                tracing::error!(block, %error, "a write failed, and left zeros in a partial file");
            }
        }
    }

    fn lower_limit(&mut self, limit: u64) {
        let mut lower = Map::all_missing(limit);
        for block in (0..blocks_below(limit)).filter(|block| self.is_present(*block)) {
            lower.set_present(block);
        }
        *self = lower;
    }

    /// Writes the limit down, if it is not.
    fn save_limit(&mut self, upper: &File) -> Result<()> {
        if !self.is_limit_saved && !self.is_whole {
            marks::set_limit(&place_of(upper)?, self.limit)?;
            self.is_limit_saved = true;
        }
        Ok(())
    }
}

fn blocks_below(limit: u64) -> u64 {
    limit.div_ceil(BLOCK)
}

fn punch(file: &File, range: Range<u64>) -> Result<(), Errno> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, hole, range.start, range.end - range.start)
}

fn place_of(file: &File) -> Result<Place> {
    Ok(Place::Fd(Arc::new(file.try_clone()?.into())))
}

/// Reads until the buffer is full or the file ends.
pub(crate) fn read_full_at(file: &File, buf: &mut [u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

/// Changes a file in a way that nobody may see: writing changes times and takes capabilities
/// (capabilities(7)) away, and what is done here is not what a caller did.
pub(crate) fn unnoticed(file: &File, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let capability = std::ffi::OsStr::new("security.capability");
    let place = place_of(file)?;
    let before = fstat(file)?;
    let value = place.xattr(capability)?;
    let worked = work();
    let restored = || -> Result<()> {
        if let Some(value) = &value {
            place.set_xattr(capability, value, XattrFlags::empty())?;
        }
        restore_times(&place, &before)
    };
    // Twice: a disk that refused once need not do so again, and nothing else would repair it.
    match (worked, restored().or_else(|_| restored())) {
        (Ok(()), restored) => restored,
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(second)) => {
            tracing::warn!(error = %second, "a copy-up that failed left its times");
            Err(error)
        }
    }
}

fn restore_times(place: &Place, before: &Stat) -> Result<()> {
    let before = attr_of(before, Ino(0));
    let (atime, mtime) = (SetTime::At(before.atime), SetTime::At(before.mtime));
    Ok(place.utimens(Some(atime), Some(mtime))?)
}
