//! Mounts that outlive the process that serves them.
//!
//! Somebody else, a [`Keeper`], holds the descriptor of the connection, so that the kernel does not end it
//! when this process dies; requests wait. It also holds the union's record ([`crate::record`]). The next
//! process puts back what the union knew, skips the handshake (`handshake`), asks for what its predecessor
//! had read and not answered, and goes on.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::handshake::{self, Agreement};
use super::passthrough::Passthrough;
use super::{Mount, Mounted, Session, SessionOptions, failed};
use crate::error::{Error, Result};
use crate::record::{self, Flaw, Pins, Record};
use crate::sys::device::close_backing;
use crate::types::NodeId;
use crate::union::Union;

/// Numbers of backing files that the predecessor may have got and not written down: one for each request
/// that it was answering.
const UNKNOWN_BACKINGS: u32 = 64;

/// When nodes are swept. What the kernel had to say of them when the predecessor died, it has said by then.
const SWEEP_AFTER: Duration = Duration::from_secs(5);

/// Holds what outlives this process, of one mount.
pub trait Keeper: Pins {
    /// Holds the connection and the record. When this returns, they outlive the process.
    fn keep(&self, device: OwnedFd, record: OwnedFd);
    /// The mount is gone: nothing of it is needed any more.
    fn release(&self);
}

/// What was held of a mount.
#[derive(Debug)]
pub struct Kept {
    /// The connection.
    pub device: OwnedFd,
    /// The record.
    pub record: OwnedFd,
    /// Files without a name, by the number of their node.
    pub pins: HashMap<NodeId, Arc<OwnedFd>>,
}

impl Kept {
    /// How much there is to put back, in no unit: it grows with what the container has in use.
    pub fn amount(&self) -> u64 {
        record::amount_in(&self.record)
    }

    /// The version of the record, if it is of a newer Lamina: this one can't take the mount over.
    pub fn newer_version(&self) -> Option<u64> {
        record::version_of(&self.record).filter(|version| *version > record::VERSION)
    }
}

/// What a process found that took a mount over.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Restored {
    /// Inodes that the kernel knows.
    pub nodes: usize,
    /// Open files.
    pub handles: usize,
    /// Inodes and open files that are not on the disk any more: who uses them gets ESTALE.
    pub lost: usize,
}

/// What one process tells the next of a mount, beside the entries of the record.
#[derive(Debug, Deserialize, Serialize)]
struct About {
    /// The version of Lamina that mounted it.
    version: String,
    agreement: Agreement,
    /// As in [`SessionOptions`]: the kernel remembers it for as long as the mount lives.
    no_open: bool,
    mounted: Mounted,
}

impl Session {
    /// Mounts as [`Session::mount`] does, and has `keeper` hold what another process needs to take the
    /// mount over. A kernel before Linux 6.9 can't: then the mount ends with this process.
    pub fn mount_kept(
        union: Union,
        mountpoint: &Path,
        options: &SessionOptions,
        keeper: Arc<dyn Keeper>,
    ) -> Result<Session> {
        let pins: Arc<dyn Pins> = keeper.clone();
        let record = Record::create(pins)
            .map_err(|source| failed("cannot make the record of", mountpoint, source))?;
        let union = Arc::new(union.recorded(Arc::new(record)));
        let (mount, device) = Mount::connect(mountpoint, options)?;
        let begun = Session::begin(&union, &device, mountpoint, options, None)?;
        mount.set_read_ahead();
        let agreement = begun.agreement.clone();
        if agreement.has_resend() {
            let about = About {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                agreement,
                no_open: options.no_open(),
                mounted: mount.mounted,
            };
            hold(&union, &about, &device, &*keeper)
                .map_err(|source| failed("cannot keep", mountpoint, source))?;
        } else {
            if let Some(record) = union.record() {
                record.stop();
            }
            tracing::info!(
                path = %mountpoint.display(),
                "this kernel does not send requests again (Linux 6.9): the mount ends with this process"
            );
        }
        begun.serve(mount, union, Some(keeper))
    }

