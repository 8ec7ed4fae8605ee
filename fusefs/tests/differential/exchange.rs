//! Each system mounts what the other wrote.

use std::collections::BTreeMap;

use crate::compare::Comparison;
use crate::run::Finished;
use crate::script::Script;
use crate::seen::{self, Quirks, Seen};
use crate::system::System;

/// What kernel overlayfs needs to read an upper of Lamina.
const WITHOUT_INDEX: &[(&str, &str)] =
    &[("redirect_dir", "on"), ("metacopy", "on"), ("index", "off")];

/// The kernel mounts Lamina's upper, and has to show Lamina's tree.
pub(crate) fn kernel_reads_ours(script: &Script, finished: Finished) -> Result<(), String> {
    let Finished {
        record,
        mut mounted,
        image,
    } = finished;
    if mounted.layers.lowers().is_empty() {
        // overlayfs does not do without a layer.
        return Ok(());
    }
    mounted.overlay_options = WITHOUT_INDEX;
    mounted.switch(System::Overlayfs);
    let mut theirs = seen::tree(&mounted.path(""), Quirks::Overlayfs)
        .map_err(|error| format!("the kernel with our upper: {error}"))?;
    for (path, ours) in &record.tree {
        // The kernel counts the link in the work directory's index too.
        if is_linked(&image, ours)
            && let Some(theirs) = theirs.get_mut(path)
        {
            theirs.attributes.nlink = ours.attributes.nlink;
        }
    }
    Comparison::new(&script.ops)
        .trees(&theirs, &record.tree, |_| false)
        .map_err(|error| format!("the kernel with our upper: {error}"))
}

/// Lamina mounts overlayfs's upper, and has to show overlayfs's tree.
pub(crate) fn lamina_reads_theirs(script: &Script, finished: Finished) -> Result<(), String> {
    let Finished {
        record,
        mut mounted,
        image,
    } = finished;
    mounted.switch(System::Lamina { passthrough: true });
    let ours = seen::tree(&mounted.path(""), Quirks::Lamina)
        .map_err(|error| format!("Lamina with the kernel's upper: {error}"))?;
    Comparison::new(&script.ops)
        .trees(&record.tree, &ours, |ours| is_linked(&image, ours))
        .map_err(|error| format!("Lamina with the kernel's upper: {error}"))
}

/// Whether a file has hard links in the image.
fn is_linked(image: &BTreeMap<u64, u64>, seen: &Seen) -> bool {
    image
        .get(&seen.attributes.ino)
        .is_some_and(|&links| links > 1)
}
