//! The whole stage of an end-to-end test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{env, process};

use anyhow::{Context as _, Result, bail};

use lamina_snapshotter::upper_mode::UpperMode;

use super::containerd::Containerd;
use super::ctr::Ctr;
use super::image::Layout;
use super::lamina::Daemon;
use super::peer::Stargz;
use super::process::{mounts_below, output, run, wait_for};
use super::scratch::Scratch;
use super::{Api, IMAGE};

/// How long containerd may take to find the restarted snapshotter.
const RECONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Commands that the harness calls.
const TOOLS: [&str; 6] = ["containerd", "ctr", "runc", "umoci", "busybox", "tar"];

/// Who serves the snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshotter {
    /// Lamina, as a proxy plugin.
    Lamina,
    /// containerd's own, which shows that the tests themselves are right.
    Overlayfs,
}

impl Snapshotter {
    /// The one that `SNAPSHOTTER` names; Lamina when it names none.
    pub fn chosen() -> Result<Self> {
        match env::var("SNAPSHOTTER").as_deref() {
            Err(_) | Ok("" | "lamina") => Ok(Self::Lamina),
            Ok("overlayfs") => Ok(Self::Overlayfs),
            Ok(other) => bail!("SNAPSHOTTER is {other:?}: neither lamina nor overlayfs"),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Lamina => "lamina",
            Self::Overlayfs => "overlayfs",
        }
    }
}

/// A snapshotter, a containerd that uses it, and an image. The fields are dropped in this order.
pub struct Host {
    pub ctr: Ctr,
    pub containerd: Containerd,
    pub lamina: Option<Daemon>,
    peer: Option<Stargz>,
    pub layout: Layout,
    namespace: Namespace,
    scratch: Scratch,
}

impl Host {
    /// Sets the stage with the snapshotter that the environment chooses.
    pub fn start() -> Result<Self> {
        Self::start_with(UpperMode::Union)
    }

    /// The same, and Lamina's configuration says who holds the uppers.
    pub fn start_with(upper: UpperMode) -> Result<Self> {
        Self::start_configured(upper, "")
    }

    /// The same with more of Lamina's configuration.
    pub fn start_configured(upper: UpperMode, config: &str) -> Result<Self> {
        Self::start_beside(upper, config, None)
    }

    /// The same with stargz-snapshotter in the same containerd, if its program is named.
    pub fn start_beside(upper: UpperMode, config: &str, peer: Option<&Path>) -> Result<Self> {
        require()?;
        let snapshotter = Snapshotter::chosen()?;
        let scratch = Scratch::new()?;
        let layout = Layout::build(scratch.path())?;
        let lamina = match snapshotter {
            Snapshotter::Lamina => Some(Daemon::start(scratch.path(), upper, config)?),
            Snapshotter::Overlayfs => None,
        };
        let mut snippet = lamina
            .as_ref()
            .map(Daemon::snippet)
            .transpose()?
            .unwrap_or_default();
        let peer = peer.map(|binary| Stargz::start(binary, scratch.path()));
        let peer = peer.transpose()?;
        snippet.extend(peer.iter().map(Stargz::snippet));
        let containerd = Containerd::start(scratch.path(), &snippet)?;
        let namespace = Namespace::new();
        let fifos = scratch.join("fifos");
        let ctr = Ctr::new(containerd.socket(), &namespace.0, snapshotter.name(), fifos);
        Ok(Self {
            ctr,
            containerd,
            lamina,
            peer,
            layout,
            namespace,
            scratch,
        })
    }

    /// Pulls an image by `lamina image pull`, and answers what that says at its end.
    pub fn pull(&self, image: &str) -> Result<String> {
        output(&mut self.pull_command(image)?)
    }

    /// The command for that; further arguments may follow.
    pub fn pull_command(&self, image: &str) -> Result<Command> {
        let lamina = self.lamina.as_ref().context("it is not Lamina")?;
        let mut command = lamina.prepared_command(&["image"])?;
        command.args(["pull", image, "--namespace", &self.namespace.0]);
        command.arg("--address").arg(self.containerd.socket());
        Ok(command)
    }

    /// Imports the three images of the layout.
    pub fn import(&self) -> Result<()> {
        let archive = self.scratch.join("images.tar");
        self.layout.archive(&archive)?;
        self.ctr.import(IMAGE, &archive)
    }

    /// Makes the image `tag` of what container `id`, run from `below`, changed, and imports it.
    pub fn commit(&self, id: &str, below: &str, tag: &str) -> Result<()> {
        let tar = self.scratch.join("layer.tar");
        self.ctr.diff(id, &tar)?;
        self.layout.add_layer(below, tag, &tar)?;
        self.import()
    }

