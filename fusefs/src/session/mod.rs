//! The session: one union, served as one FUSE mount.
//!
//! [`Session::mount`] opens `/dev/fuse`, mounts, shakes hands with the kernel and starts the
//! threads that answer it. From then on these modules work together:
//!
//! - `handler` has one short function for each request: decode, ask the union, answer
//!   (`answer` holds what the replies have in common).
//! - `convert` turns FUSE's types into the union's and back, and says how long the kernel may
//!   remember an answer: as good as for ever, because every change comes through the mount.
//! - `features` says what an older kernel does not have.
//! - `passthrough` registers backing files, so that the kernel reads and writes them by itself.
//! - `requests` counts what was asked.
//! - `handshake` agrees with the kernel, once in the life of a mount.
//! - `kept` lets a mount outlive its process: another one takes it over.
//! - `waiting` keeps requests for bytes that are not on this host from keeping others waiting.
//! - `workers` knows what each thread is doing.
//!
//! A mount that somebody still uses when it is unmounted is only detached: it disappears from
//! the tree, and is served until its last user is gone. The daemon itself never touches a path
//! inside its own mount, since it would wait for its own answer.

mod answer;
mod convert;
mod features;
mod handler;
mod handshake;
mod kept;
mod passthrough;
mod requests;
mod unlinked;
mod waiting;
mod workers;

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fs, io, thread};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

pub use self::features::KernelFeatures;
use self::handler::{Handler, MAX_IO};
use self::handshake::Agreement;
pub use self::kept::{Keeper, Kept, Restored};
use self::requests::Counters;
pub use self::requests::{Operation, Requests};
pub use self::workers::Stuck;
use self::workers::Workers;
use crate::error::{Error, Result};
use crate::sys::memory::tame_allocator;
use crate::union::Union;

/// A directive for the log: nothing of answers that the kernel did not want, because their caller was
/// killed or had another one (`unlinked`). Nobody could do anything about them.
pub const NO_UNWANTED_ANSWERS: &str = "fuser::reply=off";

/// The file system type in `/proc/mounts`: `fuse`, with a subtype for people.
const FS_TYPE: &str = "fuse.lamina";

/// Buffered reads come in pieces of the read-ahead, so let it be as long as a request may be.
const READ_AHEAD_KIB: u32 = MAX_IO / 1024;

/// How a union is mounted.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // independent mount options, as mount(8) has them
pub struct SessionOptions {
    /// The source name in /proc/mounts.
    pub fsname: String,
    /// Threads that serve requests, at least 1.
    pub threads: usize,
    /// Mount read-only.
    pub read_only: bool,
    /// Other users than the mounter may use the mount.
    pub allow_other: bool,
    /// Honour setuid and setgid bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Honour execution (false: noexec).
    pub exec: bool,
    /// Use passthrough where the kernel offers it.
    pub passthrough: bool,
    /// Have the kernel open and close files by itself, without a request: they are read by their
    /// node, and what was read stays in the page cache of this mount. For a read-only mount, and
    /// instead of passthrough; of any other it is ignored.
    pub no_open: bool,
    /// Features of the kernel to leave aside, as if it were an older one.
    pub without: KernelFeatures,
    /// Allow that the mount, or a clone of it, is idmapped (`mount_setattr(2)`); a kernel before
    /// Linux 6.12 can't, and mounting fails. The kernel then says who asks only where something
    /// is made: truncating a file takes its setuid bit away whoever does it.
    pub idmap: bool,
    /// Extra options handed to the kernel, e.g. `context="..."`.
    pub extra: Vec<String>,
}

impl Default for SessionOptions {
    /// What a container's root needs: writable, for all users, with setuid and devices.
    fn default() -> Self {
        Self {
            fsname: "lamina".to_owned(),
            threads: 2,
            read_only: false,
            allow_other: true,
            suid: true,
            dev: true,
            exec: true,
            passthrough: true,
            no_open: false,
            without: KernelFeatures::empty(),
            idmap: false,
            extra: Vec::new(),
        }
    }
}

