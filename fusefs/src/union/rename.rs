//! Renaming, of anything, with no EXDEV (but for a directory whose path in the image is too long
//! for a redirect).
//!
//! What is renamed is copied up first (a directory without its entries: it gets a redirect to the
//! image's directory, and the entries stay where they are). The rename itself is one system call on
//! the upper, which leaves a whiteout behind where the image has the old name.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, RenameFlags, Stat};
use rustix::io::Errno;

use super::copy_up::Depth;
use super::recorded::{place, was_done};
use super::remove::stat_if_any;
use super::resolve::Held;
use super::{Union, check_name, make_impure};
use crate::error::{Error, Result};
use crate::inode::{Name, Node};
use crate::marks;
use crate::record::{Entry, Intent};
use crate::sys::change::{renameat_with, unlinkat};
use crate::sys::dir::read_dir;
use crate::sys::kind_of;
use crate::sys::place::Place;
use crate::types::{Caller, FileKind, NodeId};
use crate::upper::make_whiteout;

/// A redirect shorter than this (bytes) fits into the xattrs of every file system.
const REDIRECT_ALWAYS_FITS: usize = 256;

/// One end of a rename.
pub(super) struct End<'a> {
    pub(super) parent: Arc<Node>,
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
        if was_done() {
            return Ok(());
        }
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
        match &target {
            Some(target) if exchange => drop(self.copy_up(&target.current()?, Depth::Attributes)?),
            Some(_) => self.copy_up_if_linked(&new_parent, new_name)?,
            None => {}
        }

        let _names = self.names.write();
        // Its data may have come up meanwhile, and another node with them; from here on none does.
        let moved = moved.current();
        let from = self.end(parent, name)?;
        let to = self.end(new_parent, new_name)?;
        self.materialise_end(&moved, &from)?;
        let exchanged = match &target {
            Some(target) if exchange => Some(target.current()?.id),
            _ => None,
        };
        let begun = self.begin(|| Intent::Rename {
            node: moved.id,
            from: place(&from.parent, from.name),
            to: place(&to.parent, to.name),
            exchange: exchanged,
        });
        match device_of {
            Some(caller) => self.replace_with_device(caller, from, &to, &moved, target.as_ref()),
            None if exchange => self.exchange(&from, &to, &moved, target.as_ref()),
            None => self.replace(&from, &to, &moved, target.as_ref()),
        }?;
        begun.done();
        Ok(())
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
        self.materialise_end(&target, to)?;
        self.prepare_move(moved, from, to)?;
        self.prepare_move(&target, to, from)?;
        renameat_with(
            &from.dir,
            from.name,
            &to.dir,
            to.name,
            RenameFlags::EXCHANGE,
        )?;
        self.moved_on_disk(moved, from, to);
        self.moved_on_disk(&target, to, from);
        Ok(())
    }

    fn replace(
        &self,
        from: &End<'_>,
        to: &End<'_>,
        moved: &Arc<Node>,
        target: Option<&Held<'_>>,
    ) -> Result<()> {
        let mut leaving = None;
        if let Some(target) = target {
            self.check_replaces(moved, &target.current()?)?;
            let found = self.resolve(&to.parent, to.name)?.ok_or(Error::NotFound)?;
            leaving = Some(self.prepare_leave(&to.parent, &to.dir, to.name, &found)?);
        }
        self.prepare_move(moved, from, to)?;
        let old = stat_if_any(&to.dir, to.name)?;
        if leaving.is_some() && old.is_some() && moved.is_dir() {
            self.replace_dir(from, to, old.as_ref())?;
        } else {
            self.rename_on_disk(from, to, moved.is_dir(), old.as_ref())?;
        }
        if let Some(leaving) = leaving {
            self.leave(leaving);
        }
        self.moved_on_disk(moved, from, to);
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

    /// Replaces a directory, which looks empty but may hold whiteouts: a really empty one that
    /// looks the same takes its place first. What a crash between the two leaves differs in the
    /// inode number at most.
    fn replace_dir(&self, from: &End<'_>, to: &End<'_>, old: Option<&Stat>) -> Result<()> {
        if read_dir(open_dir(to)?.as_fd())?.is_empty() {
            return self.rename_on_disk(from, to, true, old);
        }
        let upper = self.writable()?;
        let empty = upper.empty_like(&Place::at(&to.dir, to.name))?;
        let swap = || upper.swap(&empty, &to.dir, to.name);
        let mut replaced = swap().map_err(Error::from);
        if replaced.is_ok() {
            replaced = self.rename_on_disk(from, to, true, old);
            if replaced.is_err() {
                swap()?;
            }
        }
        upper.discard(&empty);
        replaced
    }

    /// Sets the marks that a thing needs at its new place, which do no harm at the old one. A
    /// file that is more than it looks needs a directory that says so. A directory takes
    /// along what of the image shows through it, and nothing else of the image may show.
    fn prepare_move(&self, node: &Node, from: &End<'_>, to: &End<'_>) -> Result<()> {
        let place = Place::at(&from.dir, from.name);
        if !node.is_dir() {
            return self.mark_for_name(node, &to.parent, &to.dir, &place);
        }
        match node.image() {
            Some(image) => {
                make_impure(&to.parent, &to.dir)?;
                set_redirect(&place, &self.image.path(image))
            }
            None if to.in_image => Ok(marks::set_opaque(&place)?),
            None => Ok(()),
        }
    }

    /// Gives a node its new name, after the disk has it. Nothing can undo that, so nothing here fails.
    fn moved_on_disk(&self, node: &Node, from: &End<'_>, to: &End<'_>) {
        let mut state = node.state.lock();
        state
            .names
            .retain(|known| !known.is(&from.parent, from.name));
        state.names.push(Name::new(&to.parent, to.name));
        self.note(|| {
            let (from, to) = (place(&from.parent, from.name), place(&to.parent, to.name));
            Entry::Moved(node.id, from, to)
        });
        drop(state);
        if node.is_dir() {
            from.parent.subdirs_changed();
            to.parent.subdirs_changed();
        }
    }

    fn materialise_end(&self, node: &Node, end: &End<'_>) -> Result<()> {
        let link = node.state.lock().link.clone();
        match link {
            Some(link) => self.materialise(&link, &end.parent, &end.dir, end.name),
            None => Ok(()),
        }
    }

    /// The rename itself, in one system call wherever the file system can.
    fn rename_on_disk(
        &self,
        from: &End<'_>,
        to: &End<'_>,
        is_dir: bool,
        old: Option<&Stat>,
    ) -> Result<()> {
        let rename = |flags| renameat_with(&from.dir, from.name, &to.dir, to.name, flags);
        if is_dir && old.is_some_and(|old| kind_of(old) != FileKind::Directory) {
            // A directory can't replace the whiteout, but change places with it.
            rename(RenameFlags::EXCHANGE)?;
            if !from.leaves_whiteout
                && let Err(error) = unlinkat(&from.dir, from.name, AtFlags::empty())
            {
                // It hides nothing.
                tracing::warn!(name = ?from.name, %error, "a whiteout is left behind");
            }
            return Ok(());
        }
        if !from.leaves_whiteout {
            return Ok(rename(RenameFlags::empty())?);
        }
        match rename(RenameFlags::WHITEOUT) {
            Err(Errno::INVAL) => self.rename_in_two_steps(from, rename),
            other => Ok(other?),
        }
    }

    /// On a file system without `RENAME_WHITEOUT`. A crash between the steps shows the image's
    /// entry at the old name again. All that may need space is done before the first.
    fn rename_in_two_steps(
        &self,
        from: &End<'_>,
        rename: impl FnOnce(RenameFlags) -> Result<(), Errno>,
    ) -> Result<()> {
        let upper = self.writable()?;
        let (work, whiteout) = upper.work_name();
        make_whiteout(work, &whiteout)?;
        let renamed = rename(RenameFlags::empty());
        if renamed.is_ok() {
            renameat_with(work, &whiteout, &from.dir, from.name, RenameFlags::empty())?;
        } else {
            upper.discard(&whiteout);
        }
        Ok(renamed?)
    }
}

/// Makes a directory continue the image's at `path`. Where the path is longer than what the file
/// system keeps, the rename is refused as between file systems, and mv(1) copies: overlayfs does
/// the same (`ovl_set_redirect`), from 256 bytes on.
fn set_redirect(place: &Place, path: &Path) -> Result<()> {
    let long = path.as_os_str().len() >= REDIRECT_ALWAYS_FITS;
    match marks::set_redirect(place, path) {
        Err(Errno::NOSPC | Errno::RANGE | Errno::TOOBIG) if long => Err(Errno::XDEV.into()),
        other => Ok(other?),
    }
}

fn open_dir(end: &End<'_>) -> Result<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
    Ok(Place::at(&end.dir, end.name).open(flags)?)
}
