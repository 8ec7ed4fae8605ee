//! Reading an ordinary gzip blob from the middle.
//!
//! Whoever has inflated it once from its beginning knows places at which one can begin again: each
//! member of it, and between the blocks of a member, for whoever has the 32 KiB before. Such
//! *checkpoints* are taken about every megabyte. Where reading may end is known much more closely, since
//! that takes no window.

use std::io::{self, Read};

use crate::sys::inflate::{At, Inflater, WINDOW};

/// How many bytes of the blob are read at once.
const INPUT: usize = 64 << 10;
/// After about so many bytes of output it is noted how much of the blob they take.
const NOTED: usize = 32 << 10;

/// A place at which inflating can begin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Checkpoint {
    /// Where it is in the blob: the first byte that is read whole.
    pub(crate) blob: u64,
    /// How many bits of the byte before that come first.
    pub(crate) bits: u8,
    /// Where it is in the output.
    pub(crate) output: u64,
    /// What comes before it in the output, compressed by zstd; `None`: a member begins here.
    pub(crate) window: Option<Vec<u8>>,
}

impl Checkpoint {
    /// The first byte of the blob that it takes to begin here.
    pub(crate) fn start(&self) -> u64 {
        self.blob - u64::from(self.bits > 0)
    }
}

/// What was learned of a gzip blob by inflating all of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// Where inflating can begin, in order.
    pub(crate) checkpoints: Vec<Checkpoint>,
    /// Where it may end: so many bytes of output, and the bytes of the blob that suffice for them; in
    /// order, up to the end of the output.
    ends: Vec<(u64, u64)>,
}

impl Places {
    /// The checkpoint to begin at for what is at `output`. The first one is at the beginning.
    pub(crate) fn before(&self, output: u64) -> Option<&Checkpoint> {
        let behind = self
            .checkpoints
            .partition_point(|point| point.output <= output);
        self.checkpoints.get(behind.checked_sub(1)?)
    }

    /// How many bytes of the blob suffice for so many bytes of output; `None`: there is not so much.
    pub(crate) fn end(&self, output: u64) -> Option<u64> {
        let next = self.ends.partition_point(|(told, _)| *told < output);
        self.ends.get(next).map(|(_, blob)| *blob)
    }
}

/// Inflates a gzip blob of any number of members, and notes places on the way.
pub(crate) struct Inflating<R> {
    from: R,
    inflater: Inflater,
    input: Vec<u8>,
    /// What of the input was not used yet.
    start: usize,
    end: usize,
    /// Where the unused input is in the blob.
    blob: u64,
    output: u64,
    /// The last bytes of the output: at least a window of them, if there are so many.
    last: Vec<u8>,
    /// How much output there is at least between two checkpoints.
    apart: u64,
    places: Places,
    /// Whether a member is under way.
    is_within: bool,
}

impl<R: Read> Inflating<R> {
    /// Inflates from the beginning. `apart`: bytes of output between two checkpoints, at least.
    pub(crate) fn new(from: R, apart: u64) -> io::Result<Inflating<R>> {
        Ok(Inflating {
            from,
            inflater: Inflater::gzip()?,
            input: vec![0; INPUT],
            start: 0,
            end: 0,
            blob: 0,
            output: 0,
            last: Vec::new(),
            apart: apart.max(1),
            places: Places::default(),
            is_within: false,
        })
    }

    /// How many bytes of the blob were used so far.
    pub(crate) fn used(&self) -> u64 {
        self.blob
    }

    /// What it read from, and the places that were noted: all, if all was read.
    pub(crate) fn finish(mut self) -> (R, Places) {
        self.places.ends.push((self.output, self.blob));
        (self.from, self.places)
    }

    /// Makes unused input, if there is more.
    fn refill(&mut self) -> io::Result<bool> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            self.end = self.from.read(&mut self.input)?;
        }
        Ok(self.start < self.end)
    }

    /// Takes a checkpoint here, if the one before is far enough away.
    fn take_checkpoint(&mut self, bits: u8, is_member: bool) -> io::Result<()> {
        let before = self.places.checkpoints.last();
        if before.is_some_and(|before| self.output - before.output < self.apart) {
            return Ok(());
        }
        let window = if is_member {
            None
        } else {
            let from = self.last.len().saturating_sub(WINDOW);
            let window = self.last.get(from..).unwrap_or_default();
            Some(zstd::bulk::compress(window, 3)?)
        };
        self.places.checkpoints.push(Checkpoint {
            blob: self.blob,
            bits,
            output: self.output,
            window,
        });
        Ok(())
    }

    fn note(&mut self, written: &[u8]) {
        self.last.extend_from_slice(written);
        if self.last.len() > 4 * WINDOW {
            self.last.drain(..self.last.len() - WINDOW);
        }
        let noted = self.places.ends.last().map_or(0, |(output, _)| *output);
        if self.output - noted >= NOTED as u64 {
            self.places.ends.push((self.output, self.blob));
        }
    }
}

