//! What happens while the disk is recorded: callers at once, each of which pulls, runs, commits and
//! removes by chance.

mod container;
mod lazy;
mod unpack;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use fastrand::Rng;
use lamina_proto::containerd::services::snapshots::v1::Kind;

use self::container::Step;
pub(crate) use self::lazy::{LazyImage, Registries};
use self::unpack::Place;
use super::disk::Clock;
use super::harness::Api;
use super::machine::Machine;
use super::model::{Active, Contents, Layer, Snapshot, Story};

/// A caller removes more than it makes above this number of snapshots.
const CROWDED: usize = 8;
/// Steps that a container takes in one go at most.
const STEPS: u64 = 8;

/// One caller. Its keys begin with its name, or are those of its images.
pub(crate) struct Caller<'l> {
    name: String,
    api: Api,
    clock: Clock,
    chance: Rng,
    /// Where it unpacks.
    dir: PathBuf,
    images: &'l [LazyImage],
    zeros_last: bool,
    number: u64,
    pub(crate) story: Story,
}

impl<'l> Caller<'l> {
    pub(crate) fn new(
        name: &str,
        machine: &Machine,
        dir: &Path,
        images: &'l [LazyImage],
        seed: u64,
    ) -> Result<Caller<'l>> {
        Ok(Caller {
            name: name.to_owned(),
            api: machine.api()?,
            clock: machine.clock().clone(),
            chance: Rng::with_seed(seed),
            dir: dir.join(format!("unpack-{name}")),
            images,
            zeros_last: machine.kind.zeros_last(),
            number: 0,
            story: Story::default(),
        })
    }

    /// Does so many things, one after the other.
    pub(crate) fn run(mut self, count: u64) -> Result<Story> {
        for step in 0..count {
            self.step()
                .with_context(|| format!("step {step} of {}", self.name))?;
        }
        Ok(self.story)
    }

    fn step(&mut self) -> Result<()> {
        let crowded = self.story.alive().len() > CROWDED;
        match self.chance.u8(0..100) {
            0..12 if crowded => self.remove(),
            0..3 => self.remove(),
            12..20 if !crowded => self.unpack(),
            20..28 if !crowded => self.pull(),
            28..36 => self.commit(),
            36..40 if !crowded => self.view(),
            40..50 if !crowded => self.prepare(),
            _ => self.work(),
        }
    }

    /// A container does something.
    fn work(&mut self) -> Result<()> {
        let Some(number) = self.any(|snapshot| matches!(snapshot.contents, Contents::Active(_)))
        else {
            return self.prepare();
        };
        for _ in 0..self.chance.u64(1..STEPS) {
            self.number += 1;
            let snapshot = &mut self.story.snapshots[number];
            let Contents::Active(active) = &mut snapshot.contents else {
                bail!("it is no container");
            };
            let step = Step {
                root: &snapshot.root,
                active,
                clock: &self.clock,
                chance: &mut self.chance,
                number: self.number,
                zeros_last: self.zeros_last,
            };
            step.take().with_context(|| snapshot.key.clone())?;
        }
        Ok(())
    }

    fn prepare(&mut self) -> Result<()> {
        let (parent, image) = self.any_layer();
        let key = self.key("container");
        let begun = self.clock.now();
        self.api.prepare(&key, &parent)?;
        let done = self.clock.now();
        let mounts = self.api.mounts(&key)?;
        let [mount] = &mounts[..] else {
            bail!("one mount: {mounts:?}")
        };
        let root = mount.source.clone().into();
        let contents = Contents::Active(Active::of(&image, begun));
        self.story.added(
            begun,
            done,
            Snapshot {
                key,
                kind: Kind::Active,
                parent,
                contents,
                root,
            },
        );
        Ok(())
    }

    fn view(&mut self) -> Result<()> {
        let (parent, layer) = self.any_layer();
        if parent.is_empty() {
            return self.prepare();
        }
        let key = self.key("view");
        let begun = self.clock.now();
        self.api.view(&key, &parent)?;
        let snapshot = Snapshot {
            key,
            kind: Kind::View,
            parent,
            contents: Contents::Layer(layer),
            root: PathBuf::new(),
        };
        self.story.added(begun, self.clock.now(), snapshot);
        Ok(())
    }

    /// A layer unpacked and committed, as containerd does for an image that is not lazy.
    fn unpack(&mut self) -> Result<()> {
        let (parent, _) = self.any_layer();
        let key = self.key("extract");
        let begun = self.clock.now();
        self.api.prepare(&key, &parent)?;
        let unpacked = self.story.added(
            begun,
            self.clock.now(),
            Snapshot {
                key: key.clone(),
                kind: Kind::Active,
                parent: parent.clone(),
                contents: Contents::Unasked,
                root: PathBuf::new(),
            },
        );
        let place = Place::of(&self.api.mounts(&key)?, &self.dir)?;
        let layer = place.unpack(self.number, &mut self.chance)?;
        drop(place);
        self.commit_as(unpacked, &key, parent, layer)
    }

    /// The layers of an image that are not here yet, none of which is unpacked.
    fn pull(&mut self) -> Result<()> {
        let images = self.images;
        let Some(image) = self.chance.choice(images) else {
            return self.unpack();
        };
        let mut parent = String::new();
        for layer in &image.layers {
            if !self.story.alive().contains_key(&layer.chain_id) {
                let key = self.key("extract");
                let begun = self.clock.now();
                image.pull(layer, &key, &parent, &mut self.api)?;
                let snapshot = Snapshot {
                    key: layer.chain_id.clone(),
                    kind: Kind::Committed,
                    parent: parent.clone(),
                    contents: Contents::Layer(Arc::clone(&layer.merged)),
                    root: PathBuf::new(),
                };
                self.story.added(begun, self.clock.now(), snapshot);
            }
            parent.clone_from(&layer.chain_id);
        }
        Ok(())
    }

    /// The container becomes a layer.
    fn commit(&mut self) -> Result<()> {
        let Some(number) = self.any(|snapshot| matches!(snapshot.contents, Contents::Active(_)))
        else {
            return self.prepare();
        };
        let snapshot = &self.story.snapshots[number];
        let Contents::Active(active) = &snapshot.contents else {
            bail!("it is no container");
        };
        let (key, parent) = (snapshot.key.clone(), snapshot.parent.clone());
        let layer = active.to_layer();
        self.commit_as(number, &key, parent, layer)
    }

    fn commit_as(&mut self, number: usize, key: &str, parent: String, layer: Layer) -> Result<()> {
        let name = self.key("layer");
        let begun = self.clock.now();
        self.api.commit(&name, key)?;
        let snapshot = Snapshot {
            key: name,
            kind: Kind::Committed,
            parent,
            contents: Contents::Layer(Arc::new(layer)),
            root: PathBuf::new(),
        };
        self.story
            .replaced(begun, self.clock.now(), number, snapshot);
        Ok(())
    }

    /// One that nothing stands on.
    fn remove(&mut self) -> Result<()> {
        let alive = self.story.alive();
        let parents: Vec<&str> = alive
            .values()
            .map(|number| self.story.snapshots[*number].parent.as_str())
            .collect();
        let leaves = alive
            .iter()
            .filter(|(key, _)| !parents.contains(&key.as_str()));
        let leaves: Vec<(String, usize)> =
            leaves.map(|(key, number)| (key.clone(), *number)).collect();
        let Some((key, number)) = self.chance.choice(leaves) else {
            return self.prepare();
        };
        let begun = self.clock.now();
        self.api.remove(&key)?;
        self.story.removed(begun, self.clock.now(), number);
        Ok(())
    }

    fn key(&mut self, kind: &str) -> String {
        self.number += 1;
        // What containerd's own keys look like: Lamina tells by `extract-` who writes.
        format!("{}/{}/{kind}-{}", self.name, self.number, self.number)
    }

    fn any(&mut self, is_fit: impl Fn(&Snapshot) -> bool) -> Option<usize> {
        let alive = self.story.alive().into_values();
        let fit: Vec<usize> = alive
            .filter(|number| is_fit(&self.story.snapshots[*number]))
            .collect();
        self.chance.choice(fit)
    }

    /// A committed snapshot with what is in it, or none.
    fn any_layer(&mut self) -> (String, Arc<Layer>) {
        let is_layer = |snapshot: &Snapshot| snapshot.kind == Kind::Committed;
        let nothing = || (String::new(), Arc::default());
        if self.chance.u8(0..8) == 0 {
            return nothing();
        }
        let Some(number) = self.any(is_layer) else {
            return nothing();
        };
        let snapshot = &self.story.snapshots[number];
        match &snapshot.contents {
            Contents::Layer(layer) => (snapshot.key.clone(), Arc::clone(layer)),
            _ => nothing(),
        }
    }
}
