//! Removing names.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::RwLockWriteGuard;
use rustix::fs::{AtFlags, Stat, statat};
use rustix::io::Errno;

use super::copy_up::Depth;
use super::recorded::{place, was_done};
use super::resolve::Found;
use super::{Union, check_name, keeping_times, make_impure};
use crate::error::{Error, Result};
use crate::inode::Node;
use crate::record::{Entry, Intent};
use crate::sys::change::unlinkat;
use crate::sys::place::Place;
use crate::types::{FileKind, NodeId};

impl Union {
    /// Removes a name of anything but a directory.
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        if was_done() {
            return Ok(());
        }
        let parent = self.dir_to_remove_from(parent, name)?;
        let (_names, found) = self.found_to_remove(&parent, name)?;
        if found.attr.kind == FileKind::Directory {
            return Err(Error::IsDirectory);
        }
        self.remove_found(&parent, name, &found, |dir| {
            Ok(unlinkat(dir, name, AtFlags::empty())?)
        })
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        if was_done() {
            return Ok(());
        }
        let held = self.hold(&self.dir_node(parent)?, name)?;
        let node = held.current()?;
        if !node.is_dir() {
            return Err(Error::NotDirectory);
        }
        let parent = self.dir_to_remove_from(parent, name)?;
        let _names = self.names.write();
        if !self.merged_entries(&node)?.is_empty() {
            return Err(Error::NotEmpty);
        }
        let found = self.resolve(&parent, name)?.ok_or(Error::NotFound)?;
        self.remove_found(&parent, name, &found, |dir| {
            // It may hold whiteouts; the union's rename is as atomic as rmdir.
            match unlinkat(dir, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(self.writable()?.take_out(dir, name)?),
                other => Ok(other?),
            }
        })
    }

    /// Removes a name that may go: a whiteout takes its place where the image has it too, else
    /// `remove` takes it out of the upper's directory. The caller holds the `names` lock.
    fn remove_found(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        found: &Found,
        remove: impl FnOnce(&Arc<OwnedFd>) -> Result<()>,
    ) -> Result<()> {
        let dir = self.upper_dir(parent)?;
        let begun = self.begin(|| Intent::Remove(place(parent, name), found.attr.ino));
        let leaving = self.prepare_leave(parent, &dir, name, found)?;
        if self.image_entry(parent, name)?.is_some() {
            let old = found.upper.then_some(found.attr.kind);
            self.writable()?.whiteout(&dir, name, old)?;
        } else {
            remove(&dir)?;
        }
        if found.attr.kind == FileKind::Directory {
            parent.subdirs_changed();
        }
        self.leave(leaving);
        begun.done();
        Ok(())
    }

    /// The directory of a name that is to be removed, in the upper.
    fn dir_to_remove_from(&self, parent: NodeId, name: &OsStr) -> Result<Arc<Node>> {
        check_name(name)?;
        let parent = self.dir_node(parent)?;
        self.writable()?;
        if !parent.in_upper() {
            // Not for a name that isn't there.
            let names = self.names.read();
            self.resolve(&parent, name)?.ok_or(Error::NotFound)?;
            drop(names);
            self.copy_up_dir(&parent)?;
        }
        Ok(parent)
    }

    /// What is to be removed, and the `names` lock. A file with hard links in the image is in the
    /// upper: see [`Self::copy_up_if_linked`].
    fn found_to_remove(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
    ) -> Result<(RwLockWriteGuard<'_, ()>, Found)> {
        loop {
            let names = self.names.write();
            let found = self.resolve(parent, name)?.ok_or(Error::NotFound)?;
            if !is_linked_in_image(&found) {
                return Ok((names, found));
            }
            drop(names);
            self.copy_up_linked(parent, name)?;
        }
    }

    /// A name of an image file with several goes: the others must count one less, and only a copy
    /// can say so. Called without the `names` lock.
    pub(super) fn copy_up_if_linked(&self, parent: &Arc<Node>, name: &OsStr) -> Result<()> {
        let linked = {
            let _names = self.names.read();
            self.resolve(parent, name)?
                .is_some_and(|found| is_linked_in_image(&found))
        };
        if linked {
            self.copy_up_linked(parent, name)?;
        }
        Ok(())
    }

    fn copy_up_linked(&self, parent: &Arc<Node>, name: &OsStr) -> Result<()> {
        self.copy_up(&self.hold(parent, name)?.current()?, Depth::Attributes)?;
        Ok(())
    }

    /// Gives a file that is known at this name by the link index alone a link of its own. The
    /// caller holds the `names` lock.
    pub(super) fn materialise(
        &self,
        link: &Place,
        parent: &Node,
        dir: &Arc<OwnedFd>,
        name: &OsStr,
    ) -> Result<()> {
        if stat_if_any(dir, name)?.is_none() {
            make_impure(parent, dir)?;
            self.writable()?.links().count_with_image(link)?;
            keeping_times(dir, || Ok(link.link_to(dir, name)?))?;
        }
        Ok(())
    }

    /// What must be known and opened before a name of a file goes, so that whoever still uses the
    /// file can; and what makes its link count change in the same step.
    pub(super) fn prepare_leave(
        &self,
        parent: &Arc<Node>,
        dir: &Arc<OwnedFd>,
        name: &OsStr,
        found: &Found,
    ) -> Result<Leaving> {
        let mut leaving = Leaving {
            node: self.nodes.by_ino(found.attr.ino),
            parent: Arc::clone(parent),
            name: name.to_owned(),
            orphan: None,
            link: found.link.clone(),
        };
        if let Some(node) = &leaving.node {
            self.write_image(node, node.image());
        }
        if let Some(link) = &leaving.link {
            self.materialise(link, parent, dir, name)?;
            self.writable()?.links().count_with_upper(link)?;
            return Ok(leaving);
        }
        if let Some(node) = &leaving.node
            && found.upper
        {
            let last = {
                let state = node.state.lock();
                state.orphan.is_none() && state.names.iter().all(|known| known.is(parent, name))
            };
            if last {
                let file = Arc::new(Place::at(dir, name).open_path()?);
                self.pin_if_used(node, &file);
                leaving.orphan = Some(file);
            }
        }
        Ok(leaving)
    }

    /// Takes the name from the node, after it has gone from the disk. Nothing can undo that, so
    /// nothing here fails.
    pub(super) fn leave(&self, leaving: Leaving) {
        let mut orphan = leaving.orphan;
        if let Some(link) = &leaving.link {
            match self.leave_index(link, leaving.node.as_deref()) {
                Ok(None) => {}
                Ok(last) => orphan = last,
                Err(error) => {
                    tracing::warn!(?link, %error, "a removed file stays until the next start");
                }
            }
        }
        let Some(node) = leaving.node else {
            return;
        };
        let mut state = node.state.lock();
        state
            .names
            .retain(|known| !known.is(&leaving.parent, &leaving.name));
        self.note(|| Entry::Unname(node.id, place(&leaving.parent, &leaving.name)));
        if orphan.is_some() {
            state.link = None;
            state.orphan = orphan;
        }
        drop(state);
        if node.is_dir() {
            self.dirs.lock().pop(&node.id);
        }
    }

    /// Takes a file out of the index if its last name has gone, and returns it.
    fn leave_index(&self, link: &Place, node: Option<&Node>) -> Result<Option<Arc<OwnedFd>>> {
        let file = Arc::new(link.open_path()?);
        // Kept for nothing if another name is left, until the node is forgotten.
        if let Some(node) = node {
            self.pin_if_used(node, &file);
        }
        let gone = self.writable()?.links().remove_if_unused(link)?;
        Ok(gone.then_some(file))
    }
}

/// Whether a name is one of several of a file that only the image has.
fn is_linked_in_image(found: &Found) -> bool {
    !found.upper && found.attr.kind != FileKind::Directory && found.attr.nlink > 1
}

/// A name that is about to go.
#[derive(Debug)]
pub(super) struct Leaving {
    node: Option<Arc<Node>>,
    parent: Arc<Node>,
    name: std::ffi::OsString,
    /// Keeps the file for the node, if this was its last known name.
    orphan: Option<Arc<OwnedFd>>,
    link: Option<Place>,
}

/// What the upper has at a name, whiteouts included.
pub(super) fn stat_if_any(dir: &OwnedFd, name: &OsStr) -> Result<Option<Stat>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
