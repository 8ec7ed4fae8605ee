//! An image pulled into containerd, without being unpacked where that is possible.
//!
//! What containerd's own client does, in its order: a lease, so that nothing is collected meanwhile;
//! index, manifest and configuration into the content store, with labels that say what keeps what;
//! the layers, the lowest first; the image's name; the end of the lease. Of each layer the snapshotter
//! is told which one of which image it is (containerd, docs/remote-snapshotter.md). If it then says that
//! the snapshot exists, nothing is downloaded; if it does not, the layer is downloaded and unpacked
//! as any other. Whatever containerd has already is not asked for again.
//!
//! A pull that fails or is broken off leaves nothing that containerd would keep: all of it belongs to
//! the lease, which goes with it, or at the next pull if the process was killed (`owner`).

mod error;
mod labels;
mod owner;

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use lamina_fusefs::blob::Digest;
use oci_spec::distribution::Reference;
use oci_spec::image::{ImageManifest, MediaType};
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

pub use self::error::PullError;
use crate::containerd::{Containerd, Labels, Mount, Options, Prepared};
use crate::lazy::Wanted;
use crate::lazy::pieces::Pieces;
use crate::registry::blob::RemoteBlob;
use crate::registry::image::{
    self, DEEPEST, Layer, Manifest, TOO_DEEP, digest_of, layers_of, ours,
};
use crate::registry::{Registry, RegistryError};

/// Bytes that are written into containerd's content store at a time; a message may have 16 MiB.
const PIECE: usize = 1 << 20;
/// Pieces that wait for being written.
const AHEAD: usize = 4;
/// How often a place to unpack into is asked for: a snapshot that exists may be gone a moment later
/// (containerd's client tries three times too).
const TRIES: usize = 3;
/// How long containerd may take to collect what a pull that failed leaves.
const END: Duration = Duration::from_secs(30);

/// What a pull tells while it is under way.
#[derive(Clone, Copy, Debug)]
pub enum Event<'e> {
    /// The image's layers, the lowest first.
    Layers(&'e [Layer]),
    /// Something happens to a layer.
    Layer {
        /// Which of the layers.
        number: usize,
        /// What.
        step: Step,
    },
}

/// What happens to a layer, in the order in which it does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// It was here before.
    Present,
    /// The snapshotter looks whether it can be served without being unpacked.
    Asked,
    /// It can.
    Lazy,
    /// So many bytes of it are in the content store.
    Downloaded(u64),
    /// containerd unpacks it.
    Unpacking,
    /// It was unpacked.
    Unpacked,
}

/// What came of a pull.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pulled {
    /// The image's name, as containerd has it.
    pub name: String,
    /// Layers that are served without being unpacked.
    pub lazy: usize,
    /// Layers that were unpacked.
    pub unpacked: usize,
    /// Layers that were here before.
    pub present: usize,
}

/// Pulls an image. `stop` breaks it off with the name of a signal, and `report` is told what happens.
pub async fn pull(
    registry: &Arc<Registry>,
    options: &Options,
    name: &str,
    stop: impl Future<Output = &'static str>,
    report: impl Fn(Event<'_>),
) -> Result<Pulled, PullError> {
    let reference = image::parse(name)?;
    let mut containerd = Containerd::connect(options).await?;
    owner::remove_leftovers(&containerd).await?;
    containerd.lease(owner::labels()).await?;
    let pull = Pull {
        registry,
        containerd: &containerd,
        reference,
        snapshotter: &options.snapshotter,
        report: &report,
    };
    let pulled = tokio::select! {
        pulled = pull.run() => pulled,
        signal = stop => Err(PullError::Interrupted(signal)),
    };
    // A lease that stays goes with the next pull. What the pull came to is what counts.
    let _ = timeout(END, containerd.end_lease(pulled.is_err())).await;
    pulled
}

/// A pull under way.
struct Pull<'p, R> {
    registry: &'p Arc<Registry>,
    containerd: &'p Containerd,
    reference: Reference,
    snapshotter: &'p str,
    report: &'p R,
}

