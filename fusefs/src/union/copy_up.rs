//! Copy-up: before something of the image is changed, the upper gets a copy of it.
//!
//! A copy is built in the work directory with everything that belongs to it (data, owner, mode,
//! xattrs, times), made durable if it has data, and renamed to its place. A crash leaves the image's
//! file or the complete copy, never a mixture.
//!
//! A change of attributes copies no data: the upper gets a file with the attributes and the length,
//! marked as overlayfs's metacopy: the data are the image's at the same path, or where its redirect
//! says. They come with the first open for writing, into the same file, and the mark goes when they
//! are on disk: until then nobody looks at them.
//!
//! **The hand-over.** A FUSE inode with a passthrough open is pinned to that backing file: an open
//! with another one fails with EIO (fs/fuse/iomode.c). So a file that is copied up while handles
//! are open gets a new node with the same `st_ino`; an `open` of the old node answers
//! [`Error::HandedOver`] (ESTALE), and the VFS walks the path again and finds the new one. Old
//! handles keep reading the image's file; on overlayfs only their mappings do, and read(2) gets the
//! new data (`docs/semantics.md`). Without open handles the node stays.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use rustix::fs::{Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::device::copy_device;
use super::{Union, keeping_times, make_impure};
use crate::error::{Error, Result};
use crate::image::ImageId;
use crate::inode::{Blocks, Name, Node, State};
use crate::marks;
use crate::sys::change::{
    clone_data, create, fsync, ftruncate, mkdirat, mknodat, renameat_with, symlinkat,
};
use crate::sys::copy::copy_data;
use crate::sys::handle::FileHandle;
use crate::sys::place::Place;
use crate::sys::type_of_kind;
use crate::types::{Attr, FileKind, SetTime};
use crate::upper::Upper;

/// Taken away by a write (capabilities(7)).
const CAPABILITY: &str = "security.capability";

/// The longest path that a metacopy file names as the place of its data (bytes). Beyond it the
/// xattr might not find room in the inode's block.
const REDIRECT_MAX: usize = 1024;

/// How much of a file is copied up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Depth {
    /// What a change of attributes or of names needs: all but the data of a regular file.
    Attributes,
    /// What a file needs that is about to be written: everything, or nothing yet of a large one
    /// that becomes partial (see `partial`).
    Blocks,
    /// Everything.
    Data,
    /// Everything but the data, which are about to be truncated.
    Empty,
}

impl Union {
    /// The same union; with `false` a change of attributes or names copies a file's data too, as
    /// overlayfs with `metacopy=off`. Files that have their data in the image stay as they are.
    #[must_use]
    pub fn metacopy(mut self, on: bool) -> Union {
        self.metacopy = on;
        self
    }

    /// Whether a change of attributes copies up the attributes alone.
    pub fn has_metacopy(&self) -> bool {
        self.metacopy
    }

    /// Makes sure that the upper has a node's file, as deep as that, and returns the node that
    /// stands for it then.
    ///
    /// Called without the `names` lock: copying may take long.
    pub(super) fn copy_up(&self, node: &Arc<Node>, depth: Depth) -> Result<Arc<Node>> {
        let upper = self.writable()?;
        let node = node.current();
        if node.is_dir() {
            self.copy_up_dir(&node)?;
            return Ok(node);
        }
        let is_done = |node: &Node| match depth {
            Depth::Attributes => node.in_upper(),
            Depth::Blocks => node.is_written_above(),
            Depth::Data | Depth::Empty => node.is_complete(),
        };
        if is_done(&node) {
            return Ok(node);
        }
        let _copy = node.copy.lock();
        // Somebody may have been faster.
        let node = node.current();
        if is_done(&node) {
            return Ok(node);
        }
        self.write_image(&node, node.image());
        if let Some(blocks) = node.blocks() {
            return self.complete(&node, &blocks, depth);
        }
        if node.in_upper() {
            return self.copy_up_data(&node, depth);
        }
        let name = node.state.lock().names.first().cloned();
        if let Some(name) = &name {
            self.copy_up_dir(&name.parent)?;
        }
        let image = node.image().ok_or(Error::NotFound)?;
        let copy = Copy::make(self, upper, image, depth)?;
        self.install(&node, &copy)
    }

