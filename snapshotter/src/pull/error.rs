//! Why an image was not pulled.

use lamina_fusefs::blob::Digest;

use crate::containerd::ContainerdError;
use crate::registry::RegistryError;

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The registry has no such image.
    #[error("there is no such image in its registry: check name and tag ({url})")]
    NoImage {
        /// What was asked for.
        url: String,
    },
    /// The registry does not give what is needed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// containerd does not do what is needed.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// It is no image that can be pulled.
    #[error("{0}")]
    Unfit(String),
    /// A layer that can't be lazy can't be had either.
    #[error("layer {layer} was not downloaded: {reason}")]
    Download {
        /// The digest of its blob.
        layer: Digest,
        /// Why.
        reason: String,
    },
    /// A layer is another one than the image's configuration says.
    #[error(
        "the image is broken: layer {layer} unpacks to an archive with the digest {found}, and the configuration says {expected}"
    )]
    OtherDiffId {
        /// The digest of its blob.
        layer: Digest,
        /// The diff ID in the configuration.
        expected: Digest,
        /// That of the layer.
        found: String,
    },
    /// A snapshot that exists is not there.
    #[error(
        "layer {layer}: the snapshotter says that {chain_id} exists, and containerd does not find it: pull again"
    )]
    Vanished {
        /// The digest of its blob.
        layer: Digest,
        /// The name of the snapshot.
        chain_id: String,
    },
    /// Somebody wanted it to stop.
    #[error("{0} has broken it off")]
    Interrupted(&'static str),
    /// A thread of ours ended without an answer.
    #[error("a download ended without an answer: {0}")]
    Lost(String),
}
