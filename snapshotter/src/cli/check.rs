//! `lamina check`: does what lies on disk agree with the metadata, and each upper with its layers?

use std::ffi::OsString;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Args;
use lamina_fusefs::check::{Severity, check_lowest, check_upper};

use super::PlaceArgs;
use super::mount_options::layers;

const EXAMPLES: &str = "Examples:
  lamina check
  lamina check --root /srv/lamina && echo sound
  lamina check --upper /c1/diff --work /c1/work --lower /layers/top:/layers/base

Prints one line for each problem, and for each oddity that does no harm (\"note: ...\"). The exit
status is 0 if there is no problem, 1 if there are some or if something can't be looked at.
Nothing is changed.";

/// Arguments of `lamina check`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Check this upper directory instead of a root
    #[arg(long, value_name = "DIR", conflicts_with = "root")]
    upper: Option<PathBuf>,
    /// The work directory of the upper
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// The layers below the upper, the topmost first, as in `lamina mount -o lowerdir=...`
    #[arg(long, value_name = "DIR[:DIR...]", requires = "upper")]
    lower: Option<OsString>,
}

/// Runs the command.
pub(super) fn run(args: &CheckArgs) -> Result<ExitCode> {
    match &args.upper {
        Some(upper) => one_upper(upper, args),
        None => whole_root(args),
    }
}

fn whole_root(args: &CheckArgs) -> Result<ExitCode> {
    let root = args.place.load()?.root;
    let shown = root.display();
    ensure!(root.is_dir(), "there is no Lamina root at {shown}");
    let findings = lamina_snapshotter::check::check(&root)?;
    let problems = findings.iter().filter(|finding| !finding.is_note()).count();
    Ok(report(&findings, problems, &shown))
}

fn one_upper(upper: &Path, args: &CheckArgs) -> Result<ExitCode> {
    let lower = match &args.lower {
        Some(lower) => layers(lower.as_bytes())?,
        None => Vec::new(),
    };
    let mut findings = check_upper(upper, args.work.as_deref(), &lower)?;
    if let Some(lowest) = lower.last() {
        findings.append(&mut check_lowest(lowest)?);
    }
    let problems = findings
        .iter()
        .filter(|finding| finding.severity() == Severity::Error)
        .count();
    Ok(report(&findings, problems, &upper.display()))
}

/// Prints what was found, and says by the exit status whether it is more than notes.
fn report(findings: &[impl Display], problems: usize, shown: &impl Display) -> ExitCode {
    for finding in findings {
        println!("{finding}");
    }
    if problems == 0 {
        println!("no problems in {shown}");
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}
