//! The node table: which nodes the client holds references to.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::{Name, Node, NumberOf, State};
use crate::record::{Entry, Numbers, Place, Record};
use crate::types::{FileKind, Ino, NodeId};

/// Node numbers that are no inode numbers begin here.
pub(crate) const FIRST_FREE_ID: u64 = 1 << 63;

/// All nodes of one union.
#[derive(Debug)]
pub(crate) struct NodeTable {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    by_id: HashMap<NodeId, Slot>,
    /// The nodes that stand for an inode today, and have another number than that.
    elsewhere: HashMap<Ino, Arc<Node>>,
    next_id: u64,
    next_generation: u32,
    /// Where changes are written down.
    record: Option<Arc<Record>>,
}

#[derive(Debug)]
struct Slot {
    node: Arc<Node>,
    /// References that the client holds.
    lookups: u64,
}

impl NodeTable {
    /// A table with a root, which is never forgotten.
    pub(crate) fn new(root: Arc<Node>) -> NodeTable {
        let mut inner = Inner {
            by_id: HashMap::new(),
            elsewhere: HashMap::from([(root.ino, Arc::clone(&root))]),
            next_id: FIRST_FREE_ID,
            next_generation: any_number(),
            record: None,
        };
        let slot = Slot {
            node: root,
            lookups: 1,
        };
        inner.by_id.insert(NodeId::ROOT, slot);
        NodeTable {
            inner: Mutex::new(inner),
        }
    }

    /// Every change is written down from now on. The root is known without that.
    pub(crate) fn set_record(&mut self, record: Arc<Record>) {
        self.inner.get_mut().record = Some(record);
    }

    /// Goes on behind the numbers that an earlier process has given out.
    pub(crate) fn go_on_behind(&self, numbers: Numbers) {
        let mut inner = self.inner.lock();
        inner.next_generation = numbers.generation;
        inner.next_id = inner.next_id.max(numbers.node.saturating_add(1));
    }

    /// Puts back a node that the client knows from an earlier process, with its references. `stands`:
    /// no other node stands for the inode.
    pub(crate) fn put_back(&self, node: Arc<Node>, lookups: u64, stands: bool) {
        let mut inner = self.inner.lock();
        let id = node.id;
        if stands {
            inner.add(node);
        } else {
            node.is_replaced.store(true, Ordering::Relaxed);
            inner.by_id.insert(id, Slot { node, lookups: 0 });
        }
        if let Some(slot) = inner.by_id.get_mut(&id) {
            slot.lookups = lookups;
        }
    }

    /// The node of a number.
    pub(crate) fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        let inner = self.inner.lock();
        inner.by_id.get(&id).map(|slot| Arc::clone(&slot.node))
    }

    /// The node that stands for an inode today.
    pub(crate) fn by_ino(&self, ino: Ino) -> Option<Arc<Node>> {
        self.inner.lock().by_ino(ino).cloned()
    }

    /// Takes one reference to a node that is known.
    pub(crate) fn refer(&self, node: &Node) {
        let mut inner = self.inner.lock();
        if let Some(slot) = inner.by_id.get_mut(&node.id) {
            slot.lookups += 1;
            inner.write(|| Entry::Refer(node.id, 1));
        }
    }

    /// Finds the node of an inode under one more name, or makes it; takes one reference.
    pub(crate) fn find_or_insert(
        &self,
        (ino, number_of): (Ino, NumberOf),
        kind: FileKind,
        name: Name,
        state: impl FnOnce() -> State,
    ) -> Arc<Node> {
        let node = {
            let mut inner = self.inner.lock();
            let node = match inner.by_ino(ino).cloned() {
                Some(known) if known.kind == kind && !known.number_of.contradicts(number_of) => {
                    inner.write(|| Entry::Refer(known.id, 1));
                    known
                }
                other => {
                    if let Some(other) = other {
                        inner.replace(&other);
                    }
                    let id = inner.free_id(ino);
                    let generation = inner.fresh_generation();
                    let number = (ino, number_of);
                    let node = Node::of_generation(generation, id, number, kind, state());
                    inner.write_new(&node, 1);
                    inner.add(Arc::clone(&node));
                    node
                }
            };
            if let Some(slot) = inner.by_id.get_mut(&node.id) {
                slot.lookups += 1;
            }
            node
        };
        let mut state = node.state.lock();
        if !state
            .names
            .iter()
            .any(|known| known.is(&name.parent, &name.name))
        {
            // Under the node's lock, so that what is written last is what is.
            let inner = self.inner.lock();
            inner.write(|| Entry::Name(node.id, Place::new(name.parent.id, &name.name)));
            drop(inner);
            state.names.push(name);
        }
        drop(state);
        node
    }

    /// Makes a node that takes over from `old`, with what `old` knew.
    pub(crate) fn succeed(&self, old: &Arc<Node>, state: State) -> Arc<Node> {
        let mut inner = self.inner.lock();
        if let Some(before) = inner.by_ino(old.ino).cloned() {
            inner.replace(&before);
        }
        let id = inner.fresh_id();
        let generation = inner.fresh_generation();
        let node = Node::of_generation(generation, id, (old.ino, old.number_of), old.kind, state);
        inner.write_new(&node, 0);
        inner.write(|| Entry::Succeed(node.id, old.id));
        inner.add(Arc::clone(&node));
        node
    }

    /// Gives back references; a node without any, that nothing depends on, goes.
    pub(crate) fn forget(&self, id: NodeId, count: u64) {
        self.inner.lock().forget(id, count);
    }

    /// All nodes but the root, each with the client's references.
    pub(crate) fn references(&self) -> Vec<(NodeId, u64)> {
        let inner = self.inner.lock();
        let all = inner.by_id.iter().map(|(id, slot)| (*id, slot.lookups));
        all.filter(|(id, _)| *id != NodeId::ROOT).collect()
    }

    /// Gives all references to a node back, if there are still as many as that.
    pub(crate) fn forget_all(&self, id: NodeId, count: u64) -> bool {
        let mut inner = self.inner.lock();
        let is_so = |slot: &Slot| slot.lookups == count;
        let unchanged = inner.by_id.get(&id).is_some_and(is_so);
        if unchanged {
            inner.forget(id, count);
        }
        unchanged
    }

    /// How many nodes there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.inner.lock().by_id.len()
    }
}

