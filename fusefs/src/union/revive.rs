//! A union goes on where an earlier process ended.
//!
//! The record says which nodes and handles the client knows, and by which names; the disk says what they
//! are today. So each node is looked up again by its names, the directories before what is in them. Those
//! that have no name any more are found by the descriptor that was kept of them, or by their path in the
//! image.
//!
//! One change of names may have been cut off between its step on the disk and its entry in the record
//! (several may, if all of them made something new). Whether it was made is asked of the disk first.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use super::Union;
use super::resolve::Found;
use crate::error::{Error, Result};
use crate::image::ImageId;
use crate::inode::{Backing, Blocks, FileHandleState, Name, Node, NumberOf, State};
use crate::marks::{self, Data};
use crate::record::{self, Before, Done, Entry, HandleState, Intent, NodeState};
use crate::sys::place::Place;
use crate::types::{Fh, FileKind, NodeId};

/// What a union found of what an earlier process knew.
#[derive(Debug, Default)]
pub(crate) struct Revived {
    /// How many nodes the client knows.
    pub(crate) nodes: usize,
    /// How many handles it has open.
    pub(crate) handles: usize,
    /// How many nodes and handles are no longer there: who uses them gets ESTALE.
    pub(crate) lost: usize,
    /// Numbers of the client that belong to no open file any more, if it still knows them.
    pub(crate) detached: Vec<u32>,
}

/// What is still to be put back.
struct Revival<'u> {
    union: &'u Union,
    nodes: HashMap<NodeId, NodeState>,
    pins: HashMap<NodeId, Arc<OwnedFd>>,
    /// Handles of each node.
    handles: HashMap<NodeId, Vec<(Fh, HandleState)>>,
    attach: &'u dyn Fn(&Backing, u32),
    revived: Revived,
}

impl Union {
    /// Puts back what an earlier process knew. `pins`: the files that were kept for it. `attach` gives a
    /// file back the client's number for it (0: it has none). The union has its record, and nobody has
    /// asked it for anything yet.
    pub(crate) fn revive(
        &self,
        state: record::State,
        pins: HashMap<NodeId, Arc<OwnedFd>>,
        attach: &dyn Fn(&Backing, u32),
    ) -> Revived {
        self.nodes.go_on_behind(state.numbers);
        self.handles.go_on_behind(Fh(state.numbers.fh));
        let mut handles = HashMap::<_, Vec<_>>::new();
        for (fh, handle) in state.handles {
            handles.entry(handle.node).or_default().push((fh, handle));
        }
        let mut revival = Revival {
            union: self,
            nodes: state.nodes,
            pins,
            handles,
            attach,
            revived: Revived::default(),
        };
        let _names = self.names.read();
        let mut expected = Vec::new();
        for (number, slot) in state.slots {
            let done = match slot.intent {
                Some((_, Some(true))) => Done::Yes,
                Some((Intent::Xattr, None)) => Done::Perhaps,
                Some((intent, None)) if revival.settle(&intent) => Done::Yes,
                _ => Done::No,
            };
            let before = Before::new(number, slot.references, slot.handles, done);
            expected.push((number, slot.unique, before));
        }
        // One directory after the other: few of them are open at a time.
        let mut all: Vec<_> = revival.nodes.keys().copied().collect();
        all.sort_unstable_by_key(|id| {
            let names = revival.nodes.get(id).map(|node| &node.names);
            names.and_then(|names| Some(names.first()?.parent))
        });
        for id in &all {
            revival.bring(*id);
        }
        revival.find_nameless();
        for handles in std::mem::take(&mut revival.handles).into_values() {
            revival.lose(&handles);
        }
        let mut revived = revival.revived;
        for id in all {
            // What only a request held that was cut off.
            self.forget(id, 0);
            revived.nodes += usize::from(self.node(id).is_ok());
        }
        if let Some(record) = &self.record {
            record.expect(expected);
        }
        revived
    }
}

