//! The table on the terminal.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Color, ContentArrangement, Table};

use super::{Cell, cells, ratio, target};
use crate::race::Results;
use crate::stats::Unit;

/// One line a work: median, spread, and ratio to overlayfs of each system, and the target.
pub fn table(results: &Results) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    let mut header = vec!["work".to_owned()];
    header.extend(results.systems.iter().map(|(name, _)| name.clone()));
    header.push("target".to_owned());
    table.set_header(header);
    for row in &results.rows {
        let mut line = vec![comfy_table::Cell::new(row.title)];
        let cells = cells(results, row);
        line.extend(cells.iter().map(|shown| cell(row.unit, shown.as_ref())));
        line.push(comfy_table::Cell::new(target(row)));
        table.add_row(line);
    }
    table
}

fn cell(unit: Unit, cell: Option<&Cell>) -> comfy_table::Cell {
    let Some(cell) = cell else {
        return comfy_table::Cell::new("–");
    };
    let mut text = format!(
        "{}\n{} … {}",
        unit.shown(cell.median),
        unit.shown(cell.min),
        unit.shown(cell.max)
    );
    if let Some(number) = cell.ratio {
        text = format!("{}×  {text}", ratio(number));
    }
    let shown = comfy_table::Cell::new(text).set_alignment(CellAlignment::Right);
    match cell.met {
        Some(true) => shown.fg(Color::Green),
        Some(false) => shown.fg(Color::Red),
        None => shown,
    }
}
