//! stargz-snapshotter, the peer that lazy images are raced against.

use std::env;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::process::Process;

/// How long it may take until its socket answers.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Its daemon, with everything below one folder. Dropping it kills it.
pub struct Stargz {
    _process: Process,
    socket: PathBuf,
}

impl Stargz {
    /// The name under which containerd has it.
    pub const NAME: &'static str = "stargz";

    /// The program that `scripts/bench` has built (`STARGZ_BIN`); `None`: there is none.
    pub fn binary() -> Option<PathBuf> {
        let path = PathBuf::from(env::var_os("STARGZ_BIN")?);
        path.is_file().then_some(path)
    }

    /// Starts it, and waits until its socket answers.
    pub fn start(binary: &Path, dir: &Path) -> Result<Stargz> {
        let socket = dir.join("stargz.sock");
        let mut command = Command::new(binary);
        command.arg("-root").arg(dir.join("stargz"));
        command.arg("-address").arg(&socket);
        let mut process = Process::spawn(&mut command, &dir.join("stargz.log"))?;
        process.wait_ready(START_LIMIT, || UnixStream::connect(&socket).is_ok())?;
        Ok(Stargz {
            _process: process,
            socket,
        })
    }

    /// What containerd has to know of it.
    pub fn snippet(&self) -> String {
        format!(
            "[proxy_plugins.{}]\ntype = 'snapshot'\naddress = '{}'\n",
            Self::NAME,
            self.socket.display()
        )
    }
}
