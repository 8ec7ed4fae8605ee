//! What the image holds for the load, and a reader that finds all of it as it was made.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fastrand::Rng;
use rustix::fs::{Advice, fadvise};

use crate::random::{bytes, hash};
use crate::stage::{IMAGE, Stage, same, same_bytes};
use crate::{copies, files, listing, names};

const DIRS: usize = 8;
const FILES: usize = 24;
const LONGEST: u64 = 100_000;
/// Each directory has one file of this length.
const LARGE: usize = 1 << 20;

/// Makes the part of each part of the load below `dir`, which becomes [`IMAGE`].
pub(crate) fn fill(dir: &Path) -> Result<()> {
    for number in 0..DIRS {
        let below = dir.join(format!("read/d{number}"));
        fs::create_dir_all(&below)?;
        for name in names_below() {
            let path = format!("d{number}/{name}");
            fs::write(dir.join("read").join(&path), contents(&path))?;
        }
    }
    names::fill(&dir.join("names"))?;
    files::fill(&dir.join("files"))?;
    copies::fill(&dir.join("copies"))?;
    listing::fill(&dir.join("listing"))
}

fn names_below() -> BTreeSet<String> {
    (0..FILES)
        .map(|file| format!("f{file}"))
        .chain(["large".to_owned()])
        .collect()
}

fn contents(path: &str) -> Vec<u8> {
    let seed = hash(path);
    let length = if path.ends_with("large") {
        LARGE
    } else {
        (seed % LONGEST) as usize
    };
    bytes(seed, length)
}

/// Reads all files again and again, from the disk if the kernel can be made to forget them.
pub(crate) fn run(stage: &Stage, number: u64) -> Result<u64> {
    let mut random = Rng::with_seed(stage.seed ^ number);
    let mut count = 0;
    while count == 0 || !stage.is_over() {
        let mut dirs: Vec<_> = (0..DIRS).collect();
        random.shuffle(&mut dirs);
        for dir in dirs {
            let below = Path::new(IMAGE).join(format!("read/d{dir}"));
            let listed: Vec<_> = fs::read_dir(&below)
                .with_context(|| format!("listing {}", below.display()))?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<Result<_>>()?;
            let found: BTreeSet<String> = listed.iter().cloned().collect();
            same("names of a directory of the image", &found, &names_below())?;
            same("a name is listed once", &listed.len(), &found.len())?;
            for name in listed {
                read(&below.join(&name), &format!("d{dir}/{name}"), &mut random)?;
                count += 1;
                if stage.is_over() {
                    return Ok(count);
                }
            }
        }
    }
    Ok(count)
}

/// Reads a file in pieces, now and then slowly, so that it is open when the daemon dies.
fn read(path: &Path, name: &str, random: &mut Rng) -> Result<()> {
    let what = path.display().to_string();
    let mut file = File::open(path).with_context(|| format!("opening {what}"))?;
    let slow = random.u32(..30) == 0;
    let (mut found, mut piece) = (Vec::new(), vec![0; 1 << 15]);
    loop {
        let count = file
            .read(&mut piece)
            .with_context(|| format!("reading {what}"))?;
        if count == 0 {
            break;
        }
        found.extend(&piece[..count]);
        thread::sleep(Duration::from_millis(if slow { 50 } else { 1 }));
    }
    same_bytes(&what, &found, &contents(name))?;
    fadvise(&file, 0, None, Advice::DontNeed).with_context(|| format!("forgetting {what}"))
}
