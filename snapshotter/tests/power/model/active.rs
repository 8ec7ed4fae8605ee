//! A container's root: all that it was.
//!
//! Names, kinds and permissions change in one order, and a file system with a journal keeps it. So
//! what a power cut leaves is one of the states that the tree has had: not one before the last
//! that was synced, and not one that had not begun. Bytes keep no order: see [`contents`].

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::super::disk::Sparse;
use super::contents;
use super::layer::Layer;
use super::tree::{FileId, Tree};

/// The tree from one change to the next.
struct State {
    /// Where the log was when the change began.
    begun: usize,
    tree: Tree,
}

/// The bytes of a file from one write to the next.
struct Version {
    begun: usize,
    /// Where the log was when a sync was answered.
    synced: Option<usize>,
    bytes: Sparse,
}

struct History {
    versions: Vec<Version>,
    /// The last state of the tree that an fsync of it takes along.
    changed: usize,
    /// The same of an fdatasync, which leaves the names that the program gave it.
    grown: usize,
    /// Whether there was one. The first takes along what an fsync does.
    is_settled: bool,
}

pub(crate) struct Active {
    states: Vec<State>,
    files: HashMap<FileId, History>,
    /// Where the log was when a sync was answered, and which state it made durable.
    synced: Vec<(usize, usize)>,
    next: FileId,
}

/// How something is made durable: by fsync(2), by fdatasync(2), or at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sync {
    All,
    Data,
    /// Writing with `O_SYNC`: that one write, and none before it that has not been synced.
    Write,
}

impl Active {
    /// A container of this image.
    pub(crate) fn of(image: &Layer, begun: usize) -> Active {
        let files = image.files.iter().map(|(file, bytes)| {
            let version = Version {
                begun,
                // Layers are durable.
                synced: Some(begun),
                bytes: bytes.clone(),
            };
            (*file, History::of(version, 0))
        });
        let tree = image.tree.clone();
        Active {
            next: image.files.keys().max().map_or(0, |last| last + 1),
            files: files.collect(),
            states: vec![State { begun, tree }],
            synced: Vec::new(),
        }
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.states[self.states.len() - 1].tree
    }

    pub(crate) fn bytes(&self, file: FileId) -> &Sparse {
        let versions = &self.files[&file].versions;
        &versions[versions.len() - 1].bytes
    }

    /// Notes a change of the tree by a call that began at `begun` and has been answered, and about
    /// which files it was.
    pub(crate) fn changed(&mut self, begun: usize, of: &[FileId], change: impl FnOnce(&mut Tree)) {
        let mut tree = self.tree().clone();
        change(&mut tree);
        self.states.push(State { begun, tree });
        for file in of {
            if let Some(history) = self.files.get_mut(file) {
                history.changed = self.states.len() - 1;
            }
        }
    }

    /// The number for an empty file that is about to be made.
    pub(crate) fn new_file(&mut self, begun: usize) -> FileId {
        let file = self.next;
        self.next += 1;
        let version = Version {
            begun,
            synced: None,
            bytes: Sparse::default(),
        };
        let state = self.states.len();
        self.files.insert(file, History::of(version, state));
        file
    }

    /// Notes that a file has got other bytes.
    pub(crate) fn wrote(&mut self, begun: usize, file: FileId, bytes: Sparse) {
        let last = self.states.len() - 1;
        let Some(history) = self.files.get_mut(&file) else {
            return;
        };
        let before = history.versions.last().map(|version| version.bytes.len());
        if before != Some(bytes.len()) {
            history.changed = last;
            history.grown = last;
        }
        history.versions.push(Version {
            begun,
            synced: None,
            bytes,
        });
    }

    /// Notes that a sync of a file was answered.
    pub(crate) fn synced(&mut self, now: usize, file: FileId, how: Sync) {
        let Some(history) = self.files.get_mut(&file) else {
            return;
        };
        let mut before = history.versions.iter().rev().skip(1);
        if how == Sync::Write
            && before
                .next()
                .is_some_and(|version| version.synced.is_none())
        {
            return;
        }
        if let Some(version) = history.versions.last_mut() {
            version.synced.get_or_insert(now);
        }
        let takes_all = how == Sync::All || !history.is_settled;
        history.is_settled |= how != Sync::All;
        let state = if takes_all {
            history.changed
        } else {
            history.grown
        };
        self.synced.push((now, state));
    }

    /// Notes that a sync of the directory was answered in which the last change was.
    pub(crate) fn synced_directory(&mut self, now: usize) {
        self.synced.push((now, self.states.len() - 1));
    }

    /// How many syncs were answered until then.
    pub(crate) fn syncs_until(&self, cut: usize) -> u64 {
        self.synced.iter().filter(|(at, _)| *at <= cut).count() as u64
    }

    /// What it becomes by a commit.
    pub(crate) fn to_layer(&self) -> Layer {
        let tree = self.tree().clone();
        let files: HashSet<FileId> = tree.files().into_iter().map(|(_, file)| file).collect();
        let files = files
            .into_iter()
            .map(|file| (file, self.bytes(file).clone()));
        Layer {
            files: files.collect(),
            tree,
        }
    }

    /// Fails if a mount shows something that can't be after a cut at this position. Answers how many
    /// files were read.
    pub(crate) fn verify(&self, root: &Path, cut: usize) -> Result<u64> {
        let found = Tree::read(root)?;
        let alike = found.canonical();
        let answered = self.synced.iter().filter(|(at, _)| *at <= cut);
        let least = answered.map(|(_, state)| *state).max().unwrap_or(0);
        let begun = self.states.iter().filter(|state| state.begun < cut);
        let end = begun.count().max(1);
        let candidates = &self.states[least.min(end - 1)..end];
        let mut why = Vec::new();
        for (number, state) in candidates.iter().enumerate().rev() {
            if state.tree.canonical() == alike {
                match self.verify_files(root, &state.tree, cut) {
                    Ok(read) => return Ok(read),
                    Err(error) => why.push(format!("as state {}: {error:#}", least + number)),
                }
            }
        }
        if why.is_empty() {
            let (first, last) = (&candidates[0].tree, &candidates[candidates.len() - 1].tree);
            why.push(format!("from the first: {}", found.differences(first)));
            why.push(format!("from the last: {}", found.differences(last)));
        }
        bail!(
            "it is none of the states {least} to {}:\n{}",
            end - 1,
            why.join("\n")
        )
    }

    fn verify_files(&self, root: &Path, tree: &Tree, cut: usize) -> Result<u64> {
        let mut read = 0;
        for (path, file) in tree.files() {
            let versions = &self.files[&file].versions;
            let is_synced = |version: &Version| version.synced.is_some_and(|at| at <= cut);
            let first = versions.iter().rposition(is_synced).unwrap_or(0);
            let end = versions.partition_point(|version| version.begun < cut);
            ensure!(
                first < end.max(1),
                "{path} was synced before it was written"
            );
            let possible = versions[first..end.max(1)].iter();
            let possible: Vec<&Sparse> = possible.map(|version| &version.bytes).collect();
            let open = File::open(root.join(path)).with_context(|| path.clone())?;
            contents::verify(&open, &possible).with_context(|| path.clone())?;
            read += 1;
        }
        Ok(read)
    }
}

impl History {
    fn of(version: Version, state: usize) -> History {
        History {
            versions: vec![version],
            changed: state,
            grown: state,
            is_settled: false,
        }
    }
}
