//! What is done about lazy layers while nobody waits for it.
//!
//! Three threads, for as long as the root is open. The *prefetcher* fetches what will be wanted first of
//! layers that were just made: what the profile of their image tells, and what their makers say. The
//! *filler* then fetches all of them, if that is wished for. While somebody waits for a file, it leaves
//! the link alone half of the time, and for the prefetcher all of the time. The *keeper* keeps the cache
//! within its limits, clears away what belonged to layers that were removed, and writes down what was
//! recorded.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lamina_fusefs::blob::{self, Digest, digests_in};
use parking_lot::{Condvar, Mutex};

use super::profile::Profiles;
use super::record::{Record, Verdict};
use super::{Lazy, whole};
use crate::store::layout::{Entry, Layout};

/// How often the keeper looks at the cache.
const EVERY: Duration = Duration::from_secs(10);
/// How long it waits after a layer was removed: others may follow.
const SETTLE: Duration = Duration::from_millis(200);
/// The longest that the filler stands back at a time.
pub(super) const STAND_BACK: Duration = Duration::from_millis(500);
/// How long a layer is left alone that could not be filled.
const RETRY: Duration = Duration::from_mins(1);
/// How much of its limit the cache may take after it was made smaller, in percent: the low water mark.
const LOW: u64 = 90;

/// How large the cache may be, and what is fetched without being asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// The most bytes of the cache; 0: no limit.
    pub cache_bytes: u64,
    /// How much of the file system is left free, in percent.
    pub free_percent: u64,
    /// Whether layers are fetched as a whole.
    pub fill: bool,
    /// The most bytes a second that this may take; 0: no limit.
    pub fill_rate: u64,
    /// What is done about profiles.
    pub profiles: Profiles,
    /// The repositories of which indexes in the registry are believed; `*` at the end stands for anything.
    pub trusted_indexes: Vec<String>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            cache_bytes: 0,
            free_percent: 5,
            fill: true,
            fill_rate: 0,
            profiles: Profiles::default(),
            trusted_indexes: Vec::new(),
        }
    }
}

/// What all threads are told.
#[derive(Default)]
pub(super) struct Orders {
    state: Mutex<State>,
    changed: Condvar,
    stopping: AtomicBool,
    /// The cache is at its limit: filling it further would only take away what is in it.
    is_full: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Layers of which what will be wanted first is to be fetched.
    to_prefetch: VecDeque<u64>,
    /// Whether that is being done.
    is_prefetching: bool,
    /// Layers to be filled, and not before when.
    to_fill: VecDeque<(u64, Instant)>,
    /// Layers that were removed; their directories may still be there.
    removed: Vec<u64>,
}

impl Orders {
    /// A layer was made.
    pub(super) fn made(&self, id: u64) {
        let mut state = self.state.lock();
        state.to_prefetch.push_back(id);
        state.to_fill.push_back((id, Instant::now()));
        drop(state);
        self.changed.notify_all();
    }

    /// A layer was made by an earlier process.
    fn found(&self, id: u64) {
        self.state.lock().to_fill.push_back((id, Instant::now()));
    }

    /// Whether something is prefetched, for which a filler gives way.
    pub(super) fn gives_way(&self) -> bool {
        self.state.lock().gives_way()
    }

    /// Waits until nothing is prefetched.
    fn give_way(&self) {
        let mut state = self.state.lock();
        while state.gives_way() && !self.is_stopping() {
            self.changed.wait(&mut state);
        }
    }

    /// A layer was removed.
    pub(super) fn removed(&self, id: u64) {
        let mut state = self.state.lock();
        state.to_prefetch.retain(|other| *other != id);
        state.to_fill.retain(|(other, _)| *other != id);
        state.removed.push(id);
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Whoever is about to wait has the lock.
        drop(self.state.lock());
        self.changed.notify_all();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Whether there is room for more in the cache, and nobody said to stop.
    pub(super) fn may_fill(&self) -> bool {
        !self.is_stopping() && !self.is_full.load(Ordering::SeqCst)
    }
}

impl State {
    /// Whether there is something to prefetch, for which a filler gives way.
    fn gives_way(&self) -> bool {
        self.is_prefetching || !self.to_prefetch.is_empty()
    }
}

/// Starts them. They end when they are told to, or when nobody has the root any more; two of them may
/// have to wait for a registry first.
pub(super) fn start(lazy: &Arc<Lazy>, layout: &Layout) -> std::io::Result<[JoinHandle<()>; 3]> {
    let orders = &lazy.orders;
    for id in layers(layout) {
        orders.found(id);
    }
    let spawn = |name: &str, run: fn(&Weak<Lazy>, &Orders, &Layout)| {
        let (lazy, orders, layout) = (Arc::downgrade(lazy), Arc::clone(orders), layout.clone());
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&lazy, &orders, &layout))
    };
    Ok([
        spawn("lamina-prefetcher", prefetch)?,
        spawn("lamina-filler", fill)?,
        spawn("lamina-keeper", keep)?,
    ])
}

