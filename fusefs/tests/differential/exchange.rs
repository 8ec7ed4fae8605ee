//! Each system mounts what the other wrote.

use std::collections::BTreeMap;

use crate::compare::Comparison;
use crate::run::Finished;
use crate::seen::{self, Quirks, Seen};
use crate::system::{Access, System};

/// The kernel mounts Lamina's upper, and has to show Lamina's tree.
pub(crate) fn kernel_reads_ours(finished: Finished) -> Result<(), String> {
    let Finished {
        record,
        mut mounted,
        image,
    } = finished;
    if mounted.layers.lowers().is_empty() {
        // overlayfs does not do without a layer.
        return Ok(());
    }
    mounted.unmount();
    let options = [("redirect_dir", "on"), ("metacopy", "on"), ("index", "off")];
    mounted.layers.mount_overlay(Access::Write, &options);
    mounted.system = System::Overlayfs;
    let theirs = seen::tree(&mounted.path(""), Quirks::Overlayfs)
        .map_err(|error| format!("the kernel with our upper: {error}"))?;
    Comparison::new(&image)
        .trees(&theirs, &record.tree, |ours| is_linked(&image, ours))
        .map_err(|error| format!("the kernel with our upper: {error}"))
}

/// Lamina mounts overlayfs's upper, and has to show overlayfs's tree.
pub(crate) fn lamina_reads_theirs(finished: Finished) -> Result<(), String> {
    let Finished {
        record,
        mut mounted,
        image,
    } = finished;
    mounted.switch(System::Lamina { passthrough: true });
    let ours = seen::tree(&mounted.path(""), Quirks::Lamina)
        .map_err(|error| format!("Lamina with the kernel's upper: {error}"))?;
    Comparison::new(&image)
        .trees(&record.tree, &ours, |ours| is_linked(&image, ours))
        .map_err(|error| format!("Lamina with the kernel's upper: {error}"))
}

/// Whether a file has hard links in the image.
///
/// With `index=off` the kernel does not know that they are one file: where one name was copied up,
/// the others show the image's file still.
fn is_linked(image: &BTreeMap<u64, u64>, seen: &Seen) -> bool {
    image
        .get(&seen.attributes.ino)
        .is_some_and(|&links| links > 1)
}