impl<R: Read> Read for Inflating<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let is_end = !self.refill()?;
            if is_end && !self.is_within && self.blob > 0 {
                return Ok(0);
            }
            if !self.is_within {
                self.take_checkpoint(0, true)?;
                self.is_within = true;
            }
            let input = self.input.get(self.start..self.end).unwrap_or_default();
            let room = buffer.len().min(NOTED);
            let room = buffer.get_mut(..room).unwrap_or_default();
            let progress = self.inflater.inflate(input, room, true)?;
            self.start += progress.read;
            self.blob += progress.read as u64;
            self.output += progress.written as u64;
            self.note(buffer.get(..progress.written).unwrap_or_default());
            match progress.at {
                At::Block { bits } => self.take_checkpoint(bits, false)?,
                At::End => {
                    self.inflater.reset()?;
                    self.is_within = false;
                }
                // What was held back for want of room has come out by now.
                At::Somewhere if is_end && progress.written == 0 => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                At::Somewhere => {}
            }
            if progress.written > 0 {
                return Ok(progress.written);
            }
        }
    }
}

/// The output behind a checkpoint, inflated as far as somebody asked. Who wants several files that
/// follow it inflates nothing twice.
pub(crate) struct Resumed {
    /// Where the bytes of the blob begin that it takes.
    start: u64,
    inflater: Inflater,
    /// Whether it is in a member that was entered in its middle.
    is_raw: bool,
    /// How many bytes of the blob were used.
    used: usize,
    output: Vec<u8>,
    /// How much of the output is there: what follows is room.
    done: usize,
}

impl Resumed {
    /// Begins at a checkpoint. `blob`: the bytes of the blob from [`Checkpoint::start`] on.
    pub(crate) fn at(checkpoint: &Checkpoint, blob: &[u8]) -> io::Result<Resumed> {
        let used = usize::from(checkpoint.bits > 0);
        let inflater = match &checkpoint.window {
            None => Inflater::gzip()?,
            Some(window) => {
                let window = zstd::bulk::decompress(window, WINDOW)?;
                let before = blob.first().copied().unwrap_or_default();
                Inflater::within(&window, checkpoint.bits, before)?
            }
        };
        Ok(Resumed {
            start: checkpoint.start(),
            inflater,
            is_raw: checkpoint.window.is_some(),
            used,
            output: Vec::new(),
            done: 0,
        })
    }

    /// Whether it begins there in the blob.
    pub(crate) fn is_of(&self, start: u64) -> bool {
        self.start == start
    }

    /// `len` bytes of output, `skip` bytes behind the checkpoint. `blob`: the bytes of the blob as
    /// before, as many as it takes or more.
    pub(crate) fn read(&mut self, blob: &[u8], skip: u64, len: usize) -> io::Result<&[u8]> {
        let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let skip = usize::try_from(skip).map_err(|_| cut())?;
        let end = skip.checked_add(len).ok_or_else(cut)?;
        self.output.resize(self.output.len().max(end), 0);
        while self.done < end {
            let input = blob.get(self.used..).ok_or_else(cut)?;
            let room = self.output.get_mut(self.done..).unwrap_or_default();
            let progress = self.inflater.inflate(input, room, false)?;
            self.used += progress.read;
            self.done += progress.written;
            if progress.at == At::End {
                if self.is_raw {
                    // Behind a raw stream stand the checksum and the length of its member.
                    self.used += 8;
                    self.is_raw = false;
                    self.inflater = Inflater::gzip()?;
                } else {
                    self.inflater.reset()?;
                }
            } else if progress.written == 0 && (input.is_empty() || progress.read == 0) {
                return Err(cut());
            }
        }
        Ok(self.output.get(skip..end).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::testing::gzip;

    /// Text that is neither all alike nor all different.
    fn text(len: usize) -> Vec<u8> {
        let mut state = 1u32;
        let words = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            format!("{} ", state >> 20)
        });
        words.flat_map(String::into_bytes).take(len).collect()
    }

    fn take(blob: &[u8], apart: u64) -> (Vec<u8>, Places) {
        let mut inflating = Inflating::new(blob, apart).unwrap();
        let mut output = Vec::new();
        inflating.read_to_end(&mut output).unwrap();
        (output, inflating.finish().1)
    }

    /// Reads some bytes by the nearest checkpoint before them.
    fn read(blob: &[u8], places: &Places, at: usize, len: usize) -> Vec<u8> {
        let at = at as u64;
        let checkpoint = places.before(at).unwrap();
        let start = usize::try_from(checkpoint.start()).unwrap();
        let end = usize::try_from(places.end(at + len as u64).unwrap()).unwrap();
        let blob = &blob[start..end];
        inflate_from(checkpoint, blob, at - checkpoint.output, len).unwrap()
    }

