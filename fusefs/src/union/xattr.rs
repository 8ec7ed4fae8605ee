//! Extended attributes. The union's own marks are invisible, and nobody can set them: a container
//! that could would choose what of the image it sees.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Union;
use super::copy_up::Depth;
use crate::error::{Error, Result};
use crate::marks::is_private;
use crate::types::NodeId;

impl Union {
    /// The value of an xattr; `NoXattr` if it is not there (or is the union's own).
    pub fn getxattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>> {
        if is_private(name) {
            return Err(Error::NoXattr);
        }
        let node = self.current(node)?;
        let _names = self.names.read();
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
        for name in names.iter().filter(|name| !is_private(name)) {
            list.extend_from_slice(name.as_bytes());
            list.push(0);
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
        if is_private(name) {
            return Err(Error::NotPermitted);
        }
        let node = self.copy_up(&self.current(node)?, Depth::Attributes)?;
        let _names = self.names.read();
        Ok(self.upper_place(&node)?.set_xattr(name, value, flags)?)
    }

    /// Removes an xattr.
    pub fn removexattr(&self, node: NodeId, name: &OsStr) -> Result<()> {
        // Nothing is copied up for an xattr that is not there.
        self.getxattr(node, name)?;
        let node = self.copy_up(&self.current(node)?, Depth::Attributes)?;
        let _names = self.names.read();
        match self.upper_place(&node)?.remove_xattr(name) {
            Err(Errno::NODATA) => Err(Error::NoXattr),
            other => Ok(other?),
        }
    }
}
