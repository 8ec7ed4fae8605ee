//! Images whose makers mean harm, pulled by a real containerd. Each is refused, so that containerd
//! unpacks it or fails, or is served without harm; nothing outside of Lamina's root changes, and the
//! daemon's memory stays small (`scene` looks after each). docs/correctness.md has the table.

mod archives;
mod data;
mod layers;
mod scene;
mod tables;

use self::layers::Tar;
use super::harness::Made;

/// A layer with what `fill` puts below `opt`.
fn opt(fill: impl FnOnce(Tar) -> Tar) -> Made {
    fill(Tar::default().dir("opt/")).gzip()
}
