//! Several handles append to one file: every record is there once, whole, and in its writer's order.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::stage::{Stage, room, same};

const WRITERS: u64 = 3;
/// Each line has so many bytes.
const RECORD: usize = 16;

pub(crate) fn run(stage: &Stage, _number: u64) -> Result<u64> {
    let path = room("append")?.join("log");
    fs::write(&path, "")?;
    let written = thread::scope(|scope| {
        let writers = (0..WRITERS).map(|writer| {
            let path = &path;
            scope.spawn(move || -> Result<u64> {
                let mut file = OpenOptions::new().append(true).open(path)?;
                let mut count = 0;
                while !stage.is_over() {
                    let line = format!("{writer}:{count:013}\n");
                    ensure!(
                        file.write(line.as_bytes()).context("append")? == RECORD,
                        "cut off"
                    );
                    count += 1;
                    if count % 500 == 0 {
                        file.sync_data().context("fdatasync")?;
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(count)
            })
        });
        let writers: Vec<_> = writers.collect();
        let ended = writers.into_iter().map(|writer| match writer.join() {
            Ok(count) => count,
            Err(_) => bail!("a writer panicked"),
        });
        ended.collect::<Result<Vec<u64>>>()
    })?;
    let text = fs::read(&path).context("reading it")?;
    let mut seen = vec![0; WRITERS as usize];
    for line in text.chunks(RECORD) {
        let line = String::from_utf8_lossy(line);
        let parts = line.trim_end().split_once(':').and_then(|(writer, count)| {
            Some((writer.parse::<usize>().ok()?, count.parse::<u64>().ok()?))
        });
        match parts {
            Some((writer, count)) if seen.get(writer) == Some(&count) => seen[writer] += 1,
            _ => bail!("after {seen:?} comes {line:?}"),
        }
    }
    same("records of each writer", &seen, &written)?;
    Ok(written.iter().sum())
}
