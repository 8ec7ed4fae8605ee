//! How long a call takes that the daemon has to answer: the pause, as a process sees it.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use fastrand::Rng;

use crate::stage::{Stage, room};

/// Between two calls at most: a hundred of these containers are to wait, and not to be the load. One
/// of them always calls right after a kill.
const REST: f64 = 0.04;
/// So many names are asked for between two that are made.
const ASKED: u64 = 5;
/// What takes less is only counted.
const WORTH_TELLING: Duration = Duration::from_millis(2);

/// Writes a line for each slow call to `NAME.pauses`: when it began (microseconds of the clock)
/// and how long it took (microseconds).
pub(crate) fn run(stage: &Stage, _number: u64) -> Result<u64> {
    let dir = room("probe")?;
    let mut told = BufWriter::new(File::create(stage.outside("pauses"))?);
    let mut random = Rng::new();
    let mut count = 0;
    while !stage.is_over() {
        count += 1;
        let name = dir.join(format!("n{count}"));
        time(&mut told, || missing(&name))?;
        if count % ASKED == 0 {
            time(&mut told, || {
                File::create_new(&name).with_context(|| format!("creating {}", name.display()))?;
                fs::remove_file(&name).with_context(|| format!("removing {}", name.display()))
            })?;
        }
        thread::sleep(Duration::from_secs_f64(REST * random.f64()));
    }
    told.flush()?;
    Ok(count)
}

/// A name that nobody has asked for before.
fn missing(name: &Path) -> Result<()> {
    match fs::symlink_metadata(name) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => bail!("{}: {other:?} and not ENOENT", name.display()),
    }
}

fn time(told: &mut impl std::io::Write, call: impl FnOnce() -> Result<()>) -> Result<()> {
    let (at, begun) = (SystemTime::now(), Instant::now());
    call()?;
    let took = begun.elapsed();
    if took >= WORTH_TELLING {
        let at = at.duration_since(UNIX_EPOCH)?.as_micros();
        writeln!(told, "{at} {}", took.as_micros())?;
    }
    Ok(())
}
