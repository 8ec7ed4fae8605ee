//! Layers of which a table of contents or an index tells, once all of them was read.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lamina_fusefs::blob::Digest;
use lamina_snapshotter::lazy::published::INDEX_TYPE;
use lamina_snapshotter::registry;
use lamina_snapshotter::upper_mode::UpperMode;

use super::alone;
use super::harness::{Fault, Host, Packing, Proxy, Registry, Snapshotter, wait_for};

/// The longest that a verdict may take.
const LIMIT: Duration = Duration::from_mins(2);
/// Bytes of the large file.
const LARGE: usize = 16 << 20;

/// A host that fetches all, and a registry behind a proxy.
struct Scene {
    host: Host,
    registry: Registry,
    proxy: Proxy,
}

impl Scene {
    /// `None` where the snapshotter is one that unpacks.
    fn start(config: &str) -> Result<Option<Scene>> {
        if Snapshotter::chosen()? != Snapshotter::Lamina {
            return Ok(None);
        }
        let host = Host::start_configured(UpperMode::Union, config)?;
        let registry = Registry::start(host.scratch())?;
        let proxy = Proxy::start(registry.port())?;
        Ok(Some(Scene {
            host,
            registry,
            proxy,
        }))
    }

    /// Pushes an image of these layers as somebody else's tool packs it, and answers its name.
    fn push(&self, layers: &[PathBuf], packing: Packing, repository: &str) -> Result<String> {
        let name = self.registry.push(layers, packing)?;
        if packing != Packing::Estargz {
            return Ok(format!("{}/{name}", self.proxy.address()));
        }
        let plain = format!("{}/plain:t", self.registry.address());
        let made = format!("{}/{repository}:t", self.registry.address());
        self.host.ctr.convert_to_estargz(&plain, &made)?;
        Ok(format!("{}/{repository}:t", self.proxy.address()))
    }

    /// Waits until something is known of every layer of an image, and answers what.
    fn verdicts(&self, image: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        wait_for("verdicts", LIMIT, || {
            let layers = self.host.layers().unwrap_or_default();
            let ours = layers.iter().filter(|layer| layer["reference"] == image);
            found = ours
                .filter_map(|layer| layer["verdict"].as_str().map(str::to_owned))
                .collect();
            !found.is_empty() && !found.iter().any(|verdict| verdict == "unverified")
        })?;
        Ok(found)
    }
}

/// An archive of a root, of the newer format: with fractions of seconds, and extended attributes.
fn pack(root: &Path) -> Result<PathBuf> {
    let tar = root.with_extension("tar");
    let options = [
        "--sort=name",
        "--numeric-owner",
        "--format=pax",
        "--xattrs",
        "--xattrs-include=*",
        "--blocking-factor=1",
        "-cf",
    ];
    let mut command = Command::new("tar");
    command.args(options).arg(&tar).arg("-C").arg(root).arg(".");
    ensure!(command.status()?.success(), "tar fails");
    Ok(tar)
}

/// Layers with a bit of everything that a table of contents has words for.
fn layers(dir: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let (base, top) = (
        dir.join(format!("{name}-base")),
        dir.join(format!("{name}-top")),
    );
    for dir in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "opt/gone"] {
        fs::create_dir_all(base.join(dir))?;
    }
    fs::set_permissions(base.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy("/bin/busybox", base.join("bin/busybox")).context("/bin/busybox")?;
    for applet in ["sh", "cat", "sleep"] {
        symlink("busybox", base.join("bin").join(applet))?;
    }
    fs::write(base.join("etc/name"), name)?;
    fs::write(base.join("etc/hidden"), "below")?;
    fs::hard_link(base.join("etc/name"), base.join("opt/linked"))?;
    fs::write(base.join("opt/set-id"), "runs as another")?;
    fs::set_permissions(base.join("opt/set-id"), fs::Permissions::from_mode(0o6755))?;
    fs::write(base.join("opt/empty"), "")?;
    std::os::unix::fs::chown(base.join("opt/empty"), Some(70_000), Some(3_000_000))?;
    fs::write(base.join("opt/naïve name"), "x")?;
    let long = "long".repeat(40);
    fs::write(
        base.join("opt").join(&long),
        "a name that ustar has no room for",
    )?;
    symlink(format!("../opt/{long}"), base.join("etc/far"))?;
    for (at, kind, device) in [("dev/c", "c", &["5", "6"][..]), ("dev/p", "p", &[])] {
        let made = Command::new("mknod")
            .arg(base.join(at))
            .arg(kind)
            .args(device)
            .status()?;
        ensure!(made.success(), "mknod fails");
    }
    // Several chunks and requests; nothing of it compresses.
    let mut large = vec![0; LARGE];
    fastrand::Rng::with_seed(name.len() as u64).fill(&mut large);
    fs::write(base.join("opt/large"), large)?;
    let capability = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(
        base.join("opt/set-id"),
        "security.capability",
        &capability,
        rustix::fs::XattrFlags::empty(),
    )?;
    fs::create_dir_all(top.join("etc"))?;
    fs::create_dir_all(top.join("opt/gone"))?;
    fs::write(top.join("etc/.wh.hidden"), "")?;
    fs::write(top.join("opt/gone/.wh..wh..opq"), "")?;
    fs::write(top.join("opt/new"), vec![b'x'; 300_000])?;
    Ok(vec![pack(&base)?, pack(&top)?])
}

