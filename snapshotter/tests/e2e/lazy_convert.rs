//! Images converted by `lamina image convert`: what a container sees of them, lazily and unpacked by others.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::alone;
use super::harness::Packing;
use super::lazy::{LARGE, LOOK, Scene, expected};

#[test]
fn a_converted_image_is_read_lazily_and_unpacked_by_others() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let source = scene.push(Packing::Gzip)?;
    let wanted = expected(&scene.layers, Packing::Gzip.name())?;
    let (registry, _) = source.split_once('/').context("no registry")?;
    let lamina = scene.host.lamina.as_ref().context("no daemon")?;
    let others = scene.host.ctr.with_snapshotter("overlayfs");
    for format in ["estargz", "zstd-chunked"] {
        let image = format!("{registry}/converted:{format}");
        let said = lamina.command(
            &["image"],
            &["convert", &source, &image, "--format", format],
        )?;
        ensure!(said.contains(" is now "), "{said}");

        let ctr = &scene.host.ctr;
        let before = scene.proxy.bytes();
        ctr.rpull(&image).context(format)?;
        ctr.start("box", &image, "")?;
        let fetched = scene.proxy.bytes() - before;
        ensure!(
            fetched < LARGE as u64 / 2,
            "{format}: {fetched} bytes before the first output"
        );
        let seen = ctr.exec("box", LOOK)?;
        ensure!(seen == wanted, "{format}: {seen}\nand not\n{wanted}");
        ctr.end("box")?;
        ctr.remove_image(&image)?;

        // containerd's own unpacking, to which a directory's size is the host's.
        let look = LOOK.replace("/tmp ", "");
        let unpacked = wanted.replace("1777 4096 /tmp\n", "");
        others.pull(&image).context(format)?;
        others.start("other", &image, "")?;
        let seen = others.exec("other", &look)?;
        ensure!(seen == unpacked, "{format}: {seen}\nand not\n{unpacked}");
        others.end("other")?;
        others.remove_image(&image)?;
    }
    check_with_umoci(&scene, &format!("{registry}/converted:estargz"))?;
    scene.host.stop()
}

/// skopeo copies it, and umoci unpacks it, to what the source's layers have.
fn check_with_umoci(scene: &Scene, image: &str) -> Result<()> {
    let dir = scene.host.scratch().join("converted");
    let (layout, bundle) = (dir.join("layout"), dir.join("bundle"));
    fs::create_dir_all(&dir)?;
    let from = format!("docker://{image}");
    let to = format!("{}:t", layout.display());
    let copied = format!("oci:{to}");
    let skopeo = ["skopeo", "copy", "--quiet", "--src-tls-verify=false"];
    within_a_minute(&[&skopeo[..], &[&from, &copied]].concat())?;
    let unpack = ["umoci", "unpack", "--image", &to];
    within_a_minute(&[&unpack[..], &[&bundle.display().to_string()]].concat())?;
    let root = bundle.join("rootfs");
    let same = |path: &str, layer: usize| -> Result<()> {
        let wanted = fs::read(scene.layers[layer].join(path))?;
        let found = fs::read(root.join(path)).context(path.to_owned())?;
        ensure!(found == wanted, "{path} is another");
        Ok(())
    };
    same("opt/large", 1)?;
    same("opt/gone/new", 1)?;
    for path in ["bin/busybox", "etc/name", "opt/empty", "opt/set-id"] {
        same(path, 0)?;
    }
    let inode = |path: &str| fs::metadata(root.join(path)).map(|meta| meta.ino());
    ensure!(inode("etc/name")? == inode("opt/linked")?);
    ensure!(fs::metadata(root.join("opt/set-id"))?.mode() & 0o7777 == 0o4755);
    ensure!(fs::read_link(root.join("opt/link"))? == Path::new("../etc/name"));
    for gone in ["etc/hidden", "opt/gone/file"] {
        ensure!(!root.join(gone).exists(), "{gone} is there");
    }
    Ok(())
}

fn within_a_minute(command: &[&str]) -> Result<()> {
    let done = Command::new("timeout").arg("60").args(command).output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?}: {said}");
    Ok(())
}
