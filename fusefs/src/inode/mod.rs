//! Nodes, open handles and the files behind them.
//!
//! **Lock order**, outermost first. Nobody takes a lock to the left of one that they hold:
//!
//! 1. a node's `copy` lock (a copy-up under way), an ancestor's inside a descendant's;
//! 2. the union's `names` lock: shared by whoever uses names, exclusive for whoever changes them;
//! 3. a node's `state`;
//! 4. the node table, the handle table, the cache of upper directories, listings: leaves, held for moments.

mod blocks;
mod handles;
mod table;

use std::any::Any;
use std::ffi::OsStr;
use std::fs::File;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use smallvec::SmallVec;

pub(crate) use blocks::{Blocks, read_full_at, unnoticed};
pub(crate) use handles::{FileHandleState, Handles};
pub(crate) use table::{FIRST_FREE_ID, NodeTable};

use crate::error::{Error, Result};
use crate::image::{Absent, ImageId};
use crate::layer::Arriving;
use crate::sys::change::write_some_at;
use crate::sys::place::Place;
use crate::types::{FileKind, Ino, NodeId};

/// The real file behind the open handles of one inode: one for all of them.
#[derive(Debug)]
pub struct Backing {
    /// The file: open for reading, and for writing too if it lies in the upper.
    pub file: File,
    /// What more it takes to read it, if it has only a part of the data.
    pub(crate) rest: Option<Rest>,
    /// What the client keeps beside the backing file for as long as it lives, e.g. the
    /// passthrough registration at the FUSE connection. Dropped with the backing file.
    pub attachment: OnceLock<Box<dyn Any + Send + Sync>>,
}

/// Where the data are that a file lacked when it was opened.
pub(crate) enum Rest {
    /// Of a file of the upper: in the image's file.
    Image { image: File, blocks: Arc<Blocks> },
    /// Of the image's file: elsewhere than on this host.
    Arriving(Arc<dyn Arriving>),
}

impl Backing {
    pub(crate) fn new(file: File) -> Arc<Backing> {
        Backing::of(file, None)
    }

    /// A file of the upper, and the image's file that has what it lacks.
    pub(crate) fn partial(file: File, image: File, blocks: Arc<Blocks>) -> Arc<Backing> {
        Backing::of(file, Some(Rest::Image { image, blocks }))
    }

    /// The image's file, of which only some bytes are here.
    pub(crate) fn arriving(arriving: Arc<dyn Arriving>) -> Result<Arc<Backing>> {
        let file = arriving.file().try_clone()?;
        Ok(Backing::of(file, Some(Rest::Arriving(arriving))))
    }

    fn of(file: File, rest: Option<Rest>) -> Arc<Backing> {
        Arc::new(Backing {
            file,
            rest,
            attachment: OnceLock::new(),
        })
    }

    /// Whether nobody but us can tell where its data are.
    pub(crate) fn needs_us(&self) -> bool {
        self.rest.is_some()
    }

    /// The bytes among these that would have to be waited for.
    pub(crate) fn absent(&self, range: Range<u64>) -> Option<Absent> {
        match &self.rest {
            Some(Rest::Arriving(file)) if !file.has(range.clone()) => Some(Absent::Range {
                file: Arc::clone(file),
                range,
            }),
            _ => None,
        }
    }

    /// Whether the image's file was opened before all of it was here.
    pub(crate) fn is_arriving(&self) -> bool {
        matches!(self.rest, Some(Rest::Arriving(_)))
    }

    /// Whether some of the data are still elsewhere.
    pub(crate) fn lacks_data(&self) -> bool {
        match &self.rest {
            None => false,
            Some(Rest::Image { blocks, .. }) => !blocks.is_whole(),
            Some(Rest::Arriving(file)) => !file.has(0..u64::MAX),
        }
    }

    /// Reads at `offset` (bytes); fewer bytes than asked only at the end of the file.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        match &self.rest {
            None => read_full_at(&self.file, buf, offset),
            Some(Rest::Image { image, blocks }) => blocks.read((&self.file, image), offset, buf),
            Some(Rest::Arriving(file)) => {
                file.fetch(offset..offset.saturating_add(buf.len() as u64))?;
                read_full_at(&self.file, buf, offset)
            }
        }
    }

    /// Writes at `offset` (bytes); fewer bytes than asked only if the disk is full.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<usize> {
        match &self.rest {
            None => Ok(write_some_at(&self.file, data, offset)?),
            Some(Rest::Image { image, blocks }) => blocks.write((&self.file, image), offset, data),
            Some(Rest::Arriving(_)) => Err(Error::ReadOnly),
        }
    }

    /// The next byte of data, or of a hole, at or after `offset`.
    pub(crate) fn seek(&self, offset: u64, wants_data: bool) -> Result<u64> {
        match &self.rest {
            // The position of the file is moved, but nobody uses it.
            None if wants_data => Ok(seek(&self.file, SeekFrom::Data(offset))?),
            None => Ok(seek(&self.file, SeekFrom::Hole(offset))?),
            Some(Rest::Image { image, blocks }) => {
                blocks.seek((&self.file, image), offset, wants_data)
            }
            // Its holes are not the file's.
            Some(Rest::Arriving(_)) => match self.file.metadata()?.len() {
                len if offset >= len => Err(Errno::NXIO.into()),
                _ if wants_data => Ok(offset),
                len => Ok(len),
            },
        }
    }
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Rest::Image { blocks, .. } => f.debug_tuple("Image").field(blocks).finish(),
            Rest::Arriving(_) => f.write_str("Arriving"),
        }
    }
}

