//! Large files, of which only those chunks are fetched that somebody reads.
//!
//! Until all of them have come such a file has no name in the cache, since that says what all of its
//! bytes are. It is a file with holes beside it, and is gone when nobody has used it for long, when space
//! is short and nobody has it open ([`Files::drop_unused_parts`]), or the daemon ends. Each chunk was held
//! against its own digest before it is written there. When the last one has come, the whole is held against
//! the file's digest, and becomes a file of the cache.

use std::collections::HashSet;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use rustix::fs::OFlags;

use super::{Files, Found, Have, JOINED, Waiting, spans};
use crate::blob::Flaw;
use crate::blob::cache::{Cache, digest_of};
use crate::error::{Error, Result};
use crate::layer::Arriving;
use crate::sys::beneath::reopen;
use crate::sys::change::{ftruncate, write_all_at};
use crate::types::Ino;

/// Files of so many bytes or more are fetched piece by piece: a link of 100 MB/s brings smaller ones in
/// the time that a person takes for none.
pub(super) const IN_PART: u64 = 32 << 20;
/// So many bytes are fetched ahead of somebody who reads a file from its beginning to its end.
const AHEAD: u64 = JOINED;
/// Reads that are so many bytes apart may still follow each other.
const ORDER: u64 = 1 << 20;
/// So many unfinished files of a blob are kept while nobody has them open.
const KEPT: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// The unfinished files of one blob, by their numbers in its table.
pub(super) struct Parts(Mutex<LruCache<usize, Arc<Part>>>);

impl Default for Parts {
    fn default() -> Parts {
        Parts(Mutex::new(LruCache::new(KEPT)))
    }
}

/// A file of which some chunks are here.
struct Part {
    found: Found,
    cache: Arc<Cache>,
    /// Its name while it is not whole.
    name: String,
    /// Open for reading: whoever runs the file may not find it open for writing.
    file: File,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether somebody fetches ahead.
    is_ahead: AtomicBool,
}

struct State {
    /// The same file, open for writing; none, when it has all of its bytes.
    writer: Option<File>,
    /// Which chunks are here, from the file's first on.
    here: Vec<bool>,
    /// How many are not.
    left: usize,
    /// Chunks that are being fetched.
    coming: HashSet<usize>,
    /// What was read last.
    last: Range<u64>,
    /// Whether the whole is not what it should be.
    is_bad: bool,
}

/// A file that arrives, for whoever reads it.
struct Arrival {
    files: Arc<Files>,
    part: Arc<Part>,
}

/// A file of the blob as it arrives, if it is large and not here.
pub(super) fn arriving(files: &Files, ino: Ino) -> Result<Option<Arc<dyn Arriving>>> {
    files.check_refused()?;
    let found = files.table.find(ino).ok_or(Error::NotFound)?;
    if !files.comes_in_part(&found) {
        return Ok(None);
    }
    if files.cache.holds_file(found.digest)? {
        // Somebody has fetched all of it.
        files.parts.0.lock().pop(&found.number);
        return Ok(None);
    }
    let Some(files) = files.me.upgrade() else {
        return Ok(None);
    };
    let part = {
        let mut parts = files.parts.0.lock();
        if let Some(part) = parts.get(&found.number) {
            Arc::clone(part)
        } else {
            files.counters.opened.fetch_add(1, Ordering::Relaxed);
            files.counters.waited.fetch_add(1, Ordering::Relaxed);
            let number = found.number;
            let part = Arc::new(Part::new(&files.cache, found)?);
            parts.put(number, Arc::clone(&part));
            part
        }
    };
    Ok(Some(Arc::new(Arrival { files, part })))
}

/// Fetches what is missing of a file that has come in part, so that it is whole in the cache.
pub(super) fn complete(files: &Files, found: &Found) -> Result<()> {
    let part = files.parts.0.lock().get(&found.number).map(Arc::clone);
    let Some((part, files)) = part.zip(files.me.upgrade()) else {
        return Ok(());
    };
    Arrival { files, part }.fetch_chunks(&(0..found.chunks.len()), &mut false)
}

impl Files {
    /// Takes back what has come of large files that are not whole, unless somebody has them open.
    pub fn drop_unused_parts(&self) {
        let mut parts = self.parts.0.lock();
        // Whoever opens one gets it from here, so that nobody has it whom the lock keeps out.
        let unused = parts
            .iter()
            .filter(|(_, part)| Arc::strong_count(part) == 1);
        let unused: Vec<usize> = unused.map(|(number, _)| *number).collect();
        for number in unused {
            parts.pop(&number);
        }
    }
}

