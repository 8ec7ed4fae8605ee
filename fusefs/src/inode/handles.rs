//! Open handles.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::{Backing, Node};
use crate::types::Fh;

/// An open regular file. (Nothing is kept for an open directory, see `union::readdir`.)
#[derive(Debug)]
pub(crate) struct FileHandleState {
    /// Goes before the node, so that nobody takes the node for unused while its file is still open.
    pub(crate) backing: Arc<Backing>,
    pub(crate) node: Arc<Node>,
    /// Whether the backing file lies in the upper.
    pub(crate) writable: bool,
    /// Whether a program runs from it (execve(2) opened it).
    pub(crate) runs: bool,
    /// Whether each write comes to us, whatever the kernel does with other files.
    pub(crate) writes_need_us: bool,
}

/// All open handles of one union.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<Fh, Arc<FileHandleState>>>,
}

impl Handles {
    /// Gives a handle a number.
    pub(crate) fn insert(&self, handle: FileHandleState) -> Fh {
        let fh = Fh(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        self.open.write().insert(fh, Arc::new(handle));
        fh
    }

    /// Puts back a handle that the client has from an earlier process.
    pub(crate) fn put_back(&self, fh: Fh, handle: FileHandleState) {
        self.open.write().insert(fh, Arc::new(handle));
    }

    /// Goes on behind the numbers that an earlier process has given out.
    pub(crate) fn go_on_behind(&self, last: Fh) {
        self.next.fetch_max(last.0, Ordering::Relaxed);
    }

    /// The handle of a number.
    pub(crate) fn get(&self, fh: Fh) -> Option<Arc<FileHandleState>> {
        self.open.read().get(&fh).cloned()
    }

    /// Takes a handle out.
    pub(crate) fn remove(&self, fh: Fh) -> Option<Arc<FileHandleState>> {
        self.open.write().remove(&fh)
    }
}
