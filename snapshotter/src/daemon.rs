//! The daemon: opens a root directory, serves it on a socket, and leaves both in order.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use lamina_fusefs::blob;
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::cri;
use crate::error::{Error, Result};
use crate::hold;
use crate::kept::Keeping;
use crate::lazy::keeper;
use crate::recover::Report;
use crate::registry;
use crate::root;
use crate::serve::{FuseMounter, Mounter};
use crate::service;
use crate::snapshots::Snapshots;
use crate::upper_mode::UpperMode;

/// How long calls under way may take to end when the daemon stops.
const GRACE: Duration = Duration::from_secs(10);

/// Only root may speak to the socket: whoever does can mount anything.
const SOCKET_MODE: u32 = 0o600;

/// The mode of the socket's directory, if it has to be made.
const SOCKET_DIR_MODE: u32 = 0o711;

/// What the daemon is to do.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // switches that have nothing to do with each other
pub struct ServeOptions {
    /// The root directory. It is made if it is missing.
    pub root: PathBuf,
    /// The socket.
    pub address: PathBuf,
    /// Threads of each FUSE session.
    pub threads: usize,
    /// Whether files are passed through to the kernel where it can.
    pub passthrough: bool,
    /// Whether the kernel opens the files of image mounts without asking.
    pub no_open: bool,
    /// Who holds the uppers of new containers whose labels do not say.
    pub upper: UpperMode,
    /// Whether images have an index.
    pub index: bool,
    /// Whether a change of attributes copies up the attributes alone.
    pub metacopy: bool,
    /// Whether only the blocks of a large file are copied up that are written.
    pub partial_copy_up: bool,
    /// How registries are reached, for layers that are not unpacked; `None`: there are no new ones.
    pub registry: Option<registry::Options>,
    /// How the cache of layers that are not unpacked is kept.
    pub cache: keeper::Limits,
    /// How much a blob of such a layer may ask for.
    pub limits: blob::Limits,
    /// The proxy of the CRI's image service; `None`: there is none.
    pub cri: Option<cri::Options>,
    /// Who keeps what has to outlive this daemon.
    pub holder: hold::Options,
}

/// How a daemon stops.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// Another one comes. What containers use is left to it, if somebody keeps it meanwhile.
    Leave,
    /// For good: nothing stays mounted.
    End,
}

impl From<()> for Stop {
    fn from((): ()) -> Stop {
        Stop::End
    }
}

/// Serves until `shutdown` is done. `ready` is called once everything is mounted again and the
/// socket answers. Afterwards nothing is mounted, and the socket is gone.
pub async fn serve(
    options: ServeOptions,
    ready: impl FnOnce(&ServeOptions) + Send,
    shutdown: impl Future<Output: Into<Stop>> + Send,
) -> Result<()> {
    root::raise_descriptor_limit();
    let mut mounter = FuseMounter::new(options.threads, options.passthrough);
    mounter.no_open = options.no_open;
    mounter.index = options.index;
    mounter.metacopy = options.metacopy;
    mounter.partial_copy_up = options.partial_copy_up;
    mounter.registry.clone_from(&options.registry);
    mounter.cache = options.cache.clone();
    mounter.limits = options.limits;
    mounter.keeping = Keeping::by(options.holder.clone());
    let mounter = Arc::new(mounter);
    serve_with(options, mounter, ready, shutdown).await
}

/// The same with another way to mount, for tests.
#[doc(hidden)]
pub async fn serve_with(
    options: ServeOptions,
    mounter: Arc<dyn Mounter>,
    ready: impl FnOnce(&ServeOptions) + Send,
    shutdown: impl Future<Output: Into<Stop>> + Send,
) -> Result<()> {
    let keeping = Arc::clone(&mounter);
    let keeping = keeping.keeping();
    // Before the root is touched: a second daemon must not disturb the first. A socket that was kept
    // takes connections while there is no daemon; whether it is ours is known when the root is.
    if keeping.is_none() {
        check_address(&options.address)?;
        if let Some(cri) = &options.cri {
            check_address(&cri.socket)?;
        }
    }
    let root = options.root.clone();
    let opened = blocking(move || Snapshots::open(&root, mounter)).await?;
    let (snapshots, report) = opened?;
    log(&report);
    let snapshots = Arc::new(snapshots.with_upper(options.upper));
    let (sockets, listeners) = match Sockets::bind(&options, keeping) {
        Ok(bound) => bound,
        Err(error) => {
            blocking(move || snapshots.close(true)).await?;
            return Err(error);
        }
    };
    ready(&options);
    let served = serve_until(Arc::clone(&snapshots), listeners, &options, shutdown).await;
    // What ends with an error is started again.
    let leave = !matches!(served, Ok(Stop::End));
    let left = blocking(move || snapshots.close(leave)).await?;
    sockets.end(left);
    served.map(drop)
}

