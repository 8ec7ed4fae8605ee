//! The verbs that one caller has called, one after the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use lamina_proto::containerd::services::snapshots::v1::Kind;

use super::active::Active;
use super::layer::Layer;

/// What must be found in a snapshot.
pub(crate) enum Contents {
    /// A layer that is being unpacked: nobody asks for it before it is committed.
    Unasked,
    Active(Active),
    /// A layer with all below it, or a view of one.
    Layer(Arc<Layer>),
}

pub(crate) struct Snapshot {
    pub(crate) key: String,
    pub(crate) kind: Kind,
    pub(crate) parent: String,
    pub(crate) contents: Contents,
    /// Where the mount of an active one was while it was written.
    pub(crate) root: std::path::PathBuf,
}

/// One call that was answered.
struct Event {
    begun: usize,
    done: usize,
    /// The numbers of snapshots.
    removed: Option<usize>,
    added: Option<usize>,
}

/// All snapshots that there have been.
#[derive(Default)]
pub(crate) struct Story {
    pub(crate) snapshots: Vec<Snapshot>,
    events: Vec<Event>,
}

/// The numbers of the snapshots that there are, by their keys.
pub(crate) type Alive = BTreeMap<String, usize>;

impl Story {
    pub(crate) fn added(&mut self, begun: usize, done: usize, snapshot: Snapshot) -> usize {
        self.happened(begun, done, None, Some(snapshot))
    }

    pub(crate) fn removed(&mut self, begun: usize, done: usize, removed: usize) {
        self.happened(begun, done, Some(removed), None);
    }

    /// One is there in place of another.
    pub(crate) fn replaced(&mut self, begun: usize, done: usize, removed: usize, by: Snapshot) {
        self.happened(begun, done, Some(removed), Some(by));
    }

    fn happened(
        &mut self,
        begun: usize,
        done: usize,
        removed: Option<usize>,
        added: Option<Snapshot>,
    ) -> usize {
        let number = self.snapshots.len();
        self.events.push(Event {
            begun,
            done,
            removed,
            added: added.is_some().then_some(number),
        });
        self.snapshots.extend(added);
        number
    }

    /// What is there now.
    pub(crate) fn alive(&self) -> Alive {
        let mut alive = Alive::new();
        for event in &self.events {
            self.apply(event, &mut alive);
        }
        alive
    }

    /// What may be there after a cut: all that was answered, and perhaps the one call that was under
    /// way.
    pub(crate) fn alive_after(&self, cut: usize) -> Vec<Alive> {
        let mut alive = Alive::new();
        for event in &self.events {
            if event.done > cut {
                let mut possible = vec![alive.clone()];
                if event.begun < cut {
                    self.apply(event, &mut alive);
                    possible.push(alive);
                }
                return possible;
            }
            self.apply(event, &mut alive);
        }
        vec![alive]
    }

    /// How many calls were answered until then.
    pub(crate) fn calls_until(&self, cut: usize) -> u64 {
        self.events.iter().filter(|event| event.done <= cut).count() as u64
    }

    /// Where the log was whenever a call was answered, or begun.
    pub(crate) fn moments(&self) -> impl Iterator<Item = usize> {
        self.events
            .iter()
            .flat_map(|event| [event.begun, event.done])
    }

    fn apply(&self, event: &Event, alive: &mut Alive) {
        if let Some(removed) = event.removed {
            alive.remove(&self.snapshots[removed].key);
        }
        if let Some(added) = event.added {
            alive.insert(self.snapshots[added].key.clone(), added);
        }
    }
}
