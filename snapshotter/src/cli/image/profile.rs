//! `lamina image profile`: what the containers of an image open first.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use lamina_snapshotter::config::Config;
use lamina_snapshotter::lazy::profile::{self, Profile};
use lamina_snapshotter::lazy::share;
use lamina_snapshotter::store::layout::Layout;

use super::super::status::size;
use super::registry;

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show the profile of an image's repository on this host
    Show(ShowArgs),
    /// Put it beside the image in the registry
    Push(NameArgs),
    /// Take the one beside the image in the registry along with what this host has seen
    Pull(NameArgs),
}

/// Arguments of `lamina image profile show`.
#[derive(Args, Debug)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An image.
#[derive(Args, Debug)]
pub(super) struct NameArgs {
    /// The image's name
    image: String,
}

/// Runs the command.
pub(super) fn run(config: &Config, action: &Action) -> Result<ExitCode> {
    let dir = Layout::of(&config.root)?.profiles();
    let read = |name: &str| -> Result<(Option<Profile>, String)> {
        let (_, repository) = share::repository_of_name(name)?;
        Ok((profile::read(&dir, &repository)?, repository))
    };
    match action {
        Action::Show(args) => {
            let (found, repository) = read(&args.name.image)?;
            let Some(profile) = found else {
                bail!("{repository}: no container of it was seen to start on this host");
            };
            if args.json {
                println!("{}", serde_json::to_string_pretty(&profile)?);
            } else {
                show(&profile);
            }
        }
        Action::Push(args) => {
            let (found, repository) = read(&args.image)?;
            let Some(profile) = found else {
                bail!("{repository}: no container of it was seen to start on this host");
            };
            let registry = registry(config);
            let pushed = registry
                .image(&args.image)
                .and_then(|image| share::push(&registry, &image, &profile));
            let digest =
                pushed.with_context(|| format!("the profile of {} was not pushed", args.image))?;
            println!("{} now has the profile {digest}", args.image);
        }
        Action::Pull(args) => {
            let registry = registry(config);
            let pulled = registry
                .image(&args.image)
                .and_then(|image| share::pull(&registry, &image));
            let pulled =
                pulled.with_context(|| format!("the profile of {} was not pulled", args.image))?;
            let Some(pulled) = pulled else {
                bail!(
                    "{}: there is no profile beside it in the registry",
                    args.image
                );
            };
            let (known, repository) = read(&args.image)?;
            let mut profile = known.unwrap_or_else(|| Profile::new(&repository));
            profile.merge(&pulled);
            profile::write(&dir, &profile)?;
            show(&profile);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(profile: &Profile) {
    let wanted = profile.wanted();
    let files = profile.files.iter();
    let bytes = files
        .filter(|file| wanted.contains(&file.digest))
        .map(|file| file.size)
        .sum();
    println!("{}: {} runs", profile.repository, profile.runs);
    println!("fetched first: {} files, {}", wanted.len(), size(bytes));
    for file in &profile.files {
        println!(
            "{}  {} of {} runs  {}",
            file.digest,
            file.runs,
            profile.runs,
            size(file.size)
        );
    }
}
