//! The operations of the vocabulary as calls of the union.

use std::ffi::OsStr;

use rustix::fs::{FallocateFlags, FileType, OFlags, RenameFlags, XattrFlags};

use super::answer::{Answer, USER};
use super::driver::{Driver, caller_of, read, stat_of};
use crate::error::{Error, Result};
use crate::types::{FileKind, NodeId, SetAttr, SetTime, Timestamp};
use crate::union::tests::script::{
    Allocate, Device, Mode, Op, Path, Renaming, Setting, Special, Time, User, data,
};
impl Driver {
    pub(super) fn step(&mut self, op: Op) -> Result<Answer> {
        let caller = self.caller;
        let kill_set_id = caller.uid != 0;
        match op {
            Op::Create {
                path,
                exclusive,
                mode,
            } => self.create(path, exclusive, mode),
            Op::Mkdir { path, mode } => {
                let (dir, name) = self.ends(path)?;
                let made = self.union.mkdir(caller, dir, name, mode.0)?;
                self.keep(made);
                Ok(Answer::Done)
            }
            Op::Mknod { path, kind, mode } => {
                let (dir, name) = self.ends(path)?;
                let (bits, device) = raw(kind);
                let mode = mode.0 | bits.as_raw_mode();
                let made = self.union.mknod(caller, dir, name, mode, device)?;
                self.keep(made);
                Ok(Answer::Done)
            }
            Op::Symlink { path, target } => {
                let (dir, name) = self.ends(path)?;
                let made = self.union.symlink(caller, dir, name, OsStr::new(target))?;
                self.keep(made);
                Ok(Answer::Done)
            }
            Op::Link { from, to } => {
                // linkat(2) looks the old name up first.
                self.walk(from)?;
                let (dir, name) = self.ends(to)?;
                let made = self.at(from, |union, node| union.link(node, dir, name))?;
                self.keep(made);
                Ok(Answer::Done)
            }
            Op::Unlink { path } => {
                let (dir, name) = self.ends(path)?;
                self.union.unlink(dir, name).map(done)
            }
            Op::Rmdir { path } => {
                let (dir, name) = self.ends(path)?;
                self.union.rmdir(dir, name).map(done)
            }
            Op::Rename { from, to, how } => {
                let (dir, name) = self.ends(from)?;
                let (new_dir, new_name) = self.ends(to)?;
                let flags = match how {
                    Renaming::Plain | Renaming::LeaveWhiteout => RenameFlags::empty(),
                    Renaming::NoReplace => RenameFlags::NOREPLACE,
                    Renaming::Exchange => RenameFlags::EXCHANGE,
                };
                let union = &self.union;
                if how == Renaming::LeaveWhiteout {
                    union.rename_leaving_device(caller, dir, name, new_dir, new_name, flags)
                } else {
                    union.rename(dir, name, new_dir, new_name, flags)
                }
                .map(done)
            }
            Op::Write {
                path,
                at,
                len,
                byte,
            } => self.with_open(path, OFlags::WRONLY, |union, fh| {
                union.write(fh, at, &data(byte, len), kill_set_id)?;
                Ok(Answer::Done)
            }),
            Op::Append { path, len, byte } => {
                let (node, _) = self.walk(path)?;
                self.with_open(path, OFlags::WRONLY | OFlags::APPEND, |union, fh| {
                    let end = union.getattr(node, Some(fh))?.size;
                    union.write(fh, end, &data(byte, len), kill_set_id)?;
                    Ok(Answer::Done)
                })
            }
            Op::Truncate { path, size } => {
                // The kernel asks nothing of what is no regular file.
                match self.walk(path)?.1 {
                    FileKind::Regular => {}
                    FileKind::Directory => return Err(Error::IsDirectory),
                    _ => return Err(Error::Invalid),
                }
                let change = SetAttr {
                    size: Some(size),
                    ..SetAttr::default()
                };
                self.at(path, |union, node| {
                    union.setattr(caller, node, None, &change)
                })
                .map(done)
            }
            Op::OpenTruncate { path } => {
                let flags = OFlags::WRONLY | OFlags::TRUNC;
                self.with_open(path, flags, |_, _| Ok(Answer::Done))
            }
            Op::Fallocate { path, how, at, len } => {
                self.with_open(path, OFlags::WRONLY, |union, fh| {
                    // The kernel refuses this one by itself.
                    if len == 0 {
                        return Err(Error::Invalid);
                    }
                    union
                        .fallocate(caller, fh, allocate_flags(how), at, len)
                        .map(done)
                })
            }
            Op::Chmod { path, mode } => {
                if self.walk(path)?.1 == FileKind::Symlink {
                    return Err(Error::NotSupported);
                }
                let change = SetAttr {
                    mode: Some(mode.0),
                    ..SetAttr::default()
                };
                self.set_attr(path, change)
            }
            Op::Chown { path, uid, gid } => self.set_attr(
                path,
                SetAttr {
                    uid,
                    gid,
                    ..SetAttr::default()
                },
            ),
            Op::Utimens {
                atime: None,
                mtime: None,
                ..
            } => {
                // The kernel does not even look at the path.
                Ok(Answer::Done)
            }
            Op::Utimens { path, atime, mtime } => {
                let (atime, mtime) = (atime.map(set_time), mtime.map(set_time));
                self.set_attr(
                    path,
                    SetAttr {
                        atime,
                        mtime,
                        ..SetAttr::default()
                    },
                )
            }
            Op::SetXattr {
                path,
                name,
                value,
                how,
            } => {
                let flags = match how {
                    Setting::AnyWay => XattrFlags::empty(),
                    Setting::MustCreate => XattrFlags::CREATE,
                    Setting::MustReplace => XattrFlags::REPLACE,
                };
                let (node, kind) = self.walk(path)?;
                if name.starts_with("user.") && !has_user_xattrs(kind) {
                    // The kernel asks nobody.
                    return Err(Error::NotPermitted);
                }
                (self
                    .union
                    .setxattr(node, OsStr::new(name), value.as_bytes(), flags))
                .map(done)
            }
            Op::RemoveXattr { path, name } => {
                let (node, _) = self.walk(path)?;
                self.union.removexattr(node, OsStr::new(name)).map(done)
            }
            Op::Stat { path } => {
                let (node, _) = self.walk(path)?;
                Ok(Answer::Stat(stat_of(&self.union.getattr(node, None)?)))
            }
            Op::Read { path } => match self.walk(path)? {
                (node, FileKind::Symlink) => {
                    let target = self.union.readlink(node)?;
                    Ok(Answer::Data(target.into_encoded_bytes()))
                }
                _ => self.with_open(path, OFlags::RDONLY, |union, fh| {
                    read(union, fh).map(Answer::Data)
                }),
            },
            Op::ReadDir { path } => {
                let (node, _) = self.walk(path)?;
                self.names(node)
            }
            Op::ReadXattrs { path } => {
                let (node, _) = self.walk(path)?;
                super::compare::xattrs(&self.union, node).map(Answer::Xattrs)
            }
            Op::Open { slot, path, access } => self.open(slot, path, access),
            Op::Held { slot, act } => self.act(slot, act),
            Op::Remount => {
                self.remount();
                Ok(Answer::Done)
            }
            Op::Become { user } => {
                self.caller = caller_of(match user {
                    User::Root => 0,
                    User::Unprivileged => USER,
                });
                Ok(Answer::Done)
            }
        }
    }