impl Inner {
    /// Writes a change down.
    fn write(&self, entry: impl FnOnce() -> Entry) {
        if let Some(record) = &self.record {
            record.write(&entry());
        }
    }

    /// Writes down a new node.
    fn write_new(&self, node: &Node, lookups: i64) {
        self.write(|| Entry::Node {
            id: node.id,
            generation: node.generation,
            ino: node.ino,
            kind: node.kind,
            lookups,
        });
    }

    /// Gives back references; a node without any, that nothing depends on, goes.
    fn forget(&mut self, id: NodeId, count: u64) {
        let Some(slot) = self.by_id.get_mut(&id) else {
            return;
        };
        if id != NodeId::ROOT && count > 0 {
            let given_back = slot.lookups.min(count);
            slot.lookups -= given_back;
            let given_back = given_back.cast_signed();
            self.write(|| Entry::Refer(id, -given_back));
        }
        self.collect(id);
    }

    /// The node that stands for an inode today; a superseded one does not.
    fn by_ino(&self, ino: Ino) -> Option<&Arc<Node>> {
        // Most nodes have their inode's number, and need no second place.
        let own = self.by_id.get(&NodeId(ino.0)).map(|slot| &slot.node);
        own.filter(|node| node.ino == ino && !node.is_replaced.load(Ordering::Relaxed))
            .or_else(|| self.elsewhere.get(&ino))
    }

    /// Another node is about to stand for the inode that this one stood for.
    fn replace(&mut self, node: &Node) {
        node.is_replaced.store(true, Ordering::Relaxed);
        self.elsewhere.remove(&node.ino);
    }

    /// Adds a node, which stands for its inode from now on.
    fn add(&mut self, node: Arc<Node>) {
        if node.id.0 != node.ino.0 {
            self.elsewhere.insert(node.ino, Arc::clone(&node));
        }
        let slot = Slot { node, lookups: 0 };
        self.by_id.insert(slot.node.id, slot);
    }

    /// The inode number where it can be, so that both agree.
    fn free_id(&mut self, ino: Ino) -> NodeId {
        let wanted = NodeId(ino.0);
        let usable = ino.0 > NodeId::ROOT.0 && ino.0 < FIRST_FREE_ID;
        if usable && !self.by_id.contains_key(&wanted) {
            wanted
        } else {
            self.fresh_id()
        }
    }

    fn fresh_id(&mut self) -> NodeId {
        let id = NodeId(self.next_id);
        self.next_id += 1;
        id
    }

    /// Another one for every node: a number comes back with its inode's number, when the file
    /// system gives that to another file, or when a forgotten file is looked up again.
    fn fresh_generation(&mut self) -> u32 {
        self.next_generation = self.next_generation.wrapping_add(1).max(1);
        self.next_generation
    }

    /// Removes a node if nobody needs it, then what only it needed.
    fn collect(&mut self, id: NodeId) {
        let mut candidates = vec![id];
        while let Some(id) = candidates.pop() {
            let Some(slot) = self.by_id.get(&id) else {
                continue;
            };
            let in_both = self
                .elsewhere
                .get(&slot.node.ino)
                .is_some_and(|node| node.id == id);
            let own_references = if in_both { 2 } else { 1 };
            if slot.lookups > 0 || Arc::strong_count(&slot.node) > own_references {
                continue;
            }
            if in_both {
                self.elsewhere.remove(&slot.node.ino);
            }
            let Some(Slot { node, .. }) = self.by_id.remove(&id) else {
                continue;
            };
            let Some(node) = Arc::into_inner(node) else {
                continue;
            };
            let state = node.state.into_inner();
            if let Some(record) = &self.record {
                record.write(&Entry::Gone(id));
                if state.orphan.is_some() {
                    record.unpin(id);
                }
            }
            candidates.extend(state.names.iter().map(|name| name.parent.id));
            candidates.extend(state.successor.iter().map(|node| node.id));
        }
    }
}

