//! What the entries of a record come to.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::mem;

use super::entry::{Entry, Intent, Place, Ticket};
use crate::types::{Fh, FileKind, Ino, NodeId};

/// Everything that a union knew and that cannot be found on the disk.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) nodes: HashMap<NodeId, NodeState>,
    pub(crate) handles: HashMap<Fh, HandleState>,
    pub(crate) slots: HashMap<u32, SlotState>,
    /// The last number of each sort that was given out.
    pub(crate) numbers: Numbers,
}

/// The last numbers that were given out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Numbers {
    pub(crate) generation: u32,
    /// Of nodes that have no inode's number: from [`crate::inode::FIRST_FREE_ID`] on.
    pub(crate) node: u64,
    pub(crate) fh: u64,
    pub(crate) attached: u32,
}

/// One node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct NodeState {
    pub(crate) generation: u32,
    pub(crate) ino: Ino,
    pub(crate) kind: FileKind,
    /// The client's references.
    pub(crate) lookups: i64,
    pub(crate) names: Vec<Place>,
    pub(crate) successor: Option<NodeId>,
    /// Where the image has, or had, its file.
    pub(crate) image: Option<OsString>,
    /// The client's number for the file behind its handles. Without handles: one that may have been
    /// given back, or not.
    pub(crate) attached: Option<u32>,
}

/// One open handle.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct HandleState {
    pub(crate) node: NodeId,
    /// Whether its file is the upper's, or the image's.
    pub(crate) above: bool,
    /// Whether a program runs from it.
    pub(crate) runs: bool,
    /// Whether each write comes to us.
    pub(crate) writes_need_us: bool,
}

/// What belongs to the last request of a slot.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct SlotState {
    pub(crate) unique: u64,
    /// References that the client was about to get.
    pub(crate) references: Vec<(NodeId, i64)>,
    /// Handles that it was about to get.
    pub(crate) handles: Vec<Fh>,
    /// A change of names, and whether it was made, if that is known.
    pub(crate) intent: Option<(Intent, Option<bool>)>,
}

impl State {
    /// Makes a change.
    pub(super) fn apply(&mut self, ticket: Ticket, entry: Entry) {
        match entry {
            Entry::Node {
                id,
                generation,
                ino,
                kind,
                lookups,
            } => {
                let node = NodeState {
                    generation,
                    ino,
                    kind,
                    lookups,
                    names: Vec::new(),
                    successor: None,
                    image: None,
                    attached: None,
                };
                self.nodes.insert(id, node);
                self.numbers.generation = generation;
                if id.0 >= crate::inode::FIRST_FREE_ID {
                    self.numbers.node = self.numbers.node.max(id.0);
                }
                self.note(ticket, |slot| slot.references.push((id, lookups)));
            }
            Entry::Name(id, place) => self.name(id, place),
            Entry::Unname(id, place) => self.unname(id, &place),
            Entry::Moved(id, from, to) => {
                self.unname(id, &from);
                self.name(id, to);
            }
            Entry::Refer(id, count) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    // A sum that a damaged record brings beyond all bounds is as wrong as any other.
                    node.lookups = node.lookups.wrapping_add(count);
                }
                self.note(ticket, |slot| slot.references.push((id, count)));
            }
            Entry::Gone(id) => drop(self.nodes.remove(&id)),
            Entry::Succeed(id, old) => {
                let names = self.nodes.get_mut(&old).map(|old| {
                    old.successor = Some(id);
                    mem::take(&mut old.names)
                });
                for name in names.into_iter().flatten() {
                    self.name(id, name);
                }
            }
            Entry::Image(id, path) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.image = Some(path);
                }
            }
            Entry::Open(fh, handle) => {
                self.handles.insert(fh, handle);
                self.numbers.fh = self.numbers.fh.max(fh.0);
                self.note(ticket, |slot| slot.handles.push(fh));
            }
            Entry::Close(fh) => {
                self.handles.remove(&fh);
                for slot in self.slots.values_mut() {
                    slot.handles.retain(|other| *other != fh);
                }
            }
            Entry::Attach(id, number) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.attached = Some(number);
                }
                self.numbers.attached = self.numbers.attached.max(number);
            }
            Entry::Begin(intent) => self.note(ticket, |slot| slot.intent = Some((intent, None))),
            Entry::End(done) => {
                let slot = self.slots.get_mut(&ticket.slot);
                let slot = slot.filter(|slot| slot.unique == ticket.unique);
                if let Some((_, known)) = slot.and_then(|slot| slot.intent.as_mut()) {
                    *known = Some(done);
                }
            }
            Entry::Clear => drop(self.slots.remove(&ticket.slot)),
            Entry::Numbers(numbers) => self.numbers = numbers,
        }
    }

    /// The entries that lead here from nothing.
    pub(super) fn entries(&self, mut visit: impl FnMut(Ticket, &Entry)) {
        let none = Ticket::default();
        // What belongs to requests comes with them, below.
        let (mut pending, mut opened) = (HashMap::<NodeId, i64>::new(), HashSet::<Fh>::new());
        for slot in self.slots.values() {
            for (id, count) in &slot.references {
                let sum = pending.entry(*id).or_default();
                *sum = sum.wrapping_add(*count);
            }
            opened.extend(&slot.handles);
        }
        for (id, node) in &self.nodes {
            let without = pending.get(id).copied().unwrap_or(0);
            visit(none, &node.entry(*id, without));
        }
        // Before there are names, which it hands on.
        for (id, node) in &self.nodes {
            if let Some(successor) = node.successor {
                visit(none, &Entry::Succeed(successor, *id));
            }
        }
        for (id, node) in &self.nodes {
            node.more_entries(*id, |entry| visit(none, &entry));
        }
        for (fh, handle) in &self.handles {
            if !opened.contains(fh) {
                visit(none, &Entry::Open(*fh, *handle));
            }
        }
        for (number, slot) in &self.slots {
            let ticket = Ticket {
                unique: slot.unique,
                slot: *number,
            };
            for (id, count) in &slot.references {
                visit(ticket, &Entry::Refer(*id, *count));
            }
            for fh in &slot.handles {
                if let Some(handle) = self.handles.get(fh) {
                    visit(ticket, &Entry::Open(*fh, *handle));
                }
            }
            if let Some((intent, known)) = &slot.intent {
                visit(ticket, &Entry::Begin(intent.clone()));
                if let Some(done) = known {
                    visit(ticket, &Entry::End(*done));
                }
            }
        }
        visit(none, &Entry::Numbers(self.numbers));
    }

    fn name(&mut self, id: NodeId, place: Place) {
        if let Some(node) = self.nodes.get_mut(&id)
            && !node.names.contains(&place)
        {
            node.names.push(place);
        }
    }

    fn unname(&mut self, id: NodeId, place: &Place) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.names.retain(|known| known != place);
        }
    }

    /// Notes something that belongs to a request.
    fn note(&mut self, ticket: Ticket, what: impl FnOnce(&mut SlotState)) {
        if ticket.unique == 0 {
            return;
        }
        let slot = self.slots.entry(ticket.slot).or_default();
        if slot.unique != ticket.unique {
            *slot = SlotState {
                unique: ticket.unique,
                ..SlotState::default()
            };
        }
        what(slot);
    }
}