/// Whose inode number a file has.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum NumberOf {
    #[default]
    Unknown,
    /// That of a file in the image, copied up or not.
    Image,
    /// That of a file that was always in the upper alone.
    Upper,
}

impl NumberOf {
    /// Whether two files with one number are two all the same: no file of the image becomes the upper's own,
    /// or the other way. The host gives a number to another file when its file is deleted, which nobody may
    /// do to a layer.
    fn contradicts(self, other: NumberOf) -> bool {
        matches!(
            (self, other),
            (NumberOf::Image, NumberOf::Upper) | (NumberOf::Upper, NumberOf::Image)
        )
    }
}

/// One inode of the union that the client knows, or that something it knows depends on.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    /// Tells this use of the number from earlier ones; see [`crate::types::Entry::generation`].
    pub(crate) generation: u32,
    pub(crate) ino: Ino,
    pub(crate) kind: FileKind,
    number_of: NumberOf,
    /// Whether another node stands for the inode. The node table's own.
    is_replaced: AtomicBool,
    /// Held while the node is copied up, so that it happens once.
    pub(crate) copy: Mutex<()>,
    pub(crate) state: Mutex<State>,
}

/// What changes in a node's life. `upper` only ever turns from false to true.
///
/// The kernel knows as many nodes as a program has looked at files, and most of them have none of what
/// is [`Rare`].
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The names by which the client knows it: one mostly. Empty for the root and for what was removed.
    pub(crate) names: SmallVec<[Name; 1]>,
    /// For a directory: the image's directory that shows through. For another file: the image's
    /// file, until all its data are copied up.
    pub(crate) image: Option<ImageId>,
    /// Whether the upper has it: of a regular file at least the attributes.
    pub(crate) upper: bool,
    /// Whether its name in the upper is known to be durable. It may come from a rename of ours (a
    /// copy-up), of which a program that calls fdatasync(2) knows nothing.
    pub(crate) name_synced: bool,
    /// Number of open handles.
    pub(crate) open: u32,
    /// Number of open handles of running programs.
    pub(crate) running: u32,
    pub(crate) backing: Weak<Backing>,
    pub(crate) rare: Option<Box<Rare>>,
}

/// What few nodes have. Whoever reads it from a [`State`] that has none of it sees nothing; whoever writes
/// makes the room.
#[derive(Debug, Default)]
pub(crate) struct Rare {
    /// Of a file that has some of its data in the upper, and others in the image: which.
    pub(crate) blocks: Option<Arc<Blocks>>,
    /// The entry in the link index, for a copied-up file with hard links in the image.
    pub(crate) link: Option<Place>,
    /// Keeps an upper file that lost its last known name, so that its inode number is not given
    /// to another file while the client knows this one.
    pub(crate) orphan: Option<Arc<OwnedFd>>,
    /// The node that took over when the file was copied up under open handles.
    pub(crate) successor: Option<Arc<Node>>,
    /// The node that this one took over from, as long as the client or a handle holds it: what is
    /// changed through it changes this one too.
    pub(crate) predecessor: Weak<Node>,
    /// For an upper directory: whether it has the impure mark, once known.
    pub(crate) impure: Option<bool>,
    /// For a directory that merges image and upper: how many directories are in it.
    pub(crate) subdirs: Subdirs,
}

impl Deref for State {
    type Target = Rare;

    fn deref(&self) -> &Rare {
        static NONE: Rare = Rare {
            blocks: None,
            link: None,
            orphan: None,
            successor: None,
            predecessor: Weak::new(),
            impure: None,
            subdirs: Subdirs {
                changes: 0,
                count: None,
            },
        };
        self.rare.as_deref().unwrap_or(&NONE)
    }
}

impl DerefMut for State {
    fn deref_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

impl State {
    /// Sets where the upper has it, if that is not all of it at its name.
    pub(crate) fn set_place(
        &mut self,
        link: Option<Place>,
        orphan: Option<Arc<OwnedFd>>,
        blocks: Option<Arc<Blocks>>,
    ) {
        // No room is made for nothing.
        if self.rare.is_some() || link.is_some() || orphan.is_some() || blocks.is_some() {
            (self.link, self.orphan, self.blocks) = (link, orphan, blocks);
        }
    }