impl SessionOptions {
    fn no_open(&self) -> bool {
        self.no_open && self.read_only
    }

    /// What the kernel may not give.
    fn without(&self) -> KernelFeatures {
        let mut without = self.without;
        without.set(
            KernelFeatures::PASSTHROUGH,
            !self.passthrough || self.no_open() || without.contains(KernelFeatures::PASSTHROUGH),
        );
        without
    }

    fn flags(&self) -> MountFlags {
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::RDONLY, self.read_only);
        flags.set(MountFlags::NOSUID, !self.suid);
        flags.set(MountFlags::NODEV, !self.dev);
        flags.set(MountFlags::NOEXEC, !self.exec);
        flags
    }

    /// The options that the kernel's FUSE reads. Permissions are always its business.
    fn data(&self, device: &File) -> io::Result<CString> {
        let mut data = format!(
            "fd={},rootmode=40000,user_id={},group_id={},default_permissions,max_read={MAX_IO}",
            device.as_raw_fd(),
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        if self.allow_other {
            data.push_str(",allow_other");
        }
        for option in &self.extra {
            data.push(',');
            data.push_str(option);
        }
        CString::new(data).map_err(|_| rustix::io::Errno::INVAL.into())
    }
}

/// A session that answers as soon as it is served.
struct Begun {
    session: fuser::Session<Handler>,
    agreement: Agreement,
    counters: Arc<Counters>,
    workers: Arc<Workers>,
}

impl Begun {
    /// Answers from now on.
    fn serve(
        self,
        mount: Mount,
        union: Arc<Union>,
        keeper: Option<Arc<dyn Keeper>>,
    ) -> Result<Session> {
        let served = Arc::new(Served::default());
        let ends = EndsServing(Arc::clone(&served), keeper);
        let thread = thread::Builder::new()
            .name(format!("lamina-{}", mount.mounted.device.1))
            .spawn(move || serve(self.session, ends))
            .map_err(|source| failed("cannot start a thread for", &mount.point, source))?;
        Ok(Session {
            mount,
            thread: Some(thread),
            served,
            counters: self.counters,
            workers: self.workers,
            union,
        })
    }
}

/// One FUSE mount that serves one union. Dropping it unmounts (lazily) without waiting.
#[derive(Debug)]
pub struct Session {
    mount: Mount,
    /// Until the session was waited for.
    thread: Option<JoinHandle<io::Result<()>>>,
    served: Arc<Served>,
    counters: Arc<Counters>,
    workers: Arc<Workers>,
    union: Arc<Union>,
}

impl Session {
    /// Mounts `union` on the existing directory `mountpoint`; when this returns the mount answers.
    pub fn mount(
        union: Arc<Union>,
        mountpoint: &Path,
        options: &SessionOptions,
    ) -> Result<Session> {
        let (mount, device) = Mount::connect(mountpoint, options)?;
        let begun = Session::begin(&union, &device, mountpoint, options, None)?;
        mount.set_read_ahead();
        begun.serve(mount, union, None)
    }

    /// Makes a session on a connection, after the handshake (`agreed`: which an earlier process had).
    fn begin(
        union: &Arc<Union>,
        device: &Arc<File>,
        mountpoint: &Path,
        options: &SessionOptions,
        agreed: Option<&Agreement>,
    ) -> Result<Begun> {
        tame_allocator();
        let mut config = fuser::Config::default();
        config.n_threads = Some(options.threads.max(1));
        // Whom it lets in is the kernel's business (`allow_other`), which knows them better: with
        // idmapped mounts it does not tell us who they are.
        config.acl = fuser::SessionACL::All;
        let counters = Arc::new(Counters::default());
        let workers = Arc::new(Workers::default());
        let notifier = Arc::new(OnceLock::new());
        let handler = Handler::new(
            Arc::clone(union),
            options.without(),
            options.idmap,
            options.no_open(),
            (Arc::clone(&counters), Arc::clone(&workers)),
            Arc::clone(&notifier),
            Arc::clone(device),
        );
        let (session, agreement) = handshake::begin(handler, device, agreed, config)
            .map_err(|source| failed("no handshake with the kernel for", mountpoint, source))?;
        // Empty until here, and nobody else fills it.
        let _ = notifier.set(session.notifier());
        Ok(Begun {
            session,
            agreement,
            counters,
            workers,
        })
    }

