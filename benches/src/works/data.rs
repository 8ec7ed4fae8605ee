//! Works on large files: read one, write one, append the first byte to one.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::{Cache, Input, Outcome, Place, Target, Work};
use crate::ground::Layers;
use crate::image::{BIG, contents};

/// What one system call reads or writes.
const PIECE: usize = 1 << 20;

/// The seed of the file that `write` writes.
const WRITTEN: u64 = 0x3717;

/// The byte that `append` appends.
const APPENDED: u8 = b'!';

const READ: Work = Work {
    name: "read-first",
    title: "read a 1 GiB image file, cold",
    layers: Layers::Data,
    cache: Cache::Cold,
    target: Target::Overlayfs(1.05),
    prepare: big,
    run: |_, input| read(&input.paths[0]),
    check: None,
};

/// The works of this module.
pub(super) fn works() -> Vec<Work> {
    vec![
        READ,
        Work {
            name: "read-again",
            title: "read a 1 GiB image file, again",
            cache: Cache::Warm,
            ..READ
        },
        Work {
            name: "write",
            title: "write 1 GiB + fsync",
            cache: Cache::Fresh,
            target: Target::Overlayfs(1.1),
            prepare: |place| Ok(written(place)),
            run: |place, input| write(place, &input.paths[0]),
            check: Some(|place, input| {
                let size = place.ground.scale().mebibytes(1024);
                same_bytes(&input.paths[0], WRITTEN, size, &[])
            }),
            ..READ
        },
        Work {
            name: "append",
            title: "first byte appended to a 1 GiB image file",
            cache: Cache::Fresh,
            target: Target::Overlayfs(0.01),
            prepare: |place| Ok(appended(place)),
            run: |_, input| append(&input.paths[0]),
            check: Some(|place, input| {
                let (size, seed) = size_and_seed(place)?;
                same_bytes(&input.paths[0], seed, size, &[APPENDED])
            }),
            ..READ
        },
    ]
}

fn size_and_seed(place: &Place) -> Result<(u64, u64)> {
    let mut files = place.image().files();
    match files.find(|(node, _, _)| node.path == Path::new(BIG)) {
        Some((_, size, seed)) => Ok((size, seed)),
        None => bail!("the image has no {BIG}"),
    }
}

/// The image's large file. Pages are checked by their first bytes, which are the digest.
fn big(place: &Place) -> Result<Input> {
    let (size, seed) = size_and_seed(place)?;
    let mut expected = Outcome::default();
    let mut start = [0; 8];
    for page in 0..size / contents::PAGE as u64 {
        contents::fill(seed, page, &mut start);
        expected.add(contents::PAGE as u64, page_digest(page, start));
    }
    Ok(Input {
        paths: vec![place.root.join(BIG)],
        expected,
    })
}

fn page_digest(page: u64, start: [u8; 8]) -> u64 {
    u64::from_le_bytes(start).wrapping_mul(page | 1)
}

/// Reads a file to its end, and looks at eight bytes of each page: all of them would take longer
/// than reading does.
fn read(path: &Path) -> Result<Outcome> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; PIECE];
    let mut outcome = Outcome::default();
    loop {
        let length = file.read(&mut piece)?;
        if length == 0 {
            return Ok(outcome);
        }
        ensure!(length % contents::PAGE == 0, "a read ended within a page");
        for page in piece[..length].chunks(contents::PAGE) {
            let mut start = [0; 8];
            start.copy_from_slice(&page[..8]);
            let digest = page_digest(outcome.count, start);
            outcome.add(contents::PAGE as u64, digest);
        }
    }
}

fn written(place: &Place) -> Input {
    let size = place.ground.scale().mebibytes(1024);
    Input {
        paths: vec![place.root.join("data/written")],
        expected: Outcome {
            count: size / PIECE as u64,
            bytes: size,
            ..Outcome::default()
        },
    }
}

/// Writes a new file from bytes that are made beforehand: making them takes as long as writing.
fn write(place: &Place, path: &Path) -> Result<Outcome> {
    let size = place.ground.scale().mebibytes(1024);
    let mut piece = vec![0; PIECE];
    contents::fill(WRITTEN, 0, &mut piece);
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let mut outcome = Outcome::default();
    for number in 0..size / PIECE as u64 {
        stamp(&mut piece, number);
        file.write_all(&piece)?;
        outcome.add(PIECE as u64, 0);
    }
    file.sync_all()?;
    Ok(outcome)
}

/// Makes a piece differ from all others.
fn stamp(piece: &mut [u8], number: u64) {
    piece[..8].copy_from_slice(&number.to_le_bytes());
}

fn appended(place: &Place) -> Input {
    Input {
        paths: vec![place.root.join(BIG)],
        expected: Outcome {
            count: 1,
            bytes: 1,
            ..Outcome::default()
        },
    }
}

fn append(path: &Path) -> Result<Outcome> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.write_all(&[APPENDED])?;
    let mut outcome = Outcome::default();
    outcome.add(1, 0);
    Ok(outcome)
}

/// Whether a file has the bytes of this seed, and then `tail`.
fn same_bytes(path: &Path, seed: u64, size: u64, tail: &[u8]) -> Result<()> {
    let mut file = File::open(path)?;
    let (mut wanted, mut found) = (vec![0; PIECE], vec![0; PIECE]);
    let pieces = size / PIECE as u64;
    for number in 0..pieces {
        if seed == WRITTEN {
            contents::fill(seed, 0, &mut wanted);
            stamp(&mut wanted, number);
        } else {
            let first = number * (PIECE / contents::PAGE) as u64;
            contents::fill(seed, first, &mut wanted);
        }
        file.read_exact(&mut found)?;
        ensure!(
            wanted == found,
            "piece {number} of {} differs",
            path.display()
        );
    }
    let mut rest = Vec::new();
    file.read_to_end(&mut rest)?;
    ensure!(rest == tail, "{} has another end", path.display());
    ensure!(
        fs::metadata(path)?.len() == size + tail.len() as u64,
        "another length"
    );
    Ok(())
}
