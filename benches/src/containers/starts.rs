//! Unpack an image, and start a container of it.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::stage::{IMAGE, Stage};
use super::{ContainerWork, Snapshotter};
use crate::ground::Layers;
use crate::image::contents;
use crate::stats::Unit;
use crate::works::{Target, walk};

/// What the container prints.
const OUTPUT: &str = "first output";

/// Says who holds the upper, by way of containerd.
const UPPER: &str = "containerd.io/snapshot/lamina/upper";

/// The works of this module.
pub(super) fn works() -> Vec<ContainerWork> {
    vec![
        ContainerWork {
            name: "unpack",
            title: "unpack and commit of 2 layers by containerd",
            unit: Unit::Seconds,
            target: Target::Overlayfs(1.1),
            rounds: usize::MAX,
            run: unpack,
        },
        ContainerWork {
            name: "container",
            title: "container start to first output (ctr run)",
            unit: Unit::Seconds,
            target: Target::Overlayfs(1.05),
            rounds: usize::MAX,
            run: start,
        },
    ]
}

/// From an empty snapshotter to the unpacked image. Who will hold the uppers plays no part.
fn unpack(stage: &mut Stage, snapshotter: &Snapshotter) -> Result<Option<f64>> {
    if snapshotter.kernel_upper {
        return Ok(None);
    }
    stage.forget(snapshotter)?;
    rustix::fs::sync();
    let begun = Instant::now();
    stage.unpack(snapshotter, &stage.bare)?;
    let took = begun.elapsed();
    // Mounting it would unpack what is missing.
    let unpacked = stage.ctr.snapshots(&snapshotter.name)?;
    ensure!(
        unpacked.contains(&stage.bare.chain),
        "it was not unpacked: {unpacked:?}"
    );
    let view = stage.path("view");
    fs::create_dir_all(&view)?;
    let image = format!("{IMAGE}:bare");
    let with = ["--snapshotter", &snapshotter.name];
    let mut mount = stage.ctr.command(&["images", "mount"]);
    crate::process::output(mount.args(with).arg(&image).arg(&view))?;
    let right = verify(stage, &view);
    let mut unmount = stage.ctr.command(&["images", "unmount", "--rm"]);
    crate::process::output(unmount.args(with).arg(&view))?;
    right?;
    Ok(Some(took.as_secs_f64()))
}

/// All names and attributes, and the bytes of every hundredth file.
fn verify(stage: &Stage, view: &Path) -> Result<()> {
    let image = stage.ground.image(Layers::Userland(2));
    let (found, wanted) = (walk::find(view)?, walk::everything(image));
    ensure!(
        found == wanted,
        "wrong image: {found:?}, but it has to be {wanted:?}"
    );
    for (node, size, seed) in image.files().step_by(100) {
        let bytes = fs::read(view.join(&node.path))?;
        let right = bytes == contents::whole(seed, size);
        ensure!(right, "{} has other bytes", node.path.display());
    }
    Ok(())
}

/// From the start of `ctr run` to the first byte that the container prints.
fn start(stage: &mut Stage, snapshotter: &Snapshotter) -> Result<Option<f64>> {
    stage.unpack(snapshotter, &stage.run)?;
    stage.ctr.collect()?;
    rustix::fs::sync();
    let id = stage.container();
    let mut command = stage.ctr.command(&["run", "--rm", "--snapshotter"]);
    command.arg(&snapshotter.name);
    if snapshotter.program.is_some() {
        command.arg("--snapshotter-label");
        command.arg(format!("{UPPER}={}", snapshotter.upper()));
    }
    command.args([&format!("{IMAGE}:run"), &id, "/bin/echo", OUTPUT]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let begun = Instant::now();
    let mut run = command.spawn().context("cannot run ctr")?;
    let mut text = vec![0];
    let mut pipe = run.stdout.take().context("no pipe")?;
    let first = pipe.read(&mut text)?;
    let took = begun.elapsed();
    text.truncate(first);
    pipe.read_to_end(&mut text)?;
    let ended = run.wait_with_output()?;
    let (said, error) = (
        String::from_utf8_lossy(&text),
        String::from_utf8_lossy(&ended.stderr),
    );
    ensure!(
        ended.status.success() && said.trim_end() == OUTPUT,
        "the container ended with {} and {said:?}: {error}",
        ended.status
    );
    Ok(Some(took.as_secs_f64()))
}
