//! Renaming, of anything, with no EXDEV.
//!
//! What is renamed is copied up first (a directory without its entries: it gets a redirect to the
//! image's directory, and the entries stay where they are). The rename itself is one system call on
//! the upper, which leaves a whiteout behind where the image has the old name.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, RenameFlags, Stat};
use rustix::io::Errno;

use super::copy_up::Depth;
use super::device::stands_for_device;
use super::remove::stat_if_any;
use super::resolve::Held;
use super::{Union, check_name, make_impure};
use crate::error::{Error, Result};
use crate::inode::{Name, Node};
use crate::marks::{self, NlinkDelta};
use crate::sys::change::{mkdirat, renameat_with, unlinkat};
use crate::sys::kind_of;
use crate::sys::place::Place;
use crate::types::{Caller, FileKind, NodeId};
use crate::upper::make_whiteout;

/// One end of a rename.
pub(super) struct End<'a> {
    parent: Arc<Node>,
    pub(super) dir: Arc<OwnedFd>,
    name: &'a OsStr,
    /// Whether the image has the name too, so that it must stay hidden.
    in_image: bool,
    /// Whether a whiteout takes the name when it is left.
    leaves_whiteout: bool,
}

impl Union {
    /// Renames; `NOREPLACE` and `EXCHANGE` as in renameat2(2).
    pub fn rename(
        &self,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        self.rename_for(None, parent, name, new_parent, new_name, flags)
    }

    /// Renames and leaves a character device 0:0 of the caller at the old name, as
    /// `RENAME_WHITEOUT` does. `flags`: `NOREPLACE` or nothing.
    pub fn rename_leaving_device(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        if flags.contains(RenameFlags::EXCHANGE) {
            return Err(Error::Invalid);
        }
        self.rename_for(Some(caller), parent, name, new_parent, new_name, flags)
    }

    /// Renames, and leaves a device of `device_of` at the old name.
    fn rename_for(
        &self,
        device_of: Option<Caller>,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        check_name(new_name)?;
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Error::Invalid);
        }
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        self.writable()?;
        let (parent, new_parent) = (self.dir_node(parent)?, self.dir_node(new_parent)?);
        let source = self.hold(&parent, name)?;
        let target = match self.hold(&new_parent, new_name) {
            Ok(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(Error::Exists),
            Ok(target) => Some(target),
            Err(Error::NotFound) if !exchange => None,
            Err(error) => return Err(error),
        };
        let moved = self.copy_up(&source.current()?, Depth::Attributes)?;
        if let Some(target) = &target
            && target.current()?.id == moved.id
        {
            // Two names of one file: rename(2) does nothing.
            return Ok(());
        }
        self.copy_up_dir(&parent)?;
        self.copy_up_dir(&new_parent)?;
        if let (true, Some(target)) = (exchange, &target) {
            self.copy_up(&target.current()?, Depth::Attributes)?;
        }

        let _names = self.names.write();
        let from = self.end(parent, name)?;
        let to = self.end(new_parent, new_name)?;
        materialise(&moved, &from)?;
        match device_of {
            Some(caller) => self.replace_with_device(caller, from, &to, &moved, target.as_ref()),
            None if exchange => self.exchange(&from, &to, &moved, target.as_ref()),
            None => self.replace(&from, &to, &moved, target.as_ref()),
        }
    }

    /// Opens one end.
    pub(super) fn end<'a>(&self, parent: Arc<Node>, name: &'a OsStr) -> Result<End<'a>> {
        let dir = self.upper_dir(&parent)?;
        let in_image = self.image_entry(&parent, name)?.is_some();
        Ok(End {
            parent,
            dir,
            name,
            in_image,
            leaves_whiteout: in_image,
        })
    }

    fn exchange(
        &self,
        from: &End<'_>,
        to: &End<'_>,
        moved: &Arc<Node>,
        target: Option<&Held<'_>>,
    ) -> Result<()> {
        let target = target.ok_or(Error::NotFound)?.current()?;
        materialise(&target, to)?;
        self.detach_from_image(moved, from, to)?;
        self.detach_from_image(&target, to, from)?;
        renameat_with(
            &from.dir,
            from.name,
            &to.dir,
            to.name,
            RenameFlags::EXCHANGE,
        )?;
        Union::moved(moved, from, to);
        Union::moved(&target, to, from);
        Ok(())
    }

    fn replace(
        &self,
        from: &End<'_>,
        to: &End<'_>,
        moved: &Arc<Node>,
        target: Option<&Held<'_>>,
    ) -> Result<()> {
        let mut old = stat_if_any(&to.dir, to.name)?;
        let mut leaving = None;
        if let Some(target) = target {
            let target = target.current()?;
            self.check_replaces(moved, &target)?;
            let found = self.resolve(&to.parent, to.name)?.ok_or(Error::NotFound)?;
            let here = old.is_some();
            leaving = Some(self.prepare_leave(&to.parent, &to.dir, to.name, &found, here)?);
            if target.is_dir() && old.is_some() {
                self.empty_for_replacing(to)?;
                old = stat_if_any(&to.dir, to.name)?;
            }
        }
        self.detach_from_image(moved, from, to)?;
        rename_on_disk(from, to, moved.is_dir(), old.as_ref())?;
        if let Some(leaving) = leaving {
            self.leave(leaving);
        }
        Union::moved(moved, from, to);
        Ok(())
    }

    /// Moves a file, then puts a device at its old name. Between the two a whiteout holds that name:
    /// a crash there shows the file at its new name and nothing at the old one.
    fn replace_with_device(
        &self,
        caller: Caller,
        mut from: End<'_>,
        to: &End<'_>,
        moved: &Arc<Node>,
        target: Option<&Held<'_>>,
    ) -> Result<()> {
        let (dir, name) = (Arc::clone(&from.dir), from.name);
        let stage = self.stage_device(caller, &from.parent, &dir, name, Mode::empty())?;
        from.leaves_whiteout = true;
        self.replace(&from, to, moved, target)?;
        stage.publish(name, &dir, name, false).or_else(|error| {
            // What was replaced can't come back; then the file stays at its new name.
            if target.is_none() {
                self.replace(to, &from, moved, None)?;
            }
            Err(error.into())
        })
    }

    /// What rename(2) asks of the thing that is replaced.
    fn check_replaces(&self, moved: &Node, target: &Arc<Node>) -> Result<()> {
        match (moved.is_dir(), target.is_dir()) {
            (true, false) => Err(Error::NotDirectory),
            (false, true) => Err(Error::IsDirectory),
            (true, true) if !self.merged_entries(target)?.is_empty() => Err(Error::NotEmpty),
            _ => Ok(()),
        }
    }

    /// A directory that is replaced looks empty but may hold whiteouts: an empty opaque one takes
    /// its place first, which nobody can tell from it.
    fn empty_for_replacing(&self, to: &End<'_>) -> Result<()> {
        if crate::sys::dir::read_dir(std::os::fd::AsFd::as_fd(&open_dir(to)?))?.is_empty() {
            return Ok(());
        }
        let upper = self.writable()?;
        let stage = upper.stage(&to.dir)?;
        mkdirat(stage.dir(), to.name, Mode::RWXU)?;
        let (empty, old) = (Place::at(stage.dir(), to.name), Place::at(&to.dir, to.name));
        let stat = old.stat()?;
        empty.chown(Some(stat.st_uid), Some(stat.st_gid))?;
        empty.chmod(stat.st_mode)?;
        marks::set_opaque(&empty)?;
        let exchange = RenameFlags::EXCHANGE;
        renameat_with(stage.dir(), to.name, &to.dir, to.name, exchange)?;
        Ok(())
    }

    /// Makes a file independent of its place, before it leaves. For a directory: what of the image
    /// shows through must do so at the new place, and nothing else of the image may.
    fn detach_from_image(&self, node: &Node, from: &End<'_>, to: &End<'_>) -> Result<()> {
        let place = Place::at(&from.dir, from.name);
        if !node.is_dir() {
            return self.mark_dir_of(node, &to.parent, &to.dir, &place);
        }
        match node.image() {
            Some(image) => {
                marks::set_redirect(&place, &self.image.path(image))?;
                make_impure(&to.parent, &to.dir)
            }
            None if to.in_image => Ok(marks::set_opaque(&place)?),
            None => Ok(()),
        }
    }

    /// Gives a node its new name, after the disk has it.
    fn moved(node: &Arc<Node>, from: &End<'_>, to: &End<'_>) {
        {
            let mut state = node.state.lock();
            state
                .names
                .retain(|known| !known.is(&from.parent, from.name));
            state.names.push(Name::new(&to.parent, to.name));
        }
        if node.is_dir() {
            from.parent.subdirs_changed();
            to.parent.subdirs_changed();
        }
    }
}

