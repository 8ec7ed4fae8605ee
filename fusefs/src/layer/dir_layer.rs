//! A layer that lies unpacked in a directory of this host, in overlayfs's format.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{OFlags, fstat};
use rustix::io::Errno;

use super::{Below, Described, EntryKind, Layer, LayerEntry};
use crate::error::{Error, Result};
use crate::index::Stamp;
use crate::marks::{self, Redirect};
use crate::sys::beneath::{open_beneath, open_root};
use crate::sys::dir::read_dir;
use crate::sys::place::Place;
use crate::sys::{attr_of, kind_of};
use crate::types::{Attr, FileKind, Ino};

/// What is wrong with a layer that lacks what it had.
const GONE: &str =
    "it is gone: somebody deleted it from the layer; remove the image, and pull it again";

/// A layer that lies unpacked in a directory of this host.
///
/// Every path is walked below the root by descriptor; no symlink in the layer is ever followed.
#[derive(Debug)]
pub struct DirLayer {
    name: String,
    root: OwnedFd,
    device: u64,
    stamp: Stamp,
}

impl DirLayer {
    /// Opens the directory at `path` as a layer.
    pub fn open(path: &Path) -> Result<DirLayer> {
        let failed = |source: Errno| Error::Path {
            action: "cannot open the layer",
            path: path.to_owned(),
            source: source.into(),
        };
        let root = open_root(path).map_err(failed)?;
        let stat = fstat(&root).map_err(failed)?;
        let attr = attr_of(&stat, Ino(stat.st_ino));
        Ok(DirLayer {
            name: path.display().to_string(),
            root,
            device: stat.st_dev,
            stamp: Stamp {
                ino: attr.ino.0,
                ctime: attr.ctime,
            },
        })
    }

    /// What tells this directory from another one, as it was when it was opened.
    pub(crate) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Everything of the root.
    pub(crate) fn describe_root(&self) -> Result<Described> {
        let path = Path::new("");
        let place = self.place(path)?;
        self.described(OsString::new(), path, &place, MarkedFiles::default())
    }

    /// Everything of every entry of a directory: what the methods of [`Layer`] tell one by one.
    pub(crate) fn describe(&self, dir: &Path) -> Result<Vec<Described>> {
        let fd = self.open_dir(dir)?;
        let held = MarkedFiles::of(&Place::Fd(Arc::clone(&fd)))?;
        let entries = read_dir(fd.as_fd())?.into_iter();
        let all = entries.map(|entry| {
            let place = Place::at(&fd, &entry.name);
            let path = dir.join(&entry.name);
            self.described(entry.name, &path, &place, held)
        });
        all.collect()
    }

    fn described(
        &self,
        name: OsString,
        path: &Path,
        place: &Place,
        held: MarkedFiles,
    ) -> Result<Described> {
        let stat = place.stat()?;
        let kind = held.kind(place)?;
        let mut described = Described {
            name,
            kind,
            attr: attr_of(&stat, Ino(stat.st_ino)),
            xattrs: Vec::new(),
            target: None,
            below: Below::Nothing,
        };
        if kind == EntryKind::Whiteout {
            return Ok(described);
        }
        for name in place.xattr_names()? {
            if let Some(value) = place.xattr(&name)? {
                described.xattrs.push((name, value));
            }
        }
        let marked = !described.xattrs.is_empty();
        match kind_of(&stat) {
            FileKind::Symlink => described.target = Some(place.readlink()?),
            FileKind::Directory if marked => described.below = self.below_dir(place, path)?,
            FileKind::Directory => described.below = Below::SamePath,
            FileKind::Regular if kind == EntryKind::File(FileKind::CharDevice) => {
                marks::show_device(&mut described.attr);
            }
            FileKind::Regular if marked => described.below = self.below_file(place, path)?,
            _ => {}
        }
        Ok(described)
    }

    /// The entry itself, opened with `O_PATH`.
    fn place(&self, path: &Path) -> Result<Place> {
        Ok(Place::Fd(Arc::new(self.open_path(path)?)))
    }

    fn open_path(&self, path: &Path) -> Result<OwnedFd> {
        let opened = open_beneath(self.root.as_fd(), path, OFlags::PATH);
        opened.map_err(|errno| self.known(errno, path))
    }

