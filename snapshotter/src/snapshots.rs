//! The ten verbs, in the order of containerd's API.
//!
//! Every change has the same shape: make, sync, rename, commit to the store, delete. The store's
//! transaction is the moment at which a verb happens; what comes before can be undone, and what
//! comes after is repeated by the next cleanup or start ([`crate::recover`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use lamina_fusefs::Urgent;
use lamina_fusefs::session::Stuck;

use crate::busy::Busy;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::id_map::IdMap;
use crate::lazy::status::{CacheAction, CacheStatus, LayerStatus};
use crate::lazy::{SNAPSHOT_REF, Wanted};
use crate::mounts::{self, Access, Mount};
use crate::recover::{self, Report};
use crate::root::{self, RootLock};
use crate::serve::{Mounter, Sessions, locked};
use crate::status::SnapshotStatus;
use crate::store::Store;
use crate::store::layout::{Entry, Layout};
use crate::store::records::{Info, Kind, Labels, Record, Usage};
use crate::upper_mode::UpperMode;
use crate::{cleanup, dirs, indexes, usage};

/// A key of so many bytes is too long. containerd's are a few hundred bytes at most.
const TOO_LONG_KEY: usize = 4096;

/// The longest label with its value, in bytes: the limit of containerd's API.
const LONGEST_LABEL: usize = 4096;

/// How many snapshots `list` hands out at once.
const PAGE: usize = 100;

/// How a daemon stops.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// Perhaps another one comes: everything is left to it, if anybody uses any mount.
    Leave,
    /// Another one comes at once: everything is left to it.
    HandOver,
    /// For good: nothing stays mounted.
    End,
}

impl From<()> for Stop {
    fn from((): ()) -> Stop {
        Stop::End
    }
}

/// The snapshotter of one root directory.
pub struct Snapshots {
    layout: Layout,
    store: Store,
    sessions: Sessions,
    busy: Busy,
    disk: Disk,
    /// Who holds the uppers of containers whose labels do not say.
    upper: UpperMode,
    /// Numbers of snapshots whose directories exist and which are not in the store yet.
    making: Mutex<HashSet<u64>>,
    _lock: RootLock,
}

impl Snapshots {
    /// Opens a root directory, repairs what a crash left, and mounts what is in use.
    pub fn open(root: &Path, mounter: Arc<dyn Mounter>) -> Result<(Snapshots, Report)> {
        // Until that is served which an earlier daemon left: programs wait for it.
        let urgent = Urgent::begin();
        let layout = Layout::create(root)?;
        let lock = RootLock::acquire(&layout)?;
        step("probe", || root::probe(&layout))?;
        let disk = Disk::open(&layout)?;
        let store = step("store", || Store::open(&layout, greatest_id(&layout)?))?;
        let mut left = BTreeMap::new();
        if let Some(keeping) = mounter.keeping() {
            step("holder", || keeping.begin(&layout))?;
            left = keeping.mounts();
        }
        let detached = step("mounts", || recover::clear_mounts(&layout, &left))?;
        step("cache", || mounter.begin(&layout)).map_err(|source| Error::Cache {
            path: layout.cache(),
            source,
        })?;
        let sessions = Sessions::new(layout.clone(), mounter);
        let snapshots = Snapshots {
            layout,
            store,
            sessions,
            busy: Busy::default(),
            disk,
            upper: UpperMode::default(),
            making: Mutex::default(),
            _lock: lock,
        };
        let mut report = Report {
            detached,
            ..Report::default()
        };
        let others = step("take-over", || snapshots.take_over(&left, &mut report))?;
        drop(urgent);
        if let Err(error) = step("cleanup", || snapshots.remove_leftovers(&mut report)) {
            // No reason to drop what was taken over.
            tracing::warn!(%error, "what a crash left stays until the next start");
        }
        step("others", || {
            snapshots.mount_several(others, &mut report, false);
        });
        if let Some(keeping) = snapshots.sessions.keeping() {
            keeping.drop_mounts();
        }
        Ok((snapshots, report))
    }

