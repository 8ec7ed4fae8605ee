//! The files of a blob, each fetched when it is first wanted, or before (`first`), and large ones
//! piece by piece (`part`).

mod first;
mod part;
mod room;
mod spans;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use self::part::{IN_PART, Parts, arriving, complete};
use self::room::{Room, Share, Taken};
use super::cache::Cache;
use super::checkpoints::Resumed;
use super::chunk::{Packing, unpack, unpack_after};
use super::digest::Digest;
use super::limits::{Cap, Limits};
use super::table::{Found, Table};
use super::{Compression, Flaw};
use crate::error::{Error, Result};
use crate::index::LayerData;
use crate::layer::Arriving;
use crate::types::Ino;

/// The most bytes of a blob that are asked for at once, if a chunk is no larger.
const JOINED: u64 = 8 << 20;
/// So many bytes come if less is wanted, and other files lie close behind: in the time of a round trip a
/// link carries about as much. Files that are opened one after the other often lie so.
const AHEAD: u64 = 1 << 20;
/// So many bytes that nobody wants are read along rather than asking twice.
const GAP: u64 = 64 << 10;

/// As much as so many times a chunk is in memory while it is unpacked.
const COPIES: u64 = 4;

/// Where the bytes of a blob come from.
pub trait Source: Send + Sync {
    /// Its name for people.
    fn name(&self) -> &str;

    /// Whether a request takes much longer than its bytes, so that it is worth to ask for more.
    fn is_far(&self) -> bool {
        true
    }

    /// Reads bytes of the blob: all of the range, or an error. It may take long, but not for ever.
    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>>;
}

/// Files that are being fetched, so that nobody fetches one that somebody else does.
#[derive(Debug, Default)]
pub struct Flights {
    under_way: Mutex<HashMap<Digest, Arc<Flight>>>,
    /// How many wait for a file that they want to open.
    waiting: AtomicUsize,
    /// When one of them had waited long enough last.
    waited: Mutex<Option<Instant>>,
    /// Memory for what is being fetched.
    room: Room,
}

#[derive(Debug, Default)]
struct Flight {
    /// How it ended.
    ended: Mutex<Option<Result<(), Arc<Flaw>>>>,
    changed: Condvar,
}

/// The digests of all files that the chunk table at `table` tells of.
pub fn digests_in(table: &Path, limits: &Limits) -> Result<Vec<Digest>> {
    let table = Table::open(table, limits)?;
    let files = table.files();
    Ok(files.map(|number| table.file(number).digest).collect())
}

/// The files of one blob.
pub struct Files {
    table: Table,
    source: Arc<dyn Source>,
    cache: Arc<Cache>,
    flights: Arc<Flights>,
    limits: Limits,
    counters: Counters,
    /// How many lists of files are being fetched that will be wanted first.
    lists: AtomicUsize,
    parts: Parts,
    /// What this blob has of the memory for what is being fetched.
    share: Share,
    /// The file that was asked about last, if it is here: mostly it is opened next.
    last: Mutex<Option<(usize, File)>>,
    /// Files of so many bytes or more come in part.
    in_part_from: AtomicU64,
    /// Why none of them is served any more.
    refused: OnceLock<Arc<Flaw>>,
    /// For threads that go on after an answer.
    me: Weak<Files>,
}

#[derive(Default)]
struct Counters {
    opened: AtomicU64,
    waited: AtomicU64,
    slowest: AtomicU64,
    fetched: AtomicU64,
}

/// What was asked of the files of one blob since it was opened.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// How often a file was opened.
    pub opened: u64,
    /// How often its bytes were not here.
    pub waited: u64,
    /// The longest that somebody waited for a file.
    pub slowest: Duration,
    /// Bytes of the blob that were read.
    pub fetched: u64,
}

/// How much of a blob is here.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Here {
    /// Bytes of all files.
    pub total: u64,
    /// Bytes of those that are in the cache.
    pub cached: u64,
}

/// A stretch of a blob that was read.
struct Have {
    range: Range<u64>,
    bytes: Vec<u8>,
    /// What was inflated of it, from the checkpoint on that was last begun at.
    inflated: Option<Resumed>,
}

impl Default for Have {
    fn default() -> Have {
        Have {
            range: 0..0,
            bytes: Vec::new(),
            inflated: None,
        }
    }
}

impl Have {
    fn holds(&self, stretch: &Range<u64>) -> bool {
        self.range.start <= stretch.start && stretch.end <= self.range.end
    }
}

