//! How much of the link is used while an image is fetched as a whole, and nothing else is done.

use anyhow::{Context as _, Result};
use lamina_snapshotter::upper_mode::UpperMode;
use rustix::fs::sync;

use crate::harness::{Host, Packing, Proxy};
use crate::images::Images;
use crate::starts::{IMPORT, LINK, QUIET, WATCH_LIMIT};
use crate::watch::Watch;
use crate::{Arguments, say};

/// Name, repository.
const FORMATS: [(&str, &str); 3] = [
    ("eStargz", "estargz"),
    ("zstd:chunked", "zstd-chunked"),
    ("gzip with an index in the registry", "gzip"),
];

/// Makes the images, and measures that alone.
pub(crate) fn measure_alone(asked: &Arguments) -> Result<()> {
    let images = Images::pack(&asked.archive, &Packing::ALL, Some(IMPORT.script))?;
    measure(&images, asked.rounds)
}

/// Pulls each format so many times, starts nothing, and prints the least that was used of the link.
pub(crate) fn measure(images: &Images, rounds: usize) -> Result<()> {
    say("");
    say("While all of an image is fetched and no container runs, from the end of the pull on:");
    say("");
    say("| image | bytes | seconds | link used |");
    say("| --- | ---: | ---: | ---: |");
    for (name, image) in FORMATS {
        let mut worst: Option<(f64, f64, u64)> = None;
        for _ in 0..rounds {
            let host = Host::start_configured(UpperMode::Union, "[lazy]\nindexes = [\"*\"]\n")?;
            let proxy = Proxy::start_behind(images.registry.port(), Some(LINK))?;
            // Nothing of what was before is written meanwhile.
            sync();
            host.ctr.rpull(&format!("{}/{image}:t", proxy.address()))?;
            let samples = Watch::begin(&proxy).until_quiet(QUIET, WATCH_LIMIT)?;
            let (end, bytes) = samples.last().copied().context("nothing came")?;
            let seconds = end.as_secs_f64();
            let share = bytes as f64 / seconds / LINK.rate as f64;
            if worst.is_none_or(|worst| share < worst.0) {
                worst = Some((share, seconds, bytes));
            }
        }
        let (share, seconds, bytes) = worst.context("no rounds")?;
        say(&format!(
            "| {name} | {:.1} MB | {seconds:.2} | {:.0} % |",
            bytes as f64 / 1e6,
            100.0 * share
        ));
    }
    Ok(())
}
