//! Open files beside a copy in memory, also of files whose names are gone.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fastrand::Rng;

use crate::random::{bytes, hash};
use crate::stage::{IMAGE, Stage, room, same, same_bytes};

/// Threads that have files of their own in the image.
const WORKERS: u64 = 2;
const OPEN: usize = 6;
const LONGEST: usize = 200_000;
/// Of one write.
const PIECE: usize = 20_000;
/// A file is read as a whole after so many calls.
const CALLS: u64 = 40;

pub(crate) fn fill(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    for worker in 0..WORKERS {
        let name = format!("f{worker}");
        fs::write(dir.join(&name), first(&name))?;
    }
    Ok(())
}

fn first(name: &str) -> Vec<u8> {
    bytes(hash(name), LONGEST / 2)
}

pub(crate) fn run(stage: &Stage, number: u64) -> Result<u64> {
    let mut random = Rng::with_seed(stage.seed.wrapping_mul(31).wrapping_add(number));
    let dir = room(&format!("files{number}"))?;
    let of_image = Path::new(IMAGE).join(format!("files/f{number}"));
    // Opened before the copy-up: it reads what the image has, or (overlayfs) what the copy has.
    let before = File::open(&of_image)?;
    let image = first(&format!("f{number}"));
    let mut open = vec![Open::existing(of_image, image.clone())?];
    for slot in 1..OPEN {
        open.push(Open::new(&dir, slot as u64)?);
    }
    let (mut calls, mut next) = (0, OPEN as u64);
    while !stage.is_over() {
        let slot = random.usize(..OPEN);
        if slot > 0 && random.u32(..60) == 0 {
            open[slot].whole()?;
            open[slot] = Open::new(&dir, next)?;
            next += 1;
        }
        let file = &mut open[slot];
        file.change(&mut random)
            .with_context(|| format!("call {calls} on {}", file.path.display()))?;
        calls += 1;
        if calls % CALLS == 0 {
            open[slot].whole()?;
            let what = "what was opened before the copy-up";
            let length = image.len().min(open[0].data.len());
            let mut found = vec![0; length];
            before.read_exact_at(&mut found, 0).context(what)?;
            if found != open[0].data[..length] {
                same_bytes(what, &found, &image[..length])?;
            }
        }
        thread::sleep(Duration::from_micros(200));
    }
    open.iter_mut().try_for_each(Open::whole)?;
    Ok(calls)
}

/// A file with two handles, and what it has to hold.
struct Open {
    path: PathBuf,
    has_name: bool,
    any: File,
    end: File,
    data: Vec<u8>,
}

impl Open {
    fn new(dir: &Path, number: u64) -> Result<Open> {
        let path = dir.join(format!("f{number}"));
        File::create_new(&path).with_context(|| format!("creating {}", path.display()))?;
        Open::existing(path, Vec::new())
    }

    fn existing(path: PathBuf, data: Vec<u8>) -> Result<Open> {
        let any = OpenOptions::new().read(true).write(true).open(&path)?;
        let end = OpenOptions::new().append(true).open(&path)?;
        Ok(Open {
            path,
            has_name: true,
            any,
            end,
            data,
        })
    }

    fn change(&mut self, random: &mut Rng) -> Result<()> {
        let at = random.usize(..LONGEST);
        let piece = bytes(random.u64(..), random.usize(1..PIECE));
        match random.u32(..40) {
            0..12 => self.write(at, &piece)?,
            12..18 if self.data.len() < LONGEST => {
                self.end.write_all(&piece).context("append")?;
                self.data.extend(piece);
            }
            18..30 => self.read(at, piece.len())?,
            30..33 => {
                self.any.set_len(at as u64).context("truncate")?;
                self.data.resize(at, 0);
            }
            33 => self.any.sync_all().context("fsync")?,
            34 => self.end.sync_data().context("fdatasync")?,
            35 if self.has_name => {
                fs::remove_file(&self.path).context("unlink")?;
                self.has_name = false;
            }
            36 if self.has_name => {
                let other = self.path.with_extension("renamed");
                fs::rename(&self.path, &other).context("rename")?;
                fs::rename(&other, &self.path).context("rename back")?;
            }
            37 if self.has_name => {
                let again = Open::existing(self.path.clone(), std::mem::take(&mut self.data));
                *self = again.context("open again")?;
            }
            _ => {
                let stat = self.any.metadata().context("fstat")?;
                same("size", &stat.len(), &(self.data.len() as u64))?;
            }
        }
        Ok(())
    }

    fn write(&mut self, at: usize, piece: &[u8]) -> Result<()> {
        self.any.write_all_at(piece, at as u64).context("pwrite")?;
        let end = at + piece.len();
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[at..end].copy_from_slice(piece);
        Ok(())
    }

    fn read(&self, at: usize, length: usize) -> Result<()> {
        let from = at.min(self.data.len());
        let wanted = &self.data[from..self.data.len().min(from + length)];
        let mut found = vec![0; wanted.len()];
        self.any
            .read_exact_at(&mut found, from as u64)
            .context("pread")?;
        same_bytes(&format!("read at {from}"), &found, wanted)
    }

    fn whole(&mut self) -> Result<()> {
        let what = self.path.display().to_string();
        let stat = self
            .any
            .metadata()
            .with_context(|| format!("fstat {what}"))?;
        same(
            &format!("size of {what}"),
            &stat.len(),
            &(self.data.len() as u64),
        )?;
        self.read(0, self.data.len())
            .with_context(|| what.clone())?;
        if self.has_name {
            let found = fs::read(&self.path).with_context(|| format!("reading {what}"))?;
            same_bytes(&format!("{what} by its name"), &found, &self.data)?;
        }
        Ok(())
    }
}
