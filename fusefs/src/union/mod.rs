//! The union: an image below, an upper above, one tree to look at.
//!
//! What a name means is decided in `resolve`; what a change does to the upper, in the module of
//! the operation: `create`, `device`, `remove`, `rename`, `copy_up`, `partial`, `attr`, `xattr`. `open` and
//! `readdir` keep the handles. All of it answers in the words of [`crate::types`], knows nothing of FUSE,
//! and can be called from many threads at once.
//!
//! Three rules hold everywhere:
//!
//! - the image never changes; whatever is changed is copied up first (`copy_up`);
//! - what was copied up stays so: a node's `upper` only turns from false to true;
//! - every step on the upper is atomic, and a crash between two steps shows the state before or
//!   after (`docs/architecture.md`, "What a crash leaves", which names the exceptions).

mod attr;
mod complete;
mod copy_up;
mod create;
mod device;
mod open;
mod partial;
mod readdir;
mod recorded;
mod remove;
mod rename;
mod resolve;
mod revive;
mod seal;
mod xattr;

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use rustix::fs::{Mode, OFlags, openat};

pub use open::{Opened, Whence};
pub use partial::PARTIAL_FROM;

use self::readdir::Listings;
use crate::error::{Error, Result};
use crate::image::{Image, ImageId, InoMap};
use crate::inode::{Handles, Name, Node, NodeTable, State};
use crate::marks;
use crate::record::Record;
use crate::sys::attr_of;
use crate::sys::place::Place;
use crate::types::{FileKind, Ino, NodeId, SetTime};
use crate::upper::Upper;

/// The longest name of a directory entry, in bytes.
const NAME_MAX: usize = 255;

/// How many upper directories are kept open.
const OPEN_DIRS: NonZeroUsize = NonZeroUsize::new(128).expect("not zero");

/// An image and an upper, seen as one tree.
#[derive(Debug)]
pub struct Union {
    image: Arc<Image>,
    upper: Option<Upper>,
    inos: InoMap,
    nodes: NodeTable,
    handles: Handles,
    listings: Listings,
    /// Shared by whoever uses names, exclusive for whoever changes them.
    names: RwLock<()>,
    /// Whether the upper became a layer, which nobody may change.
    sealed: AtomicBool,
    /// Whether a change of attributes copies the attributes alone.
    metacopy: bool,
    /// The length from which files are copied up in part.
    partial_from: Option<u64>,
    /// Where the next process finds what this one knew.
    record: Option<Arc<Record>>,
    /// Upper directories, opened with `O_PATH`.
    dirs: Mutex<LruCache<NodeId, Arc<OwnedFd>>>,
}

impl Union {
    /// The union of an image with an upper; without an upper it is read-only.
    pub fn new(image: Arc<Image>, upper: Option<Upper>) -> Result<Union> {
        let mut state = State {
            image: image.has_root().then_some(ImageId::ROOT),
            upper: upper.is_some(),
            ..State::default()
        };
        let mut inos = image.inos().clone();
        let mut root_ino = image.attr(ImageId::ROOT)?.ino;
        if let Some(upper) = &upper {
            inos = inos.with(upper.device());
            upper.links().resolve(|handle| image.by_handle(handle))?;
            let root = Place::Fd(Arc::clone(upper.root()));
            if marks::is_opaque(&root)? {
                state.image = None;
            }
            if state.image.is_none() {
                root_ino = inos.map(upper.device(), root.stat()?.st_ino);
            }
        }
        let root = Node::new(NodeId::ROOT, root_ino, FileKind::Directory, state);
        Ok(Union {
            image,
            upper,
            inos,
            nodes: NodeTable::new(root),
            handles: Handles::default(),
            listings: Listings::default(),
            names: RwLock::new(()),
            sealed: AtomicBool::new(false),
            metacopy: true,
            partial_from: Some(PARTIAL_FROM),
            record: None,
            dirs: Mutex::new(LruCache::new(OPEN_DIRS)),
        })
    }

    /// Whether the image is known from an index.
    pub fn is_indexed(&self) -> bool {
        self.image.is_indexed()
    }

    /// Gives back `count` references (one for each [`crate::types::Entry`] handed out).
    pub fn forget(&self, node: NodeId, count: u64) {
        self.nodes.forget(node, count);
    }

