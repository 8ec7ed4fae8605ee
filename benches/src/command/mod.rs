//! The race as a command: it gets a mount namespace of its own, runs, and reports.

mod arguments;

use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

pub use arguments::RaceArguments;

use crate::containers;
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
    for work in containers::all() {
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

/// Puts an empty directory over what the host's containerd and its shims have in /run. Their sockets
/// lie there whatever the configuration says.
fn hide_containerd() -> Result<()> {
    let run = "/run/containerd";
    std::fs::create_dir_all(run)?;
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", run, "tmpfs", flags, None)
        .with_context(|| format!("cannot mount anything on {run}"))
}

fn race_here(arguments: &RaceArguments) -> Result<ExitCode> {
    hide_containerd()?;
    let interrupt = Interrupt::catch()?;
    let systems = arguments.systems()?;
    let works = arguments.works()?;
    let container_works = arguments.container_works()?;
    let mut ground = Ground::new(&arguments.dir()?, arguments.image(), arguments.scale()?)?;
    if let Some(density) = arguments.density() {
        ground.set_crowd(density);
    }
    let race = Race {
        ground: &ground,
        works: &works,
        container_works: &container_works,
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
