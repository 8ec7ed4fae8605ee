//! What is done about lazy layers while nobody waits for it.
//!
//! Three threads, for as long as the root is open. The *prefetcher* fetches what will be wanted first of
//! layers that were just made: what the profile of their image tells, and what their makers say. The
//! *filler* then fetches all of them, if that is wished for. While somebody waits for a file, it leaves
//! the link alone half of the time, and for the prefetcher all of the time. The *keeper* keeps the cache
//! within its limits, clears away what belonged to layers that were removed, writes down what was
//! recorded, and lets go of what was read of indexes.

mod room;

use std::collections::VecDeque;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lamina_fusefs::memory;
use parking_lot::{Condvar, Mutex};
use tracing::Span;
use tracing::field::{Empty, display};

pub(super) use self::room::shrink;
use self::room::{Gone, limit};
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

/// Does something about a layer in its span.
fn in_span(
    span: &Span,
    layout: &Layout,
    id: u64,
    work: impl FnOnce() -> lamina_fusefs::Result<()>,
) -> lamina_fusefs::Result<()> {
    if !span.is_disabled()
        && let Ok(record) = Record::read(&layout.blob_record(id))
    {
        span.record("image", &record.reference);
        span.record("layer", &record.digest);
    }
    let done = span.in_scope(work);
    match &done {
        Ok(()) => span.record("outcome", "done"),
        Err(error) => span.record("outcome", display(error)),
    };
    done
}

/// Fetches what will be wanted first of a layer: as far as containers were seen to open it, or else what
/// its maker says.
pub(super) fn prefetch_one(lazy: &Lazy, layout: &Layout, id: u64) -> lamina_fusefs::Result<()> {
    let span = tracing::debug_span!(
        "prefetch",
        id,
        image = Empty,
        layer = Empty,
        outcome = Empty
    );
    in_span(&span, layout, id, || prefetch_layer(lazy, layout, id))
}

fn prefetch_layer(lazy: &Lazy, layout: &Layout, id: u64) -> lamina_fusefs::Result<()> {
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
        let filled = fill_one(&lazy, orders, layout, next);
        // Making the layer took much, and so did reading it.
        memory::release_freed();
        if let Err(error) = filled {
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
    let span = tracing::debug_span!("fill", id, image = Empty, layer = Empty, outcome = Empty);
    in_span(&span, layout, id, || fill_layer(lazy, orders, layout, id))
}

fn fill_layer(lazy: &Lazy, orders: &Orders, layout: &Layout, id: u64) -> lamina_fusefs::Result<()> {
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
    let (mut looked_at, mut added, mut gone) = (None, 0, Gone::default());
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
        memory::release_mapped();
        if added != lazy.cache.added() {
            // Fetching took memory.
            added = lazy.cache.added();
            memory::release_freed();
        }
        gone.extend(removed);
        let kept = gone.sweep(&lazy, layout).and_then(|has_swept| {
            if has_swept {
                // There is more room now.
                looked_at = None;
                return Ok(());
            }
            limit(&lazy, orders, &mut looked_at)
        });
        if let Err(error) = kept {
            tracing::warn!(%error, "the cache cannot be kept in order");
        }
    }
}

#[cfg(test)]
mod tests;
