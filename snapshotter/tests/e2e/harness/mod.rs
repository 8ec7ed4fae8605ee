//! What an end-to-end test stands on: a private containerd, a Lamina daemon, an image made offline.
//!
//! [`Host`] is the whole stage. Everything on it lives below one [`Scratch`] folder, and dropping
//! it kills the processes it started and unmounts what they left, also when a test panics. The
//! snapshotter is a parameter (`SNAPSHOTTER=overlayfs`): the harness is right only if containerd's
//! own overlayfs passes the tests too.

#![allow(
    dead_code,
    unused_imports,
    reason = "each binary that includes this module uses a part of it"
)]
#![allow(
    unreachable_pub,
    reason = "the module is included by more than one binary"
)]

mod api;
mod containerd;
mod ctr;
mod host;
mod image;
mod lamina;
mod peer;
mod process;
mod proxy;
mod registry;
mod scratch;

pub use api::{Api, Kind};
pub use containerd::Containerd;
pub use host::{Host, Snapshotter};
pub use image::{IMAGE, busybox_root};
pub use lamina::{Daemon, binary, holder_of, holdings};
pub use peer::Stargz;
pub use process::{Rollup, Usage, mounts_below, output, run, signal, slab_kib, wait_for};
pub use proxy::{Fault, Link, Proxy};
pub use registry::{Made, Packing, Registry};
pub use scratch::Scratch;
