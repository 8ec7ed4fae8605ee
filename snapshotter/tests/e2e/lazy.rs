//! Containers that start before their image is here.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lamina_fusefs::blob::Digest;
use lamina_snapshotter::upper_mode::UpperMode;

use super::alone;
use super::harness::{Fault, Host, Packing, Proxy, Registry, Snapshotter, wait_for};

/// How long a container waits for bytes in these tests, in seconds.
pub(super) const PATIENCE: u64 = 2;
/// Bytes of the large file.
pub(super) const LARGE: usize = 3_000_000;

/// A host, and a registry behind a proxy with an image in every format.
pub(super) struct Scene {
    pub(super) host: Host,
    pub(super) registry: Registry,
    pub(super) proxy: Proxy,
    pub(super) layers: Vec<PathBuf>,
}

impl Scene {
    /// `None` where the snapshotter is one that unpacks.
    pub(super) fn start() -> Result<Option<Scene>> {
        Scene::start_configured("")
    }

    /// The same with more in `[lazy]`.
    fn start_configured(more: &str) -> Result<Option<Scene>> {
        if Snapshotter::chosen()? != Snapshotter::Lamina {
            return Ok(None);
        }
        let config = format!("[lazy]\npatience_secs = {PATIENCE}\nfill = false\n{more}");
        let host = Host::start_configured(UpperMode::Union, &config)?;
        let dir = host.scratch();
        let registry = Registry::start(dir)?;
        let proxy = Proxy::start(registry.port())?;
        let layers = vec![dir.join("lazy-base"), dir.join("lazy-top")];
        Ok(Some(Scene {
            host,
            registry,
            proxy,
            layers,
        }))
    }

    /// Pushes an image that shares no layer with one of another packing, and answers its name.
    pub(super) fn push(&self, packing: Packing) -> Result<String> {
        for layer in &self.layers {
            if layer.exists() {
                fs::remove_dir_all(layer)?;
            }
        }
        base(&self.layers[0], packing.name())?;
        top(&self.layers[1], packing.name())?;
        let name = self.registry.push(&self.layers, packing)?;
        if packing == Packing::Estargz {
            let plain = format!("{}/plain:t", self.registry.address());
            let made = format!("{}/{name}", self.registry.address());
            self.host.ctr.convert_to_estargz(&plain, &made)?;
        }
        Ok(format!("{}/{name}", self.proxy.address()))
    }

