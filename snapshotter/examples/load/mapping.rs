//! A file that is mapped for as long as the load lasts, and read and written as well.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::ptr::null_mut;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fastrand::Rng;
use rustix::fs::{Advice, fadvise};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::random::bytes;
use crate::stage::{Stage, room, same_bytes};

const LENGTH: usize = 1 << 17;
const PIECE: usize = 5000;

/// Thread 0 keeps the file's name, thread 1 removes it first.
pub(crate) fn run(stage: &Stage, number: u64) -> Result<u64> {
    let mut random = Rng::with_seed(stage.seed.wrapping_mul(17).wrapping_add(number));
    let path = room(&format!("mapping{number}"))?.join("mapped");
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    let mut data = bytes(number, LENGTH);
    file.write_all_at(&data, 0)?;
    let map = Map::new(&file).context("mmap")?;
    let has_name = number == 0;
    if !has_name {
        fs::remove_file(&path)?;
    }
    let mut calls = 0;
    while !stage.is_over() {
        calls += 1;
        let at = random.usize(..LENGTH - PIECE);
        let piece = bytes(random.u64(..), random.usize(1..PIECE));
        let end = at + piece.len();
        match random.u32(..20) {
            0..6 => {
                map.set(at, &piece);
                data[at..end].copy_from_slice(&piece);
            }
            6..10 => {
                file.write_all_at(&piece, at as u64).context("pwrite")?;
                data[at..end].copy_from_slice(&piece);
            }
            10..14 => same_bytes("the mapping", &map.get(at, piece.len()), &data[at..end])?,
            14..18 => {
                let mut found = vec![0; piece.len()];
                file.read_exact_at(&mut found, at as u64).context("pread")?;
                same_bytes("a read of what is mapped", &found, &data[at..end])?;
            }
            18 => file.sync_data().context("fdatasync")?,
            _ => fadvise(&file, 0, None, Advice::DontNeed).context("fadvise")?,
        }
        if calls % 500 == 0 {
            look(&map, &data, has_name.then_some(&path))?;
        }
        thread::sleep(Duration::from_micros(500));
    }
    file.sync_all().context("fsync")?;
    look(&map, &data, has_name.then_some(&path))?;
    Ok(calls)
}

fn look(map: &Map, data: &[u8], path: Option<&std::path::PathBuf>) -> Result<()> {
    same_bytes("the whole mapping", &map.get(0, LENGTH), data)?;
    if let Some(path) = path {
        let found = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        same_bytes(&path.display().to_string(), &found, data)?;
    }
    Ok(())
}

/// A shared mapping of [`LENGTH`] bytes.
struct Map(*mut u8);

impl Map {
    #[allow(unsafe_code)]
    fn new(file: &File) -> Result<Map> {
        let may = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, and the pages are never borrowed as references.
        let address = unsafe { mmap(null_mut(), LENGTH, may, MapFlags::SHARED, file, 0) }?;
        Ok(Map(address.cast()))
    }

    #[allow(unsafe_code)]
    fn set(&self, at: usize, piece: &[u8]) {
        assert!(at + piece.len() <= LENGTH);
        // SAFETY: inside the mapping, which lives as long as `self`; `piece` is other memory.
        unsafe { self.0.add(at).copy_from(piece.as_ptr(), piece.len()) }
    }

    #[allow(unsafe_code)]
    fn get(&self, at: usize, length: usize) -> Vec<u8> {
        assert!(at + length <= LENGTH);
        let mut found = vec![0_u8; length];
        // SAFETY: as in `set`.
        unsafe { self.0.add(at).copy_to(found.as_mut_ptr(), length) };
        found
    }
}

impl Drop for Map {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped.
        let _ = unsafe { munmap(self.0.cast(), LENGTH) };
    }
}
