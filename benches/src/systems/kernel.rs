//! Kernel overlayfs: over the layers, and over a read-only mount of Lamina.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::{Lamina, Mounted, System};
use crate::containers::Snapshotter;
use crate::ground::Round;
use crate::host;

/// The opponent: overlayfs with the options that containerd gives it.
#[derive(Debug)]
pub struct Overlayfs;

impl System for Overlayfs {
    fn name(&self) -> &'static str {
        "overlayfs"
    }

    fn version(&self) -> Result<String> {
        Ok(format!("Linux {}", host::kernel()))
    }

    fn snapshotter(&self) -> Option<Snapshotter> {
        Some(Snapshotter {
            name: "overlayfs".to_owned(),
            program: None,
            kernel_upper: false,
        })
    }

    fn mount(&self, layers: &[PathBuf], round: &Round) -> Result<Mounted> {
        mount(layers, round)
    }
}

/// Lamina's read-only mount of the image as the one lower of overlayfs.
#[derive(Debug)]
pub struct LaminaWithKernelUpper {
    name: String,
    image: Lamina,
}

impl LaminaWithKernelUpper {
    /// The image is mounted by `image`.
    pub fn new(image: Lamina) -> LaminaWithKernelUpper {
        LaminaWithKernelUpper {
            name: format!("{}+kernel", image.name()),
            image,
        }
    }
}

impl System for LaminaWithKernelUpper {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> Result<String> {
        let image = self.image.version()?;
        Ok(format!(
            "{image} below overlayfs of Linux {}",
            host::kernel()
        ))
    }

    fn snapshotter(&self) -> Option<Snapshotter> {
        Some(Snapshotter {
            kernel_upper: true,
            ..self.image.snapshotter()?
        })
    }

    fn prepare(&self, layers: &[PathBuf], round: &Round) -> Result<()> {
        self.image.prepare(layers, round)
    }

    fn mount(&self, layers: &[PathBuf], round: &Round) -> Result<Mounted> {
        let image = self.image.mount_image(layers, round)?;
        let mut mounted = mount(&[image.path().to_owned()], round)?;
        mounted.below = Some(Box::new(image));
        Ok(mounted)
    }
}

/// By the mount API that takes one layer at a time: mount(2) takes one page of options, which 128
/// layers exceed.
fn mount(layers: &[PathBuf], round: &Round) -> Result<Mounted> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context("no overlayfs")?;
    let set = |key: &str, path: &Path| {
        fsconfig_set_string(&context, key, path)
            .with_context(|| format!("overlayfs refuses {key}={}", path.display()))
    };
    for layer in layers {
        set("lowerdir+", layer)?;
    }
    set("upperdir", &round.upper())?;
    set("workdir", &round.work())?;
    set("index", Path::new("off"))?;
    fsconfig_create(&context).context("overlayfs refuses the layers")?;
    let mount = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let at = round.mount();
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mount, "", rustix::fs::CWD, &at, flags)?;
    Ok(Mounted::new(at, None))
}
