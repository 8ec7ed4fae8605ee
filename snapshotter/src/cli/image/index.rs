//! `lamina image index`: where in ordinary gzip layers each file is, for other hosts to know.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use lamina_fusefs::blob::Limits;
use lamina_snapshotter::config::Config;
use lamina_snapshotter::lazy::published;

use super::super::status::size;
use super::registry;

/// Arguments of `lamina image index`.
#[derive(Args, Debug)]
pub(super) struct IndexArgs {
    /// The image's name
    image: String,
}

/// Runs the command.
pub(super) fn run(config: &Config, args: &IndexArgs) -> Result<ExitCode> {
    let published = published::publish(
        &registry(config),
        &args.image,
        &Limits::default(),
        |layer| {
            println!("reading {} ({})", layer.digest, size(layer.size));
        },
    );
    let published = published.with_context(|| format!("{} was not indexed", args.image))?;
    for (layer, blob_bytes, index_bytes) in &published.layers {
        let (blob, index) = (size(*blob_bytes), size(*index_bytes));
        println!("{layer}: {blob}, its index {index}");
    }
    if published.left_out > 0 {
        println!(
            "{} layers are of formats that need no index, or can have none",
            published.left_out
        );
    }
    println!("{} now has the index {}", args.image, published.artifact);
    Ok(ExitCode::SUCCESS)
}
