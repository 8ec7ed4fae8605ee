//! Open files: one backing file for all handles of an inode.

use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::Union;
use super::attr::{clear_set_id, place_of_file, resize};
use super::copy_up::Depth;
use crate::error::{Error, Result};
use crate::image::Absent;
use crate::inode::{Backing, FileHandleState, Node};
use crate::marks::{self, Data};
use crate::record::{Entry, HandleState};
use crate::sys::change;
use crate::sys::descriptor::require_room;
use crate::sys::place::Place;
use crate::types::{Caller, Fh, FileKind, NodeId};

/// The flag by which the kernel tells that execve(2) opens a file (`__FMODE_EXEC`).
const EXECUTE: OFlags = OFlags::from_bits_retain(0o40);

/// Where [`Union::seek`] goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Whence {
    /// The next byte of data (`SEEK_DATA`).
    Data,
    /// The next hole (`SEEK_HOLE`).
    Hole,
}

/// A file that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The handle, until `release`.
    pub fh: Fh,
    /// The real file that serves this handle, shared by all open handles of the inode.
    pub backing: Arc<Backing>,
    /// The file has setuid or setgid bits and is open for writing: every write must pass through
    /// [`Union::write`], which clears them.
    pub writes_need_us: bool,
    /// This open copied the file up: its ctime and blocks are others than before.
    pub copied_up: bool,
}

