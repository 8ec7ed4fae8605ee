//! The results as a section of docs/benchmarks.md.

use std::fmt::Write;

use super::{Cell, cells, ratio, target};
use crate::race::Results;
use crate::stats::Unit;

/// The machine, the versions, and the table.
pub fn markdown(results: &Results) -> String {
    let mut text = String::new();
    let host = &results.host;
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "{}, Linux {}, {} × {}, {} MiB of memory, {}; load {} when it began. Image {}, scale {}, \
         {} rounds.\n",
        host.date,
        host.kernel,
        host.cpus,
        host.cpu,
        host.memory,
        host.filesystem,
        host.load,
        results.image,
        results.scale,
        results.rounds,
    );
    for (name, version) in &results.systems {
        let _ = writeln!(text, "- {name}: {version}");
    }
    text.push_str("\n| work |");
    for (name, _) in &results.systems {
        let _ = write!(text, " {name} |");
    }
    text.push_str(" target | met |\n| --- |");
    text.push_str(&" --- |".repeat(results.systems.len() + 2));
    text.push('\n');
    for row in &results.rows {
        let cells = cells(results, row);
        let _ = write!(text, "| {} |", row.title);
        for cell in &cells {
            let _ = write!(text, " {} |", shown(row.unit, cell.as_ref()));
        }
        let _ = writeln!(text, " {} | {} |", target(row), met(results, &cells));
    }
    for failure in &results.failures {
        let _ = writeln!(text, "\nWrong result: {failure}");
    }
    if results.interrupted {
        text.push_str("\nThe race was stopped before its end.\n");
    }
    text
}

/// Ratio, median and spread.
fn shown(unit: Unit, cell: Option<&Cell>) -> String {
    let Some(cell) = cell else {
        return "–".to_owned();
    };
    let median = unit.shown(cell.median);
    let spread = format!("{} … {}", unit.shown(cell.min), unit.shown(cell.max));
    match cell.ratio {
        Some(number) => format!("**{}** {median} ({spread})", ratio(number)),
        None => format!("{median} ({spread})"),
    }
}

/// Which systems that have a target met it.
fn met(results: &Results, cells: &[Option<Cell>]) -> String {
    let met = results
        .systems
        .iter()
        .zip(cells)
        .filter_map(|((name, _), cell)| {
            let met = cell.as_ref()?.met?;
            Some((name, if met { "yes" } else { "**no**" }))
        });
    let met: Vec<_> = met.collect();
    match met.as_slice() {
        [(_, only)] => (*only).to_owned(),
        many => many
            .iter()
            .map(|(name, met)| format!("{name}: {met}"))
            .collect::<Vec<_>>()
            .join(", "),
    }
}
