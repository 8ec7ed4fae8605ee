//! The one folder that a test may leave anything in, because it is emptied at the end.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use super::process::mounts_below;

/// A temporary folder with a short name (a socket's path has room for 107 bytes). Dropping it
/// unmounts whatever is mounted below, dead FUSE mounts included, and removes the rest.
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("lm-").tempdir()?;
        Ok(Self { dir })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for point in mounts_below(self.path()).unwrap_or_default().iter().rev() {
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
}
