//! `lamina cache`: the files of layers that were not unpacked.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use lamina_snapshotter::lazy::status::CacheAction;
use lamina_snapshotter::status;

use super::PlaceArgs;
use super::status::size;

const EXAMPLES: &str = "Examples:
  lamina cache ls                      what is in it
  lamina cache prune                   empty it, but for files that are open
  lamina cache prune --keep-mib 1024   keep the GiB that was used last
  lamina cache verify                  read all of it, and remove what is damaged";

/// Arguments of `lamina cache`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct CacheArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what is in it
    Ls,
    /// Remove files that were not used for longest, but none that is open
    Prune {
        /// How much to keep
        #[arg(long, value_name = "MIB", default_value_t = 0)]
        keep_mib: u64,
    },
    /// Read all files, and remove those that are damaged; exit status 1 if there were any
    Verify,
}

/// Runs the command.
pub(super) fn run(args: &CacheArgs) -> Result<ExitCode> {
    let config = args.place.load()?;
    let action = match args.action {
        Action::Ls => CacheAction::Look,
        Action::Prune { keep_mib } => CacheAction::Prune(keep_mib.saturating_mul(1 << 20)),
        Action::Verify => CacheAction::Verify,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let kept = runtime.block_on(status::keep_cache(&config.root, &config.address, action))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&kept)?);
    } else {
        println!("{} files, {}", kept.files, size(kept.bytes));
        if kept.unfinished_bytes > 0 {
            println!("not whole yet: {}", size(kept.unfinished_bytes));
        }
        if action != CacheAction::Look {
            let (files, bytes) = (kept.removed_files, size(kept.removed_bytes));
            println!("removed: {files} files, {bytes}");
        }
    }
    let is_damaged = action == CacheAction::Verify && kept.removed_files > 0;
    Ok(ExitCode::from(u8::from(is_damaged)))
}
