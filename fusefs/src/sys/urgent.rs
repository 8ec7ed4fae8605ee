//! Work that everybody waits for goes first.

use std::io;
use std::marker::PhantomData;

use rustix::process::{getpriority_process, setpriority_process};

/// The priority of a thread that does such work; the greatest there is (`setpriority(2)`).
const FIRST: i32 = -20;

/// The priority of a thread for which nobody has asked for another one.
const ORDINARY: i32 = 0;

/// The calling thread goes before all others of the host, as far as this process may ask for that, until
/// this value is dropped. Threads and processes that it starts meanwhile do not. Where somebody has given
/// the process another priority than the usual one, or this thread is urgent already, nothing changes.
#[derive(Debug)]
pub struct Urgent {
    is_changed: bool,
    /// Of this thread alone.
    _thread: PhantomData<*const ()>,
}

impl Urgent {
    /// Begins it.
    pub fn begin() -> Urgent {
        let is_ordinary = policy().is_ok_and(|policy| policy == libc::SCHED_OTHER)
            // Of a thread, not of the process: Linux has one for each.
            && getpriority_process(None) == Ok(ORDINARY);
        let gone_first = || {
            go_first().inspect_err(|error| {
                tracing::debug!(%error, "a thread is as urgent as all others");
            })
        };
        Urgent {
            is_changed: is_ordinary && gone_first().is_ok(),
            _thread: PhantomData,
        }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        if self.is_changed
            && let Err(error) = go_back()
        {
            tracing::debug!(%error, "a thread keeps its priority");
        }
    }
}

fn go_first() -> io::Result<()> {
    setpriority_process(None, FIRST)?;
    // What it starts begins as ordinary: a worker or a holder would never go back by itself.
    set_policy(libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK).inspect_err(|_| {
        let _ = setpriority_process(None, ORDINARY);
    })
}

fn go_back() -> io::Result<()> {
    setpriority_process(None, ORDINARY)?;
    set_policy(libc::SCHED_OTHER)
}

/// The scheduling policy of the calling thread.
fn policy() -> io::Result<i32> {
    // SAFETY: two numbers go in and one comes out. No function of the C library: musl's refuses.
    #[allow(unsafe_code)]
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    i32::try_from(policy)
        .ok()
        .filter(|policy| *policy >= 0)
        .ok_or_else(io::Error::last_os_error)
}

/// Sets the scheduling policy of the calling thread; its nice value stays (`sched_setscheduler(2)`).
fn set_policy(policy: i32) -> io::Result<()> {
    // Of the real-time policies only; it has to be 0.
    let real_time: libc::c_int = 0;
    // SAFETY: the kernel reads a `struct sched_param`, which is one int, and that is there. No function of
    // the C library: musl's refuses.
    #[allow(unsafe_code)]
    let answer = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            policy,
            &raw const real_time,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn priority() -> i32 {
        getpriority_process(None).unwrap()
    }

    #[test]
    fn a_thread_is_urgent_only_as_long_as_it_says() {
        let before = priority();
        let urgent = Urgent::begin();
        let within = if urgent.is_changed { FIRST } else { before };
        assert_eq!(priority(), within);
        // Once more is nothing new, and its end is not the end.
        drop(Urgent::begin());
        assert_eq!(priority(), within);
        drop(urgent);
        assert_eq!((priority(), policy().unwrap()), (before, libc::SCHED_OTHER));
    }

    #[test]
    fn what_an_urgent_thread_starts_is_ordinary() {
        let before = priority();
        let urgent = Urgent::begin();
        let started = thread::spawn(|| (priority(), policy().unwrap()));
        assert_eq!(started.join().unwrap(), (before, libc::SCHED_OTHER));
        drop(urgent);
    }

    #[test]
    fn who_was_given_another_priority_keeps_it() {
        let other = thread::spawn(|| {
            setpriority_process(None, 5).unwrap();
            let urgent = Urgent::begin();
            assert_eq!(priority(), 5);
            drop(urgent);
            priority()
        });
        assert_eq!(other.join().unwrap(), 5);
    }
}
