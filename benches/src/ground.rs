//! The directory in which a race happens:
//!
//! ```text
//! DIR/layers/<scale>/made-128/000 … 127        the layers, kept for the next race
//! DIR/debian.json                             what the Debian packages hold, kept too
//! DIR/index/lamina/                           indexes of the layers, made anew by each race
//! DIR/round/{upper,work,mnt,…}                what one run needs
//! DIR/spent/0 …                               what former runs left, without the data of its files
//! DIR/containerd/                             containerd and its snapshotters, as long as they run
//! DIR/servers.log                             what the servers of the mounts say
//! ```
//!
//! Layers are made when a work needs them for the first time. A stack of layers is complete when
//! it has its final name; what an interrupted race left behind under another one is deleted.
//!
//! What a run wrote is deleted when the race ends, and not before: ext4 without a journal does not
//! give an inode again for minutes after it was deleted, and looks at each of them in vain when it
//! makes another one (`recently_deleted`, fs/ext4/ialloc.c). Creating a file would take up to ten times
//! as long, for whoever comes next. Its data are freed at once.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::CWD;
use walkdir::WalkDir;

use crate::image::{Image, Scale, Source, layers, repository};

/// So many MiB are needed at scale 1: four stacks of the userland, the large file, an upper, and the
/// image in the store of a containerd and in two snapshotters.
fn room(source: Source) -> u32 {
    match source {
        Source::Made => 24 << 10,
        Source::Debian => 48 << 10,
    }
}

/// Containers that are kept at once, at scale 1.
const CROWD: u32 = 1000;

/// Where a containerd lies.
const STAGE: &str = "containerd";

/// Of what a mount is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layers {
    /// [`Image::userland`] in so many layers.
    Userland(usize),
    /// [`Image::data`] and the repository, in one layer below an empty one.
    Data,
}

/// The directory of the race, and the images that are there.
#[derive(Debug)]
pub struct Ground {
    dir: PathBuf,
    scale: Scale,
    source: Source,
    crowd: usize,
    userland: Image,
    data: Image,
    /// Locked as long as we use the directory.
    _lock: File,
}

impl Ground {
    /// Uses `dir`, and deletes what an interrupted run left there.
    pub fn new(dir: &Path, source: Source, scale: Scale) -> Result<Ground> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let lock = File::create(dir.join("lock"))?;
        lock.try_lock()
            .with_context(|| format!("another race runs in {}", dir.display()))?;
        let dir = fs::canonicalize(dir)?;
        let ground = Ground {
            userland: Image::userland(source, &dir, scale)?,
            dir,
            _lock: lock,
            scale,
            source,
            crowd: scale.count(CROWD),
            data: Image::data(scale),
        };
        ground.clear()?;
        ground.room()?;
        Ok(ground)
    }

    /// Fails if the disk is too small for the layers and an upper, before hours go into them.
    fn room(&self) -> Result<()> {
        let found = rustix::fs::statvfs(&self.dir)?;
        let free = (found.f_bavail * found.f_frsize) >> 20;
        let needed = self.scale.count(room(self.source));
        ensure!(
            free >= needed as u64,
            "{} has {free} MiB left, but {needed} MiB are needed: choose another directory, or a \
             smaller --scale",
            self.dir.display()
        );
        Ok(())
    }

    /// How large everything is.
    pub fn scale(&self) -> Scale {
        self.scale
    }

    /// Where the userland comes from.
    pub fn source(&self) -> Source {
        self.source
    }

    /// How many containers are kept at once.
    pub fn crowd(&self) -> usize {
        self.crowd
    }

    /// Keeps so many containers at once, whatever the scale.
    pub fn set_crowd(&mut self, crowd: usize) {
        self.crowd = crowd.max(1);
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the mount of these layers shows.
    pub fn image(&self, layers: Layers) -> &Image {
        match layers {
            Layers::Userland(_) => &self.userland,
            Layers::Data => &self.data,
        }
    }

    /// The directories of these layers, the topmost first. Makes them if they aren't there.
    pub fn layers(&self, layers: Layers) -> Result<Vec<PathBuf>> {
        let (name, count) = match layers {
            Layers::Userland(count) => (format!("{}-{count}", self.source.name()), count),
            Layers::Data => ("data".to_owned(), 2),
        };
        let all = self
            .dir
            .join("layers")
            .join(self.scale.factor().to_string());
        let dir = all.join(&name);
        if !dir.exists() {
            let unfinished = all.join("unfinished");
            remove_tree(&unfinished)?;
            self.write(layers, count, &unfinished)
                .with_context(|| format!("cannot write the layers {name}"))?;
            rustix::fs::sync();
            fs::rename(&unfinished, &dir)?;
        }
        Ok(layers::paths(&dir, count))
    }

    fn write(&self, layers: Layers, count: usize, dir: &Path) -> Result<()> {
        let image = self.image(layers);
        let bar = ProgressBar::new(image.nodes().len() as u64);
        bar.set_style(ProgressStyle::with_template(
            "writing an image in {msg} layers {wide_bar} {pos}/{len}",
        )?);
        bar.set_message(count.to_string());
        let stack = layers::write(image, dir, count, || bar.inc(1))?;
        bar.finish_and_clear();
        if let (Layers::Data, Some(lowest)) = (layers, stack.last()) {
            repository::make(&lowest.join(repository::REPOSITORY), self.scale)?;
        }
        Ok(())
    }

    /// Fresh directories for one run.
    pub fn round(&self) -> Result<Round> {
        self.set_aside()?;
        let round = Round {
            dir: self.dir.join("round"),
        };
        fs::create_dir(&round.dir)?;
        for dir in [round.upper(), round.work(), round.mount(), round.below()] {
            fs::create_dir(dir)?;
        }
        Ok(round)
    }

    /// Deletes everything but the layers.
    pub fn clear(&self) -> Result<()> {
        for name in ["round", "spent", "index", STAGE] {
            remove_tree(&self.dir.join(name))?;
        }
        Ok(())
    }

    /// A fresh directory for a containerd.
    pub fn fresh_stage(&self) -> Result<PathBuf> {
        self.set_aside()?;
        remove_tree(&self.dir.join("index"))?;
        let stage = self.dir.join(STAGE);
        remove_tree(&stage)?;
        fs::create_dir(&stage)?;
        Ok(stage)
    }

    /// Puts the directories of the last run away.
    fn set_aside(&self) -> Result<()> {
        let round = self.dir.join("round");
        if !round.exists() {
            return Ok(());
        }
        ensure_unmounted(&round)?;
        for entry in WalkDir::new(&round) {
            let entry = entry?;
            if entry.file_type().is_file() && entry.metadata()?.len() > 0 {
                File::options().write(true).open(entry.path())?.set_len(0)?;
            }
        }
        let spent = self.dir.join("spent");
        fs::create_dir_all(&spent)?;
        let number = fs::read_dir(&spent)?.count();
        fs::rename(&round, spent.join(number.to_string()))?;
        Ok(())
    }
}

