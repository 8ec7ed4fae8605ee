//! Attributes: reading and changing them.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{OFlags, fstat, fstatvfs};

use super::Union;
use super::copy_up::Depth;
use super::device::attr_shown_as;
use super::partial::resize_partial;
use super::resolve::finish;
use crate::error::{Error, Result};
use crate::image::{ImageId, dir_nlink};
use crate::inode::Node;
use crate::sys::change::ftruncate;
use crate::sys::dir::{RawEntry, read_dir};
use crate::sys::extents::BLOCK;
use crate::sys::place::Place;
use crate::types::{Attr, Caller, Fh, FileKind, NodeId, SetAttr, StatFs};

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;

impl Union {
    /// Attributes of a node; a handle to it changes nothing, but is what FUSE hands in.
    pub fn getattr(&self, node: NodeId, _fh: Option<Fh>) -> Result<Attr> {
        let asked = self.node(node)?;
        let _names = self.names.read();
        let current = asked.current();
        let attr = self.attr(&current)?;
        self.as_seen_by(&asked, &current, attr)
    }

    /// Changes attributes. A change of size by a caller without privilege clears setuid and
    /// setgid, a change of owner always does (chown(2)).
    pub fn setattr(
        &self,
        caller: Caller,
        node: NodeId,
        fh: Option<Fh>,
        change: &SetAttr,
    ) -> Result<Attr> {
        let asked = self.node(node)?;
        if change.size.is_some() && asked.kind != FileKind::Regular {
            return Err(Error::Invalid);
        }
        let depth = match change.size {
            None => Depth::Attributes,
            Some(0) => Depth::Empty,
            Some(_) => Depth::Blocks,
        };
        let node = self.copy_up(&asked.current(), depth)?;
        if change.size.is_some() && fh.is_none() && node.id != asked.id {
            // truncate(2): the walk is repeated, and old handles keep the image's data. (A call on
            // a handle could not be repeated, but a handle that may truncate is never an old one.)
            return Err(Error::HandedOver);
        }
        let _names = self.names.read();
        let place = self.upper_place(&node)?;
        let names_no_owner = *change == SetAttr::default() && is_owner_or_root(caller, &place)?;
        if change.uid.is_some() || change.gid.is_some() || names_no_owner {
            place.chown(change.uid, change.gid)?;
        }
        if let Some(size) = change.size {
            self.truncate(caller, &node, &place, fh, size)?;
        }
        if let Some(mode) = change.mode {
            place.chmod(mode)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            place.utimens(change.atime, change.mtime)?;
        }
        let attr = self.attr(&node)?;
        self.as_seen_by(&asked, &node, attr)
    }

    /// Attributes for the node that was asked about. A superseded one is known by handles that read
    /// the image's file: its length is theirs. But a file with several names may still be known by
    /// it at one of them, and who asks there wants the truth.
    fn as_seen_by(&self, asked: &Node, current: &Node, mut attr: Attr) -> Result<Attr> {
        if asked.is_superseded()
            && current.state.lock().names.len() < 2
            && let Some(id) = asked.image()
        {
            let image = self.image.attr(id)?;
            (attr.size, attr.blocks) = (image.size, image.blocks);
        }
        Ok(finish(asked, attr))
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, node: NodeId) -> Result<OsString> {
        let node = self.current(node)?;
        let _names = self.names.read();
        if node.kind != FileKind::Symlink {
            return Err(Error::Invalid);
        }
        match (self.place(&node)?, node.image()) {
            (Some(place), _) => Ok(place.readlink()?),
            (None, Some(id)) => self.image.readlink(id),
            (None, None) => Err(Error::NotFound),
        }
    }

    /// Space and inodes: of the upper's file system, where everything new goes.
    pub fn statfs(&self) -> Result<StatFs> {
        let stat = match (&self.upper, self.image.file_system()) {
            (Some(upper), _) => fstatvfs(upper.root())?,
            (None, Some(layer)) => fstatvfs(layer)?,
            (None, None) => return Err(Error::NotSupported),
        };
        let block = |size: u64| u32::try_from(size).unwrap_or(4096);
        Ok(StatFs {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: block(stat.f_bsize),
            namelen: u32::try_from(stat.f_namemax).unwrap_or(255),
            frsize: block(stat.f_frsize),
        })
    }

