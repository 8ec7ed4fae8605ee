//! `lamina image`: images in a registry, what lies beside them, and pulling them into containerd.

mod convert;
mod index;
mod profile;
mod pull;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, Subcommand};
use lamina_snapshotter::config::Config;
use lamina_snapshotter::registry::Registry;

use super::PlaceArgs;

const EXAMPLES: &str = "Examples:
  lamina image pull r.example/team/app:1           into containerd, lazily
  lamina image index r.example/team/app:1          make its ordinary gzip layers lazy, for all hosts
  lamina image index r.example/app:1 --output DIR  the same without writing to the registry
  lamina image convert r.example/app:1 r.example/app:1-lazy --format zstd-chunked
  lamina image profile show r.example/team/app     what its containers open first
  lamina image profile push r.example/team/app:1   let other hosts know";

/// Arguments of `lamina image`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct ImageArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Pull it into containerd, without unpacking it where that is possible
    #[command(after_help = pull::EXAMPLES)]
    Pull(pull::PullArgs),
    /// Index its ordinary gzip layers, and put the index beside it in the registry
    #[command(visible_alias = "push")]
    Index(index::IndexArgs),
    /// Write it in a format whose files can be fetched one by one, as another image, for this host's
    /// platform only
    Convert(convert::ConvertArgs),
    /// What its containers open first
    #[command(subcommand)]
    Profile(profile::Action),
}

/// Runs the command.
pub(super) fn run(args: &ImageArgs) -> Result<ExitCode> {
    let config = args.place.load()?;
    match &args.action {
        Action::Pull(args) => pull::run(&config, args),
        Action::Index(args) => index::run(&config, args),
        Action::Convert(args) => convert::run(&config, args),
        Action::Profile(action) => profile::run(&config, action),
    }
}

/// The registries, as the daemon reaches them.
fn registry(config: &Config) -> Arc<Registry> {
    Arc::new(Registry::new(&config.lazy.registries()))
}
