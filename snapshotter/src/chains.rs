//! One image for each chain of layers, for as long as somebody uses it.
//!
//! Images are expensive to build and cheap to share, so all sessions over one chain hold the same
//! one. The table holds weak references: the last session takes the image with it, unless it is
//! among those that were [kept](Chains::keep) last. Opening an image checks its whole index, which
//! is most of what a lone container would wait for.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use lru::LruCache;

/// How many values are kept that nobody uses. Each costs a descriptor for each of its layers, and
/// its index stays mapped.
const KEPT: NonZeroUsize = NonZeroUsize::new(8).expect("not zero");

type Slot<T> = Arc<Mutex<Weak<T>>>;

/// Shared values by the id of a chain's topmost snapshot.
pub(crate) struct Chains<T> {
    /// Lock order: the table, then (never the other way) a slot. A slot is locked while its value
    /// is built, so that a hundred containers of one image build it once.
    slots: Mutex<HashMap<u64, Slot<T>>>,
    kept: Mutex<LruCache<u64, Arc<T>>>,
}

impl<T> Chains<T> {
    pub(crate) fn new() -> Chains<T> {
        Chains {
            slots: Mutex::new(HashMap::new()),
            kept: Mutex::new(LruCache::new(KEPT)),
        }
    }

    /// The value of a chain: the one in use, or a new one.
    pub(crate) fn get<E>(
        &self,
        chain: u64,
        build: impl FnOnce() -> Result<Arc<T>, E>,
    ) -> Result<Arc<T>, E> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.retain(|id, slot| *id == chain || in_use(slot));
            Arc::clone(slots.entry(chain).or_default())
        };
        let mut value = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = value.upgrade() {
            return Ok(value);
        }
        let built = build()?;
        *value = Arc::downgrade(&built);
        Ok(built)
    }

    /// All values that are in use or kept, but for those that are being built.
    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let values = slots.values();
        values
            .filter_map(|slot| slot.try_lock().ok()?.upgrade())
            .collect()
    }

    /// Keeps a chain's value when its last user is gone, until others were kept more lately.
    pub(crate) fn keep(&self, chain: u64, value: Arc<T>) {
        // What has to go is dropped when the lock is free again.
        let _gone = self.kept().push(chain, value);
    }

    /// Ends the keeping: the chain is about to be deleted.
    pub(crate) fn forget(&self, chain: u64) {
        let _gone = self.kept().pop(&chain);
    }

    fn kept(&self) -> MutexGuard<'_, LruCache<u64, Arc<T>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether somebody builds, or holds, the value of a slot.
fn in_use<T>(slot: &Slot<T>) -> bool {
    Arc::strong_count(slot) > 1
        || slot
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .strong_count()
            > 0
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn a_hundred_users_at_once_build_once() {
        let chains = Chains::new();
        let (built, start) = (AtomicUsize::new(0), Barrier::new(100));
        let values: Vec<Arc<usize>> = thread::scope(|scope| {
            let user = || {
                start.wait();
                let build = || Ok::<_, ()>(Arc::new(built.fetch_add(1, Ordering::Relaxed)));
                chains.get(7, build).expect("build")
            };
            let users: Vec<_> = (0..100).map(|_| scope.spawn(user)).collect();
            users
                .into_iter()
                .map(|user| user.join().expect("join"))
                .collect()
        });
        assert_eq!(built.into_inner(), 1);
        assert_eq!(chains.all().len(), 1);
        assert!(values.iter().all(|value| Arc::ptr_eq(value, &values[0])));
    }

    #[test]
    fn the_last_user_takes_it_along_and_a_failure_is_not_kept() {
        let chains = Chains::new();
        chains
            .get(1, || Err::<Arc<u8>, _>("no"))
            .expect_err("failed");
        let first = chains.get(1, || Ok::<_, ()>(Arc::new(1))).expect("build");
        assert_eq!(
            *chains.get(1, || Ok::<_, ()>(Arc::new(2))).expect("shared"),
            1
        );
        drop(first);
        assert!(chains.all().is_empty());
        assert_eq!(
            *chains.get(1, || Ok::<_, ()>(Arc::new(3))).expect("anew"),
            3
        );
        let other = chains.get(2, || Ok::<_, ()>(Arc::new(4))).expect("other");
        assert_eq!(
            chains.slots.lock().expect("lock").len(),
            1,
            "chain 1 is forgotten"
        );
        drop(other);
    }

    #[test]
    fn those_used_last_are_kept_until_they_are_deleted() {
        let chains = Chains::new();
        let anew = |chain| {
            let mut built = false;
            let build = || {
                built = true;
                Ok::<_, ()>(Arc::new(chain))
            };
            let value = chains.get(chain, build).expect("build");
            chains.keep(chain, value);
            built
        };
        assert!(anew(0));
        assert!(!anew(0));
        for other in 1..8 {
            assert!(anew(other));
        }
        assert!(!anew(0), "used again, it outlasts the ninth");
        assert!(anew(8));
        assert!(!anew(0));
        assert!(anew(1), "which was used before all others");
        chains.forget(0);
        assert!(anew(0));
    }
}
