//! Files that will be wanted soon, fetched before anybody asks for them.
//!
//! One after the other, each would cost a round trip. Here it is known beforehand which files they are,
//! so several stretches of the blob are under way at a time, each with as many of them as lie close
//! together; and while one of them is waited for, others are unpacked.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;

use super::{Files, Found, Have, JOINED, Landing, Role};
use crate::blob::digest::Digest;
use crate::error::Result;

/// Stretches that are under way at a time.
const AT_A_TIME: usize = 6;
/// The most bytes of a stretch: so many that several share the link from the beginning.
const STRETCH: u64 = 1 << 20;
/// So many bytes that nobody wants are read along rather than asking once more. Others are asked for
/// at the same time, so that asking costs little.
const GAP: u64 = 16 << 10;
/// The most bytes of a stretch of files that lie in each other's, since they are read from the same checkpoint.
const SHARED: u64 = 2 * STRETCH;

/// A stretch of the blob, and the files in it that are wanted.
struct Stretch {
    range: Range<u64>,
    files: Vec<Found>,
    /// The place in the list of the one that is wanted first.
    first: usize,
}

impl Files {
    /// Fetches the files that the maker of the blob wants to be fetched first.
    pub fn prefetch(&self) -> Result<()> {
        let end = self.table.prefetch();
        let all = self.table.files().map(|number| self.table.file(number));
        let wanted = all.filter(|found| self.extent(found).is_some_and(|range| range.start < end));
        self.fetch_list(wanted.collect())
    }

    /// Fetches those of the files with these digests that the blob has, the first named first.
    pub fn fetch_first(&self, wanted: &[Digest]) -> Result<()> {
        let mut places: HashMap<Digest, usize> = HashMap::new();
        for (place, digest) in wanted.iter().enumerate() {
            places.entry(*digest).or_insert(place);
        }
        let all = self.table.files().map(|number| self.table.file(number));
        let found = all.filter_map(|found| Some((*places.get(&found.digest)?, found)));
        let mut found: Vec<_> = found.collect();
        found.sort_by_key(|(place, _)| *place);
        found.dedup_by_key(|(place, _)| *place);
        self.fetch_list(found.into_iter().map(|(_, found)| found).collect())
    }

    fn fetch_list(&self, wanted: Vec<Found>) -> Result<()> {
        let mut absent = Vec::new();
        for found in wanted {
            if !self.cache.holds_file(found.digest)? {
                absent.push(found);
            }
        }
        let stretches = self.stretches(absent);
        if stretches.is_empty() {
            return Ok(());
        }
        self.lists.fetch_add(1, Ordering::Relaxed);
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(None);
        let span = tracing::Span::current();
        thread::scope(|scope| {
            let work = || {
                let _entered = span.enter();
                while let Some(stretch) = stretches.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = self.fetch_stretch(stretch) {
                        // The others need not try.
                        next.store(stretches.len(), Ordering::Relaxed);
                        failed.lock().get_or_insert(error);
                    }
                }
            };
            for _ in 1..AT_A_TIME.min(stretches.len()) {
                let name = "lamina-first".to_owned();
                if let Err(error) = thread::Builder::new().name(name).spawn_scoped(scope, work) {
                    tracing::debug!(%error, "fewer files are fetched at a time");
                    break;
                }
            }
            work();
        });
        self.lists.fetch_sub(1, Ordering::Relaxed);
        failed.into_inner().map_or(Ok(()), Err)
    }

    /// Where in the blob a file lies; `None`: it has no bytes.
    pub(super) fn extent(&self, found: &Found) -> Option<Range<u64>> {
        let chunks = found.chunks.clone();
        let stretches = chunks.map(|number| self.table.chunk(number).stretch);
        stretches.reduce(|all, one| all.start.min(one.start)..all.end.max(one.end))
    }

    /// Stretches of the blob with all of these files; that with the file that is wanted first comes first.
    fn stretches(&self, wanted: Vec<Found>) -> Vec<Stretch> {
        let placed = wanted.into_iter().enumerate();
        let placed = placed.filter_map(|(place, found)| Some((self.extent(&found)?, place, found)));
        let mut placed: Vec<_> = placed.collect();
        placed.sort_by_key(|(range, ..)| (range.start, range.end));
        let mut all: Vec<Stretch> = Vec::new();
        for (range, place, found) in placed {
            match all.last_mut() {
                Some(last) if last.takes(&range) => {
                    last.range.end = last.range.end.max(range.end);
                    last.files.push(found);
                    last.first = last.first.min(place);
                }
                _ => all.push(Stretch {
                    range,
                    files: vec![found],
                    first: place,
                }),
            }
        }
        all.sort_by_key(|stretch| stretch.first);
        all
    }

    fn fetch_stretch(&self, stretch: &Stretch) -> Result<()> {
        let mut led: Vec<(&Found, Landing)> = Vec::new();
        for found in &stretch.files {
            // One that somebody else fetches is none of ours.
            if !self.cache.holds_file(found.digest)?
                && let Role::Lead(flight) = self.flights.join(found.digest)
            {
                led.push((found, self.landing(found.digest, flight)));
            }
        }
        let extents = led.iter().filter_map(|(found, _)| self.extent(found));
        let needed = extents.reduce(|all, one| all.start.min(one.start)..all.end.max(one.end));
        let mut have = Have::default();
        if let Some(range) = needed.filter(|range| range.end - range.start <= JOINED) {
            have = self.have(range)?;
        }
        for (found, landing) in led {
            self.land(found, found.chunks.end, &mut have, &landing)?;
        }
        Ok(())
    }
}

impl Stretch {
    /// Whether what is there in the blob is to come with it.
    fn takes(&self, range: &Range<u64>) -> bool {
        let is_shared = range.start < self.range.end;
        let most = if is_shared { SHARED } else { STRETCH };
        range.start <= self.range.end.saturating_add(GAP)
            && range.end.saturating_sub(self.range.start) <= most
    }
}
