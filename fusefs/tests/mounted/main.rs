//! What users see through a mount, checked on real mounts.
//!
//! Every test runs on each [`system::System`]: on kernel overlayfs, which proves that the test
//! itself is right, and on Lamina with passthrough, without it, and as on an old kernel. Where the systems differ on
//! purpose, the test says so.
//!
//! The tests need root and `/dev/fuse`, and leave no mount behind. `LAMINA_TEST_SYSTEMS` (names
//! with commas between them: `overlayfs`, `lamina`, `lamina-plain`, `lamina-old`) picks some of
//! the systems.

// In a test a failed step is the end of it, in helpers and closures too.
#![allow(clippy::unwrap_used)]
// Counting bytes is not what these tests spend their time on.
#![allow(clippy::naive_bytecount)]

mod bad_input;
mod bad_marks;
mod blobs;
mod check;
mod copy_up;
mod data;
mod devices;
mod faults;
mod handles;
mod identity;
mod idmap;
mod layers;
mod leases;
mod limits;
mod links;
mod listing;
mod locks;
mod lookup;
mod nested;
mod no_open;
mod open_files;
mod permissions;
mod races;
mod remove;
mod rename;
mod session;
mod special;
mod statements;
mod system;
mod tools;
mod unlinked;
mod xattrs;