    /// The end of the daemon's log.
    fn log(&self) -> String {
        let log = fs::read_to_string(self.host.scratch().join("lamina.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Waits until a host has the files that [`SEEN`] needs.
    pub(super) fn wait_until_prefetched(&self, host: &Host) -> Result<()> {
        let cache = host.snapshotter_root().join("cache/files");
        for (layer, path) in [(0, "bin/busybox"), (0, "etc/name"), (1, "opt/large")] {
            let name = Digest::of(&fs::read(self.layers[layer].join(path))?).to_hex();
            let kept = cache.join(&name[..2]).join(&name);
            wait_for(path, Duration::from_secs(20), || kept.exists())?;
        }
        Ok(())
    }

    /// The snapshots whose layers lie unpacked.
    fn unpacked(&self) -> Result<usize> {
        let mut count = 0;
        for snapshot in fs::read_dir(self.host.snapshotter_root().join("snapshots"))? {
            let snapshot = snapshot?.path();
            let is_layer = !snapshot.join("work").exists();
            count += usize::from(is_layer && !snapshot.join("blob.json").exists());
        }
        Ok(count)
    }
}

/// Removing the last image takes its files along.
pub(super) fn wait_until_cache_is_empty(host: &Host) -> Result<()> {
    let files = host.snapshotter_root().join("cache/files");
    wait_for("the cache is empty", Duration::from_mins(1), || {
        let dirs = fs::read_dir(&files).into_iter().flatten().flatten();
        dirs.map(|dir| fs::read_dir(dir.path()).map_or(0, Iterator::count))
            .sum::<usize>()
            == 0
    })
}

fn base(root: &Path, name: &str) -> Result<()> {
    for dir in [
        "bin", "dev", "etc", "proc", "run", "sys", "tmp", "opt", "opt/gone",
    ] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("/bin/busybox")?;
    for applet in [
        "sh",
        "cat",
        "ls",
        "sleep",
        "sha256sum",
        "stat",
        "find",
        "sort",
    ] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("etc/name"), name)?;
    fs::write(root.join("etc/hidden"), "below")?;
    fs::write(root.join("opt/gone/file"), "below")?;
    fs::write(root.join("opt/empty"), "")?;
    fs::write(root.join("opt/set-id"), "runs as another")?;
    fs::set_permissions(root.join("opt/set-id"), fs::Permissions::from_mode(0o4755))?;
    fs::hard_link(root.join("etc/name"), root.join("opt/linked"))?;
    Ok(symlink("../etc/name", root.join("opt/link"))?)
}

fn top(root: &Path, name: &str) -> Result<()> {
    fs::create_dir_all(root.join("etc"))?;
    fs::create_dir_all(root.join("opt/gone"))?;
    fs::write(root.join("etc/.wh.hidden"), "")?;
    fs::write(root.join("opt/gone/.wh..wh..opq"), "")?;
    fs::write(root.join("opt/gone/new"), "above")?;
    // Half of it compresses, half of it does not, and it is another one for every image.
    let mut random = fastrand::Rng::with_seed(name.len() as u64);
    let bytes = (0..LARGE).map(|at| if at % 2 == 0 { b'x' } else { random.u8(..) });
    Ok(fs::write(
        root.join("opt/large"),
        bytes.collect::<Vec<u8>>(),
    )?)
}

/// Some of a container's root.
pub(super) const SEEN: &str = "cat /etc/name; sha256sum /opt/large";

/// Everything in a container's root that came from the image.
pub(super) const LOOK: &str = "cat /etc/name /opt/link /opt/linked /opt/gone/new; ls /etc /opt /opt/gone; \
    stat -c '%a %s %n' /tmp /opt/set-id /opt/empty; sha256sum /opt/large /bin/busybox";

pub(super) fn expected(layers: &[PathBuf], name: &str) -> Result<String> {
    let sum = |path: PathBuf, shown: &str| -> Result<String> {
        let digest = Digest::of(&fs::read(path)?);
        Ok(format!("{}  {shown}\n", digest.to_hex()))
    };
    Ok(format!(
        "{name}{name}{name}above/etc:\nname\n\n/opt:\nempty\ngone\nlarge\nlink\nlinked\nset-id\n\n\
         /opt/gone:\nnew\n1777 4096 /tmp\n4755 15 /opt/set-id\n644 0 /opt/empty\n{}{}",
        sum(layers[1].join("opt/large"), "/opt/large")?,
        sum(layers[0].join("bin/busybox"), "/bin/busybox")?
    ))
}

#[test]
fn a_container_runs_from_every_format_and_again_without_a_network() -> Result<()> {
    let _turn = alone();
    let Some(mut scene) = Scene::start()? else {
        return Ok(());
    };
    for packing in Packing::ALL {
        let image = scene.push(packing)?;
        let unpacked = scene.unpacked()?;
        let ctr = &scene.host.ctr;
        ctr.rpull(&image).with_context(|| format!("{packing:?}"))?;
        ensure!(scene.unpacked()? == unpacked, "{packing:?} was unpacked");
        let before = scene.proxy.bytes();
        ctr.start("box", &image, "")?;
        if matches!(packing, Packing::Estargz | Packing::ZstdChunked) {
            let fetched = scene.proxy.bytes() - before;
            ensure!(
                fetched < LARGE as u64,
                "{packing:?}: {fetched} bytes before the first output"
            );
        }
        let wanted = expected(&scene.layers, packing.name())?;
        let seen = ctr.exec("box", LOOK)?;
        ensure!(seen == wanted, "{packing:?}: {seen}\nand not\n{wanted}");
        ctr.exec(
            "box",
            "echo more >> /opt/large && cat /etc/name > /opt/gone/written",
        )?;
        // What is here needs nobody.
        scene.proxy.set(Fault::Refuse);
        ctr.end("box")?;
        scene.host.restart_snapshotter()?;
        let ctr = &scene.host.ctr;
        ctr.start("again", &image, "")?;
        let seen = ctr.exec("again", LOOK)?;
        ensure!(
            seen == wanted,
            "{packing:?}, again: {seen}\nand not\n{wanted}"
        );
        ctr.end("again")?;
        scene.proxy.set(Fault::None);
    }
    scene.host.stop()
}

#[test]
fn what_a_container_has_opened_is_fetched_first_at_the_next_pull() -> Result<()> {
    let _turn = alone();
    let Some(mut scene) = Scene::start()? else {
        return Ok(());
    };
    for packing in [Packing::Estargz, Packing::ZstdChunked] {
        let image = scene.push(packing)?;
        scene.host.ctr.rpull(&image)?;
        scene.host.ctr.start("box", &image, "")?;
        let first = scene.host.ctr.exec("box", SEEN)?;
        scene.host.ctr.end("box")?;
        // It ends in order, so that it need not be waited for the end of the recording.
        scene.host.restart_snapshotter()?;
        scene.host.ctr.remove_image(&image)?;
        wait_until_cache_is_empty(&scene.host)?;
        // On this host nothing is left of the image but its profile.
        scene.host.ctr.rpull(&image)?;
        scene.wait_until_prefetched(&scene.host)?;
        scene.proxy.set(Fault::Refuse);
        scene.host.ctr.start("again", &image, "")?;
        let again = scene.host.ctr.exec("again", SEEN)?;
        ensure!(again == first, "{packing:?}: {again}");
        let unseen = scene.host.ctr.exec("again", "cat /opt/gone/new");
        ensure!(
            unseen.is_err(),
            "{packing:?}: nobody has asked for this file"
        );
        scene.proxy.set(Fault::None);
        scene.host.ctr.end("again")?;
        scene.host.ctr.remove_image(&image)?;
    }
    scene.host.stop()
}

#[test]
fn every_fault_before_during_and_after_start_is_right_data_or_an_error() -> Result<()> {
    let _turn = alone();
    // Nothing is fetched but what somebody waits for.
    let Some(scene) = Scene::start_configured("profiles = \"off\"\n")? else {
        return Ok(());
    };
    for packing in Packing::ALL {
        let image = scene.push(packing)?;
        let wanted = expected(&scene.layers, packing.name())?;
        for fault in Fault::ALL {
            let suffered = suffer(&scene, &image, packing, fault, &wanted);
            suffered.with_context(|| format!("{packing:?}, {fault:?}; {}", scene.log()))?;
        }
    }
    scene.host.stop()
}

/// What a container sees when something happens to answers about its layers.
fn suffer(scene: &Scene, image: &str, packing: Packing, fault: Fault, wanted: &str) -> Result<()> {
    let (ctr, proxy) = (&scene.host.ctr, &scene.proxy);
    // Before: what can be had by waiting is waited for, and all else is unpacked.
    proxy.set_times(fault, 1);
    ctr.rpull(image)?;
    proxy.set(Fault::None);
    ctr.start("box", image, "")?;
    // Its shell is here from now on: one that can't be loaded is killed, and tells nothing.
    ctr.exec("box", "exit 0")?;
    // While it lasts.
    proxy.set(fault);
    let since = Instant::now();
    let seen = ctr.exec("box", LOOK);
    let limit = Duration::from_secs(4 * PATIENCE + 10);
    ensure!(since.elapsed() < limit, "it took {:?}", since.elapsed());
    match &seen {
        Ok(seen) => ensure!(seen == wanted, "while it lasted: {seen}"),
        Err(error) => {
            let error = format!("{error:#}").to_lowercase();
            ensure!(
                error.contains("input/output error") || error.contains("i/o error"),
                "{error}"
            );
        }
    }
    // What is fetched file by file can't be here.
    let is_remote = matches!(packing, Packing::Estargz | Packing::ZstdChunked);
    if is_remote && scene.unpacked()? == 0 {
        ensure!(seen.is_err(), "nobody missed anything");
    }
    // After it.
    proxy.set(Fault::None);
    let seen = ctr.exec("box", LOOK).context("after it")?;
    ensure!(seen == wanted, "after it: {seen}");
    // And once all is here, it is nobody's business.
    proxy.set(fault);
    let seen = ctr.exec("box", LOOK).context("when all was here")?;
    ensure!(seen == wanted, "when all was here: {seen}");
    proxy.set(Fault::None);
    ctr.end("box")?;
    ctr.remove_image(image)?;
    wait_until_cache_is_empty(&scene.host)
}
