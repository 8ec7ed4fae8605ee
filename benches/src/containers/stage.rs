//! A containerd of our own, with the snapshotters that race, and the race's image in two forms:
//! `bare` is the userland in two layers, and `run` has a layer with a program above it.
//!
//! All of it lies in one directory, and is gone when the stage is dropped.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::archive::{self, PackedImage};
use super::ctr::Ctr;
use super::{Snapshotter, missing};
use crate::ground::{Ground, Layers};
use crate::interrupt::Interrupt;
use crate::process::{Server, server, wait_for};

/// The program of the image: it needs no library.
pub(super) const BUSYBOX: &str = "/bin/busybox";

/// What begins the names of our images.
pub(super) const IMAGE: &str = "docker.io/lamina/bench";

/// Of which layers the images are.
const LAYERS: Layers = Layers::Userland(2);

/// Plugins that would look at the host, or that nobody needs.
const DISABLED: &str = r#"disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]"#;

/// Where works by containerd happen. The fields are dropped in this order.
#[derive(Debug)]
pub struct Stage<'a> {
    /// containerd's command.
    pub ctr: Ctr,
    /// The userland alone.
    pub bare: PackedImage,
    /// The userland and a program.
    pub run: PackedImage,
    /// The race's directory, and what the image has to be.
    pub ground: &'a Ground,
    /// Ctrl-C.
    pub interrupt: &'a Interrupt,
    containerd: Option<Server>,
    daemons: Vec<(Snapshotter, Option<Server>)>,
    dir: PathBuf,
    /// Gives every container another name.
    containers: usize,
}

