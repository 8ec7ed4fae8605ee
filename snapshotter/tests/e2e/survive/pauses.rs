//! How long a call took that met the death of the daemon, as the containers have measured it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::moments::{Kill, Micros};
use super::scene::report;

/// What begins so long after a death has nothing to do with it.
const AFTER: Micros = 5_000_000;

/// The slow calls of each container that measures: when it began and how long it took.
pub(super) struct Pauses(Vec<Vec<(Micros, Micros)>>);

impl Pauses {
    pub(super) fn read(dir: &Path) -> Result<Pauses> {
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
            let parsed: Option<Vec<_>> = text.lines().map(parse).collect();
            all.push(parsed.with_context(|| path.display().to_string())?);
        }
        Ok(Pauses(all))
    }

    /// Prints how long the longest call took after each death: of each container, and of the one
    /// that waited longest. Daemons that were killed before they answered are on a line of their own.
    pub(super) fn tell(&self, kills: &[Kill]) {
        for (kind, many) in [
            ("one death", false),
            ("several before a daemon answered", true),
        ] {
            let (mut each, mut slowest) = (Vec::new(), Vec::new());
            for (number, kill) in kills.iter().enumerate() {
                if (kill.times > 1) != many {
                    continue;
                }
                let next = kills.get(number + 1).map_or(Micros::MAX, |next| next.at);
                let until = next.min(kill.at + AFTER);
                let longest = self.0.iter().map(|calls| longest(calls, kill.at, until));
                let longest: Vec<_> = longest.collect();
                slowest.extend(longest.iter().max());
                each.extend(longest);
            }
            if !slowest.is_empty() {
                report(&format!(
                    "pauses, {kind}, of each container: {}",
                    spread(each)
                ));
                report(&format!(
                    "pauses, {kind}, of the slowest: {}",
                    spread(slowest)
                ));
            }
        }
    }
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
