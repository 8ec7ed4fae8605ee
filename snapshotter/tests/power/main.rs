//! The power goes, at random moments, under everything that Lamina does.
//!
//! A run records what a file system tells its disk while callers prepare, commit and remove
//! snapshots, containers write, and lazy layers are fetched; and, beside it, what was answered, and
//! at which position of the record. Then the power is cut at many positions of it: the disk is put
//! together as a volatile cache may have left it, mounted, and served by a new daemon. All that was
//! answered before has to be there, no file may hold a byte that it never had, and `lamina check`
//! finds nothing.
//!
//! `LAMINA_CUTS` says how often, `LAMINA_DISK` on which file systems, `LAMINA_SEED` repeats a run (the
//! callers' threads and the kernel's keep an order of their own). Run it through `scripts/private`: it mounts over the host's boot id.

mod cuts;
#[path = "../disk/mod.rs"]
mod disk;
#[path = "../e2e/harness/mod.rs"]
mod harness;
mod machine;
mod model;
mod replay;
mod script;
mod synchronous;

use std::io::{Write as _, stderr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use std::{env, thread};

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;

use self::disk::FileSystem;
use self::harness::{Scratch, mounts_below};
use self::machine::Machine;
use self::model::Story;
use self::replay::{Recording, Tally};
use self::script::{Caller, Registries};

/// How often the power goes, unless `LAMINA_CUTS` says it. `scripts/power-campaign` does it 1,000
/// times.
const CUTS: u64 = 30;
/// How often in one recording at most.
const CUTS_EACH: u64 = 50;
/// Callers at once.
const CALLERS: u64 = 2;
/// What each does at least; more where there will be more cuts.
const STEPS: u64 = 25;

#[test]
fn what_was_answered_survives_every_power_cut() -> Result<()> {
    let _turn = alone();
    require()?;
    let cuts = number("LAMINA_CUTS")?.unwrap_or(CUTS);
    let seed = number("LAMINA_SEED")?.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    let scratch = Scratch::new()?;
    let registries = Registries::start(scratch.path())?;
    let began = Instant::now();
    let mut tally = Tally::default();
    // At least one recording on each file system.
    let chosen = FileSystem::chosen()?;
    let kinds = chosen.len() as u64;
    let recordings = cuts.div_ceil(CUTS_EACH).next_multiple_of(kinds);
    for number in 0..recordings {
        let of_this = cuts / recordings + u64::from(number < cuts % recordings);
        let seed = seed.wrapping_add(number);
        // So that a seed repeats a recording, whichever it was.
        let kind = chosen[usize::try_from(seed % kinds)?];
        run(of_this, kind, seed, &registries, &scratch, &mut tally)
            .with_context(|| format!("on {kind:?} with LAMINA_SEED={seed}"))?;
        let _ = writeln!(
            stderr(),
            "    {kind:?}, seed {seed}, {:?}: {tally}",
            began.elapsed()
        );
    }
    ensure!(tally.cuts == cuts, "{} cuts", tally.cuts);
    Ok(())
}

/// One recording, and the cuts in it.
fn run(
    cuts: u64,
    kind: FileSystem,
    seed: u64,
    registries: &Registries,
    scratch: &Scratch,
    tally: &mut Tally,
) -> Result<()> {
    let mut chance = Rng::with_seed(seed);
    registries.offer_whole_layers(true);
    let steps = STEPS + cuts / 2;
    let recording = record(kind, steps, &mut chance, registries, scratch.path())?;
    registries.offer_whole_layers(false);
    recording.cut(cuts, &mut chance, scratch.path(), tally)
}

/// What happens on a new disk until the power goes.
fn record(
    kind: FileSystem,
    steps: u64,
    chance: &mut Rng,
    registries: &Registries,
    dir: &Path,
) -> Result<Recording> {
    let start = kind.make(dir)?;
    let machine = Machine::boot(start.clone(), kind, dir)?;
    let mut callers = Vec::new();
    for number in 0..CALLERS {
        // Only one has the images, since their layers have the same names for all.
        let images: &[_] = if number == 0 { &registries.images } else { &[] };
        let name = format!("caller{number}");
        callers.push(Caller::new(&name, &machine, dir, images, chance.u64(..))?);
    }
    let stories = thread::scope(|scope| {
        let running = callers.into_iter();
        let running: Vec<_> = running
            .map(|caller| scope.spawn(|| caller.run(steps)))
            .collect();
        let ended = running.into_iter().map(|caller| match caller.join() {
            Ok(story) => story,
            Err(_) => bail!("a caller panicked"),
        });
        ended.collect::<Result<Vec<Story>>>()
    })?;
    Ok(Recording {
        kind,
        start,
        log: machine.clock().log(),
        stories,
    })
}

/// A machine has the boot id of all, so there is one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails with a clear word where the test cannot run; it is never skipped in silence.
fn require() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("power cuts need root: run scripts/power-campaign");
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if !Path::new(device).exists() {
            bail!("power cuts need {device}: this kernel or this container does not offer it");
        }
    }
    // That script's mark.
    if !mounts_below(Path::new("/run/containerd"))?.contains(&PathBuf::from("/run/containerd")) {
        bail!("power cuts mount over a file of /proc: run them through scripts/private");
    }
    Ok(())
}

fn number(name: &str) -> Result<Option<u64>> {
    match env::var(name) {
        Ok(text) => Ok(Some(
            text.parse()
                .with_context(|| format!("{name} is no number"))?,
        )),
        Err(_) => Ok(None),
    }
}
