//! `lamina check`: does what lies on disk agree with the metadata?

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Args;

use super::PlaceArgs;

const EXAMPLES: &str = "Examples:
  lamina check
  lamina check --root /srv/lamina && echo sound

Prints one line for each problem. The exit status is 0 if there is none, 1 if there are
some or if the root can't be looked at. Nothing is changed.";

/// Arguments of `lamina check`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    place: PlaceArgs,
}

/// Runs the command.
pub(super) fn run(args: &CheckArgs) -> Result<ExitCode> {
    let root = args.place.load()?.root;
    let shown = root.display();
    ensure!(root.is_dir(), "there is no Lamina root at {shown}");
    let findings = lamina_snapshotter::check::check(&root)?;
    for finding in &findings {
        println!("{finding}");
    }
    if findings.is_empty() {
        println!("no problems in {shown}");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}