/// The rename itself, in one system call wherever the file system can.
fn rename_on_disk(from: &End<'_>, to: &End<'_>, is_dir: bool, old: Option<&Stat>) -> Result<()> {
    if is_dir && old.is_some_and(|old| kind_of(old) != FileKind::Directory) {
        // A directory can't replace the whiteout, but change places with it.
        renameat_with(
            &from.dir,
            from.name,
            &to.dir,
            to.name,
            RenameFlags::EXCHANGE,
        )?;
        if !from.leaves_whiteout {
            unlinkat(&from.dir, from.name, AtFlags::empty())?;
        }
        return Ok(());
    }
    if !from.leaves_whiteout {
        let plain = RenameFlags::empty();
        return Ok(renameat_with(
            &from.dir, from.name, &to.dir, to.name, plain,
        )?);
    }
    let and_hide = RenameFlags::WHITEOUT;
    match renameat_with(&from.dir, from.name, &to.dir, to.name, and_hide) {
        // A file system without RENAME_WHITEOUT: two steps, between which a crash shows the
        // image's entry at the old name again.
        Err(Errno::INVAL) => {
            renameat_with(&from.dir, from.name, &to.dir, to.name, RenameFlags::empty())?;
            Ok(make_whiteout(&from.dir, from.name)?)
        }
        other => Ok(other?),
    }
}

/// Gives a file that is known by the link index alone a link at its name.
pub(super) fn materialise(node: &Node, end: &End<'_>) -> Result<()> {
    let link = node.state.lock().link.clone();
    let Some(link) = link else {
        return Ok(());
    };
    if stat_if_any(&end.dir, end.name)?.is_none() {
        if stands_for_device(node.kind, &link.stat()?) {
            make_impure(&end.parent, &end.dir)?;
        }
        // In this order: between the two a crash may leave a count that is too high, which keeps
        // the file too long, but not one that is too low, which loses it too soon.
        link.link_to(&end.dir, end.name)?;
        let delta = marks::nlink_delta(&link)?;
        marks::set_nlink_delta(&link, NlinkDelta(delta.0 - 1))?;
    }
    Ok(())
}

fn open_dir(end: &End<'_>) -> Result<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
    Ok(Place::at(&end.dir, end.name).open(flags)?)
}
