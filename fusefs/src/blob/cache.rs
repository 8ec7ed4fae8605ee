//! The files of blobs that are here: each whole, under the digest of its bytes, and shared by all
//! layers and images that have it.
//!
//! ```text
//! cache/
//!   state         the boot in which files were last added, or "clean": all of them are on disk
//!   files/XX/D    a file with digest D, which begins with XX
//!   doubtful-N/   the same, from a boot that ended without a word
//!   new/          files that are being written; cleared at every start
//! ```
//!
//! Nothing is synced when a file is added: most of them are small, and a cache may lose what it
//! has. What it may not do is hand out something else. While the host runs, a name in `files` is
//! given to whole files only. After a power loss, any of them may be torn; so they are set aside
//! when the next boot opens the cache, all at once by one rename, and each is held against its
//! digest when it is next wanted.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::RwLock;
use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
    flock, fstat, fstatvfs, futimens, openat, statat, syncfs,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::digest::Digest;
use crate::error::{Error, Result};
use crate::sys::beneath::{open_root, reopen};
use crate::sys::change::{create, fsync, renameat, unlinkat, write_all_at};
use crate::sys::dir::{clear, make_dir, open_dir, read_dir, remove_tree};
use crate::sys::lease::is_open_elsewhere;
use crate::types::FileKind;

/// What tells one boot of the host from another (proc(5)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The state of a cache of which all is on disk.
const CLEAN: &str = "clean";
/// How long the time of a file's last use is good enough, in seconds.
const USED_LATELY: i64 = 60;

/// How a file is opened.
const READ: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The cache in one directory.
#[derive(Debug)]
pub struct Cache {
    root: OwnedFd,
    files: OwnedFd,
    new: OwnedFd,
    /// Files that have to be looked through, the oldest first.
    doubtful: Vec<OwnedFd>,
    next: AtomicU64,
    /// Bytes that were added.
    added: AtomicU64,
    /// Whether nothing is to be added that nobody waits for.
    scarce: AtomicBool,
    /// Whether it was closed; held while a file gets its name.
    closed: RwLock<bool>,
}

/// What a cache holds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Holds {
    /// Files.
    pub files: u64,
    /// Bytes that they take on the disk.
    pub bytes: u64,
}

/// The space on a file system, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What is free, for whoever is not root.
    pub free: u64,
}

/// A file of the cache, as [`Cache::shrink`] sees it.
struct Kept<'c> {
    tree: &'c OwnedFd,
    path: PathBuf,
    used: (i64, i64),
    bytes: u64,
}

impl Kept<'_> {
    /// What its name says.
    fn digest(&self) -> Option<Digest> {
        let name = self.path.file_name()?.to_str()?;
        Digest::parse(&format!("sha256:{name}"))
    }
}

impl Holds {
    fn of(all: &[Kept<'_>]) -> Holds {
        Holds {
            files: all.len() as u64,
            bytes: all.iter().map(|kept| kept.bytes).sum(),
        }
    }
}

impl Cache {
    /// Opens the cache in an existing directory, which nobody else may use.
    pub fn open(dir: &Path) -> Result<Cache> {
        let boot = std::fs::read_to_string(BOOT_ID).map_err(|source| Error::Path {
            action: "cannot read",
            path: BOOT_ID.into(),
            source,
        })?;
        Cache::open_in(dir, boot.trim()).map_err(|errno| Error::Path {
            action: "cannot open the cache in",
            path: dir.to_owned(),
            source: errno.into(),
        })
    }

    fn open_in(dir: &Path, boot: &str) -> Result<Cache, Errno> {
        let root = open_root(dir)?;
        flock(&root, FlockOperation::NonBlockingLockExclusive)?;
        let mut doubtful = Vec::new();
        for entry in read_dir(root.as_fd())? {
            let number = entry
                .name
                .to_str()
                .and_then(|name| name.strip_prefix("doubtful-"));
            if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) {
                doubtful.push(number);
            }
        }
        doubtful.sort_unstable();
        let files = make_dir(&root, "files")?;
        let state = state(&root)?;
        let files = if state == boot || state == CLEAN || read_dir(files.as_fd())?.is_empty() {
            files
        } else {
            let number = doubtful.last().map_or(0, |last| last + 1);
            renameat(&root, "files", &root, format!("doubtful-{number}"))?;
            doubtful.push(number);
            make_dir(&root, "files")?
        };
        let new = make_dir(&root, "new")?;
        clear(new.as_fd())?;
        let mut trees = Vec::new();
        for number in doubtful {
            let name = format!("doubtful-{number}");
            let tree = open_dir(&root, &name)?;
            if is_empty(&tree)? {
                remove_tree(root.as_fd(), name.as_ref(), FileKind::Directory)?;
            } else {
                trees.push(tree);
            }
        }
        let cache = Cache {
            doubtful: trees,
            root,
            files,
            new,
            next: AtomicU64::new(0),
            added: AtomicU64::new(0),
            scarce: AtomicBool::new(false),
            closed: RwLock::new(false),
        };
        if state != boot {
            // Durable before the first file is added.
            cache.set_state(boot)?;
        }
        Ok(cache)
    }

