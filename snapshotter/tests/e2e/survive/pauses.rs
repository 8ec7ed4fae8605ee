//! How long a call took that met the death of the daemon, as the containers have measured it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::moments::{Kill, Micros};
use super::scene::report;

/// What begins so long after a death has nothing to do with it.
const AFTER: Micros = 5_000_000;

/// The longest call of a container after each death.
#[derive(Default)]
pub(super) struct Pauses {
    /// It met one death.
    alone: Longest,
    /// It met several: daemons were killed before they had answered it.
    several: Longest,
    /// From a death until the socket of the next daemon answered.
    sockets: Vec<Micros>,
}

#[derive(Default)]
struct Longest {
    each: Vec<Micros>,
    slowest: Vec<Micros>,
}

/// When a call began and how long it took.
type Call = (Micros, Micros);

impl Pauses {
    /// Adds what the containers have written there, who have seen these deaths.
    pub(super) fn add(&mut self, dir: &Path, kills: &[Kill]) -> Result<()> {
        let containers = read(dir)?;
        for (number, kill) in kills.iter().enumerate() {
            let next = kills.get(number + 1).map_or(Micros::MAX, |next| next.at);
            let until = next.min(kill.at + AFTER);
            let found = containers
                .iter()
                .map(|calls| longest(calls, kill.at, until));
            let found: Vec<Call> = found.collect();
            for (_, took) in &found {
                self.of(&found, kill, kills).each.push(*took);
            }
            let slowest = found.iter().map(|(_, took)| *took).max();
            self.of(&found, kill, kills).slowest.extend(slowest);
            if kill.times == 1 {
                self.sockets.push(kill.answered);
            }
        }
        Ok(())
    }

    /// Where the pauses after this death belong.
    fn of(&mut self, calls: &[Call], kill: &Kill, kills: &[Kill]) -> &mut Longest {
        let met = |(at, took): &Call| {
            let met = kills
                .iter()
                .filter(|kill| *at < kill.at && kill.at < at + took);
            met.count() > 1
        };
        if kill.times > 1 || calls.iter().any(met) {
            &mut self.several
        } else {
            &mut self.alone
        }
    }

    /// Prints them: of each container, and of the one that waited longest.
    pub(super) fn tell(self) {
        let lines = [
            ("pauses, one death, of each container", self.alone.each),
            ("pauses, one death, of the slowest", self.alone.slowest),
            (
                "pauses, several deaths, of each container",
                self.several.each,
            ),
            (
                "pauses, several deaths, of the slowest",
                self.several.slowest,
            ),
            ("until the next daemon's socket answers", self.sockets),
        ];
        for (what, values) in lines {
            if !values.is_empty() {
                report(&format!("{what}: {}", spread(values)));
            }
        }
    }
}

fn read(dir: &Path) -> Result<Vec<Vec<Call>>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_none_or(|extension| extension != "pauses")
        {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let parse = |line: &str| {
            let (at, took) = line.split_once(' ')?;
            Some((at.parse().ok()?, took.parse().ok()?))
        };
        let parsed: Option<Vec<Call>> = text.lines().map(parse).collect();
        all.push(parsed.with_context(|| path.display().to_string())?);
    }
    Ok(all)
}

/// The longest of the calls that were under way at some time between these two; none was slow:
/// one that took no time.
fn longest(calls: &[Call], from: Micros, until: Micros) -> Call {
    let met = calls
        .iter()
        .filter(|(at, took)| *at < until && at + took > from);
    met.max_by_key(|(_, took)| *took)
        .copied()
        .unwrap_or((from, 0))
}

/// Some quantiles, in milliseconds.
#[allow(clippy::cast_precision_loss, reason = "no pause is that long")]
fn spread(mut values: Vec<Micros>) -> String {
    values.sort_unstable();
    let at = |percent: usize| {
        let index = (values.len() * percent).div_ceil(100).max(1) - 1;
        values[index] as f64 / 1000.0
    };
    format!(
        "p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms, of {}",
        at(50),
        at(90),
        at(99),
        at(100),
        values.len()
    )
}