/// The directories of one run.
#[derive(Clone, Debug)]
pub struct Round {
    dir: PathBuf,
}

impl Round {
    /// The upper directory of the union.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// Its work directory.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Where the union is mounted.
    pub fn mount(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// Where a system that needs a second mount below the union mounts it.
    pub fn below(&self) -> PathBuf {
        self.dir.join("below")
    }

    /// Where the system `name` keeps indexes of the layers. They outlive the run, not the race.
    pub fn index(&self, name: &str) -> PathBuf {
        self.dir.with_file_name("index").join(name)
    }
}

/// Fails if something is mounted in a tree.
fn ensure_unmounted(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let inside = |line: &str| {
        line.split(' ')
            .nth(4)
            .is_some_and(|at| Path::new(at).starts_with(dir))
    };
    ensure!(
        !mounts.lines().any(inside),
        "something is mounted below {}: unmount it first",
        dir.display()
    );
    Ok(())
}

/// Deletes a tree, if it is there. Refuses one in which something is mounted.
fn remove_tree(dir: &Path) -> Result<()> {
    ensure_unmounted(dir)?;
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Writes everything to disk and drops what the kernel remembers of it: pages, names, inodes.
pub fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop caches: needs root")
}

/// Which device a path is on; tells when something is mounted on it.
pub fn device(path: &Path) -> Result<u64> {
    Ok(rustix::fs::statat(CWD, path, rustix::fs::AtFlags::empty())?.st_dev)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_wrote_is_kept_without_its_data_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let scale = Scale::new(0.001).unwrap();
        let ground = Ground::new(dir.path(), Source::Made, scale).unwrap();
        for _ in 0..2 {
            let upper = ground.round().unwrap().upper();
            fs::write(upper.join("file"), "data").unwrap();
        }
        let kept = dir.path().join("spent/0/upper/file");
        assert_eq!(fs::metadata(kept).unwrap().len(), 0);
        ground.clear().unwrap();
        for name in ["spent", "round"] {
            assert!(!dir.path().join(name).exists(), "{name}");
        }
    }

    #[test]
    fn two_races_in_one_directory_would_spoil_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let scale = Scale::new(0.001).unwrap();
        let first = Ground::new(dir.path(), Source::Made, scale).unwrap();
        let error = Ground::new(dir.path(), Source::Made, scale)
            .unwrap_err()
            .to_string();
        assert!(error.contains("another race runs"), "{error}");
        drop(first);
        Ground::new(dir.path(), Source::Made, scale).unwrap();
    }
}