impl<'a> Stage<'a> {
    /// Starts containerd with these snapshotters, and imports the images.
    pub fn start(
        ground: &'a Ground,
        snapshotters: &[Snapshotter],
        interrupt: &'a Interrupt,
    ) -> Result<Stage<'a>> {
        let missing = missing();
        ensure!(
            missing.is_empty(),
            "works by containerd need these Debian packages: {}; or name other works by --only",
            missing.join(" ")
        );
        let mut layers = ground.layers(LAYERS)?;
        layers.reverse();
        let dir = ground.fresh_stage()?;
        layers.push(program_layer(&dir.join("program"))?);
        let packed = archive::pack(&layers)?;
        let below = packed.len() - 1;
        let mut stage = Stage {
            ctr: Ctr {
                socket: dir.join("c.sock"),
                namespace: format!("lamina-bench-{}", std::process::id()),
            },
            bare: PackedImage::new("bare", &packed[..below])?,
            run: PackedImage::new("run", &packed)?,
            ground,
            interrupt,
            containerd: None,
            daemons: Vec::new(),
            dir,
            containers: 0,
        };
        stage.start_daemons(snapshotters)?;
        stage.containerd = Some(stage.start_containerd()?);
        stage.ctr.import(IMAGE, |pipe| {
            archive::write(&[&stage.bare, &stage.run], &packed, pipe)
        })?;
        Ok(stage)
    }

    /// One daemon for each Lamina, whoever holds its uppers.
    fn start_daemons(&mut self, snapshotters: &[Snapshotter]) -> Result<()> {
        for snapshotter in snapshotters {
            let known = |(other, _): &(Snapshotter, _)| other.name == snapshotter.name;
            if snapshotter.program.is_some() && !self.daemons.iter().any(known) {
                let server = self.start_daemon(snapshotter)?;
                self.daemons.push((snapshotter.clone(), Some(server)));
            }
        }
        Ok(())
    }

    fn start_daemon(&self, snapshotter: &Snapshotter) -> Result<Server> {
        let program = snapshotter.program.as_deref();
        let mut command = server(program.context("it has no daemon")?);
        let socket = self.daemon_socket(&snapshotter.name);
        command.arg("serve").arg("--address").arg(&socket);
        command.arg("--root").arg(self.dir.join(&snapshotter.name));
        command.args(["--log-level", "warn"]);
        command.args(["--upper", snapshotter.upper()]);
        let log = self.ground.dir().join("servers.log");
        Server::start(&mut command, &log, || UnixStream::connect(&socket).is_ok())
    }

    fn daemon_socket(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.sock"))
    }

    fn start_containerd(&self) -> Result<Server> {
        let config = self.dir.join("containerd.toml");
        let mut text = format!(
            "version = 2\nroot = '{0}/root'\nstate = '{0}/state'\n{DISABLED}\n\
             [debug]\nlevel = 'warn'\n[grpc]\naddress = '{1}'\n",
            self.dir.display(),
            self.ctr.socket.display()
        );
        for (Snapshotter { name, .. }, _) in &self.daemons {
            let socket = self.daemon_socket(name);
            let _ = write!(
                text,
                "[proxy_plugins.{name}]\ntype = 'snapshot'\naddress = '{}'\n",
                socket.display()
            );
        }
        fs::write(&config, text)?;
        let mut command = server("containerd".as_ref());
        command.arg("--config").arg(config);
        let log = self.ground.dir().join("servers.log");
        let socket = &self.ctr.socket;
        Server::start(&mut command, &log, || UnixStream::connect(socket).is_ok())
    }

    /// Starts a snapshotter's daemon anew, so that it has nothing left of what was done before, and
    /// gives its process. `None` if containerd itself is the snapshotter.
    pub fn restart(&mut self, snapshotter: &Snapshotter) -> Result<Option<u32>> {
        let is_it = |(other, _): &(Snapshotter, _)| other.name == snapshotter.name;
        let Some(number) = self.daemons.iter().position(is_it) else {
            return Ok(None);
        };
        if let Some(server) = self.daemons[number].1.take() {
            server.stop()?;
        }
        let server = self.start_daemon(snapshotter)?;
        let pid = server.pid();
        self.daemons[number].1 = Some(server);
        wait_for("containerd finds the snapshotter again", || {
            Ok(self.ctr.snapshots(&snapshotter.name).is_ok())
        })?;
        Ok(Some(pid))
    }

    /// Unpacks an image, if it isn't unpacked.
    pub fn unpack(&self, snapshotter: &Snapshotter, image: &PackedImage) -> Result<()> {
        // The same option before `unpack` would be ignored.
        let name = &snapshotter.name;
        let unpack = ["snapshots", "unpack", "--snapshotter", name, &image.digest];
        self.ctr.run(&unpack).map(drop)
    }

    /// Empties a snapshotter. containerd's collector does it, once nothing keeps the images'
    /// snapshots: it knows the order, and doesn't mind that views are collected meanwhile.
    pub fn forget(&self, snapshotter: &Snapshotter) -> Result<()> {
        let nothing = format!("containerd.io/gc.ref.snapshot.{}=", snapshotter.name);
        for image in [&self.bare, &self.run] {
            let label = ["content", "label", &image.config_digest, &nothing];
            self.ctr.run(&label)?;
        }
        self.ctr.collect()?;
        let left = self.ctr.snapshots(&snapshotter.name)?;
        ensure!(left.is_empty(), "snapshots are left: {left:?}");
        Ok(())
    }

    /// A name that no container has had.
    pub fn container(&mut self) -> String {
        self.containers += 1;
        format!("container-{}", self.containers)
    }

    /// A place for something of this stage.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Containers that a failure has left.
    fn end_containers(&self) {
        let tasks = self.ctr.run(&["tasks", "list", "-q"]).unwrap_or_default();
        for id in tasks.lines() {
            // It says how the container ended, not whether it could be ended.
            let _ = self.ctr.run(&["tasks", "delete", "--force", id]);
        }
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        self.end_containers();
        self.containerd = None;
        for (snapshotter, server) in &mut self.daemons {
            if let Some(Err(error)) = server.take().map(Server::stop) {
                eprintln!("{}: {error:#}", snapshotter.name);
            }
        }
        remove_cgroups(&self.ctr.namespace);
        if let Err(error) = self.ground.clear() {
            eprintln!("{error:#}");
        }
    }
}

/// A layer with the program, under the name that the containers call, and with what every image has
/// for runc to mount on.
fn program_layer(dir: &Path) -> Result<PathBuf> {
    for name in ["bin", "dev", "proc", "sys"] {
        fs::create_dir_all(dir.join(name))?;
    }
    fs::copy(BUSYBOX, dir.join("bin/busybox"))?;
    symlink("busybox", dir.join("bin/echo"))?;
    Ok(dir.to_owned())
}

/// The empty control groups that runc leaves.
fn remove_cgroups(namespace: &str) {
    let top = Path::new("/sys/fs/cgroup");
    let controllers = fs::read_dir(top).into_iter().flatten().flatten();
    for dir in controllers
        .map(|entry| entry.path())
        .chain([top.to_owned()])
    {
        // It is not there in most of them.
        let _ = fs::remove_dir(dir.join(namespace));
    }
}
