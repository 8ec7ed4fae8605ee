//! The tree that a layer's archive makes, by the rules by which one is unpacked (OCI image-spec,
//! layer.md).
//!
//! Entries come one after the other, and a later one changes what earlier ones made. Where
//! unpacking would depend on the layers below, or on who unpacks, the layer is refused: it is then
//! unpacked as any other, and that decides.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::makedev;

use super::Flaw;
use super::entry::{Data, Told, What};
use super::limits::{Cap, Limits};
use crate::image::dir_nlink;
use crate::index::{self, Entry, Kind, Stamp};
use crate::layer::{Below, EntryKind};
use crate::marks;
use crate::types::{Attr, FileKind, Ino, Timestamp};

/// What the name of a whiteout begins with.
const WHITEOUT: &[u8] = b".wh.";
/// What the names begin with that aufs keeps for itself.
const AUFS: &[u8] = b".wh..wh.";
/// The name that makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The longest name (`NAME_MAX`), and the longest target of a symlink (`PATH_MAX`, less its NUL).
const NAME_MAX: usize = 255;
const TARGET_MAX: usize = 4095;
/// The inode number of the root. FUSE's root is 1, which no file should have.
const FIRST_INO: u64 = 2;

/// Why an entry is refused.
#[derive(Debug)]
pub(super) enum Why {
    /// It makes no sense.
    Entry(&'static str),
    /// It is too much of something.
    Limit(Flaw),
}

impl From<&'static str> for Why {
    fn from(what: &'static str) -> Why {
        Why::Entry(what)
    }
}

/// A node of a tree, by its number.
type NodeId = usize;

/// The root's number.
const ROOT: NodeId = 0;

/// The tree of one layer.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    bytes: u64,
    limits: Limits,
}

/// A file or directory. One that lost its last name stays in the list, and nothing leads to it.
#[derive(Debug)]
struct Node {
    perm: u16,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    xattrs: Vec<(OsString, Vec<u8>)>,
    names: u32,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Directory(Dir),
    Regular(Data),
    Symlink(OsString),
    Device(FileKind, u64),
    Fifo,
}

#[derive(Debug, Default)]
struct Dir {
    entries: BTreeMap<OsString, Child>,
    opaque: bool,
    /// Whether no entry tells of it: it is there because something is in it.
    implied: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Child {
    Node(NodeId),
    Whiteout,
}

impl Tree {
    /// The tree of these entries, in the order of the archive.
    pub(crate) fn new(told: Vec<Told>, limits: &Limits) -> Result<Tree, Flaw> {
        let mut tree = Tree {
            nodes: vec![Node::implied()],
            bytes: 0,
            limits: *limits,
        };
        for told in told {
            let path = PathBuf::from(&told.name);
            let added = tree.add(told);
            added.map_err(|why| match why {
                Why::Entry(what) => Flaw::Entry { path, what },
                Why::Limit(flaw) => flaw,
            })?;
        }
        Ok(tree)
    }

    /// The bytes of all regular files that were told of.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The attributes of the root.
    pub(crate) fn root(&self) -> Option<Attr> {
        Some(self.attr(ROOT, self.nodes.get(ROOT)?))
    }

    /// The directories that no entry tells of, but for the root. Where a layer below has a symlink
    /// at such a path, who unpacks the archive follows it.
    pub(crate) fn implied(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        self.walk(|path, node| {
            if matches!(&node.content, Content::Directory(dir) if dir.implied) {
                found.push(path.to_owned());
            }
        });
        found.retain(|path| !path.as_os_str().is_empty());
        found
    }

    /// The bytes of all regular files, each once: by inode number, in its order.
    pub(crate) fn files(&self) -> impl Iterator<Item = (Ino, &Data)> {
        let named = self.nodes.iter().enumerate();
        named.filter_map(|(id, node)| match &node.content {
            Content::Regular(data) if node.names > 0 => Some((ino(id), data)),
            _ => None,
        })
    }

