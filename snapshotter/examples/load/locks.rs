//! Counters in files that several processes and threads raise under locks: none is lost.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, fcntl_lock, flock};

use crate::place;
use crate::stage::{Stage, is_over, room, same};

/// Processes that raise each counter.
const PROCESSES: usize = 3;

/// `flock` belongs to the open file, `fcntl` to the process.
const KINDS: [&str; 2] = ["flock", "fcntl"];

pub(crate) fn run(stage: &Stage, _number: u64) -> Result<u64> {
    let dir = room("locks")?;
    let outside = stage.outside_dir();
    let mut children = Vec::new();
    for kind in KINDS {
        let file = dir.join(kind);
        fs::write(&file, number(0))?;
        for _ in 0..PROCESSES {
            let child = place::again(&["count".as_ref(), kind.as_ref(), &file, outside]);
            children.push((kind, child?));
        }
    }
    let mut raised = [0, 0];
    for (kind, child) in children {
        let ended = child.wait_with_output()?;
        if !ended.status.success() {
            let told = String::from_utf8_lossy(&ended.stderr).into_owned();
            bail!("{kind}: {}: {}", ended.status, told.trim());
        }
        let count: u64 = String::from_utf8_lossy(&ended.stdout).trim().parse()?;
        raised[usize::from(kind == KINDS[1])] += count;
    }
    for (kind, raised) in KINDS.iter().zip(raised) {
        let file = File::open(dir.join(kind))?;
        same(&format!("the counter under {kind}"), &read(&file)?, &raised)?;
    }
    Ok(raised.iter().sum())
}

/// One process: raises the counter until it is time, and prints how often it did.
pub(crate) fn count(kind: &str, file: &str, outside: &str) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(file)?;
    let lock = |how| match kind {
        "flock" => flock(&file, how),
        _ => fcntl_lock(&file, how),
    };
    let mut count = 0_u64;
    while !is_over(Path::new(outside)) {
        lock(FlockOperation::LockExclusive).context("lock")?;
        let before = read(&file)?;
        thread::sleep(Duration::from_millis(1));
        file.write_all_at(number(before + 1).as_bytes(), 0)
            .context("write")?;
        lock(FlockOperation::Unlock).context("unlock")?;
        count += 1;
        thread::sleep(Duration::from_millis(3));
    }
    println!("{count}");
    Ok(())
}

fn number(count: u64) -> String {
    format!("{count:020}")
}

fn read(file: &File) -> Result<u64> {
    let mut text = [0; 20];
    file.read_exact_at(&mut text, 0).context("read")?;
    Ok(std::str::from_utf8(&text)?.parse()?)
}