#[test]
fn what_other_tools_pack_is_verified_and_starts_without_a_network_afterwards() -> Result<()> {
    let _turn = alone();
    let Some(mut scene) = Scene::start("")? else {
        return Ok(());
    };
    for packing in [Packing::Estargz, Packing::ZstdChunked] {
        let layers = layers(scene.host.scratch(), packing.name())?;
        let image = scene.push(&layers, packing, "estargz")?;
        scene.host.ctr.rpull(&image)?;
        let verdicts = scene.verdicts(&image)?;
        let log = || fs::read_to_string(scene.host.scratch().join("lamina.log"));
        ensure!(
            verdicts == ["verified"; 2],
            "{packing:?}: {verdicts:?}\n{}",
            log()?
        );
        for layer in scene.host.layers()? {
            ensure!(layer["cached_bytes"] == layer["file_bytes"], "{layer}");
        }
        scene.proxy.set(Fault::Refuse);
        scene.host.restart_snapshotter()?;
        ensure!(
            scene.verdicts(&image)? == ["verified"; 2],
            "it is forgotten"
        );
        let ctr = &scene.host.ctr;
        ctr.start("box", &image, "")?;
        let seen = ctr.exec("box", "cat /etc/name /opt/linked")?;
        let wanted = format!("{0}{0}", packing.name());
        ensure!(seen == wanted, "{seen:?}");
        ctr.end("box")?;
        ctr.remove_image(&image)?;
        scene.proxy.set(Fault::None);
    }
    scene.host.stop()
}

/// A layer with files below a path at which the layer below has a symlink, and without an entry for it: unpacking
/// goes through the symlink, so it must not be served as it is.
#[test]
fn an_index_that_hides_a_directory_without_an_entry_is_refused() -> Result<()> {
    let _turn = alone();
    let Some(mut scene) = Scene::start("[lazy]\nindexes = [\"*\"]\n")? else {
        return Ok(());
    };
    let (base, top) = (
        scene.host.scratch().join("base"),
        scene.host.scratch().join("top"),
    );
    fs::create_dir_all(base.join("usr/lib"))?;
    symlink("usr/lib", base.join("lib"))?;
    fs::create_dir_all(top.join("lib"))?;
    fs::write(top.join("lib/x"), "behind a symlink")?;
    let tar = top.with_extension("tar");
    let mut command = Command::new("tar");
    command
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(&top)
        .arg("lib/x");
    ensure!(command.status()?.success(), "tar fails");
    let image = scene.push(&[pack(&base)?, tar], Packing::Gzip, "plain")?;
    let lamina = scene.host.lamina.as_ref().context("no daemon")?;
    lamina.command(&["image"], &["index", &image])?;
    // The honest one is not used for the second layer, and neither is the layer itself.
    let ctr = &scene.host.ctr;
    ctr.rpull(&image)?;
    ensure!(scene.verdicts(&image)? == ["verified"]);
    ctr.remove_image(&image)?;

    let registry = registry::Registry::new(&registry::Options::default());
    let known = registry.image(&image)?;
    let subject = Digest::parse(known.manifest.digest().as_ref()).context("no digest")?;
    let parts = registry.pull_artifact(&known.reference, subject, INDEX_TYPE, 1 << 20)?;
    let mut parts = parts.context("no index")?;
    let last = parts.last_mut().context("no part")?;
    let mut inside = zstd::decode_all(&last.bytes[..])?;
    let list = b"lib\0";
    ensure!(inside.ends_with(list), "it names other directories");
    inside.truncate(inside.len() - list.len());
    last.bytes = zstd::encode_all(&inside[..], 3)?;
    registry.push_artifact(&known.reference, &known.manifest, INDEX_TYPE, &parts)?;
    // What lay beside the image is remembered for a minute.
    scene.host.restart_snapshotter()?;
    // containerd takes a moment to notice.
    let ctr = &scene.host.ctr;
    wait_for("a pull", LIMIT, || ctr.rpull(&image).is_ok())?;
    let verdicts = scene.verdicts(&image)?;
    ensure!(verdicts == ["verified", "refused"], "{verdicts:?}");
    let log = fs::read_to_string(scene.host.scratch().join("lamina.log"))?;
    ensure!(
        log.contains("directories without an entry of their own"),
        "{log}"
    );
    scene.host.stop()
}

