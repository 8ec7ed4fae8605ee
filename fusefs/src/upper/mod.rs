//! The upper: what one container wrote, in overlayfs's format, and the work directory beside it.
//!
//! ```text
//! upperdir/            the entries, whiteouts and marks (crate::marks)
//! workdir/work/        things under construction, and a whiteout of which the others are links;
//!                      cleared at every start
//! workdir/index/       one link for each copied-up file that has hard links in the image, named
//!                      by the image file's handle in hexadecimal
//! workdir/partial      there if files of the upper may be partial (crate::marks)
//! ```
//!
//! Nothing here decides what the union means; this module gives the union the steps, each of which
//! is atomic: something is made complete in `work/`, then renamed to its place.

mod links;
mod stage;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, FlockOperation, flock};
use rustix::fs::{Mode, OFlags, RenameFlags, XattrFlags, fstat, openat, statat};
use rustix::io::Errno;

pub(crate) use links::{LinkIndex, from_hex, handle_of, to_hex};
pub(crate) use stage::Stage;

use crate::error::{Error, Result};
use crate::marks;
use crate::sys::beneath::open_root;
use crate::sys::change::{create, linkat, mkdirat, mknodat, renameat, renameat_with, unlinkat};
use crate::sys::dir;
use crate::sys::extents::holes_are_exact;
use crate::sys::place::Place;
use crate::types::{FileKind, Ino, SetTime};

/// What one container wrote.
#[derive(Debug)]
pub struct Upper {
    root: Arc<OwnedFd>,
    work: Arc<OwnedFd>,
    /// The work directory as it was named; locked, so that no two unions use it.
    outer: OwnedFd,
    /// Work files get a number each; the names mean nothing after a restart.
    next_work: AtomicU64,
    /// Whether [`WHITEOUT`] is there.
    has_whiteout: Mutex<bool>,
    device: u64,
    /// Whether the holes of a file tell what nobody wrote to.
    exact_holes: bool,
    links: LinkIndex,
    /// Whether [`PARTIAL`] is known to be there.
    is_partial_noted: AtomicBool,
}

/// The name in `work/` of the whiteout of which the others are links.
pub(crate) const WHITEOUT: &str = "whiteout";

/// The name of the note in the work directory that there may be partial files.
const PARTIAL: &str = "partial";

impl Upper {
    /// Opens an upper directory and its work directory, which must exist, lie on one file system,
    /// neither inside the other, and be used by nobody else. Clears what an earlier crash left in the work directory.
    pub fn open(upper: &Path, work: &Path) -> Result<Upper> {
        let opened = Upper::open_unprobed(upper, work)?;
        opened.probe_marks().map_err(|e| {
            failed(
                "the file system keeps no trusted.* extended attributes: the work directory",
                work,
                e,
            )
        })?;
        Ok(opened)
    }

    /// The same on a file system that is known to keep the marks (`trusted.*` extended attributes): nothing
    /// is made to find out.
    pub fn open_unprobed(upper: &Path, work: &Path) -> Result<Upper> {
        let root = open_root(upper).map_err(|e| failed("cannot open the upper", upper, e))?;
        let outer =
            open_root(work).map_err(|e| failed("cannot open the work directory", work, e))?;
        let (stat, work_stat) = (fstat(&root)?, fstat(&outer)?);
        if stat.st_dev != work_stat.st_dev {
            return Err(failed(
                "not on the upper's file system: the work directory",
                work,
                Errno::XDEV,
            ));
        }
        if stat.st_ino == work_stat.st_ino {
            return Err(failed(
                "the upper itself can't be the work directory",
                work,
                Errno::INVAL,
            ));
        }
        check_apart(&root, upper, &outer, work)?;
        flock(&outer, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| failed("in use by another mount: the work directory", work, e))?;
        let inner = dir::make_dir(&outer, "work")
            .map_err(|e| failed("cannot make the directory work/ in", work, e))?;
        let index = dir::make_dir(&outer, "index")
            .map_err(|e| failed("cannot make the directory index/ in", work, e))?;
        dir::clear(inner.as_fd())
            .map_err(|e| failed("cannot clear the work directory", work, e))?;
        let exact_holes = holes_are_exact(&inner)
            .map_err(|e| failed("cannot look at the file system of", work, e))?;
        Ok(Upper {
            root: Arc::new(root),
            work: Arc::new(inner),
            outer,
            next_work: AtomicU64::new(0),
            has_whiteout: Mutex::new(false),
            device: stat.st_dev,
            exact_holes,
            links: LinkIndex::open(index)?,
            is_partial_noted: AtomicBool::new(false),
        })
    }

    /// The upper's root directory.
    pub(crate) fn root(&self) -> &Arc<OwnedFd> {
        &self.root
    }

    /// The device number of the upper's file system.
    pub(crate) fn device(&self) -> u64 {
        self.device
    }

