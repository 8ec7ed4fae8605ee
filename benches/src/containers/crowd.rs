//! Many containers at once, and what each costs Lamina in memory.
//!
//! What is counted is a mounted root file system in which a file of the image was read and one was
//! written: that is all of a container that Lamina knows of. A process of runc in each would weigh
//! on the machine, and not on Lamina.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use serde::Deserialize;

use super::stage::Stage;
use super::{ContainerWork, Snapshotter};
use crate::ground::Layers;
use crate::image::contents;
use crate::stats::Unit;
use crate::works::Target;

/// What a container writes.
const WRITTEN: &str = "written by a container";

/// The works of this module.
pub(super) fn works() -> Vec<ContainerWork> {
    vec![ContainerWork {
        name: "memory",
        title: "1,000 containers kept: memory of Lamina for each",
        unit: Unit::Kibibytes,
        target: Target::Absolute(200.0),
        // It is the same every time.
        rounds: 1,
        run: memory,
    }]
}

/// KiB of the daemon for each container. `None` where there is no daemon, or after Ctrl-C.
fn memory(stage: &mut Stage, snapshotter: &Snapshotter) -> Result<Option<f64>> {
    stage.unpack(snapshotter, &stage.run)?;
    let Some(pid) = stage.restart(snapshotter)? else {
        return Ok(None);
    };
    let roots = stage.path("roots");
    fs::create_dir_all(&roots)?;
    let mut crowd = Crowd {
        snapshotter: &snapshotter.name,
        roots,
        ids: Vec::new(),
    };
    let count = stage.ground.crowd();
    // What is made once is made now.
    let grown = crowd.grow(stage, 1).and_then(|()| {
        let before = resident(pid)?;
        crowd.grow(stage, count)?;
        Ok(resident(pid)?.saturating_sub(before))
    });
    crowd.end(stage)?;
    #[allow(clippy::cast_precision_loss)] // of a number of KiB
    let each = grown? as f64 / count as f64;
    Ok(Some(each).filter(|_| !stage.interrupt.asked()))
}

/// KiB that a process has in memory.
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("a process without memory")?.parse()?)
}

/// The containers that are there.
struct Crowd<'a> {
    snapshotter: &'a str,
    roots: PathBuf,
    ids: Vec<String>,
}

/// A mount, as containerd says it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Mount {
    r#type: String,
    source: String,
    options: Vec<String>,
}

impl Crowd<'_> {
    /// Adds so many containers, or less after Ctrl-C.
    fn grow(&mut self, stage: &mut Stage, count: usize) -> Result<()> {
        for _ in 0..count {
            if stage.interrupt.asked() {
                break;
            }
            let id = stage.container();
            let name = self.snapshotter;
            let command = ["snapshots", "--snapshotter", name, "prepare", "--mounts"];
            let mut command = stage.ctr.command(&command);
            command.args([&id, &stage.run.chain]);
            let mounts = crate::process::output(&mut command)?;
            let root = self.roots.join(&id);
            self.ids.push(id);
            let mounts: Vec<Mount> = serde_json::from_str(&mounts)?;
            let [mount] = mounts.as_slice() else {
                anyhow::bail!("{} mounts for one container", mounts.len());
            };
            mount.mount(&root)?;
            work(stage, &root).with_context(|| format!("in {}", root.display()))?;
        }
        Ok(())
    }

    /// Ends them all.
    fn end(&self, stage: &Stage) -> Result<()> {
        for id in &self.ids {
            let root = self.roots.join(id);
            if root.exists() {
                unmount(&root, UnmountFlags::empty())?;
                fs::remove_dir(&root)?;
            }
        }
        let mut command = vec!["snapshots", "--snapshotter", self.snapshotter, "remove"];
        command.extend(self.ids.iter().map(String::as_str));
        if !self.ids.is_empty() {
            stage.ctr.run(&command)?;
        }
        stage.ctr.collect()
    }
}

impl Mount {
    fn mount(&self, at: &Path) -> Result<()> {
        fs::create_dir(at)?;
        let mounted = if self.r#type == "bind" {
            mount_bind(&self.source, at)
        } else {
            let options = std::ffi::CString::new(self.options.join(","))?;
            mount(
                self.source.as_str(),
                at,
                self.r#type.as_str(),
                MountFlags::empty(),
                Some(options.as_c_str()),
            )
        };
        if let Err(error) = mounted {
            fs::remove_dir(at)?;
            return Err(error).with_context(|| format!("cannot mount {}", at.display()));
        }
        Ok(())
    }
}

/// What each container does: reads a file of the image, and writes one.
fn work(stage: &Stage, root: &Path) -> Result<()> {
    let image = stage.ground.image(Layers::Userland(2));
    let (node, size, seed) = image.files().next().context("an image without files")?;
    let right = fs::read(root.join(&node.path))? == contents::whole(seed, size);
    ensure!(right, "{} has other bytes", node.path.display());
    let written = root.join("etc/written");
    ensure!(!written.exists(), "another container's file is there");
    fs::write(&written, WRITTEN)?;
    ensure!(fs::read_to_string(&written)? == WRITTEN, "it was not kept");
    Ok(())
}