    /// The file with these bytes, if it is here.
    pub fn find(&self, digest: Digest, size: u64) -> Result<Option<File>> {
        let (dir, name) = place(digest);
        if let Some(file) = open_file(&self.files, &dir, &name)? {
            let stat = fstat(&file)?;
            if u64::try_from(stat.st_size) == Ok(size) {
                if !is_noted(stat.st_atime, now()) {
                    note_use(&file);
                }
                return Ok(Some(file));
            }
            tracing::warn!(%digest, "a file of the cache has another length, and is removed");
            remove(&self.files, format!("{dir}/{name}"))?;
        }
        for doubtful in &self.doubtful {
            let Some(file) = open_file(doubtful, &dir, &name)? else {
                continue;
            };
            if digest_of(&file)? == digest {
                let into = make_dir(&self.files, &dir)?;
                match renameat(open_dir(doubtful, &dir)?, &name, into, &name) {
                    // Somebody else has done so.
                    Ok(()) | Err(Errno::NOENT) => return Ok(Some(file)),
                    Err(error) => return Err(error.into()),
                }
            }
            tracing::warn!(%digest, "a file of the cache was torn by a crash, and is removed");
            remove(doubtful, format!("{dir}/{name}"))?;
        }
        Ok(None)
    }

    /// Whether there is a file of this name. Nobody has looked whether it is the right one.
    pub(crate) fn holds_file(&self, digest: Digest) -> Result<bool> {
        let (dir, name) = place(digest);
        for tree in [&self.files].into_iter().chain(&self.doubtful) {
            match statat(tree, format!("{dir}/{name}"), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => return Ok(true),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    /// Adds a file that these pieces make one after the other. If they make another one than
    /// `digest` says, nothing is added, and the answer is the digest of what they make. Once the cache
    /// is closed the file is made all the same, but not kept.
    pub fn add(
        &self,
        digest: Digest,
        pieces: impl IntoIterator<Item = Result<Vec<u8>>>,
    ) -> Result<std::result::Result<File, Digest>> {
        let (name, file) = self.start()?;
        let added = write(&file, pieces).and_then(|found| {
            if found != digest {
                return Ok(Err(found));
            }
            // Nobody who runs it may find it open for writing.
            let size = fstat(&file)?.st_size;
            let file = File::from(reopen(file.as_fd(), OFlags::RDONLY)?);
            self.keep(&name, size.cast_unsigned(), digest)?;
            Ok(Ok(file))
        });
        if !matches!(added, Ok(Ok(_))) {
            self.discard(&name);
        }
        added
    }

    /// Adds a file with these bytes, which the caller knows to have this digest.
    pub(super) fn put(&self, digest: Digest, bytes: &[u8]) -> Result<()> {
        let (name, file) = self.start()?;
        let written = write_all_at(&file, bytes, 0);
        drop(file);
        let kept = written.map_err(Error::from);
        let kept = kept.and_then(|()| self.keep(&name, bytes.len() as u64, digest));
        if kept.is_err() {
            self.discard(&name);
        }
        kept
    }

    /// Starts a file that is not whole yet, open for reading and writing. Whoever started it keeps or
    /// discards it by the name that this answers.
    pub(super) fn start(&self) -> Result<(String, File)> {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let file = create(&self.new, &name, Mode::RUSR | Mode::WUSR)?;
        Ok((name, File::from(file)))
    }

    /// Gives a file of `size` bytes that was started its name in the cache: its bytes have this digest.
    /// Once the cache is closed it has none.
    pub(super) fn keep(&self, name: &str, size: u64, digest: Digest) -> Result<()> {
        let closed = self.closed.read();
        if *closed {
            return Ok(unlinkat(&self.new, name, AtFlags::empty())?);
        }
        let (dir, last) = place(digest);
        let path = format!("{dir}/{last}");
        if let Err(error) = renameat(&self.new, name, &self.files, &path) {
            if error != Errno::NOENT {
                return Err(error.into());
            }
            // The first of its directory.
            make_dir(&self.files, &dir)?;
            renameat(&self.new, name, &self.files, &path)?;
        }
        self.added.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a file back that was started. Whoever has it open keeps it.
    pub(super) fn discard(&self, name: &str) {
        if let Err(error) = unlinkat(&self.new, name, AtFlags::empty()) {
            tracing::warn!(%error, name, "an unfinished file of the cache stays");
        }
    }

    /// The file system that it is on.
    pub(crate) fn file_system(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What it holds, by a walk over all of it.
    pub fn holds(&self) -> Result<Holds> {
        Ok(Holds::of(&self.all()?))
    }

    /// Removes files, those that were not used for longest first, until the others take no more
    /// than `bytes`; but none that somebody has open. Answers what it holds then.
    pub fn shrink(&self, bytes: u64) -> Result<Holds> {
        let mut all = self.all()?;
        all.sort_by_key(|kept| kept.used);
        let mut holds = Holds::of(&all);
        for kept in all {
            if holds.bytes <= bytes {
                break;
            }
            if let Ok(file) = openat(kept.tree, &kept.path, READ, Mode::empty())
                && is_open_elsewhere(file.as_fd())
            {
                continue;
            }
            remove(kept.tree, &kept.path)?;
            holds.files -= 1;
            holds.bytes -= kept.bytes;
        }
        Ok(holds)
    }

    /// Removes all files but those whose digest is `kept`. Whoever has one open keeps it. Answers what
    /// was removed.
    pub fn sweep(&self, kept: impl Fn(Digest) -> bool) -> Result<Holds> {
        let mut removed = Holds::default();
        for file in self.all()? {
            if file.digest().is_some_and(&kept) {
                continue;
            }
            remove(file.tree, &file.path)?;
            removed.files += 1;
            removed.bytes += file.bytes;
        }
        Ok(removed)
    }

    /// Reads all files, and removes those that are not what their names say. Answers what is left, and
    /// what was removed.
    pub fn verify(&self) -> Result<(Holds, Holds)> {
        let (mut left, mut removed) = (Holds::default(), Holds::default());
        for kept in self.all()? {
            let Ok(file) = openat(kept.tree, &kept.path, READ, Mode::empty()) else {
                continue;
            };
            let is_sound = Some(digest_of(&File::from(file))?) == kept.digest();
            let count = if is_sound { &mut left } else { &mut removed };
            count.files += 1;
            count.bytes += kept.bytes;
            if !is_sound {
                tracing::warn!(path = %kept.path.display(), "a file of the cache is damaged, and is removed");
                remove(kept.tree, &kept.path)?;
            }
        }
        Ok((left, removed))
    }

    /// Bytes on the disk of files that are not whole: large ones of which some chunks have come, and those
    /// that are being written. [`Self::holds`] does not count them.
    pub fn unfinished(&self) -> Result<u64> {
        let mut bytes = 0;
        for entry in read_dir(self.new.as_fd())? {
            // It may have got its name meanwhile.
            if let Ok(stat) = statat(&self.new, &entry.name, AtFlags::SYMLINK_NOFOLLOW) {
                bytes += bytes_of(&stat);
            }
        }
        Ok(bytes)
    }

    /// Says whether there is room for what nobody waits for.
    pub fn set_scarce(&self, is_scarce: bool) {
        self.scarce.store(is_scarce, Ordering::Relaxed);
    }

    /// Whether there is none.
    pub(super) fn is_scarce(&self) -> bool {
        self.scarce.load(Ordering::Relaxed)
    }

    /// The bytes that were added since it was opened.
    pub fn added(&self) -> u64 {
        self.added.load(Ordering::Relaxed)
    }

    /// The space on its file system.
    pub fn space(&self) -> Result<Space> {
        let stat = fstatvfs(&self.root)?;
        Ok(Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    /// Puts all of it on disk, and says so to the next boot. From then on nothing is added.
    pub fn close(&self) -> Result<()> {
        let mut closed = self.closed.write();
        *closed = true;
        syncfs(&self.root)?;
        Ok(self.set_state(CLEAN)?)
    }

    fn all(&self) -> Result<Vec<Kept<'_>>, Errno> {
        let mut all = Vec::new();
        let now = now();
        for tree in [&self.files].into_iter().chain(&self.doubtful) {
            for dir in read_dir(tree.as_fd())? {
                let files = open_dir(tree, &dir.name)?;
                for entry in read_dir(files.as_fd())? {
                    let stat = statat(&files, &entry.name, AtFlags::SYMLINK_NOFOLLOW);
                    let Ok(stat) = stat else { continue };
                    all.push(Kept {
                        tree,
                        path: Path::new(&dir.name).join(&entry.name),
                        used: order_of(
                            (
                                stat.st_atime,
                                i64::try_from(stat.st_atime_nsec).unwrap_or(0),
                            ),
                            now,
                        ),
                        bytes: bytes_of(&stat),
                    });
                }
            }
        }
        Ok(all)
    }

    /// Writes down the state, all or nothing.
    fn set_state(&self, state: &str) -> Result<(), Errno> {
        let file = File::from(create(&self.new, "state", Mode::RUSR | Mode::WUSR)?);
        write_all_at(&file, state.as_bytes(), 0)?;
        fsync(&file)?;
        renameat(&self.new, "state", &self.root, "state")?;
        fsync(&self.root)
    }
}

/// The bytes that a file takes on the disk.
fn bytes_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}

/// The directory and the name of a file.
fn place(digest: Digest) -> (String, String) {
    let name = digest.to_hex();
    (name.chars().take(2).collect(), name)
}

fn state(root: &OwnedFd) -> Result<String, Errno> {
    let mut state = String::new();
    match openat(root, "state", READ, Mode::empty()) {
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
        Ok(fd) => {
            // What is no text is no state.
            let _ = File::from(fd).take(100).read_to_string(&mut state);
        }
    }
    Ok(state)
}

fn open_file(tree: &OwnedFd, dir: &str, name: &str) -> Result<Option<File>, Errno> {
    match openat(tree, format!("{dir}/{name}"), READ, Mode::empty()) {
        Ok(fd) => Ok(Some(fd.into())),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn remove(tree: &OwnedFd, path: impl rustix::path::Arg) -> Result<(), Errno> {
    match unlinkat(tree, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether there are directories for files, and no file.
fn is_empty(tree: &OwnedFd) -> Result<bool, Errno> {
    for dir in read_dir(tree.as_fd())? {
        if !read_dir(open_dir(tree, &dir.name)?.as_fd())?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes the pieces, and answers their digest.
fn write(file: &File, pieces: impl IntoIterator<Item = Result<Vec<u8>>>) -> Result<Digest> {
    let (mut hash, mut offset) = (Sha256::new(), 0);
    for piece in pieces {
        let piece = piece?;
        hash.update(&piece);
        write_all_at(file, &piece, offset)?;
        offset += piece.len() as u64;
    }
    Ok(Digest::from(hash))
}

pub(super) fn digest_of(file: &File) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset)? {
            0 => return Ok(Digest::from(hash)),
            count => {
                hash.update(buffer.get(..count).unwrap_or_default());
                offset += count as u64;
            }
        }
    }
}

/// Notes that a file was used now: the mount may be one without access times.
fn note_use(file: &File) {
    let time = |nanos| Timespec {
        tv_sec: 0,
        tv_nsec: nanos,
    };
    let times = Timestamps {
        last_access: time(UTIME_NOW),
        last_modification: time(UTIME_OMIT),
    };
    if let Err(error) = futimens(file, &times) {
        tracing::debug!(%error, "the use of a file of the cache was not noted");
    }
}

/// Whether a time of use is the present, as far as anybody needs to know. One in the future is of a clock that
/// was wrong.
fn is_noted(used: i64, now: i64) -> bool {
    used <= now && now <= used.saturating_add(USED_LATELY)
}

/// The order in which files go: that of their use. Those of the future go first, since who uses one notes the
/// present ([`is_noted`]).
fn order_of(used: (i64, i64), now: i64) -> (i64, i64) {
    // Some are used while others are looked at.
    if used.0 > now.saturating_add(USED_LATELY) {
        (i64::MIN, 0)
    } else {
        used
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
mod tests;
