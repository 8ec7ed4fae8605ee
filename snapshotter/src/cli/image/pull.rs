//! `lamina image pull`: an image into containerd, for those who have no CRI.

use std::cell::RefCell;
use std::io::{IsTerminal as _, stderr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use lamina_snapshotter::config::Config;
use lamina_snapshotter::containerd::Options;
use lamina_snapshotter::pull::{self, Event, PullError, Step};
use lamina_snapshotter::registry::image::Layer;

use super::super::signals;
use super::super::status::size;
use super::registry;

/// The snapshotter where none is named.
const LAMINA: &str = "lamina";
/// So much of a layer's digest is shown: `sha256:` and twelve digits.
const NAME: usize = 19;
/// How often a row that waits moves.
const TICK: Duration = Duration::from_millis(100);
/// A row that says something.
const TOLD: &str = "{prefix} {msg}";
/// One that waits for something.
const BUSY: &str = "{prefix} {spinner} {msg}";
/// One whose bytes are counted.
const COUNTED: &str =
    "{prefix} {bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}";

pub(super) const EXAMPLES: &str = "Examples:
  lamina image pull docker.io/library/debian:12
  lamina image pull --namespace k8s.io r.example/team/app:1
  ctr run --snapshotter lamina --rm -t docker.io/library/debian:12 box";

/// Arguments of `lamina image pull`. The names are those of `ctr`.
#[derive(Args, Debug)]
pub(super) struct PullArgs {
    /// containerd's socket
    #[arg(
        short,
        long,
        value_name = "SOCKET",
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    address: PathBuf,
    /// containerd's namespace
    #[arg(
        short,
        long,
        value_name = "NAME",
        env = "CONTAINERD_NAMESPACE",
        default_value = "default"
    )]
    namespace: String,
    /// What containerd's configuration calls Lamina; with another snapshotter the image is unpacked
    #[arg(
        long,
        value_name = "NAME",
        env = "CONTAINERD_SNAPSHOTTER",
        default_value = LAMINA
    )]
    snapshotter: String,
    /// The image's name; of an image for several platforms, the one for this host's is taken
    image: String,
}

/// Runs the command.
pub(super) fn run(config: &Config, args: &PullArgs) -> Result<ExitCode> {
    // Empty, it means the default one with `ctr` too.
    let snapshotter = Some(args.snapshotter.as_str()).filter(|name| !name.is_empty());
    let options = Options {
        address: args.address.clone(),
        namespace: args.namespace.clone(),
        snapshotter: snapshotter.unwrap_or(LAMINA).to_owned(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let (registry, shown) = (registry(config), Shown::new());
    let pulled = runtime.block_on(async {
        let stop = signals::stop()?;
        let report = |event: Event<'_>| shown.tell(event);
        let pulled = pull::pull(&registry, &options, &args.image, stop, report);
        Ok::<_, anyhow::Error>(pulled.await)
    })?;
    // A thread that waits for a registry is not waited for.
    runtime.shutdown_background();
    shown.end();
    let failed = || format!("{} was not pulled", args.image);
    match pulled {
        Ok(pulled) => {
            println!(
                "{} is here: {} layers lazy, {} unpacked, {} were here before",
                pulled.name, pulled.lazy, pulled.unpacked, pulled.present
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(error @ PullError::Interrupted(signal)) => {
            eprintln!("lamina: {}: {error}", failed());
            // As a shell answers for a command that a signal has ended.
            Ok(ExitCode::from(if signal == "SIGINT" { 130 } else { 143 }))
        }
        Err(error) => Err(error).with_context(failed),
    }
}

/// What is told on standard error: on a terminal a row for each layer, elsewhere a line for each thing
/// that happens.
struct Shown {
    /// `None`: it is no terminal.
    bars: Option<MultiProgress>,
    rows: RefCell<Vec<Row>>,
}

/// One layer.
struct Row {
    name: String,
    bytes: u64,
    bar: Option<ProgressBar>,
}

impl Shown {
    fn new() -> Shown {
        Shown {
            bars: stderr().is_terminal().then(MultiProgress::new),
            rows: RefCell::default(),
        }
    }

    fn tell(&self, event: Event<'_>) {
        match event {
            Event::Layers(layers) => {
                let rows = layers.iter().map(|layer| self.row(layer));
                *self.rows.borrow_mut() = rows.collect();
            }
            Event::Layer { number, step } => {
                if let Some(row) = self.rows.borrow().get(number) {
                    row.tell(step);
                }
            }
        }
    }

    fn row(&self, layer: &Layer) -> Row {
        let name = layer.digest.to_string();
        let name = name.get(..NAME).unwrap_or(&name).to_owned();
        let bar = self.bars.as_ref().map(|bars| {
            let bar = ProgressBar::new(layer.size).with_prefix(name.clone());
            let bar = bars.add(bar.with_style(style(TOLD)));
            bar.set_message("waits");
            bar
        });
        Row {
            name,
            bytes: layer.size,
            bar,
        }
    }

    /// What is on the terminal stays there.
    fn end(&self) {
        let rows = self.rows.borrow();
        let bars = rows.iter().filter_map(|row| row.bar.as_ref());
        bars.for_each(ProgressBar::abandon);
    }
}

impl Row {
    fn tell(&self, step: Step) {
        let text = match step {
            Step::Present => "is here".to_owned(),
            Step::Asked => format!("asking for it ({})", size(self.bytes)),
            Step::Lazy => "lazy".to_owned(),
            Step::Downloaded(_) => format!("downloading {}", size(self.bytes)),
            Step::Unpacking => "unpacking".to_owned(),
            Step::Unpacked => "unpacked".to_owned(),
        };
        let Some(bar) = &self.bar else {
            if !matches!(step, Step::Downloaded(1..)) {
                eprintln!("{} {text}", self.name);
            }
            return;
        };
        match step {
            Step::Downloaded(bytes) => {
                bar.set_style(style(COUNTED));
                bar.set_position(bytes);
            }
            Step::Asked | Step::Unpacking => {
                bar.set_style(style(BUSY));
                bar.enable_steady_tick(TICK);
                bar.set_message(text);
            }
            Step::Present | Step::Lazy | Step::Unpacked => {
                bar.set_style(style(TOLD));
                bar.abandon_with_message(text);
            }
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_well_formed() {
        for template in [TOLD, BUSY, COUNTED] {
            ProgressStyle::with_template(template).expect(template);
        }
    }
}