    /// The node of a number.
    fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.nodes.get(id).ok_or(Error::UnknownNode(id))
    }

    /// The node that stands for a number's file today.
    fn current(&self, id: NodeId) -> Result<Arc<Node>> {
        Ok(self.node(id)?.current())
    }

    /// A directory's node.
    fn dir_node(&self, id: NodeId) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        if node.is_dir() {
            Ok(node)
        } else {
            Err(Error::NotDirectory)
        }
    }

    /// The upper, for whoever wants to change something.
    fn writable(&self) -> Result<&Upper> {
        if self.sealed.load(Ordering::Acquire) {
            return Err(Error::ReadOnly);
        }
        self.upper()
    }

    /// The upper, to look at.
    fn upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(Error::ReadOnly)
    }

    /// Where a node's file is in the upper; `None` if it is in the image alone.
    fn place(&self, node: &Node) -> Result<Option<Place>> {
        let state = node.state.lock();
        if let Some(next) = state.successor.clone() {
            // It was handed over since the caller looked; the file is the same.
            drop(state);
            return self.place(&next);
        }
        if let Some(orphan) = &state.orphan {
            return Ok(Some(Place::Fd(Arc::clone(orphan))));
        }
        if !state.upper {
            return Ok(None);
        }
        if let Some(link) = &state.link {
            return Ok(Some(link.clone()));
        }
        if node.id == NodeId::ROOT {
            let upper = self.upper()?;
            return Ok(Some(Place::Fd(Arc::clone(upper.root()))));
        }
        let Some(name) = state.names.first().cloned() else {
            return Err(Error::NotFound);
        };
        drop(state);
        let dir = self.upper_dir(&name.parent)?;
        Ok(Some(Place::at(&dir, &name.name)))
    }

    /// Where a node's file is in the upper, for a node that is known to be there.
    fn upper_place(&self, node: &Node) -> Result<Place> {
        self.place(node)?.ok_or(Error::NotFound)
    }

    /// An `O_PATH` descriptor of a directory's upper part, which must exist.
    ///
    /// A loop and no recursion: how deep a tree is, is up to the container, and a stack that
    /// overflows takes the whole process down.
    fn upper_dir(&self, node: &Node) -> Result<Arc<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Upwards to the first directory that is open, then down again.
        let mut below: Vec<(NodeId, Name)> = Vec::new();
        let mut dir = loop {
            let parent = below.last().map(|(_, name)| Arc::clone(&name.parent));
            let at = parent.as_deref().unwrap_or(node);
            if let Some(dir) = self.open_upper_dir(at)? {
                break dir;
            }
            let name = at.state.lock().names.first().cloned();
            below.push((at.id, name.ok_or(Error::NotFound)?));
        };
        while let Some((id, name)) = below.pop() {
            dir = Arc::new(openat(&dir, &*name.name, flags, Mode::empty())?);
            self.dirs.lock().put(id, Arc::clone(&dir));
        }
        Ok(dir)
    }

    /// A directory's upper part, if a descriptor of it is at hand; an error if it has none.
    fn open_upper_dir(&self, node: &Node) -> Result<Option<Arc<OwnedFd>>> {
        if let Some(dir) = self.dirs.lock().get(&node.id) {
            return Ok(Some(Arc::clone(dir)));
        }
        let state = node.state.lock();
        if let Some(orphan) = &state.orphan {
            return Ok(Some(Arc::clone(orphan)));
        }
        if !state.upper {
            return Err(Error::NotFound);
        }
        if node.id == NodeId::ROOT {
            return Ok(Some(Arc::clone(self.upper()?.root())));
        }
        Ok(None)
    }

    /// The upper part of a directory, if it has one.
    fn upper_dir_if_any(&self, node: &Node) -> Result<Option<Arc<OwnedFd>>> {
        let known = {
            let state = node.state.lock();
            state.upper || state.orphan.is_some()
        };
        known.then(|| self.upper_dir(node)).transpose()
    }

    /// What the image has under a name of a directory.
    fn image_entry(&self, dir: &Node, name: &OsStr) -> Result<Option<ImageId>> {
        match dir.image() {
            Some(id) => self.image.lookup(id, name),
            None => Ok(None),
        }
    }
}

/// Whether a directory of the upper may hold files with an origin, a redirect, or devices 0:0.
fn is_impure(node: &Node, dir: &Arc<OwnedFd>) -> Result<bool> {
    if let Some(impure) = node.state.lock().impure {
        return Ok(impure);
    }
    let impure = marks::is_impure(&Place::Fd(Arc::clone(dir)))?;
    node.state.lock().impure.get_or_insert(impure);
    Ok(impure)
}

/// Notes that a directory of the upper holds files with an origin, a redirect, or devices 0:0.
fn make_impure(node: &Node, dir: &Arc<OwnedFd>) -> Result<()> {
    if !is_impure(node, dir)? {
        marks::set_impure(&Place::Fd(Arc::clone(dir)))?;
        node.state.lock().impure = Some(true);
    }
    Ok(())
}

/// Changes a directory of the upper in a way that nobody may see, and gives it its times back.
fn keeping_times(dir: &Arc<OwnedFd>, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let place = Place::Fd(Arc::clone(dir));
    let before = attr_of(&place.stat()?, Ino(0));
    change()?;
    let (atime, mtime) = (SetTime::At(before.atime), SetTime::At(before.mtime));
    // Nothing undoes the change, and the times are not worth an error.
    if let Err(error) = place.utimens(Some(atime), Some(mtime)) {
        tracing::warn!(%error, "the times of a directory changed with nothing in it");
    }
    Ok(())
}

/// Refuses a name that no file system of ours could hold.
fn check_name(name: &OsStr) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
