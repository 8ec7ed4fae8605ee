//! Unions that a process serves: fuse-overlayfs, old and new, and Lamina. All three have the same
//! command line.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Mounted, System};
use crate::containers::Snapshotter;
use crate::ground::{Round, device};
use crate::process::server;

/// How long a server may take until its mount answers.
const PATIENCE: Duration = Duration::from_mins(1);

/// fuse-overlayfs, in one of its two implementations.
#[derive(Debug)]
pub struct FuseOverlayfs {
    name: String,
    program: PathBuf,
}

impl FuseOverlayfs {
    /// By the program at `program`, under the name `name`.
    pub fn new(name: &str, program: &Path) -> FuseOverlayfs {
        FuseOverlayfs {
            name: name.to_owned(),
            program: program.to_owned(),
        }
    }
}

impl System for FuseOverlayfs {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> Result<String> {
        version(&self.program, &["--version"])
    }

    fn mount(&self, layers: &[PathBuf], round: &Round) -> Result<Mounted> {
        let mut command = server(&self.program);
        command
            .arg("-f")
            .arg("-o")
            .arg(options(layers, Some(round)));
        serve(command, &round.mount())
    }
}

/// Lamina, by `lamina mount`.
#[derive(Clone, Debug)]
pub struct Lamina {
    name: String,
    program: PathBuf,
    extra: String,
}

impl Lamina {
    /// By the program at `program`, under the name `name`, with `extra` mount options.
    pub fn new(name: &str, program: &Path, extra: &str) -> Lamina {
        Lamina {
            name: name.to_owned(),
            program: program.to_owned(),
            extra: extra.to_owned(),
        }
    }

    /// Mounts the image alone, read-only, below the round's mount point, as the snapshotter does.
    pub(super) fn mount_image(&self, layers: &[PathBuf], round: &Round) -> Result<Mounted> {
        let mut options = options(layers, None);
        options.push(",no_open");
        self.serve(options, round, &round.below())
    }

    fn serve(&self, mut options: OsString, round: &Round, at: &Path) -> Result<Mounted> {
        options.push(",indexdir=");
        options.push(round.index(&self.name));
        // As below the daemon, which the next one may have to take over from.
        options.push(",record");
        if !self.extra.is_empty() {
            options.push(",");
            options.push(&self.extra);
        }
        let mut command = server(&self.program);
        command.args(["mount", "-f", "-o"]).arg(options);
        serve(command, at)
    }
}

impl System for Lamina {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> Result<String> {
        let version = version(&self.program, &["--version"])?;
        Ok(match self.extra.as_str() {
            "" => version,
            extra => format!("{version} with -o {extra}"),
        })
    }

    fn snapshotter(&self) -> Option<Snapshotter> {
        Some(Snapshotter {
            name: self.name.clone(),
            program: Some(self.program.clone()),
            kernel_upper: false,
        })
    }

    /// The index of the image, which the snapshotter makes when a layer is committed.
    fn prepare(&self, layers: &[PathBuf], round: &Round) -> Result<()> {
        fs::create_dir_all(round.index(&self.name))?;
        self.mount_image(layers, round)?.unmount()
    }

    fn mount(&self, layers: &[PathBuf], round: &Round) -> Result<Mounted> {
        self.serve(options(layers, Some(round)), round, &round.mount())
    }
}

/// The value of `-o`; without a round there is no upper.
fn options(layers: &[PathBuf], round: Option<&Round>) -> OsString {
    let mut options = OsString::from("lowerdir=");
    for (number, layer) in layers.iter().enumerate() {
        if number > 0 {
            options.push(":");
        }
        options.push(layer);
    }
    if let Some(round) = round {
        options.push(",upperdir=");
        options.push(round.upper());
        options.push(",workdir=");
        options.push(round.work());
    }
    options
}

/// Starts a server, and waits until its mount answers. It ends when its mount does.
fn serve(mut command: Command, at: &Path) -> Result<Mounted> {
    let before = device(at)?;
    command.arg(at).stdout(Stdio::null());
    command.stderr(log(at)?);
    let server = command
        .spawn()
        .context("cannot run setpriv: install the package util-linux")?;
    wait_for_mount(server, before, at)
}

/// What servers say: a file beside the round's directories, which outlives the round.
fn log(at: &Path) -> Result<File> {
    let dir = at.ancestors().nth(2).unwrap_or(at);
    let mut options = File::options();
    Ok(options
        .create(true)
        .append(true)
        .open(dir.join("servers.log"))?)
}

fn wait_for_mount(mut server: Child, before: u64, at: &Path) -> Result<Mounted> {
    let start = Instant::now();
    while device(at)? == before {
        if let Some(status) = server.try_wait()? {
            bail!("the server ended before it mounted anything: {status}; see servers.log");
        }
        if start.elapsed() > PATIENCE {
            server.kill()?;
            server.wait()?;
            bail!("nothing was mounted within {PATIENCE:?}");
        }
        sleep(Duration::from_micros(100));
    }
    Ok(Mounted::new(at.to_owned(), Some(server)))
}

/// The first line of a program that names a version.
fn version(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} --version: {}",
        program.display(),
        output.status
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let named = |line: &&str| line.contains("lamina") || line.contains("fuse-overlayfs");
    let line = text.lines().find(named).unwrap_or_default();
    Ok(line.trim().to_owned())
}
