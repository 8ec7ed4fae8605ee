//! Sealing: before an upper becomes a layer, it must need nothing but itself.
//!
//! A copied-up file with hard links in the image is found under its other names by the link index.
//! A layer has no index, so every such name gets its link in the upper. Then every file gets its
//! data: overlayfs reads a layer with metacopy files only if it is told to.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Union;
use super::resolve::{Found, Held};
use crate::error::Result;
use crate::inode::Node;
use crate::types::{FileKind, Ino};

impl Union {
    /// Makes the upper complete without its work directory, and read-only: whoever still uses the
    /// union gets EROFS from now on. (A descriptor that was opened for writing before, with
    /// passthrough, writes without asking us.)
    pub fn seal(&self) -> Result<()> {
        if self.upper.is_none() {
            return Ok(());
        }
        self.settle_names()?;
        self.complete_all()?;
        let _names = self.names.write();
        self.sealed.store(true, Ordering::Release);
        Ok(())
    }

    /// Makes the upper what kernel overlayfs can mount: every name of a copied-up file with hard
    /// links in the image gets its link in the upper, and partial files the rest of their data. For
    /// this union nothing changes; nobody may be writing. It walks the image or the upper only if
    /// there are such files.
    pub fn settle(&self) -> Result<()> {
        if self.upper.is_none() {
            return Ok(());
        }
        self.settle_names()?;
        self.complete_partial()
    }

    /// The links: the link index means nothing to kernel overlayfs, nor to a layer.
    fn settle_names(&self) -> Result<()> {
        let upper = self.upper()?;
        let mut pending = HashSet::new();
        for ((device, ino), link) in upper.links().places() {
            let stat = link.stat()?;
            // One link on disk is the index's own.
            let names = upper.links().nlink(&link, &stat)?;
            if u64::from(names) > stat.st_nlink.saturating_sub(1) {
                pending.insert(self.inos.map(device, ino));
            }
        }
        if pending.is_empty() {
            return Ok(());
        }
        self.seal_names(&pending)
    }

    /// Gives the pending files a link at each of their names. A list and no recursion: how deep
    /// the tree is, is up to the container.
    fn seal_names(&self, pending: &HashSet<Ino>) -> Result<()> {
        let mut dirs = vec![Held::root(self)?];
        while let Some(held) = dirs.pop() {
            let dir = held.current()?;
            let entries = {
                let _names = self.names.read();
                self.merged_entries(&dir)?
            };
            for (name, ino, kind) in entries {
                if kind == FileKind::Directory {
                    dirs.push(self.hold(&dir, &name)?);
                } else if pending.contains(&ino) {
                    self.seal_name(&dir, &name)?;
                }
            }
        }
        Ok(())
    }

    fn seal_name(&self, dir: &Arc<Node>, name: &OsStr) -> Result<()> {
        self.copy_up_dir(dir)?;
        let _names = self.names.write();
        let Some(Found {
            link: Some(link), ..
        }) = self.resolve(dir, name)?
        else {
            return Ok(());
        };
        let fd = self.upper_dir(dir)?;
        self.materialise(&link, dir, &fd, name)
    }
}
