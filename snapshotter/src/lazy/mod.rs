//! Layers that are served without being unpacked.
//!
//! containerd asks for a place to unpack a layer into, and says in labels which layer of which
//! image that will be ([`Wanted`]). If the layer can be served as it lies in the registry, what is
//! needed for that is written down (`make`) and containerd is told that the layer exists. From then
//! on the layer's directory holds, instead of its files:
//!
//! ```text
//! blob.json     what the blob is, and where it comes from ([`record`])
//! layer.index   all of the layer but the bytes of its files
//! blob.table    where in the blob those are
//! blob          the blob itself, if all of it had to be read to know this
//! ```
//!
//! Files that were fetched are in the cache of the root, shared by all layers. Whatever about a
//! layer keeps it from being served so is an error here, and a line in the log: containerd then
//! unpacks it as any other.

pub mod convert;
pub mod keeper;
mod labels;
mod make;
pub(crate) mod pieces;
pub mod profile;
pub mod published;
mod record;
mod recorder;
pub mod share;
mod source;
pub mod status;
mod whole;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lamina_fusefs::blob::{self, Cache, Cap, Digest, Files, Flights, Limits};
use lamina_fusefs::image::Image;
use lamina_fusefs::index::{BlobLayer, LayerData};
use lamina_fusefs::types::{Attr, Ino};
use oci_spec::distribution::Reference;
use parking_lot::Mutex;

pub(crate) use self::labels::{SNAPSHOT_REF, Wanted};
use self::profile::Profiles;
use self::record::{Format, Record, Verdict};
use self::recorder::{Recorder, Recorders, Watched};
use self::source::BlobSource;
use crate::chains::Chains;
use crate::config::limits;
use crate::registry::blob::RemoteBlob;
use crate::registry::image::{self, Images};
use crate::registry::{self, Registry, RegistryError};
use crate::store::layout::Layout;

/// Why a layer is not served without being unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LazyError {
    /// The registry does not give what is needed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The blob is not what it should be.
    #[error(transparent)]
    Blob(blob::Flaw),
    /// It asks for more than is allowed.
    #[error("{cap}: more than {limit} (see {key})", key = limits::key(*.cap))]
    Limit {
        /// Of what.
        cap: Cap,
        /// What is allowed.
        limit: u64,
    },
    /// What is needed can't be written down, or what is below can't be read.
    #[error(transparent)]
    Fs(#[from] lamina_fusefs::Error),
    /// The image, as the registry has it, has no such layer: its name may mean another image by now.
    #[error("{reference}: it has no layer {digest} with chain ID {chain_id}")]
    OtherImage {
        /// The image's name.
        reference: String,
        /// The layer's digest.
        digest: String,
        /// The chain ID that containerd expects.
        chain_id: String,
    },
    /// It is a layer of a sort that only unpacking does justice to.
    #[error("{0}")]
    Unfit(String),
}

impl From<blob::Flaw> for LazyError {
    fn from(flaw: blob::Flaw) -> LazyError {
        match flaw {
            blob::Flaw::Limit { cap, limit } => LazyError::Limit { cap, limit },
            other => LazyError::Blob(other),
        }
    }
}

/// The layer of a blob of which nobody will read a file: its index answers everything else.
pub(crate) fn unread(layout: &Layout, id: u64) -> lamina_fusefs::Result<Arc<BlobLayer>> {
    let name = layout.blob_record(id).display().to_string();
    let layer = BlobLayer::of_blob(Arc::new(Unread(name)), &layout.layer_index(id))?;
    Ok(Arc::new(layer))
}

/// Looks whether what was written down of a blob is whole.
pub(crate) fn check(layout: &Layout, id: u64) -> lamina_fusefs::Result<()> {
    let record = Record::read(&layout.blob_record(id))?;
    blob::digests_in(&layout.blob_table(id), &Limits::of_written())?;
    let path = layout.blob(id);
    if record.format == Format::Repacked && !path.exists() {
        return Err(lamina_fusefs::Error::Path {
            action: "a layer's own copy of its files is gone: remove the image and pull it again:",
            path,
            source: std::io::ErrorKind::NotFound.into(),
        });
    }
    Ok(())
}