impl Union {
    /// Opens a regular file; `O_TRUNC` is honoured here. [`Error::HandedOver`] (ESTALE): look the
    /// path up again.
    pub fn open(&self, caller: Caller, node: NodeId, flags: OFlags) -> Result<Opened> {
        let asked = self.node(node)?;
        if asked.is_superseded() {
            return Err(Error::HandedOver);
        }
        match asked.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Error::IsDirectory),
            _ => return Err(Error::Invalid),
        }
        require_room()?;
        let truncate = flags.contains(OFlags::TRUNC);
        let mut copied_up = false;
        // Before it asks us to open for writing, the kernel sees to this by itself. Of
        // O_RDONLY|O_TRUNC it thinks only afterwards, when we have truncated the file.
        if truncate && asked.state.lock().running > 0 {
            return Err(Error::Running);
        }
        if writes(flags) || truncate {
            copied_up = !asked.is_written_above();
            let depth = if truncate {
                Depth::Empty
            } else {
                Depth::Blocks
            };
            let node = self.copy_up(&asked, depth)?;
            if node.id != asked.id {
                return Err(Error::HandedOver);
            }
        }
        let _names = self.names.read();
        loop {
            let (backing, above) = self.backing(&asked, writes(flags) || truncate)?;
            let mut perm = 0;
            if writes(flags) && flags.contains(OFlags::DSYNC) {
                // With passthrough the kernel makes each write durable without asking us.
                sync_name(&asked, &backing)?;
            }
            if writes(flags) || truncate {
                let place = place_of_file(&backing.file)?;
                if truncate {
                    resize(&backing.file, 0)?;
                    if caller.uid != 0 {
                        clear_set_id(&place)?;
                    }
                }
                perm = place.stat()?.st_mode;
            }
            if let Some(opened) = self.opened(&asked, backing, above, flags, perm)? {
                return Ok(Opened {
                    copied_up,
                    ..opened
                });
            }
        }
    }

    /// The image's file that a request for a node's data would have to wait for, because its bytes
    /// are not on this host. Whoever has other work fetches it first, where waiting does no harm:
    /// a request that has to wait keeps others waiting, too. `reads`: the request only opens it for
    /// reading, and a large file may come while it is read ([`Self::absent_bytes`]).
    pub fn absent(&self, node: NodeId, reads: bool) -> Result<Option<Absent>> {
        if !self.image.is_remote() {
            return Ok(None);
        }
        let (image, backing) = {
            let node = self.node(node)?;
            let state = node.state.lock();
            (state.image, state.backing.upgrade())
        };
        let Some(image) = image else { return Ok(None) };
        let suffices = match backing {
            Some(backing) => reads || !backing.is_arriving(),
            None => reads && self.image.arriving(image)?.is_some(),
        };
        if suffices {
            return Ok(None);
        }
        self.image.absent(image)
    }

    /// The same for a read of some bytes (from `offset` on, `len` of them).
    pub fn absent_bytes(&self, fh: Fh, offset: u64, len: u64) -> Result<Option<Absent>> {
        if !self.image.is_remote() {
            return Ok(None);
        }
        let range = offset..offset.saturating_add(len);
        self.with_file(fh, |file| Ok(file.backing.absent(range)))
    }

    /// The same without a handle, as [`Self::read_unopened`].
    pub fn absent_unopened(&self, node: NodeId, offset: u64, len: u64) -> Result<Option<Absent>> {
        if let Some(absent) = self.absent(node, true)? {
            return Ok(Some(absent));
        }
        if !self.image.is_remote() {
            return Ok(None);
        }
        let range = offset..offset.saturating_add(len);
        Ok(self.unopened(node)?.absent(range))
    }

    /// Makes a handle of an opened backing file, the upper's (`above`) or the image's. `None` if the
    /// node was copied up since the file was opened, so that it is not the node's file any more.
    pub(super) fn opened(
        &self,
        node: &Arc<Node>,
        backing: Arc<Backing>,
        above: bool,
        flags: OFlags,
        mode: u32,
    ) -> Result<Option<Opened>> {
        let runs = flags.contains(EXECUTE);
        {
            let mut state = node.state.lock();
            if state.successor.is_some() {
                return Err(Error::HandedOver);
            }
            if state.is_written_above() != above {
                return Ok(None);
            }
            if let Some(orphan) = &state.orphan {
                self.pin(node, orphan);
            }
            state.open += 1;
            state.running += u32::from(runs);
            state.backing = Arc::downgrade(&backing);
        }
        let writes_need_us = writes(flags) && mode & 0o6000 != 0;
        let fh = self.handles.insert(FileHandleState {
            node: Arc::clone(node),
            backing: Arc::clone(&backing),
            writable: above,
            runs,
            writes_need_us,
        });
        self.note(|| {
            let node = node.id;
            let handle = HandleState {
                node,
                above,
                runs,
                writes_need_us,
            };
            Entry::Open(fh, handle)
        });
        Ok(Some(Opened {
            fh,
            backing,
            writes_need_us,
            copied_up: false,
        }))
    }

    /// Closes a handle.
    pub fn release(&self, fh: Fh) {
        let Some(file) = self.handles.remove(fh) else {
            return;
        };
        // Before the client's number for the file is given back: that is done once more if need be.
        self.note(|| Entry::Close(fh));
        let is_last = {
            let mut state = file.node.state.lock();
            state.open = state.open.saturating_sub(1);
            state.running = state.running.saturating_sub(u32::from(file.runs));
            state.open == 0
        };
        if is_last {
            self.complete_at_close(&file.node);
        }
        // The node may have been forgotten before: the kernel sends both at once, and two threads
        // take them in any order.
        let node = file.node.id;
        drop(file);
        self.forget(node, 0);
    }

    /// Reads at `offset` (bytes); fewer bytes than asked only at the end of the file.
    pub fn read(&self, fh: Fh, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.with_file(fh, |file| file.backing.read(offset, buf))
    }

    /// The same without a handle, on a mount whose files the kernel opens by itself.
    pub fn read_unopened(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.unopened(node)?.read(offset, buf)
    }

    /// Writes `data` at `offset` (bytes); less than all only if the disk is full. `kill_suidgid`:
    /// the writer may not keep setuid and setgid bits.
    pub fn write(&self, fh: Fh, offset: u64, data: &[u8], kill_suidgid: bool) -> Result<usize> {
        self.with_writable(fh, |file| {
            if kill_suidgid {
                clear_set_id(&place_of_file(&file.backing.file)?)?;
            }
            file.backing.write(offset, data)
        })
    }

    /// Makes durable what was just written with `O_SYNC` or `O_DSYNC`, if the kernel does not see to it: it
    /// asks for an fsync after a write to its cache, and syncs the file itself with passthrough, but
    /// does neither for writes that need us ([`Opened::writes_need_us`]).
    pub fn written(&self, fh: Fh, flags: OFlags) -> Result<()> {
        if flags.contains(OFlags::DSYNC) && self.with_file(fh, |file| Ok(file.writes_need_us))? {
            return self.fsync(fh, !flags.contains(OFlags::SYNC));
        }
        Ok(())
    }

    /// Makes a file durable (`datasync`: its data and what is needed to read it, which after a
    /// copy-up is its name too: only fsync(2) takes a rename along).
    pub fn fsync(&self, fh: Fh, datasync: bool) -> Result<()> {
        self.with_file(fh, |file| {
            if !file.writable {
                // The image is on disk since it was committed.
                return Ok(());
            }
            if datasync {
                sync_name(&file.node, &file.backing)?;
                return Ok(change::fdatasync(&file.backing.file)?);
            }
            Ok(change::fsync(&file.backing.file)?)
        })
    }

    /// Reserves or frees space (fallocate(2)); which modes work is up to the upper's file system.
    pub fn fallocate(
        &self,
        caller: Caller,
        fh: Fh,
        mode: FallocateFlags,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        self.with_writable(fh, |file| {
            written_by(caller, file)?;
            if file.backing.lacks_data() {
                // A hole, or space without data, must not mean the image's data.
                self.copy_up(&file.node, Depth::Data)?;
            }
            Ok(change::fallocate(&file.backing.file, mode, offset, len)?)
        })
    }

    /// Finds data or a hole at or after `offset` (lseek(2)).
    pub fn seek(&self, fh: Fh, offset: u64, whence: Whence) -> Result<u64> {
        self.with_file(fh, |file| file.backing.seek(offset, whence == Whence::Data))
    }

    /// The same without a handle, as [`Union::read_unopened`].
    pub fn seek_unopened(&self, node: NodeId, offset: u64, whence: Whence) -> Result<u64> {
        self.unopened(node)?.seek(offset, whence == Whence::Data)
    }

    /// Copies `len` bytes between two handles and offsets, within the host's file system
    /// (`copy_file_range(2)`). Returns the bytes copied. A partial file answers EXDEV: the caller
    /// copies by read and write then, as the kernel does.
    pub fn copy_file_range(
        &self,
        caller: Caller,
        from: (Fh, u64),
        to: (Fh, u64),
        len: u64,
    ) -> Result<usize> {
        self.with_file(from.0, |source| {
            self.with_writable(to.0, |target| {
                if source.backing.lacks_data() || target.backing.lacks_data() {
                    return Err(Errno::XDEV.into());
                }
                written_by(caller, target)?;
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                let from = (&source.backing.file, from.1);
                let to = (&target.backing.file, to.1);
                Ok(change::copy_file_range(from, to, len)?)
            })
        })
    }

    /// The backing file of a node, the open one or a new one, and whether it is the upper's.
    pub(super) fn backing(&self, node: &Arc<Node>, writes: bool) -> Result<(Arc<Backing>, bool)> {
        let (known, image, upper, blocks) = {
            let state = node.state.lock();
            let blocks = state.blocks.clone();
            (state.backing.upgrade(), state.image, state.upper, blocks)
        };
        let above = upper && (image.is_none() || blocks.is_some());
        if let Some(backing) = known {
            if writes && above && !is_writable(&backing)? {
                // Handles of one inode share one file, and this one can't be written.
                return Err(Error::NotPermitted);
            }
            return Ok((backing, above));
        }
        let backing = match (image, blocks) {
            (Some(id), None) => match self.image.arriving(id)? {
                Some(arriving) => Backing::arriving(arriving)?,
                None => Backing::new(self.image.open(id)?),
            },
            (Some(id), Some(blocks)) => {
                let file = open_for_all(&self.upper_place(node)?, writes)?;
                blocks.load(&file)?;
                Backing::partial(file, self.image.open(id)?, blocks)
            }
            (None, _) if upper => Backing::new(open_upper(&self.upper_place(node)?, writes)?),
            (None, _) => return Err(Error::NotFound),
        };
        let mut state = node.state.lock();
        if state.is_written_above() == above {
            // Two opens at once: the first one's file stands, so that all handles share one.
            if let Some(first) = state.backing.upgrade() {
                return Ok((first, above));
            }
            state.backing = Arc::downgrade(&backing);
        }
        Ok((backing, above))
    }

    /// The backing file of a regular file that nobody opened.
    fn unopened(&self, node: NodeId) -> Result<Arc<Backing>> {
        let node = self.node(node)?;
        match node.kind {
            FileKind::Regular => Ok(self.backing(&node, false)?.0),
            FileKind::Directory => Err(Error::IsDirectory),
            _ => Err(Error::Invalid),
        }
    }

    fn with_file<T>(&self, fh: Fh, work: impl FnOnce(&FileHandleState) -> Result<T>) -> Result<T> {
        match self.handles.get(fh).as_deref() {
            Some(file) => work(file),
            None => Err(Error::UnknownHandle(fh)),
        }
    }

    fn with_writable<T>(
        &self,
        fh: Fh,
        work: impl FnOnce(&FileHandleState) -> Result<T>,
    ) -> Result<T> {
        self.with_file(fh, |file| {
            self.writable()?;
            if file.writable {
                work(file)
            } else {
                Err(Error::UnknownHandle(fh))
            }
        })
    }
}