    fn open_dir(&self, dir: &Path) -> Result<Arc<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let opened = open_beneath(self.root.as_fd(), dir, flags);
        opened.map(Arc::new).map_err(|errno| self.known(errno, dir))
    }

    /// What it means that an entry which is known to be there can't be opened. A layer never changes: one
    /// that lacks it was damaged, and "no such file" would be a lie about the image.
    fn known(&self, errno: Errno, path: &Path) -> Error {
        match errno {
            Errno::NOENT => self.bad(path, GONE),
            errno => errno.into(),
        }
    }

    /// Whether the directory itself was deleted since it was opened.
    fn is_deleted(&self) -> Result<bool> {
        Ok(fstat(&self.root)?.st_nlink == 0)
    }

    /// How a directory continues below.
    fn below_dir(&self, place: &Place, path: &Path) -> Result<Below> {
        if marks::is_opaque(place)? {
            return Ok(Below::Nothing);
        }
        self.redirect(place, path)
    }

    /// Where the data of a regular file are.
    fn below_file(&self, place: &Place, path: &Path) -> Result<Below> {
        let metacopy = marks::is_metacopy(place)
            .map_err(|errno| self.bad_mark(errno, path, "its metacopy mark makes no sense"))?;
        if metacopy {
            self.redirect(place, path)
        } else {
            Ok(Below::Nothing)
        }
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
    fn bad_mark(&self, errno: Errno, path: &Path, what: &'static str) -> Error {
        if errno == Errno::IO {
            self.bad(path, what)
        } else {
            errno.into()
        }
    }

    /// What the entry at a path is.
    fn kind(&self, path: &Path, place: &Place) -> Result<EntryKind> {
        let held = match path.parent() {
            Some(dir) if marks::may_stand_for_another(&place.stat()?) => {
                MarkedFiles::of(&Place::Fd(self.open_dir(dir)?))?
            }
            _ => MarkedFiles::default(),
        };
        held.kind(place)
    }

    fn bad(&self, path: &Path, what: &'static str) -> Error {
        Error::BadLayer {
            layer: self.name.clone(),
            path: path.to_owned(),
            what,
        }
    }
}

/// What the regular files of a directory may be, by the marks on the directory. Where it is
/// nothing else, they need not be asked.
#[derive(Clone, Copy, Default)]
struct MarkedFiles {
    whiteouts: bool,
    devices: bool,
}

impl MarkedFiles {
    fn of(dir: &Place) -> Result<MarkedFiles> {
        Ok(MarkedFiles {
            whiteouts: marks::holds_whiteout_files(dir)?,
            devices: marks::is_impure(dir)?,
        })
    }

    fn any(self) -> bool {
        self.whiteouts || self.devices
    }

    /// What an entry of the directory is.
    fn kind(self, place: &Place) -> Result<EntryKind> {
        let stat = place.stat()?;
        let whiteout =
            marks::is_whiteout(&stat) || (self.whiteouts && marks::is_whiteout_file(place, &stat)?);
        Ok(if whiteout {
            EntryKind::Whiteout
        } else if self.devices && marks::is_device(place, &stat)? {
            EntryKind::File(FileKind::CharDevice)
        } else {
            EntryKind::File(kind_of(&stat))
        })
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
        let held = MarkedFiles::of(&Place::Fd(Arc::clone(&fd)))?;
        let entries = read_dir(fd.as_fd()).map_err(|errno| self.known(errno, dir))?;
        entries
            .into_iter()
            .map(|entry| {
                // Only those that may be something else cost a stat.
                let kind = match entry.kind {
                    FileKind::CharDevice => held.kind(&Place::at(&fd, &entry.name))?,
                    FileKind::Regular if held.any() => held.kind(&Place::at(&fd, &entry.name))?,
                    kind => EntryKind::File(kind),
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
        match open_beneath(self.root.as_fd(), path, OFlags::PATH) {
            Ok(fd) => self.kind(path, &Place::Fd(Arc::new(fd))).map(Some),
            // Else the layers below would answer for it.
            Err(Errno::NOENT) if self.is_deleted()? => Err(self.bad(path, GONE)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn below(&self, dir: &Path) -> Result<Below> {
        self.below_dir(&Place::Fd(self.open_dir(dir)?), dir)
    }

    fn attr(&self, path: &Path) -> Result<Attr> {
        let place = self.place(path)?;
        let stat = place.stat()?;
        let mut attr = attr_of(&stat, Ino(stat.st_ino));
        let device = EntryKind::File(FileKind::CharDevice);
        if marks::is_device(&place, &stat)? && self.kind(path, &place)? == device {
            marks::show_device(&mut attr);
        }
        Ok(attr)
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
        let opened = open_beneath(self.root.as_fd(), path, flags);
        if let (Err(Errno::LOOP), Some(dir)) = (&opened, path.parent()) {
            // A symlink where a directory was is no directory, as for everything else.
            self.open_dir(dir)?;
        }
        let file = opened.map_err(|errno| self.known(errno, path))?;
        if kind_of(&fstat(&file)?) != FileKind::Regular {
            return Err(self.bad(path, "the file changed its kind while the layer was in use"));
        }
        Ok(File::from(file))
    }

    fn data(&self, path: &Path) -> Result<Below> {
        self.below_file(&self.place(path)?, path)
    }

    fn file_system(&self) -> Option<BorrowedFd<'_>> {
        Some(self.root.as_fd())
    }

    fn host_file(&self, path: &Path) -> Result<Option<OwnedFd>> {
        self.open_path(path).map(Some)
    }
}
