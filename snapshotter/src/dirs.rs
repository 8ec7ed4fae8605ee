//! The directories of one snapshot: made beside their place and renamed into it, renamed away and
//! then deleted, so that at any moment a directory with a number is whole.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use lamina_fusefs::types::Attr;

use crate::error::{Error, Result};
use crate::lazy::LazyError;
use crate::store::layout::{Layout, PRIVATE};
use crate::store::records::Kind;
use crate::trees;

/// The mode of a root directory that has no parent to take it from.
const ROOT_MODE: u32 = 0o755;

/// Makes the directories of a new snapshot, durably. The root directory has the owner and the
/// mode of the parent's. A failure leaves nothing behind.
pub(crate) fn make(layout: &Layout, id: u64, kind: Kind, parent: Option<u64>) -> Result<()> {
    let made = fill(layout, id, kind, parent).and_then(|()| {
        let (new, place) = (layout.new_snapshot(id), layout.snapshot(id));
        fs::rename(&new, &place).map_err(Error::io("cannot rename", &new))?;
        sync(&layout.snapshots())
    });
    if made.is_err() {
        for leftover in [layout.new_snapshot(id), layout.snapshot(id)] {
            remove(&leftover);
        }
    }
    made
}

fn fill(layout: &Layout, id: u64, kind: Kind, parent: Option<u64>) -> Result<()> {
    let new = layout.new_snapshot(id);
    let (fs_dir, work) = (new.join("fs"), new.join("work"));
    create(&new)?;
    create(&fs_dir)?;
    let mut mode = ROOT_MODE;
    if let Some(parent) = parent {
        let from = layout.fs(parent);
        let parent = fs::symlink_metadata(&from).map_err(Error::io("cannot read", &from))?;
        mode = parent.mode() & 0o7777;
        lchown(&fs_dir, Some(parent.uid()), Some(parent.gid()))
            .map_err(Error::io("cannot set the owner of", &fs_dir))?;
    }
    // After the owner: chown clears set-user-ID and set-group-ID.
    fs::set_permissions(&fs_dir, Permissions::from_mode(mode))
        .map_err(Error::io("cannot set the mode of", &fs_dir))?;
    if kind == Kind::Active {
        create(&work)?;
    }
    sync(&fs_dir)?;
    sync(&new)
}

/// Makes the directories of a layer that is not unpacked, durably: `fill` writes what is needed to
/// serve it, and answers the attributes of its root. A failure leaves nothing behind.
pub(crate) fn make_lazy(
    layout: &Layout,
    id: u64,
    fill: impl FnOnce(&Path) -> Result<Attr, LazyError>,
) -> Result<()> {
    let new = layout.new_snapshot(id);
    let make = || -> Result<()> {
        create(&new)?;
        let root = fill(&new).map_err(|source| Error::Lazy {
            source: Box::new(source),
        })?;
        let fs_dir = new.join("fs");
        create(&fs_dir)?;
        lchown(&fs_dir, Some(root.uid), Some(root.gid))
            .map_err(Error::io("cannot set the owner of", &fs_dir))?;
        fs::set_permissions(&fs_dir, Permissions::from_mode(root.perm.into()))
            .map_err(Error::io("cannot set the mode of", &fs_dir))?;
        sync(&fs_dir)?;
        sync(&new)?;
        fs::rename(&new, layout.snapshot(id)).map_err(Error::io("cannot rename", &new))?;
        sync(&layout.snapshots())
    };
    let made = make();
    if made.is_err() {
        for leftover in [new, layout.snapshot(id)] {
            remove(&leftover);
        }
    }
    made
}

fn create(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .mode(PRIVATE)
        .create(dir)
        .map_err(Error::io("cannot create", dir))
}

fn sync(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("cannot sync", dir))
}

/// Fails if nothing can be changed in the directory of the snapshots: it is read-only, or its disk is
/// broken or full. It makes what a crash would leave of a snapshot that is being made.
pub(crate) fn can_change(layout: &Layout, id: u64) -> Result<()> {
    let probe = layout.new_snapshot(id);
    // One that could not be removed the last time.
    remove(&probe);
    create(&probe)?;
    let synced = sync(&probe);
    remove(&probe);
    synced
}

/// Whether a union ever had the upper of an active snapshot, so that it may need sealing: it made
/// its link index then.
pub(crate) fn was_served(layout: &Layout, id: u64) -> Result<bool> {
    let index = layout.work(id).join("index");
    index
        .try_exists()
        .map_err(Error::io("cannot look for the link index", &index))
}

/// Deletes the work directory of a snapshot that was committed: a layer has no use for it. What a
/// crash or an error leaves is deleted by the next cleanup, or the next start.
pub(crate) fn discard_work(layout: &Layout, id: u64) -> bool {
    remove(&layout.work(id))
}

/// Deletes the directories of a snapshot that the store does not know (any more). What can't be
/// deleted now is deleted by the next cleanup, or the next start.
pub(crate) fn discard(layout: &Layout, id: u64) {
    let (place, trash) = (layout.snapshot(id), layout.trash(id));
    match fs::rename(&place, &trash) {
        Ok(()) => {
            remove(&trash);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %place.display(), %error, "cannot move a directory away");
        }
    }
}

/// Deletes a tree; says whether it was there and is gone.
pub(crate) fn remove(tree: &Path) -> bool {
    match trees::remove(tree) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            tracing::warn!(path = %tree.display(), %error, "cannot remove a directory yet");
            false
        }
    }
}
