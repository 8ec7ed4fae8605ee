//! Work that everybody waits for goes first.

use rustix::process::{getpriority_process, setpriority_process};

/// The priority of a thread that does such work; the greatest there is (`setpriority(2)`).
const FIRST: i32 = -20;

/// The calling thread goes before all others of the host, as far as this process may ask for that, until
/// this value is dropped. Threads that it starts meanwhile would, too.
#[derive(Debug)]
pub(crate) struct Urgent {
    before: Option<i32>,
}

impl Urgent {
    pub(crate) fn begin() -> Urgent {
        // Of a thread, not of the process: Linux has one for each.
        let before = getpriority_process(None)
            .and_then(|before| setpriority_process(None, FIRST).map(|()| before));
        Urgent {
            before: before.ok(),
        }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        if let Some(before) = self.before
            && let Err(error) = setpriority_process(None, before)
        {
            tracing::debug!(%error, "a thread keeps its priority");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_urgent_only_as_long_as_it_says() {
        let priority = || getpriority_process(None).unwrap();
        let before = priority();
        let urgent = Urgent::begin();
        let is_changed = urgent.before.is_some();
        assert_eq!(priority(), if is_changed { FIRST } else { before });
        drop(urgent);
        assert_eq!(priority(), before);
    }
}
