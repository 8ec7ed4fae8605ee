//! What each thread of a session is doing, for whoever wants to know whether one is stuck.
//!
//! Threads are few and each serves one session alone, so that one that does not come back is felt: with the
//! last of them the mount hangs. A request notes when it begins and that it is over, in memory of its thread.

use std::cell::RefCell;
use std::fs;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use fuser::INodeNo;
use parking_lot::Mutex;

use super::requests::Operation;
use crate::types::NodeId;

/// A request that a thread has been answering for long.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stuck {
    /// The thread's number, as in `/proc/PID/task`.
    pub thread: i32,
    /// What it was asked for.
    pub operation: Operation,
    /// The node that this is about, mostly by its inode number; of a change of names, the directory.
    pub node: NodeId,
    /// For how long.
    pub time: Duration,
    /// Where it waits in the kernel (`/proc/PID/task/TID/wchan`).
    pub waits_in: String,
    /// Whether it waits for another thread of this process, and not for a disk or a network.
    pub waits_for_thread: bool,
}

/// The threads of one session.
#[derive(Debug, Default)]
pub(super) struct Workers(Mutex<Vec<Weak<Worker>>>);

#[derive(Debug)]
struct Worker {
    thread: i32,
    /// When its request began: milliseconds since [`START`], and one; 0: it has none.
    since: AtomicU64,
    operation: AtomicUsize,
    node: AtomicU64,
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

thread_local! {
    /// This thread, and the session that it belongs to (its address, to compare).
    static OWN: RefCell<Option<(usize, Arc<Worker>)>> = const { RefCell::new(None) };
}

impl Workers {
    /// Notes that this thread is one of the session's.
    pub(super) fn enter(&self) {
        let session = std::ptr::from_ref(self).addr();
        OWN.with_borrow_mut(|own| {
            if own.as_ref().is_some_and(|(of, _)| *of == session) {
                return;
            }
            let worker = Arc::new(Worker {
                thread: rustix::thread::gettid().as_raw_pid(),
                since: AtomicU64::new(0),
                operation: AtomicUsize::new(0),
                node: AtomicU64::new(0),
            });
            let mut all = self.0.lock();
            all.retain(|worker| worker.strong_count() > 0);
            all.push(Arc::downgrade(&worker));
            *own = Some((session, worker));
        });
    }

    /// Those that have been at one request for at least so long.
    pub(super) fn stuck(&self, limit: Duration) -> Vec<Stuck> {
        let all: Vec<_> = self.0.lock().iter().filter_map(Weak::upgrade).collect();
        all.iter()
            .filter_map(|worker| worker.stuck(limit))
            .collect()
    }
}

impl Worker {
    fn stuck(&self, limit: Duration) -> Option<Stuck> {
        let since = self.since.load(Ordering::Acquire).checked_sub(1)?;
        let time = Duration::from_millis(now().saturating_sub(since));
        let operation = Operation::ALL.get(self.operation.load(Ordering::Relaxed))?;
        let node = NodeId(self.node.load(Ordering::Relaxed));
        if time < limit {
            return None;
        }
        let about = |what: &str| {
            let text = fs::read_to_string(format!("/proc/self/task/{}/{what}", self.thread));
            text.unwrap_or_default()
        };
        // The first word is the number of the system call.
        let call = about("syscall");
        let call = call
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok());
        Some(Stuck {
            thread: self.thread,
            operation: *operation,
            node,
            time,
            waits_in: about("wchan"),
            waits_for_thread: call == Some(libc::SYS_futex),
        })
    }
}

/// Does the work of a request, which is noted meanwhile if this thread is one of a session.
pub(super) fn busy<T>(operation: Operation, ino: INodeNo, work: impl FnOnce() -> T) -> T {
    OWN.with_borrow(|own| {
        let Some((_, worker)) = own else {
            return work();
        };
        (worker.operation).store(operation as usize, Ordering::Relaxed);
        worker.node.store(ino.0, Ordering::Relaxed);
        worker.since.store(now() + 1, Ordering::Release);
        let done = work();
        worker.since.store(0, Ordering::Release);
        done
    })
}

fn now() -> u64 {
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_that_waits_for_another_is_named_until_it_goes_on() {
        let (workers, lock) = (Arc::new(Workers::default()), Arc::new(Mutex::new(())));
        let held = lock.lock();
        let (theirs, wanted) = (Arc::clone(&workers), Arc::clone(&lock));
        let thread = thread::spawn(move || {
            theirs.enter();
            theirs.enter();
            busy(Operation::Rename, INodeNo(77), || drop(wanted.lock()));
            theirs.stuck(Duration::ZERO)
        });
        let stuck = loop {
            let stuck = workers.stuck(Duration::ZERO);
            if stuck.first().is_some_and(|stuck| stuck.waits_for_thread) {
                break stuck;
            }
            thread::yield_now();
        };
        let [one] = &stuck[..] else {
            panic!("{stuck:?}");
        };
        assert_eq!((one.operation, one.node), (Operation::Rename, NodeId(77)));
        assert!(workers.stuck(Duration::from_hours(1)).is_empty());
        drop(held);
        assert_eq!(thread.join().unwrap(), [], "it has gone on");
        assert!(workers.stuck(Duration::ZERO).is_empty(), "it is gone");
    }

    #[test]
    fn a_thread_of_no_session_does_its_work_all_the_same() {
        assert_eq!(busy(Operation::Open, INodeNo(1), || 5), 5);
    }
}
