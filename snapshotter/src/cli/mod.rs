//! The command line: one file for each command, and what they share.
//!
//! - `serve` is the daemon that containerd talks to, `hold` keeps for it what must outlive it, `upgrade`
//!   puts another build in its place.
//! - `mount` is a union without containerd (`mount_options` reads its `-o`).
//! - `status` and `check` look at a root, for people and for programs.
//! - `cache` is for the files of lazy layers.
//! - `image` is for images in a registry, and pulls them into containerd.
//! - `bench` races against overlayfs on this host.
//! - `config` prints files to begin with: ours, containerd's, systemd's.
//!
//! Only this part of the program talks to the user; the library returns values and errors.

mod bench;
mod cache;
mod check;
mod config;
mod hold;
mod image;
mod logging;
mod mount;
mod mount_options;
mod serve;
mod signals;
mod status;
mod upgrade;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use lamina_snapshotter::config::{Config, ConfigError};

const EXAMPLES: &str = "Examples:
  lamina serve                                  the daemon, with /etc/lamina/config.toml
  lamina config containerd                      what to put into containerd's configuration
  lamina status                                 what snapshots there are
  lamina mount -o lowerdir=/b:/a /mnt           a union without containerd
  lamina completions bash > /etc/bash_completion.d/lamina

`lamina COMMAND --help` shows examples for each command.";

/// A containerd snapshotter that serves container root file systems from its own FUSE union.
#[derive(Debug, Parser)]
#[command(name = "lamina", version, about, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve snapshots to containerd
    Serve(serve::ServeArgs),
    /// Mount layers and an upper as one tree, by fuse-overlayfs's command line
    Mount(mount::MountArgs),
    /// Replace the running daemon by this program, under running containers
    Upgrade(upgrade::UpgradeArgs),
    /// Show the snapshots of a running daemon
    Status(status::StatusArgs),
    /// Compare the metadata of a root with what lies on disk
    Check(check::CheckArgs),
    /// Look at the cache of lazy layers, make it smaller, or verify it
    Cache(cache::CacheArgs),
    /// Pull an image into containerd, index or convert it, or look at what its containers open first
    Image(image::ImageArgs),
    /// Race against overlayfs on this host: a table in about five minutes
    Bench(bench::BenchArgs),
    /// Keep the descriptors of a daemon that may be killed; the daemon starts this by itself
    #[command(hide = true)]
    Hold(hold::HoldArgs),
    /// Print configuration files to begin with
    Config(config::ConfigArgs),
    /// Print the version
    Version,
    /// Print a completion script for a shell
    #[command(after_help = "Examples:
  lamina completions bash > /etc/bash_completion.d/lamina
  lamina completions zsh > /usr/share/zsh/site-functions/_lamina")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Where the daemon's things are: the same flags for every command that needs to know.
#[derive(Args, Debug)]
struct PlaceArgs {
    /// Where snapshots and their metadata live [default: /var/lib/lamina]
    #[arg(long, value_name = "DIR", env = "LAMINA_ROOT")]
    root: Option<PathBuf>,
    /// The socket that containerd talks to [default: /run/lamina/lamina.sock]
    #[arg(long, value_name = "SOCKET", env = "LAMINA_ADDRESS")]
    address: Option<PathBuf>,
    /// The configuration file [default: /etc/lamina/config.toml, if it exists]
    #[arg(long, value_name = "FILE", env = "LAMINA_CONFIG")]
    config: Option<PathBuf>,
}

impl PlaceArgs {
    /// The file's configuration, with flags and environment on top.
    fn load(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(self.config.as_deref())?;
        self.apply(&mut config);
        config.validate(Path::new("command line or environment"))?;
        Ok(config)
    }

    fn apply(&self, config: &mut Config) {
        if let Some(root) = &self.root {
            config.root.clone_from(root);
        }
        if let Some(address) = &self.address {
            config.address.clone_from(address);
        }
    }
}

/// Parses `args` and runs the command.
pub(crate) fn run(args: Vec<OsString>) -> Result<ExitCode> {
    let cli = Cli::parse_from(as_lamina(args));
    match &cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Mount(args) => mount::run(args),
        Command::Status(args) => status::run(args),
        Command::Upgrade(args) => upgrade::run(args),
        Command::Check(args) => check::run(args),
        Command::Cache(args) => cache::run(args),
        Command::Image(args) => image::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Hold(args) => hold::run(args),
        Command::Config(args) => config::run(args),
        Command::Version => Ok(version()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "lamina", &mut script);
            io::Write::write_all(&mut io::stdout().lock(), &script)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn version() -> ExitCode {
    println!("lamina {}", env!("CARGO_PKG_VERSION"));
    ExitCode::SUCCESS
}

/// Puts `mount` into the arguments of whoever takes us for a mount program: called as
/// `mount.lamina` or `fuse-overlayfs`, or with `-o` as the first argument.
fn as_lamina(mut args: Vec<OsString>) -> Vec<OsString> {
    let name = args
        .first()
        .and_then(|path| Path::new(path).file_name())
        .map(OsStr::to_string_lossy)
        .unwrap_or_default();
    let by_name = name.starts_with("mount.") || name.contains("fuse-overlayfs");
    let by_option = args
        .get(1)
        .is_some_and(|arg| arg.as_encoded_bytes().starts_with(b"-o"));
    if by_name || by_option {
        args.insert(1, "mount".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn names_and_o_mean_mount() {
        let parse = |args: &[&str]| {
            let args = args.iter().map(OsString::from).collect();
            Cli::try_parse_from(as_lamina(args)).map(|cli| cli.command)
        };
        for args in [
            &["lamina", "mount", "-o", "lowerdir=/a", "/mnt"][..],
            &[
                "/usr/sbin/mount.lamina",
                "box",
                "/mnt",
                "-n",
                "-t",
                "lamina",
                "-o",
                "ro",
            ],
            &[
                "fuse-overlayfs",
                "-f",
                "-d",
                "-olowerdir=/a",
                "-o",
                "ro",
                "/mnt",
            ],
            &["fuse-overlayfs", "--version"],
            &["/usr/bin/lamina", "-o", "lowerdir=/a", "/mnt"],
        ] {
            assert!(matches!(parse(args), Ok(Command::Mount(_))), "{args:?}");
        }
        assert!(matches!(
            parse(&["lamina", "version"]),
            Ok(Command::Version)
        ));
        assert!(parse(&["lamina", "mount"]).is_err());
        assert!(parse(&["lamina"]).is_err());
    }

    #[test]
    fn flags_override_the_file() {
        let mut config = Config::parse("root = \"/file\"", Path::new("f")).unwrap();
        let place = PlaceArgs {
            root: Some("/flag".into()),
            address: None,
            config: None,
        };
        place.apply(&mut config);
        assert_eq!(config.root, Path::new("/flag"));
        assert_eq!(config.address, Config::default().address);
    }
}
