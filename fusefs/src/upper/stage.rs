//! Making a file beside the tree, for a name that a whiteout holds.
//!
//! The whiteout may go only when the new file is complete: between the two, a crash would let the
//! image's file, which was deleted, come back.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, RenameFlags, XattrFlags, fstat, openat};
use rustix::io::Errno;

use super::Upper;
use crate::marks;
use crate::sys::change::{mkdirat, renameat, renameat_with};
use crate::sys::place::Place;

const DEFAULT_ACL: &str = "system.posix_acl_default";

/// A directory in the work directory, removed when dropped.
pub(crate) struct Stage<'u> {
    upper: &'u Upper,
    name: OsString,
    dir: Arc<OwnedFd>,
}

impl<'u> Stage<'u> {
    pub(super) fn like(upper: &'u Upper, parent: &Arc<OwnedFd>) -> Result<Stage<'u>, Errno> {
        let (work, name) = upper.work_name();
        mkdirat(work, &name, Mode::RWXU)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = Arc::new(openat(work, &name, flags, Mode::empty())?);
        let stage = Stage { upper, name, dir };
        let (own, like) = (
            Place::Fd(Arc::clone(&stage.dir)),
            Place::Fd(Arc::clone(parent)),
        );
        let stat = fstat(parent)?;
        own.chown(Some(stat.st_uid), Some(stat.st_gid))?;
        own.chmod(stat.st_mode & 0o7777)?;
        if let Some(acl) = like.xattr(OsStr::new(DEFAULT_ACL))? {
            own.set_xattr(OsStr::new(DEFAULT_ACL), &acl, XattrFlags::empty())?;
        }
        Ok(stage)
    }

    /// Where to create.
    pub(crate) fn dir(&self) -> &Arc<OwnedFd> {
        &self.dir
    }

    /// Moves what was created over the whiteout at `name` in `dir`, in one step. A directory
    /// becomes opaque first: what the whiteout hid must stay hidden.
    pub(crate) fn publish(
        self,
        made: &OsStr,
        dir: &OwnedFd,
        name: &OsStr,
        is_dir: bool,
    ) -> Result<(), Errno> {
        if !is_dir {
            return renameat(&self.dir, made, dir, name);
        }
        marks::set_opaque(&Place::at(&self.dir, made))?;
        // The whiteout goes with the stage.
        renameat_with(&self.dir, made, dir, name, RenameFlags::EXCHANGE)
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        self.upper.discard(&self.name);
    }
}