    /// What is served.
    pub fn union(&self) -> &Arc<Union> {
        &self.union
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mount.point
    }

    /// Major and minor device number of the file system.
    pub fn device(&self) -> (u32, u32) {
        self.mount.mounted.device
    }

    /// How many requests it was asked so far.
    pub fn requests(&self) -> Requests {
        self.counters.sum()
    }

    /// Requests that have been answered for at least so long, and still are.
    pub fn stuck(&self, limit: Duration) -> Vec<Stuck> {
        self.workers.stuck(limit)
    }

    /// Whether the mount is still served.
    pub fn is_alive(&self) -> bool {
        !*self.served.ended.lock()
    }

    /// Detaches the mount, and waits until the last user is gone, at most `patience`. Returns
    /// false if somebody still uses it: it is served until they stop.
    pub fn unmount(mut self, patience: Duration) -> Result<bool> {
        self.mount
            .detach()
            .map_err(|source| failed("cannot unmount", &self.mount.point, source))?;
        if !self.served.wait(patience) {
            return Ok(false);
        }
        self.join()?;
        Ok(true)
    }

    /// Waits until somebody unmounts it.
    pub fn wait(mut self) -> Result<()> {
        self.join()
    }

    /// The end of the serving thread, and how it ended.
    fn join(&mut self) -> Result<()> {
        let ended = match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(ended)) => ended,
            Some(Err(_panic)) => Err(io::Error::other("the serving thread panicked")),
        };
        ended.map_err(|source| failed("serving ended on", &self.mount.point, source))
    }
}

