//! A container that starts before its image is here: the same image, pulled as ever and lazily, over
//! the same slow link. `scripts/demo --lazy` and `scripts/bench lazy` run this.
//!
//! `lazy [--rounds N] [--only TEXT] ARCHIVE`: ARCHIVE is an uncompressed archive of a root with python3 and
//! numpy; `--only` leaves those whose names have this text, beside overlayfs.

#![allow(clippy::cast_precision_loss, reason = "figures for people")]

#[path = "../tests/e2e/harness/mod.rs"]
mod harness;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Fault, Host, Link, Packing, Proxy, Registry, wait_for};
use lamina_snapshotter::upper_mode::UpperMode;

/// The link: 50 MB/s, 20 ms.
const LINK: Link = Link {
    round_trip: Duration::from_millis(20),
    rate: 50_000_000,
};
const SCRIPT: &str = "exec python3 -c 'import numpy; print(int(numpy.arange(5).sum()))'";
const EXPECTED: &str = "10";

/// Who is timed.
#[derive(Clone, Copy)]
struct Contender {
    name: &'static str,
    /// The repository of the image.
    image: &'static str,
    /// `None`: by overlayfs. Else by Lamina, and whether the whole image is fetched at the same time.
    fills: Option<bool>,
    /// Whether the host has run the image before, and has nothing left of it but its profile.
    has_profile: bool,
}

/// The image of which `ctr-remote images optimize` has watched the program.
const OPTIMIZED: &str = "optimized";

const CONTENDERS: [Contender; 14] = [
    contender("overlayfs, gzip: pulled and unpacked", "gzip", None),
    contender(
        "Lamina, eStargz with its files first",
        OPTIMIZED,
        Some(true),
    ),
    contender("Lamina, the same, not filled", OPTIMIZED, Some(false)),
    contender("Lamina, eStargz", "estargz", Some(true)),
    contender("Lamina, eStargz, not filled", "estargz", Some(false)),
    contender("Lamina, zstd:chunked", "zstd-chunked", Some(true)),
    contender(
        "Lamina, zstd:chunked, not filled",
        "zstd-chunked",
        Some(false),
    ),
    contender("Lamina, eStargz with a profile", "estargz", Some(true)).with_profile(),
    contender(
        "Lamina, eStargz with a profile, not filled",
        "estargz",
        Some(false),
    )
    .with_profile(),
    contender(
        "Lamina, zstd:chunked with a profile",
        "zstd-chunked",
        Some(true),
    )
    .with_profile(),
    contender("Lamina, the same, not filled", "zstd-chunked", Some(false)).with_profile(),
    contender("Lamina, gzip: first pull ever", "gzip", Some(false)),
    contender("Lamina, zstd: first pull ever", "zstd", Some(false)),
    contender("Lamina, plain tar: first pull ever", "tar", Some(false)),
];

const fn contender(name: &'static str, image: &'static str, fills: Option<bool>) -> Contender {
    Contender {
        name,
        image,
        fills,
        has_profile: false,
    }
}

impl Contender {
    const fn with_profile(self) -> Contender {
        Contender {
            has_profile: true,
            ..self
        }
    }
}

/// What one start took.
struct Taken {
    pull: Duration,
    first_line: Duration,
    bytes: u64,
    /// What part of the link was used until nothing more came, where the image was filled.
    share: Option<f64>,
}

fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    let mut rounds = 1;
    let mut archive = None;
    let mut contenders = CONTENDERS.to_vec();
    while let Some(arg) = args.next() {
        if arg == "--rounds" {
            rounds = args.next().context("--rounds N")?.parse()?;
        } else if arg == "--only" {
            let text = args.next().context("--only TEXT")?;
            contenders.retain(|one| one.fills.is_none() || one.name.contains(&text));
        } else {
            archive = Some(PathBuf::from(arg));
        }
    }
    let archive = archive.context("usage: lazy [--rounds N] [--only TEXT] ARCHIVE")?;
    say("Packing the image in each format, into a registry of its own");
    let stage = Host::start_configured(UpperMode::Union, "")?;
    let registry = Registry::start(stage.scratch())?;
    for packing in Packing::ALL {
        registry.push(std::slice::from_ref(&archive), packing)?;
    }
    let address = registry.address();
    let plain = format!("{address}/plain:t");
    let estargz = format!("{address}/estargz:t");
    stage.ctr.convert_to_estargz(&plain, &estargz)?;
    let optimized = format!("{address}/{OPTIMIZED}:t");
    stage.ctr.optimize_as_estargz(&plain, &optimized, SCRIPT)?;

    say(&format!(
        "Each starts on a host that has nothing, over a link of {} MB/s and {} ms, {rounds} times:",
        LINK.rate / 1_000_000,
        LINK.round_trip.as_millis()
    ));
    say("  until python3 has imported numpy and printed a line (medians)");
    say("");
    say("| who | pull | first output | of overlayfs | bytes until then | link used until filled |");
    say("| --- | ---: | ---: | ---: | ---: | ---: |");
    let mut taken: Vec<Vec<Taken>> = contenders.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (contender, taken) in contenders.iter().zip(&mut taken) {
            taken.push(start(*contender, &registry)?);
        }
    }
    let mut yardstick = None;
    for (contender, taken) in contenders.iter().zip(&taken) {
        let pull = median(taken.iter().map(|one| one.pull));
        let first = median(taken.iter().map(|one| one.first_line));
        let bytes = taken.iter().map(|one| one.bytes).max().unwrap_or(0);
        let share = taken.iter().filter_map(|one| one.share).reduce(f64::min);
        let share = share.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", 100.0 * share));
        let yardstick = *yardstick.get_or_insert(first);
        say(&format!(
            "| {} | {:.2} s | {:.2} s | {:.0} % | {:.1} MB | {share} |",
            contender.name,
            pull.as_secs_f64(),
            first.as_secs_f64(),
            100.0 * first.as_secs_f64() / yardstick.as_secs_f64(),
            bytes as f64 / 1e6
        ));
    }
    Ok(())
}

/// One start on a host that has nothing; a lazy image is then started once more without a network.
fn start(contender: Contender, registry: &Registry) -> Result<Taken> {
    let fills = contender.fills.unwrap_or_default();
    let config = format!("[lazy]\nfill = {fills}\n");
    let mut host = Host::start_configured(UpperMode::Union, &config)?;
    let proxy = Proxy::start_behind(registry.port(), Some(LINK))?;
    let image = format!("{}/{}:t", proxy.address(), contender.image);
    if contender.has_profile {
        run_and_remove(&mut host, &image)?;
    }
    let before = proxy.bytes();
    let begin = Instant::now();
    let (pull, line, came);
    if contender.fills.is_some() {
        host.ctr.rpull(&image)?;
        pull = begin.elapsed();
        (line, came) = host.ctr.first_line("first", &image, SCRIPT)?;
    } else {
        let ctr = host.ctr.with_snapshotter("overlayfs");
        ctr.pull(&image)?;
        pull = begin.elapsed();
        (line, came) = ctr.first_line("first", &image, SCRIPT)?;
    }
    ensure!(line == EXPECTED, "{}: it printed {line:?}", contender.name);
    let taken = Taken {
        pull,
        first_line: came - begin,
        bytes: proxy.bytes() - before,
        share: fills.then(|| share_until_quiet(&proxy, before, begin)),
    };
    if contender.fills.is_some() {
        proxy.set(Fault::Refuse);
        host.restart_snapshotter()?;
        let (line, _) = host.ctr.first_line("again", &image, SCRIPT)?;
        ensure!(
            line == EXPECTED,
            "{}, without a network: {line:?}",
            contender.name
        );
    }
    Ok(taken)
}

/// Runs the image once, and removes it with all that was fetched of it.
fn run_and_remove(host: &mut Host, image: &str) -> Result<()> {
    host.ctr.rpull(image)?;
    host.ctr.first_line("seen", image, SCRIPT)?;
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

/// Waits until nothing has come for a second, and answers what part of the link was used until then;
/// `before`: bytes that had come when it began.
fn share_until_quiet(proxy: &Proxy, before: u64, begin: Instant) -> f64 {
    let (mut bytes, mut last) = (proxy.bytes(), Instant::now());
    while last.elapsed() < Duration::from_secs(1) {
        thread::sleep(Duration::from_millis(20));
        if proxy.bytes() > bytes {
            (bytes, last) = (proxy.bytes(), Instant::now());
        }
    }
    (bytes - before) as f64 / (last - begin).as_secs_f64() / LINK.rate as f64
}

fn median(all: impl Iterator<Item = Duration>) -> Duration {
    let mut all: Vec<_> = all.collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

fn say(line: &str) {
    println!("{line}");
}
