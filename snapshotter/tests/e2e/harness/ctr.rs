//! `ctr`, containerd's own command, with our socket, namespace and snapshotter filled in.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use lamina_snapshotter::upper_mode::{INHERITED_LABEL, UpperMode};

use super::process::output;

/// A container's process when it has nothing to do.
const IDLE: &str = "exec sleep 2147483647";

/// Talks to one containerd.
pub struct Ctr {
    socket: PathBuf,
    namespace: String,
    snapshotter: &'static str,
    fifos: PathBuf,
}

/// One line of `ctr snapshots list`.
#[derive(Debug)]
pub struct Row {
    pub key: String,
    pub parent: String,
    pub kind: String,
}

impl Ctr {
    pub fn new(
        socket: PathBuf,
        namespace: &str,
        snapshotter: &'static str,
        fifos: PathBuf,
    ) -> Self {
        Self {
            socket,
            namespace: namespace.to_owned(),
            snapshotter,
            fifos,
        }
    }

    /// Imports all images of an archive below the name `base` and unpacks them.
    pub fn import(&self, base: &str, archive: &Path) -> Result<()> {
        let mut command = self.command(&["images", "import", "--base-name", base]);
        command
            .args(["--snapshotter", self.snapshotter])
            .arg(archive);
        output(&mut command).map(drop)
    }

    /// The same containerd with another snapshotter.
    pub fn with_snapshotter(&self, snapshotter: &'static str) -> Ctr {
        Ctr {
            socket: self.socket.clone(),
            namespace: self.namespace.clone(),
            snapshotter,
            fifos: self.fifos.clone(),
        }
    }

    /// The same containerd in another namespace.
    pub fn in_namespace(&self, namespace: &str) -> Ctr {
        Ctr {
            socket: self.socket.clone(),
            namespace: namespace.to_owned(),
            snapshotter: self.snapshotter,
            fifos: self.fifos.clone(),
        }
    }

    /// Pulls an image as any other, and unpacks it.
    pub fn pull(&self, image: &str) -> Result<()> {
        let mut command = self.command(&["images", "pull", "--plain-http"]);
        command.args(["--snapshotter", self.snapshotter, image]);
        output(&mut command).map(drop)
    }

