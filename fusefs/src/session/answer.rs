//! How results of the union become replies, and its errors errnos.

use fuser::{
    Errno, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr,
};

use super::convert::{FOREVER, entry_attr, entry_attr_ttl};
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

/// Answers with the result, or with its errno.
pub(super) fn answer<R: Refuse, T>(
    operation: &'static str,
    ino: INodeNo,
    reply: R,
    result: Result<T>,
    accept: impl FnOnce(R, T),
) {
    match result {
        Ok(value) => accept(reply, value),
        Err(error) => reply.refuse(errno(operation, ino, &error)),
    }
}

/// Answers an operation that has nothing to tell but success.
pub(super) fn done(operation: &'static str, ino: INodeNo, reply: ReplyEmpty, result: Result<()>) {
    answer(operation, ino, reply, result, |reply, ()| reply.ok());
}

/// The errno of an error; what nobody should ever see is logged too.
fn errno(operation: &'static str, ino: INodeNo, error: &Error) -> Errno {
    let errno = error.errno();
    if errno == rustix::io::Errno::IO {
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