    /// Whether the upper has the data of a file too.
    pub(crate) fn is_complete(&self) -> bool {
        self.upper && self.image.is_none()
    }

    /// Whether the upper's file has the length of a file, and takes what is written to it.
    pub(crate) fn is_written_above(&self) -> bool {
        self.is_complete() || self.blocks.is_some()
    }
}

/// How many directories are in a directory, once counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Subdirs {
    /// Grows with every change of the number, so that a count that was under way is not kept.
    changes: u64,
    count: Option<u32>,
}

/// One name of a node.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    pub(crate) parent: Arc<Node>,
    pub(crate) name: Box<OsStr>,
}

impl Name {
    pub(crate) fn new(parent: &Arc<Node>, name: &OsStr) -> Name {
        Name {
            parent: Arc::clone(parent),
            name: name.into(),
        }
    }

    /// Whether this is the entry `name` of `parent`.
    pub(crate) fn is(&self, parent: &Node, name: &OsStr) -> bool {
        self.parent.id == parent.id && *self.name == *name
    }
}

impl Node {
    /// The first node of a number, as the root is.
    pub(crate) fn new(id: NodeId, ino: Ino, kind: FileKind, state: State) -> Arc<Node> {
        Node::of_generation(0, id, (ino, NumberOf::Unknown), kind, state)
    }

    /// A node of a number that others may have had before.
    pub(crate) fn of_generation(
        generation: u32,
        id: NodeId,
        (ino, number_of): (Ino, NumberOf),
        kind: FileKind,
        state: State,
    ) -> Arc<Node> {
        Arc::new(Node {
            id,
            generation,
            ino,
            kind,
            number_of,
            is_replaced: AtomicBool::new(false),
            copy: Mutex::new(()),
            state: Mutex::new(state),
        })
    }

    /// The node that stands for the file today: itself, or the one that took over.
    pub(crate) fn current(self: &Arc<Node>) -> Arc<Node> {
        let mut node = Arc::clone(self);
        loop {
            let next = node.state.lock().successor.clone();
            match next {
                Some(next) => node = next,
                None => return node,
            }
        }
    }

    /// Whether another node took over.
    pub(crate) fn is_superseded(&self) -> bool {
        self.state.lock().successor.is_some()
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }

    /// Whether somebody still knows the file by another node too.
    pub(crate) fn has_predecessor(&self) -> bool {
        self.state.lock().predecessor.strong_count() > 0
    }

    /// Whether the upper has it: of a regular file at least the attributes.
    pub(crate) fn in_upper(&self) -> bool {
        self.state.lock().upper
    }

    /// Whether the upper has the data of a file too.
    pub(crate) fn is_complete(&self) -> bool {
        self.state.lock().is_complete()
    }

    /// Whether the upper's file has its length, and takes what is written to it.
    pub(crate) fn is_written_above(&self) -> bool {
        self.state.lock().is_written_above()
    }

    /// Which of its data are in the upper, if that are some of them.
    pub(crate) fn blocks(&self) -> Option<Arc<Blocks>> {
        self.state.lock().blocks.clone()
    }

    /// The number of directories in it, which `count` finds out if nobody has yet.
    pub(crate) fn subdirs(&self, count: impl FnOnce() -> Result<u32>) -> Result<u32> {
        let before = self.state.lock().subdirs;
        if let Some(known) = before.count {
            return Ok(known);
        }
        let count = count()?;
        let mut state = self.state.lock();
        if state.subdirs.changes == before.changes {
            state.subdirs.count = Some(count);
        }
        Ok(count)
    }

    /// Notes that a directory in it came or went. Called after the disk has changed.
    pub(crate) fn subdirs_changed(&self) {
        let mut state = self.state.lock();
        state.subdirs.changes += 1;
        state.subdirs.count = None;
    }

    /// The image's part of it.
    pub(crate) fn image(&self) -> Option<ImageId> {
        self.state.lock().image
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel makes the daemon keep of each file that somebody has looked at: this, its name, and
    /// an entry of the node table.
    #[test]
    fn a_node_is_small() {
        assert!(size_of::<Node>() <= 112, "{} bytes", size_of::<Node>());
    }

    #[test]
    fn a_state_makes_room_for_what_is_rare_when_there_is_something() {
        let mut state = State::default();
        state.set_place(None, None, None);
        assert!(state.rare.is_none() && state.blocks.is_none());
        state.set_place(None, None, Some(Blocks::unloaded()));
        assert!(state.blocks.is_some());
        state.set_place(None, None, None);
        assert!(state.blocks.is_none());
    }
}