impl Files {
    /// The files that the chunk table at `table` tells of. `flights` is the one of all blobs that
    /// have this cache.
    pub fn open(
        table: &Path,
        source: Arc<dyn Source>,
        cache: Arc<Cache>,
        flights: Arc<Flights>,
        limits: &Limits,
    ) -> Result<Arc<Files>> {
        let table = Table::open(table, limits)?;
        Ok(Arc::new_cyclic(|me| Files {
            table,
            source,
            cache,
            flights,
            limits: *limits,
            counters: Counters::default(),
            lists: AtomicUsize::new(0),
            parts: Parts::default(),
            share: Share::default(),
            last: Mutex::default(),
            in_part_from: AtomicU64::new(IN_PART),
            refused: OnceLock::new(),
            me: Weak::clone(me),
        }))
    }

    /// Files of so many bytes or more are fetched piece by piece, as they are read.
    pub fn come_in_part_from(&self, bytes: u64) {
        self.in_part_from.store(bytes, Ordering::Relaxed);
    }

    fn comes_in_part(&self, found: &Found) -> bool {
        found.size >= self.in_part_from.load(Ordering::Relaxed) && found.chunks.len() > 1
    }

    /// The digest of a file that is fetched whole, and its length in bytes.
    pub fn whole(&self, ino: Ino) -> Option<(Digest, u64)> {
        let found = self.table.find(ino)?;
        (!self.comes_in_part(&found)).then_some((found.digest, found.size))
    }

    /// A file, if it is here.
    pub fn find(&self, ino: Ino) -> Result<Option<File>> {
        self.check_refused()?;
        let found = self.table.find(ino).ok_or(Error::NotFound)?;
        self.cache.find(found.digest, found.size)
    }

    /// A file, which is fetched if it is not here. Whoever wants the same file at the same time waits
    /// for the same bytes, and gets the same error.
    pub fn fetch(&self, ino: Ino) -> Result<File> {
        self.fetch_at(None, ino)
    }

    /// The same of a file with this path, if that is known.
    fn fetch_at(&self, path: Option<&Path>, ino: Ino) -> Result<File> {
        self.check_refused()?;
        let found = self.table.find(ino).ok_or(Error::NotFound)?;
        self.counters.opened.fetch_add(1, Ordering::Relaxed);
        if let Some((_, file)) = self.last.lock().take_if(|(last, _)| *last == found.number) {
            return Ok(file);
        }
        if let Some(file) = self.cache.find(found.digest, found.size)? {
            return Ok(file);
        }
        self.counters.waited.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting::of(&self.flights);
        let since = Instant::now();
        let span = spans::fetch(self, &found, path, None);
        let fetched =
            span.in_scope(|| complete(self, &found).and_then(|()| self.fetch_ahead(&found)));
        spans::ended(&span, &fetched);
        self.note_wait(since);
        fetched
    }

    /// Somebody has waited.
    fn note_wait(&self, since: Instant) {
        let nanos = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.counters.slowest.fetch_max(nanos, Ordering::Relaxed);
    }

    /// Fetches a file that somebody waits for. A second request brings those that lie close behind it,
    /// which nobody waits for.
    fn fetch_ahead(&self, found: &Found) -> Result<File> {
        let fetch_alone = || self.fetch_found(found, found.chunks.end, &mut Have::default());
        // Where it is known what will be wanted next, that is under way.
        if !self.source.is_far() || self.lists.load(Ordering::Relaxed) > 0 {
            return fetch_alone();
        }
        let extent = self.extent(found);
        let Some(extent) = extent.filter(|extent| extent.end - extent.start < AHEAD) else {
            return fetch_alone();
        };
        // Nobody who leads waits for somebody else, or two might wait for each other.
        let Role::Lead(flight) = self.flights.join(found.digest) else {
            return fetch_alone();
        };
        let landing = self.landing(found.digest, flight);
        if let Some(file) = self.cache.find(found.digest, found.size)? {
            return Ok(file);
        }
        let (sender, own) = sync_channel(1);
        self.fetch_along(self.close_to(found, &extent)?, extent.end, own);
        let mut have = Have::default();
        let file = self.land(found, found.chunks.end, &mut have, &landing);
        // If nothing comes along, nobody wants it.
        let _ = sender.send(have);
        file
    }

