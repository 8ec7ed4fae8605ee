//! `ctr`, containerd's own command, with our socket and namespace filled in.

use std::io::BufWriter;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::process::output;

/// Talks to one containerd.
#[derive(Debug)]
pub struct Ctr {
    /// Where it listens.
    pub socket: PathBuf,
    /// In which all that we make lies.
    pub namespace: String,
}

impl Ctr {
    /// A command. Ctrl-C is not for it: what is under way comes to its end.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket);
        command.args(["--namespace", &self.namespace]);
        command.args(arguments).process_group(0);
        command
    }

    /// Runs a command, and gives what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.command(arguments))
    }

    /// Imports the images of the archive that `write` writes, without unpacking them.
    pub fn import(
        &self,
        base: &str,
        write: impl FnOnce(BufWriter<ChildStdin>) -> Result<()>,
    ) -> Result<()> {
        let mut command = self.command(&["images", "import", "--no-unpack"]);
        command.args(["--base-name", base, "-"]);
        let mut import = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run ctr")?;
        let pipe = import.stdin.take().context("no pipe")?;
        let written = write(BufWriter::with_capacity(1 << 20, pipe));
        let ended = import.wait_with_output()?;
        let error = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "cannot import an image: {error}");
        written
    }

    /// The keys of all snapshots.
    pub fn snapshots(&self, snapshotter: &str) -> Result<Vec<String>> {
        let table = self.run(&["snapshots", "--snapshotter", snapshotter, "list"])?;
        let rows = table.lines().skip(1);
        let keys = rows.map(|row| row.split_whitespace().next().unwrap_or_default());
        Ok(keys.map(str::to_owned).collect())
    }

    /// Waits until what nothing refers to is gone. What a container leaves is collected some time
    /// after the command has ended, and would be in the way of what is measured next.
    pub fn collect(&self) -> Result<()> {
        self.run(&["leases", "create", "--id", "wait"])?;
        self.run(&["leases", "delete", "--sync", "wait"])?;
        Ok(())
    }
}
