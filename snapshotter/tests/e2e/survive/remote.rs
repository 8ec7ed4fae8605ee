//! A container whose image is not here: its bytes come over a slow link while the daemon dies.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::program;
use super::scene::load_script;
use crate::harness::{Host, Link, Packing, Proxy, Registry, Snapshotter, busybox_root, wait_for};
use crate::lazy::wait_until_cache_is_empty;

/// How long the reader may take for what it has begun.
const LIMIT: Duration = Duration::from_mins(1);
/// The image takes some seconds.
const LINK: Link = Link {
    round_trip: Duration::from_millis(20),
    rate: 4 << 20,
};

/// What is configured for it: nothing is fetched but what somebody waits for.
pub(super) const CONFIG: &str = "[lazy]\nfill = false\nprofiles = \"off\"\n";

pub(super) struct Remote {
    _registry: Registry,
    image: String,
    outside: PathBuf,
    /// How many containers there were.
    count: u64,
    runs: bool,
}

impl Remote {
    /// `None` where the snapshotter is one that unpacks.
    pub(super) fn start(host: &Host) -> Result<Option<Remote>> {
        if Snapshotter::chosen()? != Snapshotter::Lamina {
            return Ok(None);
        }
        let dir = host.scratch();
        let registry = Registry::start(dir)?;
        let proxy = Proxy::start_behind(registry.port(), Some(LINK))?;
        let layer = dir.join("remote-layer");
        busybox_root(&layer)?;
        program::put_load(&layer)?;
        let name = registry.push(&[layer], Packing::ZstdChunked)?;
        Ok(Some(Remote {
            image: format!("{}/{name}", proxy.address()),
            outside: dir.join("outside-remote"),
            _registry: registry,
            count: 0,
            runs: false,
        }))
    }

    /// Pulls the image, and starts a container that reads all of it.
    pub(super) fn renew(&mut self, host: &Host, seed: u64) -> Result<()> {
        self.end(host)?;
        self.count += 1;
        let name = self.name();
        if self.outside.exists() {
            fs::remove_dir_all(&self.outside)?;
        }
        fs::create_dir(&self.outside)?;
        host.ctr.rpull(&self.image)?;
        super::scene::start_watched(
            host,
            &self.outside,
            (&name, &self.image),
            &load_script(&name, seed.wrapping_add(self.count), "image"),
        )?;
        self.runs = true;
        Ok(())
    }

    /// The container ends, and nothing of the image stays here.
    pub(super) fn end(&mut self, host: &Host) -> Result<()> {
        if !self.runs {
            return Ok(());
        }
        fs::write(self.outside.join("stop"), "")?;
        let name = self.name();
        let ended = self.outside.join(format!("{name}.ended"));
        let waited = wait_for(&format!("{name} ends"), LIMIT, || {
            ended.exists() || self.failed().is_some()
        });
        if let Some(path) = self.failed() {
            bail!("container {name}: {}", fs::read_to_string(path)?.trim());
        }
        waited.with_context(|| name.clone())?;
        host.ctr.end(&name)?;
        host.ctr.remove_image(&self.image)?;
        self.runs = false;
        wait_until_cache_is_empty(host)
    }

    /// Where it tells what it sees.
    pub(super) fn outside(&self) -> &Path {
        &self.outside
    }

    fn failed(&self) -> Option<PathBuf> {
        let path = self.outside.join(format!("{}.failed", self.name()));
        path.exists().then_some(path)
    }

    fn name(&self) -> String {
        format!("remote{}", self.count)
    }
}