    /// Fetches files on a thread, from `start` on in the blob. `own` is what is read meanwhile of what
    /// lies before.
    fn fetch_along(&self, coming: Vec<(Found, Landing)>, start: u64, own: Receiver<Have>) {
        let ends = coming.iter().filter_map(|(found, _)| self.extent(found));
        let Some((files, end)) = self.me.upgrade().zip(ends.map(|range| range.end).max()) else {
            return;
        };
        let fetch = move || {
            // What is wrong is said to whoever waits for one of them, and reads it anew.
            let rest = if start < end {
                files.have(start..end).ok()
            } else {
                None
            };
            let Ok(mut have) = own.recv() else { return };
            if let Some(rest) = rest.filter(|rest| rest.range.start == have.range.end) {
                have.range.end = rest.range.end;
                have.bytes.extend_from_slice(&rest.bytes);
            }
            for (found, landing) in coming {
                let extent = files.extent(&found);
                if extent.is_some_and(|extent| have.holds(&extent)) {
                    let _ = files.land(&found, found.chunks.end, &mut have, &landing);
                }
            }
        };
        let name = "lamina-ahead".to_owned();
        if let Err(error) = thread::Builder::new().name(name).spawn(fetch) {
            tracing::debug!(%error, "nothing is fetched along");
        }
    }

    /// The files close behind one, and those that are inflated to get at it, if they are not here. Whoever
    /// wants one of them from now on waits for it.
    fn close_to(&self, found: &Found, extent: &Range<u64>) -> Result<Vec<(Found, Landing)>> {
        let mut end = extent.end;
        let behind = (found.number + 1..self.table.files().end).map_while(|number| {
            let next = self.table.file(number);
            let Some(place) = self.extent(&next) else {
                return Some(next);
            };
            let is_close = extent.start <= place.start && place.start <= end.saturating_add(GAP);
            end = end.max(place.end);
            (is_close && end - extent.start <= AHEAD).then_some(next)
        });
        let before = (0..found.number).rev().map_while(|number| {
            let last = self.table.file(number);
            let place = self.extent(&last);
            let is_within =
                |place: Range<u64>| extent.start <= place.start && place.end <= extent.end;
            place.is_none_or(is_within).then_some(last)
        });
        let mut coming = Vec::new();
        for found in before.chain(behind) {
            if !self.cache.holds_file(found.digest)?
                && let Role::Lead(flight) = self.flights.join(found.digest)
            {
                let landing = self.landing(found.digest, flight);
                coming.push((found, landing));
            }
        }
        Ok(coming)
    }

    /// From now on no file is served, and whoever opens one is told why.
    pub fn refuse(&self, why: String) {
        // Once is enough.
        let _ = self.refused.set(Arc::new(Flaw::Refused { why }));
    }

    fn check_refused(&self) -> Result<()> {
        match self.refused.get() {
            Some(flaw) => Err(self.failed(Arc::clone(flaw))),
            None => Ok(()),
        }
    }

    /// Whether they come from far away.
    pub fn is_far(&self) -> bool {
        self.source.is_far()
    }

    /// Up to where in the blob the files are that its maker wants to be fetched first; 0: none.
    pub fn first_end(&self) -> u64 {
        self.table.prefetch()
    }

