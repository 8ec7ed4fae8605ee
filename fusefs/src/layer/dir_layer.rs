//! A layer that lies unpacked in a directory of this host, in overlayfs's format.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{OFlags, fstat};

use super::{Below, EntryKind, Layer, LayerEntry};
use crate::error::{Error, Result};
use crate::marks::{self, Redirect};
use crate::sys::beneath::{open_beneath, open_root};
use crate::sys::dir::read_dir;
use crate::sys::place::Place;
use crate::sys::{attr_of, kind_of};
use crate::types::{Attr, FileKind, Ino};

/// A layer that lies unpacked in a directory of this host.
///
/// Every path is walked below the root by descriptor; no symlink in the layer is ever followed.
#[derive(Debug)]
pub struct DirLayer {
    name: String,
    root: OwnedFd,
    device: u64,
}

impl DirLayer {
    /// Opens the directory at `path` as a layer.
    pub fn open(path: &Path) -> Result<DirLayer> {
        let failed = |source: rustix::io::Errno| Error::Path {
            action: "cannot open the layer",
            path: path.to_owned(),
            source: source.into(),
        };
        let root = open_root(path).map_err(failed)?;
        let device = fstat(&root).map_err(failed)?.st_dev;
        Ok(DirLayer {
            name: path.display().to_string(),
            root,
            device,
        })
    }

    /// The entry itself, opened with `O_PATH`.
    fn place(&self, path: &Path) -> Result<Place> {
        Ok(Place::Fd(Arc::new(self.open_path(path)?)))
    }

    fn open_path(&self, path: &Path) -> Result<OwnedFd> {
        Ok(open_beneath(self.root.as_fd(), path, OFlags::PATH)?)
    }

    fn open_dir(&self, dir: &Path) -> Result<Arc<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Ok(Arc::new(open_beneath(self.root.as_fd(), dir, flags)?))
    }

    fn redirect(&self, place: &Place, path: &Path) -> Result<Below> {
        let redirect = marks::redirect(place).map_err(|errno| {
            self.bad_mark(
                errno,
                path,
                "its redirect leads out of the layer or makes no sense",
            )
        })?;
        Ok(match redirect {
            None => Below::SamePath,
            Some(Redirect::Absolute(path)) => Below::Redirect(path),
            Some(Redirect::Sibling(name)) => Below::Sibling(PathBuf::into_os_string(name)),
        })
    }

    /// EIO from reading a mark is a value that makes no sense.
    fn bad_mark(&self, errno: rustix::io::Errno, path: &Path, what: &'static str) -> Error {
        if errno == rustix::io::Errno::IO {
            self.bad(path, what)
        } else {
            errno.into()
        }
    }

    fn bad(&self, path: &Path, what: &'static str) -> Error {
        Error::BadLayer {
            layer: self.name.clone(),
            path: path.to_owned(),
            what,
        }
    }
}

impl Layer for DirLayer {
    fn name(&self) -> &str {
        &self.name
    }

    fn device(&self) -> u64 {
        self.device
    }

    fn read_dir(&self, dir: &Path) -> Result<Vec<LayerEntry>> {
        let fd = self.open_dir(dir)?;
        read_dir(fd.as_fd())?
            .into_iter()
            .map(|entry| {
                // Only a character device can be a whiteout, so only those cost a stat.
                let whiteout = entry.kind == FileKind::CharDevice
                    && marks::is_whiteout(&Place::at(&fd, &entry.name).stat()?);
                let kind = if whiteout {
                    EntryKind::Whiteout
                } else {
                    EntryKind::File(entry.kind)
                };
                Ok(LayerEntry {
                    name: entry.name,
                    kind,
                    ino: Ino(entry.ino),
                })
            })
            .collect()
    }

    fn entry(&self, path: &Path) -> Result<Option<EntryKind>> {
        let stat = match self.place(path).and_then(|place| Ok(place.stat()?)) {
            Ok(stat) => stat,
            Err(error) if error.errno() == rustix::io::Errno::NOENT => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(if marks::is_whiteout(&stat) {
            EntryKind::Whiteout
        } else {
            EntryKind::File(kind_of(&stat))
        }))
    }

    fn below(&self, dir: &Path) -> Result<Below> {
        let place = Place::Fd(self.open_dir(dir)?);
        if marks::is_opaque(&place)? {
            return Ok(Below::Nothing);
        }
        self.redirect(&place, dir)
    }

    fn attr(&self, path: &Path) -> Result<Attr> {
        let stat = self.place(path)?.stat()?;
        Ok(attr_of(&stat, Ino(stat.st_ino)))
    }

    fn readlink(&self, path: &Path) -> Result<OsString> {
        Ok(self.place(path)?.readlink()?)
    }

    fn xattr(&self, path: &Path, name: &OsStr) -> Result<Option<Vec<u8>>> {
        Ok(self.place(path)?.xattr(name)?)
    }

    fn xattr_names(&self, path: &Path) -> Result<Vec<OsString>> {
        Ok(self.place(path)?.xattr_names()?)
    }

    fn open(&self, path: &Path) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = open_beneath(self.root.as_fd(), path, flags)?;
        if kind_of(&fstat(&file)?) != FileKind::Regular {
            return Err(self.bad(path, "the file changed its kind while the layer was in use"));
        }
        Ok(File::from(file))
    }

    fn data(&self, path: &Path) -> Result<Below> {
        let place = self.place(path)?;
        let metacopy = marks::is_metacopy(&place)
            .map_err(|errno| self.bad_mark(errno, path, "its metacopy mark makes no sense"))?;
        if metacopy {
            self.redirect(&place, path)
        } else {
            Ok(Below::Nothing)
        }
    }

    fn file_system(&self) -> Option<BorrowedFd<'_>> {
        Some(self.root.as_fd())
    }

    fn host_file(&self, path: &Path) -> Result<Option<OwnedFd>> {
        self.open_path(path).map(Some)
    }
}