/// Why a layer is not served, if it turned out to be another one than its image says.
pub(crate) fn why_refused(layout: &Layout, id: u64) -> Option<String> {
    match Record::read(&layout.blob_record(id)).ok()?.verdict? {
        Verdict::Refused(why) => Some(why),
        Verdict::Verified => None,
    }
}

struct Unread(String);

impl LayerData for Unread {
    fn name(&self) -> &str {
        &self.0
    }

    fn open(&self, _path: &Path, _ino: Ino) -> lamina_fusefs::Result<File> {
        Err(lamina_fusefs::Error::NotSupported)
    }

    fn file_system(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn host_file(&self, _path: &Path) -> lamina_fusefs::Result<Option<OwnedFd>> {
        Ok(None)
    }
}

/// Whether a repository is one that a pattern means: itself, or those that begin as what stands before
/// `*`.
fn matches(pattern: &str, repository: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => repository.starts_with(beginning),
        None => repository == pattern,
    }
}

/// The repository of the image that a layer was pulled as.
fn repository_of(record: &Record) -> Option<String> {
    let reference = image::parse(&record.reference).ok()?;
    Some(profile::repository_of(&reference))
}

/// A blob that is open.
pub(crate) struct Opened {
    pub(crate) layer: Arc<BlobLayer>,
    pub(crate) files: Arc<Files>,
    /// The blob as it is in the registry.
    remote: RemoteBlob,
}

/// A layer that is not mounted any more.
struct Refused {
    /// Its name for people.
    layer: String,
    why: String,
}

/// How long the threads that keep a cache may take to end.
const END: Duration = Duration::from_secs(1);

/// Everything that all layers of a root share which are not unpacked.
pub struct Lazy {
    registry: Arc<Registry>,
    images: Images,
    indexes: published::Indexes,
    cache: Arc<Cache>,
    flights: Arc<Flights>,
    limits: Limits,
    /// Blobs that are in use, by snapshot.
    opened: Chains<Opened>,
    /// `None`: nothing is recorded.
    recorders: Option<Recorders>,
    limits_of_cache: keeper::Limits,
    orders: Arc<keeper::Orders>,
    /// Layers that are not what their images say: why none of them is mounted.
    refused: Mutex<HashMap<u64, Refused>>,
    /// What came instead of a blob, by snapshot.
    other_blobs: Mutex<HashMap<u64, Digest>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Held while a large table of contents is read, which takes a multiple of its bytes.
    large_table: Mutex<()>,
}

impl Lazy {
    /// Opens the cache of a root, and begins to keep it.
    pub fn open(
        layout: &Layout,
        options: &registry::Options,
        limits_of_cache: keeper::Limits,
        limits: Limits,
    ) -> lamina_fusefs::Result<Arc<Lazy>> {
        let lazy = Arc::new(Lazy {
            registry: Arc::new(Registry::new(options)),
            images: Images::default(),
            indexes: published::Indexes::default(),
            cache: Arc::new(Cache::open(&layout.cache())?),
            flights: Arc::default(),
            limits,
            opened: Chains::new(),
            recorders: (limits_of_cache.profiles != Profiles::Off)
                .then(|| Recorders::new(layout.profiles())),
            limits_of_cache,
            orders: Arc::default(),
            refused: Mutex::default(),
            other_blobs: Mutex::default(),
            threads: Mutex::default(),
            large_table: Mutex::default(),
        });
        for id in keeper::layers(layout) {
            // One that can't be read can't be mounted either.
            if let Ok(record) = Record::read(&layout.blob_record(id)) {
                lazy.note_verdict(id, &record);
            }
        }
        let threads = keeper::start(&lazy, layout)?;
        lazy.threads.lock().extend(threads);
        Ok(lazy)
    }

