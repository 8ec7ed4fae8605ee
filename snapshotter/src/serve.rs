//! The running sessions: which union is mounted where, and for whom.
//!
//! A container's snapshot has a session of its own. The *image mount* of a chain is one read-only
//! session that all its views share, and all containers above which the kernel's overlayfs holds
//! the upper; it ends with the last of them. What mounts is behind [`Mounter`], so that the verbs
//! can be tested without a kernel.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lamina_fusefs::image::{Image, LayerPlace};
use lamina_fusefs::session::{Keeper, Kept, Restored, Session, SessionOptions, Stuck};
use lamina_fusefs::types::Attr;
use lamina_fusefs::union::{PARTIAL_FROM, Union};
use lamina_fusefs::upper::Upper;
use lamina_fusefs::{blob, descriptors};

use crate::chains::Chains;
use crate::error::{Error, Result};
use crate::indexes;
use crate::kept::{Keeping, MountTables};
use crate::lazy::status::{CacheAction, CacheStatus, LayerStatus};
use crate::lazy::{Lazy, LazyError, Wanted, keeper};
use crate::recover;
use crate::registry;
use crate::store::layout::Layout;
use crate::store::records::Labels;

/// How long a verb waits for the users of a mount that it detaches. They may be gone a moment
/// after containerd's own unmount; one that stays is served until it goes, and not waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is to be mounted.
pub struct Plan<'a> {
    /// The chain's committed snapshots, the topmost first.
    pub chain: &'a [u64],
    /// Where they lie.
    pub layout: &'a Layout,
    /// Upper and work directory; none for a read-only mount.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// The mount point, an existing directory.
    pub at: &'a Path,
    /// Whether whoever mounts it further may shift its users.
    pub idmap: bool,
    /// The snapshot that the mount is for: an active one, or the topmost of a chain.
    pub id: u64,
}

/// Mounts unions.
pub trait Mounter: Send + Sync {
    /// From now on the root is this process's alone.
    fn begin(&self, _layout: &Layout) -> lamina_fusefs::Result<()> {
        Ok(())
    }

    /// What outlives this process.
    fn keeping(&self) -> Option<&Keeping> {
        None
    }

    /// Whether the labels say enough of a layer to serve it without unpacking it.
    fn is_lazy(&self, _labels: &Labels) -> bool {
        false
    }

    /// Writes into the directory `dir` what is needed to serve a layer on top of `chain` without
    /// unpacking it, and answers the attributes of its root.
    fn make_lazy(
        &self,
        _layout: &Layout,
        _chain: &[u64],
        _labels: &Labels,
        _dir: &Path,
    ) -> Result<Attr, LazyError> {
        Err(LazyError::Unfit("nothing is served lazily here".to_owned()))
    }

    /// Notes that what [`Self::make_lazy`] wrote is in its place, and in the store.
    fn made_lazy(&self, _id: u64) {}

    /// The layers that are not unpacked.
    fn lazy_layers(&self, _layout: &Layout) -> Vec<LayerStatus> {
        Vec::new()
    }

    /// Does something about the cache of their files.
    fn keep_cache(&self, _action: CacheAction) -> lamina_fusefs::Result<CacheStatus> {
        Ok(CacheStatus::default())
    }

