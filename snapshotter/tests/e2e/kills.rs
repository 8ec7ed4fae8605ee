//! `kill -9` at random moments under a script of Prepare, View, Commit and Remove.
//!
//! What was acknowledged must still be so after the restart; the one call that was in flight may
//! have happened or not, but not half; and `lamina check` finds nothing. `LAMINA_KILLS` says how
//! often, `LAMINA_SEED` repeats a run (as far as chance lets it: the moments are the clock's).
//!
//! With `SNAPSHOTTER=overlayfs` containerd is killed instead, and is expected to fail: a kill
//! between its rename of a new snapshot's folder and the commit of its metadata leaves a folder
//! that stands in the way of every later Prepare ("failed to rename: file exists", containerd 1.6).

use std::collections::BTreeMap;
use std::io::{Write as _, stderr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, mem};

use anyhow::{Context as _, Result, bail, ensure};

use lamina_snapshotter::upper_mode::UpperMode;

use super::alone;
use super::harness::{Api, Containerd, Daemon, Kind, Scratch, Snapshotter, mounts_below, wait_for};

/// How long the script may take until a kill is due.
const SCRIPT_LIMIT: Duration = Duration::from_mins(1);
/// The script removes more than it makes above this number of snapshots.
const CROWDED: usize = 16;
/// The script makes fewer calls than this before the call that a kill meets.
const CALLS_BETWEEN: u64 = 12;
/// A kill comes at most so long after a call has begun: a few times as long as a call takes.
const LATEST_KILL_MICROS: u64 = 60_000;

#[test]
fn store_and_disk_agree_after_every_kill() -> Result<()> {
    let _turn = alone();
    let kills: u32 = number("LAMINA_KILLS")?.unwrap_or(20).try_into()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = number("LAMINA_SEED")?.unwrap_or(u64::from(now.subsec_nanos()));
    let mut chance = Chance(seed | 1);
    let scratch = Scratch::new()?;
    let mut victim = Victim::start(&scratch)?;
    let mut state = State::default();
    let mut done = 0;
    for kill in 1..=kills {
        let script = Script {
            api: victim.api()?,
            chance: Chance(chance.next() | 1),
            state: mem::take(&mut state),
            killed: Arc::default(),
            done: Arc::default(),
        };
        let (killed, calls) = (Arc::clone(&script.killed), Arc::clone(&script.done));
        let worker = thread::spawn(move || script.run());
        let enough = chance.below(CALLS_BETWEEN);
        wait_for("the script makes its calls", SCRIPT_LIMIT, || {
            calls.load(Ordering::SeqCst) >= enough || worker.is_finished()
        })?;
        thread::sleep(Duration::from_micros(chance.below(LATEST_KILL_MICROS)));
        killed.store(true, Ordering::SeqCst);
        victim.kill();
        let Ok(told) = worker.join() else {
            bail!("the script panicked")
        };
        let possible = told.with_context(|| format!("seed {seed}, kill {kill}"))?;
        done += calls.load(Ordering::SeqCst);
        victim
            .start_again()
            .with_context(|| format!("seed {seed}, kill {kill}"))?;
        let found = victim.api()?.list()?;
        ensure!(
            possible.iter().any(|state| state.snapshots == found),
            "seed {seed}, kill {kill}: found {found:#?}\nbut expected one of {possible:#?}"
        );
        state = State {
            snapshots: found,
            next: possible[0].next,
        };
        victim
            .check()
            .with_context(|| format!("seed {seed}, kill {kill}"))?;
    }
    let _ = writeln!(
        stderr(),
        "    {kills} kills under {done} calls, seed {seed}"
    );
    let mut api = victim.api()?;
    while let Some(key) = state.leaves().pop() {
        api.remove(&key)?;
        state.snapshots.remove(&key);
    }
    ensure!(api.list()?.is_empty(), "left: {:?}", api.list()?);
    drop(api);
    victim.check()?;
    victim.stop()?;
    let mounts = mounts_below(scratch.path())?;
    ensure!(mounts.is_empty(), "leaked mounts: {mounts:?}");
    Ok(())
}

/// Who is killed: Lamina itself, or a containerd with its own overlayfs.
enum Victim {
    Lamina(Daemon),
    Containerd(Containerd),
}

impl Victim {
    fn start(scratch: &Scratch) -> Result<Self> {
        Ok(match Snapshotter::chosen()? {
            Snapshotter::Lamina => {
                Self::Lamina(Daemon::start(scratch.path(), UpperMode::Union, "")?)
            }
            Snapshotter::Overlayfs => Self::Containerd(Containerd::start(scratch.path(), "")?),
        })
    }

    fn start_again(&mut self) -> Result<()> {
        match self {
            Self::Lamina(daemon) => daemon.start_again(),
            Self::Containerd(containerd) => containerd.start_again(),
        }
    }

