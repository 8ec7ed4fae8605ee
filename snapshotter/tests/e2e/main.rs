//! Lamina with a real containerd and real containers, from import to garbage collection.
//!
//! Run it through `scripts/test`, which installs what it needs and gives it a mount namespace of
//! its own; `SNAPSHOTTER=overlayfs` runs the same tests on containerd's own snapshotter.

mod crowd;
mod harness;
mod hostile;
mod kills;
mod lazy;
mod lazy_beside;
mod lazy_convert;
mod lazy_pull;
mod lazy_verify;
mod life;
mod rules;
mod survive;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The tests measure the machine and share its control groups, so they run one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
