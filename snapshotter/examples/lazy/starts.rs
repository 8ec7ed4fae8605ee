//! Who is timed, and how one start is.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use lamina_snapshotter::upper_mode::UpperMode;
use rustix::fs::sync;

use crate::harness::{Fault, Host, Link, Packing, Proxy, Registry, Stargz, wait_for};
use crate::images::{Images, OPTIMIZED};
use crate::watch::{Samples, Watch};
use crate::{Arguments, fill, needs, report, say};

/// The link: 50 MB/s, 20 ms.
pub(crate) const LINK: Link = Link {
    round_trip: Duration::from_millis(20),
    rate: 50_000_000,
};
/// How long a link is looked at, however long things go on to come.
pub(crate) const WATCH_LIMIT: Duration = Duration::from_secs(20);

/// The filler stands back at times, but not for so long.
pub(crate) const QUIET: Duration = Duration::from_secs(3);

/// What a container does, and its first line.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) struct Task {
    pub(crate) script: &'static str,
    line: &'static str,
}

/// A program starts.
pub(crate) const IMPORT: Task = Task {
    script: "exec python3 -c 'import numpy; print(int(numpy.arange(5).sum()))'",
    line: "10",
};
/// All of the image is read.
const READ_ALL: Task = Task {
    script: "find / -xdev -type f -exec cat {} + > /dev/null; echo read",
    line: "read",
};

/// Which snapshotter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Who {
    Overlayfs,
    /// stargz-snapshotter as it is by default, which prefetches, and fetches the rest later.
    Stargz,
    Lamina {
        /// Whether the whole image is fetched at the same time.
        fills: bool,
    },
}

const FILLS: Who = Who::Lamina { fills: true };
const FILLS_NOT: Who = Who::Lamina { fills: false };

/// Who is timed.
#[derive(Clone, Copy)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    /// The repository of the image.
    pub(crate) image: &'static str,
    pub(crate) who: Who,
    /// Whether the host has run the image before, and has nothing left of it but its profile.
    pub(crate) has_profile: bool,
    /// Whether the host believes the index that lies beside the image.
    pub(crate) has_index: bool,
}

const CONTENDERS: [Contender; 19] = [
    contender(
        "overlayfs, gzip: pulled and unpacked",
        "gzip",
        Who::Overlayfs,
    ),
    contender(
        "stargz-snapshotter, eStargz with its files first",
        OPTIMIZED,
        Who::Stargz,
    ),
    contender("stargz-snapshotter, eStargz", "estargz", Who::Stargz),
    contender("Lamina, eStargz with its files first", OPTIMIZED, FILLS),
    contender("Lamina, the same, not filled", OPTIMIZED, FILLS_NOT),
    contender("Lamina, eStargz", "estargz", FILLS),
    contender("Lamina, eStargz, not filled", "estargz", FILLS_NOT),
    contender("Lamina, zstd:chunked", "zstd-chunked", FILLS),
    contender(
        "Lamina, zstd:chunked, not filled",
        "zstd-chunked",
        FILLS_NOT,
    ),
    contender("Lamina, eStargz with a profile", "estargz", FILLS).with_profile(),
    contender(
        "Lamina, eStargz with a profile, not filled",
        "estargz",
        FILLS_NOT,
    )
    .with_profile(),
    contender("Lamina, zstd:chunked with a profile", "zstd-chunked", FILLS).with_profile(),
    contender("Lamina, the same, not filled", "zstd-chunked", FILLS_NOT).with_profile(),
    contender("Lamina, gzip with an index in the registry", "gzip", FILLS).with_index(),
    contender("Lamina, the same, not filled", "gzip", FILLS_NOT).with_index(),
    contender("Lamina, gzip with an index and a profile", "gzip", FILLS)
        .with_index()
        .with_profile(),
    contender("Lamina, gzip: first pull ever", "gzip", FILLS_NOT),
    contender("Lamina, zstd: first pull ever", "zstd", FILLS_NOT),
    contender("Lamina, plain tar: first pull ever", "tar", FILLS_NOT),
];

const fn contender(name: &'static str, image: &'static str, who: Who) -> Contender {
    Contender {
        name,
        image,
        who,
        has_profile: false,
        has_index: false,
    }
}

impl Contender {
    const fn with_profile(self) -> Contender {
        Contender {
            has_profile: true,
            ..self
        }
    }

    const fn with_index(self) -> Contender {
        Contender {
            has_index: true,
            ..self
        }
    }

    /// Whether stargz-snapshotter can do the same, or overlayfs is asked to.
    fn reads_all(&self) -> bool {
        let is_estargz = self.image == "estargz" || self.image == OPTIMIZED;
        match self.who {
            Who::Overlayfs => true,
            who => is_estargz && !self.has_profile && who != FILLS_NOT,
        }
    }
}

/// What one start took.
pub(crate) struct Taken {
    pub(crate) pull: Duration,
    pub(crate) first_line: Duration,
    /// Bytes that had come until then.
    pub(crate) bytes: u64,
    /// What came when, also afterwards.
    pub(crate) samples: Samples,
}

