//! Races of Lamina against its rivals, over the same layers on the same file system.
//!
//! The modules in the order in which a race uses them:
//!
//! - [`image`]: what the image holds, as a value, and the layers on disk that are made from it;
//! - [`ground`]: the directory where all of this lies, and what the tools need from the host;
//! - [`systems`]: overlayfs, fuse-overlayfs, Lamina: how each mounts the layers;
//! - [`works`]: what is done in the mount and timed, and how its result is verified;
//! - [`containers`]: what containerd does with the same layers;
//! - [`race`]: each work by each system, in turn, round by round;
//! - [`report`]: medians and ratios as a table, Markdown, JSON and a plot;
//! - [`command`]: all of this as a command.
//!
//! The image is a value that knows every name, attribute and byte. So a result is compared with
//! what has to come out, and not only with what another system made of it.

pub mod command;
pub mod containers;
pub mod ground;
pub mod host;
pub mod image;
pub mod interrupt;
pub mod process;
pub mod race;
pub mod report;
pub mod stats;
pub mod systems;
pub mod works;
