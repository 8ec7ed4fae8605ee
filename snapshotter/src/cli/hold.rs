//! `lamina hold`: the process that keeps the descriptors of a daemon.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use lamina_snapshotter::hold;

const EXAMPLES: &str = "Example:
  lamina hold --address /run/lamina/hold.sock --patience-secs 600

The daemon starts this by itself where systemd does not keep its descriptors. It ends when a daemon
has left nothing with it, or has been gone for too long. SIGTERM ends it, too: then the root of each
running container is lost if there is no daemon.";

/// Arguments of `lamina hold`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct HoldArgs {
    /// The socket on which the daemon finds it
    #[arg(long, value_name = "SOCKET")]
    address: PathBuf,
    /// How long to wait for a daemon
    #[arg(long, value_name = "N", default_value_t = hold::DEFAULT_PATIENCE.as_secs())]
    patience_secs: u64,
}

/// Runs the command: ends when there is nothing to keep any more.
pub(super) fn run(args: &HoldArgs) -> Result<ExitCode> {
    hold::run(&args.address, Duration::from_secs(args.patience_secs))?;
    Ok(ExitCode::SUCCESS)
}
