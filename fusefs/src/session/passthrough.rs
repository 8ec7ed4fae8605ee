//! Passthrough: the kernel reads, writes and maps the backing file itself.
//!
//! The kernel wants one backing ID for all opens of an inode, and answers EIO to an open that
//! mixes passthrough with cached I/O. So the decision is made once for each [`Backing`], which
//! all open handles of an inode share, and is kept with it: the ID, or "this one not".

use std::any::Any;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{BackingId, FopenFlags};
use rustix::io::Errno;

use crate::inode::Backing;
use crate::union::Opened;

/// Whether one mount offers passthrough, and the registration of its backing files.
pub(super) struct Passthrough {
    /// Cleared when the kernel says that this mount will never get it.
    offered: AtomicBool,
}

impl Passthrough {
    pub(super) fn new(offered: bool) -> Self {
        Self {
            offered: AtomicBool::new(offered),
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
    /// I/O through us.
    pub(super) fn id_of<'b>(
        &self,
        backing: &'b Backing,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Option<&'b BackingId> {
        backing
            .attachment
            .get_or_init(|| self.decide(backing, register))
            .downcast_ref::<Option<BackingId>>()?
            .as_ref()
    }

    fn decide(
        &self,
        backing: &Backing,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Box<dyn Any + Send + Sync> {
        if !self.is_offered() || backing.needs_us() {
            return Box::new(None::<BackingId>);
        }
        let id = register(&backing.file);
        if let Err(error) = &id
            && !is_about_the_file(error)
            && self.offered.swap(false, Ordering::Relaxed)
        {
            tracing::info!(%error, "no passthrough for this mount: reads and writes come to us");
        }
        Box::new(id.ok())
    }
}

/// How a handle on this file is opened: with passthrough, or cached.
///
/// Nothing has to be flushed at close: writes reach the file at once. Without passthrough the
/// cache is kept from open to open, since every change comes through this mount. With it,
/// `FOPEN_KEEP_CACHE` would be EIO; and where writes have to clear setuid, `FOPEN_DIRECT_IO`
/// brings reads and writes to us while the inode stays in passthrough mode (mmap still maps the
/// backing file).
pub(super) fn open_mode(opened: &Opened, id: Option<&BackingId>) -> FopenFlags {
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
    use std::sync::Arc;

    use super::*;

    fn backing() -> Arc<Backing> {
        Backing::new(tempfile::tempfile().unwrap())
    }

    #[test]
    fn a_refusal_of_one_file_is_kept_for_that_file_only() {
        let (passthrough, stacked) = (Passthrough::new(true), backing());
        assert!(
            passthrough
                .id_of(&stacked, |_| Err(Errno::LOOP.into()))
                .is_none()
        );
        assert!(passthrough.is_offered());
        // Decided: the kernel is not asked again, all opens agree.
        assert!(
            passthrough
                .id_of(&stacked, |_| panic!("asked twice"))
                .is_none()
        );
    }

    #[test]
    fn a_refusal_of_the_mount_is_kept_for_the_mount() {
        let passthrough = Passthrough::new(true);
        assert!(
            passthrough
                .id_of(&backing(), |_| Err(Errno::PERM.into()))
                .is_none()
        );
        assert!(
            passthrough
                .id_of(&backing(), |_| panic!("asked again"))
                .is_none()
        );
    }
}