    /// From now on new containers get this, unless their labels ask for something else.
    #[must_use]
    pub fn with_upper(self, upper: UpperMode) -> Snapshots {
        Snapshots { upper, ..self }
    }

    /// Makes a writable snapshot. If it is for unpacking a layer that can be served as it lies in its
    /// registry, that layer is made instead, and the answer is [`Error::AlreadyExists`]: containerd
    /// then looks for it by its label, and unpacks nothing (containerd, docs/remote-snapshotter.md).
    pub fn prepare(&self, key: &str, parent: &str, labels: &Labels) -> Result<Vec<Mount>> {
        if let Some(name) = labels.get(SNAPSHOT_REF)
            && self.prepare_lazily(key, name, parent, labels)?
        {
            return Err(Error::AlreadyExists {
                key: name.to_owned(),
            });
        }
        self.create(Kind::Active, key, parent, labels)
    }

    /// Makes a read-only look at a committed snapshot.
    pub fn view(&self, key: &str, parent: &str, labels: &Labels) -> Result<Vec<Mount>> {
        self.create(Kind::View, key, parent, labels)
    }

    /// The mounts of an active snapshot or a view; it is mounted first if it is not.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let _held = self.busy.hold(&[key]);
        let info = self.store.get(key)?;
        let chain = self.store.chain_below(&info.record)?;
        let access = mounts::access(&self.layout, key, &info.record, &chain);
        let access = access.ok_or_else(|| Error::WrongKind {
            verb: "mount",
            key: key.to_owned(),
            kind: info.record.kind,
            needed: "active or a view",
        })?;
        self.start(&access, info.record.id, &chain)?;
        Ok(mounts::mounts(&access))
    }

    /// Makes an active snapshot a committed one with a new name.
    pub fn commit(&self, name: &str, key: &str, labels: &Labels) -> Result<()> {
        check_key("name", name)?;
        check_labels(labels)?;
        let _held = self.busy.hold(&[key, name]);
        let record = self.store.committable(key, name)?;
        let id = record.id;
        let chain = self.store.chain_below(&record)?;
        let access = mounts::access(&self.layout, key, &record, &chain);
        let was_running = self.sessions.is_running(id);
        if !was_running && dirs::was_served(&self.layout, id)? {
            // Only the union can complete such an upper; one that could not be mounted at start
            // stays active.
            self.mounts_of_held(key)?;
        }
        if self.sessions.is_running(id) {
            // What would fail has to, before the container loses its mount.
            self.sync(id)?;
            dirs::can_change(&self.layout, id)?;
        }
        let sealed = self.sessions.seal(id);
        if let Ok(false) = sealed {
            tracing::warn!(
                key,
                name,
                "somebody still uses a snapshot that is being committed"
            );
        }
        let committed = sealed
            .and_then(|_| usage::measure(&self.layout.fs(id)))
            .and_then(|usage| self.sync(id).map(|()| usage))
            .and_then(|usage| self.store.commit(key, name, usage, labels).map(drop));
        // A transaction that failed while it was made durable may have happened.
        let Err(error) = committed.or_else(|error| match self.has_happened(name, id) {
            Some(true) => Ok(()),
            _ => Err(error),
        }) else {
            // What the seal has not ended yet: the use of the image mount.
            self.stop(access.as_ref(), id);
            // Links in the work directory count as the files' own until it is gone.
            dirs::discard_work(&self.layout, id);
            self.sessions.committed(id);
            return Ok(());
        };
        if was_running && let Err(error) = self.mounts_of_held(key) {
            tracing::warn!(key, %error, "cannot mount a snapshot again that was not committed");
        }
        Err(error)
    }

    /// Removes a snapshot that has no children.
    pub fn remove(&self, key: &str) -> Result<()> {
        let _held = self.busy.hold(&[key]);
        let Info { record, .. } = self.store.get(key)?;
        let chain = self.store.chain_below(&record)?;
        if let Err(error) = self.store.remove(key) {
            // As in `commit`: it may have happened all the same.
            let happened =
                matches!(error, Error::Store { .. }) && matches!(self.store.find(key), Ok(None));
            if !happened {
                return Err(error);
            }
        }
        let access = mounts::access(&self.layout, key, &record, &chain);
        self.stop(access.as_ref(), record.id);
        self.sessions.removed(record.id);
        dirs::discard(&self.layout, record.id);
        Ok(())
    }

    /// What the store knows of a snapshot.
    pub fn stat(&self, key: &str) -> Result<Info> {
        self.store.get(key)
    }

    /// Changes labels: those that `paths` name, or all of them if it is empty.
    pub fn update(&self, key: &str, labels: &Labels, paths: &[String]) -> Result<Info> {
        check_labels(labels)?;
        self.store.update(key, labels, paths)
    }

    /// Hands out the snapshots that match any of the filters, in pages.
    pub fn list(
        &self,
        filters: &[String],
        page: &mut dyn FnMut(Vec<Info>) -> Result<()>,
    ) -> Result<()> {
        let filter = Filter::parse(filters)?;
        let mut found = Vec::new();
        self.store.walk(&mut |info| {
            if filter.matches(&info) {
                found.push(info);
            }
            Ok(())
        })?;
        // After the transaction: a slow reader keeps no page of the store from being used again.
        while !found.is_empty() {
            let rest = found.split_off(found.len().min(PAGE));
            page(std::mem::replace(&mut found, rest))?;
        }
        Ok(())
    }

    /// What a snapshot takes without its parents: measured while it is active, and as it was
    /// committed after that.
    pub fn usage(&self, key: &str) -> Result<Usage> {
        let Info { record, .. } = self.store.get(key)?;
        match record.kind {
            Kind::Active => usage::measure(&self.layout.fs(record.id)),
            Kind::View | Kind::Committed => Ok(record.usage),
        }
    }

    /// Deletes what no snapshot refers to.
    pub fn cleanup(&self) -> Result<()> {
        let removed = cleanup::run(&self.layout, &self.store, &self.making)?;
        if !removed.is_empty() {
            tracing::info!(?removed, "cleanup removed leftovers");
        }
        Ok(())
    }

    /// Everything that a person asks of the snapshots, in the order of their keys.
    pub fn status(&self) -> Result<Vec<SnapshotStatus>> {
        let mut all = Vec::new();
        self.store.walk(&mut |info| {
            all.push(info);
            Ok(())
        })?;
        Ok(all.iter().map(|info| self.status_of(info)).collect())
    }

    /// The layers that were not unpacked.
    pub fn lazy_layers(&self) -> Vec<LayerStatus> {
        self.sessions.lazy_layers()
    }

    /// Does something about the cache of their files.
    pub fn keep_cache(&self, action: CacheAction) -> Result<CacheStatus> {
        self.sessions.keep_cache(action)
    }

    /// Ends all mounts, or leaves them to the next daemon if somebody keeps them; says whether it left
    /// them. The snapshots stay as they are, for the next start.
    pub fn close(&self, how: Stop) -> bool {
        let leaves = match how {
            Stop::HandOver => true,
            Stop::Leave => self.sessions.are_used(),
            Stop::End => false,
        };
        if leaves && self.sessions.leave() {
            return true;
        }
        self.sessions.stop_all();
        false
    }

    /// Requests of containers that have been answered for at least so long and still are, by the mount
    /// point.
    pub(crate) fn stuck(&self, limit: Duration) -> Vec<(PathBuf, Stuck)> {
        self.sessions.stuck(limit)
    }

    fn status_of(&self, info: &Info) -> SnapshotStatus {
        let id = info.record.id;
        let mut status = SnapshotStatus::of(info);
        // One that is removed this moment has no size and no mount.
        if info.record.kind == Kind::Active
            && let Ok(usage) = usage::measure(&self.layout.fs(id))
        {
            status.size_bytes = usage.size;
            status.inodes = usage.inodes;
        }
        let chain = self.store.chain_below(&info.record).unwrap_or_default();
        status.mount = match mounts::access(&self.layout, &info.key, &info.record, &chain) {
            Some(Access::Union { at, .. }) if self.sessions.is_running(id) => Some(at),
            Some(
                Access::Shared { at, chain }
                | Access::Kernel {
                    image: at, chain, ..
                },
            ) if self.sessions.uses_image(id, chain) => Some(at),
            _ => None,
        };
        if status.mount.is_some() {
            status.indexed = self.sessions.is_indexed(id, chain.first().copied());
        }
        status
    }

    fn create(&self, kind: Kind, key: &str, parent: &str, labels: &Labels) -> Result<Vec<Mount>> {
        check_key("key", key)?;
        check_labels(labels)?;
        if kind == Kind::View && IdMap::of(labels)?.is_some() {
            return Err(Error::ShiftedView {
                key: key.to_owned(),
            });
        }
        let _held = self.busy.hold(&[key]);
        let (lazy, chain) = match parent {
            "" => (false, Vec::new()),
            parent => {
                let (record, chain) = self.store.parent(parent)?;
                (record.lazy, chain)
            }
        };
        if self.store.find(key)?.is_some() {
            return Err(Error::AlreadyExists {
                key: key.to_owned(),
            });
        }
        let record = Record {
            parent: chain.first().map(|_| parent.to_owned()),
            labels: labels.clone(),
            upper: upper_of_new(kind, key, labels, self.upper, lazy)?,
            lazy,
            ..Record::unsaved(self.store.allocate(), kind)
        };
        self.making().insert(record.id);
        let answer = self.create_as(&record, key, &chain);
        self.making().remove(&record.id);
        answer
    }

    /// Makes the layer `name` without unpacking it; `false` if that is not to be.
    fn prepare_lazily(&self, key: &str, name: &str, parent: &str, labels: &Labels) -> Result<bool> {
        check_key("key", key)?;
        check_key("name", name)?;
        check_labels(labels)?;
        let _held = self.busy.hold(&[key, name]);
        let parent_name = (!parent.is_empty()).then(|| parent.to_owned());
        if let Some(Info { record, .. }) = self.store.find(name)? {
            // Another image has it, or another namespace. On another parent it is another snapshot, and
            // of another blob it may be one that only claims to be the same.
            let (ours, theirs) = (Wanted::of(labels), Wanted::of(&record.labels));
            let is_same_blob = ours
                .zip(theirs)
                .is_none_or(|(ours, theirs)| ours.digest == theirs.digest);
            let target = record.labels.get(SNAPSHOT_REF);
            return Ok(record.kind == Kind::Committed
                && record.parent == parent_name
                && target.is_some_and(|target| target == name)
                && is_same_blob);
        }
        if !self.sessions.is_lazy(labels) || self.store.find(key)?.is_some() {
            return Ok(false);
        }
        let chain = match parent {
            "" => Vec::new(),
            parent => self.store.parent(parent)?.1,
        };
        let id = self.store.allocate();
        self.making().insert(id);
        let made = self.make_lazily(id, name, parent_name, &chain, labels);
        self.making().remove(&id);
        made
    }

    fn make_lazily(
        &self,
        id: u64,
        name: &str,
        parent: Option<String>,
        chain: &[u64],
        labels: &Labels,
    ) -> Result<bool> {
        let made = dirs::make_lazy(&self.layout, id, |dir| {
            self.sessions.make_lazy(chain, labels, dir)
        });
        if let Err(error) = made {
            tracing::info!(name, %error, "a layer is unpacked: it cannot be served lazily");
            return Ok(false);
        }
        let created = usage::measure(&self.layout.snapshot(id)).and_then(|usage| {
            let record = Record {
                parent,
                labels: labels.clone(),
                lazy: true,
                usage,
                ..Record::unsaved(id, Kind::Committed)
            };
            self.store.create(name, &record, chain.first().copied())
        });
        // A transaction that failed while it was made durable may have happened.
        let created = created.map(drop);
        let created = created.or_else(|error| match self.has_happened(name, id) {
            Some(true) => Ok(()),
            Some(false) => {
                dirs::discard(&self.layout, id);
                Err(error)
            }
            None => Err(error),
        });
        created.map(|()| {
            self.sessions.made_lazy(id);
            true
        })
    }

    fn create_as(&self, record: &Record, key: &str, chain: &[u64]) -> Result<Vec<Mount>> {
        let (id, parent) = (record.id, chain.first().copied());
        dirs::make(&self.layout, id, record.kind, parent)?;
        let access = access_of_new(&self.layout, key, record, chain);
        let made = self
            .start(&access, id, chain)
            .and_then(|()| self.store.create(key, record, parent));
        let Err(error) = made else {
            return Ok(mounts::mounts(&access));
        };
        // A transaction that failed while it was made durable may have happened.
        match self.has_happened(key, id) {
            Some(true) => return Ok(mounts::mounts(&access)),
            Some(false) => {
                self.stop(Some(&access), id);
                dirs::discard(&self.layout, id);
            }
            // The store may know it: whatever is on the disk stays until the next start.
            None => {}
        }
        Err(error)
    }

    /// Whether a transaction that failed gave this key to this snapshot all the same; `None` if
    /// the store does not answer.
    fn has_happened(&self, key: &str, id: u64) -> Option<bool> {
        match self.store.find(key) {
            Ok(found) => Some(found.is_some_and(|info| info.record.id == id)),
            Err(error) => {
                tracing::error!(key, %error, "cannot tell whether a transaction happened");
                None
            }
        }
    }

    /// Makes durable what was written to a snapshot that is to be committed.
    fn sync(&self, id: u64) -> Result<()> {
        self.disk.sync_snapshot(id, self.store.next_id())
    }

    fn start(&self, access: &Access, id: u64, chain: &[u64]) -> Result<()> {
        match access {
            Access::Union { id_map, .. } => self.sessions.start(id, chain, id_map.is_some()),
            Access::Shared { .. } | Access::Kernel { .. } => self.sessions.start_image(id, chain),
            Access::Directory { .. } | Access::Overlay { .. } => Ok(()),
        }
    }

    fn stop(&self, access: Option<&Access>, id: u64) {
        match access {
            Some(Access::Union { .. }) => {
                self.sessions.stop(id);
            }
            Some(Access::Shared { chain, .. } | Access::Kernel { chain, .. }) => {
                self.sessions.stop_image(id, *chain);
            }
            Some(Access::Directory { .. } | Access::Overlay { .. }) | None => {}
        }
    }

    /// Mounts a snapshot again; the caller holds the key.
    fn mounts_of_held(&self, key: &str) -> Result<()> {
        let info = self.store.get(key)?;
        let chain = self.store.chain_below(&info.record)?;
        match mounts::access(&self.layout, key, &info.record, &chain) {
            Some(access) => self.start(&access, info.record.id, &chain),
            None => Ok(()),
        }
    }

    /// Takes over what an earlier daemon left: first what is done soonest, so that few wait for long.
    /// Answers the keys of everything else that is in use.
    fn take_over(&self, left: &BTreeMap<u64, u64>, report: &mut Report) -> Result<Vec<String>> {
        let (mut images, mut used) = (HashMap::new(), Vec::new());
        self.store.walk(&mut |info| {
            let amount = left.get(&info.record.id).copied();
            match (info.record.kind, amount) {
                (Kind::Committed, Some(amount)) => drop(images.insert(info.key, amount)),
                (Kind::Committed, None) => {}
                _ => used.push((amount, info)),
            }
            Ok(())
        })?;
        let (mut taken, mut others) = (Vec::new(), Vec::new());
        for (amount, info) in used {
            // An image mount has the number of the topmost layer.
            let image = info.record.parent.and_then(|name| images.get(&name));
            match amount.or(image.copied()) {
                Some(amount) => taken.push((amount, info.key)),
                None => others.push(info.key),
            }
        }
        taken.sort_unstable();
        let taken = taken.into_iter().map(|(_, key)| key).collect();
        self.mount_several(taken, report, true);
        Ok(others)
    }

    /// Mounts snapshots again, in this order, as many at a time as there are processors.
    fn mount_several(&self, keys: Vec<String>, report: &mut Report, is_urgent: bool) {
        let next = Mutex::new(keys.into_iter());
        let report = Mutex::new(report);
        let work = || {
            let _urgent = is_urgent.then(Urgent::begin);
            while let Some(key) = locked(&next).next() {
                let mounted = self.mounts_of_held(&key);
                let mut report = locked(&report);
                match mounted {
                    Ok(()) => report.mounted += 1,
                    Err(error) => report.failed.push((key, error)),
                }
            }
        };
        thread::scope(|scope| {
            let others = thread::available_parallelism().map_or(1, usize::from) - 1;
            for _ in 0..others {
                scope.spawn(work);
            }
            work();
        });
    }

    /// Deletes what a crash left. Nobody makes anything new yet.
    fn remove_leftovers(&self, report: &mut Report) -> Result<()> {
        report.removed = cleanup::run(&self.layout, &self.store, &self.making)?;
        for id in self.store.ids()?.keys() {
            (report.removed).extend(indexes::remove_leftovers(&self.layout, *id)?);
        }
        Ok(())
    }

    fn making(&self) -> MutexGuard<'_, HashSet<u64>> {
        locked(&self.making)
    }
}

