//! A large directory that is listed slowly while it changes: what was there all the time is listed
//! once, nothing twice, and nothing that never was.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fastrand::Rng;
use rustix::fs::{RawDir, SeekFrom, seek};

use crate::stage::{IMAGE, Stage};

/// Files of the image in the directory.
const OF_IMAGE: usize = 2000;
/// New files at one time, about.
const NEW: usize = 500;
/// Of a listing's buffer: many calls for one listing.
const BUFFER: usize = 2048;

pub(crate) fn fill(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    (0..OF_IMAGE).try_for_each(|number| Ok(fs::write(dir.join(of_image(number)), "")?))
}

fn of_image(number: usize) -> String {
    format!("image-{number}")
}

/// What is in the directory, as far as anybody can know.
#[derive(Default)]
struct Known {
    present: BTreeSet<String>,
    /// What has come or gone since the listing began, or may have.
    changed: BTreeSet<String>,
    /// The names of the change under way.
    under_way: Vec<String>,
}

pub(crate) fn run(stage: &Stage, number: u64) -> Result<u64> {
    let dir = Path::new(IMAGE).join("listing");
    let known = Mutex::new(Known::default());
    lock(&known).present = (0..OF_IMAGE).map(of_image).collect();
    thread::scope(|scope| {
        let changes = scope.spawn(|| change(stage, &dir, &known, number));
        let listings = list(stage, &dir, &known);
        match changes.join() {
            Ok(changed) => changed?,
            Err(_) => bail!("whoever changes the directory panicked"),
        }
        listings
    })
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes, renames and removes files, each name once.
fn change(stage: &Stage, dir: &Path, known: &Mutex<Known>, number: u64) -> Result<()> {
    let mut random = Rng::with_seed(stage.seed.wrapping_mul(7).wrapping_add(number));
    let mut next = 0;
    while !stage.is_over() {
        let present = lock(known).present.len();
        next += 1;
        let new = format!("new-{next}");
        let chosen = random.usize(..present);
        let old = lock(known)
            .present
            .iter()
            .nth(chosen)
            .cloned()
            .unwrap_or_default();
        let crowded = present > OF_IMAGE + NEW;
        let (old, new) = (old.as_str(), new.as_str());
        match random.u32(..10) {
            3..5 => {
                let rename = || fs::rename(dir.join(old), dir.join(new));
                step(known, Some(old), Some(new), rename)?;
            }
            0..3 => step(known, Some(old), None, || fs::remove_file(dir.join(old)))?,
            _ if crowded => step(known, Some(old), None, || fs::remove_file(dir.join(old)))?,
            _ => step(known, None, Some(new), || {
                File::create_new(dir.join(new)).map(drop)
            })?,
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// One call by which a name goes, or comes, or both.
fn step(
    known: &Mutex<Known>,
    goes: Option<&str>,
    comes: Option<&str>,
    call: impl FnOnce() -> std::io::Result<()>,
) -> Result<()> {
    let names = || goes.into_iter().chain(comes).map(str::to_owned);
    {
        let mut known = lock(known);
        known.under_way = names().collect();
        known.changed.extend(names());
    }
    call().with_context(|| format!("{goes:?} goes, {comes:?} comes"))?;
    let mut known = lock(known);
    known.under_way.clear();
    // A listing that began in between has forgotten them.
    known.changed.extend(names());
    goes.map(|name| known.present.remove(name));
    known.present.extend(comes.map(str::to_owned));
    Ok(())
}

/// Lists with one handle again and again.
fn list(stage: &Stage, dir: &Path, known: &Mutex<Known>) -> Result<u64> {
    let handle = File::open(dir)?;
    let mut count = 0;
    while count == 0 || !stage.is_over() {
        let before = {
            let mut known = lock(known);
            known.changed = known.under_way.iter().cloned().collect();
            known.present.clone()
        };
        seek(&handle, SeekFrom::Start(0)).context("rewinddir")?;
        let found = names(&handle).with_context(|| format!("listing {count}"))?;
        let known = lock(known);
        let missing = before
            .difference(&found)
            .find(|name| !known.changed.contains(*name));
        if let Some(name) = missing {
            bail!(
                "listing {count} misses {name}: {} of {} names",
                found.len(),
                before.len()
            );
        }
        let may_be = |name: &&String| before.contains(*name) || known.changed.contains(*name);
        if let Some(name) = found.iter().find(|name| !may_be(name)) {
            bail!("listing {count} has {name}, which never was or is long gone");
        }
        count += 1;
    }
    Ok(count)
}

fn names(handle: &File) -> Result<BTreeSet<String>> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut entries = RawDir::new(handle, &mut buffer);
    let mut found = BTreeSet::new();
    let mut count = 0;
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name == "." || name == ".." {
            continue;
        }
        if !found.insert(name.clone()) {
            bail!("{name} is listed twice");
        }
        count += 1;
        if count % 100 == 0 {
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(found)
}
