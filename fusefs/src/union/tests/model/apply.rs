//! Which operation of the vocabulary is which of the model.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::answer::{Answer, Stat, Step, USER, kernel_refusal};
use super::reference::{Held, Kind, Model, View, special};
use crate::union::tests::script::{Access, Act, Op, Path, User, data};

impl Model {
    /// Does one operation. One that fails changes nothing.
    pub(super) fn apply(&mut self, op: Op) -> Step {
        match op {
            Op::Create {
                path,
                exclusive,
                mode,
            } => self.create(path, exclusive, mode),
            Op::Mkdir { path, mode } => self.make(path, Kind::Directory(BTreeMap::new()), mode.0),
            Op::Mknod { path, kind, mode } => self.make(path, special(kind), mode.0),
            Op::Symlink { path, target } => self.make(path, Kind::Symlink(target), 0),
            Op::Link { from, to } => self.link(from, to),
            Op::Unlink { path } => self.remove(path, false),
            Op::Rmdir { path } => self.remove(path, true),
            Op::Rename { from, to, how } => self.rename(from, to, how),
            Op::Write {
                path,
                at,
                len,
                byte,
            } => {
                let id = self.walk(path)?;
                self.write(id, Some(at), &data(byte, len))
            }
            Op::Append { path, len, byte } => {
                let id = self.walk(path)?;
                self.write(id, None, &data(byte, len))
            }
            Op::Truncate { path, size } => self.truncate(self.walk(path)?, size),
            Op::OpenTruncate { path } => self.truncate(self.walk(path)?, 0),
            Op::Fallocate { path, how, at, len } => self.fallocate(self.walk(path)?, how, at, len),
            Op::Chmod { path, mode } => self.chmod(self.walk(path)?, mode),
            Op::Chown { path, uid, gid } => {
                self.chown(self.walk(path)?, uid, gid);
                Ok(Answer::Done)
            }
            Op::Utimens {
                atime: None,
                mtime: None,
                ..
            } => Ok(Answer::Done),
            Op::Utimens { path, mtime, .. } => {
                let id = self.walk(path)?;
                self.inodes[id].mtime = mtime.or(self.inodes[id].mtime);
                Ok(Answer::Done)
            }
            Op::SetXattr {
                path,
                name,
                value,
                how,
            } => self.set_xattr(self.walk(path)?, name, value, how),
            Op::RemoveXattr { path, name } => self.remove_xattr(self.walk(path)?, name),
            Op::Stat { path } => Ok(Answer::Stat(self.stat(self.walk(path)?))),
            Op::Read { path } => self.read(self.walk(path)?),
            Op::ReadDir { path } => self.read_dir(self.walk(path)?),
            Op::ReadXattrs { path } => Ok(Answer::Xattrs(self.xattrs(self.walk(path)?))),
            Op::Open { slot, path, access } => self.open(slot, path, access),
            Op::Held { slot, act } => self.act(slot, act),
            Op::Remount => {
                self.close_all();
                Ok(Answer::Done)
            }
            Op::Become { user } => {
                self.user = match user {
                    User::Root => 0,
                    User::Unprivileged => USER,
                };
                Ok(Answer::Done)
            }
        }
    }
}

/// What is open.
impl Model {
    fn open(&mut self, slot: u8, path: Path, access: Access) -> Step {
        let id = self.walk(path)?;
        match (&self.inodes[id].kind, access) {
            (Kind::Directory(_) | Kind::Regular(_), Access::ReadOnly) => {}
            (Kind::Symlink(_) | Kind::Special(..), _) => return Err(Errno::INVAL),
            _ => drop(self.open_data(id)?),
        }
        let view = View::Current;
        self.held[usize::from(slot)] = Some(Held { id, access, view });
        Ok(Answer::Done)
    }

    fn act(&mut self, slot: u8, act: Act) -> Step {
        let held = self.held[usize::from(slot)].clone().ok_or(Errno::BADF)?;
        let id = held.id;
        if let Some(refusal) = kernel_refusal(act, held.access, self.inodes[id].is_dir()) {
            return Err(refusal);
        }
        match (act, held.view) {
            (Act::Read, View::Image(data)) => Ok(Answer::Data(data.to_vec())),
            (Act::Stat, View::Image(data)) => {
                let size = Some(data.len() as u64);
                Ok(Answer::Stat(Stat {
                    size,
                    ..self.stat(id)
                }))
            }
            (Act::Read | Act::Stat, View::Either) => Ok(Answer::Anything),
            (Act::Read, View::Current) => self.read(id),
            (Act::Stat, View::Current) => Ok(Answer::Stat(self.stat(id))),
            (Act::ReadDir, _) => self.read_dir(id),
            (Act::Write { at, len, byte }, _) => {
                let at = (held.access != Access::AppendOnly).then_some(at);
                self.write(id, at, &data(byte, len))
            }
            (Act::Truncate { size }, _) => self.truncate(id, size),
            (Act::Chmod { mode }, _) => self.chmod(id, mode),
            (Act::Sync, _) => Ok(Answer::Done),
            (Act::Close, _) => {
                self.held[usize::from(slot)] = None;
                Ok(Answer::Done)
            }
        }
    }
}