    /// What was asked of it so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            opened: read(&self.counters.opened),
            waited: read(&self.counters.waited),
            slowest: Duration::from_nanos(read(&self.counters.slowest)),
            fetched: read(&self.counters.fetched),
        }
    }

    /// How much of it is here.
    pub fn here(&self) -> Result<Here> {
        let mut here = Here::default();
        for number in self.table.files() {
            let found = self.table.file(number);
            here.total += found.size;
            if self.cache.holds_file(found.digest)? {
                here.cached += found.size;
            }
        }
        Ok(here)
    }

    /// Fetches all files, while `goes_on` says yes: it is told how many bytes of the blob were read
    /// since it was asked last, and may take its time.
    pub fn fill(&self, goes_on: &mut dyn FnMut(u64) -> bool) -> Result<()> {
        let mut have = Have::default();
        for number in self.table.files() {
            let found = self.table.file(number);
            if self.cache.holds_file(found.digest)? {
                continue;
            }
            let before = self.counts().fetched;
            self.fetch_found(&found, self.table.chunks(), &mut have)?;
            if !goes_on(self.counts().fetched - before) {
                break;
            }
        }
        Ok(())
    }

    /// Fetches a file; what of the chunks before `end` follows closely is read along, for who comes
    /// with the same `have` again.
    fn fetch_found(&self, found: &Found, end: usize, have: &mut Have) -> Result<File> {
        loop {
            if let Some(file) = self.cache.find(found.digest, found.size)? {
                return Ok(file);
            }
            let flight = match self.flights.join(found.digest) {
                Role::Lead(flight) => flight,
                Role::Wait(flight) => {
                    spans::joined();
                    flight.wait().map_err(|flaw| self.failed(flaw))?;
                    // It is here, unless somebody has pruned the cache meanwhile.
                    continue;
                }
            };
            let landing = self.landing(found.digest, flight);
            return self.land(found, end, have, &landing);
        }
    }

    fn landing(&self, digest: Digest, flight: Arc<Flight>) -> Landing {
        Landing {
            flights: Arc::clone(&self.flights),
            digest,
            flight,
        }
    }

    /// Fetches a file that nobody else fetches.
    fn land(&self, found: &Found, end: usize, have: &mut Have, landing: &Landing) -> Result<File> {
        // Somebody may have landed it after we looked.
        if let Some(file) = self.cache.find(found.digest, found.size)? {
            return Ok(file);
        }
        let loaded = self.load(found, end, have);
        if let Err(Error::Blob { flaw, .. }) = &loaded {
            landing.land(Err(Arc::clone(flaw)));
        }
        loaded
    }

    /// Waits for the memory that it takes to fetch these chunks one after the other.
    fn room_for(&self, chunks: Range<usize>) -> Taken<'_> {
        let (mut read, mut largest) = (0_u64, 0);
        for number in chunks {
            let chunk = self.table.chunk(number);
            let stretch = chunk.stretch.end.saturating_sub(chunk.stretch.start);
            read = read.saturating_add(stretch).min(JOINED.max(stretch));
            largest = chunk.len.max(largest);
        }
        let bytes = read.saturating_add(COPIES.saturating_mul(largest));
        self.flights.room.take(&self.share, bytes)
    }

    /// Fetches a file into the cache.
    fn load(&self, found: &Found, end: usize, have: &mut Have) -> Result<File> {
        let _room = self.room_for(found.chunks.clone());
        let pieces = found.chunks.clone().map(|number| {
            let piece = self.piece(number, end, have);
            piece.map_err(|flaw| self.failed(Arc::new(flaw)))
        });
        self.cache.add(found.digest, pieces)?.map_err(|other| {
            self.failed(Arc::new(Flaw::Digest {
                what: "a file",
                found: other,
                wanted: found.digest,
            }))
        })
    }

    /// The bytes of a chunk. `have`: the stretch of the blob that was read last; what follows closely of
    /// the chunks before `end` is read along.
    fn piece(&self, number: usize, end: usize, have: &mut Have) -> Result<Vec<u8>, Flaw> {
        let chunk = self.table.chunk(number);
        let wanted = chunk.stretch.clone();
        if !have.holds(&wanted) {
            let mut range = wanted.clone();
            for next in number + 1..end {
                let next_stretch = self.table.chunk(next).stretch;
                let is_close =
                    range.start <= next_stretch.start && next_stretch.start <= range.end + GAP;
                if !is_close || next_stretch.end.saturating_sub(range.start) > JOINED {
                    break;
                }
                range.end = range.end.max(next_stretch.end);
            }
            have.inflated = None;
            have.bytes = self.read(range.clone())?;
            have.range = range;
        }
        let offset = |at: u64| usize::try_from(at - have.range.start).unwrap_or(usize::MAX);
        let packing = match self.table.compression() {
            Compression::Gzip => Packing::Member,
            Compression::Zstd => Packing::Frames,
            Compression::Checkpoints => {
                // What is behind the chunk may be wanted next.
                let stretch = have.bytes.get(offset(wanted.start)..).unwrap_or_default();
                let before = have.inflated.take();
                let resumed = match before.filter(|before| before.is_of(wanted.start)) {
                    Some(before) => before,
                    None => self.resume(wanted.start, stretch)?,
                };
                let resumed = have.inflated.insert(resumed);
                return unpack_after(&chunk, stretch, resumed, &self.limits);
            }
        };
        let stretch = have
            .bytes
            .get(offset(wanted.start)..offset(wanted.end))
            .unwrap_or_default();
        unpack(&chunk, stretch, packing, &self.limits)
    }

    /// Begins to inflate at the checkpoint whose bytes begin there in the blob.
    fn resume(&self, start: u64, stretch: &[u8]) -> Result<Resumed, Flaw> {
        let point = self.table.checkpoint(start);
        let resumed = point
            .ok_or_else(|| io::Error::other("it has no checkpoint"))
            .and_then(|point| Resumed::at(&point, stretch));
        resumed.map_err(|source| Flaw::Compression {
            what: "a chunk",
            source,
        })
    }

    /// A stretch of the blob, read now.
    fn have(&self, range: Range<u64>) -> Result<Have> {
        let bytes = self.read(range.clone());
        let bytes = bytes.map_err(|flaw| self.failed(Arc::new(flaw)))?;
        Ok(Have {
            range,
            bytes,
            ..Have::default()
        })
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>, Flaw> {
        let length = range.end - range.start;
        let most = self.limits.chunk_bytes.saturating_mul(2).max(JOINED);
        if length > most {
            return Err(self.limits.exceeded(Cap::Chunk));
        }
        let bytes = self.source.read(range).map_err(Flaw::Source)?;
        if bytes.len() as u64 != length {
            return Err(Flaw::Source(io::ErrorKind::UnexpectedEof.into()));
        }
        self.counters.fetched.fetch_add(length, Ordering::Relaxed);
        Ok(bytes)
    }

    fn failed(&self, flaw: Arc<Flaw>) -> Error {
        Error::Blob {
            layer: self.source.name().to_owned(),
            flaw,
        }
    }
}

