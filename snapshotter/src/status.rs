//! What a person asks: which snapshots there are, what they take and where they are mounted.
//!
//! A running daemon holds the store alone, so it is asked over its socket. Without one the store
//! is read from the disk, under the root's lock.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::lazy::status::{CacheAction, CacheStatus, LayerStatus, keep_cache_in};
use crate::root::RootLock;
use crate::store::Store;
use crate::store::layout::Layout;
use crate::store::records::{Info, Kind};
use crate::{service, usage};

/// The state of a root directory.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// All snapshots, in the order of their keys.
    pub snapshots: Vec<SnapshotStatus>,
}

/// One snapshot.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct SnapshotStatus {
    /// Its key or name.
    pub key: String,
    /// Its number, which names its directories.
    pub id: u64,
    /// `active`, `view` or `committed`.
    pub kind: String,
    /// Key of its parent.
    pub parent: Option<String>,
    /// Bytes on the disk, without its parents'.
    pub size_bytes: u64,
    /// Inodes, without its parents'.
    pub inodes: u64,
    /// Who holds the upper of an active snapshot: `union` or `kernel`.
    pub upper: Option<String>,
    /// Where its union, or the image below its upper, is mounted now.
    pub mount: Option<PathBuf>,
    /// Whether that union's image is known from an index; `None` where nothing is mounted, or no
    /// daemon tells.
    pub indexed: Option<bool>,
    /// When it was made or committed, in RFC 3339.
    pub created: String,
}

impl SnapshotStatus {
    /// What the store alone knows of it.
    pub(crate) fn of(info: &Info) -> SnapshotStatus {
        SnapshotStatus {
            key: info.key.clone(),
            id: info.record.id,
            kind: info.record.kind.to_string(),
            parent: info.record.parent.clone(),
            size_bytes: info.record.usage.size,
            inodes: info.record.usage.inodes,
            upper: (info.record.kind == Kind::Active).then(|| info.record.upper.to_string()),
            mount: None,
            indexed: None,
            created: info.record.created.to_string(),
        }
    }
}

/// Collects the state of a root directory: from the daemon if one answers on `address`, else from
/// the disk.
pub async fn collect(root: &Path, address: &Path) -> Result<Status> {
    if UnixStream::connect(address).is_ok() {
        return Ok(Status {
            snapshots: service::fetch_status(address).await?,
        });
    }
    let root = root.to_owned();
    let read = tokio::task::spawn_blocking(move || from_disk(&root));
    read.await
        .map_err(|error| Error::Broken(error.to_string()))?
}

/// The layers that were not unpacked, by the daemon that answers on `address`.
pub async fn layers(address: &Path) -> Result<Vec<LayerStatus>> {
    service::fetch_layers(address).await
}

/// Does something about the cache of a root directory: by the daemon if one answers on `address`, else
/// here.
pub async fn keep_cache(root: &Path, address: &Path, action: CacheAction) -> Result<CacheStatus> {
    if UnixStream::connect(address).is_ok() {
        return service::keep_cache(address, action).await;
    }
    let root = root.to_owned();
    let kept = tokio::task::spawn_blocking(move || {
        let layout = Layout::of(&root)?;
        let _lock = RootLock::acquire(&layout)?;
        keep_cache_in(&layout.cache(), action).map_err(|source| Error::Cache {
            path: layout.cache(),
            source,
        })
    });
    kept.await
        .map_err(|error| Error::Broken(error.to_string()))?
}

/// Whether a daemon answers on `address` within `patience`. (A connection says nothing: the socket may have
/// been kept while there is none.)
pub async fn answers(address: &Path, patience: Duration) -> bool {
    let asked = tokio::time::timeout(patience, service::fetch_layers(address)).await;
    matches!(asked, Ok(Ok(_)))
}

fn from_disk(root: &Path) -> Result<Status> {
    let layout = Layout::of(root)?;
    let _lock = RootLock::acquire(&layout)?;
    let mut snapshots = Vec::new();
    for info in Store::dump(&layout)?.snapshots {
        let mut status = SnapshotStatus::of(&info);
        if info.record.kind == Kind::Active {
            let usage = usage::measure(&layout.fs(info.record.id))?;
            status.size_bytes = usage.size;
            status.inodes = usage.inodes;
        }
        snapshots.push(status);
    }
    Ok(Status { snapshots })
}
