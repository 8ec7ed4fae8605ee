//! Completing: every file of the upper gets its data, so that nobody has to look for them in the
//! image.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::Union;
use super::copy_up::Depth;
use super::resolve::Held;
use crate::error::Result;
use crate::inode::Node;
use crate::marks;
use crate::sys::dir::{RawEntry, read_dir};
use crate::sys::place::Place;
use crate::types::FileKind;

impl Union {
    /// Copies up the data of all metacopy files. A list and no recursion: how deep the tree is, is
    /// up to the container.
    pub(super) fn copy_up_all_data(&self) -> Result<()> {
        let mut pending = vec![Held::root(self)?];
        while let Some(held) = pending.pop() {
            let dir = held.current()?;
            let Some((upper, entries)) = self.upper_entries(&dir)? else {
                continue;
            };
            for entry in entries {
                match entry.kind {
                    FileKind::Directory => pending.push(self.hold(&dir, &entry.name)?),
                    FileKind::Regular if marks::is_metacopy(&Place::at(&upper, &entry.name))? => {
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
