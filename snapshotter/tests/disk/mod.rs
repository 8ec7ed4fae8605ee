//! A disk that remembers what it was told, and fails when it is told to: a loop device over a FUSE file
//! system of one file, which keeps each write and each flush in a log.
//!
//! The loop driver reads and writes the file past the page cache, and hands a flush on as an fsync.
//! So the log has what the file system told its disk, in that order.

#![allow(
    dead_code,
    unused_imports,
    reason = "each binary that includes this module uses a part of it"
)]

mod server;
mod sparse;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context as _, Result};
use fuser::BackgroundSession;
use rustix::mount::{UnmountFlags, unmount};

pub(crate) use self::server::{BAD, Entry, Faults};
use self::server::{NAME, Served, State};
pub(crate) use self::sparse::{BLOCK, Sparse};
use super::harness::{mounts_below, run, wait_for};

/// Sparse, so that most of it costs nothing.
const DISK_MIB: u64 = 1024;
/// How long unmounting may take.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(20);

/// What lies on the disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FileSystem {
    Ext4,
    Xfs,
    /// Mounted with `notreelog`. Otherwise its fsync takes along what belongs to the file and no older
    /// change of another name, so that what has to be there would be another list.
    Btrfs,
}

impl FileSystem {
    pub(crate) const ALL: [FileSystem; 3] = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];

    /// Those that `LAMINA_DISK` names; all if it names none.
    pub(crate) fn chosen() -> Result<Vec<FileSystem>> {
        let Ok(names) = env::var("LAMINA_DISK") else {
            return Ok(FileSystem::ALL.to_vec());
        };
        let of = |name: &str| {
            let mut all = FileSystem::ALL.into_iter();
            let found = all.find(|kind| kind.name() == name);
            found.with_context(|| format!("LAMINA_DISK: {name} is none of {:?}", FileSystem::ALL))
        };
        names.split_whitespace().map(of).collect()
    }

    fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
            FileSystem::Btrfs => "btrfs",
        }
    }

    fn mount_options(self) -> &'static str {
        match self {
            FileSystem::Ext4 | FileSystem::Xfs => "defaults",
            FileSystem::Btrfs => "notreelog",
        }
    }

    /// Whether a file that grows has zeros where it was cut before, after a power cut too. btrfs may show what
    /// was cut off: it grows the file before those zeros are on the disk.
    pub(crate) fn zeros_last(self) -> bool {
        match self {
            FileSystem::Ext4 | FileSystem::Xfs => true,
            FileSystem::Btrfs => false,
        }
    }

    /// What a disk must write whole or not at all for it, in bytes. The superblock of ext4 fills two
    /// sectors of 512 bytes and has one checksum; the disks of today have sectors of 4,096.
    pub(crate) fn sector(self) -> u64 {
        match self {
            FileSystem::Ext4 | FileSystem::Btrfs => 4096,
            FileSystem::Xfs => 512,
        }
    }

    /// A disk with a new one on it.
    pub(crate) fn make(self, dir: &Path) -> Result<Sparse> {
        let path = dir.join("made");
        fs::File::create(&path)?.set_len(DISK_MIB << 20)?;
        let file = path.to_str().context("UTF-8")?;
        match self {
            // All is written now, and nothing later by a thread of the kernel.
            FileSystem::Ext4 => {
                let now = "lazy_itable_init=0,lazy_journal_init=0";
                run("mkfs.ext4", &["-q", "-F", "-J", "size=16", "-E", now, file])?;
            }
            FileSystem::Xfs => drop(run("mkfs.xfs", &["-q", "-f", file])?),
            FileSystem::Btrfs => drop(run("mkfs.btrfs", &["-q", "-f", file])?),
        }
        let disk = Sparse::read_from(&path)?;
        fs::remove_file(&path)?;
        Ok(disk)
    }
}

/// A disk that is mounted. The fields are dropped in this order: what is mounted needs its server until
/// it is gone.
pub(crate) struct Disk {
    _mount: Mounted,
    _server: Server,
    clock: Clock,
}

impl Disk {
    /// Plugs in a disk, and mounts it at `at`. The device's file lies in `dir`.
    pub(crate) fn mount(disk: Sparse, kind: FileSystem, dir: &Path, at: &Path) -> Result<Disk> {
        let served = dir.join("served");
        fs::create_dir_all(&served)?;
        fs::create_dir_all(at)?;
        let clock = Clock(Arc::new(Mutex::new(State {
            now: disk,
            log: Vec::new(),
            faults: Faults::default(),
        })));
        let server = Served(Arc::clone(&clock.0)).mount(&served);
        let server = server.with_context(|| format!("cannot serve {}", served.display()))?;
        let server = Server(Some(server));
        let mount = Mounted::new(&served.join(NAME), kind, at)?;
        Ok(Disk {
            _mount: mount,
            _server: server,
            clock,
        })
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// From now on these requests fail.
    pub(crate) fn fail(&self, faults: Faults) {
        self.clock.state().faults = faults;
    }
}

/// Tells the time by what a disk was told.
#[derive(Clone)]
pub(crate) struct Clock(Arc<Mutex<State>>);

impl Clock {
    /// How many entries its log has.
    pub(crate) fn now(&self) -> usize {
        self.state().log.len()
    }

    /// What the disk holds now.
    pub(crate) fn disk(&self) -> Sparse {
        self.state().now.clone()
    }

    /// All entries of its log.
    pub(crate) fn log(&self) -> Vec<Entry> {
        self.state().log.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What answers the loop driver.
struct Server(Option<BackgroundSession>);

impl Drop for Server {
    fn drop(&mut self) {
        // One that is still in use goes when this process does.
        if let Some(server) = self.0.take() {
            let _ = server.umount_and_join();
        }
    }
}

/// A mount point of a loop device.
struct Mounted(PathBuf);

impl Mounted {
    fn new(file: &Path, kind: FileSystem, at: &Path) -> Result<Mounted> {
        let attach = ["--find", "--show", "--direct-io=on", &text(file)];
        let device = run("losetup", &attach)?;
        let (name, options) = (kind.name(), kind.mount_options());
        let mounted = run(
            "mount",
            &["-t", name, "-o", options, device.trim(), &text(at)],
        );
        // One that is mounted goes by itself when it is not any more, also if this process is killed.
        run("losetup", &["--detach", device.trim()])?;
        mounted.with_context(kernel_log)?;
        Ok(Mounted(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Files of a union that is gone are let go of a moment later.
        let unmounted = wait_for("nobody uses the disk", UNMOUNT_LIMIT, || {
            unmount(&self.0, UnmountFlags::empty()).is_ok()
        });
        if unmounted.is_err() {
            let _ = unmount(&self.0, UnmountFlags::DETACH);
        }
    }
}

/// Unmounts everything below a directory, but not what is mounted on it.
pub(crate) struct MountsBelow(pub(crate) PathBuf);

impl Drop for MountsBelow {
    fn drop(&mut self) {
        for point in mounts_below(&self.0).unwrap_or_default().iter().rev() {
            if *point != self.0 {
                let _ = unmount(point, UnmountFlags::DETACH);
            }
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// What the kernel said last.
fn kernel_log() -> String {
    let log = run("dmesg", &[]).unwrap_or_default();
    let lines: Vec<&str> = log.lines().rev().take(12).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
