//! Creating files, directories, links.
//!
//! At a free name the one system call on the upper does everything: owner, group, ACL and umask are
//! the kernel's work, because it runs in the caller's name ([`crate::sys::caller`]). At a name that
//! a whiteout holds, the new file is made on a stage and replaces the whiteout in one step.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::copy_up::Depth;
use super::device::stands_for_device;
use super::recorded::{place as place_in, was_done};
use super::remove::stat_if_any;
use super::resolve::Found;
use super::{Opened, Union, check_name, make_impure};
use crate::error::{Error, Result};
use crate::inode::{Backing, Node, NumberOf};
use crate::marks::{self, WHITEOUT_DEVICE};
use crate::record::Intent;
use crate::sys::attr_of;
use crate::sys::caller::as_caller;
use crate::sys::change;
use crate::sys::descriptor::require_room;
use crate::sys::place::Place;
use crate::types::{Caller, Entry, NodeId};

impl Union {
    /// Creates and opens a regular file; [`Error::Exists`] if the name is taken.
    pub fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        flags: OFlags,
    ) -> Result<(Entry, Opened)> {
        if was_done() {
            let entry = self.made_before(parent, name)?;
            let flags = flags.difference(OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC);
            let opened = self.open(caller, entry.node, flags);
            return match opened {
                Ok(opened) => Ok((entry, opened)),
                Err(error) => {
                    self.forget(entry.node, 1);
                    Err(error)
                }
            };
        }
        require_room()?;
        let (entry, file) = self.make(caller, parent, name, false, |dir, name| {
            change::create(dir, name, permissions(mode)).map(File::from)
        })?;
        let node = self.node(entry.node)?;
        let mode = u32::from(entry.attr.perm);
        let opened = self.opened(&node, Backing::new(file), true, flags, mode)?;
        Ok((entry, opened.ok_or(Error::NotFound)?))
    }

    /// Makes a node of any kind but a directory or symlink; `mode` carries the type bits.
    pub fn mknod(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        rdev: u64,
    ) -> Result<Entry> {
        let kind = FileType::from_raw_mode(mode);
        let kind = if kind == FileType::Unknown {
            FileType::RegularFile
        } else {
            kind
        };
        if kind == FileType::CharacterDevice && rdev == WHITEOUT_DEVICE {
            return self.make_device(caller, parent, name, permissions(mode));
        }
        self.make_closed(caller, parent, name, false, |dir, name| {
            change::mknodat(dir, name, kind, permissions(mode), rdev)
        })
    }

    /// Makes a directory.
    pub fn mkdir(&self, caller: Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry> {
        self.make_closed(caller, parent, name, true, |dir, name| {
            change::mkdirat(dir, name, permissions(mode))
        })
    }

    /// Makes a symbolic link.
    pub fn symlink(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Entry> {
        self.make_closed(caller, parent, name, false, |dir, name| {
            change::symlinkat(target, dir, name)
        })
    }

    /// Makes a hard link. [`Error::HandedOver`] (ESTALE): look the file up again, so that its old
    /// name leads to the new node too.
    pub fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> {
        check_name(name)?;
        if was_done() {
            return self.made_before(parent, name);
        }
        let asked = self.node(node)?;
        let parent = self.dir_node(parent)?;
        let node = self.copy_up(&asked.current(), Depth::Attributes)?;
        if node.id != asked.id {
            return Err(Error::HandedOver);
        }
        if node.is_dir() {
            return Err(Error::NotPermitted);
        }
        self.copy_up_dir(&parent)?;
        let _names = self.names.write();
        if node.is_superseded() {
            // Its data came up meanwhile.
            return Err(Error::HandedOver);
        }
        let dir = self.upper_dir(&parent)?;
        let place = self.upper_place(&node)?;
        let free = self.free_name(&parent, &dir, name)?;
        let begun = self.begin(|| Intent::Link(node.id, place_in(&parent, name)));
        self.mark_for_name(&node, &parent, &dir, &place)?;
        let link = node.state.lock().link.clone();
        if let Some(link) = link {
            self.writable()?.links().count_with_upper(&link)?;
        }
        match free {
            FreeName::Whiteout => self.writable()?.link_over(&place, &dir, name)?,
            FreeName::Free => place.link_to(&dir, name)?,
        }
        // One reference more, for the new name.
        let attr = self.attr(&node)?;
        let found = Found {
            attr,
            image: node.image(),
            upper: true,
            link: None,
            partial: node.blocks().is_some(),
            number_of: NumberOf::Unknown,
        };
        let entry = self.entry(&parent, name, &found)?;
        begun.done();
        Ok(entry)
    }

    /// Makes something new that is not opened, unless an earlier process has made it for this request.
    fn make_closed(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        is_dir: bool,
        make: impl Fn(&OwnedFd, &OsStr) -> Result<(), Errno>,
    ) -> Result<Entry> {
        if was_done() {
            return self.made_before(parent, name);
        }
        Ok(self.make(caller, parent, name, is_dir, make)?.0)
    }

    /// Makes something new in a directory, by a system call that `make` does.
    fn make<T>(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        is_dir: bool,
        make: impl Fn(&OwnedFd, &OsStr) -> Result<T, Errno>,
    ) -> Result<(Entry, T)> {
        check_name(name)?;
        let parent = self.dir_node(parent)?;
        self.copy_up_dir(&parent)?;
        let _names = self.names.read();
        let dir = self.upper_dir(&parent)?;
        let free = self.free_name(&parent, &dir, name)?;
        let begun = self.begin(|| Intent::Make(place_in(&parent, name)));
        let made = match free {
            FreeName::Free => as_caller(caller, || make(&dir, name))?,
            FreeName::Whiteout => {
                let stage = self.writable()?.stage(&dir)?;
                let made = as_caller(caller, || make(stage.dir(), name))?;
                stage.publish(name, &dir, name, is_dir)?;
                made
            }
        };
        if is_dir {
            parent.subdirs_changed();
        }
        let stat = Place::at(&dir, name).stat()?;
        let attr = attr_of(&stat, self.upper_ino(&stat));
        let found = Found {
            attr,
            image: None,
            upper: true,
            link: None,
            partial: false,
            number_of: NumberOf::Upper,
        };
        let entry = self.entry(&parent, name, &found)?;
        begun.done();
        Ok((entry, made))
    }

    /// Refuses a name that the union shows already; else says whether a whiteout holds it.
    pub(super) fn free_name(&self, parent: &Node, dir: &OwnedFd, name: &OsStr) -> Result<FreeName> {
        match stat_if_any(dir, name)? {
            Some(stat) if marks::is_whiteout(&stat) => Ok(FreeName::Whiteout),
            Some(_) => Err(Error::Exists),
            None if self.image_entry(parent, name)?.is_some() => Err(Error::Exists),
            None => Ok(FreeName::Free),
        }
    }

    /// Sets the marks that a file needs before it gets a name in a directory. If it carries an origin
    /// (its inode number is not its own) or stands for a device, the directory is marked: after a crash
    /// between the two the file would else be something else than it was. If the image has its data, the
    /// file says where: they are not at the new name.
    pub(super) fn mark_for_name(
        &self,
        node: &Node,
        parent: &Arc<Node>,
        dir: &Arc<OwnedFd>,
        place: &Place,
    ) -> Result<()> {
        let stat = place.stat()?;
        if node.ino != self.upper_ino(&stat) || stands_for_device(node.kind, &stat) {
            make_impure(parent, dir)?;
        }
        if let Some(image) = node.image() {
            marks::set_redirect(place, &self.image.path(image))?;
        }
        Ok(())
    }
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

/// How a name that the union does not show is free in the upper.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum FreeName {
    /// Nothing is there.
    Free,
    /// A whiteout holds it.
    Whiteout,
}
