//! The record: what a union would forget if its process ended, kept where the next one finds it.
//!
//! The kernel keeps asking for the nodes and handles that it knows, whoever answers. Most of what a node
//! is can be found again on the disk, by its names; the names, the numbers and the references can't. Each
//! change of these is an [`Entry`], appended to a [`Journal`] in memory that outlives the process; what all
//! of them come to is a [`State`].
//!
//! A request that was being answered when the process ended comes again. What it had changed is
//! remembered in a slot until its answer has been sent: references and handles are given back, and a
//! change of names that had been made already is not made twice. For that its [`Intent`] is written down
//! before; whether it was made, where the process ended just between, the disk tells: nobody else changes
//! the name meanwhile, because the kernel holds the directory for the request that waits.
//!
//! Files that have no name any more are kept by a [`Pins`].

mod entry;
mod journal;
mod state;

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub(crate) use self::entry::{Entry, Intent, Place, Ticket};
use self::journal::Journal;
pub(crate) use self::state::{HandleState, NodeState, Numbers, State};
use crate::types::{Fh, NodeId};

/// The version of the layout and of the entries. A process reads none that is greater; one that has a
/// greater one still reads those before.
pub const VERSION: u64 = 1;

/// FUSE's mark of a request that was sent before (`FUSE_UNIQUE_RESEND`).
const SENT_BEFORE: u64 = 1 << 63;

/// Requests that come again do so before any other, and at once. After this time none does.
const ALL_CAME_AGAIN: Duration = Duration::from_secs(5);

/// Why a record can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// It is something else, or cut off.
    #[error("this is no record of a mount")]
    NotARecord,
    /// It was written by another version.
    #[error("the record has version {0}, and this Lamina reads those up to {VERSION}")]
    Version(u64),
    /// It overflowed.
    #[error("the record is incomplete: more inodes were known than it holds")]
    Incomplete,
    /// Its entries make no sense.
    #[error("the record is damaged")]
    Corrupt,
    /// Something else is mounted there.
    #[error("it is not mounted there any more")]
    OtherMount,
    /// It can't be mapped.
    #[error("cannot map the record: {0}")]
    Io(#[from] io::Error),
}

/// Keeps files that have lost their last name, whatever happens to this process.
pub trait Pins: Send + Sync {
    /// Keeps a node's file. When this returns, it outlives the process.
    fn pin(&self, node: NodeId, file: &Arc<OwnedFd>);
    /// It is needed no more.
    fn unpin(&self, node: NodeId);
}

/// The record of one union.
pub struct Record {
    journal: Mutex<Journal>,
    pins: Arc<dyn Pins>,
    slots: Mutex<Slots>,
}

/// Which slots are free, and what is remembered of requests that may come again.
#[derive(Debug, Default)]
struct Slots {
    free: Vec<u32>,
    next: u32,
    again: HashMap<u64, Before>,
    /// When the last process was taken over from.
    since: Option<Instant>,
}

/// What a request had done that may come again.
#[derive(Debug, Default)]
pub(crate) struct Before {
    slots: Vec<u32>,
    pub(crate) references: Vec<(NodeId, i64)>,
    pub(crate) handles: Vec<Fh>,
    pub(crate) done: Done,
}

impl Before {
    /// What the last request of a slot had done.
    pub(crate) fn new(
        slot: u32,
        references: Vec<(NodeId, i64)>,
        handles: Vec<Fh>,
        done: Done,
    ) -> Before {
        Before {
            slots: vec![slot],
            references,
            handles,
            done,
        }
    }
}

/// How far a request that comes again had come.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Done {
    /// It had changed nothing.
    #[default]
    No,
    /// It had begun to change something that does no harm if it is done twice.
    Perhaps,
    /// Its change was made.
    Yes,
}

/// What the thread is doing now.
#[derive(Clone, Copy, Debug, Default)]
struct Current {
    ticket: Ticket,
    done: Done,
}

thread_local! {
    static CURRENT: Cell<Current> = const { Cell::new(Current { ticket: Ticket { unique: 0, slot: 0 }, done: Done::No }) };
}

/// The version of the record that a descriptor keeps; `None`: it keeps no record.
pub(crate) fn version_of(kept: &OwnedFd) -> Option<u64> {
    journal::version_of(kept)
}

/// How many bytes of entries the record has that a descriptor keeps; 0, if it keeps none.
pub(crate) fn amount_in(kept: &OwnedFd) -> u64 {
    journal::amount_in(kept).unwrap_or(0)
}

impl Record {
    /// A record without entries.
    pub(crate) fn create(pins: Arc<dyn Pins>) -> io::Result<Record> {
        Ok(Record::of(Journal::create()?, pins))
    }

    /// Adds what the client wants to find again, once. Without it the record is none.
    pub(crate) fn complete(&self, about: &[u8]) -> io::Result<()> {
        self.journal.lock().complete(about)
    }

    /// The record of an earlier process, what that wrote about itself, and what it knew.
    pub(crate) fn open(file: File, pins: Arc<dyn Pins>) -> Result<(Record, Vec<u8>, State), Flaw> {
        let (journal, about, state) = Journal::open(file)?;
        Ok((Record::of(journal, pins), about, state))
    }

