//! A real image of several layers, made offline from the host's own static busybox.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::process::{output, run};

/// Under which name containerd knows the images; the tag says which one.
pub const IMAGE: &str = "docker.io/lamina/demo";
/// Enough that copying it up is more than one block, and little enough to be quick.
const DATA_BYTES: usize = 1 << 20;

/// An OCI layout with three images, each built on the one before: `base` is busybox, `app` adds
/// files, `site` changes one of them and deletes another.
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Builds the layout below `dir`.
    pub fn build(dir: &Path) -> Result<Self> {
        let layout = Self {
            dir: dir.join("layout"),
        };
        let root = dir.join("busybox");
        busybox_root(&root)?;
        run("umoci", &["init", "--layout", &layout.path()])?;
        run("umoci", &["new", "--image", &layout.tag("base")])?;
        run(
            "umoci",
            &["insert", "--image", &layout.tag("base"), &text(&root), "/"],
        )?;
        layout.on_top("base", "app", dir, |root| {
            fs::create_dir_all(root.join("opt/app"))?;
            fs::write(root.join("opt/app/data"), vec![b'd'; DATA_BYTES])?;
            fs::write(root.join("opt/app/old"), "only in the middle layer\n")?;
            fs::write(root.join("etc/motd"), "app\n")?;
            fs::hard_link(root.join("opt/app/old"), root.join("opt/app/old-link"))
        })?;
        layout.on_top("app", "site", dir, |root| {
            fs::write(root.join("etc/motd"), "site\n")?;
            fs::create_dir_all(root.join("srv"))?;
            fs::remove_file(root.join("opt/app/old"))
        })?;
        Ok(layout)
    }

    /// Makes the image `tag` of `below` and an uncompressed tar of what changed.
    pub fn add_layer(&self, below: &str, tag: &str, tar: &Path) -> Result<()> {
        let image = self.tag(below);
        run(
            "umoci",
            &[
                "raw",
                "add-layer",
                "--image",
                &image,
                "--tag",
                tag,
                &text(tar),
            ],
        )
        .map(drop)
    }

    /// Makes the image `tag` of `below` and a directory as its further layer.
    pub fn add_dir(&self, below: &str, tag: &str, dir: &Path) -> Result<()> {
        let tar = dir.with_extension("tar");
        run("tar", &["-C", &text(dir), "-cf", &text(&tar), "."])?;
        self.add_layer(below, tag, &tar)?;
        Ok(fs::remove_file(tar)?)
    }

    /// Makes the image `tag` of the archive of a root.
    pub fn add_root(&self, tag: &str, tar: &Path) -> Result<()> {
        run("umoci", &["new", "--image", &self.tag(tag)])?;
        self.add_layer(tag, tag, tar)
    }

    /// Writes the whole layout as one archive that `ctr images import` takes.
    pub fn archive(&self, to: &Path) -> Result<()> {
        run("tar", &["-C", &self.path(), "-cf", &text(to), "."]).map(drop)
    }

    /// Makes the image `tag` of `below` and what `change` does to its unpacked tree.
    fn on_top(
        &self,
        below: &str,
        tag: &str,
        dir: &Path,
        change: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> Result<()> {
        let bundle = dir.join(format!("bundle-{tag}"));
        run(
            "umoci",
            &["unpack", "--image", &self.tag(below), &text(&bundle)],
        )?;
        change(&bundle.join("rootfs")).with_context(|| format!("cannot make layer {tag}"))?;
        run(
            "umoci",
            &["repack", "--image", &self.tag(tag), &text(&bundle)],
        )?;
        Ok(fs::remove_dir_all(&bundle)?)
    }

    fn path(&self) -> String {
        text(&self.dir)
    }

    fn tag(&self, tag: &str) -> String {
        format!("{}:{tag}", self.dir.display())
    }
}

/// A root with busybox, a link for each of its commands, and the folders that a container wants.
pub fn busybox_root(root: &Path) -> Result<()> {
    for name in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "root"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/motd"), "base\n")?;
    let busybox = root.join("bin/busybox");
    fs::copy("/bin/busybox", &busybox).context("cannot copy the host's /bin/busybox")?;
    for name in output(Command::new(&busybox).arg("--list"))?.lines() {
        if name != "busybox" {
            symlink("busybox", root.join("bin").join(name))?;
        }
    }
    Ok(())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
