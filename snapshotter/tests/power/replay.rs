//! The power is cut in a recording, the machine started again, and everything looked at.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;
use lamina_fusefs::blob::Digest;
use lamina_proto::containerd::services::snapshots::v1::Kind;

use super::cuts::{Cache, Losses, Replay};
use super::disk::{Entry, FileSystem, Sparse};
use super::harness::Api;
use super::machine::Machine;
use super::model::{Contents, Snapshot, Story};

/// How the keys of snapshots begin that were made to look at others.
const OURS: &str = "look";

/// Everything that a disk was told, and what was answered meanwhile.
pub(crate) struct Recording {
    pub(crate) kind: FileSystem,
    pub(crate) start: Sparse,
    pub(crate) log: Vec<Entry>,
    pub(crate) stories: Vec<Story>,
}

/// What was looked at.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) cuts: u64,
    /// Cuts while a machine started after another cut.
    again: u64,
    losses: Losses,
    calls: u64,
    syncs: u64,
    snapshots: u64,
    files: u64,
    /// Cuts after which there was something for the start to clear away.
    repaired: u64,
}

impl Recording {
    /// Cuts the power so many times.
    pub(crate) fn cut(
        &self,
        count: u64,
        chance: &mut Rng,
        dir: &Path,
        tally: &mut Tally,
    ) -> Result<()> {
        let mut cuts: Vec<usize> = (0..count).map(|_| self.place(chance)).collect();
        cuts.sort_unstable();
        let mut replay = Replay::new(&self.start, &self.log, self.kind.sector());
        for at in cuts {
            let cache = Cache::any(chance);
            let (disk, losses) = replay.cut(at, cache, chance);
            tally.losses += losses;
            let told = format!("cut at {at} of {}, cache {cache:?}", self.log.len());
            self.survive(disk, at, chance, dir, tally)
                .with_context(|| told)?;
            tally.cuts += 1;
        }
        Ok(())
    }

    /// Where to cut.
    fn place(&self, chance: &mut Rng) -> usize {
        let any = chance.usize(0..=self.log.len());
        match chance.u8(0..3) {
            0 => any,
            // When the cache is full, just before a flush.
            1 => {
                let places = (0..8).map(|_| self.fullest(chance.usize(0..=self.log.len())));
                let fullest = places.max_by_key(|(cached, _)| *cached);
                fullest.map_or(any, |(_, at)| at)
            }
            // When something has just been answered, or a little later.
            _ => {
                let moments = self.stories.iter().flat_map(Story::moments);
                let moments: Vec<usize> = moments.collect();
                let moment = chance.choice(moments).unwrap_or(any);
                (moment + chance.usize(0..3)).min(self.log.len())
            }
        }
    }

    /// The next flush, and how many writes it is about.
    fn fullest(&self, from: usize) -> (usize, usize) {
        let is_flush = |entry: &Entry| matches!(entry, Entry::Flush);
        let next = self.log[from..].iter().position(is_flush);
        let next = next.map_or(self.log.len(), |next| from + next);
        let before = self.log[..next].iter().rposition(is_flush);
        (next - before.map_or(0, |before| before + 1), next)
    }

    /// Starts a machine with this disk, and perhaps cuts its power once more.
    fn survive(
        &self,
        disk: Sparse,
        at: usize,
        chance: &mut Rng,
        dir: &Path,
        tally: &mut Tally,
    ) -> Result<()> {
        let before = disk.clone();
        let log = self.look(disk, at, dir, tally).context("after it")?;
        if chance.u8(0..4) == 0 {
            let again = chance.usize(0..=log.len());
            let cache = Cache::any(chance);
            let (disk, _) =
                Replay::new(&before, &log, self.kind.sector()).cut(again, cache, chance);
            tally.again += 1;
            self.look(disk, at, dir, tally)
                .with_context(|| format!("cut again at {again} of {}, {cache:?}", log.len()))?;
        }
        Ok(())
    }

