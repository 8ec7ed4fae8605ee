//! The results with every single measurement, for other programs.

use anyhow::Result;
use serde_json::{Value, json};

use super::cells;
use crate::race::Results;

/// The results, and for each row the medians, ratios and targets that the tables show.
pub fn json(results: &Results) -> Result<String> {
    let mut value = serde_json::to_value(results)?;
    for (number, row) in results.rows.iter().enumerate() {
        let cells = cells(results, row);
        let shown = cells.iter().map(|cell| {
            cell.as_ref().map_or(Value::Null, |cell| {
                json!({
                    "median": cell.median, "min": cell.min, "max": cell.max,
                    "ratio": cell.ratio, "met": cell.met,
                })
            })
        });
        value["rows"][number]["summary"] = shown.collect();
        value["rows"][number]["target"] = row.target.limit().into();
    }
    Ok(serde_json::to_string_pretty(&value)?)
}
