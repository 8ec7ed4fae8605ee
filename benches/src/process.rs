//! Other programs: run one to its end, or keep one as a server.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take to begin or to end.
const PATIENCE: Duration = Duration::from_mins(1);

/// Runs a command to its end, and gives what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {error}",
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command of a server that ends when we do, even if we are killed. Ctrl-C is not for it: we
/// end it.
pub fn server(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command.process_group(0).stdin(Stdio::null());
    command
}

/// A server that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Server {
    /// Starts it, with all that it says in the file `log`, and waits until `ready`.
    pub fn start(command: &mut Command, log: &Path, ready: impl Fn() -> bool) -> Result<Server> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command.stdout(file.try_clone()?).stderr(file).spawn();
        let mut server = Server {
            child: child.context("cannot run setpriv: install the package util-linux")?,
            name: format!("{command:?}"),
            log: log.to_owned(),
        };
        wait_for("a server begins", || {
            if let Some(status) = server.child.try_wait()? {
                let text = std::fs::read_to_string(&server.log).unwrap_or_default();
                bail!("{} ended with {status}:\n{text}", server.name);
            }
            Ok(ready())
        })?;
        Ok(server)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as an administrator would.
    pub fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let mut ended = None;
        wait_for("a server ends", || {
            ended = self.child.try_wait()?;
            Ok(ended.is_some())
        })?;
        let good = ended.is_some_and(|status| status.success());
        ensure!(
            good,
            "{} ended badly: see {}",
            self.name,
            self.log.display()
        );
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `done`.
pub fn wait_for(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        ensure!(
            start.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain until {what}"
        );
        sleep(Duration::from_millis(2));
    }
    Ok(())
}