    /// Writes into `dir` what is needed to serve a layer that is to stand on the image `below`, of
    /// which those are the snapshots. Answers the attributes of its root.
    pub(crate) fn make(
        &self,
        wanted: &Wanted,
        below: Option<&Image>,
        (layout, chain): (&Layout, &[u64]),
        dir: &Path,
    ) -> Result<Attr, LazyError> {
        let records = chain.iter().map(|id| layout.blob_record(*id));
        let records = records.filter(|path| path.exists());
        let bytes = records.map(|path| Record::read(&path).map(|record| record.file_bytes));
        let limits = Limits {
            below_bytes: bytes.sum::<lamina_fusefs::Result<u64>>()?,
            ..self.limits
        };
        make::make(self, &limits, wanted, below, dir)
    }

    /// The layer of a snapshot that was made by [`Self::make`].
    pub(crate) fn layer(&self, layout: &Layout, id: u64) -> lamina_fusefs::Result<Arc<Opened>> {
        let opened = self.opened.get(id, || {
            let record = Record::read(&layout.blob_record(id))?;
            let source = BlobSource::open(&self.registry, &record, &layout.blob(id))?;
            let remote = source.remote().clone();
            let files = Files::open(
                &layout.blob_table(id),
                Arc::new(source),
                Arc::clone(&self.cache),
                Arc::clone(&self.flights),
                &Limits::of_written(),
            )?;
            let data = Arc::clone(&files) as Arc<dyn LayerData>;
            let layer = Arc::new(BlobLayer::of_blob(data, &layout.layer_index(id))?);
            if let Some(Verdict::Refused(why)) = record.verdict {
                files.refuse(why);
            }
            Ok::<_, lamina_fusefs::Error>(Arc::new(Opened {
                layer,
                files,
                remote,
            }))
        })?;
        self.opened.keep(id, Arc::clone(&opened));
        Ok(opened)
    }

    /// The layer of a snapshot, for the images on `chain`, the topmost first: what is opened of it
    /// while their containers start is recorded.
    pub(crate) fn layer_of(
        &self,
        layout: &Layout,
        id: u64,
        chain: &[u64],
    ) -> lamina_fusefs::Result<Arc<BlobLayer>> {
        let opened = self.layer(layout, id)?;
        let Some(recorder) = self.recorder(layout, chain) else {
            return Ok(Arc::clone(&opened.layer));
        };
        let files = Arc::clone(&opened.files);
        let watched = Arc::new(Watched { files, recorder });
        Ok(Arc::new(opened.layer.with_data(watched)))
    }

    /// A container of the image on `chain`, the topmost first, is about to start.
    pub(crate) fn starts(&self, layout: &Layout, chain: &[u64]) {
        if let Some(recorder) = self.recorder(layout, chain) {
            recorder.begin();
        }
    }

    /// What records the image on a chain: the one that its topmost layer was pulled as.
    fn recorder(&self, layout: &Layout, chain: &[u64]) -> Option<Arc<Recorder>> {
        let recorders = self.recorders.as_ref()?;
        let mut records = chain.iter().map(|id| layout.blob_record(*id));
        let record = Record::read(&records.find(|record| record.exists())?).ok()?;
        Some(recorders.of(&repository_of(&record)?, &record.reference))
    }

    /// The files of an image to fetch before anybody asks for them; none, if nothing is known of it.
    fn wanted_first(&self, record: &Record) -> Vec<Digest> {
        let Some((recorders, name)) = self.recorders.as_ref().zip(repository_of(record)) else {
            return Vec::new();
        };
        let wanted = recorders.wanted(&name);
        if !wanted.is_empty() || self.limits_of_cache.profiles != Profiles::Shared {
            return wanted;
        }
        match self.learn(recorders, &record.reference) {
            Ok(()) => recorders.wanted(&name),
            Err(error) => {
                tracing::info!(%error, image = record.reference, "no profile comes from the registry");
                Vec::new()
            }
        }
    }

    /// Looks for a profile beside an image.
    fn learn(&self, recorders: &Recorders, reference: &str) -> Result<(), LazyError> {
        let image = self.images.get(&self.registry, reference)?;
        if let Some(profile) = share::pull(&self.registry, &image)? {
            recorders.learn(&profile)?;
        }
        Ok(())
    }

