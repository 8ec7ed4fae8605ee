//! `lamina status`: the snapshots, as a table for people or as JSON for programs.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use lamina_snapshotter::lazy::status::LayerStatus;
use lamina_snapshotter::status::{self, SnapshotStatus};

use super::PlaceArgs;

const EXAMPLES: &str = "Examples:
  lamina status
  lamina status --image 127.0.0.1:5000/app:1
  lamina status --json | jq -r '.snapshots[] | select(.kind == \"active\") | .key'";

/// Arguments of `lamina status`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Show the layers that were not unpacked instead: those of one image, or all
    #[arg(long, value_name = "IMAGE", num_args = 0..=1, default_missing_value = "")]
    image: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: &StatusArgs) -> Result<ExitCode> {
    let config = args.place.load()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    if let Some(image) = &args.image {
        let mut layers = runtime.block_on(status::layers(&config.address))?;
        layers.retain(|layer| image.is_empty() || layer.reference == *image);
        if args.json {
            println!("{}", serde_json::to_string_pretty(&layers)?);
        } else if layers.is_empty() {
            println!("no layers that were not unpacked");
        } else {
            println!("{}", layer_table(&layers));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let status = runtime.block_on(status::collect(&config.root, &config.address))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else if status.snapshots.is_empty() {
        // Not the root's name: a daemon that answered may have another root than the one given.
        println!("no snapshots");
    } else {
        println!("{}", table(&status.snapshots));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(snapshots: &[SnapshotStatus]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "ID", "KIND", "UPPER", "KEY", "PARENT", "SIZE", "INODES", "INDEX", "MOUNT", "CREATED",
    ]);
    for snapshot in snapshots {
        table.add_row([
            snapshot.id.to_string(),
            snapshot.kind.clone(),
            snapshot.upper.clone().unwrap_or_else(|| "-".to_owned()),
            printable(&snapshot.key),
            printable(snapshot.parent.as_deref().unwrap_or("-")),
            size(snapshot.size_bytes),
            snapshot.inodes.to_string(),
            indexed(snapshot).to_owned(),
            snapshot
                .mount
                .as_ref()
                .map_or_else(|| "-".to_owned(), |path| path.display().to_string()),
            snapshot.created.clone(),
        ]);
    }
    for column in [0, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn layer_table(layers: &[LayerStatus]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "ID", "IMAGE", "LAYER", "FORMAT", "VERDICT", "BLOB", "FILES", "CACHED", "FETCHED",
        "OPENED", "HIT", "SLOWEST",
    ]);
    for layer in layers {
        let hits = layer.opened.saturating_sub(layer.waited);
        table.add_row([
            layer.id.to_string(),
            printable(&layer.reference),
            printable(layer.digest.get(..19).unwrap_or(&layer.digest)),
            layer.format.clone(),
            layer.verdict.clone(),
            size(layer.blob_bytes),
            size(layer.file_bytes),
            percent(layer.cached_bytes, layer.file_bytes),
            size(layer.fetched_bytes),
            layer.opened.to_string(),
            percent(hits, layer.opened),
            format!("{} ms", layer.slowest_us.div_ceil(1000)),
        ]);
    }
    table
}

/// A part of a whole; all of nothing.
fn percent(part: u64, whole: u64) -> String {
    let percent = (u128::from(part) * 100).checked_div(u128::from(whole));
    format!("{} %", percent.unwrap_or(100))
}

/// Whether the union's image is known from an index.
fn indexed(snapshot: &SnapshotStatus) -> &'static str {
    match snapshot.indexed {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    }
}

/// A key is a client's text: what it holds may not reach the terminal as a command.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control();
            let plain = (!escaped).then_some(c);
            plain
                .into_iter()
                .chain(escaped.then(|| c.escape_default()).into_iter().flatten())
        })
        .collect()
}

/// A size for people, in binary units with three significant digits at most.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    // In tenths, so that no floating point is needed.
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths = tenths.div_ceil(1024);
        unit += 1;
    }
    let (whole, tenth) = (tenths / 10, tenths % 10);
    if unit == 0 || whole >= 100 {
        format!("{whole} {}", UNITS[unit])
    } else {
        format!("{whole}.{tenth} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (300 * 1024, "300 KiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_snapshot() {
        let snapshot = |id, key: &str, parent: Option<&str>| SnapshotStatus {
            key: key.to_owned(),
            id,
            kind: "active".to_owned(),
            parent: parent.map(str::to_owned),
            size_bytes: 4096,
            inodes: 2,
            upper: Some("kernel".to_owned()),
            mount: None,
            indexed: None,
            created: "2026-01-02T03:04:05Z".to_owned(),
        };
        let text = table(&[
            snapshot(1, "default/1/base", None),
            snapshot(20, "default/2/\u{1b}[31m", Some("default/1/base")),
        ])
        .to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].contains("PARENT"));
        assert!(
            lines[1].contains("active  kernel  default/1/base"),
            "{text}"
        );
        assert!(lines[1].contains("default/1/base") && lines[1].contains("4.0 KiB"));
        assert!(lines[2].contains(r"default/2/\u{1b}[31m"), "{text}");
    }
}
