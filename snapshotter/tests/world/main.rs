//! A world that means no good: disks that fail, fill up or become read-only, layers that somebody
//! deletes, limits that are small.
//!
//! Each test has a daemon of its own (`lamina serve`), and a root on a disk that can be made to fail where
//! that is what happens. What was answered stays true, no wrong byte is read, and whoever has nothing
//! to do with what is broken notices nothing.

mod bad_disk;
mod descriptors;
#[path = "../disk/mod.rs"]
mod disk;
mod full;
#[path = "../e2e/harness/mod.rs"]
mod harness;
mod layers;
mod memory;
mod read_only;
mod stage;
