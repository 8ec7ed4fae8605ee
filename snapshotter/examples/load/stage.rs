//! Where the load runs, when it ends, and who is told how.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;

/// What came with the image.
pub(crate) const IMAGE: &str = "/load/image";
/// What the load makes.
pub(crate) const WORK: &str = "/load/work";

/// One run of the program.
pub(crate) struct Stage {
    name: String,
    outside: PathBuf,
    pub(crate) seed: u64,
    failed: Mutex<()>,
}

impl Stage {
    pub(crate) fn new(name: &str, outside: &str, seed: u64) -> Stage {
        Stage {
            name: name.to_owned(),
            outside: outside.into(),
            seed,
            failed: Mutex::new(()),
        }
    }

    /// Whether it is time to look at everything for the last time.
    pub(crate) fn is_over(&self) -> bool {
        is_over(&self.outside)
    }

    /// A file outside that belongs to this run.
    pub(crate) fn outside(&self, suffix: &str) -> PathBuf {
        self.outside.join(format!("{}.{suffix}", self.name))
    }

    pub(crate) fn outside_dir(&self) -> &Path {
        &self.outside
    }

    /// Runs a part; an error of it is the end of all.
    pub(crate) fn watch(&self, part: &str, work: impl FnOnce() -> Result<u64>) -> u64 {
        match work() {
            Ok(count) => count,
            Err(error) => self.fail(&format!("{part}: {error:#}")),
        }
    }

    /// Tells the first failure, and ends the program.
    pub(crate) fn fail(&self, text: &str) -> ! {
        // Held for ever: whoever comes second is silent.
        let _first = self.failed.lock();
        eprintln!("{text}");
        let written = fs::write(self.outside("told"), format!("{text}\n"));
        let _ = written.and_then(|()| fs::rename(self.outside("told"), self.outside("failed")));
        process::exit(1);
    }

    pub(crate) fn end(&self, told: &str) -> Result<()> {
        println!("{told}");
        Ok(fs::write(self.outside("ended"), format!("{told}\n"))?)
    }
}

/// The same for a process that the load has started.
pub(crate) fn is_over(outside: &Path) -> bool {
    outside.join("stop").exists()
}

/// An empty directory of one's own below [`WORK`].
pub(crate) fn room(name: &str) -> Result<PathBuf> {
    let dir = Path::new(WORK).join(name);
    fs::create_dir_all(WORK)?;
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("emptying {}", dir.display()))?;
    }
    fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

/// Fails unless both are equal; data are not printed at full length.
pub(crate) fn same<T: PartialEq + Debug + ?Sized>(what: &str, found: &T, wanted: &T) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    let short = |value: &T| format!("{value:?}").chars().take(400).collect::<String>();
    bail!("{what}: {} and not {}", short(found), short(wanted))
}

/// Fails unless bytes are the same, and says where they begin to differ.
pub(crate) fn same_bytes(what: &str, found: &[u8], wanted: &[u8]) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    let differs = found.iter().zip(wanted).position(|(a, b)| a != b);
    let at = differs.unwrap_or(found.len().min(wanted.len()));
    let part = |bytes: &[u8]| bytes[at..bytes.len().min(at + 8)].to_vec();
    bail!(
        "{what}: {} bytes and not {}; from byte {at} on {:?} and not {:?}",
        found.len(),
        wanted.len(),
        part(found),
        part(wanted),
    )
}

/// The error of a call, as a name.
pub(crate) fn errno<T>(done: std::io::Result<T>) -> Result<T, Errno> {
    done.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