    /// Mounts one; when this returns it answers.
    fn mount(&self, plan: &Plan<'_>) -> lamina_fusefs::Result<Box<dyn Running>>;

    /// A snapshot was committed, and its files will never change again.
    fn committed(&self, _layout: &Layout, _id: u64) {}

    /// A snapshot was removed, and its files are about to be deleted.
    fn removed(&self, _layout: &Layout, _id: u64) {}

    /// Nothing will be mounted any more.
    fn end(&self) {}

    /// The same, but what is mounted is served until this process is gone.
    fn leave(&self) {}
}

/// A mounted union. Dropping it detaches the mount and does not wait.
pub trait Running: Send {
    /// Whether it is still served.
    fn is_alive(&self) -> bool;
    /// Whether anybody uses the mount, by what all processes see mounted.
    fn is_used(&self, tables: &MountTables) -> bool;
    /// Requests that have been answered for at least so long, and still are.
    fn stuck(&self, _limit: Duration) -> Vec<Stuck> {
        Vec::new()
    }
    /// Leaves the mount to the next process.
    fn leave(self: Box<Self>);
    /// Detaches it and waits for its users; `false` if one stayed.
    fn unmount(self: Box<Self>, patience: Duration) -> lamina_fusefs::Result<bool>;
    /// Whether its image is known from an index.
    fn is_indexed(&self) -> bool;
    /// The same, and makes the upper complete without its work directory, to be a layer.
    fn seal(self: Box<Self>, patience: Duration) -> lamina_fusefs::Result<bool>;
}

/// The real thing: FUSE.
#[allow(clippy::struct_excessive_bools)] // switches that have nothing to do with each other
pub struct FuseMounter {
    /// Threads of each session.
    pub threads: usize,
    /// Whether files are passed through to the kernel where it can.
    pub passthrough: bool,
    /// Whether the kernel opens the files of image mounts without asking.
    pub no_open: bool,
    /// Whether images have an index.
    pub index: bool,
    /// Whether a change of attributes copies up the attributes alone.
    pub metacopy: bool,
    /// Whether only the blocks of a large file are copied up that are written.
    pub partial_copy_up: bool,
    /// How registries are reached; `None`: every layer is unpacked.
    pub registry: Option<registry::Options>,
    /// How the cache of layers that are not unpacked is kept.
    pub cache: keeper::Limits,
    /// How much a blob of such a layer may ask for.
    pub limits: blob::Limits,
    /// What outlives this process.
    pub keeping: Keeping,
    images: Chains<Image>,
    /// Since the root is ours.
    lazy: OnceLock<Arc<Lazy>>,
}

impl FuseMounter {
    /// A mounter whose sessions have so many threads.
    pub fn new(threads: usize, passthrough: bool) -> FuseMounter {
        FuseMounter {
            threads: threads.max(1),
            passthrough,
            no_open: true,
            index: true,
            metacopy: true,
            partial_copy_up: true,
            registry: None,
            cache: keeper::Limits::default(),
            limits: blob::Limits::default(),
            keeping: Keeping::default(),
            images: Chains::new(),
            lazy: OnceLock::new(),
        }
    }

    /// The union that is to be mounted.
    fn union(&self, plan: &Plan<'_>) -> lamina_fusefs::Result<Union> {
        let image = self.image(plan.layout, plan.chain)?;
        let upper = plan
            .upper
            .as_ref()
            // The root was probed when the daemon started.
            .map(|(fs, work)| Upper::open_unprobed(fs, work))
            .transpose()?;
        let in_part = self.partial_copy_up.then_some(PARTIAL_FROM);
        Ok(Union::new(image, upper)?
            .metacopy(self.metacopy)
            .partial_copy_up_from(in_part))
    }

    /// Goes on with a mount that an earlier process left.
    fn take_over(
        &self,
        plan: &Plan<'_>,
        kept: Kept,
        options: &SessionOptions,
        keeper: Arc<dyn Keeper>,
    ) -> lamina_fusefs::Result<Session> {
        let union = tracing::debug_span!("union", plan.id).in_scope(|| self.union(plan))?;
        let (session, found) = Session::take_over(union, kept, plan.at, options, keeper)?;
        let Restored {
            nodes,
            handles,
            lost,
        } = found;
        tracing::info!(id = plan.id, nodes, handles, "took a mount over");
        if lost > 0 {
            tracing::warn!(id = plan.id, path = %plan.at.display(), lost,
                "files that were in use are no longer there: who uses them gets ESTALE");
        }
        Ok(session)
    }

