//! The systems under test, and the layers that they are mounted over.

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lamina_fusefs::Error;
use lamina_fusefs::image::{Image, LayerPlace};
use lamina_fusefs::layer::{DirLayer, Layer};
use lamina_fusefs::session::{KernelFeatures, Session, SessionOptions};
use lamina_fusefs::union::Union;
use lamina_fusefs::upper::Upper;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_bind, move_mount, unmount,
};

/// How long a mount may stay busy after a test.
const PATIENCE: Duration = Duration::from_secs(10);

/// A union file system that the tests run on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum System {
    /// The kernel's own: the yardstick.
    Overlayfs,
    /// Ours, in this process. With passthrough, images have an index.
    Lamina {
        /// Whether the kernel reads and writes backing files by itself.
        passthrough: bool,
    },
    /// Ours, on the oldest kernel that this one can imitate.
    LaminaOld,
}

impl System {
    const ALL: [System; 4] = [
        System::Overlayfs,
        System::Lamina { passthrough: true },
        System::Lamina { passthrough: false },
        System::LaminaOld,
    ];

    fn name(self) -> &'static str {
        match self {
            System::Overlayfs => "overlayfs",
            System::Lamina { passthrough: true } => "lamina",
            System::Lamina { passthrough: false } => "lamina-plain",
            System::LaminaOld => "lamina-old",
        }
    }

    /// Whether a page fault of a mapping is a request to Lamina.
    fn asks_us_for_pages(self) -> bool {
        matches!(
            self,
            System::Lamina { passthrough: false } | System::LaminaOld
        )
    }

    /// How Lamina is mounted for this system; `None` for another one.
    fn session_options(self) -> Option<SessionOptions> {
        let (passthrough, without) = match self {
            System::Overlayfs => return None,
            System::Lamina { passthrough } => (passthrough, KernelFeatures::empty()),
            System::LaminaOld => (true, KernelFeatures::all()),
        };
        Some(SessionOptions {
            passthrough,
            without,
            ..SessionOptions::default()
        })
    }

    pub(crate) fn is_wanted(self) -> bool {
        match std::env::var("LAMINA_TEST_SYSTEMS") {
            Ok(wanted) => wanted.split(',').any(|name| name == self.name()),
            Err(_) => true,
        }
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Runs a test on every system, over two layers: `prepare` fills them, `check` sees the mount.
pub(crate) fn each_system(prepare: impl Fn(&Layers), check: impl Fn(&mut Mounted)) {
    each_system_over(2, prepare, check);
}

/// Runs a test that maps files, on every system whose mappings this process does not serve itself.
///
/// Without passthrough a page fault is a request to Lamina, which runs in this very process: the
/// fault holds the lock of the process's memory, and the thread that should answer needs that lock
/// to take the request. A daemon never maps a file of its own mount; a test in its process must not
/// either.
pub(crate) fn each_system_with_mappings(prepare: impl Fn(&Layers), check: impl Fn(&mut Mounted)) {
    each_system(prepare, |mounted| {
        if !mounted.system.asks_us_for_pages() {
            check(mounted);
        }
    });
}

/// The same over any number of layers.
pub(crate) fn each_system_over(
    layers: usize,
    prepare: impl Fn(&Layers),
    check: impl Fn(&mut Mounted),
) {
    for system in System::ALL.into_iter().filter(|system| system.is_wanted()) {
        eprintln!("on {system}:");
        let layers = Layers::new(layers);
        prepare(&layers);
        check(&mut Mounted::new(system, layers, Access::Write));
    }
}

/// Runs a test on Lamina only, in all its modes.
pub(crate) fn each_lamina(prepare: impl Fn(&Layers), check: impl Fn(&mut Mounted)) {
    each_system(prepare, |mounted| {
        if mounted.is_lamina() {
            check(mounted);
        }
    });
}

/// Whether a mount has an upper.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    /// No upper: an image is looked at.
    ReadOnly,
    /// An upper takes the changes.
    Write,
}

/// Directories for layers, upper, work and mount point.
pub(crate) struct Layers {
    dir: tempfile::TempDir,
    lowers: Vec<PathBuf>,
    /// Mounts inside `dir`, to be detached before it is removed.
    bound: Vec<PathBuf>,
}

