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

/// How many directories the walk keeps open. A tree is as deep as a container likes, and the
/// descriptors are those of all containers.
const MOST_OPEN: usize = 64;

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
    // The directories from the root to where the walk is.
    let mut stack = vec![Level::list(top, &mut count)?];
    while let Some(level) = stack.last_mut() {
        let Some(name) = level.ahead.pop() else {
            leave(&mut stack)?;
            continue;
        };
        let Some(dir) = &level.dir else {
            return Err(Errno::STALE);
        };
        match openat(dir, &name, OPEN_DIR, Mode::empty()) {
            Ok(child) => stack.push(Level::list(child, &mut count)?),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(errno),
        }
        // The root stays open, and those near to where the walk is.
        if let Some(far) = stack.len().checked_sub(MOST_OPEN).filter(|far| *far > 0) {
            stack[far].dir = None;
        }
    }
    Ok(usage)
}

/// A directory that the walk is in.
struct Level {
    /// Its descriptor, unless the walk is far below.
    dir: Option<OwnedFd>,
    /// Device and inode: which directory it is.
    identity: (u64, u64),
    /// The directories in it that are still to be visited.
    ahead: Vec<CString>,
}

impl Level {
    /// Reads a directory and counts what is in it.
    fn list(dir: OwnedFd, count: &mut impl FnMut(&rustix::fs::Stat)) -> Result<Level, Errno> {
        let own = rustix::fs::fstat(&dir)?;
        let mut ahead = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let name: CString = entry?.file_name().to_owned();
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            };
            count(&stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                ahead.push(name);
            }
        }
        Ok(Level {
            dir: Some(dir),
            identity: (own.st_dev, own.st_ino),
            ahead,
        })
    }
}

/// Goes one directory up. One that was closed is found again through `..`, and must be the same:
/// somebody who moves directories meanwhile must not lead the walk elsewhere.
fn leave(stack: &mut Vec<Level>) -> Result<(), Errno> {
    let left = stack.pop();
    let (Some(level), Some(child)) = (stack.last_mut(), left.and_then(|left| left.dir)) else {
        return Ok(());
    };
    if level.dir.is_none() {
        let dir = openat(&child, "..", OPEN_DIR, Mode::empty())?;
        let stat = rustix::fs::fstat(&dir)?;
        if (stat.st_dev, stat.st_ino) != level.identity {
            return Err(Errno::STALE);
        }
        level.dir = Some(dir);
    }
    Ok(())
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
    fn a_deep_tree_takes_few_descriptors() {
        let dir = tempfile::tempdir().expect("tempdir");
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).expect("mkdir");
        crate::trees::make_deep(&tree, 20_000);
        fs::create_dir_all(tree.join("d/z/d")).expect("a second branch");
        assert_eq!(measure(&tree).expect("measure").inodes, 20_003);
        crate::trees::remove(&tree).expect("remove");
    }

    #[test]
    fn a_missing_root_is_an_error() {
        measure(Path::new("/does/not/exist")).expect_err("missing");
    }
}
