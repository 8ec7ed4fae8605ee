//! Completing: every file of the upper gets its data, so that nobody has to look for them in the
//! image.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::Union;
use super::copy_up::Depth;
use super::resolve::Held;
use crate::error::Result;
use crate::inode::Node;
use crate::marks::{self, Data};
use crate::sys::dir::{RawEntry, read_dir};
use crate::sys::place::Place;
use crate::types::FileKind;

impl Union {
    /// Gives all partial files the rest of their data: kernel overlayfs refuses them. Nobody may be
    /// writing. It walks the upper only if there may be such files.
    pub(super) fn complete_partial(&self) -> Result<()> {
        let upper = self.upper()?;
        if upper.may_be_partial()? {
            self.complete_where(|data| matches!(data, Data::Partial { .. }))?;
            upper.forget_partial()?;
        }
        Ok(())
    }

    /// Gives every file its data: a layer may have neither metacopy nor partial files.
    pub(super) fn complete_all(&self) -> Result<()> {
        self.complete_where(|data| data != Data::Here)
    }

    /// Copies up the data of the files of which `is_meant`. A list and no recursion: how deep the
    /// tree is, is up to the container.
    fn complete_where(&self, is_meant: impl Fn(Data) -> bool) -> Result<()> {
        let mut pending = vec![Held::root(self)?];
        while let Some(held) = pending.pop() {
            let dir = held.current()?;
            let Some((upper, entries)) = self.upper_entries(&dir)? else {
                continue;
            };
            for entry in entries {
                let place = Place::at(&upper, &entry.name);
                match entry.kind {
                    FileKind::Directory => pending.push(self.hold(&dir, &entry.name)?),
                    FileKind::Regular if is_meant(marks::data(&place)?) => {
                        let file = self.hold(&dir, &entry.name)?;
                        self.copy_up(&file.current()?, Depth::Data)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// What the upper itself has in a directory.
    fn upper_entries(&self, dir: &Node) -> Result<Option<(Arc<OwnedFd>, Vec<RawEntry>)>> {
        let _names = self.names.read();
        let Some(upper) = self.upper_dir_if_any(dir)? else {
            return Ok(None);
        };
        let entries = read_dir(upper.as_fd())?;
        Ok(Some((upper, entries)))
    }
}
