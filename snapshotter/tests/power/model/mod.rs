//! What was asked for and what was answered, each with the position in the disk's log at that
//! moment. From it follows what a disk may and must hold that was cut off at any other position.

mod active;
mod contents;
mod layer;
mod story;
mod tree;

pub(crate) use self::active::{Active, Sync};
pub(crate) use self::layer::Layer;
pub(crate) use self::story::{Contents, Snapshot, Story};
pub(crate) use self::tree::{FileId, Node, Tree, is_below, join, parent};
