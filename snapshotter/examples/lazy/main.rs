//! A container that starts before its image is here: the same image, pulled as ever and lazily, over
//! the same slow link. `scripts/demo --lazy` and `scripts/bench lazy` run this.
//!
//! `lazy [--rounds N] [--only TEXT] [--plot FILE] ARCHIVE` times cold starts, and `lazy --fill ARCHIVE` how
//! fast an image comes while nothing runs; `lazy --steady ARCHIVE` works in containers whose image has come,
//! and `lazy --memory [--copies N] ARCHIVE` shows what many images take. ARCHIVE is an uncompressed archive, or a directory, of a root with python3 and numpy; `--only`
//! leaves those whose names have this text, beside overlayfs. With `STARGZ_BIN`, stargz-snapshotter's
//! daemon, that runs too.

#![allow(clippy::cast_precision_loss, reason = "figures for people")]

mod fill;
#[path = "../../tests/e2e/harness/mod.rs"]
mod harness;
mod images;
mod memory;
mod needs;
mod report;
mod starts;
mod steady;
mod watch;

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

const USAGE: &str = "usage: lazy [--rounds N] [--only TEXT] [--plot FILE] ARCHIVE, \
    lazy --fill [--rounds N] ARCHIVE, lazy --steady [--rounds N] ARCHIVE, or lazy --memory [--copies N] ARCHIVE";

/// What is asked for.
struct Arguments {
    rounds: usize,
    only: String,
    plot: Option<PathBuf>,
    copies: usize,
    archive: PathBuf,
}

fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    let mut what: fn(&Arguments) -> Result<()> = starts::measure;
    let mut archive = None;
    let mut asked = Arguments {
        rounds: 1,
        only: String::new(),
        plot: None,
        copies: 5,
        archive: PathBuf::new(),
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().context(USAGE);
        match arg.as_str() {
            "--rounds" => asked.rounds = value()?.parse()?,
            "--only" => asked.only = value()?,
            "--plot" => asked.plot = Some(value()?.into()),
            "--copies" => asked.copies = value()?.parse()?,
            "--fill" => what = fill::measure_alone,
            "--memory" => what = memory::measure,
            "--steady" => what = steady::measure,
            _ => archive = Some(PathBuf::from(arg)),
        }
    }
    asked.archive = archive.context(USAGE)?;
    what(&asked)
}

fn median(all: impl Iterator<Item = Duration>) -> Duration {
    let mut all: Vec<_> = all.collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

fn say(line: &str) {
    println!("{line}");
}