impl Part {
    fn new(cache: &Arc<Cache>, found: Found) -> Result<Part> {
        let (name, writer) = cache.start()?;
        let file = ftruncate(&writer, found.size)
            .and_then(|()| reopen(writer.as_fd(), OFlags::RDONLY))
            .inspect_err(|_| cache.discard(&name))?;
        let count = found.chunks.len();
        Ok(Part {
            cache: Arc::clone(cache),
            name,
            file: file.into(),
            state: Mutex::new(State {
                writer: Some(writer),
                here: vec![false; count],
                left: count,
                coming: HashSet::new(),
                last: 0..0,
                is_bad: false,
            }),
            changed: Condvar::new(),
            is_ahead: AtomicBool::new(false),
            found,
        })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.state.get_mut().writer.is_some() {
            self.cache.discard(&self.name);
        }
    }
}

impl Arriving for Arrival {
    fn file(&self) -> &File {
        &self.part.file
    }

    fn has(&self, range: Range<u64>) -> bool {
        let state = self.part.state.lock();
        !state.is_bad && (state.left == 0 || state.lacks(&self.chunks(&range)).is_none())
    }

    fn fetch(&self, range: Range<u64>) -> Result<()> {
        let wanted = self.chunks(&range);
        let (begin, mut has_waited) = (Instant::now(), false);
        let _waiting = Waiting::of(&self.files.flights);
        // Most reads are of what is here.
        let span = if tracing::enabled!(tracing::Level::DEBUG) && !self.has(range.clone()) {
            spans::fetch(&self.files, &self.part.found, None, Some(&range))
        } else {
            tracing::Span::none()
        };
        let fetched = span.in_scope(|| self.fetch_chunks(&wanted, &mut has_waited));
        spans::ended(&span, &fetched);
        if has_waited {
            self.files.note_wait(begin);
        }
        fetched?;
        self.look_ahead(range, wanted.end);
        Ok(())
    }
}

impl State {
    /// The first of these chunks that is not here.
    fn lacks(&self, wanted: &Range<usize>) -> Option<usize> {
        wanted
            .clone()
            .find(|&chunk| self.here.get(chunk) == Some(&false))
    }
}

impl Arrival {
    /// The chunks that have these bytes, counted from the file's first on.
    fn chunks(&self, range: &Range<u64>) -> Range<usize> {
        let table = &self.files.table;
        let all = &self.part.found.chunks;
        let end_of = |chunk: usize| {
            let chunk = table.chunk(all.start + chunk);
            chunk.offset + chunk.len
        };
        // The first of all chunks for which something holds that holds for all behind it.
        let first = |holds: &dyn Fn(usize) -> bool| {
            let mut between = 0..all.len();
            while !between.is_empty() {
                let middle = between.start + between.len() / 2;
                if holds(middle) {
                    between.end = middle;
                } else {
                    between.start = middle + 1;
                }
            }
            between.start
        };
        let start = first(&|chunk| end_of(chunk) > range.start);
        let last = first(&|chunk| end_of(chunk) >= range.end);
        start..last.saturating_add(1).min(all.len()).max(start)
    }

    fn fetch_chunks(&self, wanted: &Range<usize>, has_waited: &mut bool) -> Result<()> {
        self.files.check_refused()?;
        loop {
            let run = {
                let mut state = self.part.state.lock();
                if state.is_bad {
                    return Err(self.is_bad());
                }
                let Some(first) = state.lacks(wanted) else {
                    return Ok(());
                };
                *has_waited = true;
                if state.coming.contains(&first) {
                    spans::joined();
                    self.part.changed.wait(&mut state);
                    continue;
                }
                let rest = first + 1..wanted.end;
                let is_taken = |chunk: &usize| {
                    state.here.get(*chunk) != Some(&false) || state.coming.contains(chunk)
                };
                let end = rest.clone().find(is_taken).unwrap_or(rest.end);
                state.coming.extend(first..end);
                first..end
            };
            self.bring(run)?;
        }
    }