    fn of(journal: Journal, pins: Arc<dyn Pins>) -> Record {
        Record {
            journal: Mutex::new(journal),
            pins,
            slots: Mutex::default(),
        }
    }

    /// The descriptor that keeps the record: whoever has it keeps it.
    pub(crate) fn keeper(&self) -> io::Result<OwnedFd> {
        Ok(self.journal.lock().file().try_clone()?.into())
    }

    /// Nobody will read it: nothing is written down any more.
    pub(crate) fn stop(&self) {
        self.journal.lock().stop();
    }

    /// Writes down a change, as one of the request of this thread if there is any.
    pub(crate) fn write(&self, entry: &Entry) {
        self.journal.lock().append(CURRENT.get().ticket, entry);
    }

    /// Notes that the request of this thread is about to change a name, until what is returned is
    /// done with, or dropped because that failed.
    pub(crate) fn begin(&self, intent: Intent) -> Begun<'_> {
        self.write(&Entry::Begin(intent));
        Begun {
            record: Some(self),
            done: false,
        }
    }

    /// Keeps a node's file that is about to lose its last name.
    pub(crate) fn pin(&self, node: NodeId, file: &Arc<OwnedFd>) {
        self.pins.pin(node, file);
    }

    /// The node is known no more.
    pub(crate) fn unpin(&self, node: NodeId) {
        self.pins.unpin(node);
    }

    /// What is to be remembered of requests that may come again.
    pub(crate) fn expect(&self, slots: impl IntoIterator<Item = (u32, u64, Before)>) {
        let mut kept = self.slots.lock();
        kept.since = Some(Instant::now());
        for (slot, unique, before) in slots {
            kept.next = kept.next.max(slot + 1);
            let all = kept.again.entry(unique & !SENT_BEFORE).or_default();
            all.slots.push(slot);
            // What was given back again counts against it.
            for (id, count) in before.references {
                match all.references.iter_mut().find(|(other, _)| *other == id) {
                    Some((_, sum)) => *sum = sum.wrapping_add(count),
                    None => all.references.push((id, count)),
                }
            }
            all.handles.extend(before.handles);
            if before.done != Done::No {
                all.done = before.done;
            }
        }
    }

    /// This thread answers a request from now on, until what is returned is dropped. If it had come
    /// before, `give_back` is called with what it got then.
    pub(crate) fn request(
        self: &Arc<Self>,
        unique: u64,
        give_back: impl FnOnce(&Before),
    ) -> Request {
        let number = unique & !SENT_BEFORE;
        let (slot, before) = {
            let mut slots = self.slots.lock();
            let before = slots.came_before(unique);
            let slot = match before.as_ref().and_then(|before| before.slots.first()) {
                Some(slot) => *slot,
                None => slots.take(),
            };
            (slot, before)
        };
        let ticket = Ticket {
            unique: number,
            slot,
        };
        let outer = CURRENT.replace(Current {
            ticket,
            done: before.as_ref().map_or(Done::No, |before| before.done),
        });
        if let Some(before) = before {
            give_back(&before);
            let mut slots = self.slots.lock();
            for other in before.slots.iter().skip(1) {
                self.clear(*other);
                slots.free.push(*other);
            }
        }
        Request {
            record: Arc::clone(self),
            slot,
            outer,
        }
    }

    /// How far the request of this thread had come, if it comes again.
    pub(crate) fn done() -> Done {
        CURRENT.get().done
    }

    fn clear(&self, slot: u32) {
        let ticket = Ticket { unique: 0, slot };
        self.journal.lock().append(ticket, &Entry::Clear);
    }
}

impl Slots {
    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    fn came_before(&mut self, unique: u64) -> Option<Before> {
        if self.again.is_empty() {
            return None;
        }
        if unique & SENT_BEFORE != 0 {
            return self.again.remove(&(unique & !SENT_BEFORE));
        }
        if self
            .since
            .is_some_and(|since| since.elapsed() > ALL_CAME_AGAIN)
        {
            // The others had been answered.
            let slots = self.again.drain().flat_map(|(_, before)| before.slots);
            self.free.extend(slots);
        }
        None
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record").finish_non_exhaustive()
    }
}

/// A change of names under way, and where its end is written down.
#[derive(Default)]
pub(crate) struct Begun<'r> {
    record: Option<&'r Record>,
    done: bool,
}

impl Begun<'_> {
    /// The change was made, and written down.
    pub(crate) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if let Some(record) = self.record {
            record.write(&Entry::End(self.done));
        }
    }
}

/// A thread answers a request.
pub(crate) struct Request {
    record: Arc<Record>,
    slot: u32,
    outer: Current,
}

impl Drop for Request {
    fn drop(&mut self) {
        CURRENT.set(self.outer);
        self.record.slots.lock().free.push(self.slot);
    }
}

/// Reads entries, writes what they come to, and reads that: the same.
#[cfg(fuzzing)]
pub(crate) fn write_anew(bytes: &[u8]) {
    let Some(state) = journal::fold(bytes) else {
        return;
    };
    let mut again = Vec::new();
    state.entries(|ticket, entry| entry.encode(ticket, &mut again));
    let read = journal::fold(&again).expect("what was written is read");
    assert_eq!(read.nodes, state.nodes);
    assert_eq!(read.handles, state.handles);
    assert_eq!(read.numbers, state.numbers);
}
