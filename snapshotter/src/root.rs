//! Whether a directory can be the root, and the lock that makes it ours.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use lamina_fusefs::descriptors;
use rustix::fs::{Dir, FileType, FlockOperation, XattrFlags, flock, setxattr};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Error, Result};
use crate::store::layout::Layout;

/// The xattr that the probe sets: the name space in which uppers keep their marks.
const PROBE_XATTR: &str = "trusted.lamina-probe";

/// Held by the one process that may change a root directory; given up when it is dropped, and by
/// the kernel when the process dies.
#[derive(Debug)]
pub struct RootLock {
    _file: File,
}

impl RootLock {
    /// Takes the lock, or fails at once if another process holds it.
    pub fn acquire(layout: &Layout) -> Result<RootLock> {
        let path = layout.lock();
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("cannot open the lock file", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(RootLock { _file: file }),
            Err(Errno::WOULDBLOCK) => Err(Error::RootInUse {
                path: layout.root().to_owned(),
            }),
            Err(errno) => Err(Error::io("cannot lock", &path)(errno)),
        }
    }
}

/// Makes sure that the file system of the root can hold uppers: it needs `trusted.*` xattrs, and
/// must tell the type of an entry in listings (`d_type`), or overlayfs would refuse it too.
pub fn probe(layout: &Layout) -> Result<()> {
    let dir = layout.probe();
    remove_tree(&dir)?;
    let file = dir.join("file");
    let answer = fs::create_dir(&dir)
        .and_then(|()| File::create(&file))
        .map_err(Error::io("cannot create a file in", &dir))
        .and_then(|_| probe_xattr(layout, &file))
        .and_then(|()| probe_entry_type(layout, &dir));
    remove_tree(&dir)?;
    match answer {
        // It was tried when the root was made. Containers wait for this start, and what they delete makes room.
        Err(Error::Io { source, .. })
            if source.kind() == io::ErrorKind::StorageFull && layout.store().exists() =>
        {
            tracing::warn!(path = %layout.root().display(), "the file system of the root is full");
            Ok(())
        }
        answer => answer,
    }
}

fn probe_xattr(layout: &Layout, file: &Path) -> Result<()> {
    let reason = match setxattr(file, PROBE_XATTR, b"y", XattrFlags::empty()) {
        Ok(()) => return Ok(()),
        Err(Errno::PERM | Errno::ACCESS) => {
            "setting a trusted.* extended attribute was not permitted: run Lamina as root"
                .to_owned()
        }
        Err(Errno::NOTSUP) => {
            "its file system has no trusted.* extended attributes: use ext4, xfs \
                               or btrfs"
                .to_owned()
        }
        Err(errno) => {
            return Err(Error::io("cannot set an extended attribute of", file)(
                errno,
            ));
        }
    };
    Err(Error::BadRoot {
        path: layout.root().to_owned(),
        reason,
    })
}

fn probe_entry_type(layout: &Layout, dir: &Path) -> Result<()> {
    let list = || -> Result<bool, Errno> {
        let handle = rustix::fs::open(
            dir,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY,
            rustix::fs::Mode::empty(),
        )?;
        for entry in Dir::new(handle)? {
            let entry = entry?;
            if entry.file_name() == c"file" {
                return Ok(entry.file_type() == FileType::RegularFile);
            }
        }
        Ok(false)
    };
    if list().map_err(Error::io("cannot list", dir))? {
        return Ok(());
    }
    Err(Error::BadRoot {
        path: layout.root().to_owned(),
        reason: "its file system does not tell the type of an entry (d_type): use ext4, xfs made \
                 with ftype=1, or btrfs"
            .to_owned(),
    })
}

fn remove_tree(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("cannot remove", dir)(error))
        }
        _ => Ok(()),
    }
}

/// Raises the number of descriptors that this process may have to what it is allowed at most:
/// open files of containers are descriptors of ours.
pub fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    ) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    // It remembers the limit, and a descriptor of its own.
    if let Err(error) = descriptors::require_room() {
        tracing::warn!(%error, "there is hardly room for open files of containers");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_lock_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let layout = Layout::create(dir.path()).expect("layout");
        let first = RootLock::acquire(&layout).expect("lock");
        let error = RootLock::acquire(&layout).expect_err("held");
        assert!(matches!(error, Error::RootInUse { .. }), "{error}");
        drop(first);
        RootLock::acquire(&layout).expect("free again");
    }

    #[test]
    fn the_probe_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("tempdir");
        let layout = Layout::create(dir.path()).expect("layout");
        fs::create_dir(layout.probe()).expect("left over from a crash");
        probe(&layout).expect("probe");
        assert!(!layout.probe().exists());
    }

    #[test]
    fn a_file_system_without_trusted_xattrs_is_refused() {
        // proc takes no xattrs, whoever asks; sysfs and vfat would do as well.
        let layout = Layout::of(Path::new("/proc/self")).expect("layout");
        let error = probe_xattr(&layout, Path::new("/proc/self/comm")).expect_err("refused");
        assert!(matches!(error, Error::BadRoot { .. }), "{error}");
        assert!(error.to_string().contains("trusted.*"), "{error}");
    }

    #[test]
    fn the_descriptor_limit_goes_up() {
        raise_descriptor_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
