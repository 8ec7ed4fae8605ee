//! Why a registry did not answer as it should.

use std::path::PathBuf;
use std::time::Duration;

/// Why something can't be had from a registry.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// A name that is no image reference.
    #[error("{reference:?} is no image reference: {reason}")]
    Reference {
        /// The name.
        reference: String,
        /// Why not.
        reason: String,
    },
    /// There is nobody to ask.
    #[error("registry {registry}: hosts.toml names no host for this")]
    NoEndpoint {
        /// The registry.
        registry: String,
    },
    /// No connection, or one that broke.
    #[error("{url}: {reason}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why.
        reason: String,
    },
    /// It wants to know who asks.
    #[error("{url}: it asks for a login")]
    Challenged {
        /// What was asked for.
        url: String,
        /// Its `WWW-Authenticate` headers.
        challenges: Vec<String>,
    },
    /// Whoever asks may not have it.
    #[error("{url}: access denied (HTTP {status}): check the login for this registry")]
    Denied {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// It has no such thing.
    #[error("{url}: it does not exist there")]
    NotFound {
        /// What was asked for.
        url: String,
    },
    /// It has too much to do, or has answered too often.
    #[error("{url}: it asks to come back later (HTTP {status})")]
    Busy {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// When, if it says so.
        retry_after: Option<Duration>,
    },
    /// It hands out whole blobs only.
    #[error("{url}: it hands out no parts of a blob (no Range requests)")]
    NoRange {
        /// What was asked for.
        url: String,
    },
    /// Another failure.
    #[error("{url}: HTTP {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// It answered with more than is taken.
    #[error("{url}: it answers with more than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// What is taken.
        limit: u64,
    },
    /// It answered with something else than was asked for.
    #[error("{url}: {what}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// An artifact in files can't be written or read.
    #[error("{}: {what}", .path.display())]
    Layout {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// What this host says about registries can't be used.
    #[error("{}: {reason}", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl RegistryError {
    /// Whether it may be another answer in a moment.
    pub fn may_pass(&self) -> bool {
        match self {
            RegistryError::Unreachable { .. } | RegistryError::Busy { .. } => true,
            RegistryError::Status { status, .. } => *status >= 500,
            _ => false,
        }
    }

    /// How long the registry asked to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            RegistryError::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