    /// Whether a file may have the data of some of its blocks, told by its holes.
    pub(crate) fn has_exact_holes(&self) -> bool {
        self.exact_holes
    }

    /// Notes that there are partial files, before there is one.
    pub(crate) fn note_partial(&self) -> Result<(), Errno> {
        if !self.is_partial_noted.load(Ordering::Acquire) {
            match create(&self.outer, PARTIAL, Mode::RUSR | Mode::WUSR) {
                Ok(_) | Err(Errno::EXIST) => self.is_partial_noted.store(true, Ordering::Release),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether there may be partial files.
    pub(crate) fn may_be_partial(&self) -> Result<bool, Errno> {
        match statat(&self.outer, PARTIAL, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the note away. Nobody may be making partial files.
    pub(crate) fn forget_partial(&self) -> Result<(), Errno> {
        self.is_partial_noted.store(false, Ordering::Release);
        unlinkat(&self.outer, PARTIAL, AtFlags::empty())
    }

    /// The copied-up files that have hard links in the image.
    pub(crate) fn links(&self) -> &LinkIndex {
        &self.links
    }

    /// The directory for things under construction, and a fresh name in it.
    pub(crate) fn work_name(&self) -> (&Arc<OwnedFd>, OsString) {
        let number = self.next_work.fetch_add(1, Ordering::Relaxed);
        (&self.work, OsString::from(format!("#{number:x}")))
    }

    /// A directory under construction that gives what is created in it what `parent` would give:
    /// group, setgid bit and default ACL.
    pub(crate) fn stage(&self, parent: &Arc<OwnedFd>) -> Result<Stage<'_>, Errno> {
        Stage::like(self, parent)
    }

    /// Puts a whiteout at `name`, replacing what is there (`old`), in one step.
    pub(crate) fn whiteout(
        &self,
        dir: &Arc<OwnedFd>,
        name: &OsStr,
        old: Option<FileKind>,
    ) -> Result<(), Errno> {
        let Some(old) = old else {
            return self.link_whiteout(dir, name);
        };
        let (work, temp) = self.work_name();
        self.link_whiteout(work, &temp)?;
        let result = if old == FileKind::Directory {
            renameat_with(work, &temp, dir, name, RenameFlags::EXCHANGE)
        } else {
            renameat(work, &temp, dir, name)
        };
        // What was replaced, or the whiteout that was not put there.
        self.discard(&temp);
        result
    }

    /// Puts a whiteout at a free name: a link to one that is kept in the work directory, since a new
    /// inode costs several times as much (overlayfs does so too: `ovl_whiteout`, fs/overlayfs/dir.c).
    fn link_whiteout(&self, dir: &Arc<OwnedFd>, name: &OsStr) -> Result<(), Errno> {
        let mut is_kept = self.has_whiteout.lock();
        if !*is_kept {
            make_whiteout(&self.work, WHITEOUT.as_ref())?;
            *is_kept = true;
        }
        match linkat(&self.work, WHITEOUT, dir, name, AtFlags::empty()) {
            // As many links as an inode takes; the next one is another's.
            Err(Errno::MLINK) => {
                unlinkat(&self.work, WHITEOUT, AtFlags::empty())?;
                *is_kept = false;
                make_whiteout(dir, name)
            }
            // No links here (another project's quota, another subvolume).
            Err(Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP) => make_whiteout(dir, name),
            linked => linked,
        }
    }

    /// Gives a file the name that a whiteout holds, in one step.
    pub(crate) fn link_over(
        &self,
        file: &Place,
        dir: &OwnedFd,
        whiteout: &OsStr,
    ) -> Result<(), Errno> {
        let (work, temp) = self.work_name();
        file.link_to(work, &temp)?;
        let renamed = renameat(work, &temp, dir, whiteout);
        if renamed.is_err() {
            self.discard(&temp);
        }
        renamed
    }

    /// Makes an empty directory in the work directory that hides what is below, and else looks
    /// like `dir`.
    pub(crate) fn empty_like(&self, dir: &Place) -> Result<OsString, Errno> {
        let (work, temp) = self.work_name();
        mkdirat(work, &temp, Mode::RWXU)?;
        let made = dress(&Place::at(work, &temp), dir);
        if made.is_err() {
            self.discard(&temp);
        }
        made.map(|()| temp)
    }

    /// Lets a thing in the work directory and one in the tree change places.
    pub(crate) fn swap(&self, temp: &OsStr, dir: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        renameat_with(&self.work, temp, dir, name, RenameFlags::EXCHANGE)
    }

    /// Takes a directory out of the tree in one step, whatever whiteouts are left in it.
    pub(crate) fn take_out(&self, dir: &Arc<OwnedFd>, name: &OsStr) -> Result<(), Errno> {
        let (work, temp) = self.work_name();
        renameat_with(dir, name, work, &temp, RenameFlags::NOREPLACE)?;
        self.discard(&temp);
        Ok(())
    }

    /// Removes a thing from the work directory. A failure only leaves it until the next start.
    pub(crate) fn discard(&self, temp: &OsStr) {
        let Ok(stat) = statat(&self.work, temp, AtFlags::SYMLINK_NOFOLLOW) else {
            return;
        };
        let kind = crate::sys::kind_of(&stat);
        if let Err(error) = dir::remove_tree(self.work.as_fd(), temp, kind) {
            tracing::warn!(?temp, %error, "cannot remove a work file; the next start will");
        }
    }

    /// Fails unless the file system keeps the marks' xattrs. A full one can't be asked: whoever needs a mark
    /// there is refused then, and nobody else.
    fn probe_marks(&self) -> Result<(), Errno> {
        let (work, temp) = self.work_name();
        let result = mkdirat(work, &temp, Mode::RWXU).and_then(|()| {
            let result = marks::set_opaque(&Place::at(work, &temp));
            unlinkat(work, &temp, AtFlags::REMOVEDIR)?;
            result
        });
        match result {
            Err(Errno::NOSPC | Errno::DQUOT) => Ok(()),
            result => result,
        }
    }
}

/// Gives a new directory everything that `like` shows but its entries: owner, mode, xattrs (ACLs
/// among them), times.
fn dress(dir: &Place, like: &Place) -> Result<(), Errno> {
    let stat = like.stat()?;
    let attr = crate::sys::attr_of(&stat, Ino(stat.st_ino));
    dir.chown(Some(attr.uid), Some(attr.gid))?;
    dir.chmod(u32::from(attr.perm))?;
    for name in like.xattr_names()? {
        if let Some(value) = like.xattr(&name)?.filter(|_| !marks::is_private(&name)) {
            dir.set_xattr(&name, &value, XattrFlags::empty())?;
        }
    }
    marks::set_opaque(dir)?;
    let (atime, mtime) = (SetTime::At(attr.atime), SetTime::At(attr.mtime));
    dir.utimens(Some(atime), Some(mtime))
}

/// Refuses an upper and a work directory of which one lies inside the other: the container would
/// see and change what is under construction, or the next mount would clear the upper away.
fn check_apart(root: &OwnedFd, upper: &Path, outer: &OwnedFd, work: &Path) -> Result<()> {
    if is_inside(outer, root)? {
        let action = "inside the upper, where containers would see it: the work directory";
        return Err(failed(action, work, Errno::INVAL));
    }
    if is_inside(root, outer)? {
        let action = "inside its work directory, which mounts clear: the upper";
        return Err(failed(action, upper, Errno::INVAL));
    }
    Ok(())
}

/// Whether a directory is another one or lies somewhere in it. Goes up from `..` to `..`, which no
/// symlink and no name can mislead.
pub(crate) fn is_inside(dir: &OwnedFd, outer: &OwnedFd) -> Result<bool, Errno> {
    let identity = |fd: &OwnedFd| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    let (outer, flags) = (
        identity(outer)?,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
    );
    let mut at = openat(dir, ".", flags, Mode::empty())?;
    loop {
        let up = openat(&at, "..", flags, Mode::empty())?;
        let here = identity(&at)?;
        if here == outer {
            return Ok(true);
        }
        // The root of all is its own parent.
        if identity(&up)? == here {
            return Ok(false);
        }
        at = up;
    }
}

/// Makes a whiteout at a free name.
pub(crate) fn make_whiteout(dir: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    mknodat(
        dir,
        name,
        FileType::CharacterDevice,
        Mode::empty(),
        marks::WHITEOUT_DEVICE,
    )
}

fn failed(action: &'static str, path: &Path, errno: Errno) -> Error {
    Error::Path {
        action,
        path: PathBuf::from(path),
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn whiteouts_are_links_of_one() {
        let dir = tempfile::tempdir().unwrap();
        for part in ["upper", "work"] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        let place = dir.path().join("upper");
        let open = || Upper::open(&place, &dir.path().join("work")).unwrap();
        let upper = open();
        fs::write(place.join("file"), "").unwrap();
        fs::create_dir_all(place.join("dir/in")).unwrap();
        for (name, old) in [
            ("a", None),
            ("file", Some(FileKind::Regular)),
            ("dir", Some(FileKind::Directory)),
        ] {
            upper.whiteout(upper.root(), OsStr::new(name), old).unwrap();
        }
        let kept = dir.path().join("work/work").join(WHITEOUT);
        assert_eq!(fs::metadata(&kept).unwrap().nlink(), 4);
        drop(upper);
        // Another union does not link to it: it is cleared, and made anew.
        let upper = open();
        upper.whiteout(upper.root(), OsStr::new("b"), None).unwrap();
        assert_eq!(fs::metadata(&kept).unwrap().nlink(), 2);
        for name in ["a", "b", "file", "dir"] {
            let stat = statat(upper.root(), name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert!(marks::is_whiteout(&stat), "{name}");
        }
    }
}