    /// Serves a mount that an earlier process served, which has ended. `union` is of the same image and
    /// upper. The mount point must be the mount's still. After an error nothing is mounted there; the
    /// caller lets go of what was kept.
    pub fn take_over(
        union: Union,
        kept: Kept,
        mountpoint: &Path,
        options: &SessionOptions,
        keeper: Arc<dyn Keeper>,
    ) -> Result<(Session, Restored)> {
        let unfit = |flaw| Error::Record {
            path: mountpoint.to_owned(),
            flaw,
        };
        let device = Arc::new(File::from(kept.device));
        let pins: Arc<dyn Pins> = keeper.clone();
        let (record, about, state) = Record::open(kept.record.into(), pins).map_err(unfit)?;
        let about: About = serde_json::from_slice(&about).map_err(|_| unfit(Flaw::Corrupt))?;
        let mount = Mount::of(mountpoint, about.mounted)
            .map_err(|source| failed("cannot look at", mountpoint, source))?
            .ok_or_else(|| unfit(Flaw::OtherMount))?;
        let attached = state.numbers.attached;
        let union = union.recorded(Arc::new(record));
        let passthrough = Passthrough::new(true, &device);
        let attach = |backing: &_, id| passthrough.decided_before(backing, id);
        let revived = union.revive(state, kept.pins, &attach);

        let union = Arc::new(union);
        let options = SessionOptions {
            no_open: about.no_open,
            read_only: options.read_only || about.no_open,
            ..options.clone()
        };
        let agreed = Some(&about.agreement);
        let begun = Session::begin(&union, &device, mountpoint, &options, agreed)?;
        let unknown = attached + 1..=attached + UNKNOWN_BACKINGS;
        for id in revived.detached.iter().copied().chain(unknown) {
            // Most are not registered, or not any more.
            let _ = close_backing(device.as_fd(), id);
        }
        handshake::ask_again(&device)
            .map_err(|source| failed("cannot ask for requests again on", mountpoint, source))?;
        sweep_later(&union, &device);
        let restored = Restored {
            nodes: revived.nodes,
            handles: revived.handles,
            lost: revived.lost,
        };
        if about.version != env!("CARGO_PKG_VERSION") {
            tracing::info!(path = %mountpoint.display(), from = about.version, "took over from another version");
        }
        Ok((begun.serve(mount, union, Some(keeper))?, restored))
    }

    /// Leaves the mount to the next process. It is served until this one ends.
    pub fn leave(mut self) {
        self.mount.stays = true;
    }
}

/// Some time from now, forgets the nodes that the kernel does not know any more: it has said so, but
/// the predecessor died before it wrote that down.
fn sweep_later(union: &Arc<Union>, device: &Arc<File>) {
    let nodes = union.references();
    if nodes.is_empty() {
        return;
    }
    let (union, device) = (Arc::downgrade(union), Arc::downgrade(device));
    let sweep = move || {
        thread::sleep(SWEEP_AFTER);
        let mut forgotten = 0;
        for (id, count) in nodes {
            let (Some(union), Some(device)) = (union.upgrade(), device.upgrade()) else {
                return;
            };
            if handshake::knows(&device, id.0).is_ok_and(|known| !known) {
                forgotten += usize::from(union.forget_all(id, count));
            }
        }
        tracing::debug!(forgotten, "nodes that the kernel no longer knew");
    };
    let started = thread::Builder::new()
        .name("lamina-sweep".to_owned())
        .spawn(sweep);
    if let Err(error) = started {
        tracing::warn!(%error, "nodes that nobody knows stay until the mount ends");
    }
}

/// Completes the record, and gives everything into the keeper's hands.
fn hold(union: &Union, about: &About, device: &File, keeper: &dyn Keeper) -> std::io::Result<()> {
    let Some(record) = union.record() else {
        return Ok(());
    };
    record.complete(&serde_json::to_vec(about)?)?;
    keeper.keep(device.try_clone()?.into(), record.keeper()?);
    Ok(())
}

impl Mount {
    /// The mount at a mount point, if it is that one.
    fn of(point: &Path, mounted: Mounted) -> std::io::Result<Option<Mount>> {
        let is_it = super::mounted_at(point)? == mounted;
        Ok(is_it.then(|| Mount {
            point: point.to_owned(),
            mounted,
            stays: false,
        }))
    }
}
