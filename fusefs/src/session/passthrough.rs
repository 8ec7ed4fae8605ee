//! Passthrough: the kernel reads, writes and maps the backing file itself.
//!
//! The kernel wants one backing ID for all opens of an inode, and answers EIO to an open that
//! mixes passthrough with cached I/O. So the decision is made once for each [`Backing`], which
//! all open handles of an inode share, and is kept with it: the ID, or "this one not".

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use fuser::{BackingId, FopenFlags, ReplyCreate, ReplyOpen};
use rustix::io::Errno;

use crate::inode::Backing;
use crate::sys::device::close_backing;
use crate::union::Opened;

/// Whether one mount offers passthrough, and the registration of its backing files.
pub(super) struct Passthrough {
    /// Cleared when the kernel says that this mount will never get it.
    offered: AtomicBool,
    connection: Weak<File>,
}

/// A file that the kernel knows by a number, which it is told to forget when this is dropped.
#[derive(Debug)]
pub(super) struct Registered {
    connection: Weak<File>,
    id: u32,
}

impl Drop for Registered {
    fn drop(&mut self) {
        // With the connection, its numbers have gone.
        if let Some(connection) = self.connection.upgrade()
            && let Err(error) = close_backing(connection.as_fd(), self.id)
        {
            tracing::debug!(id = self.id, %error, "the kernel knows no such backing file");
        }
    }
}

impl Passthrough {
    pub(super) fn new(offered: bool, connection: &Arc<File>) -> Self {
        Self {
            offered: AtomicBool::new(offered),
            connection: Arc::downgrade(connection),
        }
    }

    pub(super) fn is_offered(&self) -> bool {
        self.offered.load(Ordering::Relaxed)
    }

    /// No passthrough for this mount from now on. Files that have it keep it.
    pub(super) fn give_up(&self) {
        self.offered.store(false, Ordering::Relaxed);
    }

    /// The backing ID of a file, made by `register` when the first handle asks; `None` for plain
    /// I/O through us. `decided` is told of a decision that is made now (0: none).
    pub(super) fn id_of(
        &self,
        backing: &Backing,
        register: impl FnOnce(&File) -> io::Result<u32>,
        decided: impl FnOnce(u32),
    ) -> Option<u32> {
        let decide = || {
            let id = self.decide(backing, register);
            decided(id.as_ref().map_or(0, |registered| registered.id));
            Box::new(id) as Box<dyn Any + Send + Sync>
        };
        let attachment = backing.attachment.get_or_init(decide);
        let registered = attachment.downcast_ref::<Option<Registered>>()?.as_ref();
        registered.map(|registered| registered.id)
    }

    /// The same decision, as an earlier process made it (0: none).
    pub(super) fn decided_before(&self, backing: &Backing, id: u32) {
        let registered = (id > 0).then(|| self.registered(id));
        // Nobody has asked for it yet.
        let _ = backing.attachment.set(Box::new(registered));
    }

    fn registered(&self, id: u32) -> Registered {
        Registered {
            connection: Weak::clone(&self.connection),
            id,
        }
    }

    fn decide(
        &self,
        backing: &Backing,
        register: impl FnOnce(&File) -> io::Result<u32>,
    ) -> Option<Registered> {
        if !self.is_offered() || backing.needs_us() {
            return None;
        }
        let id = register(&backing.file);
        if let Err(error) = &id
            && !is_about_the_file(error)
            && self.offered.swap(false, Ordering::Relaxed)
        {
            tracing::info!(%error, "no passthrough for this mount: reads and writes come to us");
        }
        Some(self.registered(id.ok()?))
    }

    /// Registers a file with the kernel.
    pub(super) fn register(&self, file: &File) -> io::Result<u32> {
        let connection = self.connection.upgrade().ok_or(Errno::NOTCONN)?;
        BackingId::create_raw(&*connection, file)
    }
}

/// A reply that can name a backing file.
pub(super) trait NamesBacking {
    /// The backing file as fuser wants it named.
    fn backing(&self, id: u32) -> BackingId;
}

macro_rules! names_backing {
    ($($reply:ty),+) => {
        $(impl NamesBacking for $reply {
            fn backing(&self, id: u32) -> BackingId {
                // SAFETY: the number was registered at this connection, and whoever names it gives the
                // ownership that this claims back (`BackingId::into_raw`), since ours is a `Registered`.
                #[allow(unsafe_code)]
                unsafe {
                    self.wrap_backing(id)
                }
            }
        })+
    };
}

names_backing!(ReplyOpen, ReplyCreate);

/// How a handle on this file is opened: with passthrough, or cached.
///
/// Nothing has to be flushed at close: writes reach the file at once. Without passthrough the
/// cache is kept from open to open, since every change comes through this mount. With it,
/// `FOPEN_KEEP_CACHE` would be EIO; and where writes have to clear setuid, `FOPEN_DIRECT_IO`
/// brings reads and writes to us while the inode stays in passthrough mode (mmap still maps the
/// backing file).
pub(super) fn open_mode(opened: &Opened, id: Option<u32>) -> FopenFlags {
    match id {
        None => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
        Some(_) if opened.writes_need_us => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
        Some(_) => FopenFlags::FOPEN_NOFLUSH,
    }
}

/// The kernel refuses this file (it lies on a stacked file system, it can't be read or written
/// that way), or is short of something now; another file may do.
fn is_about_the_file(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::LOOP
                | Errno::OPNOTSUPP
                | Errno::NOMEM
                | Errno::NOSPC
                | Errno::MFILE
                | Errno::NFILE
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backing() -> Arc<Backing> {
        Backing::new(tempfile::tempfile().unwrap())
    }

    fn passthrough() -> (Passthrough, Arc<File>) {
        let connection = Arc::new(tempfile::tempfile().unwrap());
        (Passthrough::new(true, &connection), connection)
    }

    #[test]
    fn a_refusal_of_one_file_is_kept_for_that_file_only() {
        let ((passthrough, _connection), stacked) = (passthrough(), backing());
        let mut told = Vec::new();
        let refuse = |_: &File| Err(Errno::LOOP.into());
        let id = passthrough.id_of(&stacked, refuse, |id| told.push(id));
        assert!(id.is_none() && passthrough.is_offered());
        // Decided: the kernel is not asked again, all opens agree.
        let again = |_: &File| panic!("asked twice");
        assert!(passthrough.id_of(&stacked, again, |_| panic!()).is_none());
        assert_eq!(told, [0]);
    }

    #[test]
    fn a_refusal_of_the_mount_is_kept_for_the_mount() {
        let (passthrough, _connection) = passthrough();
        let refuse = |_: &File| Err(Errno::PERM.into());
        assert!(passthrough.id_of(&backing(), refuse, drop).is_none());
        let again = |_: &File| panic!("asked again");
        assert!(passthrough.id_of(&backing(), again, drop).is_none());
    }

    #[test]
    fn a_decision_of_an_earlier_process_stands() {
        let (passthrough, _connection) = passthrough();
        let (with, without) = (backing(), backing());
        passthrough.decided_before(&with, 7);
        passthrough.decided_before(&without, 0);
        let ask = |file| passthrough.id_of(file, |_| panic!("asked"), |_| panic!());
        assert_eq!((ask(&with), ask(&without)), (Some(7), None));
    }
}
