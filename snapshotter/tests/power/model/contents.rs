//! The bytes of a file after a power cut.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::{Result, ensure};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::super::disk::{BLOCK, Sparse};

/// In files of so many bytes what lies in holes is not read.
const LARGE: u64 = 1 << 20;

/// Fails if a file holds a byte that no version of it had at that place. `versions` are the last
/// one that was synced, and those since: a file system may have written any part of each. Where one
/// of them has no byte there may be a zero, since a file that grows does so with holes.
pub(crate) fn verify(file: &File, versions: &[&Sparse]) -> Result<()> {
    let size = file.metadata()?.len();
    let lengths = || versions.iter().map(|version| version.len());
    let (least, most) = (
        lengths().min().unwrap_or_default(),
        lengths().max().unwrap_or_default(),
    );
    ensure!(
        (least..=most).contains(&size),
        "{size} bytes, and not {least} to {most}"
    );
    let mut buffer = vec![0; 32 * BLOCK];
    let mut at = 0;
    while at < size {
        if size >= LARGE {
            let data = next_data(file, at)?.unwrap_or(size);
            let data = data - data % BLOCK as u64;
            verify_hole(at / BLOCK as u64, data / BLOCK as u64, least, versions)?;
            at = at.max(data);
            if at == size {
                break;
            }
        }
        let read = file.read_at(&mut buffer, at)?;
        ensure!(read > 0, "it ends at {at} of {size} bytes");
        // Never the end of a block but at the end of the file.
        let read = if at + read as u64 == size {
            read
        } else {
            read - read % BLOCK
        };
        ensure!(read > 0, "less than a block was read at {at}");
        for (number, block) in buffer[..read].chunks(BLOCK).enumerate() {
            verify_block(block, at / BLOCK as u64 + number as u64, least, versions)?;
        }
        at += read as u64;
    }
    Ok(())
}

/// Where the next byte is that is in no hole.
fn next_data(file: &File, from: u64) -> Result<Option<u64>> {
    match seek(file, SeekFrom::Data(from)) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The same for whole blocks of zeros. Those that no version has are right.
fn verify_hole(first: u64, end: u64, least: u64, versions: &[&Sparse]) -> Result<()> {
    let known = versions
        .iter()
        .flat_map(|version| version.blocks_in(first, end));
    known
        .collect::<BTreeSet<u64>>()
        .into_iter()
        .try_for_each(|number| verify_block(&[0; BLOCK], number, least, versions))
}

fn verify_block(block: &[u8], number: u64, least: u64, versions: &[&Sparse]) -> Result<()> {
    let begin = number * BLOCK as u64;
    let is_whole = |version: &&Sparse| {
        version.len() >= begin + block.len() as u64
            && version.block(number)[..block.len()] == *block
    };
    if versions.iter().any(is_whole) {
        return Ok(());
    }
    for (within, byte) in block.iter().enumerate() {
        let at = begin + within as u64;
        let mut had = versions.iter().filter(|version| at < version.len());
        let known = had.any(|version| version.block(number)[within] == *byte);
        ensure!(
            known || *byte == 0 && at >= least,
            "byte {at} is {byte:#x}, which it never was; first of its block: {:02x?}, versions {:?}",
            &block[..block.len().min(16)],
            versions
                .iter()
                .map(|version| version.len())
                .collect::<Vec<_>>(),
        );
    }
    Ok(())
}
