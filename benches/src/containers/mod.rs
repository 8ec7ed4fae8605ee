//! Works by containerd: unpack an image, start a container, keep many of them.
//!
//! - [`archive`]: layers of the race as an image that `ctr images import` takes;
//! - [`stage`]: a containerd of our own, with the snapshotters that race and the image;
//! - [`ctr`]: containerd's command;
//! - `starts` and `crowd`: the works.
//!
//! The host's containerd is never met: ours has a root, a state and a socket of its own.

pub mod archive;
mod crowd;
pub mod ctr;
pub mod stage;
mod starts;

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::stats::Unit;
use crate::works::Target;
use stage::Stage;

/// A row of the table whose work is done by containerd.
#[derive(Clone, Debug)]
pub struct ContainerWork {
    /// What it is called in filters and in JSON.
    pub name: &'static str,
    /// What it is called in tables.
    pub title: &'static str,
    /// What is measured.
    pub unit: Unit,
    /// What Lamina has to reach.
    pub target: Target,
    /// The most rounds that it is worth.
    pub rounds: usize,
    /// Does it and verifies it: what was measured, or `None` where there is nothing to measure.
    pub run: fn(&mut Stage, &Snapshotter) -> Result<Option<f64>>,
}

/// How containerd uses a system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshotter {
    /// What containerd calls it.
    pub name: String,
    /// The `lamina` program, unless it is part of containerd.
    pub program: Option<PathBuf>,
    /// Whether containers get an upper that the kernel holds.
    pub kernel_upper: bool,
}

impl Snapshotter {
    /// Who holds uppers, as Lamina's options name it.
    fn upper(&self) -> &'static str {
        if self.kernel_upper { "kernel" } else { "union" }
    }
}

/// All works by containerd, in the order of the table.
pub fn all() -> Vec<ContainerWork> {
    [starts::works(), crowd::works()].concat()
}

/// Commands without which no container runs, and the Debian packages that have them.
const TOOLS: [(&str, &str); 4] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    (stage::BUSYBOX, "busybox-static"),
];

/// Packages that are missing here.
pub fn missing() -> Vec<&'static str> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = env::split_paths(&path).collect();
    // An absolute path stays what it is, whatever it is joined to.
    let is_there = |tool: &str| dirs.iter().any(|dir| dir.join(Path::new(tool)).exists());
    let missing = TOOLS.iter().filter(|(tool, _)| !is_there(tool));
    let mut packages: Vec<_> = missing.map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}