    fn create(&mut self, path: Path, exclusive: bool, mode: Mode) -> Result<Answer> {
        let (dir, name) = self.ends(path)?;
        let there = self.lookup(dir, name.to_str().expect("a path of ours"))?;
        if there.is_some() && !exclusive {
            return self.with_open(path, OFlags::WRONLY, |_, _| Ok(Answer::Done));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE;
        let (made, opened) = self.union.create(self.caller, dir, name, mode.0, flags)?;
        self.keep(made);
        self.union.release(opened.fh);
        Ok(Answer::Done)
    }

    fn set_attr(&mut self, path: Path, change: SetAttr) -> Result<Answer> {
        let (node, _) = self.walk(path)?;
        self.union
            .setattr(self.caller, node, None, &change)
            .map(done)
    }

    pub(super) fn names(&self, dir: NodeId) -> Result<Answer> {
        let mut names = std::collections::BTreeMap::new();
        self.union.readdir(dir, 0, &mut |entry| {
            let name = entry.name.to_str().expect("a name of ours");
            if name != "." && name != ".." {
                assert!(
                    names.insert(name.to_owned(), entry.kind).is_none(),
                    "{name} twice"
                );
            }
            true
        })?;
        Ok(Answer::Names(names))
    }
}

/// Whether the kernel lets this sort of file have `user.*` attributes.
fn has_user_xattrs(kind: FileKind) -> bool {
    matches!(kind, FileKind::Regular | FileKind::Directory)
}

pub(super) fn done<T>(_: T) -> Answer {
    Answer::Done
}

fn set_time(Time(secs, nanos): Time) -> SetTime {
    SetTime::At(Timestamp { secs, nanos })
}

fn raw(kind: Special) -> (FileType, u64) {
    match kind {
        Special::Regular => (FileType::RegularFile, 0),
        Special::Pipe => (FileType::Fifo, 0),
        Special::Socket => (FileType::Socket, 0),
        Special::Of(Device::Char(major, minor)) => {
            (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
        }
        Special::Of(Device::Block(major, minor)) => {
            (FileType::BlockDevice, rustix::fs::makedev(major, minor))
        }
    }
}

fn allocate_flags(how: Allocate) -> FallocateFlags {
    match how {
        Allocate::Extend => FallocateFlags::empty(),
        Allocate::KeepSize => FallocateFlags::KEEP_SIZE,
        Allocate::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        Allocate::ZeroRange => FallocateFlags::ZERO_RANGE,
    }
}
