//! Verbs on one key wait for each other; verbs on different keys do not.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The keys that a verb is busy with.
#[derive(Default)]
pub(crate) struct Busy {
    keys: Mutex<HashSet<String>>,
    freed: Condvar,
}

/// Some keys, until it is dropped.
pub(crate) struct Held<'b> {
    busy: &'b Busy,
    keys: Vec<String>,
}

impl Busy {
    /// Waits until nobody is busy with any of these keys, then takes them all at once.
    pub(crate) fn hold(&self, keys: &[&str]) -> Held<'_> {
        let mut busy = self.lock();
        while keys.iter().any(|key| busy.contains(*key)) {
            busy = self
                .freed
                .wait(busy)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        busy.extend(keys.iter().cloned());
        Held { busy: self, keys }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut busy = self.busy.lock();
        for key in &self.keys {
            busy.remove(key);
        }
        self.busy.freed.notify_all();
    }
}
