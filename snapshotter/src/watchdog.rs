//! systemd's watchdog: the daemon says that it is alive, and is killed when it no longer does.
//!
//! A daemon that hangs is worse than one that died: nobody starts another one. So it says that it is
//! alive only if its parts are, which a probe finds out each time. Whoever asks nothing of its own parts
//! would say so with all of them stuck.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use sd_notify::NotifyState;

/// Says that the daemon is alive until it is dropped.
#[derive(Debug)]
pub struct Watchdog {
    _stop: Sender<()>,
}

impl Watchdog {
    /// Tells systemd that the daemon is alive, twice in each interval, if `probe` says so. A probe that
    /// does not return says no. `None`: systemd does not want to know (`WatchdogSec=`).
    pub fn start(probe: impl Fn() -> bool + Send + 'static) -> io::Result<Option<Watchdog>> {
        let Some(interval) = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero())
        else {
            return Ok(None);
        };
        let tell = || {
            if let Err(error) = sd_notify::notify(&[NotifyState::Watchdog]) {
                tracing::warn!(%error, "cannot notify systemd's watchdog");
            }
        };
        Self::every(interval / 2, probe, tell).map(Some)
    }

    fn every(
        pause: Duration,
        probe: impl Fn() -> bool + Send + 'static,
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
                    tracing::error!("a part of the daemon does not answer; systemd will kill it");
                }
                was_alive = is_alive;
            }
        })?;
        Ok(Watchdog { _stop: stop })
    }
}

/// Whether a runtime runs what it is given, within `patience`: one that does not serves no call.
pub fn is_running(runtime: &tokio::runtime::Handle, patience: Duration) -> bool {
    let (done, is_done) = mpsc::channel();
    runtime.spawn(async move {
        // Fails if nobody waits any more.
        let _ = done.send(());
    });
    is_done.recv_timeout(patience).is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

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
    fn nobody_is_told_where_nobody_asks() {
        // The tests are no service of systemd.
        let dog = Watchdog::start(|| true).expect("no error");
        assert!(dog.is_none());
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
}
