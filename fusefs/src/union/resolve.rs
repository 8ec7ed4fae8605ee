//! What a name means.
//!
//! The upper decides if it has the name: a whiteout hides the image's entry, a directory merges
//! with the image's (at the same name, or where its redirect leads) unless it is opaque, anything
//! else stands alone (and may stand for a device 0:0, see `device`). Where the upper has nothing, the image's entry shows through; if it is a
//! hard link of a file that was copied up under another name, the link index has it.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Stat, statat};
use rustix::io::Errno;

use super::attr::show_data;
use super::device::attr_shown_as;
use super::{Union, check_name, is_impure};
use crate::error::{Error, Result};
use crate::image::{ImageId, is_hollow};
use crate::inode::{Blocks, Name, Node, NumberOf, State};
use crate::marks::{self, Data, Redirect};
use crate::sys::place::Place;
use crate::sys::{attr_of, kind_of};
use crate::types::{Attr, Entry, FileKind, Ino, NodeId};

/// What a name means, before it is a node.
#[derive(Debug)]
pub(super) struct Found {
    /// Its attributes. The links of a directory that merges with the image are counted later.
    pub(super) attr: Attr,
    /// The image's part: the directory that merges, or the file itself.
    pub(super) image: Option<ImageId>,
    /// Whether the file is in the upper (under this name, or by the link index).
    pub(super) upper: bool,
    /// Its entry in the link index.
    pub(super) link: Option<Place>,
    /// Whether the upper has some of its data, and the image the others.
    pub(super) partial: bool,
    /// Whose inode number it has.
    pub(super) number_of: NumberOf,
}

impl Found {
    /// The state of a node that this is, but for its name.
    pub(super) fn state(&self) -> State {
        let mut state = State {
            image: self.image,
            upper: self.upper,
            ..State::default()
        };
        state.set_place(self.link.clone(), None, self.partial.then(Blocks::unloaded));
        state
    }
}

impl Union {
    /// Finds a name. `None`: there is no such name (the client may remember that).
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Option<Entry>> {
        check_name(name)?;
        let parent = self.dir_node(parent)?;
        let _names = self.names.read();
        let Some(found) = self.resolve(&parent, name)? else {
            return Ok(None);
        };
        self.entry(&parent, name, &found).map(Some)
    }

    /// Makes a node of what was found; the client gets one reference.
    pub(super) fn entry(&self, parent: &Arc<Node>, name: &OsStr, found: &Found) -> Result<Entry> {
        let attr = found.attr;
        let node = self.nodes.find_or_insert(
            (attr.ino, found.number_of),
            attr.kind,
            Name::new(parent, name),
            || found.state(),
        );
        let mut entry = Entry {
            node: node.id,
            generation: node.generation,
            attr,
        };
        if let (true, true, Some(image)) = (node.is_dir(), found.upper, found.image) {
            match self.merged_nlink(&node, image) {
                Ok(nlink) => entry.attr.nlink = nlink,
                Err(error) => {
                    drop(node);
                    self.forget(entry.node, 1);
                    return Err(error);
                }
            }
        }
        entry.attr = finish(&node, entry.attr);
        Ok(entry)
    }