/// The layers of a root that were not unpacked.
pub(super) fn layers(layout: &Layout) -> Vec<u64> {
    let entries = fs::read_dir(layout.snapshots()).into_iter().flatten();
    let ids = entries
        .flatten()
        .filter_map(|entry| match Layout::classify(&entry.file_name()) {
            Entry::Snapshot(id) if layout.blob_record(id).exists() => Some(id),
            _ => None,
        });
    let mut ids: Vec<u64> = ids.collect();
    ids.sort_unstable();
    ids
}

fn prefetch(lazy: &Weak<Lazy>, orders: &Orders, layout: &Layout) {
    while !orders.is_stopping() {
        let next = {
            let mut state = orders.state.lock();
            let next = state.to_prefetch.pop_front();
            let was_busy = std::mem::replace(&mut state.is_prefetching, next.is_some());
            if next.is_none() {
                if was_busy {
                    orders.changed.notify_all();
                }
                orders.changed.wait(&mut state);
            }
            next
        };
        let Some(next) = next else { continue };
        let Some(lazy) = lazy.upgrade() else { return };
        if let Err(error) = prefetch_one(&lazy, layout, next) {
            tracing::debug!(id = next, %error, "what is wanted first was not fetched");
        }
    }
}

/// Fetches what will be wanted first of a layer: as far as containers were seen to open it, or else what
/// its maker says.
fn prefetch_one(lazy: &Lazy, layout: &Layout, id: u64) -> lamina_fusefs::Result<()> {
    let opened = lazy.layer(layout, id)?;
    let record = Record::read(&layout.blob_record(id))?;
    let wanted = lazy.wanted_first(&record);
    if wanted.is_empty() {
        opened.files.prefetch()
    } else {
        opened.files.fetch_first(&wanted)
    }
}

fn fill(lazy: &Weak<Lazy>, orders: &Orders, layout: &Layout) {
    while !orders.is_stopping() {
        orders.give_way();
        let next = {
            let mut state = orders.state.lock();
            let now = Instant::now();
            let due = state.to_fill.iter().position(|(_, when)| *when <= now);
            let Some((id, _)) = due.and_then(|at| state.to_fill.remove(at)) else {
                match state.to_fill.iter().map(|(_, when)| *when).min() {
                    Some(first) => drop(orders.changed.wait_until(&mut state, first)),
                    None => orders.changed.wait(&mut state),
                }
                continue;
            };
            id
        };
        let Some(lazy) = lazy.upgrade() else { return };
        if let Err(error) = fill_one(&lazy, orders, layout, next) {
            if !layout.blob_record(next).exists() {
                continue;
            }
            tracing::info!(id = next, %error, "a layer could not be fetched whole; later again");
            let mut state = orders.state.lock();
            state.to_fill.push_back((next, Instant::now() + RETRY));
        }
    }
}

fn fill_one(lazy: &Lazy, orders: &Orders, layout: &Layout, id: u64) -> lamina_fusefs::Result<()> {
    let opened = lazy.layer(layout, id)?;
    let files = Arc::clone(&opened.files);
    if lazy.limits_of_cache.fill && files.is_far() {
        // One that nobody has read to its end is read from its beginning: so much is known of it afterwards.
        let record = Record::read(&layout.blob_record(id))?;
        match &record.verdict {
            Some(Verdict::Refused(_)) => return Ok(()),
            Some(Verdict::Verified) => {}
            None => {
                if !whole::read(lazy, layout, id, &opened, &record)? {
                    return Ok(());
                }
            }
        }
    }
    if !lazy.limits_of_cache.fill {
        return Ok(());
    }
    let rate = lazy.limits_of_cache.fill_rate;
    let mut since = Instant::now();
    files.fill(&mut |bytes| {
        orders.give_way();
        // Somebody waits: the link is theirs half of the time.
        if bytes > 0 && lazy.flights.is_awaited() {
            thread::sleep(since.elapsed().min(STAND_BACK));
        }
        since = Instant::now();
        let nanos = bytes.saturating_mul(1_000_000_000).checked_div(rate);
        thread::sleep(Duration::from_nanos(nanos.unwrap_or(0)));
        orders.may_fill() && layout.blob_record(id).exists()
    })
}