impl Revival<'_> {
    /// Whether a change of names that was cut off has been made. If so, the nodes have their names as if
    /// it had been written down.
    fn settle(&mut self, intent: &Intent) -> bool {
        match intent {
            Intent::Make(place) => self.at(place).is_some(),
            Intent::Link(id, place) => {
                let Some(ino) = self.nodes.get(id).map(|node| node.ino) else {
                    return false;
                };
                let done = self.at(place).is_some_and(|found| found.attr.ino == ino);
                if done {
                    self.name(*id, place);
                }
                done
            }
            Intent::Remove(place, ino) => {
                let done = self.at(place).is_none_or(|found| found.attr.ino != *ino);
                if done {
                    self.unname_all(place, None);
                }
                done
            }
            Intent::Rename {
                node,
                from,
                to,
                exchange,
            } => {
                let Some(state) = self.nodes.get(node) else {
                    return false;
                };
                let ino = state.ino;
                let done = self.at(to).is_some_and(|found| found.attr.ino == ino)
                    && self.at(from).is_none_or(|found| found.attr.ino != ino);
                if done {
                    self.unname_all(to, Some(*node));
                    self.unname_all(from, None);
                    self.name(*node, to);
                    if let Some(other) = exchange {
                        self.name(*other, from);
                    }
                }
                done
            }
            Intent::Xattr => false,
        }
    }

    /// What the disk has at a name.
    fn at(&mut self, place: &record::Place) -> Option<Found> {
        self.bring(place.parent);
        let parent = self.union.nodes.get(place.parent)?;
        self.union.resolve(&parent, &place.name).ok().flatten()
    }

    fn name(&mut self, id: NodeId, place: &record::Place) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if !node.names.contains(place) {
            node.names.push(place.clone());
            self.union.note(|| Entry::Name(id, place.clone()));
        }
    }

    /// Takes a name from whoever has it, but for one node.
    fn unname_all(&mut self, place: &record::Place, but: Option<NodeId>) {
        for (id, node) in &mut self.nodes {
            if Some(*id) != but && node.names.contains(place) {
                node.names.retain(|known| known != place);
                self.union.note(|| Entry::Unname(*id, place.clone()));
            }
        }
    }

    /// Puts a node back that has a name, after those of its directories. A list and no recursion: how
    /// deep a tree is, is up to the container.
    fn bring(&mut self, id: NodeId) {
        let (mut pending, mut begun) = (vec![id], HashSet::new());
        while let Some(id) = pending.last().copied() {
            let is_first = begun.insert(id);
            let Some(node) = self.nodes.get(&id).filter(|node| !node.names.is_empty()) else {
                pending.pop();
                continue;
            };
            let parents = node.names.iter().map(|name| name.parent);
            let missing = parents.filter(|parent| !begun.contains(parent));
            let before = pending.len();
            if is_first {
                pending.extend(missing.filter(|parent| self.nodes.contains_key(parent)));
            }
            if pending.len() > before {
                continue;
            }
            pending.pop();
            self.bring_by_name(id);
        }
    }

    /// The same, when its directories have been put back.
    fn bring_by_name(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let (mut first, mut names) = (None, Vec::new());
        for place in std::mem::take(&mut node.names) {
            let parent = self.union.nodes.get(place.parent);
            let found = parent.and_then(|parent| {
                let found = self.union.resolve(&parent, &place.name).ok().flatten()?;
                let is_it = found.attr.ino == node.ino && found.attr.kind == node.kind;
                is_it.then_some((parent, found))
            });
            match found {
                Some((parent, found)) => {
                    names.push(Name::new(&parent, &place.name));
                    first.get_or_insert(found);
                }
                None => self.union.note(|| Entry::Unname(id, place)),
            }
        }
        let Some(found) = first else {
            if !self.pins.contains_key(&id) {
                self.revived.lost += 1;
            }
            return;
        };
        let Some(known) = self.nodes.remove(&id) else {
            return;
        };
        let mut state = found.state();
        state.names = names.into();
        let node = self.put_back(id, &known, state, true);
        let handles = self.handles.remove(&id).unwrap_or_default();
        let on_image = handles.iter().any(|(_, handle)| !handle.above);
        if on_image && node.is_written_above() {
            self.supersede(&node, &known);
        }
        self.reopen(&node, &known, handles);
    }

    /// The copy-up of a file with open handles was cut off before another node took over: it does now.
    fn supersede(&self, node: &Arc<Node>, known: &NodeState) {
        let mut state = node.state.lock();
        self.union.supersede(node, &mut state, |_| ());
        state.set_place(None, None, None);
        (state.image, state.upper) = (self.image_at(known), false);
    }

    /// Puts back the nodes that have no name: those that others took over from, and removed files.
    fn find_nameless(&mut self) {
        loop {
            let before = self.nodes.len();
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                let successor = self.nodes.get(&id).and_then(|node| node.successor);
                if successor.is_none_or(|id| !self.nodes.contains_key(&id)) {
                    self.bring_nameless(id);
                }
            }
            if self.nodes.len() == before {
                break;
            }
        }
        if let Some(record) = &self.union.record {
            // Kept for a change that was not made, or of a node that was forgotten.
            for id in self.pins.keys() {
                record.unpin(*id);
            }
        }
    }

    fn bring_nameless(&mut self, id: NodeId) {
        let Some(known) = self.nodes.remove(&id) else {
            return;
        };
        let successor = known.successor.and_then(|id| self.union.nodes.get(id));
        let of_image = |image| State {
            image,
            ..State::default()
        };
        let state = if let Some(successor) = &successor {
            let mut state = of_image(self.image_at(&known));
            state.successor = Some(Arc::clone(successor));
            Some(state)
        } else if let Some(state) = self.linked(&known) {
            // If it was kept, then for nothing: it has another name yet.
            Some(state)
        } else if let Some(file) = self.pins.remove(&id) {
            self.removed(&known, file)
        } else {
            // Of a removed file that only the image has, nothing was kept.
            let image = self.image_at(&known);
            image.is_some().then(|| of_image(image))
        };
        let Some(state) = state else {
            self.union.note(|| Entry::Gone(id));
            return;
        };
        let stands = successor.is_none() && self.union.nodes.by_ino(known.ino).is_none();
        let node = self.put_back(id, &known, state, stands);
        if let Some(successor) = successor {
            successor.state.lock().predecessor = Arc::downgrade(&node);
        }
        let handles = self.handles.remove(&id).unwrap_or_default();
        self.reopen(&node, &known, handles);
    }

    /// The state of a file that is known by none of its names, and has others in the image.
    fn linked(&self, known: &NodeState) -> Option<State> {
        let found = self.union.image_only_entry(self.image_at(known)?).ok()?;
        found.link.is_some().then(|| found.state())
    }

    /// The state of a removed file that was kept.
    fn removed(&self, known: &NodeState, file: Arc<OwnedFd>) -> Option<State> {
        let data = match known.kind {
            FileKind::Regular => marks::data(&Place::Fd(Arc::clone(&file))).ok()?,
            _ => Data::Here,
        };
        let image = if data == Data::Here {
            None
        } else {
            self.image_at(known)
        };
        let mut state = State {
            upper: true,
            image,
            ..State::default()
        };
        let is_partial = image.is_some() && data != Data::Below;
        state.set_place(None, Some(file), is_partial.then(Blocks::unloaded));
        Some(state)
    }

    /// The image's file of a node, by the path that was written down.
    fn image_at(&self, known: &NodeState) -> Option<ImageId> {
        let image = &self.union.image;
        let id = image.find(Path::new(known.image.as_deref()?)).ok()??;
        let is_it = image.kind(id) == known.kind && image.ino(id).ok()? == known.ino;
        is_it.then_some(id)
    }

    fn put_back(&self, id: NodeId, known: &NodeState, state: State, stands: bool) -> Arc<Node> {
        let number = (known.ino, NumberOf::Unknown);
        let node = Node::of_generation(known.generation, id, number, known.kind, state);
        let lookups = u64::try_from(known.lookups).unwrap_or(0);
        (self.union.nodes).put_back(Arc::clone(&node), lookups, stands);
        node
    }

    /// Opens the file behind the handles of a node again.
    fn reopen(&mut self, node: &Arc<Node>, known: &NodeState, handles: Vec<(Fh, HandleState)>) {
        let backing = if handles.is_empty() {
            None
        } else {
            let backing = self.backing(node, &handles);
            let told = backing.inspect_err(|error| {
                tracing::warn!(node = node.id.0, %error, "an open file can't be opened again");
            });
            told.ok()
        };
        let Some(backing) = backing else {
            self.lose(&handles);
            (self.revived.detached).extend(known.attached.filter(|id| *id > 0));
            return;
        };
        if let Some(number) = known.attached {
            (self.attach)(&backing, number);
        }
        {
            let mut state = node.state.lock();
            for (_, handle) in &handles {
                state.open += 1;
                state.running += u32::from(handle.runs);
            }
            state.backing = Arc::downgrade(&backing);
        }
        self.revived.handles += handles.len();
        for (fh, handle) in handles {
            let file = FileHandleState {
                backing: Arc::clone(&backing),
                node: Arc::clone(node),
                writable: handle.above,
                runs: handle.runs,
                writes_need_us: handle.writes_need_us,
            };
            self.union.handles.put_back(fh, file);
        }
    }

    /// Closes handles whose file is not to be had.
    fn lose(&mut self, handles: &[(Fh, HandleState)]) {
        self.revived.lost += handles.len();
        for (fh, _) in handles {
            self.union.note(|| Entry::Close(*fh));
        }
    }

    /// The file behind the handles of a node, of which all have the same.
    fn backing(&self, node: &Arc<Node>, handles: &[(Fh, HandleState)]) -> Result<Arc<Backing>> {
        let above = node.is_written_above();
        if handles.iter().any(|(_, handle)| handle.above != above) {
            return Err(Error::NotFound);
        }
        if let Some(image) = node.image()
            && !above
            && self.union.image.arriving(image)?.is_none()
            && self.union.image.absent(image)?.is_some()
        {
            // Nothing here waits for bytes from elsewhere.
            return Err(Error::NotFound);
        }
        Ok(self.union.backing(node, false)?.0)
    }
}
