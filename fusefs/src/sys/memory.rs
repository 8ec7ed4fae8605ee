//! How the process gets its memory.

use std::sync::Once;

/// Allocations from this size on are mappings of their own (bytes).
const OWN_MAPPING: i32 = 4 << 20;

/// Keeps large buffers lazy: untouched pages of one take no memory.
///
/// Each serving thread has a request buffer of 16 MiB (fuser's), of which a few pages are ever
/// used. glibc takes such a buffer from a fresh mapping until the first one is freed; then it
/// raises its limit for mappings, takes the next from the heap, and zeroes all of it (mallopt(3),
/// `M_MMAP_THRESHOLD`). Measured with 100 containers: 10.7 MiB resident for each. A limit that is
/// set does not move.
///
/// And no more heaps than processors: each session has threads of its own, most of them asleep, and
/// glibc gives up to eight heaps a processor to those that allocate at the same time, each with its
/// own leftovers (`M_ARENA_MAX`). Heaps that were made before this was said stay.
pub(crate) fn tame_allocator() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        #[cfg(target_env = "gnu")]
        {
            // SAFETY: mallopt takes two plain numbers, and its lock.
            #[allow(unsafe_code)]
            let accepted = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING) };
            if accepted == 0 {
                tracing::debug!("the allocator keeps its own limit for mappings");
            }
            let processors = std::thread::available_parallelism().map_or(2, usize::from);
            let heaps = i32::try_from(processors.max(2)).unwrap_or(i32::MAX);
            // SAFETY: as above.
            #[allow(unsafe_code)]
            let accepted = unsafe { libc::mallopt(libc::M_ARENA_MAX, heaps) };
            if accepted == 0 {
                tracing::debug!("the allocator keeps its own number of heaps");
            }
        }
    });
}

/// Gives freed memory back to the system, after something that took much for a short time.
///
/// glibc keeps what was freed below the top of its heap, and a daemon that made an index would be
/// larger by the whole tree for as long as it runs (`malloc_trim(3)`).
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim takes a plain number, and the allocator's own locks.
        #[allow(unsafe_code)]
        let _ = unsafe { libc::malloc_trim(0) };
    }
}