/// Opens a file of the upper that has all its data.
fn open_upper(place: &Place, writes: bool) -> Result<std::fs::File> {
    if marks::data(place)? != Data::Here {
        tracing::error!(?place, "its data should be in the image, and are not");
        return Err(Errno::IO.into());
    }
    open_for_all(place, writes)
}

/// Opens for reading and writing, so that all handles can share the file. One that can't be written
/// (immutable, a swap file) is opened for reading alone, if that is all that is asked.
fn open_for_all(place: &Place, writes: bool) -> Result<std::fs::File> {
    match place.open_file(OFlags::RDWR) {
        Err(Errno::PERM | Errno::ACCESS | Errno::TXTBSY | Errno::ROFS) if !writes => {
            Ok(place.open_file(OFlags::RDONLY)?)
        }
        other => Ok(other?),
    }
}

fn is_writable(backing: &Backing) -> Result<bool> {
    Ok(writes(rustix::fs::fcntl_getfl(&backing.file)?))
}

/// Makes the name of an upper file durable, once.
fn sync_name(node: &Node, backing: &Backing) -> Result<()> {
    if !node.state.lock().name_synced {
        change::fsync(&backing.file)?;
        node.state.lock().name_synced = true;
    }
    Ok(())
}

/// Clears setuid and setgid before a change by a caller without privilege: the system call is
/// ours, and root's would keep them.
fn written_by(caller: Caller, file: &FileHandleState) -> Result<()> {
    if caller.uid == 0 {
        return Ok(());
    }
    clear_set_id(&place_of_file(&file.backing.file)?)
}

/// Whether open flags ask for writing.
pub(super) fn writes(flags: OFlags) -> bool {
    let mode = flags & OFlags::RWMODE;
    mode == OFlags::WRONLY || mode == OFlags::RDWR
}
