//! A blob read from its beginning to its end, in pieces that are fetched ahead.
//!
//! Each piece is a request of its own: one that fails is made again without beginning anew, and
//! several at a time use a link better than one long answer does.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use crate::registry::RegistryError;
use crate::registry::blob::RemoteBlob;

/// Bytes of a piece.
const PIECE: u64 = 8 << 20;
/// Requests at a time.
const AHEAD: u64 = 3;

/// The reader.
pub(super) struct Pieces {
    /// Piece n comes from the thread n modulo their number.
    threads: Vec<Receiver<Result<Vec<u8>, RegistryError>>>,
    next: usize,
    piece: io::Cursor<Vec<u8>>,
    left: u64,
}

impl Pieces {
    pub(super) fn of(blob: &RemoteBlob) -> io::Result<Pieces> {
        let size = blob.size();
        let count = size.div_ceil(PIECE);
        let threads = (0..AHEAD.min(count)).map(|first| {
            let (sender, receiver) = sync_channel(1);
            let blob = blob.clone();
            let fetch = move || {
                let mut number = first;
                while number < count {
                    let start = number * PIECE;
                    let piece = blob.part(start..(start + PIECE).min(size));
                    let failed = piece.is_err();
                    // Nobody reads on: so be it.
                    if sender.send(piece).is_err() || failed {
                        return;
                    }
                    number += AHEAD;
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
