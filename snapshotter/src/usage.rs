//! What a directory takes on the disk.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::store::records::Usage;

const OPEN_DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Counts the bytes (as allocated) and inodes of a tree, its root included. Hard links of one
/// inode count once. It walks by descriptors and never follows a symbolic link, so a container
/// that writes the tree meanwhile can't lead it astray; what vanishes under it is not counted.
pub fn measure(root: &Path) -> Result<Usage> {
    walk(root).map_err(|errno| Error::io("cannot measure", root)(io::Error::from(errno)))
}

fn walk(root: &Path) -> Result<Usage, Errno> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut count = |stat: &rustix::fs::Stat| {
        // Only an inode with several names can be met twice.
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_dir || stat.st_nlink < 2 || linked.insert((stat.st_dev, stat.st_ino)) {
            usage.size += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            usage.inodes += 1;
        }
    };
    let top = openat(rustix::fs::CWD, root, OPEN_DIR, Mode::empty())?;
    count(&rustix::fs::fstat(&top)?);
    // The directories from the root to where the walk is, each with what is left of its entries.
    let mut stack: Vec<(OwnedFd, Dir)> = vec![(dir_fd(&top)?, Dir::new(top)?)];
    while let Some((fd, entries)) = stack.last_mut() {
        let Some(entry) = entries.next() else {
            stack.pop();
            continue;
        };
        let name: CString = entry?.file_name().to_owned();
        if matches!(name.as_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match statat(&*fd, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        count(&stat);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            match openat(&*fd, &name, OPEN_DIR, Mode::empty()) {
                Ok(child) => stack.push((dir_fd(&child)?, Dir::new(child)?)),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(usage)
}

/// A second descriptor of a directory, to find its entries while the first one lists them.
fn dir_fd(dir: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(dir, 0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn links_count_once_and_nothing_outside_counts() {
        let dir = tempfile::tempdir().expect("tempdir");
        let outside = tempfile::tempdir().expect("tempdir");
        fs::write(outside.path().join("big"), vec![1; 1 << 20]).expect("write");
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("a/b")).expect("mkdir");
        fs::write(path("a/file"), vec![1; 100_000]).expect("write");
        fs::hard_link(path("a/file"), path("a/b/again")).expect("link");
        symlink(outside.path(), path("away")).expect("symlink");
        let expected: u64 = ["", "a", "a/b", "a/file", "away"]
            .iter()
            .map(|name| fs::symlink_metadata(path(name)).expect("stat").blocks() * 512)
            .sum();
        let usage = measure(dir.path()).expect("measure");
        assert_eq!(
            usage,
            Usage {
                size: expected,
                inodes: 5
            }
        );
    }

    #[test]
    fn a_missing_root_is_an_error() {
        measure(Path::new("/does/not/exist")).expect_err("missing");
    }
}
