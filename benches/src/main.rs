//! `lamina-benches race`: Lamina beside overlayfs and fuse-overlayfs.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lamina_benches::command::{RaceArguments, list, race};

/// Races of union file systems.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Race over the same layers, and report times and ratios
    Race(Box<RaceArguments>),
    /// Names of works and systems
    List,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Race(arguments) => race(&arguments),
        Task::List => {
            list();
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("lamina-benches: {error:#}");
        ExitCode::FAILURE
    })
}
