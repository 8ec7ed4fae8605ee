//! What an operation says, of the model as of the union; and what the kernel says before either.

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::types::FileKind;
use crate::union::tests::script::{Access, Act, Time};

/// The umask of everybody.
pub(super) const UMASK: u32 = 0o022;

/// What [`User::Unprivileged`](crate::union::tests::script::User) is.
pub(super) const USER: u32 = 1000;

/// What an operation says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Done,
    Stat(Stat),
    Data(Vec<u8>),
    Names(BTreeMap<String, FileKind>),
    Xattrs(BTreeMap<String, Vec<u8>>),
    /// It depends on how far an operation came that failed.
    Anything,
}

/// Attributes that the model knows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stat {
    pub(super) kind: FileKind,
    pub(super) perm: u32,
    pub(super) owner: (u32, u32),
    pub(super) nlink: u32,
    /// Not of directories.
    pub(super) size: Option<u64>,
    pub(super) rdev: u64,
    /// `None`: anything.
    pub(super) mtime: Option<Time>,
}

pub(super) type Step = Result<Answer, Errno>;

/// What the kernel refuses on a descriptor without asking the file system.
pub(super) fn kernel_refusal(act: Act, access: Access, is_dir: bool) -> Option<Errno> {
    match act {
        Act::Read if is_dir => Some(Errno::ISDIR),
        Act::Read if matches!(access, Access::WriteOnly | Access::AppendOnly) => Some(Errno::BADF),
        Act::ReadDir if !is_dir => Some(Errno::NOTDIR),
        Act::Write { .. } if access == Access::ReadOnly => Some(Errno::BADF),
        Act::Truncate { .. } if access == Access::ReadOnly => Some(Errno::INVAL),
        _ => None,
    }
}
