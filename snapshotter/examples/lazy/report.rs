//! The starts as tables, as JSON and as a plot of the bytes that came.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use lamina_benches::report::{Curve, Titles, curves};
use serde_json::{Value, json};

use crate::needs::Needs;
use crate::starts::{Contender, LINK, Raced, Taken, Who};
use crate::{Arguments, median, say};

/// To where the plot goes, in seconds, where somebody takes longer.
const PLOT_END: f64 = 12.0;

impl Raced {
    fn first_line(&self) -> Duration {
        median(self.taken.iter().map(|one| one.first_line))
    }

    /// The start whose first line came at the median.
    fn middle(&self) -> Option<&Taken> {
        let first = self.first_line();
        self.taken.iter().find(|one| one.first_line == first)
    }

    fn is_filled(&self) -> bool {
        self.contender.who == Who::Lamina { fills: true }
    }

    /// The least part of the link that was used until nothing more came, where the image was filled.
    fn share(&self) -> Option<f64> {
        let shares = self.taken.iter().filter_map(|one| {
            let (last, bytes) = one.samples.last()?;
            Some(*bytes as f64 / last.as_secs_f64() / LINK.rate as f64)
        });
        shares.filter(|_| self.is_filled()).reduce(f64::min)
    }
}

/// Prints the tables.
pub(crate) fn show(starts: &[Raced], reads: &[Raced], needs: &Needs) {
    say(&format!(
        "The program opens {} files of {:.1} MB, which are {:.1} MB of the eStargz blob's {:.1} MB",
        needs.files,
        needs.size as f64 / 1e6,
        needs.packed as f64 / 1e6,
        needs.blob as f64 / 1e6
    ));
    say("");
    say("Until python3 has imported numpy and printed a line (medians; bytes are the most):");
    say("");
    say(
        "| who | pull | first output | of overlayfs | bytes until then | of what it opens | link used until filled |",
    );
    say("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    let yardstick = starts.first().map(Raced::first_line).unwrap_or_default();
    for raced in starts {
        let pull = median(raced.taken.iter().map(|one| one.pull));
        let first = raced.first_line();
        let bytes = raced.taken.iter().map(|one| one.bytes).max().unwrap_or(0);
        let share = raced
            .share()
            .map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", 100.0 * share));
        say(&format!(
            "| {} | {:.2} s | {:.2} s | {:.0} % | {:.1} MB | {:.2} | {share} |",
            raced.contender.name,
            pull.as_secs_f64(),
            first.as_secs_f64(),
            100.0 * first.as_secs_f64() / yardstick.as_secs_f64(),
            bytes as f64 / 1e6,
            bytes as f64 / needs.packed as f64
        ));
    }
    say("");
    say(
        "Until a container has read every file of the image, from a host that has nothing (medians):",
    );
    say("");
    say("| who | first output | every file read | both, of stargz-snapshotter |");
    say("| --- | ---: | ---: | ---: |");
    for read in reads {
        let own = |who: Who, all: &[Raced]| time(all, read.contender.image, who);
        let who = read.contender.who;
        let first = own(who, starts).unwrap_or_default();
        let all = read.first_line();
        let peer = own(Who::Stargz, starts).zip(own(Who::Stargz, reads));
        let ratios = peer.map_or_else(
            || "-".to_owned(),
            |(peer_first, peer_all)| {
                let ratio = |one: Duration, peer: Duration| one.as_secs_f64() / peer.as_secs_f64();
                format!(
                    "{:.2}, {:.2}",
                    ratio(first, peer_first),
                    ratio(all, peer_all)
                )
            },
        );
        say(&format!(
            "| {} | {:.2} s | {:.2} s | {ratios} |",
            read.contender.name,
            first.as_secs_f64(),
            all.as_secs_f64()
        ));
    }
}

/// What somebody took with an image that nobody has run before.
fn time(all: &[Raced], image: &str, who: Who) -> Option<Duration> {
    let is_it = |one: &Contender| one.image == image && one.who == who && !one.has_profile;
    let found = all.iter().find(|raced| is_it(&raced.contender));
    found.map(Raced::first_line)
}

/// Writes `lazy.json` and `lazy.svg` beside the archive, and the plot once more where it is wanted.
pub(crate) fn write(
    starts: &[Raced],
    reads: &[Raced],
    needs: &Needs,
    asked: &Arguments,
) -> Result<()> {
    let dir = asked.archive.parent().unwrap_or(Path::new("."));
    let dir = dir.join("report");
    fs::create_dir_all(&dir)?;
    let all = json!({
        "link": {"bytes_per_second": LINK.rate, "round_trip_ms": LINK.round_trip.as_millis()},
        "opened": {
            "files": needs.files, "bytes": needs.size,
            "bytes_in_blob": needs.packed, "blob_bytes": needs.blob,
        },
        "first_output": starts.iter().map(to_json).collect::<Vec<_>>(),
        "every_file_read": reads.iter().map(to_json).collect::<Vec<_>>(),
    });
    fs::write(dir.join("lazy.json"), all.to_string())?;
    let svg = plot(starts)?;
    fs::write(dir.join("lazy.svg"), &svg)?;
    if let Some(path) = &asked.plot {
        fs::write(path, &svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    say("");
    say(&format!("lazy.json and lazy.svg are in {}", dir.display()));
    Ok(())
}

fn to_json(raced: &Raced) -> Value {
    let taken = raced.taken.iter().map(|one| {
        let samples = one.samples.iter();
        let samples = samples.map(|(at, bytes)| json!([at.as_secs_f64(), bytes]));
        json!({
            "pull_s": one.pull.as_secs_f64(), "line_s": one.first_line.as_secs_f64(),
            "bytes": one.bytes, "samples": samples.collect::<Vec<_>>(),
        })
    });
    json!({
        "who": raced.contender.name, "image": raced.contender.image,
        "rounds": taken.collect::<Vec<_>>(),
    })
}

/// The bytes that came in the middle one of each contender's starts.
fn plot(starts: &[Raced]) -> Result<String> {
    // Those that differ most, or the lines hide each other.
    let drawn = starts.iter().filter(|raced| {
        let Contender { image, who, .. } = raced.contender;
        let is_seekable = image != "gzip" && image != "zstd" && image != "tar";
        image == "gzip"
            || is_seekable && image != "zstd-chunked" && who != Who::Lamina { fills: false }
    });
    let mut lines = Vec::new();
    let mut end = 1.0_f64;
    for raced in drawn {
        let middle = raced.middle().ok_or_else(|| anyhow!("nothing was timed"))?;
        let point = |at: Duration, bytes: u64| (at.as_secs_f64(), bytes as f64 / 1e6);
        let samples = middle.samples.iter();
        let mark = point(middle.first_line, middle.bytes);
        let mut points: Vec<_> = samples.map(|(at, bytes)| point(*at, *bytes)).collect();
        let last = points.last().copied();
        points.extend(
            last.filter(|last| last.0 < mark.0)
                .map(|last| (mark.0, last.1)),
        );
        end = points.last().map_or(end, |last| end.max(last.0 * 1.02));
        lines.push(Curve {
            name: raced.contender.name.to_owned(),
            points,
            mark: Some(mark),
        });
    }
    let titles = Titles {
        title: "Bytes that came from the registry; the dot is the first line of output",
        x: "seconds since the pull began",
        y: "MB",
    };
    curves(&titles, end.min(PLOT_END), &lines)
}