    fn image(&self, layout: &Layout, chain: &[u64]) -> lamina_fusefs::Result<Arc<Image>> {
        let Some(&top) = chain.first() else {
            return Image::new(Vec::new());
        };
        if let Some(lazy) = self.lazy.get() {
            lazy.admit(chain)?;
        }
        let image = self.images.get(top, || {
            let places = chain.iter();
            let lazy = self.lazy.get().map(|lazy| (&**lazy, chain));
            let places = places.map(|id| indexes::place(layout, *id, lazy));
            let places = places.collect::<lamina_fusefs::Result<Vec<_>>>()?;
            if self.index {
                return Image::open_indexed(&places, &layout.image_index(top));
            }
            let layers = places.iter().map(LayerPlace::open);
            Image::new(layers.collect::<lamina_fusefs::Result<_>>()?)
        })?;
        // Without an index, what was looked at is in memory.
        if image.is_indexed() {
            self.images.keep(top, Arc::clone(&image));
        }
        Ok(image)
    }
}

impl Mounter for FuseMounter {
    fn begin(&self, layout: &Layout) -> lamina_fusefs::Result<()> {
        // Layers that were not unpacked have to be served, whether there may be more of them or not.
        let registry = self.registry.clone().unwrap_or_default();
        let lazy = Lazy::open(layout, &registry, self.cache.clone(), self.limits)?;
        // Only one begins.
        let _ = self.lazy.set(lazy);
        Ok(())
    }

    fn keeping(&self) -> Option<&Keeping> {
        Some(&self.keeping)
    }

    fn is_lazy(&self, labels: &Labels) -> bool {
        self.registry.is_some() && self.lazy.get().is_some() && Wanted::of(labels).is_some()
    }

    fn make_lazy(
        &self,
        layout: &Layout,
        chain: &[u64],
        labels: &Labels,
        dir: &Path,
    ) -> Result<Attr, LazyError> {
        let Some((lazy, wanted)) = self.lazy.get().zip(Wanted::of(labels)) else {
            return Err(LazyError::Unfit(
                "the labels do not say what it is".to_owned(),
            ));
        };
        let below = match chain {
            [] => None,
            chain => Some(self.image(layout, chain)?),
        };
        lazy.make(&wanted, below.as_deref(), (layout, chain), dir)
    }

    fn mount(&self, plan: &Plan<'_>) -> lamina_fusefs::Result<Box<dyn Running>> {
        let read_only = plan.upper.is_none();
        let options = SessionOptions {
            fsname: "lamina".to_owned(),
            threads: self.threads,
            read_only,
            allow_other: true,
            suid: true,
            dev: true,
            exec: true,
            passthrough: self.passthrough,
            no_open: read_only && self.no_open,
            idmap: plan.idmap,
            ..SessionOptions::default()
        };
        let keeper = self.keeping.keeper_of(plan.id);
        if let (Some(kept), Some(keeper)) = (self.keeping.take_mount(plan.id), &keeper) {
            match self.take_over(plan, kept, &options, Arc::clone(keeper)) {
                Ok(session) => return Ok(Box::new(session)),
                Err(error) => {
                    tracing::error!(id = plan.id, path = %plan.at.display(), %error,
                        "a mount is lost: whoever uses it gets ENOTCONN, and has to be started again");
                    keeper.release();
                    if let Err(error) = recover::detach(plan.at) {
                        tracing::warn!(%error);
                    }
                }
            }
        }
        descriptors::require_room()?;
        let union = self.union(plan)?;
        if let Some(lazy) = self.lazy.get() {
            lazy.starts(plan.layout, plan.chain);
        }
        let session = match keeper {
            Some(keeper) => Session::mount_kept(union, plan.at, &options, keeper)?,
            None => Session::mount(Arc::new(union), plan.at, &options)?,
        };
        Ok(Box::new(session))
    }

    fn committed(&self, layout: &Layout, id: u64) {
        if self.index {
            indexes::make(layout, id);
        }
    }

