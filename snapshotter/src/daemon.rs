//! The daemon: opens a root directory, serves it on a socket, and leaves both in order.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use lamina_fusefs::blob;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::UnixListener;
use tokio::runtime::Handle;
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
pub use crate::snapshots::Stop;
use crate::socket_file::{self, SocketFile};
use crate::upper_mode::UpperMode;
use crate::watchdog::{self, Watchdog};

/// How long calls under way may take to end when the daemon stops.
const GRACE: Duration = Duration::from_secs(10);

/// Connections that wait to be accepted: as many as the system allows.
const BACKLOG: i32 = -1;

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
            blocking(move || snapshots.close(Stop::HandOver)).await?;
            return Err(error);
        }
    };
    ready(&options);
    let probe = watchdog::probe(&snapshots, Handle::current());
    let dog = Watchdog::start(probe).inspect_err(|error| {
        tracing::warn!(%error, "nobody looks whether the daemon hangs");
    });
    let served = serve_until(Arc::clone(&snapshots), listeners, &options, shutdown).await;
    // What ends with an error is started again.
    drop(dog);
    let how = *served.as_ref().unwrap_or(&Stop::HandOver);
    let left = blocking(move || snapshots.close(how)).await?;
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
        served = &mut serving => return served.map(|()| Stop::HandOver),
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
    own: SocketFile,
    cri: Option<SocketFile>,
}

impl Sockets {
    fn bind(options: &ServeOptions, keeping: Option<&Keeping>) -> Result<(Sockets, Listeners)> {
        let cri = options.cri.as_ref();
        let cri = cri
            .map(|cri| open_socket(&cri.socket, keeping))
            .transpose()?;
        let (cri_socket, cri) = cri.unzip();
        // The daemon's own last: whoever can connect there finds the other one too.
        let (own_socket, own) = open_socket(&options.address, keeping)?;
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
        if left {
            for file in [self.own].into_iter().chain(self.cri) {
                file.leave();
            }
        }
    }
}

/// Goes on with the socket that an earlier daemon left, so that nobody who connects is refused in
/// between; or makes a new one. It is kept either way.
fn open_socket(path: &Path, keeping: Option<&Keeping>) -> Result<(SocketFile, UnixListener)> {
    let file = socket_file::inode_of(path).ok();
    let left = file.and_then(|file| keeping?.take_socket(file));
    if left.is_none() {
        check_address(path)?;
    }
    let opened = || -> io::Result<(SocketFile, UnixListener)> {
        let (file, socket) = match left {
            Some(socket) => (SocketFile::of(path)?, socket),
            None => new_socket(path)?,
        };
        if let Some(keeping) = keeping {
            keeping.keep_socket(file.inode(), socket.try_clone()?);
        }
        let listener = StdListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok((file, UnixListener::from_std(listener)?))
    };
    opened().map_err(Error::io("cannot listen on", path))
}

fn new_socket(path: &Path) -> io::Result<(SocketFile, OwnedFd)> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        // Whatever the umask: who may write here may put another socket into our place.
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(SOCKET_DIR_MODE).create(dir)?;
    }
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    Ok((SocketFile::listen(&socket, path, BACKLOG)?, socket))
}

/// Refuses an address on which somebody answers, or that is not a socket.
fn check_address(path: &Path) -> Result<()> {
    socket_file::check(path, |path| UnixStream::connect(path).is_ok())
}
