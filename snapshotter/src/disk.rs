//! The disk below the snapshots: what was written is on it, or it says that it failed.
//!
//! The kernel tells of a write that failed in the background once, to whoever asks first (errseq(3)): a
//! descriptor that is opened later hears nothing of it, and the pages count as written. So there is one
//! descriptor for as long as the daemon runs, and what it has heard is remembered for every snapshot that
//! may have been meant.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::error::{Error, Result};
use crate::serve::locked;
use crate::store::layout::Layout;

/// The file system that holds the snapshots.
pub(crate) struct Disk {
    path: PathBuf,
    /// Opened at the start. Errors since then, and older ones that nobody was told of, are told here.
    dir: File,
    /// Snapshots below this number were active when the disk failed last. Locked while it is asked, so that
    /// nobody is answered between the kernel's word and its being written down.
    suspect: Mutex<u64>,
}

impl Disk {
    /// The disk of a root directory.
    pub(crate) fn open(layout: &Layout) -> Result<Disk> {
        let path = layout.snapshots();
        let dir = File::open(&path).map_err(Error::io("cannot open", &path))?;
        Ok(Disk {
            path,
            dir,
            suspect: Mutex::new(0),
        })
    }

    /// Makes everything that is written durable, whoever wrote it. An error is one of every snapshot
    /// below the number `next`.
    pub(crate) fn sync(&self, next: u64) -> Result<()> {
        let mut suspect = locked(&self.suspect);
        let synced = rustix::fs::syncfs(&self.dir);
        if synced.is_err() {
            *suspect = next.max(*suspect);
        }
        synced.map_err(Error::io("cannot sync the file system of", &self.path))
    }

    /// The same for a snapshot that is to be committed: refused if the disk ever failed while it was
    /// active.
    pub(crate) fn sync_snapshot(&self, id: u64, next: u64) -> Result<()> {
        if id < *locked(&self.suspect) {
            return Err(Error::Lost { id });
        }
        self.sync(next)?;
        // Another one may have been told meanwhile.
        if id < *locked(&self.suspect) {
            return Err(Error::Lost { id });
        }
        Ok(())
    }
}