impl Layers {
    pub(crate) fn new(count: usize) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount: run them as root"
        );
        assert!(
            Path::new("/dev/fuse").exists(),
            "these tests need /dev/fuse (modprobe fuse)"
        );
        let dir = tempfile::Builder::new()
            .prefix("lamina-mounted-")
            .tempdir()
            .unwrap();
        let layers = Self {
            lowers: (0..count)
                .map(|layer| dir.path().join(format!("l{layer}")))
                .collect(),
            bound: Vec::new(),
            dir,
        };
        // Some tests act as another user, who has to get in.
        fs::set_permissions(layers.dir.path(), Permissions::from_mode(0o755)).unwrap();
        for made in layers.lowers.iter().cloned().chain([
            layers.upper(),
            layers.work(),
            layers.mountpoint(),
        ]) {
            fs::create_dir(&made).unwrap();
            fs::set_permissions(&made, Permissions::from_mode(0o755)).unwrap();
        }
        layers
    }

    /// All layers, the topmost first.
    pub(crate) fn lowers(&self) -> &[PathBuf] {
        &self.lowers
    }

    /// Puts another tree in the place of the topmost layer.
    pub(crate) fn bind_top(&mut self, tree: &Path) {
        mount_bind(tree, &self.lowers[0]).unwrap();
        self.bound.push(self.lowers[0].clone());
    }

    /// A path in the topmost layer.
    pub(crate) fn top(&self, path: &str) -> PathBuf {
        self.lowers[0].join(path)
    }

    /// A path in the lowest layer.
    pub(crate) fn bottom(&self, path: &str) -> PathBuf {
        self.lowers[self.lowers.len() - 1].join(path)
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub(crate) fn mountpoint(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// A directory beside everything else.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Serves the layers by Lamina.
    pub(crate) fn mount_lamina(&self, access: Access, options: &SessionOptions) -> Session {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_mount_lamina(access, options) {
                // A process that another test is starting has our descriptors until it runs its
                // program, and with them the last mount's lock.
                Err(Error::Path { source, .. })
                    if source.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    thread::sleep(Duration::from_millis(20));
                }
                mounted => return mounted.unwrap(),
            }
        }
    }

    /// The same where the mount may fail.
    pub(crate) fn try_mount_lamina(
        &self,
        access: Access,
        options: &SessionOptions,
    ) -> lamina_fusefs::Result<Session> {
        let newest = options.passthrough && options.without.is_empty();
        let image = if newest {
            self.indexed_image()
        } else {
            self.lazy_image()
        };
        let upper = match access {
            Access::ReadOnly => None,
            Access::Write => Some(Upper::open(&self.upper(), &self.work())?),
        };
        // Large ones, or all files, are copied up in part.
        let partial_from = if newest { 1 << 20 } else { 1 };
        let union = Union::new(image, upper).unwrap();
        let union = Arc::new(union.partial_copy_up_from(Some(partial_from)));
        Session::mount(union, &self.mountpoint(), options)
    }

    /// The image as it is merged on demand.
    fn lazy_image(&self) -> Arc<Image> {
        let lowers = self.lowers.iter().map(|lower| {
            let layer: Arc<dyn Layer> = Arc::new(DirLayer::open(lower).unwrap());
            layer
        });
        Image::new(lowers.collect()).unwrap()
    }

    /// The image by its index, which stays for the next mount. (Layers with marks that make no
    /// sense have none.)
    fn indexed_image(&self) -> Arc<Image> {
        let lowers = self.lowers.iter().map(|lower| LayerPlace::Dir {
            dir: lower.clone(),
            index: None,
        });
        let lowers: Vec<_> = lowers.collect();
        Image::open_indexed(&lowers, &self.beside("image.index")).unwrap()
    }

    /// Serves the layers by the kernel.
    pub(crate) fn mount_overlay(&self, access: Access, options: &[(&str, &str)]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_mount_overlay(access, options) {
                Ok(()) => return,
                // The last mount of the upper is gone from the tree, and nearly from the kernel.
                Err(Errno::BUSY) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("mount overlay: {error}"),
            }
        }
    }

    /// The same where the mount may fail.
    pub(crate) fn try_mount_overlay(
        &self,
        access: Access,
        options: &[(&str, &str)],
    ) -> rustix::io::Result<()> {
        // fsconfig, because 128 layers don't fit into the one page that mount(2) takes.
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for lower in &self.lowers {
            fsconfig_set_string(&context, "lowerdir+", lower)?;
        }
        match access {
            Access::ReadOnly => fsconfig_set_flag(&context, "ro")?,
            Access::Write => {
                fsconfig_set_string(&context, "upperdir", self.upper())?;
                fsconfig_set_string(&context, "workdir", self.work())?;
            }
        }
        for (key, value) in options {
            fsconfig_set_string(&context, *key, *value)?;
        }
        fsconfig_create(&context)?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let mount = fsmount(&context, flags, MountAttrFlags::empty())?;
        let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&mount, "", CWD, self.mountpoint(), from)
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        for bound in &self.bound {
            let _ = unmount(bound, UnmountFlags::DETACH);
        }
    }
}

