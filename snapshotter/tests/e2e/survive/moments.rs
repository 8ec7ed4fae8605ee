//! When the daemon dies: at random moments, and what is remembered of each.

use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, mem};

use anyhow::{Context as _, Result};
use fastrand::Rng;

use super::scene::Scene;
use crate::harness::binary;

/// The longest rest between two kills; half of them are shorter than a quarter of it.
const REST: f64 = 3.0;
/// One kill of so many is followed by another before the new daemon answers.
const AGAIN: u64 = 4;
/// How long a start takes, as long as nothing is known of it.
const START: Duration = Duration::from_millis(300);
/// How long the load goes on where nobody is killed.
const NO_KILLS: Duration = Duration::from_secs(20);

/// Microseconds of the clock.
pub(super) type Micros = u128;

/// One death, or several before a daemon answered again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kill {
    pub(super) at: Micros,
    pub(super) times: u64,
    /// How long it took until one answered.
    pub(super) answered: Micros,
}

/// The moments of a run.
pub(super) struct Moments {
    pub(super) seed: u64,
    random: Rng,
    kills: Vec<Kill>,
    /// How long the last start took.
    start: Duration,
}

impl Moments {
    pub(super) fn new() -> Result<Moments> {
        let seed = number("LAMINA_SEED")?.unwrap_or_else(|| fastrand::u64(..1 << 32));
        Ok(Moments {
            seed,
            random: Rng::with_seed(seed),
            kills: Vec::new(),
            start: START,
        })
    }

    /// What a failure has to say of its run.
    pub(super) fn told(&self, done: u64) -> String {
        format!("seed {}, after {done} kills", self.seed)
    }

    /// Waits some time, rather short.
    pub(super) fn rest(&mut self) {
        thread::sleep(Duration::from_secs_f64(REST * self.random.f64().powi(2)));
    }

    /// Whether the new daemon is to die before it answers.
    pub(super) fn again(&mut self) -> bool {
        self.random.u64(..AGAIN) == 0
    }

    pub(super) fn kill_while_it_starts(
        &mut self,
        scene: &mut Scene,
        kill: &mut Kill,
    ) -> Result<()> {
        thread::sleep(self.start.mul_f64(self.random.f64()));
        scene.kill();
        kill.times += 1;
        scene.begin(&binary()?)
    }

    /// A daemon answers again.
    pub(super) fn remember(&mut self, mut kill: Kill) {
        kill.answered = now().saturating_sub(kill.at);
        if kill.times == 1 {
            self.start = Duration::from_micros(u64::try_from(kill.answered).unwrap_or(u64::MAX));
        }
        self.kills.push(kill);
    }

    /// The deaths that have not been asked for yet.
    pub(super) fn take(&mut self) -> Vec<Kill> {
        mem::take(&mut self.kills)
    }
}

/// Kills the daemon, and starts another at once.
pub(super) fn kill(scene: &mut Scene) -> Result<Kill> {
    let at = now();
    scene.kill();
    scene.begin(&binary()?)?;
    Ok(Kill {
        at,
        times: 1,
        answered: 0,
    })
}

/// Stops the daemon as an administrator does, and starts another.
pub(super) fn replace(scene: &mut Scene, binary: &Path) -> Result<Kill> {
    let at = now();
    scene.stop_snapshotter()?;
    scene.begin(binary)?;
    Ok(Kill {
        at,
        times: 1,
        answered: 0,
    })
}

/// Lets the load go on where nobody is killed.
pub(super) fn rest_without_kills() -> Result<()> {
    let seconds = number("LAMINA_SECONDS")?;
    thread::sleep(seconds.map_or(NO_KILLS, Duration::from_secs));
    Ok(())
}

fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_micros()
}

pub(super) fn number(name: &str) -> Result<Option<u64>> {
    match env::var(name) {
        Ok(text) => Ok(Some(
            text.parse()
                .with_context(|| format!("{name} is no number"))?,
        )),
        Err(_) => Ok(None),
    }
}
