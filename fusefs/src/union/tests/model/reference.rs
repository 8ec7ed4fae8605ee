//! The model: what a union is, said as simply as it can be.
//!
//! The layers are merged once. From then on there is no layer, no upper and no copy-up: one
//! ordinary tree of inodes and names, on which every operation does what POSIX and Linux say. This
//! is what a container may rely on.
//!
//! Only two things let through that there is an image below, and `docs/semantics.md` names both:
//!
//! - a descriptor for reading that was opened before a file's data were copied up goes on seeing
//!   the image's data ([`View`]);
//! - a hard link that a layer above hides is still counted, until the file is part of a new layer
//!   ([`Inode::hidden`]).
//!
//! The model does everything as root: the kernel checks permissions before it asks the union. Who
//! the caller is decides about owners, and about setuid bits.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustix::io::Errno;

use super::answer::{Answer, Stat, Step, UMASK};
use crate::types::FileKind;
use crate::union::tests::script::{
    Access, Allocate, Device, Mode, Path, ROOT, Renaming, Setting, Special, Time,
};

/// The number of an inode: it is never used again.
pub(super) type Id = usize;

/// The root directory's.
pub(super) const ROOT_ID: Id = 0;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;

/// The whole file system, and what is open of it.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) inodes: Vec<Inode>,
    pub(super) held: [Option<Held>; 3],
    /// The caller's user and group.
    pub(super) user: u32,
    /// Whether the upper's file system knows `FALLOC_FL_ZERO_RANGE`.
    pub(super) zero_range: bool,
}

/// One file of any kind.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    pub(super) perm: u32,
    pub(super) owner: (u32, u32),
    pub(super) xattrs: BTreeMap<&'static str, &'static str>,
    /// `None`: it was changed, and nobody looked since.
    pub(super) mtime: Option<Time>,
    /// How many names lead here.
    pub(super) names: u32,
    /// How many hard links more there are in its layer, hidden by the layers above.
    pub(super) hidden: u32,
    /// Whether it may have become part of a new layer, which holds no hidden link.
    pub(super) maybe_recounted: bool,
    /// `None`: nobody looked yet.
    pub(super) ino: Option<u64>,
    /// Whether its data are the image's still.
    pub(super) data_of: DataOf,
}

/// What a file is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Directory(BTreeMap<&'static str, Id>),
    Regular(Arc<Vec<u8>>),
    Symlink(&'static str),
    /// A pipe, a socket, or a device and its number.
    Special(FileKind, u64),
}

/// Where a file's data come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum DataOf {
    Image,
    /// They were opened for writing.
    Upper,
    /// An error or a crash stopped what would have opened them for writing.
    Either,
}

/// Something open.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) id: Id,
    pub(super) access: Access,
    pub(super) view: View,
}

/// What a descriptor sees of the data.
#[derive(Clone, Debug)]
pub(super) enum View {
    /// The file as it is.
    Current,
    /// The image's file, as it was.
    Image(Arc<Vec<u8>>),
    /// The one or the other.
    Either,
}

impl Inode {
    pub(super) fn new(kind: Kind, perm: u32, owner: (u32, u32)) -> Inode {
        Inode {
            kind,
            perm,
            owner,
            xattrs: BTreeMap::new(),
            mtime: None,
            names: 0,
            hidden: 0,
            maybe_recounted: false,
            ino: None,
            data_of: DataOf::Upper,
        }
    }

    pub(super) fn file_kind(&self) -> FileKind {
        match self.kind {
            Kind::Directory(_) => FileKind::Directory,
            Kind::Regular(_) => FileKind::Regular,
            Kind::Symlink(_) => FileKind::Symlink,
            Kind::Special(kind, _) => kind,
        }
    }

    pub(super) fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Directory(_))
    }

    pub(super) fn entries(&self) -> Result<&BTreeMap<&'static str, Id>, Errno> {
        match &self.kind {
            Kind::Directory(entries) => Ok(entries),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// What a write by somebody without privilege takes away (`setattr_should_drop_suidgid`).
    pub(super) fn drop_set_id(&mut self) {
        self.perm &= !SETUID;
        if self.perm & GROUP_EXECUTE != 0 {
            self.perm &= !SETGID;
        }
    }
}

/// What mknod(2) makes.
pub(super) fn special(kind: Special) -> Kind {
    match kind {
        Special::Regular => Kind::Regular(Arc::default()),
        Special::Pipe => Kind::Special(FileKind::Fifo, 0),
        Special::Socket => Kind::Special(FileKind::Socket, 0),
        Special::Of(Device::Char(major, minor)) => {
            Kind::Special(FileKind::CharDevice, rustix::fs::makedev(major, minor))
        }
        Special::Of(Device::Block(major, minor)) => {
            Kind::Special(FileKind::BlockDevice, rustix::fs::makedev(major, minor))
        }
    }
}