impl<R: Fn(Event<'_>)> Pull<'_, R> {
    async fn run(&self) -> Result<Pulled, PullError> {
        let target = image::target_of(&self.reference).to_owned();
        let found = match Digest::parse(&target) {
            Some(digest) => self.manifest(digest).await.map(|bytes| (digest, bytes)),
            None => self.tagged(target).await,
        };
        let (digest, bytes) = found.map_err(|error| match error {
            PullError::Registry(RegistryError::NotFound { url }) => PullError::NoImage { url },
            other => other,
        })?;
        let top = (digest, bytes.len() as u64);
        let mut manifest = Manifest::read(&bytes).map_err(PullError::Unfit)?;
        let media_type = media_type(&manifest).to_string();
        let mut digest = digest;
        for _ in 0..DEEPEST {
            match manifest {
                Manifest::Image(manifest) => {
                    let pulled = self.image(digest, &manifest).await?;
                    let image = (top.0, top.1, media_type.as_str());
                    self.containerd.set_image(&pulled.name, image).await?;
                    return Ok(pulled);
                }
                Manifest::Index(index) => {
                    self.label(digest, labels::children(index.manifests()))
                        .await?;
                    let ours = ours(&index).map_err(PullError::Unfit)?;
                    digest = digest_of(ours).map_err(PullError::Unfit)?;
                    let bytes = self.manifest(digest).await?;
                    manifest = Manifest::read(&bytes).map_err(PullError::Unfit)?;
                }
            }
        }
        Err(PullError::Unfit(TOO_DEEP.to_owned()))
    }

    /// Brings the configuration and the layers of an image.
    async fn image(&self, digest: Digest, manifest: &ImageManifest) -> Result<Pulled, PullError> {
        let parts = std::iter::once(manifest.config()).chain(manifest.layers());
        self.label(digest, labels::children(parts)).await?;
        let config = digest_of(manifest.config()).map_err(PullError::Unfit)?;
        let path = format!("blobs/{config}");
        let bytes = self
            .document(config, move |registry, reference| {
                registry.get(reference, path, "*/*", Some(config))
            })
            .await?;
        let layers = layers_of(manifest, &bytes).map_err(PullError::Unfit)?;
        let mut pulled = Pulled {
            name: self.reference.whole(),
            ..Pulled::default()
        };
        (self.report)(Event::Layers(&layers));
        let mut parent = "";
        for (number, layer) in layers.iter().enumerate() {
            let step = self.layer(number, layer, parent).await?;
            self.tell(number, step);
            match step {
                Step::Lazy => pulled.lazy += 1,
                Step::Present => pulled.present += 1,
                _ => pulled.unpacked += 1,
            }
            parent = &layer.chain_id;
        }
        let unpacked = match layers.last() {
            Some(top) => labels::unpacked(self.snapshotter, &top.chain_id),
            None => Labels::new(),
        };
        self.label(config, unpacked).await?;
        Ok(pulled)
    }

    /// Brings one layer, by any means, and says by which.
    async fn layer(&self, number: usize, layer: &Layer, parent: &str) -> Result<Step, PullError> {
        let chain_id = &layer.chain_id;
        if self.containerd.has_snapshot(chain_id).await? {
            return Ok(Step::Present);
        }
        self.tell(number, Step::Asked);
        let wanted = Wanted {
            reference: self.reference.whole(),
            digest: layer.digest.to_string(),
            chain_id: chain_id.clone(),
        };
        let labels = wanted.labels();
        for _ in 0..TRIES {
            // Lamina, as others, knows by this name what it is for (containerd,
            // `snapshots.UnpackKeyFormat`).
            let key = format!("extract-{:016x} {chain_id}", fastrand::u64(..));
            match self
                .containerd
                .prepare(&key, parent, labels.clone())
                .await?
            {
                Prepared::Mounts(mounts) => {
                    self.download(number, layer).await?;
                    self.tell(number, Step::Unpacking);
                    self.unpack(layer, &key, mounts, labels).await?;
                    return Ok(Step::Unpacked);
                }
                Prepared::Exists if self.containerd.has_snapshot(chain_id).await? => {
                    return Ok(Step::Lazy);
                }
                Prepared::Exists => {}
            }
        }
        Err(PullError::Vanished {
            layer: layer.digest,
            chain_id: chain_id.clone(),
        })
    }

    /// Unpacks a layer's blob, and makes its snapshot of the one that has these mounts.
    async fn unpack(
        &self,
        layer: &Layer,
        key: &str,
        mounts: Vec<Mount>,
        labels: Labels,
    ) -> Result<(), PullError> {
        let blob = (layer.digest, layer.size, layer.media_type.as_str());
        let found = self.containerd.apply(blob, mounts).await?;
        if found != layer.diff_id.to_string() {
            return Err(PullError::OtherDiffId {
                layer: layer.digest,
                expected: layer.diff_id,
                found,
            });
        }
        if !self.containerd.commit(&layer.chain_id, key, labels).await? {
            // Somebody else has unpacked it meanwhile.
            self.containerd.remove(key).await?;
        }
        let uncompressed = Labels::from([(labels::UNCOMPRESSED.to_owned(), found)]);
        Ok(self.containerd.label(layer.digest, uncompressed).await?)
    }

    /// Puts a layer's blob into the content store, if it is not there.
    async fn download(&self, number: usize, layer: &Layer) -> Result<(), PullError> {
        let (digest, size) = (layer.digest, layer.size);
        if self.containerd.content(digest).await?.is_none() {
            let (registry, reference) = (Arc::clone(self.registry), self.reference.clone());
            let blob = RemoteBlob::new(registry, reference, digest, size);
            let mut fetching = None;
            let begin = || {
                self.tell(number, Step::Downloaded(0));
                let (sender, receiver) = channel(AHEAD);
                fetching = Some(spawn_blocking(move || fetch(&blob, &sender)));
                receiver
            };
            let written = |bytes| self.tell(number, Step::Downloaded(bytes));
            let written = self.containerd.write(digest, size, begin, written).await;
            if let Some(fetching) = fetching {
                let fetched = fetching.await.map_err(|error| lost(&error))?;
                fetched.map_err(|reason| PullError::Download {
                    layer: digest,
                    reason,
                })?;
            }
            written?;
        }
        self.label(digest, Labels::new()).await
    }

    /// What a tag leads to, as the registry has it now.
    async fn tagged(&self, tag: String) -> Result<(Digest, Vec<u8>), PullError> {
        let asked =
            self.ask(move |registry, reference| registry.manifest_bytes_of(reference, &tag));
        let bytes = asked.await?;
        let digest = Digest::of(&bytes);
        if self.containerd.content(digest).await?.is_none() {
            self.put(digest, &bytes).await?;
        }
        Ok((digest, bytes))
    }

    /// The manifest or index with this digest.
    async fn manifest(&self, digest: Digest) -> Result<Vec<u8>, PullError> {
        self.document(digest, move |registry, reference| {
            registry.manifest_bytes_of(reference, &digest.to_string())
        })
        .await
    }

    /// Something small, from the content store, or else from the registry and then into the store.
    async fn document(
        &self,
        digest: Digest,
        fetch: impl FnOnce(&Registry, &Reference) -> Result<Vec<u8>, RegistryError> + Send + 'static,
    ) -> Result<Vec<u8>, PullError> {
        if let Some(known) = self.containerd.content(digest).await? {
            let most = self.registry.manifest_bytes();
            if known.size > most {
                return Err(PullError::Unfit(format!(
                    "{digest} has more than {most} bytes (see lazy.limits.manifest_mib)"
                )));
            }
            return Ok(self.containerd.read(digest).await?);
        }
        let bytes = self.ask(fetch).await?;
        self.put(digest, &bytes).await?;
        Ok(bytes)
    }

    /// Asks the registry, on a thread that may wait.
    async fn ask(
        &self,
        fetch: impl FnOnce(&Registry, &Reference) -> Result<Vec<u8>, RegistryError> + Send + 'static,
    ) -> Result<Vec<u8>, PullError> {
        let (registry, reference) = (Arc::clone(self.registry), self.reference.clone());
        let asked = spawn_blocking(move || fetch(&registry, &reference)).await;
        Ok(asked.map_err(|error| lost(&error))??)
    }

    /// Puts something small into the content store.
    async fn put(&self, digest: Digest, bytes: &[u8]) -> Result<(), PullError> {
        let pieces: Vec<Vec<u8>> = bytes.chunks(PIECE).map(<[u8]>::to_vec).collect();
        let begin = || {
            let (sender, receiver) = channel(pieces.len().max(1));
            for piece in pieces {
                // There is room for all of them.
                let _ = sender.try_send(piece);
            }
            receiver
        };
        let size = bytes.len() as u64;
        Ok(self.containerd.write(digest, size, begin, |_| {}).await?)
    }

    /// Writes down what a blob needs, and where it came from.
    async fn label(&self, digest: Digest, mut labels: Labels) -> Result<(), PullError> {
        let known = self.containerd.content(digest).await?;
        let known = known.map(|content| content.labels).unwrap_or_default();
        labels.extend(labels::source(&self.reference, &known));
        Ok(self.containerd.label(digest, labels).await?)
    }

    fn tell(&self, number: usize, step: Step) {
        (self.report)(Event::Layer { number, step });
    }
}

/// Reads a blob to its end, in parts where the registry hands out some.
fn fetch(blob: &RemoteBlob, to: &Sender<Vec<u8>>) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut reader: Box<dyn Read> = match blob.part(0..blob.size().min(1)) {
        Ok(_) => Box::new(Pieces::of(blob).map_err(|error| text(&error))?),
        Err(RegistryError::NoRange { .. }) => Box::new(blob.whole().map_err(|error| text(&error))?),
        Err(error) => return Err(text(&error)),
    };
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let mut part = reader.by_ref().take(PIECE as u64);
        let count = part.read_to_end(&mut piece).map_err(|error| text(&error))?;
        // Nobody reads on: whoever did knows why.
        if count == 0 || to.blocking_send(piece).is_err() {
            return Ok(());
        }
    }
}

/// What a manifest says that it is, or else what it looks like.
fn media_type(manifest: &Manifest) -> MediaType {
    match manifest {
        Manifest::Index(index) => {
            let known = index.media_type().clone();
            known.unwrap_or(MediaType::ImageIndex)
        }
        Manifest::Image(manifest) => {
            let known = manifest.media_type().clone();
            known.unwrap_or(MediaType::ImageManifest)
        }
    }
}

fn lost(error: &tokio::task::JoinError) -> PullError {
    PullError::Lost(error.to_string())
}
