//! How many requests of each kind a session was asked.

use std::cell::Cell;
use std::ops::Sub;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

macro_rules! operations {
    ($($operation:ident $name:literal),+ $(,)?) => {
        /// A kind of request, as FUSE has them.
        #[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
        #[allow(missing_docs)] // their names in <linux/fuse.h> say all there is
        pub enum Operation {
            $($operation),+
        }

        impl Operation {
            /// All kinds.
            pub const ALL: &[Operation] = &[$(Operation::$operation),+];

            /// Its name in `<linux/fuse.h>`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Operation::$operation => $name),+
                }
            }
        }
    };
}

operations! {
    Lookup "LOOKUP",
    Forget "FORGET",
    Getattr "GETATTR",
    Setattr "SETATTR",
    Readlink "READLINK",
    Symlink "SYMLINK",
    Mknod "MKNOD",
    Mkdir "MKDIR",
    Unlink "UNLINK",
    Rmdir "RMDIR",
    Rename "RENAME",
    Link "LINK",
    Statfs "STATFS",
    Create "CREATE",
    Open "OPEN",
    Read "READ",
    Write "WRITE",
    Fallocate "FALLOCATE",
    CopyFileRange "COPY_FILE_RANGE",
    Lseek "LSEEK",
    Ioctl "IOCTL",
    Poll "POLL",
    Fsync "FSYNC",
    Flush "FLUSH",
    Release "RELEASE",
    Opendir "OPENDIR",
    Readdirplus "READDIRPLUS",
    Readdir "READDIR",
    Fsyncdir "FSYNCDIR",
    Releasedir "RELEASEDIR",
    Setxattr "SETXATTR",
    Getxattr "GETXATTR",
    Listxattr "LISTXATTR",
    Removexattr "REMOVEXATTR",
    Access "ACCESS",
}

const KINDS: usize = Operation::ALL.len();

/// How many threads count without a cache line in common.
const SHARDS: usize = 4;

/// The counters of one session. Counting is one addition in memory that the thread has nearly to
/// itself, and takes no lock.
#[derive(Debug, Default)]
pub(super) struct Counters {
    shards: [Shard; SHARDS],
}

/// As large as what processors fetch at once, so that no two share it.
#[derive(Debug)]
#[repr(align(128))]
struct Shard([AtomicU64; KINDS]);

impl Default for Shard {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; KINDS])
    }
}

impl Counters {
    pub(super) fn add(&self, operation: Operation) {
        self.shards[shard()].0[operation as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sum(&self) -> Requests {
        let mut sum = Requests([0; KINDS]);
        for shard in &self.shards {
            for (sum, count) in sum.0.iter_mut().zip(&shard.0) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        sum
    }
}

/// The shard of this thread.
fn shard() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
    }
    SHARD.get().unwrap_or_else(|| {
        let shard = THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS;
        SHARD.set(Some(shard));
        shard
    })
}

/// Numbers of requests. The difference of two says what was asked in between.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Requests([u64; KINDS]);

impl Requests {
    /// How many of one kind.
    pub fn of(&self, operation: Operation) -> u64 {
        self.0[operation as usize]
    }

    /// The kinds of which there were any.
    pub fn iter(&self) -> impl Iterator<Item = (Operation, u64)> {
        let all = Operation::ALL.iter();
        all.map(|operation| (*operation, self.of(*operation)))
            .filter(|(_, count)| *count > 0)
    }
}

impl Sub for Requests {
    type Output = Requests;

    fn sub(mut self, earlier: Requests) -> Requests {
        for (count, earlier) in self.0.iter_mut().zip(earlier.0) {
            *count = count.saturating_sub(earlier);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_threads_counted_is_summed() {
        let counters = Counters::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| {
                    counters.add(Operation::Lookup);
                    counters.add(Operation::Access);
                });
            }
        });
        let before = counters.sum();
        counters.add(Operation::Access);
        let all: Vec<_> = before.iter().collect();
        let each = 2 * SHARDS as u64;
        assert_eq!(all, [(Operation::Lookup, each), (Operation::Access, each)]);
        let since: Vec<_> = (counters.sum() - before).iter().collect();
        assert_eq!(since, [(Operation::Access, 1)]);
    }
}