impl Drop for Inner {
    /// Cuts the nodes off from each other first: dropping a file at the end of a long chain of
    /// parents would take one stack frame for each.
    fn drop(&mut self) {
        for slot in self.by_id.values() {
            // The table still holds every parent, so that none goes with its name.
            slot.node.state.lock().names.clear();
        }
    }
}

/// Where generations begin: at another number for every mount, so that a handle of an earlier one
/// is not taken for one of this.
fn any_number() -> u32 {
    let [a, b, c, d, ..] = RandomState::new().hash_one(()).to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn table() -> (NodeTable, Arc<Node>) {
        let root = Node::new(
            NodeId::ROOT,
            Ino(500),
            FileKind::Directory,
            State::default(),
        );
        (NodeTable::new(Arc::clone(&root)), root)
    }

    fn add(
        table: &NodeTable,
        parent: &Arc<Node>,
        name: &str,
        ino: u64,
        kind: FileKind,
    ) -> Arc<Node> {
        let name = Name::new(parent, OsStr::new(name));
        table.find_or_insert((Ino(ino), NumberOf::Unknown), kind, name, State::default)
    }

    #[test]
    fn a_node_has_its_inode_number_unless_that_is_taken_or_the_roots() {
        let (table, root) = table();
        assert_eq!(
            add(&table, &root, "a", 77, FileKind::Regular).id,
            NodeId(77)
        );
        assert!(add(&table, &root, "b", 1, FileKind::Regular).id.0 >= FIRST_FREE_ID);
    }

    #[test]
    fn a_number_that_comes_back_has_another_generation() {
        let (table, root) = table();
        let first = add(&table, &root, "a", 77, FileKind::Regular).generation;
        let again = add(&table, &root, "a", 77, FileKind::Regular).generation;
        assert_eq!(again, first);
        table.forget(NodeId(77), 2);
        let other = add(&table, &root, "b", 77, FileKind::Regular);
        assert_eq!(other.id, NodeId(77));
        assert_ne!(other.generation, first);
    }

    #[test]
    fn the_node_that_came_last_stands_for_an_inode_and_no_earlier_one_does_again() {
        let (table, root) = table();
        let stands = || table.by_ino(Ino(77)).map(|node| node.id);
        let first = add(&table, &root, "a", 77, FileKind::Regular);
        assert_eq!(stands(), Some(first.id));
        let second = table.succeed(&first, State::default());
        assert_eq!(stands(), Some(second.id));
        // The number was given to a file of another kind meanwhile.
        let third = add(&table, &root, "b", 77, FileKind::Symlink);
        assert_eq!(stands(), Some(third.id));
        let id = third.id;
        drop(third);
        table.forget(id, 1);
        assert_eq!(stands(), None);
        let fourth = add(&table, &root, "c", 77, FileKind::Regular);
        assert_eq!(stands(), Some(fourth.id));
        let gone = [first.id, second.id, fourth.id];
        drop((first, second, fourth));
        for id in gone {
            table.forget(id, 1);
        }
        assert_eq!((stands(), table.len()), (None, 1));
        let fifth = add(&table, &root, "d", 77, FileKind::Symlink);
        assert_eq!((fifth.id, stands()), (NodeId(77), Some(NodeId(77))));
    }

    #[test]
    fn a_file_of_the_image_and_one_of_the_upper_are_two_whatever_their_number() {
        let (table, root) = table();
        let add = |name: &str, number_of| {
            let name = Name::new(&root, OsStr::new(name));
            table.find_or_insert(
                (Ino(77), number_of),
                FileKind::Regular,
                name,
                State::default,
            )
        };
        let deleted = add("deleted", NumberOf::Image);
        let new = add("new", NumberOf::Upper);
        assert_ne!(new.id, deleted.id);
        assert_eq!(add("new", NumberOf::Upper).id, new.id);
        assert_eq!(add("linked", NumberOf::Unknown).id, new.id);
        let found = add("deleted", NumberOf::Image);
        assert!(![new.id, deleted.id].contains(&found.id));
    }

    #[test]
    fn hard_links_are_one_node() {
        let (table, root) = table();
        let a = add(&table, &root, "a", 77, FileKind::Regular);
        let b = add(&table, &root, "b", 77, FileKind::Regular);
        assert!(Arc::ptr_eq(&a, &b));
        assert_eq!(a.state.lock().names.len(), 2);
    }

    #[test]
    fn a_parent_lives_as_long_as_a_child_that_names_it() {
        let (table, root) = table();
        let dir = add(&table, &root, "d", 70, FileKind::Directory).id;
        let file = {
            let dir = table.get(dir).unwrap();
            add(&table, &dir, "f", 71, FileKind::Regular).id
        };
        table.forget(dir, 1);
        assert!(table.get(dir).is_some());
        table.forget(file, 1);
        assert!(table.get(dir).is_none());
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn the_root_is_never_forgotten() {
        let (table, _root) = table();
        table.forget(NodeId::ROOT, 100);
        assert!(table.get(NodeId::ROOT).is_some());
    }
}