/// A contender, and all its starts.
pub(crate) struct Raced {
    pub(crate) contender: Contender,
    pub(crate) taken: Vec<Taken>,
}

/// Starts all, and prints and writes down what it took.
pub(crate) fn measure(asked: &Arguments) -> Result<()> {
    let peer = Stargz::binary();
    if peer.is_none() {
        say("stargz-snapshotter is left out: STARGZ_BIN names no program");
    }
    let mut contenders = CONTENDERS.to_vec();
    contenders.retain(|one| one.who == Who::Overlayfs || one.name.contains(&asked.only));
    contenders.retain(|one| one.who != Who::Stargz || peer.is_some());
    let images = Images::pack(&asked.archive, &Packing::ALL, Some(IMPORT.script))?;
    let needs = needs::measure(&images, IMPORT.script)?;
    say(&format!(
        "Each starts on a host that has nothing, over a link of {} MB/s and {} ms, {} times",
        LINK.rate / 1_000_000,
        LINK.round_trip.as_millis(),
        asked.rounds
    ));
    let mut starts = raced(&contenders);
    contenders.retain(Contender::reads_all);
    let mut reads = raced(&contenders);
    for _ in 0..asked.rounds {
        for (all, task) in [(&mut starts, IMPORT), (&mut reads, READ_ALL)] {
            for raced in all {
                let taken = start(raced.contender, task, &images.registry)?;
                raced.taken.push(taken);
            }
        }
    }
    report::show(&starts, &reads, &needs);
    fill::measure(&images, asked.rounds)?;
    report::write(&starts, &reads, &needs, asked)
}

fn raced(contenders: &[Contender]) -> Vec<Raced> {
    let raced = |contender: &Contender| Raced {
        contender: *contender,
        taken: Vec::new(),
    };
    contenders.iter().map(raced).collect()
}

/// One start on a host that has nothing; a lazy image is then started once more without a network.
fn start(contender: Contender, task: Task, registry: &Registry) -> Result<Taken> {
    let fills = contender.who == FILLS;
    let indexes = if contender.has_index { "\"*\"" } else { "" };
    let config = format!("[lazy]\nfill = {fills}\nindexes = [{indexes}]\n");
    let peer = Stargz::binary().filter(|_| contender.who == Who::Stargz);
    let mut host = Host::start_beside(UpperMode::Union, &config, peer.as_deref())?;
    let proxy = Proxy::start_behind(registry.port(), Some(LINK))?;
    let image = format!("{}/{}:t", proxy.address(), contender.image);
    if contender.has_profile {
        run_and_remove(&mut host, &image)?;
    }
    let ctr = match contender.who {
        Who::Overlayfs => host.ctr.with_snapshotter("overlayfs"),
        Who::Stargz => host.ctr.with_snapshotter(Stargz::NAME),
        Who::Lamina { .. } => host.ctr.with_snapshotter("lamina"),
    };
    // Nothing of what was before is written meanwhile.
    sync();
    let watch = Watch::begin(&proxy);
    match contender.who {
        Who::Overlayfs => ctr.pull(&image)?,
        _ => ctr.rpull(&image)?,
    }
    let begin = watch.started();
    let pull = begin.elapsed();
    let (line, came) = ctr.first_line("first", &image, task.script)?;
    let bytes = watch.bytes();
    ensure!(line == task.line, "{}: it printed {line:?}", contender.name);
    let quiet = match (task, contender.who) {
        // There is nothing more to come.
        (READ_ALL, _) => Duration::ZERO,
        // It fetches the rest when nobody has wanted anything for five seconds.
        (_, Who::Stargz) => Duration::from_secs(6),
        // The filler stands back at times.
        (_, FILLS) => QUIET,
        _ => Duration::from_secs(1),
    };
    let taken = Taken {
        pull,
        first_line: came - begin,
        bytes,
        samples: watch.until_quiet(quiet, WATCH_LIMIT)?,
    };
    if matches!(contender.who, Who::Lamina { .. }) && task == IMPORT {
        proxy.set(Fault::Refuse);
        host.restart_snapshotter()?;
        let (line, _) = host.ctr.first_line("again", &image, task.script)?;
        ensure!(
            line == task.line,
            "{}, without a network: {line:?}",
            contender.name
        );
    }
    Ok(taken)
}

/// Runs the image once, and removes it with all that was fetched of it.
fn run_and_remove(host: &mut Host, image: &str) -> Result<()> {
    host.ctr.rpull(image)?;
    host.ctr.first_line("seen", image, IMPORT.script)?;
    // It ends in order, and writes down what it saw.
    host.restart_snapshotter()?;
    host.ctr.remove_image(image)?;
    let cache = host.snapshotter_root().join("cache/files");
    wait_for("the cache is empty", Duration::from_secs(30), || {
        let dirs = fs::read_dir(&cache).into_iter().flatten().flatten();
        dirs.map(|dir| fs::read_dir(dir.path()).map_or(0, Iterator::count))
            .sum::<usize>()
            == 0
    })
}