    fn lazy_layers(&self, layout: &Layout) -> Vec<LayerStatus> {
        let lazy = self.lazy.get();
        lazy.map_or_else(Vec::new, |lazy| lazy.status(layout))
    }

    fn keep_cache(&self, action: CacheAction) -> lamina_fusefs::Result<CacheStatus> {
        let lazy = self.lazy.get();
        lazy.map_or_else(
            || Ok(CacheStatus::default()),
            |lazy| lazy.keep_cache(action),
        )
    }

    fn made_lazy(&self, id: u64) {
        if let Some(lazy) = self.lazy.get() {
            lazy.made(id);
        }
    }

    fn removed(&self, layout: &Layout, id: u64) {
        self.images.forget(id);
        if let Some(lazy) = self.lazy.get() {
            lazy.removed(layout, id);
        }
    }

    fn end(&self) {
        if let Some(lazy) = self.lazy.get() {
            lazy.close();
        }
    }

    fn leave(&self) {
        if let Some(lazy) = self.lazy.get() {
            lazy.leave();
        }
    }
}

impl Running for Session {
    fn is_alive(&self) -> bool {
        Session::is_alive(self)
    }

    fn is_used(&self, tables: &MountTables) -> bool {
        tables.have_used(self.mountpoint(), self.device())
    }

    fn stuck(&self, limit: Duration) -> Vec<Stuck> {
        Session::stuck(self, limit)
    }

    fn leave(self: Box<Self>) {
        Session::leave(*self);
    }

    fn is_indexed(&self) -> bool {
        self.union().is_indexed()
    }

    fn unmount(self: Box<Self>, patience: Duration) -> lamina_fusefs::Result<bool> {
        Session::unmount(*self, patience)
    }