    /// Runs a command in a new container, and answers its first line and when that came.
    pub fn first_line(&self, id: &str, image: &str, script: &str) -> Result<(String, Instant)> {
        let mut command = self.command(&["run", "--rm", "--snapshotter", self.snapshotter]);
        command.args([image, id, "/bin/sh", "-ec", script]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let came = Instant::now();
        let status = child.wait()?;
        if !status.success() {
            bail!("{script}: {status}");
        }
        Ok((line.trim().to_owned(), came))
    }

    /// Pulls an image with the labels that lazy layers need.
    pub fn rpull(&self, image: &str) -> Result<()> {
        let mut command = self.remote(&["images", "rpull", "--plain-http"]);
        command.args(["--snapshotter", self.snapshotter, image]);
        output(&mut command).map(drop)
    }

    /// Makes an eStargz image of another one, and pushes it.
    pub fn convert_to_estargz(&self, from: &str, to: &str) -> Result<()> {
        self.remake(from, to, &["convert", "--estargz", "--oci"])
    }

    /// The same, compressed as little as can be.
    pub fn convert_to_estargz_quickly(&self, from: &str, to: &str) -> Result<()> {
        let level = "--estargz-compression-level=1";
        self.remake(from, to, &["convert", "--estargz", level, "--oci"])
    }

    /// An eStargz image in which those files come first that `script` reads.
    pub fn optimize_as_estargz(&self, from: &str, to: &str, script: &str) -> Result<()> {
        let entrypoint = r#"--entrypoint=["/bin/sh","-ec"]"#;
        let args = format!("--args={}", serde_json::json!([script]));
        self.remake(from, to, &["optimize", "--oci", entrypoint, &args])
    }

    fn remake(&self, from: &str, to: &str, how: &[&str]) -> Result<()> {
        let convert = [&["images"], how, &[from, to]].concat();
        let steps: [&[&str]; 4] = [
            &["content", "fetch", "--plain-http", from],
            &convert,
            &["images", "push", "--plain-http", to],
            &["images", "remove", "--sync", from, to],
        ];
        for step in steps {
            // ctr-remote's push breaks off at times ("unexpected EOF"); what is done twice does no harm.
            output(&mut self.remote(step)).or_else(|_| output(&mut self.remote(step)))?;
        }
        Ok(())
    }

    /// Removes an image, and what only it needs.
    pub fn remove_image(&self, image: &str) -> Result<()> {
        self.run(&["images", "remove", "--sync", image]).map(drop)
    }

    /// `ctr` with the commands of stargz-snapshotter.
    fn remote(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr-remote");
        command.arg("--address").arg(&self.socket);
        command.args(["--namespace", &self.namespace]).args(args);
        command
    }

    /// The names of all images.
    pub fn images(&self) -> Result<Vec<String>> {
        Ok(self
            .run(&["images", "list", "-q"])?
            .lines()
            .map(str::to_owned)
            .collect())
    }

    /// Starts a container that runs `script` and then sleeps.
    pub fn start(&self, id: &str, image: &str, script: &str) -> Result<()> {
        self.start_with(None, id, image, script)
    }

    /// The same with a label that says who holds the upper.
    pub fn start_with(
        &self,
        upper: Option<UpperMode>,
        id: &str,
        image: &str,
        script: &str,
    ) -> Result<()> {
        let script = format!("{script}\n{IDLE}");
        let mut command = self.command(&["run", "--detach", "--null-io"]);
        command.args(["--snapshotter", self.snapshotter]);
        if let Some(upper) = upper {
            command.arg("--snapshotter-label");
            command.arg(format!("{INHERITED_LABEL}={upper}"));
        }
        command.args([image, id, "/bin/sh", "-ec", &script]);
        output(&mut command).map(drop)
    }

    /// Starts a container that sees a directory of the host at `/outside`, and runs `script` there
    /// before it sleeps.
    pub fn start_beside(&self, outside: &Path, id: &str, image: &str, script: &str) -> Result<()> {
        let mount = format!(
            "type=bind,src={},dst=/outside,options=rbind:rw",
            outside.display()
        );
        let script = format!("{script}\n{IDLE}");
        let mut command = self.command(&["run", "--detach", "--null-io", "--mount", &mount]);
        command.args(["--snapshotter", self.snapshotter]);
        command.args([image, id, "/bin/sh", "-ec", &script]);
        output(&mut command).map(drop)
    }

    /// Runs `script` inside a running container and returns what it printed.
    pub fn exec(&self, id: &str, script: &str) -> Result<String> {
        let mut command = self.command(&["tasks", "exec", "--exec-id", "x", "--fifo-dir"]);
        command
            .arg(&self.fifos)
            .args([id, "/bin/sh", "-ec", script]);
        output(&mut command).with_context(|| format!("in container {id}: {script}"))
    }

    /// Ends a container's process; what it wrote stays.
    pub fn stop_task(&self, id: &str) -> Result<()> {
        // `ctr` hands on the status of the process that it killed, so success is to be gone.
        let removed = self.run(&["tasks", "delete", "--force", id]);
        if self.tasks()?.iter().any(|task| task == id) {
            removed?;
            bail!("task {id} is still there");
        }
        Ok(())
    }

    /// Ends a container's process, and deletes the container with its snapshot.
    pub fn end(&self, id: &str) -> Result<()> {
        self.stop_task(id)?;
        self.delete(id)
    }

    /// Starts the process of a stopped container again.
    pub fn start_task(&self, id: &str) -> Result<()> {
        self.run(&["tasks", "start", "--detach", "--null-io", id])
            .map(drop)
    }

    /// The containers that have a process.
    pub fn tasks(&self) -> Result<Vec<String>> {
        Ok(self
            .run(&["tasks", "list", "-q"])?
            .lines()
            .map(str::to_owned)
            .collect())
    }

    /// Deletes a stopped container and its snapshot.
    pub fn delete(&self, id: &str) -> Result<()> {
        self.run(&["containers", "delete", id]).map(drop)
    }

    /// All snapshots.
    pub fn snapshots(&self) -> Result<Vec<Row>> {
        let table = self.snapshot_command(&["list"])?;
        let rows = table.lines().skip(1).map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let (key, parent, kind) = match words[..] {
                [key, kind] => (key, "", kind),
                [key, parent, kind] => (key, parent, kind),
                _ => bail!("`ctr snapshots list` printed {line:?}"),
            };
            Ok(Row {
                key: key.to_owned(),
                parent: parent.to_owned(),
                kind: kind.to_owned(),
            })
        });
        rows.collect()
    }

    /// Removes one snapshot.
    pub fn remove_snapshot(&self, key: &str) -> Result<()> {
        self.snapshot_command(&["remove", key]).map(drop)
    }

    /// Writes what container `id` changed as a layer's tar.
    pub fn diff(&self, id: &str, to: &Path) -> Result<()> {
        let mut command = self.command(&["snapshots", "--snapshotter", self.snapshotter, "diff"]);
        command.args(["--media-type", "application/vnd.oci.image.layer.v1.tar", id]);
        let status = command
            .stdin(Stdio::null())
            .stdout(File::create(to)?)
            .status()?;
        if !status.success() {
            bail!("ctr snapshots diff {id}: {status}");
        }
        Ok(())
    }

    /// Mounts a read-only view of `image` at `target`.
    pub fn mount(&self, image: &str, target: &Path) -> Result<()> {
        let mut command = self.command(&["images", "mount", "--snapshotter", self.snapshotter]);
        output(command.arg(image).arg(target)).map(drop)
    }

    /// Takes away what [`Self::mount`] made.
    pub fn unmount(&self, target: &Path) -> Result<()> {
        let mut command = self.command(&["images", "unmount", "--rm"]);
        output(
            command
                .args(["--snapshotter", self.snapshotter])
                .arg(target),
        )
        .map(drop)
    }

    /// Any other command.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        output(&mut self.command(args))
    }

    fn snapshot_command(&self, args: &[&str]) -> Result<String> {
        let mut command = self.command(&["snapshots", "--snapshotter", self.snapshotter]);
        output(command.args(args))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket);
        command.args(["--namespace", &self.namespace]).args(args);
        command
    }
}