/// How overlayfs is mounted over an upper: so that it renames directories and keeps hard links.
const LIKE_LAMINA: &[(&str, &str)] =
    &[("redirect_dir", "on"), ("index", "on"), ("metacopy", "off")];

/// A mounted system. Unmounts when dropped.
pub(crate) struct Mounted {
    pub(crate) system: System,
    /// With an upper, for overlayfs alone.
    pub(crate) overlay_options: &'static [(&'static str, &'static str)],
    access: Access,
    session: Option<Session>,
    // Last, so that the directories outlive the mount.
    pub(crate) layers: Layers,
}

impl Mounted {
    pub(crate) fn new(system: System, layers: Layers, access: Access) -> Self {
        let mut mounted = Self {
            system,
            overlay_options: LIKE_LAMINA,
            access,
            session: None,
            layers,
        };
        mounted.mount();
        mounted
    }

    /// Overlayfs with an upper and options of its own.
    pub(crate) fn overlay(
        layers: Layers,
        overlay_options: &'static [(&'static str, &'static str)],
    ) -> Self {
        let mut mounted = Self {
            system: System::Overlayfs,
            overlay_options,
            access: Access::Write,
            session: None,
            layers,
        };
        mounted.mount();
        mounted
    }

    pub(crate) fn is_lamina(&self) -> bool {
        self.system != System::Overlayfs
    }

    /// A path in the mount.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.layers.mountpoint().join(path)
    }

    /// A path in the upper.
    pub(crate) fn upper(&self, path: &str) -> PathBuf {
        self.layers.upper().join(path)
    }

    /// Unmounts, mounts again: what was only remembered is forgotten.
    pub(crate) fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// Mounts the same layers by another system.
    pub(crate) fn switch(&mut self, system: System) {
        let union = self
            .session
            .as_ref()
            .map(|session| Arc::clone(session.union()));
        self.unmount();
        if let Some(union) = union {
            union.settle().unwrap();
        }
        self.system = system;
        self.mount();
    }

    /// Unmounts; nobody may be using it.
    pub(crate) fn unmount(&mut self) {
        match self.session.take() {
            Some(session) => {
                assert!(
                    session.unmount(PATIENCE).unwrap(),
                    "somebody still uses the mount"
                );
            }
            None => unmount(self.layers.mountpoint(), UnmountFlags::empty()).unwrap(),
        }
    }

    /// Mounts what was unmounted.
    pub(crate) fn mount(&mut self) {
        match self.system.session_options() {
            None => {
                let options: &[_] = match self.access {
                    Access::ReadOnly => &[],
                    Access::Write => self.overlay_options,
                };
                self.layers.mount_overlay(self.access, options);
            }
            Some(options) => {
                let options = SessionOptions {
                    read_only: self.access == Access::ReadOnly,
                    ..options
                };
                self.session = Some(self.layers.mount_lamina(self.access, &options));
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A session unmounts itself. A failed test may have left files open: no waiting.
        if self.session.take().is_none() {
            let _ = unmount(self.layers.mountpoint(), UnmountFlags::DETACH);
        }
    }
}