fn keep(lazy: &Weak<Lazy>, orders: &Orders, layout: &Layout) {
    let mut looked_at = None;
    loop {
        let is_idle = {
            let mut state = orders.state.lock();
            if state.removed.is_empty() && !orders.is_stopping() {
                let _ = orders.changed.wait_for(&mut state, EVERY);
            }
            state.removed.is_empty()
        };
        if !is_idle && !orders.is_stopping() {
            thread::sleep(SETTLE);
        }
        let removed = std::mem::take(&mut orders.state.lock().removed);
        let Some(lazy) = lazy.upgrade().filter(|_| !orders.is_stopping()) else {
            return;
        };
        lazy.keep_profiles(false);
        let kept = if removed.is_empty() {
            limit(&lazy, orders, &mut looked_at)
        } else {
            // There is more room afterwards.
            looked_at = None;
            sweep(&lazy, layout, &removed)
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "the cache cannot be kept in order");
        }
    }
}

/// Removes files of which no layer is left but those that were `removed`.
fn sweep(lazy: &Lazy, layout: &Layout, removed: &[u64]) -> lamina_fusefs::Result<()> {
    let mut kept: HashSet<Digest> = HashSet::new();
    for id in layers(layout)
        .into_iter()
        .filter(|id| !removed.contains(id))
    {
        let table = layout.blob_table(id);
        match digests_in(&table, &blob::Limits::of_written()) {
            Ok(digests) => kept.extend(digests),
            // It was removed meanwhile. Of any other it is not known what it needs.
            Err(_) if !table.exists() => {}
            Err(error) => return Err(error),
        }
    }
    let removed = lazy.cache.sweep(|digest| kept.contains(&digest))?;
    if removed.files > 0 {
        tracing::info!(
            files = removed.files,
            bytes = removed.bytes,
            "removed files of layers that are gone from the cache"
        );
    }
    Ok(())
}

/// What the cache was like when its size was last looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Look {
    /// Bytes that were added by then.
    added: u64,
    /// Bytes of files that are not whole.
    unfinished: u64,
    /// Bytes that have to become free on its file system.
    lacking: u64,
}

/// Makes the cache smaller, if it is too large or the disk too full. `before`: what it was like when this was
/// last done; if nothing has changed, nothing is done.
fn limit(lazy: &Lazy, orders: &Orders, before: &mut Option<Look>) -> lamina_fusefs::Result<()> {
    let limits = &lazy.limits_of_cache;
    let space = lazy.cache.space()?;
    let wanted_free = space.total / 100 * limits.free_percent;
    let look = Look {
        added: lazy.cache.added(),
        unfinished: lazy.cache.unfinished()?,
        lacking: wanted_free.saturating_sub(space.free),
    };
    // A walk over the cache costs something.
    if *before == Some(look) {
        return Ok(());
    }
    let low = limits.cache_bytes / 100 * LOW;
    let mut bytes = lazy.cache.holds()?.bytes + look.unfinished;
    let mut most = bytes.saturating_sub(look.lacking);
    if limits.cache_bytes > 0 && bytes > limits.cache_bytes {
        most = most.min(low);
    }
    if most < bytes {
        bytes = shrink(lazy, most)?;
    }
    let is_full = look.lacking > 0 || limits.cache_bytes > 0 && bytes > low;
    orders.is_full.store(is_full, Ordering::SeqCst);
    lazy.cache.set_scarce(is_full);
    *before = Some(look);
    Ok(())
}

/// Removes files from the cache until all of it, with what is not whole, takes no more than `most` bytes: those
/// that were not used for longest, and then what is not whole; none that is open. Answers what it takes
/// then.
pub(super) fn shrink(lazy: &Lazy, most: u64) -> lamina_fusefs::Result<u64> {
    let drop_unused_parts = || {
        for opened in lazy.opened.all() {
            opened.files.drop_unused_parts();
        }
        lazy.cache.unfinished()
    };
    let before = lazy.cache.holds()?;
    let mut unfinished = lazy.cache.unfinished()?;
    if unfinished > most {
        // No whole file would make enough room.
        unfinished = drop_unused_parts()?;
    }
    let holds = lazy.cache.shrink(most.saturating_sub(unfinished))?;
    if holds.bytes + unfinished > most {
        unfinished = drop_unused_parts()?;
    }
    if holds != before {
        tracing::info!(
            files = before.files.saturating_sub(holds.files),
            bytes = before.bytes.saturating_sub(holds.bytes),
            "removed the files from the cache that were not used for longest"
        );
    }
    Ok(holds.bytes + unfinished)
}

#[cfg(test)]
mod tests;
