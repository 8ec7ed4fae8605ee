//! The results as a table on the terminal, as Markdown, as JSON and as a plot.

mod json;
mod markdown;
mod plot;
mod terminal;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

pub use json::json;
pub use markdown::markdown;
pub use plot::svg;
pub use terminal::table;

use crate::race::{Results, Row};

/// Writes `race.md`, `race.json` and `race.svg` into `dir`.
pub fn write(results: &Results, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    fs::write(dir.join("race.md"), markdown(results))?;
    fs::write(dir.join("race.json"), json(results)?)?;
    fs::write(dir.join("race.svg"), svg(results)?)?;
    Ok(())
}

/// Seconds in the unit in which they are easy to read.
fn seconds(seconds: f64) -> String {
    match seconds {
        _ if seconds >= 10.0 => format!("{seconds:.1} s"),
        _ if seconds >= 1.0 => format!("{seconds:.2} s"),
        _ if seconds >= 0.01 => format!("{:.0} ms", seconds * 1e3),
        _ => format!("{:.2} ms", seconds * 1e3),
    }
}

/// A ratio with as many digits as it deserves.
fn ratio(ratio: f64) -> String {
    match ratio {
        _ if ratio >= 10.0 => format!("{ratio:.0}"),
        _ if ratio >= 0.1 => format!("{ratio:.2}"),
        _ => format!("{ratio:.4}"),
    }
}

/// What a system reached in a row.
struct Cell {
    median: f64,
    min: f64,
    max: f64,
    ratio: Option<f64>,
    met: Option<bool>,
}

/// The cells of a row, one a system.
fn cells(results: &Results, row: &Row) -> Vec<Option<Cell>> {
    let cell = |system: usize| {
        let samples = &row.seconds[system];
        let ratio = results.ratio(row, system);
        let ours = results.systems[system].0.starts_with("lamina");
        let limit = row.target.limit().filter(|_| ours);
        Some(Cell {
            median: samples.median()?,
            min: samples.min()?,
            max: samples.max()?,
            ratio,
            met: limit.zip(ratio).map(|(limit, ratio)| ratio <= limit),
        })
    };
    (0..results.systems.len()).map(cell).collect()
}

#[cfg(test)]
mod tests;