    /// Decides what a name means.
    pub(super) fn resolve(&self, parent: &Node, name: &OsStr) -> Result<Option<Found>> {
        if let Some(dir) = self.upper_dir_if_any(parent)? {
            match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if marks::is_whiteout(&stat) => return Ok(None),
                Ok(stat) => return self.upper_entry(parent, &dir, name, &stat).map(Some),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match self.image_entry(parent, name)? {
            Some(id) => self.image_only_entry(id).map(Some),
            None => Ok(None),
        }
    }

    fn upper_entry(
        &self,
        parent: &Node,
        dir: &Arc<OwnedFd>,
        name: &OsStr,
        stat: &Stat,
    ) -> Result<Found> {
        let place = Place::at(dir, name);
        if kind_of(stat) == FileKind::Directory {
            let image = self.image_of_dir(parent, &place, name)?;
            let (ino, number_of) = match image {
                Some(id) => (self.image.ino(id)?, NumberOf::Image),
                None => (self.upper_ino(stat), NumberOf::Upper),
            };
            return Ok(Found {
                attr: attr_of(stat, ino),
                image,
                upper: true,
                link: None,
                partial: false,
                number_of,
            });
        }
        let own = self.upper_ino(stat);
        let mut found = Found {
            attr: attr_of(stat, own),
            image: None,
            upper: true,
            link: None,
            partial: false,
            number_of: NumberOf::Unknown,
        };
        let impure = is_impure(parent, dir)?;
        if impure && marks::is_device(&place, stat)? {
            marks::show_device(&mut found.attr);
        }
        if impure && let Some((key, ino)) = self.origin_of(&place)? {
            found.attr.ino = ino;
            found.link = self.upper()?.links().get(key.0, key.1);
            if let Some(link) = &found.link {
                found.attr.nlink = self.upper()?.links().nlink(link, stat)?;
            }
        }
        // A metacopy file lies in an impure directory, unless a kernel made it over an image whose
        // file system has no file handles.
        if found.attr.kind == FileKind::Regular && (impure || is_hollow(&found.attr)) {
            self.add_image_data(&mut found, &place, || self.image_of(parent, &place, name))?;
        }
        found.number_of = match found.image {
            _ if found.attr.ino != own => NumberOf::Image,
            None => NumberOf::Upper,
            Some(_) => NumberOf::Unknown,
        };
        Ok(found)
    }

    /// Adds the image's file that has the data, where the upper has the attributes alone.
    fn add_image_data(
        &self,
        found: &mut Found,
        place: &Place,
        below: impl FnOnce() -> Result<Option<ImageId>>,
    ) -> Result<()> {
        let data = marks::data(place)?;
        if data == Data::Here {
            return Ok(());
        }
        // Without one in the image its data are lost: opening it will say so.
        found.image = below()?.filter(|id| self.image.kind(*id) == FileKind::Regular);
        if let Some(id) = found.image {
            found.partial = data != Data::Below;
            let image = self.image.attr(id)?;
            if image.nlink == 1 {
                // Its origin, if it has one, says the same.
                found.attr.ino = image.ino;
            }
            show_data(&mut found.attr, &image, found.partial);
        }
        Ok(())
    }

    pub(super) fn image_only_entry(&self, id: ImageId) -> Result<Found> {
        let attr = self.image.attr(id)?;
        if attr.nlink > 1
            && attr.kind != FileKind::Directory
            && let Some(upper) = &self.upper
        {
            let key = self.image.link_key(id)?;
            if let Some(link) = upper.links().get(key.0, key.1) {
                let stat = link.stat()?;
                let mut attr = attr_shown_as(attr.kind, &stat, attr.ino);
                attr.nlink = upper.links().nlink(&link, &stat)?;
                let mut found = Found {
                    attr,
                    image: None,
                    upper: true,
                    link: Some(link.clone()),
                    partial: false,
                    number_of: NumberOf::Image,
                };
                self.add_image_data(&mut found, &link, || Ok(Some(id)))?;
                return Ok(found);
            }
        }
        Ok(Found {
            attr,
            image: Some(id),
            upper: false,
            link: None,
            partial: false,
            number_of: NumberOf::Image,
        })
    }

    /// The image's directory that a directory of the upper continues.
    fn image_of_dir(&self, parent: &Node, place: &Place, name: &OsStr) -> Result<Option<ImageId>> {
        if marks::is_opaque(place)? {
            return Ok(None);
        }
        let id = self.image_of(parent, place, name)?;
        Ok(id.filter(|id| self.image.kind(*id) == FileKind::Directory))
    }

    /// What of the image an entry of the upper continues: at its name, or where its redirect leads.
    fn image_of(&self, parent: &Node, place: &Place, name: &OsStr) -> Result<Option<ImageId>> {
        match marks::redirect(place)? {
            None => self.image_entry(parent, name),
            Some(Redirect::Absolute(path)) => self.image.find(&path),
            Some(Redirect::Sibling(other)) => self.image_entry(parent, other.as_os_str()),
        }
    }

    /// The inode number of an upper file that comes from nowhere else.
    pub(super) fn upper_ino(&self, stat: &Stat) -> Ino {
        self.inos.map(stat.st_dev, stat.st_ino)
    }

    /// The image file that an upper file was copied up from: its key among hard links, and its
    /// inode number in the union.
    fn origin_of(&self, place: &Place) -> Result<Option<((u64, u64), Ino)>> {
        let Some(handle) = marks::origin(place)? else {
            return Ok(None);
        };
        // Without the privilege to open handles there is none.
        let named = self.image.by_handle(&handle).ok().flatten();
        Ok(named.map(|named| (named.key, self.inos.map(named.key.0, named.key.1))))
    }

    /// The node of a name, held for as long as the answer lives. `NotFound` if there is none.
    pub(super) fn hold(&self, parent: &Arc<Node>, name: &OsStr) -> Result<Held<'_>> {
        let _names = self.names.read();
        let found = self.resolve(parent, name)?.ok_or(Error::NotFound)?;
        let entry = self.entry(parent, name, &found)?;
        Ok(Held {
            union: self,
            node: Some(self.node(entry.node)?),
        })
    }
}

/// A node with a reference of our own.
pub(super) struct Held<'u> {
    union: &'u Union,
    /// `None` only while it is dropped.
    node: Option<Arc<Node>>,
}

impl<'u> Held<'u> {
    /// The root, which nobody forgets.
    pub(super) fn root(union: &'u Union) -> Result<Held<'u>> {
        let node = Some(union.node(NodeId::ROOT)?);
        Ok(Held { union, node })
    }

    /// The node that stands for the file today.
    pub(super) fn current(&self) -> Result<Arc<Node>> {
        Ok(self.node.as_ref().ok_or(Error::NotFound)?.current())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // The node first: the table keeps what somebody still holds.
        if let Some(id) = self.node.take().map(|node| node.id) {
            self.union.forget(id, 1);
        }
    }
}

/// Decides whether the client may keep a node's attributes.
pub(super) fn finish(node: &Node, mut attr: Attr) -> Attr {
    let set_id = attr.kind == FileKind::Regular && attr.perm & 0o6000 != 0;
    let linked = attr.kind != FileKind::Directory && attr.nlink > 1;
    attr.cacheable = !set_id && !linked && !node.is_superseded() && !node.has_predecessor();
    attr
}
