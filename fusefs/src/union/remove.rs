//! Removing names.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Stat, statat};
use rustix::io::Errno;

use super::resolve::{Found, union_nlink};
use super::{Union, check_name};
use crate::error::{Error, Result};
use crate::inode::Node;
use crate::marks::{self, NlinkDelta};
use crate::sys::change::unlinkat;
use crate::sys::place::Place;
use crate::types::{FileKind, NodeId};

impl Union {
    /// Removes a name of anything but a directory.
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        let parent = self.removable(parent, name)?;
        let _names = self.names.write();
        let found = self.resolve(&parent, name)?.ok_or(Error::NotFound)?;
        if found.attr.kind == FileKind::Directory {
            return Err(Error::IsDirectory);
        }
        self.remove_found(&parent, name, &found, |dir| {
            Ok(unlinkat(dir, name, AtFlags::empty())?)
        })
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        let held = self.hold(&self.dir_node(parent)?, name)?;
        let node = held.current()?;
        if !node.is_dir() {
            return Err(Error::NotDirectory);
        }
        let parent = self.removable(parent, name)?;
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
        let old = stat_if_any(&dir, name)?;
        let leaving = self.prepare_leave(parent, &dir, name, found, old.is_some())?;
        if self.image_entry(parent, name)?.is_some() {
            self.writable()?.whiteout(&dir, name, old.as_ref())?;
        } else {
            remove(&dir)?;
        }
        if found.attr.kind == FileKind::Directory {
            parent.subdirs_changed();
        }
        self.leave(leaving);
        Ok(())
    }

    /// The directory of a name that is to be removed, in the upper.
    fn removable(&self, parent: NodeId, name: &OsStr) -> Result<Arc<Node>> {
        check_name(name)?;
        let parent = self.dir_node(parent)?;
        self.writable()?;
        {
            let _names = self.names.read();
            self.resolve(&parent, name)?.ok_or(Error::NotFound)?;
        }
        self.copy_up_dir(&parent)?;
        Ok(parent)
    }

    /// What must be known and opened before a name of a file goes, so that whoever still uses the
    /// file can.
    pub(super) fn prepare_leave(
        &self,
        parent: &Arc<Node>,
        dir: &Arc<OwnedFd>,
        name: &OsStr,
        found: &Found,
        in_upper_here: bool,
    ) -> Result<Leaving> {
        let mut leaving = Leaving {
            node: self.nodes.by_ino(found.attr.ino),
            parent: Arc::clone(parent),
            name: name.to_owned(),
            orphan: None,
            link: found.link.clone(),
            in_upper_here,
        };
        if leaving.link.is_some() {
            return Ok(leaving);
        }
        if let Some(node) = &leaving.node
            && in_upper_here
        {
            let last = {
                let state = node.state.lock();
                state.orphan.is_none() && state.names.iter().all(|known| known.is(parent, name))
            };
            if last {
                leaving.orphan = Some(Arc::new(Place::at(dir, name).open_path()?));
            }
        }
        Ok(leaving)
    }

    /// Takes the name from the node, after it has gone from the disk. Nothing can undo that, so
    /// nothing here fails.
    pub(super) fn leave(&self, leaving: Leaving) {
        let mut orphan = leaving.orphan;
        if let Some(link) = &leaving.link {
            match self.leave_index(link, leaving.in_upper_here) {
                Ok(None) => {}
                Ok(last) => orphan = last,
                // The count stays too high, which keeps the file in the index for ever. Too low
                // would lose it while it has names.
                Err(error) => tracing::warn!(?link, %error, "a removed link is still counted"),
            }
        }
        let Some(node) = leaving.node else {
            return;
        };
        let mut state = node.state.lock();
        state
            .names
            .retain(|known| !known.is(&leaving.parent, &leaving.name));
        if orphan.is_some() {
            state.link = None;
            state.orphan = orphan;
        }
        drop(state);
        if node.is_dir() {
            self.dirs.lock().pop(&node.id);
        }
    }

    /// Counts a removed name of an indexed file; returns the file itself if that was its last.
    fn leave_index(&self, link: &Place, in_upper_here: bool) -> Result<Option<Arc<OwnedFd>>> {
        if !in_upper_here {
            // A name that the image alone had: no link of the file system went with it.
            let delta = marks::nlink_delta(link)?;
            marks::set_nlink_delta(link, NlinkDelta(delta.0 - 1))?;
        }
        let stat = link.stat()?;
        // One link is the index's own.
        if union_nlink(link, &stat)? > 0 || stat.st_nlink > 1 {
            return Ok(None);
        }
        let file = Arc::new(link.open_path()?);
        self.writable()?.links().remove(link)?;
        Ok(Some(file))
    }
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
    /// Whether the upper has the file under this name, and not by the link index alone.
    in_upper_here: bool,
}

/// What the upper has at a name, whiteouts included.
pub(super) fn stat_if_any(dir: &OwnedFd, name: &OsStr) -> Result<Option<Stat>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
