//! What runs inside the containers of the tests of survival (`tests/e2e/survive`): it uses a file
//! system in every way that a killed daemon could spoil, and knows what each call has to answer.
//!
//! ```text
//! load fill DIR                       make the image's part, before there is a container
//! load run NAME OUTSIDE SEED PART...  use it as these parts do (`all`: as all do) until OUTSIDE/stop is there
//! load kept OUTSIDE                   after a crash: what `durable` has synced is there
//! ```
//!
//! OUTSIDE is a directory of another file system. The first call that does not answer what it has
//! to is told in `OUTSIDE/NAME.failed`, and ends the program; `OUTSIDE/NAME.ended` says that all
//! was right to the end.

// A program for tests: it talks to its caller.
#![allow(clippy::cast_possible_truncation)]

mod append;
mod copies;
mod durable;
mod files;
mod image;
mod listing;
mod locks;
mod mapping;
mod names;
mod place;
mod probe;
mod random;
mod stage;

use std::path::Path;
use std::process::ExitCode;
use std::thread;

use anyhow::{Result, bail};

use stage::Stage;

/// A part of the load: it goes on until the stage says stop, and answers how much it has done.
type Part = fn(&Stage, u64) -> Result<u64>;

/// All parts, and how many threads run each.
const PARTS: [(&str, u64, Part); 11] = [
    ("names", 3, names::run),
    ("files", 2, files::run),
    ("mapping", 2, mapping::run),
    ("listing", 1, listing::run),
    ("locks", 1, locks::run),
    ("place", 1, place::run),
    ("append", 1, append::run),
    ("copies", 1, copies::run),
    ("image", 1, image::run),
    ("durable", 1, durable::run),
    ("probe", 1, probe::run),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["fill", dir] => image::fill(Path::new(dir)),
        ["run", name, outside, seed, ref parts @ ..] => run(name, outside, seed, parts),
        ["kept", outside] => durable::check(Path::new(outside)),
        ["count", kind, file, outside] => locks::count(kind, file, outside),
        ["stay", dir, outside] => place::stay(dir, outside),
        _ => bail_out(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bail_out() -> Result<()> {
    bail!("see the beginning of snapshotter/examples/load")
}

fn run(name: &str, outside: &str, seed: &str, wanted: &[&str]) -> Result<()> {
    let stage = Stage::new(name, outside, seed.parse()?);
    let all = wanted == ["all"];
    let parts = PARTS.iter().filter(|(part, ..)| {
        let is_probe = *part == "probe";
        wanted.contains(part) || (all && !is_probe)
    });
    let parts: Vec<_> = parts.collect();
    if parts.is_empty() {
        bail!("no such part: {wanted:?}");
    }
    let told: Vec<String> = thread::scope(|scope| {
        let mut running = Vec::new();
        for (part, threads, work) in parts {
            for number in 0..*threads {
                let stage = &stage;
                let run = scope.spawn(move || stage.watch(part, || work(stage, number)));
                running.push((part, run));
            }
        }
        let end = |(part, run): (&&str, thread::ScopedJoinHandle<'_, u64>)| match run.join() {
            Ok(count) => format!("{part} {count}"),
            Err(_) => stage.fail(&format!("{part}: it panicked")),
        };
        running.into_iter().map(end).collect()
    });
    stage.end(&told.join(", "))
}
