//! The union file systems that race: how each mounts the same layers.

mod fuse;
mod kernel;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::mount::UnmountFlags;

use crate::containers::Snapshotter;
use crate::ground::Round;

pub use fuse::{FuseOverlayfs, Lamina};
pub use kernel::{LaminaWithKernelUpper, Overlayfs};

/// How long an unmounted server may take to end.
const PATIENCE: Duration = Duration::from_mins(1);

/// A union file system.
pub trait System: Debug {
    /// What it is called in tables and filters.
    fn name(&self) -> &str;

    /// What it says its version is.
    fn version(&self) -> Result<String>;

    /// How containerd uses it, if it can.
    fn snapshotter(&self) -> Option<Snapshotter> {
        None
    }

    /// Makes what the system keeps of these layers, the topmost first. Happens once for each work,
    /// and is not timed.
    fn prepare(&self, _layers: &[PathBuf], _round: &Round) -> Result<()> {
        Ok(())
    }

    /// Mounts these layers, the topmost first, with the upper of this round on its mount point.
    fn mount(&self, layers: &[PathBuf], round: &Round) -> Result<Mounted>;
}

/// A mount, and the process that serves it if there is one. Dropping unmounts it.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
    server: Option<Child>,
    /// What this mount lies on, unmounted after it.
    below: Option<Box<Mounted>>,
    gone: bool,
}

impl Mounted {
    fn new(at: PathBuf, server: Option<Child>) -> Mounted {
        Mounted {
            at,
            server,
            below: None,
            gone: false,
        }
    }

    /// Its root.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Unmounts, and waits until the server has ended: only then is everything in the upper.
    pub fn unmount(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.gone {
            return Ok(());
        }
        self.gone = true;
        let unmounted = rustix::mount::unmount(&self.at, UnmountFlags::empty());
        if unmounted.is_err() {
            rustix::mount::unmount(&self.at, UnmountFlags::DETACH)?;
        }
        let ended = self.server.as_mut().map_or(Ok(()), wait_for_end);
        if let Some(mut below) = self.below.take() {
            below.end()?;
        }
        ended?;
        Ok(unmounted?)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("cannot unmount {}: {error:#}", self.at.display());
        }
    }
}

fn wait_for_end(server: &mut Child) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = server.try_wait()? {
            return if status.success() {
                Ok(())
            } else {
                bail!("the server ended with {status}")
            };
        }
        sleep(Duration::from_millis(1));
    }
    server.kill()?;
    server.wait()?;
    bail!("the server did not end within {PATIENCE:?} after its mount was gone")
}
