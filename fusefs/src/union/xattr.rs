//! Extended attributes. The union's own marks are invisible, and nobody can set them: a container
//! that could would choose what of the image it sees. What a container gives the name of a mark is
//! kept under another one ([`marks::stored_name`]).

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Union;
use super::copy_up::Depth;
use super::recorded::was_begun;
use crate::error::{Error, Result};
use crate::inode::Node;
use crate::marks;
use crate::record::Intent;
use crate::types::NodeId;

impl Union {
    /// The value of an xattr; `NoXattr` if it is not there.
    pub fn getxattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>> {
        let name = &*stored_name(name)?;
        let node = self.current(node)?;
        let _names = self.names.read();
        if self.is_devices_own(&node, name)? {
            return Err(Error::NoXattr);
        }
        let value = match (self.place(&node)?, node.image()) {
            (Some(place), _) => place.xattr(name)?,
            (None, Some(id)) => self.image.xattr(id, name)?,
            (None, None) => None,
        };
        value.ok_or(Error::NoXattr)
    }

    /// The names, each ended by NUL.
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> {
        let node = self.current(node)?;
        let _names = self.names.read();
        let names = match (self.place(&node)?, node.image()) {
            (Some(place), _) => place.xattr_names()?,
            (None, Some(id)) => self.image.xattr_names(id)?,
            (None, None) => Vec::new(),
        };
        let mut list = Vec::new();
        for stored in &names {
            if let Some(name) = marks::shown_name(stored)
                && !self.is_devices_own(&node, stored)?
            {
                list.extend_from_slice(name.as_bytes());
                list.push(0);
            }
        }
        Ok(list)
    }

    /// Sets an xattr.
    pub fn setxattr(
        &self,
        node: NodeId,
        name: &OsStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let name = stored_name(name)?;
        let node = self.copy_up(&self.current(node)?, Depth::Attributes)?;
        let _names = self.names.read();
        if self.is_devices_own(&node, &name)? {
            return Err(Error::NotPermitted);
        }
        let place = self.upper_place(&node)?;
        if !flags.contains(XattrFlags::CREATE) {
            return Ok(place.set_xattr(&name, value, flags)?);
        }
        let mut flags = flags;
        if was_begun() {
            flags.remove(XattrFlags::CREATE);
        } else if place.xattr(&name)?.is_some() {
            return Err(Error::Exists);
        }
        let begun = self.begin(|| Intent::Xattr);
        place.set_xattr(&name, value, flags)?;
        begun.done();
        Ok(())
    }

    /// Removes an xattr.
    pub fn removexattr(&self, node: NodeId, name: &OsStr) -> Result<()> {
        // Nothing is copied up for an xattr that is not there.
        match self.getxattr(node, name) {
            Err(Error::NoXattr) if was_begun() => return Ok(()),
            other => drop(other?),
        }
        let node = self.copy_up(&self.current(node)?, Depth::Attributes)?;
        let _names = self.names.read();
        let place = self.upper_place(&node)?;
        let begun = self.begin(|| Intent::Xattr);
        match place.remove_xattr(&stored_name(name)?) {
            Err(Errno::NODATA) => return Err(Error::NoXattr),
            other => other?,
        }
        begun.done();
        Ok(())
    }

    /// Whether an xattr on disk is part of what makes a file a device 0:0, which a container sees
    /// without it. The caller holds the `names` lock.
    fn is_devices_own(&self, node: &Node, stored: &OsStr) -> Result<bool> {
        Ok(marks::belongs_to_device(stored) && self.is_device(node)?)
    }
}

/// The name of an xattr on disk. One that becomes too long is refused as overlayfs refuses it.
fn stored_name(name: &OsStr) -> Result<Cow<'_, OsStr>> {
    marks::stored_name(name).ok_or(Error::NotSupported)
}