/// A step of the start: with how long it took, in the log of whoever wants to know.
fn step<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    tracing::debug_span!("start", name).in_scope(work)
}

/// Who will hold the upper of a new snapshot, if it is a container's; of no other it is said, but that
/// a layer which is unpacked above lazy ones stands on an image mount as the kernel's uppers do.
fn upper_of_new(
    kind: Kind,
    key: &str,
    labels: &Labels,
    default: UpperMode,
    lazy: bool,
) -> Result<UpperMode> {
    match (kind, mounts::is_extract(key)) {
        (Kind::Active, false) => UpperMode::of_new(labels, default),
        (Kind::Active, true) if lazy => Ok(UpperMode::Kernel),
        _ => Ok(UpperMode::default()),
    }
}

/// How a snapshot that the store does not know yet will reach its user.
fn access_of_new(layout: &Layout, key: &str, record: &Record, chain: &[u64]) -> Access {
    mounts::access(layout, key, record, chain).unwrap_or(Access::Directory {
        fs: layout.fs(record.id),
        writable: false,
    })
}

/// The greatest number that a directory on the disk has.
fn greatest_id(layout: &Layout) -> Result<u64> {
    let dir = layout.snapshots();
    let mut greatest = 0;
    for entry in fs::read_dir(&dir).map_err(Error::io("cannot list", &dir))? {
        let name = entry.map_err(Error::io("cannot list", &dir))?.file_name();
        if let Entry::Snapshot(id) = Layout::classify(&name) {
            greatest = greatest.max(id);
        }
    }
    Ok(greatest)
}

fn check_key(what: &'static str, key: &str) -> Result<()> {
    let reason = if key.is_empty() {
        "is empty: every snapshot needs one"
    } else if key.len() >= TOO_LONG_KEY {
        "has 4096 bytes or more: at most 4095 are allowed"
    } else if key.chars().any(char::is_control) {
        "holds control characters"
    } else {
        return Ok(());
    };
    Err(Error::BadKey {
        what,
        key: key.to_owned(),
        reason,
    })
}

fn check_labels(labels: &Labels) -> Result<()> {
    for (label, value) in labels {
        let length = label.len() + value.len();
        if length > LONGEST_LABEL {
            return Err(Error::BadLabel {
                label: label.clone(),
                length,
            });
        }
    }
    IdMap::of(labels).map(drop)
}

#[cfg(test)]
mod tests;
