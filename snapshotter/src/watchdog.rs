//! Is the daemon alive? Who hangs is named in the log, and systemd's watchdog is told as long as all is well.
//!
//! A daemon that hangs is worse than one that died: nobody starts another one. So it says that it is
//! alive only if its parts are, which a probe finds out each time. Whoever asks nothing of its own parts
//! would say so with all of them stuck.
//!
//! A request that has been answered for a minute is named. That alone is no reason to end the daemon: a
//! disk that hangs is not cured by that, and a large file may take its time to be copied. Threads that wait for
//! each other are one.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use lamina_fusefs::session::Stuck;
use sd_notify::NotifyState;

use crate::snapshots::Snapshots;

/// How often the probe looks, if systemd does not ask for more.
const LOOK: Duration = Duration::from_secs(10);

/// How long the runtime may take to run something before it counts as stuck.
const ANSWER: Duration = Duration::from_secs(10);

/// A request that is answered for so long is stuck.
const STUCK: Duration = Duration::from_mins(1);

/// Looks after the daemon until it is dropped.
#[derive(Debug)]
pub struct Watchdog {
    _stop: Sender<()>,
}

impl Watchdog {
    /// Tells systemd that the daemon is alive, if it wants to know (`WatchdogSec=`): at least twice in each
    /// interval, if `probe` says so. A probe that does not return says no.
    pub fn start(probe: impl FnMut() -> bool + Send + 'static) -> io::Result<Watchdog> {
        let interval = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero());
        let pause = interval.map_or(LOOK, |interval| LOOK.min(interval / 2));
        Self::every(pause, probe, move || {
            if interval.is_some()
                && let Err(error) = sd_notify::notify(&[NotifyState::Watchdog])
            {
                tracing::warn!(%error, "cannot notify systemd's watchdog");
            }
        })
    }

    fn every(
        pause: Duration,
        mut probe: impl FnMut() -> bool + Send + 'static,
        tell: impl Fn() + Send + 'static,
    ) -> io::Result<Watchdog> {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new().name("lamina-watchdog".to_owned());
        thread.spawn(move || {
            let mut was_alive = true;
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let is_alive = probe();
                if is_alive {
                    tell();
                } else if was_alive {
                    tracing::error!(
                        "a part of the daemon does not answer; its watchdog is not told any more"
                    );
                }
                was_alive = is_alive;
            }
        })?;
        Ok(Watchdog { _stop: stop })
    }
}

/// The probe of a daemon that serves on this runtime.
pub fn probe(
    snapshots: &Arc<Snapshots>,
    runtime: tokio::runtime::Handle,
) -> impl FnMut() -> bool + Send + use<> {
    let snapshots = Arc::downgrade(snapshots);
    let mut named = Named::default();
    move || {
        let stuck = Weak::upgrade(&snapshots).map(|snapshots| snapshots.stuck(STUCK));
        let is_deadlock = named.look(&stuck.unwrap_or_default());
        !is_deadlock && is_running(&runtime, ANSWER)
    }
}

/// Whether a runtime runs what it is given, within `patience`: one that does not serves no call.
fn is_running(runtime: &tokio::runtime::Handle, patience: Duration) -> bool {
    let (done, is_done) = mpsc::channel();
    runtime.spawn(async move {
        // Fails if nobody waits any more.
        let _ = done.send(());
    });
    is_done.recv_timeout(patience).is_ok()
}

/// The threads that are in the log already.
#[derive(Default)]
struct Named(HashSet<i32>);

impl Named {
    /// Names those that are new, and says whether threads of a mount wait for each other: all of them that
    /// are stuck wait for another thread. (If one of them waits for a disk, the others may wait for it.)
    fn look(&mut self, stuck: &[(PathBuf, Stuck)]) -> bool {
        let threads: HashSet<_> = stuck.iter().map(|(_, stuck)| stuck.thread).collect();
        for (mount, stuck) in stuck {
            if !self.0.contains(&stuck.thread) {
                tracing::error!(
                    mount = %mount.display(),
                    thread = stuck.thread,
                    operation = stuck.operation.name(),
                    node = stuck.node.0,
                    seconds = stuck.time.as_secs(),
                    waits_in = stuck.waits_in,
                    "a worker is stuck in a request: who made it waits, and others of its container may too"
                );
            }
        }
        for thread in self.0.difference(&threads) {
            tracing::info!(thread, "a worker that was stuck goes on");
        }
        self.0 = threads;
        let waits_for_more = |mount: &PathBuf| {
            let of_mount = stuck.iter().filter(|(other, _)| other == mount);
            of_mount.clone().any(|(_, stuck)| !stuck.waits_for_thread)
        };
        stuck.iter().any(|(mount, _)| !waits_for_more(mount))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use lamina_fusefs::session::Operation;
    use lamina_fusefs::types::NodeId;

    use super::*;

    #[test]
    fn systemd_is_told_as_long_as_the_probe_says_so() {
        let alive = Arc::new(AtomicBool::new(true));
        let (tell, told) = mpsc::channel();
        let probe = Arc::clone(&alive);
        let dog = Watchdog::every(
            Duration::from_millis(10),
            move || probe.load(Ordering::SeqCst),
            move || tell.send(()).expect("the test listens"),
        );
        let dog = dog.expect("a thread");
        for _ in 0..3 {
            told.recv_timeout(Duration::from_secs(10)).expect("alive");
        }
        alive.store(false, Ordering::SeqCst);
        // One may have been on its way.
        let _ = told.recv_timeout(Duration::from_millis(100));
        let silence = told.recv_timeout(Duration::from_millis(200));
        assert_eq!(silence, Err(RecvTimeoutError::Timeout));
        alive.store(true, Ordering::SeqCst);
        told.recv_timeout(Duration::from_secs(10))
            .expect("alive again");
        drop(dog);
        let begin = Instant::now();
        while told.recv_timeout(Duration::from_secs(10)).is_ok() {
            assert!(begin.elapsed() < Duration::from_secs(10), "it goes on");
        }
    }

    #[test]
    fn a_runtime_that_is_stuck_does_not_run() {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).build().expect("a runtime");
        assert!(is_running(runtime.handle(), Duration::from_secs(10)));
        let (go_on, wait) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        runtime.spawn(async move {
            begun.send(()).expect("the test listens");
            let _ = wait.recv();
        });
        has_begun.recv().expect("it is stuck");
        assert!(!is_running(runtime.handle(), Duration::from_millis(200)));
        drop(go_on);
        assert!(is_running(runtime.handle(), Duration::from_secs(10)));
    }

    #[test]
    fn threads_that_wait_for_each_other_are_a_deadlock_and_those_that_wait_for_a_disk_are_none() {
        let stuck = |mount: &str, thread: i32, waits_for_thread: bool| {
            let stuck = Stuck {
                thread,
                operation: Operation::Rename,
                node: NodeId(77),
                time: STUCK,
                waits_in: "somewhere".to_owned(),
                waits_for_thread,
            };
            (PathBuf::from(mount), stuck)
        };
        let mut named = Named::default();
        assert!(!named.look(&[]));
        let disk = stuck("/a", 1, false);
        assert!(!named.look(&[disk.clone(), stuck("/a", 2, true)]));
        assert_eq!(named.0, HashSet::from([1, 2]));
        assert!(named.look(&[disk, stuck("/b", 3, true)]));
        assert!(named.look(&[stuck("/b", 3, true), stuck("/b", 4, true)]));
        assert!(!named.look(&[]));
        assert!(named.0.is_empty());
    }
}
