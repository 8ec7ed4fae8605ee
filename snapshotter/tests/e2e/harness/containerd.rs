//! A private containerd: its own root, state, socket and configuration, never the host's.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use super::process::{Process, families, signal, wait_for};

/// How long containerd may take until its socket answers.
const START_LIMIT: Duration = Duration::from_mins(1);
/// How long processes may take to end after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Plugins that would look at the host or that no test needs.
const DISABLED: &str = r#"disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]"#;

/// A running containerd. Dropping it kills it, its shims and their containers.
pub struct Containerd {
    process: Option<Process>,
    dir: PathBuf,
}

impl Containerd {
    /// Starts containerd with everything below `dir`; `snippet` is added to its configuration.
    pub fn start(dir: &Path, snippet: &str) -> Result<Self> {
        let mut containerd = Self {
            process: None,
            dir: dir.to_owned(),
        };
        let (root, state) = (dir.join("containerd"), dir.join("state"));
        let snippet = snippet.lines().filter(|line| !line.starts_with("version"));
        let config = format!(
            "version = 2\nroot = '{}'\nstate = '{}'\n{DISABLED}\n[debug]\nlevel = 'warn'\n[grpc]\naddress = '{}'\n{}\n",
            root.display(),
            state.display(),
            containerd.socket().display(),
            snippet.collect::<Vec<_>>().join("\n"),
        );
        fs::write(containerd.config(), config)?;
        containerd.start_again()?;
        Ok(containerd)
    }

    /// Starts it once more on the same root, after [`Self::stop`] or [`Self::kill`].
    pub fn start_again(&mut self) -> Result<()> {
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.config());
        let mut process = Process::spawn(&mut command, &self.dir.join("containerd.log"))?;
        let socket = self.socket();
        process.wait_ready(START_LIMIT, || UnixStream::connect(&socket).is_ok())?;
        self.process = Some(process);
        Ok(())
    }

    /// SIGTERM; containers that run go on running.
    pub fn stop(&mut self) -> Result<()> {
        self.process
            .take()
            .context("containerd does not run")?
            .stop()
            .map(drop)
    }

    /// `kill -9`; containers that run go on running.
    pub fn kill(&mut self) {
        self.process = None;
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("containerd.toml")
    }

    /// Each shim is told our socket's path, by which it is known; the container is its child, and
    /// is waited for by it.
    fn kill_shims(&self) {
        let address = self.socket().to_string_lossy().into_owned();
        for pid in families(&address)
            .into_iter()
            .flat_map(|(_, children)| children)
        {
            signal(pid, Signal::KILL);
        }
        let _ = wait_for("the containers end", KILL_LIMIT, || {
            families(&address)
                .iter()
                .all(|(_, children)| children.is_empty())
        });
        for (shim, _) in families(&address) {
            signal(shim, Signal::KILL);
        }
        let _ = wait_for("the shims end", KILL_LIMIT, || {
            families(&address).is_empty()
        });
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.process = None;
        self.kill_shims();
    }
}
