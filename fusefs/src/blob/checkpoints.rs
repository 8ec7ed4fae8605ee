//! Reading an ordinary gzip blob from the middle.
//!
//! Whoever has inflated it once from its beginning knows places at which one can begin again: each
//! member of it, and between the blocks of a member, for whoever has the 32 KiB before. Such
//! *checkpoints* are taken every few megabytes.

use std::io::{self, Read};

use crate::sys::inflate::{At, Inflater, WINDOW};

/// How many bytes of the blob are read at once.
const INPUT: usize = 64 << 10;

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

/// Inflates a gzip blob of any number of members, and takes checkpoints on the way.
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
    checkpoints: Vec<Checkpoint>,
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
            checkpoints: Vec::new(),
            is_within: false,
        })
    }

    /// How many bytes of the blob were used so far.
    pub(crate) fn used(&self) -> u64 {
        self.blob
    }

    /// What it read from, and the checkpoints that were taken, in order: all, if all was read.
    pub(crate) fn finish(self) -> (R, Vec<Checkpoint>) {
        (self.from, self.checkpoints)
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
        let before = self.checkpoints.last();
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
        self.checkpoints.push(Checkpoint {
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
            let progress = self.inflater.inflate(input, buffer, true)?;
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

/// Inflates `len` bytes of output, `skip` bytes behind a checkpoint. `blob`: the bytes of the blob
/// from the one before the checkpoint on (from the checkpoint on, if that has no bits), as many as
/// it takes or more.
pub(crate) fn inflate_from(
    checkpoint: &Checkpoint,
    blob: &[u8],
    skip: u64,
    len: usize,
) -> io::Result<Vec<u8>> {
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let (before, mut input) = match checkpoint.bits {
        0 => (0, blob),
        _ => blob
            .split_first()
            .map(|(first, rest)| (*first, rest))
            .ok_or_else(cut)?,
    };
    let mut is_raw = checkpoint.window.is_some();
    let mut inflater = match &checkpoint.window {
        None => Inflater::gzip()?,
        Some(window) => {
            let window = zstd::bulk::decompress(window, WINDOW)?;
            Inflater::within(&window, checkpoint.bits, before)?
        }
    };
    let mut skip = skip;
    let mut found = vec![0; len];
    let mut done = 0;
    let mut unwanted = [0; 16 << 10];
    while done < len {
        let room = match usize::try_from(skip) {
            Ok(0) => found.get_mut(done..).unwrap_or_default(),
            Ok(skip) if skip < unwanted.len() => unwanted.get_mut(..skip).unwrap_or_default(),
            _ => &mut unwanted[..],
        };
        let is_wanted = skip == 0;
        let progress = inflater.inflate(input, room, false)?;
        input = input.get(progress.read..).unwrap_or_default();
        if is_wanted {
            done += progress.written;
        } else {
            skip -= progress.written as u64;
        }
        if progress.at == At::End {
            if is_raw {
                // Behind a raw stream stand the checksum and the length of its member.
                input = input.get(8..).ok_or_else(cut)?;
                is_raw = false;
                inflater = Inflater::gzip()?;
            } else {
                inflater.reset()?;
            }
        } else if progress.written == 0 && (input.is_empty() || progress.read == 0) {
            return Err(cut());
        }
    }
    Ok(found)
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

    fn take(blob: &[u8], apart: u64) -> (Vec<u8>, Vec<Checkpoint>) {
        let mut inflating = Inflating::new(blob, apart).unwrap();
        let mut output = Vec::new();
        inflating.read_to_end(&mut output).unwrap();
        (output, inflating.finish().1)
    }

    /// Reads some bytes by the nearest checkpoint before them.
    fn read(blob: &[u8], checkpoints: &[Checkpoint], at: usize, len: usize) -> Vec<u8> {
        let at = at as u64;
        let next = checkpoints.partition_point(|checkpoint| checkpoint.output <= at);
        let checkpoint = &checkpoints[next - 1];
        let start = usize::try_from(checkpoint.start()).unwrap();
        inflate_from(checkpoint, &blob[start..], at - checkpoint.output, len).unwrap()
    }

    #[test]
    fn every_place_can_be_read_from_a_checkpoint() {
        let output = text(3_000_000);
        let blob = gzip(&output);
        let (inflated, checkpoints) = take(&blob, 200_000);
        assert_eq!(inflated, output);
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
                read(&blob, &checkpoints, at, 1000),
                output[at..at + 1000],
                "at {at}"
            );
        }
        let all = read(&blob, &checkpoints, 0, output.len());
        assert!(all == output);
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
            let (inflated, checkpoints) = take(&blob, apart);
            assert!(inflated == output);
            for at in (0..output.len() - 5000).step_by(9973) {
                let found = read(&blob, &checkpoints, at, 5000);
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
        let (_, checkpoints) = take(&blob, 50_000);
        let checkpoint = checkpoints.last().unwrap();
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
