//! The memory of a record: entries one after the other, in one of two halves.
//!
//! ```text
//! 0       "LAMINARC", version, whether entries are missing, which half counts, the length of each half
//! 64 KiB  what the client wrote about itself, once
//! 128 KiB the first half; behind it the second
//! ```
//!
//! An entry is written first, and counted by the half's length afterwards, so that a `kill -9` leaves it
//! or leaves it out. When a half has grown, what its entries come to is written to the other one, and then
//! that one counts.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use super::entry::{Entry, Ticket};
use super::state::State;
use super::{Flaw, VERSION};
use crate::sys::shared::Shared;

const MAGIC: u64 = u64::from_le_bytes(*b"LAMINARC");

/// Offsets of the numbers at the beginning.
const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 8;
const AT_LOST: usize = 16;
const AT_HALF: usize = 24;
const AT_LENGTHS: [usize; 2] = [32, 40];
const AT_ABOUT_LENGTH: usize = 48;

const AT_ABOUT: usize = 64 << 10;
const AT_HALVES: usize = 128 << 10;

/// The room of each half (bytes): some millions of nodes. Only what is used takes memory.
const HALF: usize = 256 << 20;

/// A half that has grown to this is not rewritten yet (bytes).
const SMALL: usize = 1 << 20;

/// The version of a record, told by what no version changes: where it stands.
pub(super) fn version_of(kept: &OwnedFd) -> Option<u64> {
    (number(kept, AT_MAGIC)? == MAGIC).then(|| number(kept, AT_VERSION))?
}

/// The bytes of its entries.
pub(super) fn amount_in(kept: &OwnedFd) -> Option<u64> {
    let half = usize::try_from(number(kept, AT_HALF)?).ok()?;
    number(kept, *AT_LENGTHS.get(half)?)
}

/// One of the numbers at its beginning.
fn number(kept: &OwnedFd, at: usize) -> Option<u64> {
    let mut bytes = [0; 8];
    let read = rustix::io::pread(kept, &mut bytes, at as u64).ok()?;
    (read == bytes.len()).then(|| u64::from_ne_bytes(bytes))
}

/// The entries of one union.
#[derive(Debug)]
pub(super) struct Journal {
    memory: Shared,
    half: usize,
    length: usize,
    /// The length at which it is rewritten.
    limit: usize,
    is_lost: bool,
    /// For one entry.
    bytes: Vec<u8>,
}

impl Journal {
    /// A journal without entries.
    pub(super) fn create() -> io::Result<Journal> {
        Ok(Journal {
            memory: Shared::create("lamina-record", (AT_HALVES + 2 * HALF) as u64)?,
            half: 0,
            length: 0,
            limit: SMALL,
            is_lost: false,
            bytes: Vec::new(),
        })
    }

    /// Adds what the client says about itself.
    pub(super) fn complete(&mut self, about: &[u8]) -> io::Result<()> {
        if about.len() > AT_HALVES - AT_ABOUT || !self.memory.write(AT_ABOUT, about) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.memory.store(AT_ABOUT_LENGTH, about.len() as u64);
        self.memory.store(AT_VERSION, VERSION);
        // Last: without it, it is none.
        self.memory.store(AT_MAGIC, MAGIC);
        Ok(())
    }

    /// A journal that an earlier process wrote, what that said about itself, and what its entries come
    /// to.
    pub(super) fn open(file: File) -> Result<(Journal, Vec<u8>, State), Flaw> {
        let memory = Shared::open(file)?;
        if memory.len() != AT_HALVES + 2 * HALF || memory.load(AT_MAGIC) != MAGIC {
            return Err(Flaw::NotARecord);
        }
        let version = memory.load(AT_VERSION);
        if version == 0 || version > VERSION {
            return Err(Flaw::Version(version));
        }
        if memory.load(AT_LOST) != 0 {
            return Err(Flaw::Incomplete);
        }
        let number = |at| usize::try_from(memory.load(at)).map_err(|_| Flaw::Corrupt);
        let about = number(AT_ABOUT_LENGTH)?;
        let about = (about <= AT_HALVES - AT_ABOUT).then(|| memory.read(AT_ABOUT, about));
        let about = about.flatten().ok_or(Flaw::Corrupt)?;
        let half = number(AT_HALF)?;
        let length = number(*AT_LENGTHS.get(half).ok_or(Flaw::Corrupt)?)?;
        let mut journal = Journal {
            memory,
            half,
            length,
            limit: SMALL,
            is_lost: false,
            bytes: Vec::new(),
        };
        let state = journal.state().ok_or(Flaw::Corrupt)?;
        journal.rewrite(&state);
        Ok((journal, about, state))
    }

    /// The descriptor that keeps it.
    pub(super) fn file(&self) -> &File {
        self.memory.file()
    }

    /// Appends an entry.
    pub(super) fn append(&mut self, ticket: Ticket, entry: &Entry) {
        if self.is_lost {
            return;
        }
        #[cfg(test)]
        if crate::sys::change::faults::has_stopped() {
            return;
        }
        self.bytes.clear();
        entry.encode(ticket, &mut self.bytes);
        if self.length + self.bytes.len() > HALF {
            return self.lose();
        }
        self.memory
            .write(start(self.half) + self.length, &self.bytes);
        self.length += self.bytes.len();
        self.memory.store(AT_LENGTHS[self.half], self.length as u64);
        if self.length > self.limit {
            match self.state() {
                Some(state) => self.rewrite(&state),
                None => self.lose(),
            }
        }
    }

