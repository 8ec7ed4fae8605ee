//! Deleting trees that containers have made.
//!
//! Such a tree is as deep as its maker liked. A walk that keeps a descriptor or a stack frame for
//! each level would take the daemon, and every container with it, down with a tree of some ten
//! thousand levels; so nothing here grows with the depth.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, openat, unlinkat};
use rustix::io::Errno;

const OPEN_DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Deletes a tree, or a file. `NotFound` says that there was none.
///
/// Directories two levels down are moved up to the first before they are emptied, so the walk
/// never goes deeper than that. A symbolic link is deleted and never followed.
pub(crate) fn remove(tree: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(tree)?.is_dir() {
        return fs::remove_file(tree);
    }
    let top = openat(CWD, tree, OPEN_DIR, Mode::empty())?;
    let mut moved = 0;
    loop {
        let entries = list(&top)?;
        if entries.is_empty() {
            break;
        }
        for (name, is_dir) in entries {
            if is_dir {
                empty(&top, &name, &mut moved)?;
                gone(unlinkat(&top, &name, AtFlags::REMOVEDIR))?;
            } else {
                gone(unlinkat(&top, &name, AtFlags::empty()))?;
            }
        }
    }
    fs::remove_dir(tree)
}

/// Empties the directory `name` of `top`: its directories are moved into `top`.
fn empty(top: &OwnedFd, name: &CString, moved: &mut u64) -> io::Result<()> {
    let dir = match openat(top, name, OPEN_DIR, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    for (child, is_dir) in list(&dir)? {
        if is_dir {
            move_up(&dir, &child, top, moved)?;
        } else {
            gone(unlinkat(&dir, &child, AtFlags::empty()))?;
        }
    }
    Ok(())
}

/// Moves a directory into `top`, under a name that is free there.
fn move_up(dir: &OwnedFd, child: &CString, top: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        let name = format!("moved-{moved}");
        match rustix::fs::renameat_with(dir, child, top, &*name, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The entries of a directory, and whether each is a directory itself.
fn list(dir: &OwnedFd) -> io::Result<Vec<(CString, bool)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            let is_dir = entry.file_type() == FileType::Directory;
            entries.push((entry.file_name().to_owned(), is_dir));
        }
    }
    Ok(entries)
}

/// What somebody else has deleted meanwhile is deleted.
fn gone(deleted: Result<(), Errno>) -> io::Result<()> {
    match deleted {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes a chain of so many directories, each in the one before.
#[cfg(test)]
pub(crate) fn make_deep(dir: &Path, levels: usize) {
    use rustix::fs::mkdirat;
    let mut at = openat(CWD, dir, OPEN_DIR, Mode::empty()).expect("open");
    for _ in 0..levels {
        mkdirat(&at, "d", Mode::RWXU).expect("mkdir");
        at = openat(&at, "d", OPEN_DIR, Mode::empty()).expect("open");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_deep_tree_goes_and_what_it_points_at_stays() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (tree, other) = (dir.path().join("tree"), dir.path().join("other"));
        fs::create_dir_all(tree.join("moved-1/a/b")).expect("mkdir");
        fs::create_dir(&other).expect("mkdir");
        fs::write(other.join("kept"), "x").expect("write");
        fs::write(tree.join("moved-1/a/b/file"), "x").expect("write");
        symlink(&other, tree.join("moved-1/a/link")).expect("symlink");
        make_deep(&tree, 20_000);
        remove(&tree).expect("remove");
        assert!(!tree.exists() && other.join("kept").exists());
        let error = remove(&tree).expect_err("gone");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        symlink(&other, &tree).expect("symlink");
        remove(&tree).expect("remove a link");
        assert!(other.join("kept").exists());
    }
}
