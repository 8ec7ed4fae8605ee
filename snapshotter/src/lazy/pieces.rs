//! A blob read from its beginning to its end, in pieces that are fetched ahead.
//!
//! Each piece is a request of its own: one that fails is made again without beginning anew, and
//! several at a time use a link better than one long answer does. Whoever reads slowly bounds what is
//! fetched: each thread has one piece under way and one that waits.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use crate::registry::RegistryError;
use crate::registry::blob::RemoteBlob;

/// How a blob is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Bytes of a piece.
    pub(super) piece: u64,
    /// Requests at a time.
    pub(super) ahead: u64,
}

/// For a blob that somebody waits for.
const AWAITED: Shape = Shape {
    piece: 8 << 20,
    ahead: 3,
};

/// What decides when a request is made.
pub(super) trait Gate: Send + Sync {
    /// Asked before a request, which it may hold up. `false`: nothing more is fetched.
    fn admit(&self, range: &Range<u64>) -> bool;

    /// Told when a request that was let through has ended.
    fn ended(&self);
}

/// Lets everything through.
struct Open;

impl Gate for Open {
    fn admit(&self, _range: &Range<u64>) -> bool {
        true
    }

    fn ended(&self) {}
}

/// The reader.
pub(crate) struct Pieces {
    /// Piece n comes from the thread n modulo their number.
    threads: Vec<Receiver<Result<Vec<u8>, RegistryError>>>,
    next: usize,
    piece: io::Cursor<Vec<u8>>,
    left: u64,
}

impl Pieces {
    /// Reads a blob as fast as it comes.
    pub(crate) fn of(blob: &RemoteBlob) -> io::Result<Pieces> {
        Pieces::through(&(Arc::new(Open) as Arc<dyn Gate>), AWAITED, blob)
    }

    /// Reads a blob as fast as a gate lets its requests through.
    pub(super) fn through(
        gate: &Arc<dyn Gate>,
        shape: Shape,
        blob: &RemoteBlob,
    ) -> io::Result<Pieces> {
        let Shape { piece, ahead } = shape;
        let size = blob.size();
        let count = size.div_ceil(piece);
        let threads = (0..ahead.min(count)).map(|first| {
            let (sender, receiver) = sync_channel(1);
            let (blob, gate) = (blob.clone(), Arc::clone(gate));
            let span = tracing::Span::current();
            let fetch = move || {
                let _entered = span.enter();
                let mut number = first;
                while number < count {
                    let start = number * piece;
                    let range = start..(start + piece).min(size);
                    if !gate.admit(&range) {
                        return;
                    }
                    let piece = blob.part(range);
                    gate.ended();
                    let failed = piece.is_err();
                    // Nobody reads on: so be it.
                    if sender.send(piece).is_err() || failed {
                        return;
                    }
                    number += ahead;
                }
            };
            let name = "lamina-pull".to_owned();
            thread::Builder::new().name(name).spawn(fetch)?;
            Ok(receiver)
        });
        Ok(Pieces {
            threads: threads.collect::<io::Result<_>>()?,
            next: 0,
            piece: io::Cursor::default(),
            left: count,
        })
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.piece.read(buffer)?;
            if count > 0 || buffer.is_empty() || self.left == 0 {
                return Ok(count);
            }
            let thread = self.next % self.threads.len().max(1);
            let piece = self.threads.get(thread).and_then(|from| from.recv().ok());
            let piece = piece.unwrap_or_else(|| {
                // It ended without a word.
                Err(RegistryError::Answer {
                    url: String::new(),
                    what: "fetching ended".to_owned(),
                })
            });
            self.piece = io::Cursor::new(piece.map_err(io::Error::other)?);
            self.next += 1;
            self.left -= 1;
        }
    }
}