impl LayerData for Files {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn is_here(&self, _path: &Path, ino: Ino) -> Result<bool> {
        let Some(found) = self.table.find(ino) else {
            return Err(Error::NotFound);
        };
        self.check_refused()?;
        let file = self.cache.find(found.digest, found.size)?;
        let is_here = file.is_some();
        if let Some(file) = file {
            *self.last.lock() = Some((found.number, file));
        }
        Ok(is_here)
    }

    fn open(&self, path: &Path, ino: Ino) -> Result<File> {
        self.fetch_at(Some(path), ino)
    }

    fn arriving(&self, ino: Ino) -> Result<Option<Arc<dyn Arriving>>> {
        arriving(self, ino)
    }

    fn file_system(&self) -> Option<BorrowedFd<'_>> {
        Some(self.cache.file_system())
    }

    fn host_file(&self, _path: &Path) -> Result<Option<OwnedFd>> {
        Ok(None)
    }
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Files").field(&self.source.name()).finish()
    }
}

/// What somebody who wants a file has to do.
enum Role {
    /// To fetch it.
    Lead(Arc<Flight>),
    /// To wait for who fetches it.
    Wait(Arc<Flight>),
}

impl Flights {
    /// Whether somebody waits for a file.
    pub fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Whether somebody waits for a file, or did so a moment ago: who reads one file often wants another.
    pub fn is_awaited_lately(&self, lately: Duration) -> bool {
        self.is_awaited()
            || self
                .waited
                .lock()
                .is_some_and(|when| when.elapsed() < lately)
    }

    fn is_under_way(&self, digest: Digest) -> bool {
        self.under_way.lock().contains_key(&digest)
    }

    fn join(&self, digest: Digest) -> Role {
        let mut under_way = self.under_way.lock();
        if let Some(flight) = under_way.get(&digest) {
            return Role::Wait(Arc::clone(flight));
        }
        let flight = Arc::new(Flight::default());
        under_way.insert(digest, Arc::clone(&flight));
        Role::Lead(flight)
    }
}

/// Somebody who waits for a file, until it is dropped.
struct Waiting<'f>(&'f Flights);

impl Waiting<'_> {
    fn of(flights: &Flights) -> Waiting<'_> {
        flights.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(flights)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.0.waited.lock() = Some(Instant::now());
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Flight {
    fn wait(&self) -> Result<(), Arc<Flaw>> {
        let mut ended = self.ended.lock();
        loop {
            if let Some(ended) = &*ended {
                return ended.clone();
            }
            self.changed.wait(&mut ended);
        }
    }
}

/// Ends a flight, whatever happens: who waits for it never waits for ever.
struct Landing {
    flights: Arc<Flights>,
    digest: Digest,
    flight: Arc<Flight>,
}

impl Landing {
    fn land(&self, result: Result<(), Arc<Flaw>>) {
        self.flight.ended.lock().get_or_insert(result);
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flights.under_way.lock().remove(&self.digest);
        // The file is here; or a local error, such as a full disk, is the leader's alone, and the
        // others try by themselves.
        self.land(Ok(()));
        self.flight.changed.notify_all();
    }
}

mod whole;

pub use whole::{Promised, Whole};

#[cfg(test)]
mod tests;
