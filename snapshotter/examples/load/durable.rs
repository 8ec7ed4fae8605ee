//! What was written and synced is kept, whatever happens to the daemon: each record is told outside
//! once its fsync has answered, and looked for after the crash.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::stage::{Stage, WORK, room};

/// What is told outside.
const ACKNOWLEDGED: &str = "acknowledged";
/// Files that are replaced in turn.
const REPLACED: u64 = 5;

fn dir() -> PathBuf {
    Path::new(WORK).join("durable")
}

pub(crate) fn run(stage: &Stage, _number: u64) -> Result<u64> {
    let dir = room("durable")?;
    let handle = File::open(&dir)?;
    let told = File::create(stage.outside_dir().join(ACKNOWLEDGED))?;
    let mut log = OpenOptions::new()
        .append(true)
        .create_new(true)
        .open(dir.join("log"))?;
    handle.sync_all()?;
    let mut count = 0_u64;
    while !stage.is_over() {
        count += 1;
        log.write_all(line(count).as_bytes()).context("append")?;
        log.sync_data().context("fdatasync")?;
        // A new file under another name, synced, and put into the place of the old one.
        let (new, old) = (dir.join("new"), dir.join(format!("r{}", count % REPLACED)));
        let mut file = File::create(&new).context("create")?;
        file.write_all(line(count).as_bytes()).context("write")?;
        file.sync_all().context("fsync")?;
        fs::rename(&new, &old).context("rename over the old one")?;
        handle.sync_all().context("fsync of the directory")?;
        told.write_all_at(line(count).as_bytes(), 0)?;
        thread::sleep(Duration::from_millis(5));
    }
    check(stage.outside_dir())?;
    Ok(count)
}

fn line(count: u64) -> String {
    format!("{count:015}\n")
}

/// Everything that was acknowledged is there; what was not, may be.
pub(crate) fn check(outside: &Path) -> Result<()> {
    let parse = |text: &str| -> Result<u64> { Ok(text.trim().parse()?) };
    let told = fs::read_to_string(outside.join(ACKNOWLEDGED))?;
    let told = parse(&told).context("what was acknowledged")?;
    let dir = dir();
    let log = fs::read_to_string(dir.join("log")).context("reading the log")?;
    let kept = log
        .lines()
        .map(parse)
        .collect::<Result<Vec<_>>>()
        .context("the log")?;
    let whole = (1..=kept.len() as u64).eq(kept.iter().copied());
    ensure!(whole, "the log is not in order: {} lines", kept.len());
    ensure!(
        kept.len() as u64 >= told,
        "{} of {told} records are kept",
        kept.len()
    );
    for number in told.saturating_sub(REPLACED - 1).max(1)..=told {
        let path = dir.join(format!("r{}", number % REPLACED));
        let found = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let found = parse(&found).with_context(|| path.display().to_string())?;
        let may_be = found == number || found == number + REPLACED;
        ensure!(
            may_be,
            "{} has record {found} and not {number}",
            path.display()
        );
    }
    Ok(())
}
