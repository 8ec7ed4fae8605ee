//! The union file system: image layers below, a writable upper above, one tree to look at.
//!
//! The modules, in the order in which data flows:
//!
//! - [`session`] serves one union as one FUSE mount. It alone knows FUSE.
//! - [`union`] holds the rules: what a name means when both the image and the upper have it,
//!   and what a change does to the upper.
//! - [`inode`] keeps the node table, the open handles and their backing files.
//! - [`record`] keeps what the next process needs to go on where this one ended.
//! - [`image`] merges layers to one immutable tree that every container of the image shares.
//! - [`index`] keeps a layer or an image in one file that is mapped into memory.
//! - [`layer`] is where a layer's entries and bytes come from.
//! - [`blob`] reads a layer that was not unpacked.
//! - [`upper`] is the one mutable place: what a container wrote, in overlayfs's format.
//! - [`check`] looks whether an upper fits its layers, and says what is wrong with it.
//! - `marks` knows how whiteouts, opaque directories and redirects look on disk.
//! - [`memory`] gives back what is not needed now.
//! - [`descriptors`] are got from whoever started the process, and compared.
//! - [`Urgent`] work goes before everything else.
//! - `sys` holds the system calls, and the only `unsafe` code.
//! - [`types`], [`error`] and `errno` are the words that all of them speak.

pub mod blob;
pub mod check;
pub mod descriptors;
mod errno;
pub mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod image;
pub mod index;
pub mod inode;
pub mod layer;
mod marks;
pub mod memory;
pub mod record;
pub mod session;
mod sys;
pub mod types;
pub mod union;
pub mod upper;

pub use error::{Error, Result};
pub use sys::urgent::Urgent;