/// Why the kernel's file systems don't set this xattr (`xattr_permission`, fs/xattr.c).
pub(super) fn xattr_refusal(name: &str, kind: FileKind) -> Option<Errno> {
    let with_user_xattrs = matches!(kind, FileKind::Regular | FileKind::Directory);
    match name.split_once('.') {
        None => Some(Errno::OPNOTSUPP),
        Some(("user", _)) if !with_user_xattrs => Some(Errno::PERM),
        Some(_) => None,
    }
}

/// Names.
impl Model {
    /// The inode at a path. No symbolic link is followed.
    pub(super) fn walk(&self, path: Path) -> Result<Id, Errno> {
        if path == ROOT {
            return Ok(ROOT_ID);
        }
        path.split('/').try_fold(ROOT_ID, |dir, name| {
            let entries = self.inodes[dir].entries()?;
            entries.get(name).copied().ok_or(Errno::NOENT)
        })
    }

    /// The directory that a path is in, and its last name.
    pub(super) fn ends(&self, path: Path) -> Result<(Id, &'static str), Errno> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((ROOT, path));
        let parent = self.walk(parent)?;
        self.inodes[parent].entries()?;
        Ok((parent, name))
    }

    pub(super) fn entry(&self, dir: Id, name: &str) -> Option<Id> {
        self.inodes[dir].entries().ok()?.get(name).copied()
    }

    pub(super) fn set_entry(&mut self, dir: Id, name: &'static str, id: Option<Id>) {
        let Kind::Directory(entries) = &mut self.inodes[dir].kind else {
            unreachable!("{name:?} in something else than a directory");
        };
        match id {
            Some(id) => entries.insert(name, id),
            None => entries.remove(name),
        };
    }

    fn add_name(&mut self, dir: Id, name: &'static str, id: Id) {
        self.set_entry(dir, name, Some(id));
        self.inodes[id].names += 1;
        self.inodes[dir].mtime = None;
    }

    fn remove_name(&mut self, dir: Id, name: &'static str) {
        let id = self.entry(dir, name).expect("a name that is there");
        self.set_entry(dir, name, None);
        self.inodes[id].names -= 1;
        self.inodes[dir].mtime = None;
    }

    /// Makes something new at a free name.
    pub(super) fn make(&mut self, path: Path, kind: Kind, mode: u32) -> Step {
        let (dir, name) = self.ends(path)?;
        if self.entry(dir, name).is_some() {
            return Err(Errno::EXIST);
        }
        self.make_at(dir, name, kind, mode);
        Ok(Answer::Done)
    }

    fn make_at(&mut self, dir: Id, name: &'static str, kind: Kind, mode: u32) {
        let is_dir = matches!(kind, Kind::Directory(_));
        let mut perm = match kind {
            Kind::Symlink(_) => 0o777,
            Kind::Directory(_) => mode & 0o1777 & !UMASK,
            _ => mode & 0o7777 & !UMASK,
        };
        let mut group = self.user;
        if self.inodes[dir].perm & SETGID != 0 {
            group = self.inodes[dir].owner.1;
            perm |= if is_dir { SETGID } else { 0 };
        }
        let id = self.add_inode(Inode::new(kind, perm, (self.user, group)));
        self.add_name(dir, name, id);
    }

    pub(super) fn create(&mut self, path: Path, exclusive: bool, mode: Mode) -> Step {
        let (dir, name) = self.ends(path)?;
        match self.entry(dir, name) {
            Some(id) if !exclusive => self.open_data(id)?,
            _ => return self.make(path, special(Special::Regular), mode.0),
        };
        Ok(Answer::Done)
    }

    pub(super) fn link(&mut self, from: Path, to: Path) -> Step {
        let id = self.walk(from)?;
        let (dir, name) = self.ends(to)?;
        if self.inodes[id].is_dir() {
            return Err(Errno::PERM);
        }
        if self.entry(dir, name).is_some() {
            return Err(Errno::EXIST);
        }
        self.add_name(dir, name, id);
        Ok(Answer::Done)
    }

    pub(super) fn remove(&mut self, path: Path, is_dir: bool) -> Step {
        let (dir, name) = self.ends(path)?;
        let id = self.entry(dir, name).ok_or(Errno::NOENT)?;
        match &self.inodes[id].kind {
            Kind::Directory(_) if !is_dir => return Err(Errno::ISDIR),
            Kind::Directory(entries) if !entries.is_empty() => return Err(Errno::NOTEMPTY),
            Kind::Directory(_) => {}
            _ if is_dir => return Err(Errno::NOTDIR),
            _ => {}
        }
        self.remove_name(dir, name);
        Ok(Answer::Done)
    }

