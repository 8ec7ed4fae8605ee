//! What happens at start, before the socket answers: mounts that an earlier daemon left are taken over,
//! the disk is made to agree with the store, and every other snapshot that is in use is mounted again.
//!
//! The store is right. A verb that a crash cut off left one of these behind, and each is undone or
//! finished here:
//!
//! | cut off | left behind | now |
//! | --- | --- | --- |
//! | `Prepare`, `View` | `new-<id>`, or `<id>` that the store does not know, perhaps mounted | detached, deleted |
//! | `Commit` | an active snapshot that is not mounted | active still: mounted again |
//! | | a committed snapshot with a `work` directory | that is deleted |
//! | `Remove` | `<id>` or `trash-<id>` that the store does not know, perhaps mounted | detached, deleted |
//!
//! A snapshot that can't be mounted is reported and does not stop the others.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::{Error, Result};
use crate::store::layout::Layout;

/// What the start had to do.
#[derive(Debug, Default)]
pub struct Report {
    /// Mounts of an earlier process that were detached.
    pub detached: Vec<PathBuf>,
    /// Leftovers that were deleted.
    pub removed: Vec<PathBuf>,
    /// How many snapshots were mounted again.
    pub mounted: usize,
    /// The keys of snapshots that could not be mounted, and why.
    pub failed: Vec<(String, Error)>,
}

/// Detaches what is still mounted on our mount points, and removes the mount points.
/// What belongs to the mount of a snapshot that was `left` stays.
pub(crate) fn clear_mounts(layout: &Layout, left: &BTreeMap<u64, u64>) -> Result<Vec<PathBuf>> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read(table).map_err(Error::io("cannot read", table))?;
    let mut detached = mounts_below(&text, &layout.mounts());
    let left: HashSet<_> = left.keys().map(|id| layout.mount(*id)).collect();
    let stays = |path: &Path| path.ancestors().any(|path| left.contains(path));
    detached.retain(|path| !stays(path));
    // The last one first: a mount on a mount, or below one.
    detached.reverse();
    for at in &detached {
        detach(at)?;
    }
    let dir = layout.mounts();
    for entry in fs::read_dir(&dir).map_err(Error::io("cannot list", &dir))? {
        let path = entry.map_err(Error::io("cannot list", &dir))?.path();
        if stays(&path) {
            continue;
        }
        // Only an empty directory goes: a mount point holds nothing of its own.
        if let Err(error) = fs::remove_dir(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove an old mount point");
        }
    }
    Ok(detached)
}

/// Takes a mount out of the tree that nobody serves any more.
pub(crate) fn detach(at: &Path) -> Result<()> {
    match unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Gone meanwhile, by somebody else's hand or with a mount that it stood on.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::io("cannot detach the stale mount", at)(errno)),
    }
}

/// The mount points below `dir` in a mountinfo table, in its order.
fn mounts_below(table: &[u8], dir: &Path) -> Vec<PathBuf> {
    let lines = table.split(|byte| *byte == b'\n');
    let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let paths = points.map(|point| PathBuf::from(std::ffi::OsString::from_vec(unescape(point))));
    paths
        .filter(|path| path.starts_with(dir) && path != dir)
        .collect()
}

/// mountinfo writes spaces and the like as three octal digits behind a backslash.
pub(crate) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let escaped = (*first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() {
            &after[3..]
        } else {
            after
        };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_our_directory_are_found() {
        let table = b"22 1 0:21 / / rw - ext4 /dev/vda rw\n\
            30 22 0:40 / /var/a\\040b/mounts/1 rw,nosuid shared:3 - fuse.lamina lamina rw\n\
            31 22 0:41 / /var/a\\040b/mounts-other/1 rw - fuse.lamina lamina rw\n\
            32 22 0:42 / /var/a\\040b/mounts rw - tmpfs tmpfs rw\n\
            33 30 0:43 / /var/a\\040b/mounts/1/proc rw - proc proc rw\n";
        let found = mounts_below(table, Path::new("/var/a b/mounts"));
        assert_eq!(
            found,
            [
                Path::new("/var/a b/mounts/1"),
                Path::new("/var/a b/mounts/1/proc")
            ]
        );
    }

    #[test]
    fn escapes_are_read_and_broken_ones_kept() {
        assert_eq!(unescape(br"a\040b\134c\0"), br"a b\c\0");
    }
}