    /// The index of the layer.
    pub(crate) fn index(&self, stamp: Stamp) -> Result<Vec<u8>, index::Flaw> {
        let root = (self.entry(OsStr::new(""), Child::Node(ROOT)), ROOT);
        index::build(Kind::Layer, &[stamp], root, |dir| {
            let entries = self.dir(*dir).map(|dir| &dir.entries).into_iter().flatten();
            Ok(entries
                .map(|(name, child)| {
                    let id = match child {
                        Child::Node(id) => *id,
                        Child::Whiteout => ROOT,
                    };
                    (self.entry(name, *child), id)
                })
                .collect())
        })
    }

    fn add(&mut self, told: Told) -> Result<(), Why> {
        let path = clean(&told.name, &self.limits)?;
        let xattrs = own_xattrs(told.xattrs)?;
        let Some((name, parents)) = path.split_last() else {
            let Some(root) = self.nodes.get_mut(ROOT) else {
                return Ok(());
            };
            if told.what != What::Directory {
                return Err("the root is no directory".into());
            }
            (root.perm, root.uid, root.gid) = (told.perm, told.uid, told.gid);
            (root.mtime, root.xattrs) = (told.mtime, xattrs);
            return Ok(());
        };
        let parent = self.make_parents(parents)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return Ok(self.add_whiteout(parent, name, hidden)?);
        }
        let content = match told.what {
            What::Directory => Content::Directory(Dir::default()),
            What::Regular(data) => {
                self.bytes = self.bytes.saturating_add(data.size);
                self.limits
                    .check_bytes(self.bytes, None)
                    .map_err(Why::Limit)?;
                Content::Regular(data)
            }
            What::Symlink(target) => Content::Symlink(checked_target(target)?),
            What::CharDevice(0, 0) => {
                // On disk this is a whiteout.
                self.put(parent, name, Child::Whiteout);
                return Ok(());
            }
            What::CharDevice(major, minor) => {
                Content::Device(FileKind::CharDevice, makedev(major, minor))
            }
            What::BlockDevice(major, minor) => {
                Content::Device(FileKind::BlockDevice, makedev(major, minor))
            }
            What::Fifo => Content::Fifo,
            What::HardLink(target) => return self.add_link(parent, name, &target),
        };
        let node = Node {
            perm: told.perm,
            uid: told.uid,
            gid: told.gid,
            mtime: told.mtime,
            xattrs,
            names: 1,
            content,
        };
        self.add_node(parent, name, node);
        Ok(())
    }

    /// Adds a node under a name. A directory that is there already keeps what is in it.
    fn add_node(&mut self, parent: NodeId, name: &[u8], node: Node) -> NodeId {
        let found = self.child(parent, name);
        if let (Content::Directory(_), Some(Child::Node(id))) = (&node.content, found)
            && let Some(old) = self.nodes.get_mut(id)
            && let Content::Directory(dir) = &mut old.content
        {
            dir.implied = false;
            (old.perm, old.uid, old.gid) = (node.perm, node.uid, node.gid);
            (old.mtime, old.xattrs) = (node.mtime, node.xattrs);
            return id;
        }
        let mut node = node;
        if let (Content::Directory(dir), Some(_)) = (&mut node.content, found) {
            // What it replaces has hidden what is below.
            dir.opaque = true;
        }
        let id = self.nodes.len();
        self.nodes.push(node);
        self.put(parent, name, Child::Node(id));
        id
    }

    fn add_link(&mut self, parent: NodeId, name: &[u8], target: &OsStr) -> Result<(), Why> {
        let target = clean(target, &self.limits)?;
        let found = target
            .iter()
            .try_fold(ROOT, |dir, name| match self.child(dir, name) {
                Some(Child::Node(id)) => Some(id),
                _ => None,
            });
        let id = found.ok_or("a hard link to what is not in the layer")?;
        let Some(node) = self.nodes.get_mut(id) else {
            return Ok(());
        };
        if matches!(node.content, Content::Directory(_)) {
            return Err("a hard link to a directory".into());
        }
        node.names += 1;
        self.put(parent, name, Child::Node(id));
        Ok(())
    }

