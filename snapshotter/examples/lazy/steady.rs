//! What it costs later that an image was pulled lazily: the same work in containers of an image that
//! Lamina has unpacked, and of the same image whose files have all come into the cache.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lamina_snapshotter::upper_mode::UpperMode;
use rustix::fs::sync;

use crate::harness::{Host, Packing, wait_for};
use crate::images::Images;
use crate::{Arguments, median, say};

/// How long the cache may take to fill.
const FILL_LIMIT: Duration = Duration::from_mins(3);

/// What is done in a container, and its name in the table.
const WORKS: [(&str, &str); 4] = [
    ("find", "find / -xdev > /dev/null"),
    (
        "find with stat",
        r"find / -xdev -printf '%s %m %T@\n' > /dev/null",
    ),
    (
        "all files read",
        "find / -xdev -type f -exec cat {} + > /dev/null",
    ),
    (
        "files below 4 KiB opened and read",
        "find / -xdev -type f -size -8 -exec cat {} + > /dev/null",
    ),
];

/// How often each work is done in a container: cold, then warm.
const STATES: [&str; 2] = ["cold", "warm"];

/// Times each work, cold and warm, in turn.
pub(crate) fn measure(asked: &Arguments) -> Result<()> {
    let images = Images::pack(&asked.archive, &[Packing::Gzip, Packing::Estargz], None)?;
    let host = Host::start_configured(UpperMode::Union, "[lazy]\nfill = true\n")?;
    let image = |name: &str| format!("{}/{name}:t", images.registry.address());
    let (unpacked, lazy) = (image("gzip"), image("estargz"));
    host.ctr.pull(&unpacked)?;
    host.ctr.rpull(&lazy)?;
    let lamina = host.lamina.as_ref().context("Lamina is not chosen")?;
    let mut last = None;
    wait_for("the image has come", FILL_LIMIT, || {
        let come = lamina.has_all_layers();
        let is_done = matches!(come, Ok(true));
        last = come.err();
        is_done
    })
    .with_context(|| format!("the last answer: {last:?}"))?;

    // By work and state: the times of both images.
    let mut taken = vec![[Vec::new(), Vec::new()]; WORKS.len() * STATES.len()];
    for round in 0..asked.rounds {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let name = [&unpacked, &lazy][which];
            let id = format!("steady-{round}-{which}");
            host.ctr.start(&id, name, "true")?;
            for (place, times) in taken.iter_mut().enumerate() {
                let (work, state) = (WORKS[place / STATES.len()], place % STATES.len());
                if state == 0 {
                    sync();
                    fs::write("/proc/sys/vm/drop_caches", "3")?;
                }
                times[which].push(time(&host, &id, work.1)?);
            }
            host.ctr.stop_task(&id)?;
            host.ctr.delete(&id)?;
        }
    }
    say(&format!(
        "In containers of an image that Lamina has unpacked, and of the same one pulled lazily, of which all \
         has come (medians of {}):",
        asked.rounds
    ));
    say("");
    say("| work | unpacked | lazily, all here | ratio |");
    say("| --- | ---: | ---: | ---: |");
    for (place, [unpacked, lazy]) in taken.iter().enumerate() {
        let middle = |all: &[Duration]| median(all.iter().copied()).as_secs_f64();
        let (unpacked, lazy) = (middle(unpacked), middle(lazy));
        say(&format!(
            "| {}, {} | {:.0} ms | {:.0} ms | {:.2} |",
            WORKS[place / STATES.len()].0,
            STATES[place % STATES.len()],
            1e3 * unpacked,
            1e3 * lazy,
            lazy / unpacked
        ));
    }
    Ok(())
}

/// How long a work takes, by the container's own clock, so that starting a process in it counts for
/// nothing.
fn time(host: &Host, id: &str, work: &str) -> Result<Duration> {
    let script = format!("a=$(date +%s%N); {work}; b=$(date +%s%N); echo $((b - a))");
    let nanos = host.ctr.exec(id, &script)?;
    Ok(Duration::from_nanos(nanos.trim().parse()?))
}