/// An image whose configuration says of its layers that they are another image's.
#[test]
fn an_image_that_claims_the_layers_of_another_one_is_refused_and_poisons_nobody() -> Result<()> {
    let _turn = alone();
    // So slow that its container runs before it is found out.
    let Some(mut scene) = Scene::start("[lazy]\nfill_mib_per_sec = 1\n")? else {
        return Ok(());
    };
    let dir = scene.host.scratch().to_owned();
    let victim = scene.push(&layers(&dir, "victim")?, Packing::Estargz, "victim")?;
    scene.push(&layers(&dir, "evil")?, Packing::Estargz, "evil")?;
    let config_of = |repository: &str| -> Result<_> {
        let manifest = scene.registry.read(repository, "manifests/t")?;
        let digest = manifest["config"]["digest"].as_str().context("no digest")?;
        let config = scene
            .registry
            .read(repository, &format!("blobs/{digest}"))?;
        Ok((manifest, config))
    };
    let (manifest, mut config) = config_of("evil")?;
    config["rootfs"] = config_of("victim")?.1["rootfs"].clone();
    scene
        .registry
        .forge(("evil", "forged"), manifest, &config)?;
    let forged = format!("{}/evil:forged", scene.proxy.address());

    let ctr = &scene.host.ctr;
    ctr.rpull(&forged)?;
    ctr.start("box", &forged, "")?;
    ctr.exec("box", "exit 0")
        .context("before it is found out")?;
    let verdicts = scene.verdicts(&forged)?;
    ensure!(verdicts == ["refused"; 2], "{verdicts:?}");
    // The shell runs, and whatever it opens is refused.
    let error = ctr.exec("box", "read -r x </opt/set-id");
    let error = format!("{:#}", error.err().context("it opens a file")?).to_lowercase();
    ensure!(
        error.contains("i/o error") || error.contains("input/output"),
        "{error}"
    );
    ctr.end("box")?;
    let log = fs::read_to_string(dir.join("lamina.log"))?;
    ensure!(log.contains("is not what its image says"), "{log}");

    // Under the victim's name it is not served either, before and after a restart.
    let is_refused = |scene: &Scene, id: &str| -> Result<()> {
        let ctr = &scene.host.ctr;
        ctr.rpull(&victim)?;
        let error = ctr.start(id, &victim, "").err().context("it starts")?;
        let error = format!("{error:#}");
        ensure!(
            error.contains("remove the image") && error.contains("evil:forged"),
            "{error}"
        );
        Ok(())
    };
    is_refused(&scene, "one")?;
    scene.host.restart_snapshotter()?;
    is_refused(&scene, "two")?;

    // And when it is gone, the victim is the victim.
    let ctr = &scene.host.ctr;
    for id in ["one", "two"] {
        // What a start that failed leaves.
        let _ = ctr.delete(id);
    }
    ctr.remove_image(&forged)?;
    ctr.remove_image(&victim)?;
    ctr.rpull(&victim)?;
    ctr.start("box", &victim, "")?;
    let seen = ctr.exec("box", "cat /etc/name /opt/linked")?;
    ensure!(seen == "victimvictim", "{seen:?}");
    ensure!(scene.verdicts(&victim)? == ["verified"; 2]);
    ctr.end("box")?;
    scene.host.stop()
}
