//! A host that pulls hostile images, and a tree beside it that nobody may touch.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use lamina_snapshotter::upper_mode::UpperMode;

use super::super::harness::{Host, Made, Registry, Snapshotter};
use super::layers::Tar;

/// The most memory that the daemon may ever take in these tests: that of pieces of a blob which are
/// fetched ahead, and no more for any claim of a blob.
const PEAK_KIB: i64 = 200 << 10;

/// Limits that small layers reach.
const CONFIG: &str = "[lazy]\npatience_secs = 2\nfill = false\n[lazy.limits]\nentries = 150000\n\
    ratio = 100\nratio_floor_mib = 8\n";

/// A host, a registry, and a tree beside them.
pub(super) struct Scene {
    pub(super) host: Host,
    pub(super) registry: Registry,
    pub(super) base: Made,
    canary: BTreeMap<PathBuf, Seen>,
    pulls: Cell<usize>,
}

/// All that may change about a file.
#[derive(Debug, Eq, PartialEq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    changed: (i64, i64),
    bytes: Vec<u8>,
}

/// What a pull came to.
pub(super) struct Pulled {
    pub(super) image: String,
    /// What containerd said.
    pub(super) result: Result<()>,
    /// Whether all layers but the lowest are served lazily.
    pub(super) is_served: bool,
    /// What the daemon has logged meanwhile.
    pub(super) log: String,
}

impl Scene {
    /// `None` where the snapshotter is one that unpacks.
    pub(super) fn start() -> Result<Option<Scene>> {
        Self::start_configured(CONFIG)
    }

    pub(super) fn start_configured(config: &str) -> Result<Option<Scene>> {
        if Snapshotter::chosen()? != Snapshotter::Lamina {
            return Ok(None);
        }
        let host = Host::start_configured(UpperMode::Union, config)?;
        let registry = Registry::start(host.scratch())?;
        let canary = host.scratch().join("canary");
        fs::create_dir_all(canary.join("dir"))?;
        fs::write(canary.join("file"), "outside")?;
        fs::write(canary.join("dir/inner"), "outside")?;
        fs::set_permissions(canary.join("file"), fs::Permissions::from_mode(0o600))?;
        let scene = Scene {
            canary: look_at(&canary)?,
            host,
            registry,
            base: base()?,
            pulls: Cell::new(0),
        };
        // So that every further pull makes only what is above it.
        let image = scene
            .registry
            .push_made("base:t", std::slice::from_ref(&scene.base))?;
        scene.host.ctr.rpull(&image)?;
        Ok(Some(scene))
    }

    /// Where the tree is that nobody may touch.
    pub(super) fn canary(&self) -> String {
        self.host.scratch().join("canary").display().to_string()
    }

    /// Pulls an image of these layers above one with a shell, and looks that nothing else happened.
    pub(super) fn pull(&self, layers: &[Made]) -> Result<Pulled> {
        self.pulls.set(self.pulls.get() + 1);
        let name = format!("hostile{}:t", self.pulls.get());
        let all = [std::slice::from_ref(&self.base), layers].concat();
        let image = self.registry.push_made(&name, &all)?;
        let (log, before) = (self.log()?.len(), self.lazy()?);
        let result = self.host.ctr.rpull(&image);
        let made = self.lazy()?.difference(&before).count();
        self.check()?;
        Ok(Pulled {
            image,
            result,
            is_served: made == layers.len(),
            log: self.log()?.split_off(log),
        })
    }

    /// Layers that are served as they lie in the registry. Answers the image's name.
    pub(super) fn expect_served(&self, layers: &[Made]) -> Result<String> {
        let pulled = self.pull(layers)?;
        pulled.result?;
        ensure!(pulled.is_served, "unpacked: {}", pulled.log);
        Ok(pulled.image)
    }

    /// Layers of which one is not served lazily, and for which reason: containerd then unpacks it, or
    /// fails.
    pub(super) fn expect_refused(&self, layers: &[Made], why: &str) -> Result<Pulled> {
        let pulled = self.pull(layers)?;
        ensure!(!pulled.is_served, "served, and not refused for {why:?}");
        ensure!(
            pulled.log.contains(why),
            "refused, and not for {why:?}: {}",
            pulled.log
        );
        Ok(pulled)
    }

    /// What a container of the image prints.
    pub(super) fn run(&self, image: &str, script: &str) -> Result<String> {
        let ctr = &self.host.ctr;
        ctr.start("box", image, "")?;
        let seen = ctr.exec("box", script);
        ctr.end("box")?;
        self.check()?;
        seen
    }

    /// Shows a container's root, as the host sees it.
    pub(super) fn view<T>(&self, image: &str, look: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let ctr = &self.host.ctr;
        ctr.start("box", image, "")?;
        let mounts = self.host.mounts()?;
        let root = mounts.iter().find(|point| point.ends_with("box/rootfs"));
        let seen = look(root.with_context(|| format!("no root: {mounts:?}"))?);
        ctr.end("box")?;
        self.check()?;
        seen
    }

    /// That nothing outside of the root has changed, and the daemon is well.
    pub(super) fn check(&self) -> Result<()> {
        let canary = look_at(Path::new(&self.canary()))?;
        ensure!(canary == self.canary, "the host was changed: {canary:?}");
        let lamina = self.host.lamina.as_ref().context("no daemon")?;
        let peak = lamina.peak_kib()?;
        ensure!(peak < PEAK_KIB, "the daemon took {peak} KiB");
        self.host.ctr.snapshots().map(drop)
    }

    /// The daemon's log.
    pub(super) fn log(&self) -> Result<String> {
        let path = self.host.scratch().join("lamina.log");
        Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
    }

    /// The snapshots that are served from a blob.
    pub(super) fn lazy(&self) -> Result<BTreeSet<PathBuf>> {
        let all = fs::read_dir(self.host.snapshotter_root().join("snapshots"))?;
        let mut lazy = BTreeSet::new();
        for snapshot in all {
            let path = snapshot?.path();
            if path.join("blob.json").exists() {
                lazy.insert(path);
            }
        }
        Ok(lazy)
    }
}

fn look_at(path: &Path) -> Result<BTreeMap<PathBuf, Seen>> {
    let mut all = BTreeMap::new();
    let mut rest = vec![path.to_owned()];
    while let Some(path) = rest.pop() {
        let meta = fs::symlink_metadata(&path)?;
        let mut bytes = Vec::new();
        if meta.is_dir() {
            for entry in fs::read_dir(&path)? {
                rest.push(entry?.path());
            }
        } else {
            bytes = fs::read(&path)?;
        }
        let seen = Seen {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            links: meta.nlink(),
            // Also of what no other field tells.
            changed: (meta.ctime(), meta.ctime_nsec()),
            bytes,
        };
        all.insert(path, seen);
    }
    Ok(all)
}

/// A layer with a shell.
fn base() -> Result<Made> {
    let mut tar = Tar::default();
    for dir in [
        "bin/", "dev/", "etc/", "opt/", "proc/", "run/", "sys/", "tmp/",
    ] {
        tar = tar.dir(dir);
    }
    let busybox = fs::read("/bin/busybox").context("/bin/busybox")?;
    tar = tar.mode("bin/busybox", 0o755, &busybox);
    for applet in ["cat", "id", "ls", "sh", "sha256sum", "sleep", "stat"] {
        tar = tar.symlink(&format!("bin/{applet}"), "busybox");
    }
    let tar = tar.file("etc/hidden", b"below").file("etc/seen", b"below");
    Ok(tar.gzip())
}