/// Serves until `shutdown` is done, then waits for calls under way, but not for ever.
async fn serve_until(
    snapshots: Arc<Snapshots>,
    listeners: Listeners,
    options: &ServeOptions,
    shutdown: impl Future<Output: Into<Stop>> + Send,
) -> Result<Stop> {
    let (stop, stopped) = watch::channel(());
    let signal = || {
        let mut stopped = stopped.clone();
        // An error means that the sender is gone, which is the signal.
        async move { stopped.changed().await.unwrap_or_default() }
    };
    let containerd = service::serve(snapshots, listeners.own, &options.address, signal());
    let kubelet = async {
        let (Some(cri), Some(listener)) = (&options.cri, listeners.cri) else {
            return Ok(());
        };
        // Who does not reach registries has no use for logins.
        let registry = options.registry.as_ref();
        let logins = registry.map(|registry| Arc::clone(&registry.pulled));
        cri::serve(listener, cri, logins, signal()).await
    };
    let serving = async { tokio::try_join!(containerd, kubelet).map(|_| ()) };
    let mut serving = pin!(serving);
    let how = tokio::select! {
        served = &mut serving => return served.map(|()| Stop::Leave),
        how = shutdown => how.into(),
    };
    drop(stop);
    let Ok(served) = tokio::time::timeout(GRACE, serving).await else {
        tracing::warn!("calls were still under way after {GRACE:?}; stopping without them");
        return Ok(how);
    };
    served.map(|()| how)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::Broken(error.to_string()))
}

fn log(report: &Report) {
    for path in &report.detached {
        tracing::info!(path = %path.display(), "detached a stale mount");
    }
    for path in &report.removed {
        tracing::info!(path = %path.display(), "removed a leftover");
    }
    for (key, error) in &report.failed {
        tracing::error!(key, %error, "a snapshot could not be mounted; asking for its mounts tries again");
    }
    tracing::info!(
        mounted = report.mounted,
        failed = report.failed.len(),
        "the root is in order"
    );
}

/// What is listened on.
struct Listeners {
    own: UnixListener,
    cri: Option<UnixListener>,
}

/// The files of the sockets that are listened on.
struct Sockets {
    own: Socket,
    cri: Option<Socket>,
}

impl Sockets {
    fn bind(options: &ServeOptions, keeping: Option<&Keeping>) -> Result<(Sockets, Listeners)> {
        let cri = options.cri.as_ref();
        let cri = cri
            .map(|cri| Socket::open(&cri.socket, keeping))
            .transpose()?;
        let (cri_socket, cri) = cri.unzip();
        // The daemon's own last: whoever can connect there finds the other one too.
        let (own_socket, own) = Socket::open(&options.address, keeping)?;
        if let Some(keeping) = keeping {
            keeping.drop_sockets();
        }
        let sockets = Sockets {
            own: own_socket,
            cri: cri_socket,
        };
        Ok((sockets, Listeners { own, cri }))
    }

    /// Removes the files, unless the sockets were `left` to another daemon.
    fn end(self, left: bool) {
        for mut socket in std::iter::once(self.own).chain(self.cri) {
            socket.stays = left;
            drop(socket);
        }
    }
}

/// A socket's file; removed when it is dropped, unless another process has put its own there.
struct Socket {
    path: PathBuf,
    inode: (u64, u64),
    stays: bool,
}

impl Socket {
    /// Goes on with the socket that an earlier daemon left, so that nobody who connects is refused in
    /// between; or makes a new one. It is kept either way.
    fn open(path: &Path, keeping: Option<&Keeping>) -> Result<(Socket, UnixListener)> {
        let file = fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()));
        let left = file.ok().and_then(|file| keeping?.take_socket(file));
        let (socket, listener) = match left {
            Some(left) => Socket::left(path, left).map_err(Error::io("cannot listen on", path))?,
            None => Socket::bind(path)?,
        };
        if let Some(keeping) = keeping {
            let copy = listener.as_fd().try_clone_to_owned();
            let copy = copy.map_err(Error::io("cannot keep the socket", path))?;
            keeping.keep_socket(socket.inode, copy);
        }
        Ok((socket, listener))
    }

    fn left(path: &Path, left: OwnedFd) -> io::Result<(Socket, UnixListener)> {
        let listener = StdListener::from(left);
        listener.set_nonblocking(true)?;
        Ok((Socket::of(path)?, UnixListener::from_std(listener)?))
    }

    fn of(path: &Path) -> io::Result<Socket> {
        let meta = fs::symlink_metadata(path)?;
        Ok(Socket {
            path: path.to_owned(),
            inode: (meta.dev(), meta.ino()),
            stays: false,
        })
    }

    /// Listens under a temporary name, closes the file to others, and only then gives it its
    /// name: there is no moment in which others could connect.
    fn bind(path: &Path) -> Result<(Socket, UnixListener)> {
        check_address(path)?;
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let bound = (|| -> io::Result<(Socket, UnixListener)> {
            if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
                // Whatever the umask: who may write here may put another socket into our place.
                let mut builder = fs::DirBuilder::new();
                builder.recursive(true).mode(SOCKET_DIR_MODE).create(dir)?;
            }
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = StdListener::bind(&new)?;
            fs::set_permissions(&new, fs::Permissions::from_mode(SOCKET_MODE))?;
            listener.set_nonblocking(true)?;
            fs::rename(&new, path)?;
            Ok((Socket::of(path)?, UnixListener::from_std(listener)?))
        })();
        bound.map_err(Error::io("cannot listen on", path))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// Refuses an address on which somebody answers, or that is not a socket. A stale socket is fine.
fn check_address(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("cannot look at", path)(error)),
        Ok(meta) if !meta.file_type().is_socket() => Err(Error::NotASocket {
            path: path.to_owned(),
        }),
        Ok(_) if UnixStream::connect(path).is_ok() => Err(Error::SocketInUse {
            path: path.to_owned(),
        }),
        Ok(_) => Ok(()),
    }
}