    /// Fetches chunks of which it is noted that they are coming.
    fn bring(&self, run: Range<usize>) -> Result<()> {
        let end = run.end;
        let mut coming = Coming {
            part: &self.part,
            run,
        };
        let first = self.part.found.chunks.start;
        let _room = (self.files).room_for(first + coming.run.start..first + end);
        let mut have = Have::default();
        // Somebody may have fetched all of it meanwhile.
        let whole = self
            .files
            .cache
            .find(self.part.found.digest, self.part.found.size)?;
        while !coming.run.is_empty() {
            let number = first + coming.run.start;
            let chunk = self.files.table.chunk(number);
            let bytes = if let Some(whole) = &whole {
                let mut bytes = vec![0; usize::try_from(chunk.len).unwrap_or(usize::MAX)];
                whole.read_exact_at(&mut bytes, chunk.offset)?;
                bytes
            } else {
                let end = first + end;
                let piece = self.files.piece(number, end, &mut have);
                piece.map_err(|flaw| self.files.failed(Arc::new(flaw)))?
            };
            let writer = {
                let state = self.part.state.lock();
                state.writer.as_ref().map(File::try_clone).transpose()?
            };
            if let Some(writer) = writer {
                write_all_at(&writer, &bytes, chunk.offset)?;
            }
            if coming.is_last() {
                self.finish()?;
            }
            coming.landed();
        }
        Ok(())
    }

    /// All chunks are in the file.
    fn finish(&self) -> Result<()> {
        let part = &*self.part;
        let found = digest_of(&part.file)?;
        let mut state = part.state.lock();
        if found == part.found.digest {
            part.cache.keep(&part.name, part.found.size, found)?;
            state.writer = None;
        } else {
            tracing::error!(
                blob = self.files.source.name(), wanted = %part.found.digest, %found,
                "the chunks of a file make another file than its digest says"
            );
            state.is_bad = true;
        }
        drop(state);
        self.files.parts.0.lock().pop(&part.found.number);
        Ok(())
    }

    /// Somebody has read this, up to the chunk before `begin`. If they read the file from its beginning
    /// to its end, and there is room, the chunks from there on are fetched on a thread.
    fn look_ahead(&self, read: Range<u64>, begin: usize) {
        let table = &self.files.table;
        let first = self.part.found.chunks.start;
        let run = {
            let mut state = self.part.state.lock();
            // The kernel's reads may come a little out of order.
            let next = state.last.start + 1..state.last.end.saturating_add(ORDER);
            let is_sequence = !state.last.is_empty() && next.contains(&read.start);
            state.last = read;
            let mut end = begin;
            let mut bytes = 0;
            while bytes < AHEAD && end < state.here.len() {
                bytes += table.chunk(first + end).len;
                end += 1;
            }
            let ahead = begin..end;
            let lacks = state.lacks(&ahead).is_some();
            (is_sequence && lacks).then_some(ahead)
        };
        let Some(run) = run.filter(|_| !self.part.cache.is_scarce()) else {
            return;
        };
        if self.part.is_ahead.swap(true, Ordering::SeqCst) {
            return;
        }
        let ahead = Arrival {
            files: Arc::clone(&self.files),
            part: Arc::clone(&self.part),
        };
        let fetch = move || {
            // What is wrong is said to whoever waits for it.
            let _ = ahead.fetch_chunks(&run, &mut false);
            ahead.part.is_ahead.store(false, Ordering::SeqCst);
        };
        let name = "lamina-ahead".to_owned();
        if let Err(error) = thread::Builder::new().name(name).spawn(fetch) {
            tracing::debug!(%error, "nothing is fetched ahead");
            self.part.is_ahead.store(false, Ordering::SeqCst);
        }
    }

    fn is_bad(&self) -> Error {
        self.files.failed(Arc::new(Flaw::Entry {
            path: self.part.found.digest.to_string().into(),
            what: "its chunks make another file",
        }))
    }
}

/// Chunks that are being fetched, until it is dropped.
struct Coming<'p> {
    part: &'p Part,
    run: Range<usize>,
}

impl Coming<'_> {
    /// Whether all others of the file are here.
    fn is_last(&self) -> bool {
        let state = self.part.state.lock();
        state.left == 1 && state.here.get(self.run.start) == Some(&false)
    }

    /// The first one is here.
    fn landed(&mut self) {
        let mut state = self.part.state.lock();
        let chunk = self.run.start;
        self.run.start += 1;
        state.coming.remove(&chunk);
        let is_new = state
            .here
            .get_mut(chunk)
            .is_some_and(|here| !std::mem::replace(here, true));
        state.left -= usize::from(is_new);
        self.part.changed.notify_all();
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        let mut state = self.part.state.lock();
        for chunk in self.run.clone() {
            state.coming.remove(&chunk);
        }
        self.part.changed.notify_all();
    }
}
