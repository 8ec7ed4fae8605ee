//! The requests: each is decoded, put to the union, and answered.
//!
//! The file is long because fuser's trait has one method for each of FUSE's forty operations, most
//! with a line for each argument; there is nothing to it but the list.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, OFlags, XattrFlags};

use super::answer::{
    NO_GENERATION, answer, done, fill, generation, reply_count, reply_entry, reply_sized, survive,
};
use super::convert::{
    FOREVER, attr_ttl, caller, dot_attr, entry_attr, entry_attr_ttl, file_attr, file_type,
    has_own_node, no_entry, open_flags, rdev_from_wire, set_time,
};
use super::features::KernelFeatures;
use super::passthrough::{NamesBacking as _, Passthrough, open_mode};
use super::requests::{Counters, Operation};
use super::unlinked;
use super::waiting::Waiting;
use super::workers::Workers;
use crate::error::{Error, Result};
use crate::image::Absent;
use crate::types::{Fh, NodeId, SetAttr};
use crate::union::{Union, Whence};

/// The largest read or write that the kernel sends in one request.
pub(super) const MAX_IO: u32 = 1 << 20;

/// Read-ahead and other requests that nobody waits for, at once.
const MAX_BACKGROUND: u16 = 64;

/// What the mount offers to a file system stacked on it: kernel overlayfs may sit on us, so our
/// backing files may not be on a stacked file system themselves.
const STACK_DEPTH: u32 = 1;

/// What we want of the kernel; it gives what it has.
///
/// Not among them: the writeback cache (it excludes passthrough), locks (the kernel keeps POSIX
/// and flock locks by itself as long as we don't ask for them), `EXPORT_SUPPORT` (looking up `.`
/// and `..` of a node that the kernel has forgotten is not offered by the union) and
/// `AUTO_INVAL_DATA` (all changes come through the mount; `EXPLICIT_INVAL_DATA` says so).
const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_NO_OPENDIR_SUPPORT)
    .union(InitFlags::FUSE_HAS_RESEND)
    .union(InitFlags::FUSE_EXPLICIT_INVAL_DATA);

const NO_IDMAP: &str = "this kernel has no idmapped mounts of FUSE: it needs Linux 6.12 or later";

/// One union behind one FUSE connection.
#[allow(clippy::struct_excessive_bools)] // what was agreed with the kernel, each by itself
pub(super) struct Handler {
    union: Arc<Union>,
    passthrough: Arc<Passthrough>,
    waiting: Waiting,
    /// What the kernel may not give, even if it offers it.
    without: KernelFeatures,
    /// Whether the mount has to allow that it is idmapped.
    idmap: bool,
    /// Whether the kernel opens files by itself, so that there are no handles of them.
    no_open: bool,
    /// Whether the kernel says which writes take setuid and setgid away.
    killpriv: bool,
    /// Whether the kernel opens directories without us once we have told it to.
    no_opendir: bool,
    counters: Arc<Counters>,
    workers: Arc<Workers>,
    notifier: Arc<OnceLock<Notifier>>,
    /// The connection, which fuser keeps to itself.
    device: Arc<File>,
}

impl Handler {
    /// Serves `union` with what the kernel has, except what `without` names.
    /// `idmap`: the mount may be idmapped, or there is none. `no_open`: files are read without
    /// being opened. `notifier` is filled before the first request: it comes from the session of
    /// this handler. `device`: the connection.
    pub(super) fn new(
        union: Arc<Union>,
        without: KernelFeatures,
        idmap: bool,
        no_open: bool,
        (counters, workers): (Arc<Counters>, Arc<Workers>),
        notifier: Arc<OnceLock<Notifier>>,
        device: Arc<File>,
    ) -> Self {
        let offered = !without.contains(KernelFeatures::PASSTHROUGH);
        Self {
            union,
            passthrough: Arc::new(Passthrough::new(offered, &device)),
            waiting: Waiting::default(),
            without,
            idmap,
            no_open,
            killpriv: false,
            no_opendir: false,
            counters,
            workers,
            notifier,
            device,
        }
    }

    /// Counts a request, and notes who answers it.
    fn asked(&self, operation: Operation) -> Operation {
        self.counters.add(operation);
        self.workers.enter();
        operation
    }

