//! Character devices 0:0 of the container.
//!
//! On overlayfs's terms such a device is a whiteout, and nobody can make one. A container that runs
//! an overlay of its own must: its whiteouts are such devices. So the upper has an empty regular file
//! with a mark instead ([`marks::set_device`]), and the union shows the device. Nobody opens the
//! file: opening a device is the kernel's work.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, RenameFlags, Stat};
use rustix::io::Errno;

use super::create::FreeName;
use super::recorded::{place, was_done};
use super::{Union, check_name, make_impure};
use crate::error::{Error, Result};
use crate::inode::Node;
use crate::marks;
use crate::record::Intent;
use crate::sys::caller::as_caller;
use crate::sys::change::{mknodat, renameat_with};
use crate::sys::place::Place;
use crate::sys::{attr_of, kind_of};
use crate::types::{Attr, Caller, Entry, FileKind, Ino, NodeId};
use crate::upper::Stage;

impl Union {
    /// Makes a device 0:0: complete on a stage, then moved to its name.
    pub(super) fn make_device(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: Mode,
    ) -> Result<Entry> {
        if was_done() {
            return self.made_before(parent, name);
        }
        check_name(name)?;
        let parent = self.dir_node(parent)?;
        self.copy_up_dir(&parent)?;
        let _names = self.names.read();
        let dir = self.upper_dir(&parent)?;
        let held = self.free_name(&parent, &dir, name)?;
        let begun = self.begin(|| Intent::Make(place(&parent, name)));
        let stage = self.stage_device(caller, &parent, &dir, name, mode)?;
        match held {
            FreeName::Whiteout => stage.publish(name, &dir, name, false)?,
            FreeName::Free => {
                renameat_with(stage.dir(), name, &dir, name, RenameFlags::NOREPLACE)?;
            }
        }
        let found = self.resolve(&parent, name)?.ok_or(Error::NotFound)?;
        let entry = self.entry(&parent, name, &found)?;
        begun.done();
        Ok(entry)
    }

    /// Makes the file that stands for a device 0:0, on a stage for the directory `dir`. That is
    /// marked first: without the mark nobody would take the file for a device.
    pub(super) fn stage_device(
        &self,
        caller: Caller,
        parent: &Node,
        dir: &Arc<OwnedFd>,
        name: &OsStr,
        mode: Mode,
    ) -> Result<Stage<'_>> {
        make_impure(parent, dir)?;
        let stage = self.writable()?.stage(dir)?;
        as_caller(caller, || make_file(stage.dir(), name, mode))?;
        marks::set_device(&Place::at(stage.dir(), name))?;
        Ok(stage)
    }

    /// Whether a node is a device 0:0. The caller holds the `names` lock.
    pub(super) fn is_device(&self, node: &Node) -> Result<bool> {
        let is_char = node.kind == FileKind::CharDevice;
        Ok(is_char && self.attr(node)?.rdev == marks::WHITEOUT_DEVICE)
    }
}

/// Makes a copy of an image's device 0:0.
pub(super) fn copy_device(dir: &Arc<OwnedFd>, name: &OsStr, mode: Mode) -> Result<()> {
    make_file(dir, name, mode)?;
    Ok(marks::set_device(&Place::at(dir, name))?)
}

fn make_file(dir: &OwnedFd, name: &OsStr, mode: Mode) -> Result<(), Errno> {
    mknodat(dir, name, FileType::RegularFile, mode, 0)
}

/// The attributes of an upper file that the union shows as `kind`.
pub(super) fn attr_shown_as(kind: FileKind, stat: &Stat, ino: Ino) -> Attr {
    let mut attr = attr_of(stat, ino);
    if stands_for_device(kind, stat) {
        marks::show_device(&mut attr);
    }
    attr
}

/// Whether an upper file that the union shows as `kind` is one that stands for a device 0:0.
pub(super) fn stands_for_device(kind: FileKind, stat: &Stat) -> bool {
    kind == FileKind::CharDevice && kind_of(stat) == FileKind::Regular
}
