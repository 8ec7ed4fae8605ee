//! What of a union is written down, for the process that goes on where this one ended.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Union;
use crate::error::{Error, Result};
use crate::image::ImageId;
use crate::inode::Node;
use crate::record::{Begun, Done, Entry, Intent, Place, Record, Request};
use crate::types::{Entry as Found, FileKind, NodeId};

impl Union {
    /// The same union, which writes down in `record` what the next process has to know. Nobody has asked
    /// it for anything yet.
    #[must_use]
    pub fn recorded(mut self, record: Arc<Record>) -> Union {
        self.nodes.set_record(Arc::clone(&record));
        self.record = Some(record);
        self
    }

    /// The record, if there is one.
    pub fn record(&self) -> Option<&Arc<Record>> {
        self.record.as_ref()
    }

    /// This thread answers a request of the client, known by this number, until what is returned is
    /// dropped: after the answer was sent. If an earlier process had begun to answer it, what the client
    /// was about to get then is given back, and what was done is not done again.
    #[must_use]
    pub(crate) fn request(&self, unique: u64) -> Option<Request> {
        let record = self.record.as_ref()?;
        Some(record.request(unique, |before| {
            for fh in &before.handles {
                self.release(*fh);
            }
            for (id, count) in &before.references {
                self.forget(*id, u64::try_from(*count).unwrap_or(0));
            }
        }))
    }

    /// All nodes that the client knows, each with its references.
    pub(crate) fn references(&self) -> Vec<(NodeId, u64)> {
        self.nodes.references()
    }

    /// The client does not know a node any more, though it has not said so. Nothing happens if it got
    /// or gave back references since there were so many.
    pub(crate) fn forget_all(&self, node: NodeId, count: u64) -> bool {
        self.nodes.forget_all(node, count)
    }

    /// Notes the client's number for the file behind the handles of a node (0: it has none).
    pub(crate) fn attached(&self, node: NodeId, number: u32) {
        self.note(|| Entry::Attach(node, number));
    }

    /// Writes down a change.
    pub(super) fn note(&self, entry: impl FnOnce() -> Entry) {
        if let Some(record) = &self.record {
            record.write(&entry());
        }
    }

    /// Notes that a change of names comes now.
    pub(super) fn begin(&self, intent: impl FnOnce() -> Intent) -> Begun<'_> {
        match &self.record {
            Some(record) => record.begin(intent()),
            None => Begun::default(),
        }
    }

    /// Notes where the image has a file, which may soon be the only way to find it.
    pub(super) fn write_image(&self, node: &Node, image: Option<ImageId>) {
        if let Some(image) = image {
            self.note(|| Entry::Image(node.id, self.image.path(image).into_os_string()));
        }
    }

    /// Keeps a file that is about to lose its last name, if whoever has it can't do without: it is open,
    /// or may be in use without being open. (Of a file that is not open, the kernel forgets the node as
    /// soon as it has no name.)
    pub(super) fn pin_if_used(&self, node: &Node, file: &Arc<OwnedFd>) {
        let is_used = node.kind != FileKind::Regular || node.state.lock().open > 0;
        if is_used {
            self.pin(node, file);
        }
    }

    /// Keeps a file that has no name.
    pub(super) fn pin(&self, node: &Node, file: &Arc<OwnedFd>) {
        if let Some(record) = &self.record {
            record.pin(node.id, file);
        }
    }

    /// What a request had made that comes again.
    pub(super) fn made_before(&self, parent: NodeId, name: &OsStr) -> Result<Found> {
        self.lookup(parent, name)?.ok_or(Error::NotFound)
    }
}

/// Whether the change that the request of this thread asks for was made before.
pub(super) fn was_done() -> bool {
    Record::done() == Done::Yes
}

/// Whether the request of this thread had begun before, and it is not known how far it came.
pub(super) fn was_begun() -> bool {
    Record::done() != Done::No
}

/// A name of a directory, as it is written down.
pub(super) fn place(parent: &Node, name: &OsStr) -> Place {
    Place::new(parent.id, name)
}