    /// What the entries come to; `None` if they can't be read.
    fn state(&self) -> Option<State> {
        if self.length > HALF {
            return None;
        }
        fold(&self.memory.read(start(self.half), self.length)?)
    }

    /// Writes a state to the other half, which counts from then on.
    fn rewrite(&mut self, state: &State) {
        let mut bytes = Vec::new();
        state.entries(|ticket, entry| entry.encode(ticket, &mut bytes));
        let (old, new) = (self.half, 1 - self.half);
        if bytes.len() > HALF {
            return self.lose();
        }
        self.memory.write(start(new), &bytes);
        self.memory.store(AT_LENGTHS[new], bytes.len() as u64);
        self.memory.store(AT_HALF, new as u64);
        self.memory.clear(start(old) as u64, HALF as u64);
        (self.half, self.length) = (new, bytes.len());
        self.limit = SMALL.max(bytes.len().saturating_mul(5) / 2);
    }

    /// Appends nothing from now on.
    pub(super) fn stop(&mut self) {
        self.memory.store(AT_LOST, 1);
        self.is_lost = true;
    }

    /// Notes that entries are missing, so that nobody relies on the others.
    fn lose(&mut self) {
        tracing::warn!(
            "more inodes are known than a record holds: this mount ends with this process"
        );
        self.stop();
    }
}

/// What entries come to; `None` if they can't be read.
pub(super) fn fold(mut bytes: &[u8]) -> Option<State> {
    let mut state = State::default();
    while !bytes.is_empty() {
        let (ticket, entry) = Entry::decode(&mut bytes)?;
        state.apply(ticket, entry);
    }
    Some(state)
}

/// Where a half begins.
fn start(half: usize) -> usize {
    AT_HALVES + half * HALF
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{FileKind, Ino, NodeId};

    fn node(id: u64) -> Entry {
        Entry::Node {
            id: NodeId(id),
            generation: 1,
            ino: Ino(id),
            kind: FileKind::Regular,
            lookups: 1,
        }
    }

    fn journal(about: &[u8]) -> Journal {
        let mut journal = Journal::create().unwrap();
        journal.complete(about).unwrap();
        journal
    }

    fn reopened(journal: &Journal) -> Result<(Journal, Vec<u8>, State), Flaw> {
        Journal::open(journal.file().try_clone().unwrap())
    }

    #[test]
    fn what_was_appended_is_found_by_the_next_process_over_many_rewritings() {
        let mut journal = journal(b"about");
        let mut halves = std::collections::HashSet::new();
        for id in 1..=100_000 {
            journal.append(Ticket::default(), &node(id));
            if id > 100 {
                let gone = Entry::Gone(NodeId(id - 100));
                journal.append(Ticket::default(), &gone);
            }
            halves.insert(journal.half);
        }
        assert_eq!(halves.len(), 2);
        assert!(journal.length < 2 * SMALL);
        let (again, about, state) = reopened(&journal).unwrap();
        assert_eq!(about, b"about");
        assert_eq!(state.nodes.len(), 100);
        assert!(state.nodes.contains_key(&NodeId(100_000)));
        let (_, _, state) = reopened(&again).unwrap();
        assert_eq!(state.nodes.len(), 100);
    }

    #[test]
    fn an_entry_that_was_not_counted_was_not_written() {
        let mut journal = journal(b"");
        journal.append(Ticket::default(), &node(2));
        let length = journal.length;
        journal.append(Ticket::default(), &node(3));
        // As a kill between the two steps leaves it.
        journal.memory.store(AT_LENGTHS[0], length as u64);
        let (_, _, state) = reopened(&journal).unwrap();
        assert_eq!(state.nodes.len(), 1);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_reason() {
        let damaged = |damage: fn(&Journal)| {
            let mut journal = journal(b"");
            journal.append(Ticket::default(), &node(2));
            damage(&journal);
            reopened(&journal).unwrap_err()
        };
        let flaw = damaged(|journal| journal.memory.store(AT_MAGIC, 1));
        assert!(matches!(flaw, Flaw::NotARecord));
        let flaw = damaged(|journal| journal.memory.store(AT_VERSION, VERSION + 1));
        assert!(matches!(flaw, Flaw::Version(_)));
        let flaw = damaged(|journal| journal.memory.store(AT_LOST, 1));
        assert!(matches!(flaw, Flaw::Incomplete));
        for damage in [
            (|journal: &Journal| journal.memory.store(AT_HALF, 2)) as fn(&Journal),
            |journal| journal.memory.store(AT_LENGTHS[0], 1 << 60),
            |journal| journal.memory.store(AT_LENGTHS[0], 3),
            |journal| journal.memory.store(AT_ABOUT_LENGTH, 1 << 60),
            |journal| assert!(journal.memory.write(start(0), &[255; 8])),
        ] {
            assert!(matches!(damaged(damage), Flaw::Corrupt));
        }
        let null = File::open("/dev/null").unwrap();
        assert!(Journal::open(null).is_err());
    }

    #[test]
    fn the_version_of_a_record_is_known_without_reading_it() {
        let journal = journal(b"");
        let version = || version_of(&journal.file().try_clone().unwrap().into());
        assert_eq!(version(), Some(VERSION));
        let amount = || amount_in(&journal.file().try_clone().unwrap().into());
        assert_eq!(amount(), Some(journal.length as u64));
        journal.memory.store(AT_VERSION, VERSION + 7);
        assert_eq!(version(), Some(VERSION + 7));
        journal.memory.store(AT_MAGIC, 1);
        assert_eq!(version(), None);
        assert_eq!(version_of(&File::open("/dev/null").unwrap().into()), None);
    }
}