    /// A whiteout hides what is below, and never what the same layer has.
    fn add_whiteout(
        &mut self,
        parent: NodeId,
        name: &[u8],
        hidden: &[u8],
    ) -> Result<(), &'static str> {
        if name == OPAQUE {
            if let Some(dir) = self.dir_mut(parent) {
                dir.opaque = true;
            }
            return Ok(());
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err("a whiteout of no name");
        }
        match self.child(parent, hidden) {
            None => self.put(parent, hidden, Child::Whiteout),
            Some(Child::Node(id)) => {
                if let Some(dir) = self.dir_mut(id) {
                    dir.opaque = true;
                }
            }
            Some(Child::Whiteout) => {}
        }
        Ok(())
    }

    /// The directory at a path, made where it is missing.
    fn make_parents(&mut self, path: &[&[u8]]) -> Result<NodeId, &'static str> {
        let mut at = ROOT;
        for name in path {
            if name.starts_with(WHITEOUT) {
                return Err("an entry in a whiteout");
            }
            at = match self.child(at, name) {
                Some(Child::Node(id)) if self.dir(id).is_some() => id,
                Some(Child::Node(_)) => return Err("an entry in what is no directory"),
                None | Some(Child::Whiteout) => self.add_node(at, name, Node::implied()),
            };
        }
        Ok(at)
    }

    /// Gives a name of a directory another meaning.
    fn put(&mut self, dir: NodeId, name: &[u8], child: Child) {
        let Some(dir) = self.dir_mut(dir) else { return };
        let name = OsString::from_vec(name.to_vec());
        if let Some(Child::Node(id)) = dir.entries.insert(name, child) {
            self.unlink(id);
        }
    }

    /// Takes a name from a node; with the last name of a directory what is in it goes too.
    fn unlink(&mut self, id: NodeId) {
        let mut gone = vec![id];
        while let Some(id) = gone.pop() {
            let Some(node) = self.nodes.get_mut(id) else {
                continue;
            };
            node.names = node.names.saturating_sub(1);
            if let Content::Directory(dir) = &mut node.content {
                let children = std::mem::take(&mut dir.entries).into_values();
                gone.extend(children.filter_map(|child| match child {
                    Child::Node(id) => Some(id),
                    Child::Whiteout => None,
                }));
            }
        }
    }

    fn child(&self, dir: NodeId, name: &[u8]) -> Option<Child> {
        let entries = &self.dir(dir)?.entries;
        entries.get(OsStr::from_bytes(name)).copied()
    }

    fn dir(&self, id: NodeId) -> Option<&Dir> {
        match &self.nodes.get(id)?.content {
            Content::Directory(dir) => Some(dir),
            _ => None,
        }
    }

    fn dir_mut(&mut self, id: NodeId) -> Option<&mut Dir> {
        match &mut self.nodes.get_mut(id)?.content {
            Content::Directory(dir) => Some(dir),
            _ => None,
        }
    }

    /// Shows every node by each of its paths.
    fn walk(&self, mut visit: impl FnMut(&Path, &Node)) {
        let mut rest = vec![(PathBuf::new(), ROOT)];
        while let Some((path, id)) = rest.pop() {
            let Some(node) = self.nodes.get(id) else {
                continue;
            };
            visit(&path, node);
            let entries = self.dir(id).map(|dir| &dir.entries);
            for (name, child) in entries.into_iter().flatten() {
                if let Child::Node(id) = child {
                    rest.push((path.join(name), *id));
                }
            }
        }
    }

    /// What the index tells of a name.
    fn entry(&self, name: &OsStr, child: Child) -> Entry {
        let mut entry = Entry {
            name: name.to_owned(),
            kind: EntryKind::Whiteout,
            attr: None,
            xattrs: Vec::new(),
            target: None,
            below: Below::Nothing,
            layer: 0,
            source: None,
            data: None,
        };
        let Child::Node(id) = child else {
            return entry;
        };
        let Some(node) = self.nodes.get(id) else {
            return entry;
        };
        let attr = self.attr(id, node);
        entry.kind = EntryKind::File(attr.kind);
        entry.attr = Some(attr);
        entry.xattrs.clone_from(&node.xattrs);
        match &node.content {
            Content::Directory(dir) if !dir.opaque => entry.below = Below::SamePath,
            Content::Symlink(target) => entry.target = Some(target.clone()),
            _ => {}
        }
        entry
    }

    /// The attributes of a node, as a file system would show it when it was unpacked.
    fn attr(&self, id: NodeId, node: &Node) -> Attr {
        let (kind, size, rdev) = match &node.content {
            Content::Directory(_) => (FileKind::Directory, 4096, 0),
            Content::Regular(data) => (FileKind::Regular, data.size, 0),
            Content::Symlink(target) => (FileKind::Symlink, target.len() as u64, 0),
            Content::Device(kind, device) => (*kind, 0, *device),
            Content::Fifo => (FileKind::Fifo, 0, 0),
        };
        let nlink = match &node.content {
            Content::Directory(dir) => {
                let children = dir.entries.values();
                let is_dir =
                    |child: &&Child| matches!(child, Child::Node(id) if self.dir(*id).is_some());
                dir_nlink(u32::try_from(children.filter(is_dir).count()).unwrap_or(u32::MAX))
            }
            _ => node.names,
        };
        Attr {
            ino: ino(id),
            size,
            blocks: match kind {
                FileKind::Regular => size.div_ceil(4096).saturating_mul(8),
                FileKind::Directory => 8,
                _ => 0,
            },
            atime: node.mtime,
            mtime: node.mtime,
            ctime: node.mtime,
            kind,
            perm: node.perm,
            nlink,
            uid: node.uid,
            gid: node.gid,
            rdev,
            blksize: 4096,
            cacheable: true,
        }
    }
}

