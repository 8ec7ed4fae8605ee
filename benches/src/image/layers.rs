//! An image written to disk as a stack of layers.
//!
//! Each file lies in the layer that its `place` says, and each directory in every layer that has
//! something in it, as after an unpack of real layers. One file in a hundred also has an older
//! version in the layer below, and there are files that an upper layer removed again: so a reader
//! that looks into the wrong layer shows something wrong.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, UTIME_OMIT};

use super::{Image, Kind, Node, contents};

/// Writes `image` below `dir` as `count` layers, and gives their directories, the topmost first.
/// `step` is called once for each name.
pub fn write(
    image: &Image,
    dir: &Path,
    count: usize,
    mut step: impl FnMut(),
) -> Result<Vec<PathBuf>> {
    let mut stack = Stack::new(dir, count)?;
    for (number, node) in image.nodes().iter().enumerate() {
        if node.kind != Kind::Dir {
            let failed = || format!("cannot write {}", node.path.display());
            stack.add(image, number, node).with_context(failed)?;
        }
        step();
    }
    stack.dirs_everywhere(image)?;
    Ok(paths(dir, count))
}

/// Where the layers of a stack lie, the topmost first.
pub fn paths(dir: &Path, count: usize) -> Vec<PathBuf> {
    (0..count).rev().map(|layer| path(dir, layer)).collect()
}

/// Short names: overlayfs takes an option of one page at most.
fn path(dir: &Path, layer: usize) -> PathBuf {
    dir.join(format!("{layer:03}"))
}

struct Stack {
    layers: Vec<PathBuf>,
    /// Which directories each layer has.
    dirs: Vec<BTreeSet<PathBuf>>,
}

impl Stack {
    fn new(dir: &Path, count: usize) -> Result<Stack> {
        let layers: Vec<PathBuf> = (0..count).map(|layer| path(dir, layer)).collect();
        for layer in &layers {
            fs::create_dir_all(layer)?;
            fs::set_permissions(layer, Permissions::from_mode(0o755))?;
        }
        Ok(Stack {
            dirs: vec![BTreeSet::new(); count],
            layers,
        })
    }

    /// Writes a file or symlink into its layer, and perhaps something else below it.
    fn add(&mut self, image: &Image, number: usize, node: &Node) -> Result<()> {
        let layer = node.place as usize % self.layers.len();
        let path = self.place(layer, &node.path)?;
        match &node.kind {
            Kind::Dir => {}
            Kind::Symlink(target) => symlink(target, &path)?,
            Kind::File { size, seed } => write_file(&path, node, *size, *seed)?,
        }
        if layer > 0 && number % 100 == 7 {
            let path = self.place(layer - 1, &node.path)?;
            fs::write(&path, "an older version")?;
        }
        if layer > 0 && number % 100 == 57 {
            self.removed_again(layer, image, node)?;
        }
        Ok(())
    }

    /// A file that the layer below has, and `layer` removed: nobody may see it.
    fn removed_again(&mut self, layer: usize, image: &Image, node: &Node) -> Result<()> {
        let gone = node.path.with_extension("removed");
        debug_assert!(image.nodes().iter().all(|node| node.path != gone));
        let below = self.place(layer - 1, &gone)?;
        fs::write(&below, "was removed")?;
        let whiteout = self.place(layer, &gone)?;
        rustix::fs::mknodat(CWD, &whiteout, FileType::CharacterDevice, Mode::empty(), 0)?;
        Ok(())
    }

    /// The path of a name in a layer, whose directories are there.
    fn place(&mut self, layer: usize, path: &Path) -> Result<PathBuf> {
        if let Some(parent) = path.parent()
            && !self.dirs[layer].contains(parent)
        {
            fs::create_dir_all(self.layers[layer].join(parent))?;
            let ancestors = parent.ancestors().map(Path::to_owned);
            self.dirs[layer].extend(ancestors);
        }
        Ok(self.layers[layer].join(path))
    }

    /// Attributes of all directories, last, since each new name changes its directory's time. A
    /// directory without a file lies in the lowest layer.
    fn dirs_everywhere(&mut self, image: &Image) -> Result<()> {
        let dirs = image.nodes().iter().filter(|node| node.kind == Kind::Dir);
        for node in dirs.clone() {
            if !self.dirs.iter().any(|dirs| dirs.contains(&node.path)) {
                self.place(0, &node.path.join("x"))?;
            }
        }
        for node in dirs {
            let layers = self.layers.iter().zip(&self.dirs);
            for (layer, _) in layers.filter(|(_, dirs)| dirs.contains(&node.path)) {
                let path = layer.join(&node.path);
                fs::set_permissions(&path, Permissions::from_mode(node.mode))?;
                set_mtime(&path, node.mtime)?;
            }
        }
        Ok(())
    }
}

fn write_file(path: &Path, node: &Node, size: u64, seed: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut piece = vec![0; usize::try_from(size.min(1 << 20))?];
    let (mut page, mut left) = (0, size);
    while left > 0 {
        let length = usize::try_from(left.min(piece.len() as u64))?;
        contents::fill(seed, page, &mut piece[..length]);
        file.write_all(&piece[..length])?;
        page += (length / contents::PAGE) as u64;
        left -= length as u64;
    }
    file.set_permissions(Permissions::from_mode(node.mode))?;
    let seconds = Duration::from_secs(u64::try_from(node.mtime)?);
    Ok(file.set_modified(UNIX_EPOCH + seconds)?)
}

fn set_mtime(path: &Path, seconds: i64) -> Result<()> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        },
    };
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}
