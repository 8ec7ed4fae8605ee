//! What of the process's memory is not needed now.

use crate::sys::{map, memory};

/// Tells the allocator how a daemon with many threads wants it. Best before any thread is started;
/// [`crate::session::Session::mount`] does it for whoever has not.
pub fn tame() {
    memory::tame_allocator();
}

/// Takes what was read of indexes and chunk tables out of this process's memory.
///
/// They are files in the kernel's cache, which stays as it is: whoever looks at one again has its pages back
/// without asking the disk. So this costs little, and can be done every few seconds.
pub fn release_mapped() {
    map::release_all();
}

/// Gives what was freed back to the system, after something that took much for a short time. It takes
/// some milliseconds, for which others who want memory may have to wait.
pub fn release_freed() {
    memory::give_back();
}
