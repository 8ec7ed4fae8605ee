//! The words that every part of the union speaks: numbers, attributes, entries.
//!
//! Nothing here knows FUSE. A number that means something is a newtype, so that a
//! [`NodeId`] can never be handed in where an [`Ino`] is meant, although both are `u64`.

use std::ffi::OsString;

/// The number by which a client (the FUSE session) names an inode of one union.
///
/// It is unique while the client holds references to it, and equals the inode's [`Ino`]
/// wherever it can. It differs for the root, which FUSE wants to be 1, and after a data
/// copy-up under open handles, where the upper file gets a new node (`docs/architecture.md`,
/// "The hand-over").
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory of every union (`FUSE_ROOT_ID`).
    pub const ROOT: NodeId = NodeId(1);
}

/// `st_ino`: it never changes while the file lives, not by copy-up and, on file systems with file
/// handles, not by a remount.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ino(pub u64);

/// A handle to an open file or directory of one union.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Fh(pub u64);

/// What sort of file an inode is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
}

/// A point in time: seconds since 1970 (negative before it) and nanoseconds (0..1,000,000,000).
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Timestamp {
    /// Whole seconds since the epoch.
    pub secs: i64,
    /// Nanoseconds within that second.
    pub nanos: u32,
}

/// What `stat(2)` tells of an inode.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attr {
    /// The inode number.
    pub ino: Ino,
    /// Length in bytes.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// The sort of file.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: `mode & 0o7777`.
    pub perm: u16,
    /// Number of hard links; for a directory 2 and one more for each directory in it (1 where the
    /// host's file system does not count them).
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in `st_rdev`'s encoding; else 0.
    pub rdev: u64,
    /// Preferred size of I/O in bytes.
    pub blksize: u32,
    /// Whether the client may keep these attributes until it changes the file itself. False where
    /// they also change by another node (a hand-over) or by a write (setuid and setgid bits).
    pub cacheable: bool,
}

/// A time that `setattr` sets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SetTime {
    /// The present time of the file system.
    Now,
    /// This time.
    At(Timestamp),
}

/// The attributes that one `setattr` changes; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SetAttr {
    /// New permission bits (`mode & 0o7777`; the type bits are ignored).
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New length in bytes.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
}

/// A found or made inode, with one reference for the client that it gives back by `forget`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The node by which the client names the inode from now on.
    pub node: NodeId,
    /// Tells this use of the node's number from earlier ones: it stays while the client holds
    /// references, and is another one when the number comes back.
    pub generation: u32,
    /// Its attributes. `attr.ino` may differ from `node`.
    pub attr: Attr,
}

/// One name in a directory listing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DirEntry {
    /// The name: any bytes but `/` and NUL.
    pub name: OsString,
    /// `d_ino`, equal to the `st_ino` of the file.
    pub ino: Ino,
    /// `d_type`.
    pub kind: FileKind,
    /// The offset that continues a listing after this entry (`d_off`).
    pub next_offset: u64,
}

/// On whose behalf something is created or changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Caller {
    /// File system user ID.
    pub uid: u32,
    /// File system group ID.
    pub gid: u32,
    /// The caller's umask; applied unless the parent directory has a default ACL.
    pub umask: u32,
}

/// What `statfs(2)` tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StatFs {
    /// Total size in units of `frsize`.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for users without privilege.
    pub bavail: u64,
    /// Total inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred size of I/O in bytes.
    pub bsize: u32,
    /// Longest name in bytes.
    pub namelen: u32,
    /// Size of a block in bytes.
    pub frsize: u32,
}
