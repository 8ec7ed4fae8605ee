//! What the driver has open.

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::answer::{Answer, kernel_refusal};
use super::calls::done;
use super::driver::{Driver, read, stat_of};
use crate::error::Result;
use crate::types::{Fh, FileKind, NodeId, SetAttr};
use crate::union::tests::script::{Access, Act, Path, data};

/// Something open.
pub(super) struct Held {
    /// A directory has none.
    fh: Option<Fh>,
    node: NodeId,
    access: Access,
}

impl Driver {
    pub(super) fn open(&mut self, slot: u8, path: Path, access: Access) -> Result<Answer> {
        let (_, kind) = self.walk(path)?;
        let flags = match access {
            Access::ReadOnly => OFlags::RDONLY,
            Access::WriteOnly => OFlags::WRONLY,
            Access::ReadWrite => OFlags::RDWR,
            Access::AppendOnly => OFlags::WRONLY | OFlags::APPEND,
        };
        let fh = if kind == FileKind::Directory && access == Access::ReadOnly {
            None
        } else {
            let caller = self.caller;
            let opened = self.at(path, |union, node| union.open(caller, node, flags))?;
            Some(opened.fh)
        };
        // Whoever has it open holds a reference, which no other operation gives back.
        let (node, _) = self.walk(path)?;
        self.kept.retain({
            let mut first = true;
            move |kept| *kept != node || !std::mem::take(&mut first)
        });
        self.close(usize::from(slot));
        self.held[usize::from(slot)] = Some(Held { fh, node, access });
        Ok(Answer::Done)
    }

    pub(super) fn close(&mut self, slot: usize) {
        let Some(held) = self.held[slot].take() else {
            return;
        };
        if let Some(fh) = held.fh {
            self.union.release(fh);
        }
        if held.node != NodeId::ROOT {
            self.union.forget(held.node, 1);
        }
    }

    pub(super) fn act(&mut self, slot: u8, act: Act) -> Result<Answer> {
        let Some(Held { fh, node, access }) = self.held[usize::from(slot)] else {
            return Err(Errno::BADF.into());
        };
        if let Some(refusal) = kernel_refusal(act, access, fh.is_none()) {
            return Err(refusal.into());
        }
        let union = &self.union;
        let file = fh.unwrap_or(Fh(0));
        match act {
            Act::Read => read(union, file).map(Answer::Data),
            Act::ReadDir => self.names(node),
            Act::Write { at, len, byte } => {
                let at = match access {
                    Access::AppendOnly => union.getattr(node, fh)?.size,
                    _ => at,
                };
                union.write(file, at, &data(byte, len), self.caller.uid != 0)?;
                Ok(Answer::Done)
            }
            Act::Truncate { size } => {
                let change = SetAttr {
                    size: Some(size),
                    ..SetAttr::default()
                };
                union.setattr(self.caller, node, fh, &change).map(done)
            }
            Act::Chmod { mode } => {
                let change = SetAttr {
                    mode: Some(mode.0),
                    ..SetAttr::default()
                };
                union.setattr(self.caller, node, fh, &change).map(done)
            }
            Act::Stat => Ok(Answer::Stat(stat_of(&union.getattr(node, fh)?))),
            Act::Sync if fh.is_none() => union.fsyncdir(node, false).map(done),
            Act::Sync => union.fsync(file, false).map(done),
            Act::Close => {
                self.close(usize::from(slot));
                Ok(Answer::Done)
            }
        }
    }
}
