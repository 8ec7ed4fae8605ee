//! `lamina-benches race`: Lamina beside overlayfs and fuse-overlayfs.

mod arguments;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use lamina_benches::ground::Ground;
use lamina_benches::interrupt::Interrupt;
use lamina_benches::race::Race;
use lamina_benches::{report, works};

use arguments::{Arguments, RaceArguments, Task};

/// Set in the process that has a mount namespace of its own.
const PRIVATE: &str = "LAMINA_BENCHES_PRIVATE";

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Race(arguments) => private(&arguments),
        Task::List => Ok(list()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("lamina-benches: {error:#}");
        ExitCode::FAILURE
    })
}

/// Names of works and systems, for `--only` and `--systems`.
fn list() -> ExitCode {
    for work in works::all() {
        println!("{:16} {}", work.name, work.title);
    }
    println!("\nsystems: {}", arguments::SYSTEMS.join(", "));
    ExitCode::SUCCESS
}

/// Starts this program again, in a mount namespace of its own: no mount outlives it, whatever ends
/// it.
fn private(arguments: &RaceArguments) -> Result<ExitCode> {
    if std::env::var_os(PRIVATE).is_some() {
        return race(arguments);
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "needs root: it mounts, and drops caches"
    );
    let error = Command::new("unshare")
        .args(["--mount", "--propagation=private"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(PRIVATE, "1")
        .exec();
    Err(error).context("cannot run unshare: install the package util-linux")
}

fn race(arguments: &RaceArguments) -> Result<ExitCode> {
    let interrupt = Interrupt::catch()?;
    let systems = arguments.systems()?;
    let works = arguments.works()?;
    let ground = Ground::new(&arguments.dir()?, arguments.scale()?)?;
    let race = Race {
        ground: &ground,
        works: &works,
        systems: &systems,
        rounds: arguments.rounds(),
        interrupt,
    };
    let results = race.run()?;
    println!("{}", report::table(&results));
    let dir = arguments.report()?;
    report::write(&results, &dir)?;
    println!("race.md, race.json and race.svg are in {}", dir.display());
    if let Some(complaint) = results.complaint() {
        bail!(complaint);
    }
    Ok(if results.interrupted {
        ExitCode::from(130)
    } else {
        ExitCode::SUCCESS
    })
}
