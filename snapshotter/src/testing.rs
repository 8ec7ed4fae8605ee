//! What several tests need.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A root on a file system of its own, small enough to fill.
pub(crate) struct Small(tempfile::TempDir);

impl Small {
    pub(crate) fn mount() -> Small {
        let dir = tempfile::tempdir().expect("tempdir");
        let size = Some(c"size=16m");
        mount("tmpfs", dir.path(), c"tmpfs", MountFlags::empty(), size).expect("mount a tmpfs");
        Small(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes every byte that is left.
    pub(crate) fn fill(&self) -> PathBuf {
        let filler = self.path().join("filler");
        for block in [1 << 20, 4096] {
            let chunk = vec![0; block];
            let mut file = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(&filler)
                .expect("open");
            while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
        }
        filler
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        unmount(self.path(), UnmountFlags::DETACH).expect("unmount");
    }
}
