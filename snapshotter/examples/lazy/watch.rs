//! The bytes that come through a proxy, over time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::harness::Proxy;

const STEP: Duration = Duration::from_millis(20);

/// When so many bytes had come, from a beginning on: each change, and what was before it.
pub(crate) type Samples = Vec<(Duration, u64)>;

/// Looks at a proxy's counter every 20 ms.
pub(crate) struct Watch {
    begin: Instant,
    before: u64,
    counter: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Samples>,
}

impl Watch {
    /// Begins to.
    pub(crate) fn begin(proxy: &Proxy) -> Watch {
        let (begin, before, counter) = (Instant::now(), proxy.bytes(), proxy.counter());
        let is_over = Arc::new(AtomicBool::new(false));
        let (watched, ends) = (Arc::clone(&counter), Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            let mut last = (Duration::ZERO, 0);
            let mut samples = vec![last];
            while !ends.load(Ordering::SeqCst) {
                thread::sleep(STEP);
                let (now, bytes) = (begin.elapsed(), watched.load(Ordering::SeqCst) - before);
                if bytes > last.1 {
                    if samples.last().is_some_and(|sample| *sample != last) {
                        samples.push(last);
                    }
                    samples.push((now, bytes));
                }
                last = (now, bytes);
            }
            samples
        });
        Watch {
            begin,
            before,
            counter,
            is_over,
            thread,
        }
    }

    /// When it began.
    pub(crate) fn started(&self) -> Instant {
        self.begin
    }

    /// What has come until now.
    pub(crate) fn bytes(&self) -> u64 {
        self.counter.load(Ordering::SeqCst) - self.before
    }

    /// Goes on until nothing has come for `quiet`, or all of it took `limit`.
    pub(crate) fn until_quiet(self, quiet: Duration, limit: Duration) -> Result<Samples> {
        let (mut bytes, mut last) = (self.bytes(), Instant::now());
        while last.elapsed() < quiet && self.begin.elapsed() < limit {
            thread::sleep(STEP);
            if self.bytes() > bytes {
                (bytes, last) = (self.bytes(), Instant::now());
            }
        }
        self.is_over.store(true, Ordering::SeqCst);
        let samples = self.thread.join();
        samples.map_err(|_| anyhow!("the thread that watches has failed"))
    }
}
