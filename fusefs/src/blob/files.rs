//! The files of a blob, each fetched when it is first wanted.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::cache::Cache;
use super::chunk::{Packing, unpack};
use super::digest::Digest;
use super::limits::Limits;
use super::table::{Found, Table};
use super::{Compression, Flaw};
use crate::error::{Error, Result};
use crate::index::LayerData;
use crate::types::Ino;

/// The most bytes of a blob that are asked for at once, if a chunk is no larger.
const JOINED: u64 = 8 << 20;

/// Where the bytes of a blob come from.
pub trait Source: Send + Sync {
    /// Its name for people.
    fn name(&self) -> &str;

    /// Reads bytes of the blob: all of the range, or an error. It may take long, but not for ever.
    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>>;
}

/// Files that are being fetched, so that nobody fetches one that somebody else does.
#[derive(Debug, Default)]
pub struct Flights(Mutex<HashMap<Digest, Arc<Flight>>>);

#[derive(Debug, Default)]
struct Flight {
    /// How it ended.
    ended: Mutex<Option<Result<(), Arc<Flaw>>>>,
    changed: Condvar,
}

/// The files of one blob.
pub struct Files {
    table: Table,
    source: Arc<dyn Source>,
    cache: Arc<Cache>,
    flights: Arc<Flights>,
    limits: Limits,
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
    ) -> Result<Files> {
        Ok(Files {
            table: Table::open(table, limits)?,
            source,
            cache,
            flights,
            limits: *limits,
        })
    }

    /// A file, if it is here.
    pub fn find(&self, ino: Ino) -> Result<Option<File>> {
        let found = self.table.find(ino).ok_or(Error::NotFound)?;
        self.cache.find(found.digest, found.size)
    }

    /// A file, which is fetched if it is not here. Whoever wants the same file at the same time waits
    /// for the same bytes, and gets the same error.
    pub fn fetch(&self, ino: Ino) -> Result<File> {
        let found = self.table.find(ino).ok_or(Error::NotFound)?;
        self.fetch_found(&found)
    }

    /// Fetches the files that the maker of the blob wants to be fetched first.
    pub fn prefetch(&self) -> Result<()> {
        for number in self.table.files() {
            let found = self.table.file(number);
            let mut chunks = found.chunks.clone().map(|chunk| self.table.chunk(chunk));
            if chunks.any(|chunk| chunk.stretch.start < self.table.prefetch()) {
                self.fetch_found(&found)?;
            }
        }
        Ok(())
    }

    fn fetch_found(&self, found: &Found) -> Result<File> {
        loop {
            if let Some(file) = self.cache.find(found.digest, found.size)? {
                return Ok(file);
            }
            let flight = match self.flights.join(found.digest) {
                Role::Lead(flight) => flight,
                Role::Wait(flight) => {
                    flight.wait().map_err(|flaw| self.failed(flaw))?;
                    // It is here, unless somebody has pruned the cache meanwhile.
                    continue;
                }
            };
            let landing = Landing {
                flights: &self.flights,
                digest: found.digest,
                flight,
            };
            // Somebody may have landed it after we looked.
            if let Some(file) = self.cache.find(found.digest, found.size)? {
                return Ok(file);
            }
            let loaded = self.load(found);
            if let Err(Error::Blob { flaw, .. }) = &loaded {
                landing.land(Err(Arc::clone(flaw)));
            }
            return loaded;
        }
    }

    /// Fetches a file into the cache.
    fn load(&self, found: &Found) -> Result<File> {
        let mut have = (0..0, Vec::new());
        let pieces = found.chunks.clone().map(|number| {
            let piece = self.piece(number, found.chunks.end, &mut have);
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

    /// The bytes of a chunk. `have`: the stretch of the blob that was read last; what of the chunks
    /// before `end` follows closely is read along.
    fn piece(
        &self,
        number: usize,
        end: usize,
        have: &mut (Range<u64>, Vec<u8>),
    ) -> Result<Vec<u8>, Flaw> {
        let chunk = self.table.chunk(number);
        let wanted = chunk.stretch.clone();
        if wanted.start < have.0.start || wanted.end > have.0.end {
            let mut range = wanted.clone();
            for next in (number + 1..end).map(|next| self.table.chunk(next).stretch) {
                let is_close = range.start <= next.start && next.start <= range.end;
                if !is_close || next.end.saturating_sub(range.start) > JOINED {
                    break;
                }
                range.end = range.end.max(next.end);
            }
            *have = (range.clone(), self.read(range)?);
        }
        let offset = |at: u64| usize::try_from(at - have.0.start).unwrap_or(usize::MAX);
        let stretch = have.1.get(offset(wanted.start)..offset(wanted.end));
        let stretch = stretch.unwrap_or_default();
        let point;
        let packing = match self.table.compression() {
            Compression::Gzip => Packing::Member,
            Compression::Zstd => Packing::Frames,
            Compression::Checkpoints => {
                point = self
                    .table
                    .checkpoint(wanted.start)
                    .ok_or_else(|| Flaw::Compression {
                        what: "a chunk",
                        source: io::Error::other("it has no checkpoint"),
                    })?;
                Packing::After(&point)
            }
        };
        unpack(&chunk, stretch, packing, &self.limits)
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>, Flaw> {
        let length = range.end - range.start;
        let most = self.limits.chunk_bytes.saturating_mul(2).max(JOINED);
        if length > most {
            return Err(Flaw::Limit {
                what: "bytes of a stretch",
                limit: most,
            });
        }
        let bytes = self.source.read(range).map_err(Flaw::Source)?;
        if bytes.len() as u64 != length {
            return Err(Flaw::Source(io::ErrorKind::UnexpectedEof.into()));
        }
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
        Ok(self.find(ino)?.is_some())
    }

    fn open(&self, _path: &Path, ino: Ino) -> Result<File> {
        self.fetch(ino)
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
    fn join(&self, digest: Digest) -> Role {
        let mut under_way = self.0.lock();
        if let Some(flight) = under_way.get(&digest) {
            return Role::Wait(Arc::clone(flight));
        }
        let flight = Arc::new(Flight::default());
        under_way.insert(digest, Arc::clone(&flight));
        Role::Lead(flight)
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
struct Landing<'f> {
    flights: &'f Flights,
    digest: Digest,
    flight: Arc<Flight>,
}

impl Landing<'_> {
    fn land(&self, result: Result<(), Arc<Flaw>>) {
        self.flight.ended.lock().get_or_insert(result);
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.digest);
        // The file is here; or a local error, such as a full disk, is the leader's alone, and the
        // others try by themselves.
        self.land(Ok(()));
        self.flight.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
