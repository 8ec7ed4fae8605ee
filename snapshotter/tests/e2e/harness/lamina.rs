//! The Lamina daemon as a process: start, stop, kill, check.

use std::env;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use lamina_snapshotter::upper_mode::UpperMode;
use rustix::process::Signal;

use super::process::{Process, families, output, peak_kib, signal};

/// How long the daemon may take until its socket answers.
const START_LIMIT: Duration = Duration::from_mins(1);

/// How long a daemon that answers may take to do so.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// How a client of HTTP/2 begins: with a fixed text and an empty frame of settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The `lamina` command: `LAMINA_BIN`, or the one that cargo built beside this test.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("LAMINA_BIN") {
        return Ok(path.into());
    }
    let own = env::current_exe()?;
    let beside = own
        .ancestors()
        .nth(2)
        .context("no target folder")?
        .join("lamina");
    if !beside.is_file() {
        bail!(
            "{} is not there: build lamina first, or set LAMINA_BIN",
            beside.display()
        );
    }
    Ok(beside)
}

/// The process that holds the connections of the daemon at `address`.
pub fn holder_of(address: &Path) -> Option<u32> {
    // The root lies beside the socket, and has its name.
    let held = address.with_extension("").join("hold.sock");
    let named = families(&held.display().to_string());
    named.into_iter().map(|(pid, _)| pid).next()
}

/// How many connections and records of mounts a holder has.
pub fn holdings(holder: u32) -> (usize, usize) {
    let entries = fs::read_dir(format!("/proc/{holder}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let targets: Vec<PathBuf> = entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .collect();
    let count = |begin: &str| {
        let is_one = |target: &&PathBuf| target.to_string_lossy().starts_with(begin);
        targets.iter().filter(is_one).count()
    };
    (count("/dev/fuse"), count("/memfd:"))
}

/// Somebody behind the socket speaks HTTP/2. That a connection is possible says nothing: the socket
/// listens also while there is no daemon.
fn answers(socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(PREFACE)?;
    stream.read_exact(&mut [0])
}

/// A daemon with a root and a socket below one folder. Dropping it kills it.
pub struct Daemon {
    process: Option<Process>,
    dir: PathBuf,
    upper: UpperMode,
}

impl Daemon {
    /// Starts `lamina serve` with everything below `dir` and waits until its socket answers.
    /// `config` is its configuration file, but for what the command line says.
    pub fn start(dir: &Path, upper: UpperMode, config: &str) -> Result<Self> {
        Self::start_with(&binary()?, dir, upper, config)
    }

    /// The same with this program.
    pub fn start_with(program: &Path, dir: &Path, upper: UpperMode, config: &str) -> Result<Self> {
        let mut daemon = Self {
            process: None,
            dir: dir.to_owned(),
            upper,
        };
        fs::write(daemon.config(), config)?;
        daemon.begin(program)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts it once more on the same root, after [`Self::stop`] or [`Self::kill`].
    pub fn start_again(&mut self) -> Result<()> {
        self.begin(&binary()?)?;
        self.wait_ready()
    }

    /// The same with this program, and without waiting until it answers.
    pub fn begin(&mut self, binary: &Path) -> Result<()> {
        let mut command = Command::new(binary);
        command.arg("serve").arg("--config").arg(self.config());
        command.arg("--root").arg(self.root());
        command.arg("--address").arg(self.socket());
        command.arg("--upper").arg(self.upper.as_str());
        self.process = Some(Process::spawn(&mut command, &self.log())?);
        Ok(())
    }

    /// Waits until its socket answers.
    pub fn wait_ready(&mut self) -> Result<()> {
        let socket = self.socket();
        let process = self.process.as_mut().context("the daemon does not run")?;
        process.wait_ready(START_LIMIT, || answers(&socket).is_ok())
    }

    /// SIGTERM; a daemon that does not end with success is an error.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the daemon does not run")?;
        let status = process.stop()?;
        if !status.success() {
            bail!("lamina ended with {status} after SIGTERM");
        }
        Ok(())
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// `lamina check` on the root of the stopped daemon: an error unless it finds nothing.
    pub fn check(&self) -> Result<()> {
        output(
            Command::new(binary()?)
                .arg("check")
                .arg("--root")
                .arg(self.root()),
        )
        .map(drop)
    }

    /// Runs another command with this daemon's configuration and root, which `group` takes.
    pub fn command(&self, group: &[&str], args: &[&str]) -> Result<String> {
        output(self.prepared_command(group)?.args(args))
    }

    /// The beginning of such a command.
    pub fn prepared_command(&self, group: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.args(group).arg("--config").arg(self.config());
        command.arg("--root").arg(self.root());
        Ok(command)
    }

    /// What `lamina config containerd` tells people to write into containerd's configuration.
    pub fn snippet(&self) -> Result<String> {
        let mut command = Command::new(binary()?);
        command
            .args(["config", "containerd"])
            .arg("--root")
            .arg(self.root());
        output(command.arg("--address").arg(self.socket()))
    }

    /// What `lamina status --image` tells of the layers that were not unpacked.
    pub fn layers(&self) -> Result<Vec<serde_json::Value>> {
        let mut command = Command::new(binary()?);
        command.args(["status", "--image", "--json", "--root"]);
        command.arg(self.root()).arg("--address").arg(self.socket());
        Ok(serde_json::from_str(&output(&mut command)?)?)
    }

    /// Whether it has layers that were not unpacked, and all bytes of them.
    pub fn has_all_layers(&self) -> Result<bool> {
        let layers = self.layers()?;
        let is_here = |layer: &serde_json::Value| layer["cached_bytes"] == layer["file_bytes"];
        Ok(!layers.is_empty() && layers.iter().all(is_here))
    }

    /// The process that holds the connections of this daemon's mounts.
    pub fn holder(&self) -> Option<u32> {
        holder_of(&self.socket())
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self
            .process
            .as_ref()
            .context("the daemon does not run")?
            .pid())
    }

    /// The most memory that it has had, in KiB.
    pub fn peak_kib(&self) -> Result<i64> {
        peak_kib(self.pid()?)
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("lamina.log")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("lamina.toml")
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("lamina")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("lamina.sock")
    }
}

impl Drop for Daemon {
    /// Nobody takes over what a killed daemon leaves.
    fn drop(&mut self) {
        self.process = None;
        if let Some(holder) = self.holder() {
            signal(holder, Signal::KILL);
        }
    }
}
