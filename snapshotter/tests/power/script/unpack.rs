//! A layer as containerd unpacks it: written by way of the kernel, and never synced by whoever writes.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use fastrand::Rng;
use lamina_proto::containerd::types::Mount;
use rustix::mount::{UnmountFlags, unmount};

use super::super::harness::run;
use super::super::model::{Layer, Node, Tree};

/// Lamina's own limit (`PARTIAL_FROM`).
pub(super) const LARGE: u64 = 64 << 20;

/// A place to unpack into. Unmounted when it is dropped.
pub(crate) struct Place {
    dir: PathBuf,
    is_mounted: bool,
}

impl Place {
    /// Does what containerd does with its answer.
    pub(crate) fn of(mounts: &[Mount], at: &Path) -> Result<Place> {
        let [mount] = mounts else {
            anyhow::bail!("one mount: {mounts:?}")
        };
        if mount.r#type == "bind" {
            return Ok(Place {
                dir: mount.source.clone().into(),
                is_mounted: false,
            });
        }
        fs::create_dir_all(at)?;
        let (options, target) = (mount.options.join(","), at.to_str().context("UTF-8")?);
        let kind = mount.r#type.as_str();
        run(
            "mount",
            &["-t", kind, "-o", &options, &mount.source, target],
        )?;
        Ok(Place {
            dir: at.to_owned(),
            is_mounted: true,
        })
    }

    /// Writes a layer on what is below, and answers what is there then.
    pub(crate) fn unpack(&self, number: u64, chance: &mut Rng) -> Result<Layer> {
        let below = Tree::read(&self.dir)?;
        for (path, node) in below.0.iter().rev() {
            match node {
                Node::Dir { .. } => {}
                // Overlayfs without an index breaks a link when it copies one up.
                Node::File { file, .. } if below.names_of(*file).len() > 1 => {}
                _ if chance.u8(0..8) == 0 => fs::remove_file(self.dir.join(path))?,
                Node::File { .. } if chance.u8(0..8) == 0 => write(&self.dir.join(path), chance)?,
                _ => {}
            }
        }
        for dir in 0..chance.u64(1..4) {
            let dir = self.dir.join(format!("l{number}-{dir}"));
            fs::create_dir(&dir)?;
            for file in 0..chance.u64(1..6) {
                write(&dir.join(format!("f{file}")), chance)?;
            }
            fs::hard_link(dir.join("f0"), dir.join("linked"))?;
            symlink("f0", dir.join("link"))?;
        }
        if chance.u8(0..4) == 0 {
            write_large(&self.dir.join(format!("large{number}")), chance)?;
        }
        let layer = Layer::read(&self.dir)?;
        ensure!(!layer.tree.0.is_empty(), "an empty layer");
        Ok(layer)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = unmount(&self.dir, UnmountFlags::DETACH);
        }
    }
}

/// A file that is so large that of its copy in an upper only what is written is there (where the file
/// system can't share blocks), with holes of its own.
fn write_large(path: &Path, chance: &mut Rng) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(LARGE + chance.u64(0..100_000))?;
    for _ in 0..8 {
        let mut bytes = vec![0; chance.usize(1..20_000)];
        chance.fill(&mut bytes);
        file.write_all_at(&bytes, chance.u64(0..LARGE))?;
    }
    Ok(())
}

fn write(path: &Path, chance: &mut Rng) -> Result<()> {
    let most = if chance.u8(0..10) == 0 {
        300_000
    } else {
        30_000
    };
    let mut bytes = vec![0; chance.usize(0..most)];
    chance.fill(&mut bytes);
    Ok(fs::write(path, bytes)?)
}