    /// Gives a metacopy file its data. Until the mark goes it stays one, whose length is the image's
    /// too ([`Self::attr`]): an error or a crash leaves no trace, but a crash may leave it with the
    /// times of the copy.
    fn copy_up_data(&self, node: &Arc<Node>, depth: Depth) -> Result<Arc<Node>> {
        let image = node.image().ok_or(Error::NotFound)?;
        let place = {
            // By descriptor: the file may be renamed while its data come, which may take long.
            let _names = self.names.read();
            Place::Fd(Arc::new(self.upper_place(node)?.open_path()?))
        };
        mark_origin(self, image, &place)?;
        let before = crate::sys::attr_of(&place.stat()?, node.ino);
        let capability = place.xattr(OsStr::new(CAPABILITY))?;
        // Writing changes times and takes capabilities away, and is not what the caller did.
        let restore = || -> Result<()> {
            if let Some(capability) = &capability {
                place.set_xattr(OsStr::new(CAPABILITY), capability, XattrFlags::empty())?;
            }
            let (atime, mtime) = (SetTime::At(before.atime), SetTime::At(before.mtime));
            Ok(place.utimens(Some(atime), Some(mtime))?)
        };
        if depth == Depth::Blocks
            && self.is_copied_in_part(self.image.attr(image)?.size)?
            && let Some(blocks) = self.begin_partial(&place, image)?
        {
            let _names = self.names.read();
            return Ok(self.hand_over(node, |state| state.blocks = Some(blocks)));
        }
        let copied = self.fill(&place, image, depth, restore);
        if let Err(error) = copied.and_then(|()| Ok(marks::clear_metacopy(&place)?)) {
            if let Err(second) = restore() {
                tracing::warn!(?place, error = %second, "a copy-up that failed left its times");
            }
            return Err(error);
        }
        let _names = self.names.read();
        Ok(self.hand_over(node, |state| state.image = None))
    }

    /// Writes the data into a metacopy file, of which nobody sees anything yet.
    fn fill(
        &self,
        place: &Place,
        image: ImageId,
        depth: Depth,
        restore: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let file = place.open_file(OFlags::RDWR)?;
        if depth == Depth::Empty {
            return Ok(ftruncate(&file, 0)?);
        }
        let size = self.image.attr(image)?.size;
        copy_data(&self.image.open(image)?, &file, size)?;
        restore()?;
        Ok(fsync(&file)?)
    }

    /// Makes sure that the upper has a directory (without its entries) and all directories above.
    pub(super) fn copy_up_dir(&self, node: &Arc<Node>) -> Result<()> {
        self.writable()?;
        // A list and no recursion: an image may be deeper than a stack.
        let mut missing = Vec::new();
        let mut at = Arc::clone(node);
        while !at.in_upper() {
            let name = at.state.lock().names.first().cloned();
            missing.push(at);
            match name {
                Some(name) => at = name.parent,
                // It was removed, and lies nowhere.
                None => break,
            }
        }
        while let Some(dir) = missing.pop() {
            self.copy_up_one_dir(&dir)?;
        }
        Ok(())
    }

    /// Makes sure that the upper has a directory, where it has the one above.
    fn copy_up_one_dir(&self, node: &Arc<Node>) -> Result<()> {
        let _copy = node.copy.lock();
        if node.in_upper() {
            return Ok(());
        }
        let image = node.image().ok_or(Error::NotFound)?;
        let copy = Copy::make(self, self.writable()?, image, Depth::Attributes)?;
        let _names = self.names.read();
        let name = node.state.lock().names.first().cloned();
        // Whoever still holds a removed one gets a copy without a name, as of a file.
        let orphan = if let Some(name) = name {
            copy.publish(self, &name)?;
            None
        } else {
            let file = Arc::new(copy.place().open_path()?);
            self.pin(node, &file);
            Some(file)
        };
        let mut state = node.state.lock();
        (state.upper, state.orphan) = (true, orphan);
        Ok(())
    }

    /// Gives a complete copy of a file its name. The directory is marked first: a file with an
    /// origin in one without the mark would have another inode number after a crash.
    fn install_at(&self, copy: &Copy<'_>, name: &Name) -> Result<()> {
        make_impure(&name.parent, &self.upper_dir(&name.parent)?)?;
        copy.publish(self, name)
    }

