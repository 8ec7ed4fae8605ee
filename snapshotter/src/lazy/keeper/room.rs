//! The size of the cache: what belongs to layers that are gone, what is too much for its limits, and what is
//! not whole of large files.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lamina_fusefs::blob::{self, Digest, digests_in};

use super::{Orders, layers};
use crate::lazy::Lazy;
use crate::store::layout::Layout;

/// How much of its limit the cache may take after it was made smaller, in percent: the low water mark.
const LOW: u64 = 90;

/// How long something may still come of a layer that was removed: as long as a registry may take, and more.
const LATE: Duration = Duration::from_mins(1);

/// Removes files of which no layer is left but those that were `removed`.
pub(super) fn sweep(lazy: &Lazy, layout: &Layout, removed: &[u64]) -> lamina_fusefs::Result<()> {
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

/// Layers that were removed lately. Who was fetching something of one may add it to the cache a little later.
#[derive(Debug, Default)]
pub(super) struct Gone {
    layers: Vec<u64>,
    /// When the last of them was removed.
    last: Option<Instant>,
    /// Bytes that were added to the cache before it was last swept.
    swept: Option<u64>,
}

impl Gone {
    /// Layers were removed.
    pub(super) fn extend(&mut self, removed: Vec<u64>) {
        if !removed.is_empty() {
            self.layers.extend(removed);
            (self.last, self.swept) = (Some(Instant::now()), None);
        }
    }

    /// Removes what the cache has of them and of no other layer, if there may be something. Whether it
    /// has looked.
    pub(super) fn sweep(&mut self, lazy: &Lazy, layout: &Layout) -> lamina_fusefs::Result<bool> {
        let added = lazy.cache.added();
        if self.last.is_none() || self.swept == Some(added) {
            return Ok(false);
        }
        sweep(lazy, layout, &self.layers)?;
        self.swept = Some(added);
        if self.last.is_some_and(|last| last.elapsed() > LATE) {
            *self = Gone::default();
        }
        Ok(true)
    }
}

/// What the cache was like when its size was last looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Look {
    /// Bytes that were added by then.
    added: u64,
    /// Bytes of files that are not whole.
    unfinished: u64,
    /// Bytes that have to become free on its file system.
    lacking: u64,
}

/// Makes the cache smaller, if it is too large or the disk too full. `before`: what it was like when this last
/// left it as small as it has to be; if nothing has changed since, nothing is done.
pub(super) fn limit(
    lazy: &Lazy,
    orders: &Orders,
    before: &mut Option<Look>,
) -> lamina_fusefs::Result<()> {
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
    // Files that are open now will not be so for ever.
    *before = Some(look).filter(|_| bytes <= most);
    Ok(())
}

/// Removes files from the cache until all of it, with what is not whole, takes no more than `most` bytes: those
/// that were not used for longest, and then what is not whole; none that is open. Answers what it takes
/// then.
pub(in crate::lazy) fn shrink(lazy: &Lazy, most: u64) -> lamina_fusefs::Result<u64> {
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
