//! The results as a table on the terminal, as Markdown, as JSON and as a plot.

mod curves;
mod json;
mod markdown;
mod plot;
mod terminal;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

pub use curves::{Curve, Titles, curves};
pub use json::json;
pub use markdown::markdown;
pub use plot::svg;
pub use terminal::table;

use crate::race::{Results, Row};
use crate::works::Target;

/// Writes `race.md`, `race.json` and `race.svg` into `dir`.
pub fn write(results: &Results, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    fs::write(dir.join("race.md"), markdown(results))?;
    fs::write(dir.join("race.json"), json(results)?)?;
    fs::write(dir.join("race.svg"), svg(results)?)?;
    Ok(())
}

/// A ratio with as many digits as it deserves.
fn ratio(ratio: f64) -> String {
    match ratio {
        _ if ratio >= 10.0 => format!("{ratio:.0}"),
        _ if ratio >= 0.1 => format!("{ratio:.2}"),
        _ => format!("{ratio:.4}"),
    }
}

/// What a row's target is, in words.
fn target(row: &Row) -> String {
    match row.target {
        Target::Absolute(limit) => row.unit.shown(limit),
        _ => row.target.limit().map(ratio).unwrap_or_default(),
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
        let samples = &row.samples[system];
        let ratio = results.ratio(row, system);
        let ours = results.systems[system].0.starts_with("lamina");
        let limit = row.target.limit().filter(|_| ours);
        let reached = match row.target {
            Target::Absolute(_) => samples.median(),
            _ => ratio,
        };
        Some(Cell {
            median: samples.median()?,
            min: samples.min()?,
            max: samples.max()?,
            ratio,
            met: limit.zip(reached).map(|(limit, reached)| reached <= limit),
        })
    };
    (0..results.systems.len()).map(cell).collect()
}

#[cfg(test)]
mod tests;