impl NodeState {
    /// The entry of the node itself, without so many references.
    fn entry(&self, id: NodeId, without: i64) -> Entry {
        Entry::Node {
            id,
            generation: self.generation,
            ino: self.ino,
            kind: self.kind,
            lookups: self.lookups.wrapping_sub(without),
        }
    }

    /// The entries of what it has.
    fn more_entries(&self, id: NodeId, mut visit: impl FnMut(Entry)) {
        for place in &self.names {
            visit(Entry::Name(id, place.clone()));
        }
        if let Some(path) = &self.image {
            visit(Entry::Image(id, path.clone()));
        }
        if let Some(number) = self.attached {
            visit(Entry::Attach(id, number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::entry::tests::examples;

    fn folded(entries: &[(Ticket, Entry)]) -> State {
        let mut state = State::default();
        for (ticket, entry) in entries {
            state.apply(*ticket, entry.clone());
        }
        state
    }

    fn compacted(state: &State) -> State {
        let mut entries = Vec::new();
        state.entries(|ticket, entry| entries.push((ticket, entry.clone())));
        folded(&entries)
    }

    fn same(left: &State, right: &State) -> bool {
        (&left.nodes, &left.handles, used(left), left.numbers)
            == (&right.nodes, &right.handles, used(right), right.numbers)
    }

    /// The slots with anything in them.
    fn used(state: &State) -> HashMap<u32, SlotState> {
        let is_used = |slot: &SlotState| {
            !slot.references.is_empty() || !slot.handles.is_empty() || slot.intent.is_some()
        };
        let mut slots = state.slots.clone();
        slots.retain(|_, slot| is_used(slot));
        slots
    }

    #[test]
    fn the_entries_of_a_state_lead_to_it() {
        let mut chance = fastrand_like(5);
        let examples = examples();
        for _ in 0..2000 {
            let mut entries = Vec::new();
            for _ in 0..chance() % 40 {
                let ticket = Ticket {
                    unique: chance() % 3,
                    slot: u32::try_from(chance() % 2).unwrap(),
                };
                let which = usize::try_from(chance()).unwrap() % examples.len();
                entries.push((ticket, examples[which].clone()));
            }
            let state = folded(&entries);
            let again = compacted(&state);
            assert!(same(&state, &again), "{entries:?}\n{state:?}\n{again:?}");
        }
    }

    fn fastrand_like(mut seed: u64) -> impl FnMut() -> u64 {
        move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 33
        }
    }

    #[test]
    fn a_slot_remembers_its_last_request_alone() {
        let ticket = |unique| Ticket { unique, slot: 1 };
        let node = NodeId(7);
        let state = folded(&[
            (ticket(2), Entry::Refer(node, 1)),
            (ticket(4), Entry::Refer(node, 1)),
            (ticket(4), Entry::Begin(Intent::Xattr)),
            (ticket(4), Entry::End(true)),
        ]);
        let slot = &state.slots[&1];
        assert_eq!((slot.unique, &*slot.references), (4, &[(node, 1)][..]));
        assert_eq!(slot.intent, Some((Intent::Xattr, Some(true))));
    }
}