    /// Attributes of the node that stands for a file today.
    pub(super) fn attr(&self, node: &Node) -> Result<Attr> {
        let Some(place) = self.place(node)? else {
            let id = node.image().ok_or(Error::NotFound)?;
            let mut attr = self.image.attr(id)?;
            attr.ino = node.ino;
            let removed = node.id != NodeId::ROOT && node.state.lock().names.is_empty();
            if removed {
                attr.nlink = 0;
            }
            return Ok(attr);
        };
        let stat = place.stat()?;
        let mut attr = attr_shown_as(node.kind, &stat, node.ino);
        let (linked, image, partial, removed) = {
            let state = node.state.lock();
            let partial = state.blocks.is_some();
            (
                state.link.clone(),
                state.image,
                partial,
                state.orphan.is_some(),
            )
        };
        match image {
            Some(image) if !node.is_dir() => {
                show_data(&mut attr, &self.image.attr(image)?, partial);
            }
            Some(image) if !removed => {
                attr.nlink = self.merged_nlink(node, image)?;
            }
            _ => {}
        }
        if let Some(link) = linked {
            attr.nlink = self.upper()?.links().nlink(&link, &stat)?;
        }
        Ok(attr)
    }

    /// The link count of a directory that merges one of the upper and one of the image.
    pub(super) fn merged_nlink(&self, node: &Node, image: ImageId) -> Result<u32> {
        let subdirs = node.subdirs(|| {
            let entries = read_dir(self.upper_dir(node)?.as_fd())?;
            let is_dir = |entry: &&RawEntry| entry.kind == FileKind::Directory;
            let in_upper = u32::try_from(entries.iter().filter(is_dir).count()).unwrap_or(u32::MAX);
            let decided: HashSet<_> = entries.iter().map(|entry| entry.name.as_os_str()).collect();
            let mut in_image: u32 = 0;
            self.image.each_child(image, |child| {
                let shown = child.kind == FileKind::Directory && !decided.contains(child.name);
                in_image = in_image.saturating_add(shown.into());
            })?;
            Ok(in_upper.saturating_add(in_image))
        })?;
        Ok(dir_nlink(subdirs))
    }

    fn truncate(
        &self,
        caller: Caller,
        node: &Node,
        place: &Place,
        fh: Option<Fh>,
        size: u64,
    ) -> Result<()> {
        let handle = fh.and_then(|fh| self.handles.get(fh));
        let resize = |file: &File| match node.blocks() {
            Some(blocks) => resize_partial(&blocks, file, size),
            None => resize(file, size),
        };
        match handle.as_deref() {
            Some(file) if file.writable => resize(&file.backing.file)?,
            _ => resize(&place.open_file(OFlags::WRONLY)?)?,
        }
        if caller.uid != 0 {
            clear_set_id(place)?;
        }
        Ok(())
    }
}

/// Shows that the data of an upper file are the image's, or (`partial`) some of them: then the length
/// is the upper's, and the space what both take, but not more than the length needs.
pub(super) fn show_data(attr: &mut Attr, data: &Attr, partial: bool) {
    if partial {
        let needed = attr.size.div_ceil(BLOCK) * (BLOCK / 512);
        attr.blocks = attr.blocks.max(data.blocks.min(needed));
    } else {
        (attr.size, attr.blocks) = (data.size, data.blocks);
    }
}

/// Changes a file's size. What was copied up for this without its data is empty already: then an
/// error changes nothing any more, and is none.
pub(super) fn resize(file: impl AsFd, size: u64) -> Result<()> {
    match ftruncate(&file, size) {
        Err(error) if size == 0 && fstat(&file)?.st_size == 0 => {
            tracing::warn!(%error, "an empty file keeps its times");
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Whether a caller may give a file another mode.
///
/// chown(2) that names no owner clears setuid and setgid as any other, and arrives as a change of
/// nothing. The kernel lets it pass for everybody: it checks who may change the mode only if there
/// is a mode in the change.
fn is_owner_or_root(caller: Caller, place: &Place) -> Result<bool> {
    Ok(caller.uid == 0 || place.stat()?.st_uid == caller.uid)
}

/// Clears setuid, and setgid of a group-executable file, as a write by another user does
/// (`setattr_should_drop_suidgid`, fs/attr.c).
pub(super) fn clear_set_id(place: &Place) -> Result<()> {
    let mode = place.stat()?.st_mode & 0o7777;
    let mut kept = mode & !SETUID;
    if mode & GROUP_EXECUTE != 0 {
        kept &= !SETGID;
    }
    if kept != mode {
        place.chmod(kept)?;
    }
    Ok(())
}

/// The place of an open file.
pub(super) fn place_of_file(file: &std::fs::File) -> Result<Place> {
    Ok(Place::Fd(Arc::new(file.try_clone()?.into())))
}
