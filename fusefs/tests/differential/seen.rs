//! What can be seen of a file, and of a tree.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirEntryExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

/// What stat(2) tells, as far as two systems can agree on it, and the inode number. No ctime; and
/// no atime, because looking at a file changes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Attributes {
    /// With the type.
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) rdev: u64,
    pub(crate) nlink: u64,
    /// Of a directory it is the file system's affair: 0.
    pub(crate) size: u64,
    pub(crate) mtime: Moment,
    /// Compared with that before a remount alone.
    pub(crate) ino: u64,
}

/// A time that was set, or that of the test itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Moment {
    Set(i64, i64),
    Now,
}

impl Moment {
    pub(crate) fn new(seconds: i64, nanoseconds: i64) -> Self {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        // Nobody sets a time within an hour of the present.
        let hour = Duration::from_hours(1).as_secs();
        match u64::try_from(seconds) {
            Ok(seconds) if seconds.abs_diff(since.as_secs()) < hour => Moment::Now,
            _ => Moment::Set(seconds, nanoseconds),
        }
    }
}

impl Attributes {
    pub(crate) fn new(meta: &fs::Metadata) -> Self {
        Self {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            rdev: meta.rdev(),
            nlink: meta.nlink(),
            size: if meta.is_dir() { 0 } else { meta.size() },
            mtime: Moment::new(meta.mtime(), meta.mtime_nsec()),
            ino: meta.ino(),
        }
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }
}

/// Everything at one path of a tree.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Seen {
    pub(crate) attributes: Attributes,
    /// Of a file, or what a symbolic link says.
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// The first path with the same inode.
    pub(crate) same_as: String,
}

/// The least node number that is no `st_ino`.
const FIRST_OWN_NODE: u64 = 1 << 63;

/// How a system may contradict itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Quirks {
    /// A file that was copied up while it was open may be listed under its node number, as FUSE has
    /// it (`docs/architecture.md`, "The hand-over"): the crate that speaks FUSE has one field for
    /// both. Such numbers begin here.
    Lamina,
    /// A directory that only one layer has is listed with its whiteouts. And a copied-up directory
    /// is listed under its inode number in the upper where nothing says that there are any.
    Overlayfs,
}

/// A whole tree, by path.
pub(crate) type Tree = BTreeMap<String, Seen>;

/// Looks at a whole tree. An error says where it contradicts itself, which `quirks` forgive.
pub(crate) fn tree(root: &Path, quirks: Quirks) -> Result<Tree, String> {
    let mut tree = Tree::new();
    collect(root, ".", quirks, &mut tree)?;
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    for (path, seen) in &mut tree {
        let first = first.entry(seen.attributes.ino);
        seen.same_as
            .clone_from(first.or_insert_with(|| path.clone()));
    }
    Ok(tree)
}

fn collect(root: &Path, path: &str, quirks: Quirks, tree: &mut Tree) -> Result<(), String> {
    let at = root.join(path);
    let fails = |what: &str, error: &dyn std::fmt::Display| format!("{what} of {path}: {error}");
    let meta = fs::symlink_metadata(&at).map_err(|error| fails("stat", &error))?;
    let kind = meta.file_type();
    let content = if kind.is_file() || kind.is_symlink() {
        content(&at).map_err(|error| fails("content", &error))?
    } else {
        Vec::new()
    };
    let seen = Seen {
        attributes: Attributes::new(&meta),
        content,
        xattrs: xattrs(&at).map_err(|error| fails("xattrs", &error))?,
        same_as: String::new(),
    };
    tree.insert(path.to_owned(), seen);
    if !kind.is_dir() {
        return Ok(());
    }
    let mut directories = 0;
    for entry in fs::read_dir(&at).map_err(|error| fails("listing", &error))? {
        let entry = entry.map_err(|error| fails("listing", &error))?;
        let name = entry.file_name().into_string().unwrap();
        let below = match path {
            "." => name,
            path => format!("{path}/{name}"),
        };
        if quirks == Quirks::Overlayfs && is_whiteout(CWD, root.join(&below)) {
            continue;
        }
        collect(root, &below, quirks, tree)?;
        directories += u64::from(fs::symlink_metadata(root.join(&below)).unwrap().is_dir());
        let listed = (entry.ino(), letter(entry.file_type().unwrap()));
        let meta = fs::symlink_metadata(root.join(&below)).unwrap();
        let told = (meta.ino(), letter(meta.file_type()));
        let is_node = listed.0 >= FIRST_OWN_NODE && listed.1 == told.1;
        if listed != told && !is_node && quirks == Quirks::Lamina {
            return Err(format!("{below} is listed as {listed:?}, and is {told:?}"));
        }
    }
    let expected = 2 + directories;
    if quirks == Quirks::Lamina && meta.nlink() != expected {
        return Err(format!("{path} has {} links, not {expected}", meta.nlink()));
    }
    Ok(())
}

/// The whole content of a file, or what a symbolic link says.
pub(crate) fn content(path: &Path) -> rustix::io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::LOOP) => {
            return Ok(rustix::fs::readlinkat(CWD, path, Vec::new())?.into_bytes());
        }
        opened => opened?,
    };
    let mut content = Vec::new();
    match fs::File::from(file).read_to_end(&mut content) {
        Ok(_) => Ok(content),
        Err(error) => Err(Errno::from_io_error(&error).unwrap()),
    }
}

/// Names and values of all extended attributes.
pub(crate) fn xattrs(path: &Path) -> rustix::io::Result<BTreeMap<String, Vec<u8>>> {
    let mut list = vec![0; 1 << 12];
    let length = rustix::fs::llistxattr(path, &mut list[..])?;
    let mut found = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0) {
        if !name.is_empty() {
            let mut value = vec![0; 1 << 12];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
            value.truncate(length);
            found.insert(String::from_utf8(name.to_vec()).unwrap(), value);
        }
    }
    Ok(found)
}

/// Names and types in an open directory, in order of names.
pub(crate) fn listing(
    directory: impl AsFd,
    quirks: Quirks,
) -> rustix::io::Result<Vec<(String, FileType)>> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_hidden = quirks == Quirks::Overlayfs && is_whiteout(&directory, entry.file_name());
        if name != "." && name != ".." && !is_hidden {
            found.push((name, entry.file_type()));
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(found)
}

/// Whether what is listed is not there.
fn is_whiteout(directory: impl AsFd, name: impl rustix::path::Arg) -> bool {
    matches!(
        rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW),
        Err(Errno::NOENT)
    )
}

/// The letter that `ls -l` has for a type.
fn letter(kind: fs::FileType) -> char {
    match kind {
        kind if kind.is_dir() => 'd',
        kind if kind.is_symlink() => 'l',
        kind if kind.is_fifo() => 'p',
        kind if kind.is_socket() => 's',
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => '-',
    }
}
