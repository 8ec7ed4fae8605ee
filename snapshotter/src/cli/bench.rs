//! `lamina bench`: the races of `scripts/bench`, small, on this host's disk and kernel.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use lamina_benches::command::{RaceArguments, race};

const EXAMPLES: &str = "Examples:
  lamina bench                                   about five minutes, in /var/tmp/lamina-bench
  lamina bench --dir /mnt/disk/bench             on another disk
  lamina bench --only find,open --rounds 7       some of it, more exactly

It needs root, the packages fio and git, and 3 GiB. What fuse-overlayfs does, and what containerd
does (containerd, runc, busybox-static), is shown if it is installed. Below 1.00 is faster than overlayfs. Layers stay in the directory for the next time.";

/// Arguments of `lamina bench`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct BenchArgs {
    /// Where layers, uppers and the report lie
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/lamina-bench")]
    dir: PathBuf,
    /// How often each system does each work
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only these works, by name or by the beginning of a name
    #[arg(long, value_name = "WORK", value_delimiter = ',')]
    only: Vec<String>,
}

/// Runs the command.
pub(super) fn run(args: &BenchArgs) -> Result<ExitCode> {
    race(&RaceArguments::short(&args.dir, args.rounds, &args.only)?)
}
