//! Deletes what no snapshot refers to: directories of snapshots that are not in the store, and work
//! directories of snapshots that were committed.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::dirs;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::layout::{Entry, Layout};
use crate::store::records::Kind;

/// Deletes orphans and answers what it deleted. `making` holds the numbers of snapshots that are
/// being made right now: their directories exist before the store knows them.
pub(crate) fn run(
    layout: &Layout,
    store: &Store,
    making: &Mutex<HashSet<u64>>,
) -> Result<Vec<PathBuf>> {
    let dir = layout.snapshots();
    // In this order: what is listed was in the making, or in the store, or is an orphan; if it
    // has left the making by the second step, then the third finds it in the store.
    let mut listed = Vec::new();
    for entry in fs::read_dir(&dir).map_err(Error::io("cannot list", &dir))? {
        listed.push(entry.map_err(Error::io("cannot list", &dir))?.file_name());
    }
    let making = making
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let known = store.ids()?;
    let mut committed = Vec::new();
    store.walk(&mut |info| {
        if info.record.kind == Kind::Committed {
            committed.push(info.record.id);
        }
        Ok(())
    })?;
    let mut removed = Vec::new();
    for name in listed {
        let path = dir.join(&name);
        let orphan = match Layout::classify(&name) {
            Entry::Snapshot(id) => !known.contains_key(&id) && !making.contains(&id),
            Entry::Temporary => !making.iter().any(|id| layout.new_snapshot(*id) == path),
            Entry::Foreign => false,
        };
        if !orphan {
            continue;
        }
        if dirs::remove(&path) {
            removed.push(path);
        }
    }
    for id in committed {
        if dirs::discard_work(layout, id) {
            removed.push(layout.work(id));
        }
    }
    Ok(removed)
}
