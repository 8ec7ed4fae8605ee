//! `lamina serve`: configuration, logging and signals around the daemon.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use lamina_fusefs::memory;
use lamina_snapshotter::config::{Config, LogFormat};
use lamina_snapshotter::daemon::{self, ServeOptions, Stop};
use lamina_snapshotter::hold::Keeper;
use lamina_snapshotter::upper_mode::UpperMode;
use sd_notify::NotifyState;

use super::{PlaceArgs, logging, signals};

const EXAMPLES: &str = "Examples:
  lamina serve
  lamina serve --root /srv/lamina --address /run/lamina/second.sock --log-level debug
  LAMINA_LOG_FORMAT=json lamina serve --config ./lamina.toml

Flags override the environment, and that overrides the configuration file
(`lamina config default` prints one). SIGTERM stops the daemon and leaves
what containers use to the next one; SIGUSR2 leaves everything, for one that
comes at once (`lamina upgrade`); ctrl-C ends everything.";

/// Arguments of `lamina serve`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Threads that serve one mount [default: 2]
    #[arg(long, value_name = "N", env = "LAMINA_THREADS")]
    threads: Option<usize>,
    /// Let the kernel read and write regular files by itself where it can [default: true]
    #[arg(long, value_name = "BOOL", env = "LAMINA_PASSTHROUGH")]
    passthrough: Option<bool>,
    /// Let the kernel open the files of image mounts without asking [default: true]
    #[arg(long, value_name = "BOOL", env = "LAMINA_NO_OPEN")]
    no_open: Option<bool>,
    /// Who holds the upper of a new container: union or kernel [default: union]
    #[arg(long, value_name = "WHO", env = "LAMINA_UPPER")]
    upper: Option<UpperMode>,
    /// Keep what layers and images hold in indexes [default: true]
    #[arg(long, value_name = "BOOL", env = "LAMINA_INDEX")]
    index: Option<bool>,
    /// Copy up the attributes alone of a file of which nothing else changes [default: true]
    #[arg(long, value_name = "BOOL", env = "LAMINA_METACOPY")]
    metacopy: Option<bool>,
    /// Copy up only the blocks of a large file that are written [default: true]
    #[arg(long, value_name = "BOOL", env = "LAMINA_PARTIAL_COPY_UP")]
    partial_copy_up: Option<bool>,
    /// Who keeps the mounts of running containers while there is no daemon: auto, systemd, process or
    /// none [default: auto]
    #[arg(long, value_name = "WHO", env = "LAMINA_HOLDER")]
    holder: Option<Keeper>,
    /// How long a process does so, in seconds [default: 300]
    #[arg(long, value_name = "N", env = "LAMINA_HOLD_SECS")]
    hold_secs: Option<u64>,
    /// Serve layers without unpacking them, where containerd says which they are [default: true]
    #[arg(long, value_name = "BOOL", env = "LAMINA_LAZY")]
    lazy: Option<bool>,
    /// error, warn, info, debug or trace, or directives [default: info]
    #[arg(long, value_name = "LEVEL", env = "LAMINA_LOG_LEVEL")]
    log_level: Option<String>,
    /// How log lines look [default: text]
    #[arg(long, value_name = "FORMAT", env = "LAMINA_LOG_FORMAT")]
    log_format: Option<Format>,
}

/// The formats of a log line, as the command line names them.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

impl ServeArgs {
    fn load(&self) -> Result<Config> {
        let mut config = Config::load(self.place.config.as_deref())?;
        self.place.apply(&mut config);
        if let Some(threads) = self.threads {
            config.threads = threads;
        }
        if let Some(passthrough) = self.passthrough {
            config.passthrough = passthrough;
        }
        if let Some(no_open) = self.no_open {
            config.no_open = no_open;
        }
        if let Some(upper) = self.upper {
            config.upper = upper;
        }
        if let Some(index) = self.index {
            config.index = index;
        }
        if let Some(metacopy) = self.metacopy {
            config.metacopy = metacopy;
        }
        if let Some(partial) = self.partial_copy_up {
            config.partial_copy_up = partial;
        }
        if let Some(holder) = self.holder {
            config.holder = holder;
        }
        if let Some(seconds) = self.hold_secs {
            config.hold_secs = seconds;
        }
        if let Some(lazy) = self.lazy {
            config.lazy.enabled = lazy;
        }
        if let Some(level) = &self.log_level {
            config.log.level.clone_from(level);
        }
        if let Some(format) = self.log_format {
            config.log.format = match format {
                Format::Text => LogFormat::Text,
                Format::Json => LogFormat::Json,
            };
        }
        config.validate("command line or environment".as_ref())?;
        Ok(config)
    }
}

/// Runs the command: ends when a signal says so, or when serving is impossible.
pub(super) fn run(args: &ServeArgs) -> Result<ExitCode> {
    let config = args.load()?;
    logging::init(&config.log.level, config.log.format)?;
    let options = ServeOptions {
        holder: config.hold(),
        root: config.root,
        address: config.address,
        threads: config.threads,
        passthrough: config.passthrough,
        no_open: config.no_open,
        upper: config.upper,
        index: config.index,
        metacopy: config.metacopy,
        partial_copy_up: config.partial_copy_up,
        registry: config.lazy.registry(),
        cache: config.lazy.cache(),
        limits: config.lazy.limits.limits(),
        cri: config.lazy.cri(),
    };
    memory::tame();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let (stop, hand_over) = (signals::stop()?, signals::hand_over()?);
        let shutdown = async {
            let (signal, how) = tokio::select! {
                // Ctrl-C is somebody who wants it gone.
                signal = stop => (signal, match signal {
                    signals::INTERRUPT => Stop::End,
                    _ => Stop::Leave,
                }),
                () = hand_over => ("SIGUSR2", Stop::HandOver),
            };
            tracing::info!(signal, "stopping");
            notify(&[NotifyState::Stopping]);
            how
        };
        Box::pin(daemon::serve(options, ready, shutdown)).await?;
        tracing::info!("stopped");
        Ok(ExitCode::SUCCESS)
    })
}

/// Says that the socket answers, in the log and to systemd.
fn ready(options: &ServeOptions) {
    let (root, address) = (options.root.display(), options.address.display());
    tracing::info!(%root, %address, version = env!("CARGO_PKG_VERSION"), "ready");
    notify(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("serving {root} on {address}")),
    ]);
}

/// Tells systemd, if it wants to know.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}
