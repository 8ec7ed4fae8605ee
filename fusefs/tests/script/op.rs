//! What can be done to a mounted tree.
//!
//! The words for the details are all different, so that a test can import every one of them.

use super::layers::{Device, Mode, Time};
use super::paths::Path;

/// One operation. No symbolic link is followed at the end of a path where the system call can be
/// told so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Op {
    /// Opens for writing with `O_CREAT`, and closes.
    Create {
        path: Path,
        exclusive: bool,
        mode: Mode,
    },
    Mkdir {
        path: Path,
        mode: Mode,
    },
    Mknod {
        path: Path,
        kind: Special,
        mode: Mode,
    },
    Symlink {
        path: Path,
        target: &'static str,
    },
    Link {
        from: Path,
        to: Path,
    },
    Unlink {
        path: Path,
    },
    Rmdir {
        path: Path,
    },
    Rename {
        from: Path,
        to: Path,
        how: Renaming,
    },

    /// Opens for writing, writes `len` bytes at `at`, and closes.
    Write {
        path: Path,
        at: u64,
        len: u32,
        byte: u8,
    },
    /// Opens with `O_APPEND`, writes, and closes.
    Append {
        path: Path,
        len: u32,
        byte: u8,
    },
    /// truncate(2). It would follow a symbolic link: then it fails with ELOOP instead.
    Truncate {
        path: Path,
        size: u64,
    },
    /// Opens with `O_TRUNC`, and closes.
    OpenTruncate {
        path: Path,
    },
    /// Opens for writing, fallocate(2), and closes.
    Fallocate {
        path: Path,
        how: Allocate,
        at: u64,
        len: u64,
    },

    /// It would follow a symbolic link: then it fails with EOPNOTSUPP instead.
    Chmod {
        path: Path,
        mode: Mode,
    },
    Chown {
        path: Path,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    /// `None` leaves a time as it is.
    Utimens {
        path: Path,
        atime: Option<Time>,
        mtime: Option<Time>,
    },
    SetXattr {
        path: Path,
        name: &'static str,
        value: &'static str,
        how: Setting,
    },
    RemoveXattr {
        path: Path,
        name: &'static str,
    },

    /// All attributes of a path.
    Stat {
        path: Path,
    },
    /// The whole content of a file, or what a symbolic link says.
    Read {
        path: Path,
    },
    /// The names in a directory, with their types and inode numbers.
    ReadDir {
        path: Path,
    },
    /// Names and values of all extended attributes.
    ReadXattrs {
        path: Path,
    },

    /// Opens and keeps it as number `slot`, in place of what was kept there.
    Open {
        slot: u8,
        path: Path,
        access: Access,
    },
    /// Does something to what is kept; EBADF if nothing is.
    Held {
        slot: u8,
        act: Act,
    },

    /// Closes everything that is kept, unmounts, and mounts again.
    Remount,
    /// What follows is done by this user.
    Become {
        user: User,
    },
}

/// How renameat2(2) is called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Renaming {
    Plain,
    NoReplace,
    Exchange,
    LeaveWhiteout,
}

/// What mknod(2) makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Special {
    Regular,
    Pipe,
    Socket,
    Of(Device),
}

/// What fallocate(2) does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Allocate {
    Extend,
    KeepSize,
    PunchHole,
    ZeroRange,
}

/// Whether the attribute must be there already, or must not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Setting {
    AnyWay,
    MustCreate,
    MustReplace,
}

/// What something is opened for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Access {
    ReadOnly,
    WriteOnly,
    ReadWrite,
    AppendOnly,
}

/// What is done to something open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Act {
    Read,
    ReadDir,
    Write { at: u64, len: u32, byte: u8 },
    Truncate { size: u64 },
    Chmod { mode: Mode },
    Stat,
    Sync,
    Close,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum User {
    Root,
    /// User and group 1000, without any privilege.
    Unprivileged,
}