    fn inflate_from(
        checkpoint: &Checkpoint,
        blob: &[u8],
        skip: u64,
        len: usize,
    ) -> io::Result<Vec<u8>> {
        let mut resumed = Resumed::at(checkpoint, blob)?;
        resumed.read(blob, skip, len).map(<[u8]>::to_vec)
    }

    #[test]
    fn every_place_can_be_read_from_a_checkpoint() {
        let output = text(3_000_000);
        let blob = gzip(&output);
        let (inflated, places) = take(&blob, 200_000);
        assert_eq!(inflated, output);
        let checkpoints = &places.checkpoints;
        assert!(checkpoints.len() > 8, "{}", checkpoints.len());
        assert!(checkpoints.iter().any(|checkpoint| checkpoint.bits > 0));
        assert_eq!(
            checkpoints
                .iter()
                .filter(|one| one.window.is_none())
                .count(),
            1
        );
        for at in (0..output.len() - 1000).step_by(99_991) {
            assert_eq!(
                read(&blob, &places, at, 1000),
                output[at..at + 1000],
                "at {at}"
            );
        }
        let all = read(&blob, &places, 0, output.len());
        assert!(all == output);
    }

    #[test]
    fn little_more_of_a_blob_is_needed_than_what_a_file_takes() {
        let output = text(3_000_000);
        let blob = gzip(&output);
        let (_, places) = take(&blob, 1 << 20);
        let packed = |at: u64| at * blob.len() as u64 / output.len() as u64;
        for at in [1, 100_000, 1_234_567, 2_900_000] {
            let end = places.end(at).unwrap();
            assert!(end <= packed(at) + (48 << 10), "{end} for {at}");
        }
        // Behind the last byte stand the member's checksum and length.
        assert_eq!(places.end(3_000_000), Some(blob.len() as u64 - 8));
        assert_eq!(places.end(3_000_001), None);
    }

    #[test]
    fn what_lies_before_and_behind_comes_from_the_same_checkpoint() {
        let output = text(2_000_000);
        let blob = [gzip(&output[..900_000]), gzip(&output[900_000..])].concat();
        let (_, places) = take(&blob, 1 << 30);
        let mut resumed = Resumed::at(&places.checkpoints[0], &blob).unwrap();
        assert!(resumed.is_of(0) && !resumed.is_of(1));
        for at in [500_000, 100, 899_000, 1_999_000, 500_500, 0] {
            let found = resumed.read(&blob, at as u64, 1000).unwrap();
            assert!(found == &output[at..at + 1000], "at {at}");
        }
        resumed
            .read(&blob, 1_999_500, 1000)
            .expect_err("behind the end");
        assert!(resumed.read(&blob, 1_999_000, 1000).unwrap() == &output[1_999_000..]);
        resumed
            .read(&blob, u64::MAX, 1)
            .expect_err("behind any end");
    }

    #[test]
    fn members_follow_each_other() {
        let output = text(400_000);
        let blob = [
            gzip(&output[..150_000]),
            gzip(b""),
            gzip(&output[150_000..]),
        ]
        .concat();
        for apart in [1, 100_000, 1 << 30] {
            let (inflated, places) = take(&blob, apart);
            assert!(inflated == output);
            for at in (0..output.len() - 5000).step_by(9973) {
                let found = read(&blob, &places, at, 5000);
                assert!(found == output[at..at + 5000], "at {at}, {apart} apart");
            }
        }
    }

    #[test]
    fn damage_is_an_error() {
        let output = text(300_000);
        let blob = gzip(&output);
        let mut sink = Vec::new();
        let mut fails = |blob: &[u8]| {
            let read = Inflating::new(blob, 1000).unwrap().read_to_end(&mut sink);
            read.expect_err("damaged");
        };
        fails(b"");
        fails(&blob[..blob.len() - 1]);
        fails(&[&blob[..], b"more"].concat());
        let mut damaged = blob.clone();
        damaged[blob.len() - 5] ^= 1;
        fails(&damaged);
        let (_, places) = take(&blob, 50_000);
        let checkpoint = places.checkpoints.last().unwrap();
        let start = usize::try_from(checkpoint.start()).unwrap();
        inflate_from(checkpoint, &blob[start..start + 10], 0, 1000).expect_err("too few bytes");
        inflate_from(checkpoint, b"", 0, 1).expect_err("none");
        let beyond = 300_000 - checkpoint.output;
        inflate_from(checkpoint, &blob[start..], beyond, 1).expect_err("behind the end");
        let odd = Checkpoint {
            bits: 8,
            ..checkpoint.clone()
        };
        inflate_from(&odd, &blob[start..], 0, 1).expect_err("bits that can't be");
        let odd = Checkpoint {
            window: Some(b"no zstd".to_vec()),
            ..checkpoint.clone()
        };
        inflate_from(&odd, &blob[start..], 0, 1).expect_err("no window");
    }
}