    fn seal(self: Box<Self>, patience: Duration) -> lamina_fusefs::Result<bool> {
        let union = Arc::clone(self.union());
        let gone = Session::unmount(*self, patience)?;
        union.seal()?;
        Ok(gone)
    }
}

/// The image mount of one chain.
#[derive(Default)]
struct ImageMount {
    running: Option<Box<dyn Running>>,
    /// The snapshots that use it.
    users: HashSet<u64>,
}

/// All running sessions.
pub struct Sessions {
    layout: Layout,
    mounter: Arc<dyn Mounter>,
    /// Sessions of active snapshots, by snapshot. The caller makes sure that no two threads start
    /// or stop the same one; the lock is never held while a mount is made or ended.
    own: Mutex<HashMap<u64, Box<dyn Running>>>,
    /// Image mounts, by chain. Lock order: the table, and without it a slot.
    images: Mutex<HashMap<u64, Arc<Mutex<ImageMount>>>>,
    /// Set by [`Sessions::stop_all`] before it takes either lock, and read under one: a verb that
    /// outlives the daemon's patience leaves no mount behind.
    closed: AtomicBool,
}

impl Sessions {
    /// No session yet.
    pub fn new(layout: Layout, mounter: Arc<dyn Mounter>) -> Sessions {
        Sessions {
            layout,
            mounter,
            own: Mutex::default(),
            images: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// What outlives this process.
    pub(crate) fn keeping(&self) -> Option<&Keeping> {
        self.mounter.keeping()
    }

    /// Whether an active snapshot's session answers.
    pub fn is_running(&self, id: u64) -> bool {
        locked(&self.own)
            .get(&id)
            .is_some_and(|running| running.is_alive())
    }

    /// Starts the session of an active snapshot, unless it runs. `idmap`: its users may be shifted.
    pub fn start(&self, id: u64, chain: &[u64], idmap: bool) -> Result<()> {
        if self.is_running(id) {
            return Ok(());
        }
        // One that died still sits on its mount point. It is ended without the lock: in one
        // statement, the guard would live until the mount is detached.
        let dead = locked(&self.own).remove(&id);
        drop(dead);
        let upper = (self.layout.fs(id), self.layout.work(id));
        let running = self.mount(id, chain, Some(upper), idmap)?;
        let mut own = locked(&self.own);
        if let Err(stopping) = self.check_open() {
            drop(own);
            drop(running);
            self.remove_mount_point(id);
            return Err(stopping);
        }
        own.insert(id, running);
        Ok(())
    }

    /// Ends the session of an active snapshot, if there is one. When this returns its mount point
    /// is free; `false` says that somebody still uses what was mounted there.
    pub fn stop(&self, id: u64) -> bool {
        let running = locked(&self.own).remove(&id);
        let Some(running) = running else { return true };
        let gone = running.unmount(PATIENCE).unwrap_or_else(|error| {
            tracing::warn!(id, %error, "a session ended badly");
            true
        });
        self.remove_mount_point(id);
        gone
    }

    /// Ends the session of an active snapshot that becomes a layer, if there is one, and makes its
    /// upper complete. `false` says that somebody still uses what was mounted there.
    pub fn seal(&self, id: u64) -> Result<bool> {
        let running = locked(&self.own).remove(&id);
        let Some(running) = running else {
            return Ok(true);
        };
        let sealed = running.seal(PATIENCE);
        self.remove_mount_point(id);
        sealed.map_err(|source| Error::Seal { id, source })
    }

    /// Makes a snapshot a user of the chain's image mount, and mounts that if it is not.
    pub fn start_image(&self, user: u64, chain: &[u64]) -> Result<()> {
        let Some(&top) = chain.first() else {
            return Ok(());
        };
        let mut table = locked(&self.images);
        self.check_open()?;
        let slot = Arc::clone(table.entry(top).or_default());
        drop(table);
        let mut mount = locked(&slot);
        if !mount
            .running
            .as_ref()
            .is_some_and(|running| running.is_alive())
        {
            mount.running = None;
            mount.running = Some(self.mount(top, chain, None, false)?);
        }
        mount.users.insert(user);
        Ok(())
    }

    /// Whether a snapshot uses the chain's image mount, and that answers.
    pub fn uses_image(&self, user: u64, top: u64) -> bool {
        let Some(slot) = locked(&self.images).get(&top).map(Arc::clone) else {
            return false;
        };
        let mount = locked(&slot);
        mount.users.contains(&user) && mount.running.as_ref().is_some_and(|run| run.is_alive())
    }

    /// Whether the image of an active snapshot, or of a view on the chain with `top`, is known from
    /// an index; `None` where nothing is mounted.
    pub fn is_indexed(&self, id: u64, top: Option<u64>) -> Option<bool> {
        if let Some(running) = locked(&self.own).get(&id) {
            return Some(running.is_indexed());
        }
        let slot = locked(&self.images).get(&top?).map(Arc::clone)?;
        let mount = locked(&slot);
        mount.running.as_ref().map(|running| running.is_indexed())
    }

    /// Notes that the files of a snapshot will never change again.
    pub fn committed(&self, id: u64) {
        self.mounter.committed(&self.layout, id);
    }

    /// Notes that a snapshot is gone from the store, so that nothing keeps its files on the disk.
    pub fn removed(&self, id: u64) {
        self.mounter.removed(&self.layout, id);
    }

    /// As [`Mounter::lazy_layers`].
    pub(crate) fn lazy_layers(&self) -> Vec<LayerStatus> {
        self.mounter.lazy_layers(&self.layout)
    }

    /// As [`Mounter::keep_cache`].
    pub(crate) fn keep_cache(&self, action: CacheAction) -> Result<CacheStatus> {
        let kept = self.mounter.keep_cache(action);
        kept.map_err(|source| Error::Cache {
            path: self.layout.cache(),
            source,
        })
    }

    /// As [`Mounter::made_lazy`].
    pub(crate) fn made_lazy(&self, id: u64) {
        self.mounter.made_lazy(id);
    }

    /// As [`Mounter::is_lazy`].
    pub(crate) fn is_lazy(&self, labels: &Labels) -> bool {
        self.mounter.is_lazy(labels)
    }

    /// As [`Mounter::make_lazy`].
    pub(crate) fn make_lazy(
        &self,
        chain: &[u64],
        labels: &Labels,
        dir: &Path,
    ) -> Result<Attr, LazyError> {
        self.mounter.make_lazy(&self.layout, chain, labels, dir)
    }

    /// Ends the use of a chain's image mount by a snapshot; the last one ends the mount.
    pub fn stop_image(&self, user: u64, top: u64) {
        let Some(slot) = locked(&self.images).get(&top).map(Arc::clone) else {
            return;
        };
        let mut mount = locked(&slot);
        if mount.users.remove(&user) && mount.users.is_empty() {
            // Read-only: nothing is lost if somebody still looks at it, so nobody waits.
            mount.running = None;
            self.remove_mount_point(top);
        }
        drop(mount);
        let mut table = locked(&self.images);
        // The table's reference and ours: nobody else is about to use the slot.
        if Arc::strong_count(&slot) == 2 && locked(&slot).users.is_empty() {
            table.remove(&top);
        }
    }

    /// Ends everything, without waiting for anybody. Nothing can be started afterwards.
    pub fn stop_all(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let own: Vec<_> = locked(&self.own).drain().collect();
        let images: Vec<_> = locked(&self.images).drain().collect();
        for (id, running) in own {
            drop(running);
            self.remove_mount_point(id);
        }
        for (top, slot) in images {
            locked(&slot).running = None;
            self.remove_mount_point(top);
        }
        self.mounter.end();
        if let Some(keeping) = self.mounter.keeping() {
            keeping.end();
        }
    }

    /// Requests that have been answered for at least so long and still are, by the mount point.
    pub(crate) fn stuck(&self, limit: Duration) -> Vec<(PathBuf, Stuck)> {
        let mut all = Vec::new();
        let mut add = |id: u64, running: &dyn Running| {
            let stuck = running.stuck(limit).into_iter();
            all.extend(stuck.map(|stuck| (self.layout.mount(id), stuck)));
        };
        for (id, running) in locked(&self.own).iter() {
            add(*id, &**running);
        }
        let images: Vec<_> = locked(&self.images)
            .iter()
            .map(|(top, slot)| (*top, Arc::clone(slot)))
            .collect();
        for (top, slot) in images {
            // One that is being mounted or ended has nobody who is stuck.
            if let Ok(mount) = slot.try_lock()
                && let Some(running) = &mount.running
            {
                add(top, &**running);
            }
        }
        all
    }

    /// Whether anybody uses any of it.
    pub fn are_used(&self) -> bool {
        let tables = MountTables::read();
        let is_used = |running: &dyn Running| running.is_alive() && running.is_used(&tables);
        let is_own_used = locked(&self.own)
            .values()
            .any(|running| is_used(&**running));
        is_own_used
            || (self.image_slots().iter())
                .any(|slot| locked(slot).running.as_deref().is_some_and(is_used))
    }

    /// Leaves everything to the next process, if that is possible; `false`: nothing was done. Nothing can
    /// be started afterwards.
    pub fn leave(&self) -> bool {
        if !self.mounter.keeping().is_some_and(Keeping::outlives_us) {
            return false;
        }
        self.closed.store(true, Ordering::SeqCst);
        for (_, running) in locked(&self.own).drain() {
            running.leave();
        }
        for slot in self.image_slots() {
            if let Some(running) = locked(&slot).running.take() {
                running.leave();
            }
        }
        self.mounter.leave();
        true
    }

    fn image_slots(&self) -> Vec<Arc<Mutex<ImageMount>>> {
        locked(&self.images).values().map(Arc::clone).collect()
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::Broken("Lamina is stopping".to_owned()));
        }
        Ok(())
    }

