//! `lamina image index`: where in ordinary gzip layers each file is, for other hosts to know.

use std::path::PathBuf;
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
    /// Write the index into this new directory, as an OCI image layout, and leave the registry as it is
    #[arg(long, value_name = "DIR", conflicts_with = "input")]
    output: Option<PathBuf>,
    /// Read no layer: put the index into the registry that --output has written into this directory
    #[arg(long, value_name = "DIR")]
    input: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(config: &Config, args: &IndexArgs) -> Result<ExitCode> {
    let registry = registry(config);
    let image = &args.image;
    let failed = || format!("{image} was not indexed");
    if let Some(dir) = &args.input {
        let digest = published::push_from(&registry, image, dir).with_context(failed)?;
        println!("{image} now has the index {digest}");
        return Ok(ExitCode::SUCCESS);
    }
    let indexed = published::index(&registry, image, &Limits::default(), |layer| {
        println!("reading {} ({})", layer.digest, size(layer.size));
    });
    let indexed = indexed.with_context(failed)?;
    for (layer, blob_bytes, index_bytes) in &indexed.layers {
        let (blob, index) = (size(*blob_bytes), size(*index_bytes));
        println!("{layer}: {blob}, its index {index}");
    }
    if indexed.left_out > 0 {
        println!(
            "{} layers are of formats that need no index, or can have none",
            indexed.left_out
        );
    }
    let digest = indexed.artifact.digest();
    if let Some(dir) = &args.output {
        published::write_to(dir, &indexed).with_context(failed)?;
        println!("{} now holds the index {digest} of {image}", dir.display());
    } else {
        published::push(&registry, &indexed).with_context(failed)?;
        println!("{image} now has the index {digest}");
    }
    Ok(ExitCode::SUCCESS)
}