    /// Whether a write has to take setuid and setgid away. A kernel that can't say so has sent a
    /// SETATTR before the write, if it went through the cache. A write that did not came here with
    /// its writer; one from a mapping came from the cache, and takes nothing away.
    fn takes_set_id_away(&self, writer: &Request, flags: WriteFlags) -> bool {
        if self.killpriv {
            flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID)
        } else {
            !flags.contains(WriteFlags::FUSE_WRITE_CACHE) && caller(writer, 0).uid != 0
        }
    }

    /// The bytes that have to be here before a file can be changed so; most changes need none.
    fn absent_for(&self, ino: INodeNo, change: &SetAttr) -> Result<Option<Absent>> {
        if change.size.is_none_or(|size| size == 0) && self.union.has_metacopy() {
            return Ok(None);
        }
        self.union.absent(node(ino), false)
    }
}

/// Answers with what `read` puts into a buffer of `size` bytes.
fn answer_read(
    operation: Operation,
    ino: INodeNo,
    size: u32,
    reply: ReplyData,
    read: impl FnOnce(&mut [u8]) -> Result<usize>,
) {
    with_buffer(size as usize, |buffer| {
        answer(
            operation,
            ino,
            reply,
            move || read(buffer).map(|count| &buffer[..count]),
            ReplyData::data,
        );
    });
}

/// Makes the kernel ask for a file's attributes again. Of an open it does not expect that they
/// change, but a copy-up changes the ctime.
fn forget_attributes(notifier: &OnceLock<Notifier>, ino: INodeNo) {
    // A negative offset: attributes only.
    let told = notifier.get().map(|n| n.inval_inode(ino, -1, 0));
    if let Some(Err(error)) = told {
        tracing::debug!(%ino, %error, "the kernel was not told of a copy-up");
    }
}

