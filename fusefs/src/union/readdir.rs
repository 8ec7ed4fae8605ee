//! Listing directories.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, openat};

use super::{Union, is_impure};
use crate::error::{Error, Result};
use crate::inode::{DirHandle, Handle, Node};
use crate::marks;
use crate::sys::change::{fdatasync, fsync};
use crate::sys::dir::read_dir;
use crate::sys::place::Place;
use crate::types::{DirEntry, Entry, Fh, FileKind, Ino, NodeId};

impl Union {
    /// Opens a directory for listing.
    pub fn opendir(&self, node: NodeId) -> Result<Fh> {
        let node = self.dir_node(node)?;
        Ok(self.handles.insert(Handle::Dir(DirHandle {
            node,
            listing: parking_lot::Mutex::new(None),
        })))
    }

    /// Lists a directory from `offset` (0: the start, with `.` and `..`) until `visit` answers
    /// false ("this one did not fit").
    pub fn readdir(
        &self,
        fh: Fh,
        offset: u64,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        self.with_dir(fh, |dir| {
            for entry in self.listing(dir, offset)?.iter().skip(index(offset)) {
                if !visit(entry) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// The same with the entry looked up; the client holds a reference to each entry for which
    /// `visit` answered true. `None` for `.` and `..`, where looking up failed, and for what was
    /// removed since the listing was taken.
    pub fn readdirplus(
        &self,
        fh: Fh,
        offset: u64,
        visit: &mut dyn FnMut(&DirEntry, Option<&Entry>) -> bool,
    ) -> Result<()> {
        self.with_dir(fh, |dir| {
            for entry in self.listing(dir, offset)?.iter().skip(index(offset)) {
                if entry.name == "." || entry.name == ".." {
                    if !visit(entry, None) {
                        break;
                    }
                    continue;
                }
                let found = self.look_up_listed(&dir.node, entry);
                if !visit(entry, found.as_ref()) {
                    if let Some(found) = found {
                        self.forget(found.node, 1);
                    }
                    break;
                }
            }
            Ok(())
        })
    }

    /// Looks up an entry of a listing.
    fn look_up_listed(&self, dir: &Arc<Node>, listed: &DirEntry) -> Option<Entry> {
        let _names = self.names.read();
        let found = match self.resolve(dir, &listed.name) {
            Ok(Some(found)) => self.entry(dir, &listed.name, found),
            Ok(None) => return self.renamed_since(listed),
            Err(error) => Err(error),
        };
        // The others are to be seen all the same.
        found
            .inspect_err(|error| {
                tracing::warn!(name = ?listed.name, %error, "an entry can't be looked up");
            })
            .ok()
    }

    /// A file that had the listed name when the listing was taken, and has another now. The
    /// listing has its old name alone, so leaving that out would lose the file. It may not be
    /// remembered under this name. (A directory could not be either, and has one name.)
    fn renamed_since(&self, listed: &DirEntry) -> Option<Entry> {
        if listed.kind == FileKind::Directory {
            return None;
        }
        let node = self.nodes.by_ino(listed.ino)?;
        let has_a_name = node.kind == listed.kind && !node.state.lock().names.is_empty();
        if !has_a_name {
            return None;
        }
        let mut attr = self.attr(&node).ok()?;
        attr.cacheable = false;
        self.nodes.refer(&node);
        Some(Entry {
            node: node.id,
            generation: node.generation,
            attr,
        })
    }

    /// Closes a directory handle.
    pub fn releasedir(&self, fh: Fh) {
        if let Some(handle) = self.handles.remove(fh) {
            self.drop_handle(handle);
        }
    }

    /// Makes the entries of a directory durable.
    pub fn fsyncdir(&self, fh: Fh, datasync: bool) -> Result<()> {
        self.with_dir(fh, |dir| {
            let upper = {
                let _names = self.names.read();
                self.upper_dir_if_any(&dir.node)?
            };
            let Some(upper) = upper else {
                return Ok(());
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let readable = openat(&upper, c".", flags, Mode::empty())?;
            if datasync {
                fdatasync(&readable)?;
            } else {
                fsync(&readable)?;
            }
            Ok(())
        })
    }

    /// The listing of a handle; taken anew at the start.
    fn listing(&self, dir: &DirHandle, offset: u64) -> Result<Arc<Vec<DirEntry>>> {
        let mut kept = dir.listing.lock();
        match &*kept {
            Some(listing) if offset > 0 => Ok(Arc::clone(listing)),
            _ => {
                let listing = Arc::new(self.take_listing(&dir.node)?);
                *kept = Some(Arc::clone(&listing));
                Ok(listing)
            }
        }
    }

    fn take_listing(&self, node: &Arc<Node>) -> Result<Vec<DirEntry>> {
        let _names = self.names.read();
        let parent = node.state.lock().names.first().map(|name| name.parent.ino);
        let mut listing = Vec::new();
        let mut push = |name: OsString, ino: Ino, kind: FileKind| {
            let next_offset = listing.len() as u64 + 1;
            listing.push(DirEntry {
                name,
                ino,
                kind,
                next_offset,
            });
        };
        push(".".into(), node.ino, FileKind::Directory);
        push("..".into(), parent.unwrap_or(node.ino), FileKind::Directory);
        for (name, ino, kind) in self.merged_entries(node)? {
            push(name, ino, kind);
        }
        Ok(listing)
    }

    /// All entries of a directory but `.` and `..`: the upper's, then what of the image shows
    /// through.
    pub(super) fn merged_entries(&self, node: &Node) -> Result<Vec<(OsString, Ino, FileKind)>> {
        let mut entries = Vec::new();
        let mut decided = HashSet::new();
        let (image, removed) = {
            let state = node.state.lock();
            (state.image, state.orphan.is_some())
        };
        if removed {
            return Ok(entries);
        }
        if let Some(dir) = self.upper_dir_if_any(node)? {
            let impure = is_impure(node, &dir)?;
            let device = self.upper()?.device();
            for raw in read_dir(dir.as_fd())? {
                let whiteout = raw.kind == FileKind::CharDevice
                    && marks::is_whiteout(&Place::at(&dir, &raw.name).stat()?);
                if !whiteout {
                    let below = self.image_entry(node, &raw.name)?.is_some();
                    // Only then can number and kind be others than the upper's own.
                    let shown = if impure || (below && raw.kind == FileKind::Directory) {
                        match self.resolve(node, &raw.name) {
                            Ok(found) => found.map(|found| (found.attr.ino, found.attr.kind)),
                            // It is there, and looking it up will say what is wrong with it.
                            Err(_) => Some((self.inos.map(device, raw.ino), raw.kind)),
                        }
                    } else {
                        Some((self.inos.map(device, raw.ino), raw.kind))
                    };
                    if let Some((ino, kind)) = shown {
                        entries.push((raw.name.clone(), ino, kind));
                    }
                }
                if image.is_some() {
                    decided.insert(raw.name);
                }
            }
        }
        if let Some(image) = image {
            self.image.each_child(image, |child| {
                if !decided.contains(child.name) {
                    entries.push((child.name.to_owned(), child.ino, child.kind));
                }
            })?;
        }
        Ok(entries)
    }

    fn with_dir<T>(&self, fh: Fh, work: impl FnOnce(&DirHandle) -> Result<T>) -> Result<T> {
        match self.handles.get(fh).as_deref() {
            Some(Handle::Dir(dir)) => work(dir),
            _ => Err(Error::UnknownHandle(fh)),
        }
    }
}

/// Offsets count entries: an entry's `next_offset` is the index of the one after it.
fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