    /// Writes down what was recorded, and shares it where that is wished for. `is_last`: recordings that
    /// are under way are written down too, and nothing is shared.
    fn keep_profiles(&self, is_last: bool) {
        let Some(recorders) = &self.recorders else {
            return;
        };
        let kept = recorders.keep(is_last);
        if is_last || kept.is_empty() || self.limits_of_cache.profiles != Profiles::Shared {
            return;
        }
        let registry = Arc::clone(&self.registry);
        let share = move || {
            for (profile, name) in kept {
                match share::push_first(&registry, &name, &profile) {
                    Ok(true) => tracing::info!(image = name, "put a profile into the registry"),
                    Ok(false) => {}
                    Err(error) => tracing::info!(%error, image = name, "a profile is not shared"),
                }
            }
        };
        let started = thread::Builder::new()
            .name("lamina-share".to_owned())
            .spawn(share);
        if let Err(error) = started {
            tracing::debug!(%error, "profiles are not shared");
        }
    }

    /// Whether an index that lies beside an image is believed.
    fn trusts_indexes_of(&self, image: &Reference) -> bool {
        let repository = profile::repository_of(image);
        let mut trusted = self.limits_of_cache.trusted_indexes.iter();
        trusted.any(|pattern| matches(pattern, &repository))
    }

    /// Refuses layers that turned out to be others than their images say.
    pub(crate) fn admit(&self, ids: &[u64]) -> lamina_fusefs::Result<()> {
        let refused = self.refused.lock();
        match ids.iter().find_map(|id| refused.get(id)) {
            None => Ok(()),
            Some(Refused { layer, why }) => Err(lamina_fusefs::Error::Blob {
                layer: layer.clone(),
                flaw: Arc::new(blob::Flaw::Refused { why: why.clone() }),
            }),
        }
    }

    fn note_verdict(&self, id: u64, record: &Record) {
        if let Some(Verdict::Refused(why)) = &record.verdict {
            let refused = Refused {
                layer: format!("{} of {}", record.digest, record.reference),
                why: why.clone(),
            };
            self.refused.lock().insert(id, refused);
        }
    }

    /// Puts the cache on disk. From then on nothing is added to it.
    pub(crate) fn close(&self) {
        self.orders.stop();
        // One that waits for a registry is not waited for: what it brings is not kept any more.
        let deadline = Instant::now() + END;
        let threads = std::mem::take(&mut *self.threads.lock());
        while Instant::now() < deadline && threads.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(Duration::from_millis(5));
        }
        self.keep_profiles(true);
        if let Err(error) = self.cache.close() {
            tracing::warn!(%error, "the cache was not closed: its files will be read again");
        }
    }

    /// Another process goes on with it. Whoever waits for bytes gets them until this one is gone, so the
    /// cache stays open.
    pub(crate) fn leave(&self) {
        self.orders.stop();
        self.keep_profiles(true);
    }

    /// A layer that was made is in the store, and may be fetched.
    pub(crate) fn made(&self, id: u64) {
        self.orders.made(id);
    }

    /// A snapshot was removed, and is about to be deleted.
    pub(crate) fn removed(&self, layout: &Layout, id: u64) {
        self.opened.forget(id);
        self.refused.lock().remove(&id);
        self.other_blobs.lock().remove(&id);
        if layout.blob_record(id).exists() {
            self.orders.removed(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_a_repository_or_those_that_begin_so() {
        for (pattern, repository, expected) in [
            ("r.example/team/app", "r.example/team/app", true),
            ("r.example/team/app", "r.example/team/apple", false),
            ("r.example/team/*", "r.example/team/app", true),
            ("r.example/team/*", "r.example/other/app", false),
            ("r.example/*", "r.example.evil/app", false),
            ("*", "r.example/app", true),
        ] {
            assert_eq!(
                matches(pattern, repository),
                expected,
                "{pattern} {repository}"
            );
        }
    }
}