    /// Fails if anything is not as it must be on a machine with this disk. Answers what the disk was
    /// told until everything had been looked at.
    fn look(&self, disk: Sparse, at: usize, dir: &Path, tally: &mut Tally) -> Result<Vec<Entry>> {
        let mut machine = Machine::boot(disk, self.kind, dir)?;
        let (mut leftovers, found) = (0, machine.found.iter());
        for finding in found.filter(|finding| !finding.is_note()) {
            ensure!(finding.is_leftover(), "before the start: {finding}");
            leftovers += 1;
        }
        tally.repaired += u64::from(leftovers > 0);
        let mut look = Look {
            api: machine.api()?,
            at,
            number: 0,
        };
        let mut found = look.api.list()?;
        found.retain(|key, _| !key.starts_with(OURS));
        for story in &self.stories {
            look.story(story, &mut found, tally)?;
        }
        ensure!(found.is_empty(), "nobody made {found:?}");
        let log = machine.clock().log();
        look.live()?;
        drop(look);
        machine.stop()?;
        verify_cache(&machine.root().join("cache/files"))?;
        Ok(log)
    }
}

/// A look at a machine after a cut at this position.
struct Look {
    api: Api,
    at: usize,
    number: u64,
}

impl Look {
    /// Takes what one caller has made out of what was found.
    fn story(
        &mut self,
        story: &Story,
        found: &mut BTreeMap<String, (Kind, String)>,
        tally: &mut Tally,
    ) -> Result<()> {
        let possible = story.alive_after(self.at);
        let known: Vec<&String> = story.snapshots.iter().map(|one| &one.key).collect();
        let mut own = BTreeMap::new();
        found.retain(|key, value| {
            let is_own = known.contains(&key);
            if is_own {
                own.insert(key.clone(), value.clone());
            }
            !is_own
        });
        let of = |number: &usize| {
            let snapshot = &story.snapshots[*number];
            (snapshot.kind, snapshot.parent.clone())
        };
        let is_found = |alive: &&BTreeMap<String, usize>| {
            let alive = alive.iter().map(|(key, number)| (key.clone(), of(number)));
            alive.collect::<BTreeMap<_, _>>() == own
        };
        let Some(alive) = possible.iter().find(is_found) else {
            bail!("there are {own:#?}\nbut there should be one of {possible:#?}");
        };
        tally.calls += story.calls_until(self.at);
        for number in alive.values() {
            let snapshot = &story.snapshots[*number];
            tally.files += self
                .snapshot(snapshot)
                .with_context(|| format!("{:?} {}", snapshot.kind, snapshot.key))?;
            tally.snapshots += 1;
            if let Contents::Active(active) = &snapshot.contents {
                tally.syncs += active.syncs_until(self.at);
            }
        }
        Ok(())
    }

    /// Reads all that is in a snapshot, and answers how many files that are.
    fn snapshot(&mut self, snapshot: &Snapshot) -> Result<u64> {
        let key = match snapshot.kind {
            Kind::Committed => {
                self.number += 1;
                let key = format!("{OURS}-{}-{}", self.number, fastrand::u64(..));
                self.api.view(&key, &snapshot.key)?;
                key
            }
            _ => snapshot.key.clone(),
        };
        let mounts = self.api.mounts(&key)?;
        let [mount] = &mounts[..] else {
            bail!("one mount: {mounts:?}")
        };
        let root = Path::new(&mount.source);
        match &snapshot.contents {
            Contents::Unasked => Ok(0),
            Contents::Layer(layer) => layer.verify(root),
            Contents::Active(active) => active.verify(root, self.at),
        }
    }

    /// Life goes on.
    fn live(&mut self) -> Result<()> {
        let (key, name) = (format!("{OURS}-box"), format!("{OURS}-layer"));
        self.api.prepare(&key, "")?;
        let mounts = self.api.mounts(&key)?;
        fs::write(Path::new(&mounts[0].source).join("file"), "new")?;
        self.api.commit(&name, &key)?;
        Ok(self.api.remove(&name)?)
    }
}

/// Fails if a file of the cache is not what its name says.
fn verify_cache(files: &Path) -> Result<()> {
    for dir in fs::read_dir(files).into_iter().flatten() {
        for file in fs::read_dir(dir?.path())? {
            let path = file?.path();
            let digest = Digest::of(&fs::read(&path)?).to_hex();
            let name = path.file_name().and_then(|name| name.to_str());
            ensure!(name == Some(&digest), "{} is a torn file", path.display());
        }
    }
    Ok(())
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Losses { cached, lost, torn } = self.losses;
        write!(
            f,
            "{} cuts and {} while it started again; of {cached} writes in the cache {lost} lost and {torn} torn; \
             {} calls and {} syncs had been answered; {} snapshots and {} files looked at; \
             something to clear away after {}",
            self.cuts,
            self.again,
            self.calls,
            self.syncs,
            self.snapshots,
            self.files,
            self.repaired
        )
    }
}