    fn mount(
        &self,
        id: u64,
        chain: &[u64],
        upper: Option<(PathBuf, PathBuf)>,
        idmap: bool,
    ) -> Result<Box<dyn Running>> {
        let at = self.layout.mount(id);
        match fs::create_dir(&at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("cannot create the mount point", &at)(error));
            }
            _ => {}
        }
        let mounted = self.mounter.mount(&Plan {
            chain,
            layout: &self.layout,
            upper,
            at: &at,
            idmap,
            id,
        });
        mounted.map_err(|source| {
            self.remove_mount_point(id);
            Error::Mount {
                id,
                path: at.clone(),
                source,
            }
        })
    }

    fn remove_mount_point(&self, id: u64) {
        let at = self.layout.mount(id);
        if let Err(error) = fs::remove_dir(&at)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %at.display(), %error, "cannot remove a mount point");
        }
    }
}

/// Locks; what a panic left behind is as good as what any other error leaves.
pub(crate) fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mounter that only notes what it would mount, for tests without a kernel.
#[doc(hidden)]
pub mod testing {
    use std::collections::BTreeSet;
    use std::io;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::{Layout, Mounter, Plan, Running, locked};
    use crate::kept::MountTables;

    /// Notes mounts. Clones share the notes.
    #[derive(Clone, Default)]
    pub struct FakeMounter {
        /// Mount points in use.
        pub mounted: Arc<Mutex<BTreeSet<PathBuf>>>,
        /// Snapshots that were removed.
        pub removed: Arc<Mutex<BTreeSet<u64>>>,
        /// Whether the next mounts fail.
        pub broken: Arc<AtomicBool>,
        /// Whether somebody stays on a mount that is detached.
        pub lingering: Arc<AtomicBool>,
        /// Whether the kernel can't shift users.
        pub old_kernel: Arc<AtomicBool>,
    }