    /// A digest of everything in an image: names, contents, modes, owners, times, links, xattrs.
    pub fn image_digest(&self, image: &str) -> Result<String> {
        let target = self.scratch.join("view");
        fs::create_dir_all(&target)?;
        self.ctr.mount(image, &target)?;
        let script = format!(
            "tar -C {} --sort=name --numeric-owner --xattrs -cf - . | sha256sum",
            target.display()
        );
        let digest = run("bash", &["-ec", "set -o pipefail; eval \"$0\"", &script]);
        self.ctr.unmount(&target)?;
        digest
    }

    /// Restarts the snapshotter while no container runs, as it has to be for now: stops the
    /// processes of all containers, restarts, and starts them again.
    pub fn restart_snapshotter(&mut self) -> Result<()> {
        let tasks = self.ctr.tasks()?;
        for id in &tasks {
            self.ctr.stop_task(id)?;
        }
        if let Some(lamina) = &mut self.lamina {
            lamina.stop()?;
            lamina.check()?;
            lamina.start_again()?;
        }
        self.wait_ready()?;
        tasks.iter().try_for_each(|id| self.ctr.start_task(id))
    }

    /// Restarts containerd while the containers run on.
    pub fn restart_containerd(&mut self) -> Result<()> {
        self.containerd.stop()?;
        self.containerd.start_again()?;
        self.wait_ready()
    }

    /// The snapshots API of this containerd, with a lease if one is named.
    pub fn api(&self, lease: Option<&str>) -> Result<Api> {
        let mut headers = vec![("containerd-namespace", self.namespace.0.as_str())];
        headers.extend(lease.map(|lease| ("containerd-lease", lease)));
        let name = if self.lamina.is_some() {
            "lamina"
        } else {
            "overlayfs"
        };
        Api::connect(&self.containerd.socket(), name, &headers)
    }

    /// The folder in which everything of this host is.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// What Lamina tells of the layers that were not unpacked.
    pub fn layers(&self) -> Result<Vec<serde_json::Value>> {
        self.lamina.as_ref().context("it is not Lamina")?.layers()
    }

    /// What is mounted below the folder of this host.
    pub fn mounts(&self) -> Result<Vec<PathBuf>> {
        mounts_below(self.scratch.path())
    }

    /// The folder in which the snapshotter keeps everything.
    pub fn snapshotter_root(&self) -> PathBuf {
        match &self.lamina {
            Some(lamina) => lamina.root(),
            None => self
                .scratch
                .join("containerd/io.containerd.snapshotter.v1.overlayfs"),
        }
    }

    /// Ends both daemons as an administrator would, and fails if anything is left of them.
    pub fn stop(mut self) -> Result<()> {
        self.containerd.stop()?;
        if let Some(lamina) = &mut self.lamina {
            lamina.stop()?;
            lamina.check()?;
        }
        let left = self.mounts()?;
        if !left.is_empty() {
            bail!("still mounted after everything has stopped: {left:?}");
        }
        Ok(())
    }

    /// Waits until containerd reaches the snapshotter.
    pub fn wait_ready(&self) -> Result<()> {
        let mut last = None;
        let waited = wait_for(
            "containerd reaches the snapshotter",
            RECONNECT_LIMIT,
            || {
                last = self.ctr.snapshots().err();
                last.is_none()
            },
        );
        waited.with_context(|| format!("the last answer: {last:?}"))
    }
}

/// Fails with a clear word where the tests cannot run; they are never skipped in silence.
fn require() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("end-to-end tests need root: run scripts/test");
    }
    if !Path::new("/dev/fuse").exists() {
        bail!("end-to-end tests need /dev/fuse: run scripts/test");
    }
    require_tools(&TOOLS)
}

pub(super) fn require_tools(tools: &[&str]) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    for tool in tools {
        if !env::split_paths(&path).any(|dir| dir.join(tool).exists()) {
            bail!("end-to-end tests need the command {tool}: run scripts/test");
        }
    }
    Ok(())
}

/// A namespace of containerd's. Dropping it removes the empty control groups that runc leaves.
struct Namespace(String);

impl Namespace {
    /// Another one for each host: runc remembers the containers of a test that failed.
    fn new() -> Namespace {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Namespace(format!("lamina-{}-{count}", process::id()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let hierarchies = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_dir(hierarchies).into_iter().flatten().flatten();
        for dir in controllers
            .map(|entry| entry.path())
            .chain([hierarchies.to_owned()])
        {
            let group = dir.join(&self.0);
            for container in fs::read_dir(&group).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(container.path());
            }
            let _ = fs::remove_dir(group);
        }
    }
}