    /// Puts a complete copy of a file in its place and hands the node over if it must.
    fn install(&self, node: &Arc<Node>, copy: &Copy<'_>) -> Result<Arc<Node>> {
        let _names = self.names.read();
        let name = node.state.lock().names.first().cloned();
        if let Some(name) = &name {
            copy.lead_to_data(self, name)?;
        }
        let link = copy.index_link(self)?;
        let installed = match &name {
            Some(name) => self.install_at(copy, name).map(|()| None),
            // The file was removed; whoever still holds it gets a copy without a name.
            None => (copy.place().open_path())
                .map(|file| {
                    let file = Arc::new(file);
                    self.pin(node, &file);
                    Some(file)
                })
                .map_err(Error::from),
        };
        let orphan = match (installed, &link) {
            (Ok(orphan), _) => orphan,
            (Err(error), None) => return Err(error),
            // All or nothing: the names that the image alone has must not lead to it either.
            (Err(error), Some(link)) => {
                copy.upper.links().remove(link)?;
                return Err(error);
            }
        };
        let change = |state: &mut State| {
            state.upper = true;
            state.set_place(link, orphan, copy.blocks.clone());
            if copy.is_complete {
                state.image = None;
            }
        };
        if copy.is_complete || copy.blocks.is_some() {
            return Ok(self.hand_over(node, change));
        }
        // The data stay where they are: open handles have the right file.
        change(&mut node.state.lock());
        Ok(Arc::clone(node))
    }

    /// Changes a node whose data were copied up. With open handles on the image's file, a new node
    /// takes over instead, and is returned.
    fn hand_over(&self, node: &Arc<Node>, change: impl FnOnce(&mut State)) -> Arc<Node> {
        let mut state = node.state.lock();
        if state.open == 0 {
            change(&mut state);
            state.backing = Weak::new();
            return Arc::clone(node);
        }
        self.supersede(node, &mut state, change)
    }

    /// Has a new node take over from one, of whose state it gets a copy that was changed.
    pub(super) fn supersede(
        &self,
        node: &Arc<Node>,
        state: &mut State,
        change: impl FnOnce(&mut State),
    ) -> Arc<Node> {
        let mut after = State {
            names: state.names.clone(),
            image: state.image,
            upper: state.upper,
            ..State::default()
        };
        let (link, orphan) = (state.link.clone(), state.orphan.clone());
        after.set_place(link, orphan, state.blocks.clone());
        after.predecessor = Arc::downgrade(node);
        change(&mut after);
        let orphan = after.orphan.clone();
        let successor = self.nodes.succeed(node, after);
        if let Some(orphan) = &orphan {
            self.pin(&successor, orphan);
        }
        state.names.clear();
        state.successor = Some(Arc::clone(&successor));
        successor
    }
}

/// A copy under construction in the work directory, removed when dropped unpublished.
struct Copy<'u> {
    upper: &'u Upper,
    dir: Arc<OwnedFd>,
    temp: OsString,
    image: ImageId,
    attr: Attr,
    handle: Option<FileHandle>,
    /// Whether it needs nothing of the image any more.
    is_complete: bool,
    /// If it is partial: the blocks that it has, which are none.
    blocks: Option<Arc<Blocks>>,
}

