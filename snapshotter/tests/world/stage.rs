//! What the tests stand on: a daemon on a disk of its own, an image, containers.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context as _, Result, ensure};
use lamina_proto::tonic::{Code, Status};
use lamina_snapshotter::upper_mode::UpperMode;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::disk::{Disk, Faults, FileSystem, MountsBelow, Sparse};
use super::harness::{Api, Daemon};

/// A close is answered before the file system hears of it; it hears of it within this.
pub(crate) const CLOSE_LIMIT: Duration = Duration::from_mins(1);

/// A daemon whose root is a disk. Dropping it kills the daemon, and then pulls out the disk.
pub(crate) struct Stage {
    pub(crate) daemon: Daemon,
    _mounts: MountsBelow,
    disk: Disk,
    pub(crate) kind: FileSystem,
    dir: PathBuf,
}

impl Stage {
    /// A new disk. What is no part of it lies in `dir`.
    pub(crate) fn new(kind: FileSystem, dir: &Path) -> Result<Stage> {
        Stage::on(kind.make(dir)?, kind, dir)
    }

    /// The same with a disk that was used before.
    fn on(disk: Sparse, kind: FileSystem, dir: &Path) -> Result<Stage> {
        // The whole disk is the root.
        let root = dir.join("lamina");
        let disk = Disk::mount(disk, kind, dir, &root)?;
        let mounts = MountsBelow(root);
        let daemon = Daemon::start(dir, UpperMode::Union, "")?;
        Ok(Stage {
            daemon,
            _mounts: mounts,
            disk,
            kind,
            dir: dir.to_owned(),
        })
    }

    /// Ends everything, as a machine that is switched off, and begins anew on what the disk holds.
    pub(crate) fn again(self) -> Result<Stage> {
        let (kind, dir) = (self.kind, self.dir.clone());
        let clock = self.disk.clock().clone();
        drop(self);
        Stage::on(clock.disk(), kind, &dir)
    }

    pub(crate) fn api(&self) -> Result<Api> {
        Api::connect(&self.daemon.socket(), "lamina", &[])
    }

    pub(crate) fn fail(&self, faults: Faults) {
        self.disk.fail(faults);
    }

    pub(crate) fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.daemon.log())?)
    }

    /// Ends the daemon in order, and asks `lamina check` for damage.
    pub(crate) fn stop_and_check(&mut self) -> Result<()> {
        self.daemon.stop()?;
        self.daemon.check()
    }
}

/// A committed layer with these files.
pub(crate) fn image(
    api: &mut Api,
    name: &str,
    parent: &str,
    files: &[(&str, &[u8])],
) -> Result<()> {
    let key = format!("extract-1 {name}");
    api.prepare(&key, parent)?;
    let mounts = api.mounts(&key)?;
    // Above others the kernel's overlayfs is to be mounted; new files lie in its upper as they are.
    let options = mounts[0].options.iter();
    let mut uppers = options.filter_map(|option| option.strip_prefix("upperdir="));
    let top = uppers.next().unwrap_or(&mounts[0].source);
    for (path, bytes) in files {
        let path = Path::new(top).join(path);
        fs::create_dir_all(path.parent().context("a file has a directory")?)?;
        fs::write(path, bytes)?;
    }
    api.commit(name, &key)?;
    Ok(())
}

/// The same with files that hold their own names.
pub(crate) fn image_of_names(api: &mut Api, name: &str, names: &[String]) -> Result<()> {
    let files = names.iter();
    let files: Vec<(&str, &[u8])> = files.map(|name| (name.as_str(), name.as_bytes())).collect();
    image(api, name, "", &files)
}

/// The root of the container `box` on an image of the files `file` and `other`; it has written `kept`.
pub(crate) fn box_with_two_files(api: &mut Api) -> Result<PathBuf> {
    let files: [(&str, &[u8]); 2] = [("file", b"of the image"), ("other", b"the other")];
    image(api, "image", "", &files)?;
    let root = container(api, "box", "image")?;
    fs::write(root.join("kept"), "kept")?;
    Ok(root)
}

/// A container, as the directory that is its root.
pub(crate) fn container(api: &mut Api, key: &str, parent: &str) -> Result<PathBuf> {
    api.prepare(key, parent)?;
    root_of(api, key)
}

/// The root of a container that is there.
pub(crate) fn root_of(api: &mut Api, key: &str) -> Result<PathBuf> {
    Ok(api.mounts(key)?[0].source.clone().into())
}

/// A container's root, mounted where containerd mounts it. Unmounted when it is dropped.
pub(crate) struct Bound(PathBuf);

impl Bound {
    pub(crate) fn new(root: &Path, at: PathBuf) -> Result<Bound> {
        fs::create_dir_all(&at)?;
        mount_bind(root, &at)?;
        Ok(Bound(at))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Fails unless a verb was refused with this code, in these words among others.
pub(crate) fn refused<T>(answer: Result<T, Status>, code: Code, words: &[&str]) -> Result<()> {
    let Err(status) = answer else {
        anyhow::bail!("it was done, and not refused with {code:?}");
    };
    ensure!(status.code() == code, "not {code:?}: {status}");
    for word in words {
        ensure!(status.message().contains(word), "not {word:?}: {status}");
    }
    Ok(())
}

/// Fails unless a system call failed with this error.
pub(crate) fn fails<T>(answer: io::Result<T>, errno: Errno) -> Result<()> {
    let error = answer.err().context("it was done")?;
    let found = Errno::from_io_error(&error);
    ensure!(found == Some(errno), "{error}, and not {errno}");
    Ok(())
}
