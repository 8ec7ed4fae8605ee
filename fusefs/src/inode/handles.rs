//! Open handles.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::{Backing, Node};
use crate::types::{DirEntry, Fh};

/// What a handle stands for.
#[derive(Debug)]
pub(crate) enum Handle {
    File(FileHandleState),
    Dir(DirHandle),
}

impl Handle {
    /// The node that was opened.
    pub(crate) fn node(&self) -> &Arc<Node> {
        match self {
            Handle::File(file) => &file.node,
            Handle::Dir(dir) => &dir.node,
        }
    }
}

/// An open regular file.
#[derive(Debug)]
pub(crate) struct FileHandleState {
    pub(crate) node: Arc<Node>,
    pub(crate) backing: Arc<Backing>,
    /// Whether the backing file lies in the upper.
    pub(crate) writable: bool,
    /// Whether a program runs from it (execve(2) opened it).
    pub(crate) runs: bool,
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct DirHandle {
    pub(crate) node: Arc<Node>,
    /// The listing as it was when reading began: complete and without doubles, whatever changes
    /// meanwhile (readdir(3)). Reading from the start again takes a new one.
    pub(crate) listing: Mutex<Option<Arc<Vec<DirEntry>>>>,
}

/// All open handles of one union.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<Fh, Arc<Handle>>>,
}

impl Handles {
    /// Gives a handle a number.
    pub(crate) fn insert(&self, handle: Handle) -> Fh {
        let fh = Fh(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        self.open.write().insert(fh, Arc::new(handle));
        fh
    }

    /// The handle of a number.
    pub(crate) fn get(&self, fh: Fh) -> Option<Arc<Handle>> {
        self.open.read().get(&fh).cloned()
    }

    /// Takes a handle out.
    pub(crate) fn remove(&self, fh: Fh) -> Option<Arc<Handle>> {
        self.open.write().remove(&fh)
    }
}