impl<'u> Copy<'u> {
    /// Builds a copy of the image's file or (empty) directory.
    fn make(union: &Union, upper: &'u Upper, image: ImageId, depth: Depth) -> Result<Copy<'u>> {
        let attr = union.image.attr(image)?;
        let is_file = attr.kind == FileKind::Regular
            && union.image.path(image).as_os_str().len() <= REDIRECT_MAX;
        let in_part = is_file && depth == Depth::Blocks && union.is_copied_in_part(attr.size)?;
        let is_metacopy = is_file && depth == Depth::Attributes && union.metacopy;
        let is_complete = !is_metacopy && !in_part;
        let (dir, temp) = upper.work_name();
        let mut copy = Copy {
            upper,
            dir: Arc::clone(dir),
            temp,
            image,
            attr,
            handle: None,
            is_complete,
            blocks: None,
        };
        let mut place = copy.place();
        let mut file = None;
        let private = Mode::RUSR | Mode::WUSR;
        match attr.kind {
            FileKind::Regular => {
                let made = std::fs::File::from(create(&copy.dir, &copy.temp, private)?);
                if in_part && clone_data(&union.image.open(image)?, &made).is_ok() {
                    copy.is_complete = true;
                    file = Some(made);
                } else if is_complete {
                    if depth != Depth::Empty {
                        copy_data(&union.image.open(image)?, &made, attr.size)?;
                    }
                    file = Some(made);
                } else {
                    ftruncate(&made, attr.size)?;
                    place = Place::Fd(Arc::new(made.into()));
                    if in_part {
                        upper.note_partial()?;
                        marks::set_partial(&place, attr.size)?;
                        copy.blocks = Some(Blocks::none_yet(attr.size));
                    } else {
                        marks::set_metacopy(&place)?;
                    }
                }
            }
            FileKind::Directory => mkdirat(&copy.dir, &copy.temp, Mode::RWXU)?,
            FileKind::Symlink => {
                symlinkat(union.image.readlink(image)?, &copy.dir, &copy.temp)?;
            }
            FileKind::CharDevice if attr.rdev == marks::WHITEOUT_DEVICE => {
                copy_device(&copy.dir, &copy.temp, private)?;
            }
            kind => mknodat(
                &copy.dir,
                &copy.temp,
                type_of_kind(kind),
                private,
                attr.rdev,
            )?,
        }
        // The order matters: chown clears setuid, setgid and capabilities; everything but
        // utimens changes times.
        place.chown(Some(attr.uid), Some(attr.gid))?;
        if attr.kind != FileKind::Symlink {
            place.chmod(u32::from(attr.perm))?;
        }
        copy_xattrs(union, image, &place)?;
        // A metacopy file is known by where its data are, until they come.
        if attr.kind != FileKind::Directory && !(is_metacopy && attr.nlink == 1) {
            copy.handle = mark_origin(union, image, &place)?;
        }
        let (atime, mtime) = (SetTime::At(attr.atime), SetTime::At(attr.mtime));
        place.utimens(Some(atime), Some(mtime))?;
        if let Some(file) = file {
            fsync(&file)?;
        }
        Ok(copy)
    }

    fn place(&self) -> Place {
        Place::at(&self.dir, &self.temp)
    }

    /// Says where the data are, if they are the image's and not at the name of the copy alone.
    ///
    /// The metacopy mark alone fits into an inode of ext4 (256 bytes), which a redirect or an origin
    /// beside it does not. The block for them takes longer than all the rest of a copy-up.
    fn lead_to_data(&self, union: &Union, name: &Name) -> Result<()> {
        let is_alone = self.attr.nlink == 1
            && union.image_entry(&name.parent, &name.name)? == Some(self.image);
        if self.is_complete || is_alone {
            return Ok(());
        }
        Ok(marks::set_redirect(
            &self.place(),
            &union.image.path(self.image),
        )?)
    }

    /// Links a file that has hard links in the image into the index, before it has its name:
    /// from then on all its names lead here.
    fn index_link(&self, union: &Union) -> Result<Option<Place>> {
        let Some(handle) = self.handle.as_ref().filter(|_| self.attr.nlink > 1) else {
            return Ok(None);
        };
        let key = union.image.link_key(self.image)?;
        let links = self.upper.links();
        let link = links.insert(key, self.attr.nlink, handle, &self.place())?;
        Ok(Some(link))
    }

    /// Renames the copy to its name, and gives the directory its times back: nothing was changed
    /// there that anybody may see.
    fn publish(&self, union: &Union, name: &Name) -> Result<()> {
        let dir = union.upper_dir(&name.parent)?;
        keeping_times(&dir, || {
            let free = RenameFlags::NOREPLACE;
            Ok(renameat_with(
                &self.dir,
                &self.temp,
                &dir,
                &*name.name,
                free,
            )?)
        })
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        // After `publish` the name is gone, and this finds nothing.
        self.upper.discard(&self.temp);
    }
}

fn copy_xattrs(union: &Union, image: ImageId, place: &Place) -> Result<()> {
    for name in union.image.xattr_names(image)? {
        if marks::is_private(&name) {
            continue;
        }
        let Some(value) = union.image.xattr(image, &name)? else {
            continue;
        };
        match place.set_xattr(&name, &value, XattrFlags::empty()) {
            // The upper's file system has no such name space; overlayfs goes on too.
            Err(Errno::OPNOTSUPP) => tracing::debug!(?name, "xattr not copied up"),
            other => other?,
        }
    }
    Ok(())
}

/// Notes the image's file on its copy, which keeps `st_ino` over a remount once the data have come.
fn mark_origin(union: &Union, image: ImageId, place: &Place) -> Result<Option<FileHandle>> {
    // Without a handle the number changes at a remount.
    let handle = union.image.handle(image)?;
    if let Some(handle) = &handle {
        marks::set_origin(place, handle)?;
    }
    Ok(handle)
}
