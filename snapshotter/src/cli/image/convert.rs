//! `lamina image convert`: an image in a format whose files can be had one by one.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use lamina_fusefs::blob::Limits;
use lamina_fusefs::blob::write;
use lamina_snapshotter::config::Config;
use lamina_snapshotter::lazy::convert;

use super::super::status::size;
use super::registry;

/// Arguments of `lamina image convert`.
#[derive(Args, Debug)]
pub(super) struct ConvertArgs {
    /// The image's name; of an image for several platforms, the one for this host's is taken
    source: String,
    /// The name of the new image, with a tag, in a registry
    target: String,
    /// The format of the new image
    #[arg(long, value_enum)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// gzip, which every container engine can pull; the layers' diff IDs change
    Estargz,
    /// zstd, smaller and faster; the layers' diff IDs stay
    ZstdChunked,
}

/// Runs the command.
pub(super) fn run(config: &Config, args: &ConvertArgs) -> Result<ExitCode> {
    let format = match args.format {
        Format::Estargz => write::Format::Estargz,
        Format::ZstdChunked => write::Format::ZstdChunked,
    };
    let converted = convert::convert(
        &registry(config),
        &args.source,
        &args.target,
        format,
        &Limits::default(),
        |layer| println!("reading {} ({})", layer.digest, size(layer.size)),
    );
    let converted = converted.with_context(|| format!("{} was not converted", args.source))?;
    for [(from, before), (to, after)] in &converted.layers {
        println!("{from} ({}) is now {to} ({})", size(*before), size(*after));
    }
    println!("{} is now {}", args.target, converted.manifest);
    Ok(ExitCode::SUCCESS)
}