    fn kill(&mut self) {
        match self {
            Self::Lamina(daemon) => daemon.kill(),
            Self::Containerd(containerd) => containerd.kill(),
        }
    }

    fn stop(&mut self) -> Result<()> {
        match self {
            Self::Lamina(daemon) => daemon.stop(),
            Self::Containerd(containerd) => containerd.stop(),
        }
    }

    /// Asks `lamina check` for damage, between a clean stop and a start.
    fn check(&mut self) -> Result<()> {
        if let Self::Lamina(daemon) = self {
            daemon.stop()?;
            daemon.check()?;
            daemon.start_again()?;
        }
        Ok(())
    }

    fn api(&self) -> Result<Api> {
        let (socket, name): (PathBuf, _) = match self {
            Self::Lamina(daemon) => (daemon.socket(), "lamina"),
            Self::Containerd(containerd) => (containerd.socket(), "overlayfs"),
        };
        Api::connect(&socket, name, &[("containerd-namespace", "kills")])
    }
}

/// What the snapshotter has been told and has acknowledged.
#[derive(Clone, Debug, Default)]
struct State {
    snapshots: BTreeMap<String, (Kind, String)>,
    /// Makes every name a new one.
    next: u64,
}

/// One call of the script.
enum Call {
    Prepare { key: String, parent: String },
    View { key: String, parent: String },
    Commit { name: String, key: String },
    Remove { key: String },
}

impl State {
    fn of_kind(&self, kind: Kind) -> Vec<String> {
        let of_kind = self
            .snapshots
            .iter()
            .filter(|(_, (found, _))| *found == kind);
        of_kind.map(|(key, _)| key.clone()).collect()
    }

    /// The snapshots that nothing stands on.
    fn leaves(&self) -> Vec<String> {
        let parent = |key: &String| self.snapshots.values().any(|(_, parent)| parent == key);
        self.snapshots
            .keys()
            .filter(|key| !parent(key))
            .cloned()
            .collect()
    }

    fn choose(&mut self, chance: &mut Chance) -> Call {
        self.next += 1;
        let number = self.next;
        let committed = self.of_kind(Kind::Committed);
        let remove_below = if self.snapshots.len() > CROWDED {
            60
        } else {
            20
        };
        let dice = chance.below(100);
        if dice < remove_below {
            if let Some(key) = chance.pick(&self.leaves()) {
                return Call::Remove { key };
            }
        } else if dice < 75 {
            if let Some(key) = chance.pick(&self.of_kind(Kind::Active)) {
                return Call::Commit {
                    name: format!("layer-{number}"),
                    key,
                };
            }
        } else if dice < 80
            && let Some(parent) = chance.pick(&committed)
        {
            return Call::View {
                key: format!("view-{number}"),
                parent,
            };
        }
        let parent = if chance.below(4) == 0 {
            None
        } else {
            chance.pick(&committed)
        };
        let kind = if chance.below(2) == 0 {
            "extract-"
        } else {
            "container-"
        };
        Call::Prepare {
            key: format!("{kind}{number}"),
            parent: parent.unwrap_or_default(),
        }
    }

    fn apply(&mut self, call: &Call) {
        match call {
            Call::Prepare { key, parent } => {
                self.snapshots
                    .insert(key.clone(), (Kind::Active, parent.clone()));
            }
            Call::View { key, parent } => {
                self.snapshots
                    .insert(key.clone(), (Kind::View, parent.clone()));
            }
            Call::Commit { name, key } => {
                if let Some((_, parent)) = self.snapshots.remove(key) {
                    self.snapshots
                        .insert(name.clone(), (Kind::Committed, parent));
                }
            }
            Call::Remove { key } => {
                self.snapshots.remove(key);
            }
        }
    }
}

/// Calls one after the other until the daemon dies.
struct Script {
    api: Api,
    chance: Chance,
    state: State,
    killed: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Script {
    /// Returns the two states that a restart may show. A call that fails while the daemon is
    /// alive is an error.
    fn run(mut self) -> Result<[State; 2]> {
        loop {
            let call = self.state.choose(&mut self.chance);
            let answer = match &call {
                Call::Prepare { key, parent } => self.api.prepare(key, parent),
                Call::View { key, parent } => self.api.view(key, parent),
                Call::Commit { name, key } => self.api.commit(name, key),
                Call::Remove { key } => self.api.remove(key),
            };
            match answer {
                Ok(()) => self.state.apply(&call),
                Err(status) if !self.killed.load(Ordering::SeqCst) => bail!("{status}"),
                Err(_) => {
                    let mut after = self.state.clone();
                    after.apply(&call);
                    return Ok([self.state, after]);
                }
            }
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Pseudo-random numbers (xorshift64); never zero inside.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    fn pick(&mut self, from: &[String]) -> Option<String> {
        let count = u64::try_from(from.len()).ok().filter(|count| *count > 0)?;
        from.get(usize::try_from(self.below(count)).ok()?).cloned()
    }
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
