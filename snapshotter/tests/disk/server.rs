//! A file system with one file, which is a disk that remembers what it was told.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use super::sparse::Sparse;

pub(crate) const NAME: &str = "disk";
const FILE: INodeNo = INodeNo(2);
/// Nothing changes but by requests.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);
const MAX_WRITE: u32 = 1 << 20;

/// One thing that the disk was told.
#[derive(Clone)]
pub(crate) enum Entry {
    Write { offset: u64, data: Arc<[u8]> },
    Flush,
}

/// What [`Faults::BadBlocks`] is about.
pub(crate) const BAD: &[u8] = b"this block is bad";

/// Which requests a disk that is ill answers with EIO.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Faults {
    #[default]
    None,
    /// Whatever is read.
    Reads,
    /// Whatever is written, and flushes.
    Writes,
    /// Whatever is read or written with [`BAD`] in it.
    BadBlocks,
}

impl Faults {
    fn fail_read(self, data: &[u8]) -> bool {
        match self {
            Faults::None | Faults::Writes => false,
            Faults::Reads => true,
            Faults::BadBlocks => is_bad(data),
        }
    }

    fn fail_write(self, data: &[u8]) -> bool {
        match self {
            Faults::None | Faults::Reads => false,
            Faults::Writes => true,
            Faults::BadBlocks => is_bad(data),
        }
    }
}

fn is_bad(data: &[u8]) -> bool {
    data.windows(BAD.len()).any(|bytes| bytes == BAD)
}

/// What the disk holds now, how that came, and what fails.
pub(crate) struct State {
    pub(crate) now: Sparse,
    pub(crate) log: Vec<Entry>,
    pub(crate) faults: Faults,
}

/// One request is answered after the other, so the log is in the order of the answers.
pub(crate) struct Served(pub(crate) Arc<Mutex<State>>);

impl Served {
    pub(crate) fn mount(self, at: &Path) -> io::Result<BackgroundSession> {
        fuser::spawn_mount(self, at, &Config::default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (kind, size) = match ino {
            FILE => (FileType::RegularFile, self.state().now.len()),
            _ => (FileType::Directory, 0),
        };
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Less than that is no error.
        let _ = config.set_max_write(MAX_WRITE);
        Ok(())
    }

    fn lookup(&self, _: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&FOR_EVER, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_EVER, &self.attr(ino));
    }

    /// Past the page cache, whatever the loop driver asks for.
    fn open(&self, _: &Request, _ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.state();
        let bytes = state.now.read(offset, size as usize);
        if state.faults.fail_read(&bytes) {
            return reply.error(Errno::EIO);
        }
        drop(state);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _: &Request,
        _ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let mut state = self.state();
        if state.faults.fail_write(data) {
            return reply.error(Errno::EIO);
        }
        state.now.write(offset, data);
        let data = data.into();
        state.log.push(Entry::Write { offset, data });
        drop(state);
        reply.written(written);
    }

    fn flush(&self, _: &Request, _ino: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.state();
        if state.faults.fail_write(&[]) {
            return reply.error(Errno::EIO);
        }
        state.log.push(Entry::Flush);
        reply.ok();
    }

    /// It can't discard: the kernel then does not ask again, and writes the zeros that it needs.
    fn fallocate(
        &self,
        _: &Request,
        _ino: INodeNo,
        _: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
