//! The race as a command: it gets a mount namespace of its own, runs, and reports.

mod arguments;

use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

pub use arguments::RaceArguments;

use crate::ground::Ground;
use crate::interrupt::Interrupt;
use crate::race::Race;
use crate::{report, works};

/// Set in the process that has a mount namespace of its own.
const PRIVATE: &str = "LAMINA_BENCHES_PRIVATE";

/// Prints the names of works and systems, for `--only` and `--systems`.
pub fn list() {
    for work in works::all() {
        println!("{:16} {}", work.name, work.title);
    }
    println!("\nsystems: {}", arguments::SYSTEMS.join(", "));
}

/// Races. Starts this program again, in a mount namespace of its own: no mount outlives it,
/// whatever ends it.
pub fn race(arguments: &RaceArguments) -> Result<ExitCode> {
    if std::env::var_os(PRIVATE).is_some() {
        return race_here(arguments);
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

fn race_here(arguments: &RaceArguments) -> Result<ExitCode> {
    let interrupt = Interrupt::catch()?;
    let systems = arguments.systems()?;
    let works = arguments.works()?;
    let ground = Ground::new(&arguments.dir()?, arguments.image(), arguments.scale()?)?;
    let race = Race {
        ground: &ground,
        works: &works,
        systems: &systems,
        rounds: arguments.rounds(),
        interrupt,
        // Where no progress bar can be shown, a line says what is done.
        told: |line| {
            if !io::stderr().is_terminal() {
                eprintln!("{line}");
            }
        },
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