impl Filesystem for Handler {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities() & !self.without.init_flags();
        // These can't fail: only what is offered, only numbers in range.
        let _ = config.add_capabilities(WANTED & offered);
        let _ = config.set_max_write(MAX_IO);
        let _ = config.set_max_background(MAX_BACKGROUND);
        if self.idmap {
            if !offered.contains(InitFlags::FUSE_ALLOW_IDMAP) {
                return Err(io::Error::new(io::ErrorKind::Unsupported, NO_IDMAP));
            }
            let _ = config.add_capabilities(InitFlags::FUSE_ALLOW_IDMAP);
        }
        self.killpriv = offered.contains(InitFlags::FUSE_HANDLE_KILLPRIV_V2);
        self.no_opendir = offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        if self.passthrough.is_offered() && offered.contains(InitFlags::FUSE_PASSTHROUGH) {
            let _ = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH);
            let _ = config.set_max_stack_depth(STACK_DEPTH);
        } else {
            self.passthrough.give_up();
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _request = self.union.request(req.unique().0);
        let found = || self.union.lookup(node(parent), name);
        answer(
            self.asked(Operation::Lookup),
            parent,
            reply,
            found,
            |reply, found| match found {
                Some(entry) => reply_entry(reply, &entry),
                None => reply.entry(&FOREVER, &no_entry(), NO_GENERATION),
            },
        );
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        survive(self.asked(Operation::Forget), ino, || {
            self.union.forget(node(ino), nlookup);
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let fh = fh.filter(|_| !self.no_open).map(handle);
        let attr = || self.union.getattr(node(ino), fh);
        answer(
            self.asked(Operation::Getattr),
            ino,
            reply,
            attr,
            |reply, attr| {
                reply.attr(&attr_ttl(&attr), &file_attr(&attr));
            },
        );
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mode = mode.map(|mode| mode & 0o7777);
        let (atime, mtime) = (atime.map(set_time), mtime.map(set_time));
        let change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
        };
        let (union, who) = (Arc::clone(&self.union), caller(req, 0));
        let operation = self.asked(Operation::Setattr);
        let absent = self.absent_for(ino, &change);
        self.waiting.when_here(absent, move |here| {
            let attr =
                || here.and_then(|()| union.setattr(who, node(ino), fh.map(handle), &change));
            answer(operation, ino, reply, attr, |reply, attr| {
                reply.attr(&attr_ttl(&attr), &file_attr(&attr));
            });
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let target = || self.union.readlink(node(ino));
        answer(
            self.asked(Operation::Readlink),
            ino,
            reply,
            target,
            |reply, target| {
                reply.data(target.as_bytes());
            },
        );
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _request = self.union.request(req.unique().0);
        let (who, rdev) = (caller(req, umask), rdev_from_wire(rdev));
        let made = || self.union.mknod(who, node(parent), name, mode, rdev);
        answer(
            self.asked(Operation::Mknod),
            parent,
            reply,
            made,
            |reply, entry| {
                reply_entry(reply, &entry);
            },
        );
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let _request = self.union.request(req.unique().0);
        let made = || {
            self.union
                .mkdir(caller(req, umask), node(parent), name, mode & 0o7777)
        };
        answer(
            self.asked(Operation::Mkdir),
            parent,
            reply,
            made,
            |reply, entry| {
                reply_entry(reply, &entry);
            },
        );
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _request = self.union.request(req.unique().0);
        done(self.asked(Operation::Unlink), parent, reply, || {
            self.union.unlink(node(parent), name)
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _request = self.union.request(req.unique().0);
        done(self.asked(Operation::Rmdir), parent, reply, || {
            self.union.rmdir(node(parent), name)
        });
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let _request = self.union.request(req.unique().0);
        let who = caller(req, 0);
        let made = || {
            self.union
                .symlink(who, node(parent), link_name, target.as_os_str())
        };
        answer(
            self.asked(Operation::Symlink),
            parent,
            reply,
            made,
            |reply, entry| {
                reply_entry(reply, &entry);
            },
        );
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _request = self.union.request(req.unique().0);
        let mut flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        let whiteout = rustix::fs::RenameFlags::WHITEOUT;
        let (from, to) = (node(parent), node(newparent));
        let leaves_device = flags.contains(whiteout);
        flags.remove(whiteout);
        let renamed = || {
            if leaves_device {
                let who = caller(req, 0);
                (self.union).rename_leaving_device(who, from, name, to, newname, flags)
            } else {
                self.union.rename(from, name, to, newname, flags)
            }
        };
        done(self.asked(Operation::Rename), parent, reply, renamed);
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let _request = self.union.request(req.unique().0);
        let linked = || self.union.link(node(ino), node(newparent), newname);
        answer(
            self.asked(Operation::Link),
            ino,
            reply,
            linked,
            |reply, entry| {
                reply_entry(reply, &entry);
            },
        );
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.no_open {
            // The kernel opens it by itself then, and asks for no file of this mount again.
            return reply.error(Errno::ENOSYS);
        }
        let operation = self.asked(Operation::Open);
        let (union, passthrough) = (Arc::clone(&self.union), Arc::clone(&self.passthrough));
        let notifier = Arc::clone(&self.notifier);
        let (who, flags, unique) = (caller(req, 0), open_flags(flags), req.unique().0);
        let absent = if flags.contains(OFlags::TRUNC) {
            Ok(None)
        } else {
            let reads = flags & OFlags::RWMODE == OFlags::RDONLY;
            self.union.absent(node(ino), reads)
        };
        self.waiting.when_here(absent, move |here| {
            let _request = union.request(unique);
            let opened = || here.and_then(|()| union.open(who, node(ino), flags));
            answer(operation, ino, reply, opened, |reply, opened| {
                if opened.copied_up {
                    forget_attributes(&notifier, ino);
                }
                let id = passthrough.id_of(
                    &opened.backing,
                    |file| passthrough.register(file),
                    |id| union.attached(node(ino), id),
                );
                let (fh, mode) = (FileHandle(opened.fh.0), open_mode(&opened, id));
                let Some(id) = id else {
                    return reply.opened(fh, mode);
                };
                let id = reply.backing(id);
                reply.opened_passthrough(fh, mode, &id);
                // It is ours.
                id.into_raw();
            });
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _request = self.union.request(req.unique().0);
        let (who, flags) = (
            caller(req, umask),
            OFlags::from_bits_retain(flags.cast_unsigned()),
        );
        let created = || {
            self.union
                .create(who, node(parent), name, mode & 0o7777, flags)
        };
        answer(
            self.asked(Operation::Create),
            parent,
            reply,
            created,
            |reply, (entry, opened)| {
                let id = self.passthrough.id_of(
                    &opened.backing,
                    |file| self.passthrough.register(file),
                    |id| self.union.attached(entry.node, id),
                );
                let (fh, mode) = (FileHandle(opened.fh.0), open_mode(&opened, id));
                // One TTL for the name and the attributes: the shorter.
                let (ttl, attr) = (entry_attr_ttl(&entry), entry_attr(&entry));
                let generation = generation(&entry);
                let Some(id) = id else {
                    return reply.created(&ttl, &attr, generation, fh, mode);
                };
                let id = reply.backing(id);
                reply.created_passthrough(&ttl, &attr, generation, fh, mode, &id);
                // It is ours.
                id.into_raw();
            },
        );
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let operation = self.asked(Operation::Read);
        let no_open = self.no_open;
        let absent = if no_open {
            self.union.absent_unopened(node(ino), offset, size.into())
        } else {
            self.union.absent_bytes(handle(fh), offset, size.into())
        };
        let read = move |union: &Union, buffer: &mut [u8]| {
            if no_open {
                union.read_unopened(node(ino), offset, buffer)
            } else {
                union.read(handle(fh), offset, buffer)
            }
        };
        if let Ok(None) = absent {
            return answer_read(operation, ino, size, reply, |buffer| {
                read(&self.union, buffer)
            });
        }
        let union = Arc::clone(&self.union);
        self.waiting.when_here(absent, move |here| {
            answer_read(operation, ino, size, reply, |buffer| {
                here?;
                read(&union, buffer)
            });
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill_suidgid = self.takes_set_id_away(req, write_flags);
        let written = || {
            let count = self.union.write(handle(fh), offset, data, kill_suidgid)?;
            self.union.written(handle(fh), open_flags(flags))?;
            Ok(count)
        };
        answer(
            self.asked(Operation::Write),
            ino,
            reply,
            written,
            reply_count,
        );
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.asked(Operation::Flush);
        // Nothing waits for a close to be written; the kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        done(self.asked(Operation::Release), ino, reply, || {
            self.union.release(handle(fh));
            Ok(())
        });
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        done(self.asked(Operation::Fsync), ino, reply, || {
            if self.no_open {
                // Nothing is written here.
                return Ok(());
            }
            self.union.fsync(handle(fh), datasync)
        });
    }

    /// Nothing is kept for an open directory. A kernel that can do without asking is told so, once,
    /// and treats all directories as the flags below say.
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.asked(Operation::Opendir);
        if self.no_opendir {
            return reply.error(Errno::ENOSYS);
        }
        // The kernel drops what it remembers of a directory when it changes a name in it, and
        // nobody else does.
        let mode = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        reply.opened(FileHandle(0), mode);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        fill(
            self.asked(Operation::Readdir),
            ino,
            reply,
            |reply| {
                self.union.readdir(node(ino), offset, &mut |entry| {
                    !reply.add(
                        INodeNo(entry.ino.0),
                        entry.next_offset,
                        file_type(entry.kind),
                        &entry.name,
                    )
                })
            },
            ReplyDirectory::ok,
        );
    }

    /// An entry whose node is not its `st_ino` would be listed with a wrong `d_ino`, because fuser
    /// has one number for both. Such an entry ends the batch: in the adaptive mode the kernel goes
    /// on with a plain READDIR, which has no node in it. Only if it comes first it must be given,
    /// since an empty batch is the end of the directory. The same for an entry that can't be looked
    /// up or was removed, which has no node; if it comes first it is left out.
    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let _request = self.union.request(request.unique().0);
        // What can't come with a node comes alone: the batch ends before it, and the next has it.
        let (mut is_first, alone) = (true, Cell::new(None));
        fill(
            self.asked(Operation::Readdirplus),
            ino,
            reply,
            |reply| {
                self.union
                    .readdirplus(node(ino), offset, &mut |listed, entry| {
                        let is_dot = listed.name == "." || listed.name == "..";
                        let has_node = entry.is_some_and(|entry| !has_own_node(entry));
                        if !is_dot && !has_node {
                            alone.set(is_first.then(|| listed.clone()));
                            return false;
                        }
                        is_first = false;
                        let (ttl, attr, generation) = match entry {
                            Some(entry) => {
                                (entry_attr_ttl(entry), entry_attr(entry), generation(entry))
                            }
                            None => (
                                Duration::ZERO,
                                dot_attr(listed.ino, listed.kind),
                                NO_GENERATION,
                            ),
                        };
                        !reply.add(
                            attr.ino,
                            listed.next_offset,
                            &listed.name,
                            &ttl,
                            &attr,
                            generation,
                        )
                    })
            },
            |reply| {
                let Some(entry) = alone.take() else {
                    return reply.ok();
                };
                if let Err(error) = unlinked::answer(&self.device, request.unique().0, &entry) {
                    tracing::warn!(%ino, name = ?entry.name, %error, "a listing ends early");
                }
                // fuser wants an answer of its own. The kernel takes one; this one is refused.
                reply.error(Errno::EIO);
            },
        );
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.asked(Operation::Releasedir);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        done(self.asked(Operation::Fsyncdir), ino, reply, || {
            self.union.fsyncdir(node(ino), datasync)
        });
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        answer(
            self.asked(Operation::Statfs),
            ino,
            reply,
            || self.union.statfs(),
            |reply, fs| {
                let (files, free) = (fs.files, fs.ffree);
                let (size, name, fragment) = (fs.bsize, fs.namelen, fs.frsize);
                reply.statfs(
                    fs.blocks, fs.bfree, fs.bavail, files, free, size, name, fragment,
                );
            },
        );
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _request = self.union.request(req.unique().0);
        let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
        done(self.asked(Operation::Setxattr), ino, reply, || {
            self.union.setxattr(node(ino), name, value, flags)
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = || self.union.getxattr(node(ino), name);
        answer(
            self.asked(Operation::Getxattr),
            ino,
            reply,
            value,
            |reply, value| {
                reply_sized(reply, &value, size);
            },
        );
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = || self.union.listxattr(node(ino));
        answer(
            self.asked(Operation::Listxattr),
            ino,
            reply,
            names,
            |reply, names| {
                reply_sized(reply, &names, size);
            },
        );
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _request = self.union.request(req.unique().0);
        done(self.asked(Operation::Removexattr), ino, reply, || {
            self.union.removexattr(node(ino), name)
        });
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        self.asked(Operation::Access);
        // The kernel checks by itself (default_permissions).
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.asked(Operation::Ioctl);
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        self.asked(Operation::Poll);
        // Regular files are always ready; the kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        done(self.asked(Operation::Fallocate), ino, reply, || {
            self.union
                .fallocate(caller(req, 0), handle(fh), mode, offset, length)
        });
    }

    fn lseek(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let operation = self.asked(Operation::Lseek);
        let union = Arc::clone(&self.union);
        let no_open = self.no_open;
        let absent = if no_open {
            union.absent(node(ino), true)
        } else {
            Ok(None)
        };
        self.waiting.when_here(absent, move |here| {
            let found = || {
                here?;
                let (offset, whence) = seek_target(offset, whence)?;
                if no_open {
                    union.seek_unopened(node(ino), offset, whence)
                } else {
                    union.seek(handle(fh), offset, whence)
                }
            };
            answer(operation, ino, reply, found, |reply, offset| {
                reply.offset(i64::try_from(offset).unwrap_or(i64::MAX));
            });
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The answer has 32 bits; the caller repeats the call for the rest.
        let (fh_in, fh_out, len) = (handle(fh_in), handle(fh_out), len.min(1 << 30));
        let (from, to) = ((fh_in, offset_in), (fh_out, offset_out));
        let copied = || self.union.copy_file_range(caller(req, 0), from, to, len);
        answer(
            self.asked(Operation::CopyFileRange),
            ino_in,
            reply,
            copied,
            reply_count,
        );
    }
}

fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

fn handle(fh: FileHandle) -> Fh {
    Fh(fh.0)
}

/// `SEEK_DATA` and `SEEK_HOLE`; the kernel does the others without us.
fn seek_target(offset: i64, whence: i32) -> Result<(u64, Whence)> {
    const SEEK_DATA: i32 = 3;
    const SEEK_HOLE: i32 = 4;
    let offset = u64::try_from(offset).map_err(|_| Error::Invalid)?;
    match whence {
        SEEK_DATA => Ok((offset, Whence::Data)),
        SEEK_HOLE => Ok((offset, Whence::Hole)),
        _ => Err(Error::Invalid),
    }
}

/// Lends a buffer of this thread, which is zeroed only where it has to grow.
fn with_buffer(size: usize, work: impl FnOnce(&mut [u8])) {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        work(&mut buffer[..size]);
    });
}
