//! Requests that wait for bytes of an image that are not on this host.
//!
//! The bytes may take seconds, or never come. The few threads of a session are needed by every
//! program of the container, so none of them waits: the request goes to a thread of its own kind,
//! and what it asked for is done when the bytes are here.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;

use crate::error::Result;
use crate::image::Absent;

/// How many requests of one session fetch at once. More of them wait for their turn.
const FETCHING: usize = 32;
/// When so many requests of all sessions fetch at once, each session has no more than a [`FEW`]: containers
/// of one image whose registry is gone would take all threads of the process otherwise.
const CROWD: usize = 512;
/// How many a session always has.
const FEW: usize = 2;

/// How many requests of all sessions fetch.
static ALL: AtomicUsize = AtomicUsize::new(0);

/// What has to be done for a request, when its bytes are here or can't be had.
type Job = Box<dyn FnOnce() + Send>;

/// The requests of one session that wait.
#[derive(Default)]
pub(super) struct Waiting(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
}

impl Waiting {
    /// Does `work` at once, if no bytes are `absent`; else when they are here, or with the error for
    /// which they are not.
    pub(super) fn when_here(
        &self,
        absent: Result<Option<Absent>>,
        work: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        match absent {
            Ok(None) => work(Ok(())),
            Err(error) => work(Err(error)),
            Ok(Some(absent)) => self.put(Box::new(move || match absent.fetch() {
                // The file is held until the work has opened it.
                Ok(_held) => work(Ok(())),
                Err(error) => work(Err(error)),
            })),
        }
    }

    fn put(&self, job: Job) {
        let mut queue = self.0.lock();
        queue.jobs.push_back(job);
        let is_crowd = ALL.load(Ordering::Relaxed) >= CROWD;
        if queue.threads >= if is_crowd { FEW } else { FETCHING } {
            return;
        }
        queue.threads += 1;
        ALL.fetch_add(1, Ordering::Relaxed);
        drop(queue);
        let shared = Arc::clone(&self.0);
        let started = thread::Builder::new()
            .name("lamina-fetch".to_owned())
            .spawn(move || work_off(&shared));
        if let Err(error) = started {
            tracing::warn!(%error, "no thread to wait for bytes: the session waits");
            work_off(&self.0);
        }
    }
}

/// Does what is in the queue, until nothing is.
fn work_off(queue: &Mutex<Queue>) {
    loop {
        let job = {
            let mut queue = queue.lock();
            let Some(job) = queue.jobs.pop_front() else {
                queue.threads -= 1;
                ALL.fetch_sub(1, Ordering::Relaxed);
                return;
            };
            job
        };
        // Its reply was dropped, which is EIO for whoever waits for it.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a request that waited for bytes panicked: a bug");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Sessions whose requests wait for the other end of a channel.
    const SESSIONS: usize = 40;

    #[test]
    fn many_sessions_have_few_threads_each_and_every_request_is_answered() {
        let sessions: Vec<Waiting> = (0..SESSIONS).map(|_| Waiting::default()).collect();
        let (gate, closed): (Sender<()>, Receiver<()>) = channel();
        let closed = Arc::new(Mutex::new(closed));
        let (done, answers) = channel();
        for _ in 0..FETCHING {
            for session in &sessions {
                let (closed, done) = (Arc::clone(&closed), done.clone());
                session.put(Box::new(move || {
                    // Until the sender is gone.
                    let _ = closed.lock().recv();
                    done.send(()).unwrap();
                }));
            }
        }
        // As many as a crowd, and a few more of each session.
        let threads = ALL.load(Ordering::Relaxed);
        assert!(threads >= CROWD, "{threads} threads");
        assert!(threads <= CROWD + FEW * SESSIONS, "{threads} threads");
        assert!(
            sessions
                .iter()
                .all(|session| session.0.lock().threads >= FEW)
        );
        drop((gate, done));
        assert_eq!(answers.iter().count(), FETCHING * SESSIONS);
    }
}
