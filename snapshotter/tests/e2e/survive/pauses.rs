//! How long a call took that met the death of the daemon, as the containers have measured it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::moments::{Kill, Micros};
use super::scene::report;

/// What begins so long after a death has nothing to do with it.
const AFTER: Micros = 5_000_000;

/// The longest call after each death.
#[derive(Default)]
pub(super) struct Pauses {
    alone: Longest,
    /// Daemons were killed before they answered.
    several: Longest,
}

#[derive(Default)]
struct Longest {
    each: Vec<Micros>,
    slowest: Vec<Micros>,
}

/// The slow calls of one container: when each began and how long it took.
type Calls = Vec<(Micros, Micros)>;

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
            let found: Vec<_> = found.collect();
            let kept = if kill.times == 1 {
                &mut self.alone
            } else {
                &mut self.several
            };
            kept.slowest.extend(found.iter().max());
            kept.each.extend(found);
        }
        Ok(())
    }

    /// Prints them: of each container, and of the one that waited longest.
    pub(super) fn tell(self) {
        let kinds = [
            ("one death", self.alone),
            ("several before a daemon answered", self.several),
        ];
        for (kind, found) in kinds {
            for (who, values) in [
                ("each container", found.each),
                ("the slowest", found.slowest),
            ] {
                if !values.is_empty() {
                    report(&format!("pauses, {kind}, of {who}: {}", spread(values)));
                }
            }
        }
    }
}

fn read(dir: &Path) -> Result<Vec<Calls>> {
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
        let parsed: Option<Calls> = text.lines().map(parse).collect();
        all.push(parsed.with_context(|| path.display().to_string())?);
    }
    Ok(all)
}

/// The longest of the calls that were under way at some time between these two; 0: none was slow.
fn longest(calls: &[(Micros, Micros)], from: Micros, until: Micros) -> Micros {
    let met = calls
        .iter()
        .filter(|(at, took)| *at < until && at + took > from);
    met.map(|(_, took)| *took).max().unwrap_or(0)
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
