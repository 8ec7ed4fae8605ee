//! The containerd snapshotter: ten verbs over a crash-safe store, and a FUSE mount for each
//! snapshot that is in use.
//!
//! The modules, in the order in which a call flows:
//!
//! - [`daemon`] opens a root directory and serves it on a socket.
//! - `service` takes gRPC in and gives gRPC out; nothing else knows gRPC but [`cri`], which passes
//!   the calls of Kubernetes' image service on, and learns the logins of pulls, and [`containerd`].
//! - [`snapshots`] is the verbs, in the order of containerd's API.
//! - [`filter`] reads the filters of `List`.
//! - [`store`] remembers the snapshots; [`store::layout`] is every path below the root.
//! - [`mounts`] turns a record into what containerd is told to mount.
//! - [`id_map`] reads how the users of a snapshot are shifted, [`upper_mode`] who holds its upper.
//! - [`serve`] keeps the running sessions; `chains` shares one image among them.
//! - [`lazy`] makes and opens layers that are served without being unpacked, [`registry`] brings
//!   their bytes.
//! - [`pull`] brings an image into containerd, as any client of it would, and [`containerd`] is what
//!   it asks.
//! - `indexes` keeps what layers and images hold in files beside them.
//! - [`recover`] puts a root in order at start, `cleanup` deletes what nobody refers to, and
//!   `dirs` makes and discards the directories of one snapshot (`trees` deletes what containers
//!   made in them).
//! - [`hold`] has what must outlive the daemon kept by somebody else, [`watchdog`] says that it is alive.
//! - [`check`] and [`status`] are what a person asks, [`config`] what a person says.
//! - [`error`] is what can go wrong, and the one map to gRPC's codes.

mod busy;
mod chains;
pub mod check;
mod cleanup;
pub mod config;
pub mod containerd;
pub mod cri;
pub mod daemon;
mod dirs;
mod disk;
pub mod error;
pub mod filter;
pub mod hold;
pub mod id_map;
mod indexes;
pub mod kept;
pub mod lazy;
pub mod mounts;
pub mod pull;
pub mod recover;
pub mod registry;
pub mod root;
pub mod serve;
mod service;
pub mod snapshots;
mod socket_file;
pub mod status;
pub mod store;
#[cfg(test)]
mod testing;
mod trees;
pub mod upper_mode;
pub mod usage;
pub mod watchdog;

pub use error::{Error, Result};
