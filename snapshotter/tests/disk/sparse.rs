//! Bytes of which most are zero, as a value that is cheap to copy: a disk, or a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// How many bytes lie together.
pub(crate) const BLOCK: usize = 4096;

type Block = [u8; BLOCK];

static ZEROS: Block = [0; BLOCK];

/// A copy shares all blocks until one of the two writes them.
#[derive(Clone, Default)]
pub(crate) struct Sparse {
    len: u64,
    /// Never one behind the end; a block that is not here is zeros, and so is the rest of the last.
    blocks: BTreeMap<u64, Arc<Block>>,
}

impl Sparse {
    pub(crate) fn of(bytes: &[u8]) -> Sparse {
        let mut sparse = Sparse::default();
        sparse.write(0, bytes);
        sparse
    }

    /// Everything in a file.
    pub(crate) fn read_from(path: &Path) -> Result<Sparse> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let mut sparse = Sparse::default();
        sparse.set_len(file.metadata()?.len());
        let mut buffer = [0; BLOCK];
        let mut at = 0;
        while at < sparse.len {
            match seek(&file, SeekFrom::Data(at)) {
                Ok(data) => at = data - data % BLOCK as u64,
                // Nothing but a hole is left.
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            }
            let left = usize::try_from(sparse.len - at).map_or(BLOCK, |left| left.min(BLOCK));
            file.read_exact_at(&mut buffer[..left], at)?;
            if buffer[..left] != ZEROS[..left] {
                sparse.write(at, &buffer[..left]);
            }
            at += left as u64;
        }
        Ok(sparse)
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let (last, within) = place(len);
            self.blocks.split_off(&(last + u64::from(within > 0)));
            if within > 0
                && let Some(block) = self.blocks.get_mut(&last)
            {
                Arc::make_mut(block)[within..].fill(0);
            }
        }
        self.len = len;
    }

    /// The whole block with this number.
    pub(crate) fn block(&self, number: u64) -> &Block {
        self.blocks.get(&number).map_or(&ZEROS, |block| &**block)
    }

    /// The numbers of the blocks from `first` on, and before `end`, that may hold something else than zeros.
    pub(crate) fn blocks_in(&self, first: u64, end: u64) -> impl Iterator<Item = u64> {
        self.blocks.range(first..end).map(|(number, _)| *number)
    }

    /// Up to `count` bytes from `offset` on; fewer at the end.
    pub(crate) fn read(&self, offset: u64, count: usize) -> Vec<u8> {
        let left = self.len.saturating_sub(offset);
        let mut left = usize::try_from(left).map_or(count, |left| left.min(count));
        let (mut bytes, mut offset) = (Vec::with_capacity(left), offset);
        while left > 0 {
            let (number, within) = place(offset);
            let piece = (BLOCK - within).min(left);
            bytes.extend_from_slice(&self.block(number)[within..within + piece]);
            left -= piece;
            offset += piece as u64;
        }
        bytes
    }

    pub(crate) fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        self.len = self.len.max(offset + bytes.len() as u64);
        while !bytes.is_empty() {
            let (number, within) = place(offset);
            let (piece, rest) = bytes.split_at((BLOCK - within).min(bytes.len()));
            let block = self.blocks.entry(number);
            let block = block.or_insert_with(|| Arc::new(ZEROS));
            Arc::make_mut(block)[within..within + piece.len()].copy_from_slice(piece);
            offset += piece.len() as u64;
            bytes = rest;
        }
    }
}

/// The number of the block that holds a byte, and where in it.
#[allow(clippy::cast_possible_truncation, reason = "less than BLOCK")]
fn place(offset: u64) -> (u64, usize) {
    (offset / BLOCK as u64, (offset % BLOCK as u64) as usize)
}

#[test]
fn a_copy_keeps_what_the_other_one_overwrites() {
    let mut new = Sparse::of(&[1; 5000]);
    let old = new.clone();
    new.write(4090, &[2; 10]);
    new.set_len(4095);
    new.set_len(9000);
    assert_eq!(old.read(0, 9000), [1; 5000]);
    let mut wanted = vec![0; 9000];
    wanted[..4090].fill(1);
    wanted[4090..4095].fill(2);
    assert_eq!(new.read(0, 10_000), wanted);
}
