//! The one folder that a test may leave anything in, because it is emptied at the end.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use super::process::mounts_below;

/// While this is set, folders stay, for whoever set it to remove all of them at the end: an ext4 without a
/// journal does not take the inode of a removed file again for minutes, and looks at all such inodes for each
/// file that is made (`recently_deleted` in fs/ext4/ialloc.c), so that removing one folder slows down what is
/// timed in the next.
const KEEP: &str = "LAMINA_KEEP_SCRATCH";

/// A temporary folder with a short name (a socket's path has room for 107 bytes). Dropping it
/// unmounts whatever is mounted below, dead FUSE mounts included, and removes the rest.
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    pub fn new() -> Result<Self> {
        let mut dir = tempfile::Builder::new().prefix("lm-").tempdir()?;
        dir.disable_cleanup(env::var_os(KEEP).is_some());
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
