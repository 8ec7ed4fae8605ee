//! What is done in the mount, timed and verified: the rows of the table.
//!
//! A work is a value: its name, what the caches hold when it begins, and three functions.
//! `prepare` gives what `run` needs and what has to come out of it, `run` is timed, and `check`
//! looks at what a work that changes the mount has left, after a remount.

mod attributes;
mod data;
mod fio;
mod git;
mod names;
mod small;
pub(crate) mod walk;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::ground::{Ground, Layers};
use crate::image::Image;

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Work {
    /// What it is called in filters and in JSON.
    pub name: &'static str,
    /// What it is called in tables.
    pub title: &'static str,
    /// Over which layers it runs.
    pub layers: Layers,
    /// What the caches hold when it begins.
    pub cache: Cache,
    /// What Lamina has to reach.
    pub target: Target,
    /// Makes what `run` needs. Not timed.
    pub prepare: fn(&Place) -> Result<Input>,
    /// The work itself.
    pub run: fn(&Place, &Input) -> Result<Outcome>,
    /// Verifies what a work has changed, on a fresh mount of the same upper. `None` if a work
    /// changes nothing.
    pub check: Option<fn(&Place, &Input) -> Result<()>>,
}

/// What the caches hold when a work begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Nothing: everything was dropped after mounting.
    Cold,
    /// What the same work has left there just before.
    Warm,
    /// The layers' files as they are on the host; the mount is fresh, as a container that starts.
    Fresh,
    /// As `Fresh`, and mounting is part of the time.
    Unmounted,
}

/// What a ratio of medians may be at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Compared with overlayfs in the same work.
    Overlayfs(f64),
    /// Compared with the same system in another work.
    Itself(&'static str, f64),
    /// No ratio: what is measured may be so much at most.
    Absolute(f64),
    /// It is there to be known.
    None,
}

/// Where a work runs.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The race's directory.
    pub ground: &'a Ground,
    /// Over which layers the mount is.
    pub layers: Layers,
    /// The root of the mount.
    pub root: &'a Path,
}

impl Place<'_> {
    fn image(&self) -> &Image {
        self.ground.image(self.layers)
    }

    fn count(&self, full: u32) -> usize {
        self.ground.scale().count(full)
    }
}

/// What a work is done with, and what has to come out.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// Absolute paths in the mount.
    pub paths: Vec<PathBuf>,
    /// What `run` has to give.
    pub expected: Outcome,
}

/// What came out of a work. Two systems that do the same have the same outcome.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Names, files or requests.
    pub count: u64,
    /// Bytes that were read or written.
    pub bytes: u64,
    /// A digest of what was seen.
    pub digest: u64,
    /// The time, if another program measured it.
    pub took: Option<Duration>,
}

impl Outcome {
    /// Adds one name and what is known of it. The order of names doesn't count.
    fn add(&mut self, bytes: u64, digest: u64) {
        self.count += 1;
        self.bytes += bytes;
        self.digest = self.digest.wrapping_add(digest);
    }
}

impl PartialEq for Outcome {
    /// The time is no part of what came out.
    fn eq(&self, other: &Outcome) -> bool {
        (self.count, self.bytes, self.digest) == (other.count, other.bytes, other.digest)
    }
}

/// All works, in the order of the table.
pub fn all() -> Vec<Work> {
    [
        walk::works(),
        small::works(),
        names::works(),
        data::works(),
        fio::works(),
        attributes::works(),
        git::works(),
    ]
    .concat()
}
