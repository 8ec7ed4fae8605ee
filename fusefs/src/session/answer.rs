//! How results of the union become replies, its errors errnos, and its panics EIO.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fuser::{
    Errno, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr,
};

use super::convert::{FOREVER, entry_attr, entry_attr_ttl};
use super::requests::Operation;
use super::workers::busy;
use crate::error::{Error, Result};
use crate::types::Entry;

/// The generation of no inode at all.
pub(super) const NO_GENERATION: Generation = Generation(0);

/// The generation of a node. File handles of the mount (`name_to_handle_at(2)`) are made of the
/// node's number and this, so an old one never leads to another file that has the number now.
pub(super) fn generation(entry: &Entry) -> Generation {
    Generation(u64::from(entry.generation))
}

/// A reply that can carry an error.
pub(super) trait Refuse {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),+) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })+
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// Does the work and answers with its result, or with its errno.
pub(super) fn answer<R: Refuse, T>(
    operation: Operation,
    ino: INodeNo,
    reply: R,
    work: impl FnOnce() -> Result<T>,
    accept: impl FnOnce(R, T),
) {
    survive(operation, ino, || match work() {
        Ok(value) => accept(reply, value),
        Err(error) => reply.refuse(errno(operation, ino, &error)),
    });
}

/// The same for work that fills the reply as it goes.
pub(super) fn fill<R: Refuse>(
    operation: Operation,
    ino: INodeNo,
    mut reply: R,
    work: impl FnOnce(&mut R) -> Result<()>,
    accept: impl FnOnce(R),
) {
    survive(operation, ino, || match work(&mut reply) {
        Ok(()) => accept(reply),
        Err(error) => reply.refuse(errno(operation, ino, &error)),
    });
}

/// The same for an operation that has nothing to tell but success.
pub(super) fn done(
    operation: Operation,
    ino: INodeNo,
    reply: ReplyEmpty,
    work: impl FnOnce() -> Result<()>,
) {
    answer(operation, ino, reply, work, |reply, ()| reply.ok());
}

/// Does something that may be a bug's victim: a panic costs this one request (fuser answers a reply
/// that is dropped with EIO), not the thread that serves it. Without the last thread every program
/// that touches the mount would hang for ever.
pub(super) fn survive(operation: Operation, ino: INodeNo, work: impl FnOnce()) {
    // No lock of the union is poisoned, and none guards an invariant over more than one step
    // that a crash could not cut off as well.
    let survived = busy(operation, ino, || catch_unwind(AssertUnwindSafe(work)));
    if survived.is_err() {
        tracing::error!(
            operation = operation.name(),
            node = ino.0,
            "panicked: a bug, answered with EIO"
        );
    }
}

/// The errno of an error; what nobody should ever see is logged too.
fn errno(operation: Operation, ino: INodeNo, error: &Error) -> Errno {
    let errno = error.errno();
    if errno == rustix::io::Errno::IO {
        let operation = operation.name();
        tracing::error!(operation, node = ino.0, %error, "answered with EIO");
    }
    Errno::from_i32(errno.raw_os_error())
}

/// A found or made inode; the name may be remembered for ever.
pub(super) fn reply_entry(reply: ReplyEntry, entry: &Entry) {
    reply.entry_with_ttls(
        &entry_attr_ttl(entry),
        &FOREVER,
        &entry_attr(entry),
        generation(entry),
    );
}

/// How many bytes were written or copied.
pub(super) fn reply_count(reply: ReplyWrite, count: usize) {
    reply.written(u32::try_from(count).unwrap_or(u32::MAX));
}

/// The protocol of xattr values and lists: size 0 asks for the size, too small is ERANGE.
pub(super) fn reply_sized(reply: ReplyXattr, value: &[u8], size: u32) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
