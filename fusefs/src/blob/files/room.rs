//! Memory for what is being fetched, shared by all blobs.
//!
//! Whoever made a blob chose how large its chunks are, and its containers how many files they want at once.
//! So there is a limit for all blobs together, and a smaller one for each: one that asks for much, or whose
//! registry is slow, waits for itself and leaves the others enough. Each blob may always fetch one thing,
//! however large: it need not wait for anybody else, who may wait for a registry that is gone.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

/// Bytes of all blobs together.
const ALL: u64 = 512 << 20;
/// Bytes of one.
const EACH: u64 = 256 << 20;

/// What is taken of it.
#[derive(Debug, Default)]
pub(super) struct Room {
    taken: Mutex<u64>,
    given_back: Condvar,
}

/// What one blob has taken. Changed under the lock of the [`Room`] alone.
#[derive(Debug, Default)]
pub(super) struct Share(AtomicU64);

/// Memory that somebody has, until this is dropped.
pub(super) struct Taken<'r> {
    room: &'r Room,
    share: &'r Share,
    bytes: u64,
}

impl Room {
    /// Waits for memory for a fetch of one blob. Who has some may not ask for more.
    pub(super) fn take<'r>(&'r self, share: &'r Share, bytes: u64) -> Taken<'r> {
        let mut taken = self.taken.lock();
        loop {
            let own = share.0.load(Ordering::Relaxed);
            let fits = own.saturating_add(bytes) <= EACH && taken.saturating_add(bytes) <= ALL;
            if own == 0 || fits {
                break;
            }
            self.given_back.wait(&mut taken);
        }
        *taken = taken.saturating_add(bytes);
        share.0.fetch_add(bytes, Ordering::Relaxed);
        Taken {
            room: self,
            share,
            bytes,
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut taken = self.room.taken.lock();
        *taken = taken.saturating_sub(self.bytes);
        self.share.0.fetch_sub(self.bytes, Ordering::Relaxed);
        drop(taken);
        self.room.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{TryRecvError, channel};
    use std::thread;

    use super::*;

    #[test]
    fn a_blob_that_takes_all_it_may_waits_for_itself_and_nobody_else_does() {
        let (room, greedy, other) = (Room::default(), Share::default(), Share::default());
        // More than all: the first may have it.
        let first = room.take(&greedy, 2 * ALL);
        let small = room.take(&other, 1);
        drop(small);
        let (sender, receiver) = channel();
        thread::scope(|scope| {
            let (room, greedy) = (&room, &greedy);
            scope.spawn(move || {
                let second = room.take(greedy, 1);
                sender.send(*room.taken.lock()).unwrap();
                drop(second);
            });
            // Another one goes on whatever the first does, and so often as it likes.
            for _ in 0..100 {
                drop(room.take(&other, EACH));
                assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
            }
            drop(first);
            assert_eq!(receiver.recv(), Ok(1), "the second waited for the first");
        });
        assert_eq!(*room.taken.lock(), 0);
        assert_eq!(greedy.0.into_inner() + other.0.into_inner(), 0);
    }

    #[test]
    fn what_all_have_together_is_limited_too() {
        let room = Room::default();
        let [first, second, third] = [const { Share(AtomicU64::new(0)) }; 3];
        let (all, rest) = (room.take(&first, EACH), room.take(&second, EACH));
        // Nothing is left, and the third still has its one.
        let one = room.take(&third, 1);
        let (sender, receiver) = channel();
        thread::scope(|scope| {
            let (room, third) = (&room, &third);
            scope.spawn(move || {
                let another = room.take(third, 1);
                sender.send(()).unwrap();
                drop(another);
            });
            assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
            drop(all);
            receiver.recv().unwrap();
        });
        drop((rest, one));
        assert_eq!(*room.taken.lock(), 0);
    }
}