/// Serves until the file system is unmounted everywhere.
fn serve(session: fuser::Session<Handler>, _ends: EndsServing) -> io::Result<()> {
    let ended = match session.run() {
        // The last user went while a thread was taking a request: the kernel's other word for
        // "unmounted" (fuse_dev_do_read, fs/fuse/dev.c). One that is aborted says ENODEV too.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
        ended => ended,
    };
    match &ended {
        Ok(()) => tracing::debug!("the mount is gone"),
        Err(error) => tracing::error!(%error, "the mount is no longer served"),
    }
    ended
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Path {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Whether the serving thread has ended, to wait for with a limit.
#[derive(Debug, Default)]
struct Served {
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Served {
    /// False if it did not end within `patience`.
    fn wait(&self, patience: Duration) -> bool {
        let mut ended = self.ended.lock();
        self.changed
            .wait_while_for(&mut ended, |ended| !*ended, patience);
        *ended
    }
}

/// Says that serving ended when it is dropped, by a panic too.
struct EndsServing(Arc<Served>, Option<Arc<dyn Keeper>>);

impl Drop for EndsServing {
    fn drop(&mut self) {
        if let Some(keeper) = &self.1 {
            keeper.release();
        }
        *self.0.ended.lock() = true;
        self.0.changed.notify_all();
    }
}

/// A place in the tree where we have mounted; detached when dropped.
#[derive(Debug)]
struct Mount {
    /// Absolute and without symbolic links.
    point: PathBuf,
    mounted: Mounted,
    /// Whether it is left to another process.
    stays: bool,
}

/// Which mount it is: none that comes later at the same place is equal.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Mounted {
    /// Device number (major, minor) of the file system. The kernel gives it to the next one.
    device: (u32, u32),
    /// `STATX_MNT_ID_UNIQUE`, which is never given again (since Linux 6.8; 0 before).
    id: u64,
}

impl Mount {
    /// Mounts a new connection, whose kernel waits for the handshake.
    fn connect(mountpoint: &Path, options: &SessionOptions) -> Result<(Mount, Arc<File>)> {
        let device_path = Path::new("/dev/fuse");
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open(device_path)
            .map_err(|source| failed("cannot open", device_path, source))?;
        let mount = Mount::new(&device, mountpoint, options)
            .map_err(|source| failed("cannot mount on", mountpoint, source))?;
        Ok((mount, Arc::new(device)))
    }

    fn new(fuse: &File, point: &Path, options: &SessionOptions) -> io::Result<Mount> {
        let point = fs::canonicalize(point)?;
        let data = options.data(fuse)?;
        rustix::mount::mount(&*options.fsname, &*point, FS_TYPE, options.flags(), &*data)?;
        match mounted_at(&point) {
            Ok(mounted) => Ok(Mount {
                point,
                mounted,
                stays: false,
            }),
            Err(error) => {
                rustix::mount::unmount(&point, UnmountFlags::DETACH)?;
                Err(error)
            }
        }
    }

    /// Takes the mount out of the tree; nothing to do if somebody has done so. A mount of
    /// somebody else at the same place stays.
    fn detach(&self) -> io::Result<()> {
        match mounted_at(&self.point) {
            Ok(mounted) if mounted == self.mounted => {
                let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
                Ok(rustix::mount::unmount(&self.point, flags)?)
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Lets buffered reads come in large pieces. It is a matter of speed only, and may be
    /// forbidden (no /sys, not writable).
    fn set_read_ahead(&self) {
        let path = format!(
            "/sys/class/bdi/{}:{}/read_ahead_kb",
            self.mounted.device.0, self.mounted.device.1
        );
        if let Err(error) = fs::write(&path, READ_AHEAD_KIB.to_string()) {
            tracing::debug!(path, %error, "the read-ahead stays as it is");
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        if let Err(error) = self.detach() {
            tracing::warn!(path = %self.point.display(), %error, "cannot unmount");
        }
    }
}

/// What is mounted at a path. Asks for no fresh attributes: the kernel answers by itself, even
/// where the path is the root of our own mount.
fn mounted_at(path: &Path) -> io::Result<Mounted> {
    /// Not in rustix's table yet (include/uapi/linux/stat.h).
    const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(CWD, path, flags, MNT_ID_UNIQUE)?;
    let unique = stat.stx_mask & MNT_ID_UNIQUE.bits() != 0;
    Ok(Mounted {
        device: (stat.stx_dev_major, stat.stx_dev_minor),
        id: if unique { stat.stx_mnt_id } else { 0 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags_and_data() {
        let extra = vec!["context=\"a:b\"".to_owned()];
        let options = SessionOptions {
            read_only: true,
            dev: false,
            allow_other: false,
            extra,
            ..SessionOptions::default()
        };
        assert_eq!(options.flags(), MountFlags::RDONLY | MountFlags::NODEV);
        let data = options.data(&File::open("/dev/null").unwrap()).unwrap();
        let data = data.to_str().unwrap();
        assert!(data.contains(",default_permissions,"), "{data}");
        assert!(data.ends_with(",context=\"a:b\""), "{data}");
        assert!(!data.contains("allow_other"), "{data}");
    }

    #[test]
    fn files_are_opened_by_the_kernel_alone_only_where_nothing_is_written() {
        let of = |read_only| SessionOptions {
            no_open: true,
            read_only,
            ..SessionOptions::default()
        };
        assert!(of(true).no_open());
        assert!(of(true).without().contains(KernelFeatures::PASSTHROUGH));
        assert!(!of(false).no_open());
        assert!(!of(false).without().contains(KernelFeatures::PASSTHROUGH));
    }
}
