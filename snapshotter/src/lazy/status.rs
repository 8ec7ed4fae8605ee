//! What a person asks of lazy layers and of their cache.

use std::path::Path;

use lamina_fusefs::blob::{Cache, Holds};
use serde::Serialize;

use super::Lazy;
use super::keeper::{self, layers};
use super::record::{Record, Verdict};
use crate::store::layout::Layout;

/// One layer that was not unpacked. What is counted is counted since the daemon first used it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct LayerStatus {
    /// The number of its snapshot.
    pub id: u64,
    /// An image that it is of.
    pub reference: String,
    /// The digest of its blob.
    pub digest: String,
    /// How its blob is read.
    pub format: String,
    /// Whether it is what its image says: `verified`, `refused`, or `unverified` as long as not all of
    /// it was read.
    pub verdict: String,
    /// Bytes of its blob.
    pub blob_bytes: u64,
    /// Bytes of its files.
    pub file_bytes: u64,
    /// Bytes of those that are in the cache.
    pub cached_bytes: u64,
    /// Bytes of the blob that were read.
    pub fetched_bytes: u64,
    /// How often a file was opened that had to be looked for.
    pub opened: u64,
    /// How often somebody had to wait for one.
    pub waited: u64,
    /// The longest that somebody waited, in microseconds.
    pub slowest_us: u64,
}

/// What is to be done about the cache.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CacheAction {
    /// Nothing.
    Look,
    /// Remove files that were not used for longest, until the others take no more than so many bytes, with what
    /// has come of large files that are not whole.
    Prune(u64),
    /// Read all files, and remove damaged ones.
    Verify,
}

/// What is in the cache, and what was removed from it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct CacheStatus {
    /// Files in it.
    pub files: u64,
    /// Bytes that they take on the disk.
    pub bytes: u64,
    /// Files that were removed.
    pub removed_files: u64,
    /// Bytes that they took.
    pub removed_bytes: u64,
    /// Bytes on the disk of what has come of large files that are not whole.
    pub unfinished_bytes: u64,
}

impl Lazy {
    /// All layers of a root.
    pub(crate) fn status(&self, layout: &Layout) -> Vec<LayerStatus> {
        let all = layers(layout).into_iter();
        all.filter_map(|id| match self.status_of(layout, id) {
            Ok(status) => Some(status),
            Err(error) => {
                tracing::warn!(id, %error, "nothing can be said of a layer");
                None
            }
        })
        .collect()
    }

    fn status_of(&self, layout: &Layout, id: u64) -> lamina_fusefs::Result<LayerStatus> {
        let record = Record::read(&layout.blob_record(id))?;
        let files = &self.layer(layout, id)?.files;
        let (here, counts) = (files.here()?, files.counts());
        let verdict = match &record.verdict {
            Some(Verdict::Refused(_)) => "refused",
            Some(Verdict::Verified) => "verified",
            // Of a blob that lies here all was read when that was written.
            None if !files.is_far() => "verified",
            None => "unverified",
        };
        Ok(LayerStatus {
            id,
            reference: record.reference,
            digest: record.digest,
            format: record.format.as_str().to_owned(),
            verdict: verdict.to_owned(),
            blob_bytes: record.size,
            file_bytes: here.total,
            cached_bytes: here.cached,
            fetched_bytes: counts.fetched,
            opened: counts.opened,
            waited: counts.waited,
            slowest_us: u64::try_from(counts.slowest.as_micros()).unwrap_or(u64::MAX),
        })
    }

    /// Does something about the cache.
    pub(crate) fn keep_cache(&self, action: CacheAction) -> lamina_fusefs::Result<CacheStatus> {
        keep(&self.cache, action, |most| keeper::shrink(self, most))
    }
}

/// Does something about the cache of a root that no daemon has.
pub(crate) fn keep_cache_in(dir: &Path, action: CacheAction) -> lamina_fusefs::Result<CacheStatus> {
    let cache = Cache::open(dir)?;
    let kept = keep(&cache, action, |most| Ok(cache.shrink(most)?.bytes))?;
    cache.close()?;
    Ok(kept)
}

fn keep(
    cache: &Cache,
    action: CacheAction,
    shrink: impl Fn(u64) -> lamina_fusefs::Result<u64>,
) -> lamina_fusefs::Result<CacheStatus> {
    let (holds, removed) = match action {
        CacheAction::Look => (cache.holds()?, Holds::default()),
        CacheAction::Verify => cache.verify()?,
        CacheAction::Prune(bytes) => {
            let before = cache.holds()?;
            shrink(bytes)?;
            let holds = cache.holds()?;
            let removed = Holds {
                files: before.files.saturating_sub(holds.files),
                bytes: before.bytes.saturating_sub(holds.bytes),
            };
            (holds, removed)
        }
    };
    Ok(CacheStatus {
        files: holds.files,
        bytes: holds.bytes,
        removed_files: removed.files,
        removed_bytes: removed.bytes,
        unfinished_bytes: cache.unfinished()?,
    })
}
