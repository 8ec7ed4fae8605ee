//! What a layer holds.

use std::collections::BTreeMap;
use std::fmt;

use super::paths::{Path, ROOT, parent};

/// What a layer is written from. Not every entry can come to be: see [`settled`].
pub(crate) type Layer = Vec<(Path, Entry)>;

/// What stands at one path of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Entry {
    Dir {
        /// Hides the directory of the layers below.
        opaque: bool,
        meta: Meta,
    },
    File {
        content: Content,
        meta: Meta,
    },
    /// The mode of its attributes does not count.
    Symlink {
        target: &'static str,
        meta: Meta,
    },
    Fifo {
        meta: Meta,
    },
    Node {
        device: Device,
        meta: Meta,
    },
    /// Another name of a file of the same layer.
    HardLink {
        to: Path,
    },
    /// Hides whatever the layers below have here.
    Whiteout,
}

/// A device node. None of them is 0:0, which is a whiteout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Device {
    Char(u32, u32),
    Block(u32, u32),
}

/// Attributes that every entry has.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Meta {
    pub(crate) mode: Mode,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) atime: Time,
    pub(crate) mtime: Time,
    /// Name and value. Left out where the kernel refuses it: `user.*` is for files and directories.
    pub(crate) xattr: Option<(&'static str, &'static str)>,
}

/// The attributes of what nobody thought about.
pub(crate) const PLAIN: Meta = Meta {
    mode: Mode(0o755),
    uid: 0,
    gid: 0,
    atime: Time(1_000_000_000, 111),
    mtime: Time(1_000_000_001, 222),
    xattr: None,
};

impl fmt::Debug for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == PLAIN {
            return f.write_str("PLAIN");
        }
        f.debug_struct("Meta")
            .field("mode", &self.mode)
            .field("uid", &self.uid)
            .field("gid", &self.gid)
            .field("atime", &self.atime)
            .field("mtime", &self.mtime)
            .field("xattr", &self.xattr)
            .finish()
    }
}

/// Permission bits.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Mode(pub(crate) u32);

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mode({:#o})", self.0)
    }
}

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Time(pub(crate) i64, pub(crate) u32);

/// What a file holds: data, a hole, and data again. Each may have no length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Content {
    pub(crate) head: u32,
    pub(crate) hole: u32,
    pub(crate) tail: u32,
    /// The first byte of the data; the others follow from it.
    pub(crate) byte: u8,
}

impl Content {
    /// How long the file is.
    pub(crate) fn len(self) -> u64 {
        u64::from(self.head) + u64::from(self.hole) + u64::from(self.tail)
    }

    /// Where its data stands, and what it is.
    pub(crate) fn pieces(self) -> [(u64, Vec<u8>); 2] {
        let tail_at = u64::from(self.head) + u64::from(self.hole);
        [
            (0, data(self.byte, self.head)),
            (tail_at, data(self.byte.wrapping_add(1), self.tail)),
        ]
    }
}

/// Data in which no two places next to each other are alike, so that a shift is seen.
pub(crate) fn data(byte: u8, len: u32) -> Vec<u8> {
    (0..len)
        .map(|at| byte.wrapping_add((at % 251).to_le_bytes()[0]))
        .collect()
}

/// A directory that nobody named.
const PLAIN_DIR: Entry = Entry::Dir {
    opaque: false,
    meta: PLAIN,
};

/// The entries that a layer has in the end, each after the directory that it is in.
///
/// The first entry of a path counts; but a plain directory takes the attributes of a later one.
/// Directories that are needed and not named come to be. An entry below something else than a
/// directory does not, nor a hard link to anything but a file that was named before, nor an entry
/// for the root that is no directory.
pub(crate) fn settled(layer: &Layer) -> Vec<(Path, Entry)> {
    let mut tree = BTreeMap::new();
    for (path, entry) in layer {
        let free = match tree.get(path) {
            None => true,
            Some(there) => *there == PLAIN_DIR && matches!(entry, Entry::Dir { .. }),
        };
        if free && fits(&tree, path, *entry) {
            add_parents(&mut tree, path);
            tree.insert(*path, *entry);
        }
    }
    // Links last: their files may have greater names.
    let (links, others): (Vec<_>, Vec<_>) = tree
        .into_iter()
        .partition(|(_, entry)| matches!(entry, Entry::HardLink { .. }));
    others.into_iter().chain(links).collect()
}

/// Whether an entry can be where it wants to be.
fn fits(tree: &BTreeMap<Path, Entry>, path: Path, entry: Entry) -> bool {
    let mut above = path;
    while above != ROOT {
        above = parent(above);
        if !matches!(tree.get(above), None | Some(Entry::Dir { .. })) {
            return false;
        }
    }
    match entry {
        Entry::Dir { .. } => true,
        Entry::HardLink { to } => path != ROOT && matches!(tree.get(to), Some(Entry::File { .. })),
        _ => path != ROOT,
    }
}

/// Adds the directories that a path is in.
fn add_parents(tree: &mut BTreeMap<Path, Entry>, path: Path) {
    let mut above = path;
    while above != ROOT {
        above = parent(above);
        tree.entry(above).or_insert(PLAIN_DIR);
    }
}