    impl FakeMounter {
        /// The names of the mount points in use.
        pub fn names(&self) -> Vec<String> {
            let mounted = locked(&self.mounted);
            let names = mounted.iter().filter_map(|path| path.file_name());
            names
                .map(|name| name.to_string_lossy().into_owned())
                .collect()
        }
    }

    struct Fake {
        at: PathBuf,
        of: FakeMounter,
    }

    impl Mounter for FakeMounter {
        fn mount(&self, plan: &Plan<'_>) -> lamina_fusefs::Result<Box<dyn Running>> {
            if self.broken.load(Ordering::SeqCst) {
                return Err(io::Error::other("the mounter is broken").into());
            }
            if plan.idmap && self.old_kernel.load(Ordering::SeqCst) {
                return Err(io::Error::from(io::ErrorKind::Unsupported).into());
            }
            let dirs: Vec<_> = plan.chain.iter().map(|id| plan.layout.fs(*id)).collect();
            let upper = plan.upper.iter().flat_map(|(fs, work)| [fs, work]);
            for dir in dirs.iter().chain(upper) {
                if !dir.is_dir() {
                    return Err(lamina_fusefs::Error::NotFound);
                }
            }
            // Two mounts on one place are a mistake that a kernel would hide.
            if !locked(&self.mounted).insert(plan.at.to_owned()) {
                return Err(lamina_fusefs::Error::Exists);
            }
            Ok(Box::new(Fake {
                at: plan.at.to_owned(),
                of: self.clone(),
            }))
        }

        fn removed(&self, _layout: &Layout, id: u64) {
            locked(&self.removed).insert(id);
        }
    }

    impl Running for Fake {
        fn is_alive(&self) -> bool {
            true
        }

        fn is_indexed(&self) -> bool {
            false
        }

        fn unmount(self: Box<Self>, _patience: Duration) -> lamina_fusefs::Result<bool> {
            Ok(!self.of.lingering.load(Ordering::SeqCst))
        }

        fn seal(self: Box<Self>, patience: Duration) -> lamina_fusefs::Result<bool> {
            self.unmount(patience)
        }

        fn is_used(&self, _tables: &MountTables) -> bool {
            true
        }

        fn leave(self: Box<Self>) {}
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            locked(&self.of.mounted).remove(&self.at);
        }
    }
}