impl Node {
    /// A directory of which nothing was told: containerd makes it so.
    fn implied() -> Node {
        Node {
            perm: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
            names: 1,
            content: Content::Directory(Dir {
                implied: true,
                ..Dir::default()
            }),
        }
    }
}

fn ino(id: NodeId) -> Ino {
    Ino(id as u64 + FIRST_INO)
}

/// The parts of a path. No part leads out of the tree, or means something else elsewhere.
pub(super) fn clean<'p>(path: &'p OsStr, limits: &Limits) -> Result<Vec<&'p [u8]>, Why> {
    let exceeded = |cap| Err(Why::Limit(limits.exceeded(cap)));
    if path.len() > limits.path_bytes {
        return exceeded(Cap::Path);
    }
    let parts = path.as_bytes().split(|byte| *byte == b'/');
    let parts: Vec<&[u8]> = parts.filter(|part| !matches!(*part, b"" | b".")).collect();
    for part in &parts {
        if *part == b".." {
            return Err("a path with ..".into());
        }
        if part.contains(&0) {
            return Err("a path with a NUL byte".into());
        }
        if part.len() > limits.name_bytes.min(NAME_MAX) {
            return exceeded(Cap::Name);
        }
    }
    if parts.len() > limits.depth {
        return exceeded(Cap::Depth);
    }
    Ok(parts)
}

fn checked_target(target: OsString) -> Result<OsString, &'static str> {
    if target.is_empty() {
        return Err("a symlink without a target");
    }
    if target.as_bytes().contains(&0) {
        return Err("a target with a NUL byte");
    }
    if target.len() > TARGET_MAX {
        return Err("a target of more than 4095 bytes");
    }
    Ok(target)
}

/// The xattrs that a layer may bring along: not those by which a union knows its own files.
fn own_xattrs(mut all: Vec<(OsString, Vec<u8>)>) -> Result<Vec<(OsString, Vec<u8>)>, &'static str> {
    all.retain(|(name, _)| !marks::is_private(name));
    for (name, _) in &all {
        if name.is_empty() || name.len() > NAME_MAX || name.as_bytes().contains(&0) {
            return Err("an extended attribute with such a name");
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
