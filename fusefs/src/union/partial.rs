//! Partial copy-up: of a large file that is opened for writing, only the blocks that are written.
//!
//! Where the file system can share blocks between two files, the whole file is cloned instead
//! (`FICLONE`). Elsewhere the upper gets a file as for a change of attributes, with the length and no
//! data, whose mark says that what is no hole in it is there ([`crate::marks::Data::Partial`]).
//! Which blocks these are, and how they are read and written, is [`Blocks`]' business; here is when a
//! file becomes partial, and when it gets the rest:
//!
//! - before it becomes part of a layer (`seal`);
//! - before space in it is reserved or freed (`fallocate`);
//! - when it is closed and half of it is there: from then on the kernel can read and write it by
//!   itself again, which it can't while the data are in two files.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};

use rustix::fs::OFlags;

use super::Union;
use super::copy_up::Depth;
use crate::error::{Error, Result};
use crate::image::ImageId;
use crate::inode::{Blocks, Node, unnoticed};
use crate::marks;
use crate::sys::change::{clone_data, fsync, ftruncate};
use crate::sys::place::Place;
use crate::types::FileKind;

/// The length from which files are copied up in part (bytes). Copying a shorter one takes some tens of
/// milliseconds, and the kernel serves it by itself afterwards.
pub const PARTIAL_FROM: u64 = 64 << 20;

impl Union {
    /// The same union, which copies up files in part from this length on (bytes); never if `None`.
    /// Files that are partial already are read and completed in any case.
    #[must_use]
    pub fn partial_copy_up_from(mut self, length: Option<u64>) -> Union {
        self.partial_from = length;
        self
    }

    /// Whether a file of the image of this length is copied up in part.
    pub(super) fn is_copied_in_part(&self, size: u64) -> Result<bool> {
        let is_long = size > 0 && self.partial_from.is_some_and(|from| size >= from);
        Ok(is_long && self.upper()?.has_exact_holes())
    }

    /// Turns a metacopy file into a partial one. `None` if its data can be shared with the image's
    /// file: then they are, and the caller goes on.
    pub(super) fn begin_partial(
        &self,
        place: &Place,
        image: ImageId,
    ) -> Result<Option<Arc<Blocks>>> {
        let size = self.image.attr(image)?.size;
        let file = place.open_file(OFlags::RDWR)?;
        if clone_data(&self.image.open(image)?, &file).is_ok() {
            return Ok(None);
        }
        unnoticed(&file, || {
            // A copy of data that a crash stopped may have left some.
            ftruncate(&file, 0)?;
            Ok(ftruncate(&file, size)?)
        })?;
        self.writable()?.note_partial()?;
        marks::set_partial(place, size)?;
        Ok(Some(Blocks::none_yet(size)))
    }

    /// Gives a partial file the data that it lacks, or none at all ([`Depth::Empty`]). Its node
    /// stays, with its open handles, since all of them have the upper's file. The caller holds the
    /// node's `copy` lock.
    pub(super) fn complete(
        &self,
        node: &Arc<Node>,
        blocks: &Blocks,
        depth: Depth,
    ) -> Result<Arc<Node>> {
        let image = node.image().ok_or(Error::NotFound)?;
        let place = {
            let _names = self.names.read();
            Place::Fd(Arc::new(self.upper_place(node)?.open_path()?))
        };
        let file = place.open_file(OFlags::RDWR)?;
        blocks.load(&file)?;
        let completed = if depth == Depth::Empty {
            blocks.truncate(&file, 0)?;
            // It is empty already; the mark may stay.
            match need_no_image(node, blocks, &place) {
                Err(error) => {
                    tracing::warn!(%error, "an empty file keeps its mark");
                    Ok(())
                }
                done => done,
            }
        } else {
            self.fetch(blocks, &file, image)
                .and_then(|()| need_no_image(node, blocks, &place))
        };
        completed.map(|()| Arc::clone(node))
    }

    fn fetch(&self, blocks: &Blocks, file: &File, image: ImageId) -> Result<()> {
        blocks.fetch_all((file, &self.image.open(image)?))?;
        Ok(fsync(file.as_fd())?)
    }

    /// Completes a partial file of which nobody has a handle any more, if not much is missing.
    pub(super) fn complete_at_close(&self, node: &Arc<Node>) {
        let worth_it = |node: &Node| {
            let state = node.state.lock();
            let has_name = !state.names.is_empty();
            let blocks = state.blocks.as_ref();
            has_name && blocks.is_some_and(|blocks| blocks.is_mostly_there())
        };
        if node.kind != FileKind::Regular || !worth_it(node) {
            return;
        }
        if let Err(error) = self.copy_up(node, Depth::Data) {
            tracing::warn!(%error, "a file stays partial");
        }
    }
}

/// Changes the length of a partial file.
pub(super) fn resize_partial(blocks: &Blocks, file: &File, size: u64) -> Result<()> {
    blocks.load(file)?;
    blocks.truncate(file, size)
}

/// Takes the mark away, and the image from the node.
fn need_no_image(node: &Node, blocks: &Blocks, place: &Place) -> Result<()> {
    blocks.become_whole(|| Ok(marks::clear_partial(place)?))?;
    let mut state = node.state.lock();
    (state.image, state.blocks) = (None, None);
    if state.open == 0 {
        // The next open need not ask us for its blocks.
        state.backing = Weak::new();
    }
    Ok(())
}