    /// renameat2(2), as far as the kernel leaves it to the file system: neither path is below the
    /// other.
    pub(super) fn rename(&mut self, from: Path, to: Path, how: Renaming) -> Step {
        let (dir, name) = self.ends(from)?;
        let (new_dir, new_name) = self.ends(to)?;
        let id = self.entry(dir, name).ok_or(Errno::NOENT)?;
        let there = self.entry(new_dir, new_name);
        match (how, there) {
            (Renaming::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (Renaming::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        if there == Some(id) {
            return Ok(Answer::Done);
        }
        if let Some(there) = there
            && how != Renaming::Exchange
        {
            self.check_replaces(id, there)?;
        }
        self.remove_name(dir, name);
        if there.is_some() {
            self.remove_name(new_dir, new_name);
        }
        self.add_name(new_dir, new_name, id);
        match (how, there) {
            (Renaming::Exchange, Some(there)) => self.add_name(dir, name, there),
            (Renaming::LeaveWhiteout, _) => {
                self.make_at(dir, name, special(Special::Of(Device::Char(0, 0))), 0);
            }
            _ => {}
        }
        Ok(Answer::Done)
    }

    fn check_replaces(&self, id: Id, there: Id) -> Result<(), Errno> {
        match (self.inodes[id].is_dir(), &self.inodes[there].kind) {
            (true, Kind::Directory(entries)) if !entries.is_empty() => Err(Errno::NOTEMPTY),
            (true, Kind::Directory(_)) => Ok(()),
            (true, _) => Err(Errno::NOTDIR),
            (false, Kind::Directory(_)) => Err(Errno::ISDIR),
            (false, _) => Ok(()),
        }
    }
}

/// Data.
impl Model {
    /// The data, opened for writing.
    pub(super) fn open_data(&mut self, id: Id) -> Result<&mut Vec<u8>, Errno> {
        match self.inodes[id].kind {
            Kind::Regular(_) => {}
            Kind::Directory(_) => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        self.data_leave_image(id);
        let Kind::Regular(data) = &mut self.inodes[id].kind else {
            unreachable!("looked at above");
        };
        Ok(Arc::make_mut(data))
    }

    /// From now on only those who have the file open for reading see the image's data.
    fn data_leave_image(&mut self, id: Id) {
        let Kind::Regular(data) = &self.inodes[id].kind else {
            return;
        };
        let data = Arc::clone(data);
        for held in self.held.iter_mut().flatten().filter(|held| held.id == id) {
            if let View::Current = held.view
                && held.access == Access::ReadOnly
            {
                match self.inodes[id].data_of {
                    DataOf::Image => held.view = View::Image(Arc::clone(&data)),
                    DataOf::Either => held.view = View::Either,
                    DataOf::Upper => {}
                }
            }
        }
        self.inodes[id].data_of = DataOf::Upper;
    }

    /// Writes; at the end if there is no place.
    pub(super) fn write(&mut self, id: Id, at: Option<u64>, piece: &[u8]) -> Step {
        let data = self.open_data(id)?;
        let at = at.map_or(data.len(), |at| usize::try_from(at).unwrap());
        data.resize(data.len().max(at + piece.len()), 0);
        data[at..at + piece.len()].copy_from_slice(piece);
        self.written(id);
        Ok(Answer::Done)
    }

    pub(super) fn truncate(&mut self, id: Id, size: u64) -> Step {
        self.open_data(id)?
            .resize(usize::try_from(size).unwrap(), 0);
        self.written(id);
        Ok(Answer::Done)
    }

    pub(super) fn fallocate(&mut self, id: Id, how: Allocate, at: u64, len: u64) -> Step {
        let zero_range = self.zero_range;
        let data = self.open_data(id)?;
        if len == 0 {
            return Err(Errno::INVAL);
        }
        let (at, end) = (
            usize::try_from(at).unwrap(),
            usize::try_from(at + len).unwrap(),
        );
        match how {
            Allocate::KeepSize => {}
            Allocate::PunchHole => {
                let end = end.min(data.len());
                data[at.min(end)..end].fill(0);
            }
            Allocate::ZeroRange if !zero_range => {
                // The attempt takes setuid away.
                self.drop_set_id_unless_root(id);
                return Err(Errno::OPNOTSUPP);
            }
            Allocate::Extend | Allocate::ZeroRange => {
                let zeroed = if how == Allocate::ZeroRange { at } else { end };
                data.resize(data.len().max(end), 0);
                data[zeroed..end].fill(0);
            }
        }
        self.written(id);
        Ok(Answer::Done)
    }

    fn written(&mut self, id: Id) {
        self.inodes[id].mtime = None;
        self.drop_set_id_unless_root(id);
    }

    fn drop_set_id_unless_root(&mut self, id: Id) {
        if self.user != 0 {
            self.inodes[id].drop_set_id();
        }
    }
}

/// Attributes.
impl Model {
    pub(super) fn chmod(&mut self, id: Id, mode: Mode) -> Step {
        if let Kind::Symlink(_) = self.inodes[id].kind {
            return Err(Errno::OPNOTSUPP);
        }
        self.inodes[id].perm = mode.0;
        Ok(Answer::Done)
    }

    pub(super) fn chown(&mut self, id: Id, uid: Option<u32>, gid: Option<u32>) {
        let inode = &mut self.inodes[id];
        inode.owner = (uid.unwrap_or(inode.owner.0), gid.unwrap_or(inode.owner.1));
        // One that names nobody may come from somebody who may not change owners.
        let may = self.user == 0 || self.user == inode.owner.0;
        if !inode.is_dir() && (uid.is_some() || gid.is_some() || may) {
            inode.drop_set_id();
        }
    }

    pub(super) fn set_xattr(
        &mut self,
        id: Id,
        name: &'static str,
        value: &'static str,
        how: Setting,
    ) -> Step {
        let inode = &mut self.inodes[id];
        if let Some(refusal) = xattr_refusal(name, inode.file_kind()) {
            return Err(refusal);
        }
        match (how, inode.xattrs.contains_key(name)) {
            (Setting::MustCreate, true) => return Err(Errno::EXIST),
            (Setting::MustReplace, false) => return Err(Errno::NODATA),
            _ => {}
        }
        inode.xattrs.insert(name, value);
        Ok(Answer::Done)
    }

    pub(super) fn remove_xattr(&mut self, id: Id, name: &'static str) -> Step {
        if !self.inodes[id].xattrs.contains_key(name) {
            return Err(Errno::NODATA);
        }
        self.inodes[id].xattrs.remove(name);
        Ok(Answer::Done)
    }

    /// Attributes.
    pub(super) fn stat(&self, id: Id) -> Stat {
        let inode = &self.inodes[id];
        let size = match &inode.kind {
            Kind::Regular(data) => Some(data.len() as u64),
            Kind::Symlink(target) => Some(target.len() as u64),
            Kind::Special(..) => Some(0),
            Kind::Directory(_) => None,
        };
        let nlink = match &inode.kind {
            Kind::Directory(_) if inode.names == 0 && id != ROOT_ID => 0,
            Kind::Directory(entries) => {
                let dirs = entries.values().filter(|id| self.inodes[**id].is_dir());
                2 + u32::try_from(dirs.count()).unwrap()
            }
            _ => inode.names + inode.hidden,
        };
        let rdev = match inode.kind {
            Kind::Special(_, rdev) => rdev,
            _ => 0,
        };
        Stat {
            kind: inode.file_kind(),
            perm: inode.perm,
            owner: inode.owner,
            nlink,
            size,
            rdev,
            // What a directory held last, if only whiteouts, goes with it.
            mtime: inode.mtime.filter(|_| nlink > 0 || !inode.is_dir()),
        }
    }

    pub(super) fn read(&self, id: Id) -> Step {
        match &self.inodes[id].kind {
            Kind::Regular(data) => Ok(Answer::Data(data.to_vec())),
            Kind::Symlink(target) => Ok(Answer::Data(target.as_bytes().to_vec())),
            Kind::Directory(_) => Err(Errno::ISDIR),
            Kind::Special(..) => Err(Errno::INVAL),
        }
    }

    pub(super) fn read_dir(&self, id: Id) -> Step {
        let entries = self.inodes[id].entries()?.iter();
        let names = entries.map(|(name, id)| ((*name).to_owned(), self.inodes[*id].file_kind()));
        Ok(Answer::Names(names.collect()))
    }

    /// All extended attributes.
    pub(super) fn xattrs(&self, id: Id) -> BTreeMap<String, Vec<u8>> {
        let xattrs = self.inodes[id].xattrs.iter();
        let owned = xattrs.map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()));
        owned.collect()
    }
}

/// The layers.
impl Model {
    /// Whether the caller is somebody without privilege.
    pub(super) fn is_unprivileged(&self) -> bool {
        self.user != 0
    }

    /// Nobody has anything open any more.
    pub(super) fn close_all(&mut self) {
        self.held = [const { None }; 3];
    }

    /// The upper became the topmost layer; another one, as empty as the first, is on top.
    pub(super) fn commit(&mut self) {
        self.close_all();
        let root = &mut self.inodes[ROOT_ID];
        (root.perm, root.owner, root.mtime) = (0o755, (0, 0), None);
        root.xattrs.clear();
        for inode in &mut self.inodes {
            inode.data_of = DataOf::Image;
            inode.ino = None;
            inode.maybe_recounted = true;
        }
    }
}
