//! A machine: a disk and the daemon on it. Each start of it is another boot.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lamina_snapshotter::check::{Finding, check};
use lamina_snapshotter::upper_mode::UpperMode;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::disk::{Clock, Disk, FileSystem, MountsBelow, Sparse};
use super::harness::{Api, Daemon};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// On a busy machine a registry takes its time, and that is not what is tested.
const CONFIG: &str = "[lazy]\npatience_secs = 60\n";

/// Dropping it kills the daemon; the disk goes after that.
pub(crate) struct Machine {
    daemon: Daemon,
    _boot: Boot,
    /// What the daemon leaves mounted when it is killed.
    _mounts: MountsBelow,
    disk: Disk,
    pub(crate) kind: FileSystem,
    /// What `lamina check` found before the daemon started.
    pub(crate) found: Vec<Finding>,
}

impl Machine {
    /// Boots a machine with this disk. What is no part of the disk lies in `dir`.
    pub(crate) fn boot(disk: Sparse, kind: FileSystem, dir: &Path) -> Result<Machine> {
        // The whole disk is the root.
        let root = dir.join("lamina");
        let disk = Disk::mount(disk, kind, dir, &root)?;
        let mounts = MountsBelow(root.clone());
        let boot = Boot::another(dir)?;
        let is_new = !root.join("metadata.redb").exists();
        let found = if is_new { Vec::new() } else { check(&root)? };
        let daemon = Daemon::start(dir, UpperMode::Union, CONFIG)?;
        Ok(Machine {
            daemon,
            _boot: boot,
            _mounts: mounts,
            disk,
            kind,
            found,
        })
    }

    pub(crate) fn api(&self) -> Result<Api> {
        Api::connect(&self.daemon.socket(), "lamina", &[])
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.daemon.root()
    }

    pub(crate) fn clock(&self) -> &Clock {
        self.disk.clock()
    }

    /// Ends the daemon in order, and asks `lamina check` for damage.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.daemon.stop()?;
        self.daemon.check()
    }
}

/// A boot with an id of its own: a daemon that finds the id of the last one in its cache would
/// believe what a power cut has torn.
struct Boot;

impl Boot {
    fn another(dir: &Path) -> Result<Boot> {
        let file = dir.join("boot-id");
        fs::write(&file, format!("{:032x}\n", fastrand::u128(..)))?;
        mount_bind(&file, BOOT_ID).with_context(|| format!("cannot mount over {BOOT_ID}"))?;
        Ok(Boot)
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        let _ = unmount(BOOT_ID, UnmountFlags::DETACH);
    }
}
