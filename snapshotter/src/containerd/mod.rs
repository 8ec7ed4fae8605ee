//! containerd, as a client sees it: content (`content`), snapshots, images and leases of one namespace.
//!
//! Here is what is asked of it and nothing of why: what a pull does with it stands in [`crate::pull`].

mod content;

use std::collections::HashMap;
use std::error::Error as _;
use std::path::{Path, PathBuf};

use lamina_fusefs::blob::Digest;
use lamina_proto::FieldMask;
use lamina_proto::containerd::services::diff::v1 as diff;
use lamina_proto::containerd::services::images::v1 as images;
use lamina_proto::containerd::services::leases::v1 as leases;
use lamina_proto::containerd::services::snapshots::v1 as snapshots;
use lamina_proto::containerd::types;
pub(crate) use lamina_proto::containerd::types::Mount;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use diff::diff_client::DiffClient;
use images::images_client::ImagesClient;
use leases::leases_client::LeasesClient;
use snapshots::snapshots_client::SnapshotsClient;

/// A snapshot that nobody has.
const NO_SNAPSHOT: &str = "lamina/no-such-snapshot";

/// Labels, by name.
pub(crate) type Labels = HashMap<String, String>;

/// Which containerd, and which part of it. The names are those of `ctr`'s flags.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// Its socket.
    pub address: PathBuf,
    /// The namespace.
    pub namespace: String,
    /// The name of a snapshotter that it knows.
    pub snapshotter: String,
}

/// Why containerd has not done what it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerdError {
    /// Nobody answers.
    #[error(
        "containerd does not answer on {} ({reason}): start it, or name its socket with --address",
        .address.display()
    )]
    Unreachable {
        /// The socket.
        address: PathBuf,
        /// Why.
        reason: String,
    },
    /// A namespace that can't be one.
    #[error("{0:?} can't be a namespace of containerd's")]
    Namespace(String),
    /// It knows no such snapshotter.
    #[error(
        "containerd knows no snapshotter {0:?}: add what `lamina config containerd` prints to its configuration, and restart it"
    )]
    NoSnapshotter(String),
    /// It reaches the snapshotter no more than we do.
    #[error(
        "containerd does not reach the snapshotter {name:?}: is `lamina serve` running? ({reason})"
    )]
    SnapshotterDown {
        /// The snapshotter.
        name: String,
        /// What containerd says.
        reason: String,
    },
    /// Another failure.
    #[error("containerd: {action}: {reason}")]
    Call {
        /// What was asked for.
        action: String,
        /// What it says.
        reason: String,
    },
}

type Result<T, E = ContainerdError> = std::result::Result<T, E>;

/// What came of [`Containerd::prepare`].
#[derive(Debug)]
pub(crate) enum Prepared {
    /// The snapshot that would be unpacked is there.
    Exists,
    /// A place to unpack a layer into.
    Mounts(Vec<Mount>),
}

/// A lease: what it holds is not collected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Lease {
    pub(crate) id: String,
    pub(crate) labels: Labels,
}

/// A connection to one containerd. Calls take as long as they take: who has enough drops them.
#[derive(Clone, Debug)]
pub(crate) struct Containerd {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    lease: Option<(String, MetadataValue<Ascii>)>,
    snapshotter: String,
}

impl Containerd {
    /// Connects, and looks whether containerd knows the snapshotter.
    pub(crate) async fn connect(options: &Options) -> Result<Containerd> {
        let namespace = &options.namespace;
        let namespace = namespace
            .parse()
            .map_err(|_| ContainerdError::Namespace(namespace.clone()))?;
        let containerd = Containerd {
            channel: connect(&options.address).await?,
            namespace,
            lease: None,
            snapshotter: options.snapshotter.clone(),
        };
        containerd.has_snapshot(NO_SNAPSHOT).await?;
        Ok(containerd)
    }

    /// Makes a lease. What is made from now on belongs to it.
    pub(crate) async fn lease(&mut self, labels: Labels) -> Result<()> {
        let request = leases::CreateRequest {
            id: String::new(),
            labels,
        };
        let mut client = LeasesClient::new(self.channel.clone());
        let made = client.create(self.request(request)).await;
        let made = made.map_err(|status| failed("making a lease", &status))?;
        let id = made.into_inner().lease.unwrap_or_default().id;
        let header = id.parse().map_err(|_| ContainerdError::Call {
            action: "making a lease".to_owned(),
            reason: format!("it answers with {id:?}"),
        })?;
        self.lease = Some((id, header));
        Ok(())
    }

    /// Ends the lease of this connection. `sync`: what nothing else holds is gone when this answers.
    pub(crate) async fn end_lease(&mut self, sync: bool) -> Result<()> {
        match self.lease.take() {
            Some((id, _)) => self.remove_lease(&id, sync).await,
            None => Ok(()),
        }
    }

    /// Removes a lease; one that is gone is no error.
    pub(crate) async fn remove_lease(&self, id: &str, sync: bool) -> Result<()> {
        let request = leases::DeleteRequest {
            id: id.to_owned(),
            sync,
        };
        let mut client = LeasesClient::new(self.channel.clone());
        match client.delete(self.request(request)).await {
            Err(status) if status.code() != Code::NotFound => {
                Err(failed("removing a lease", &status))
            }
            _ => Ok(()),
        }
    }

    /// The leases that have a label.
    pub(crate) async fn leases(&self, label: &str) -> Result<Vec<Lease>> {
        let request = leases::ListRequest {
            filters: vec![format!("labels.{label:?}")],
        };
        let mut client = LeasesClient::new(self.channel.clone());
        let found = client.list(self.request(request)).await;
        let found = found.map_err(|status| failed("listing leases", &status))?;
        let leases = found.into_inner().leases.into_iter();
        Ok(leases
            .map(|lease| Lease {
                id: lease.id,
                labels: lease.labels,
            })
            .collect())
    }

    /// Makes everything of a lease's that is named so stay, whether it is there yet or not.
    async fn hold(&self, kind: String, id: String) -> Result<()> {
        let Some((lease, _)) = &self.lease else {
            return Ok(());
        };
        let request = leases::AddResourceRequest {
            id: lease.clone(),
            resource: Some(leases::Resource { id, r#type: kind }),
        };
        let mut client = LeasesClient::new(self.channel.clone());
        let held = client.add_resource(self.request(request)).await;
        held.map_err(|status| failed("adding to a lease", &status))?;
        Ok(())
    }

    /// Whether a snapshot is there. It belongs to the lease from now on.
    pub(crate) async fn has_snapshot(&self, name: &str) -> Result<bool> {
        let kind = format!("snapshots/{}", self.snapshotter);
        self.hold(kind, name.to_owned()).await?;
        let request = snapshots::StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: name.to_owned(),
        };
        let mut client = SnapshotsClient::new(self.channel.clone());
        match client.stat(self.request(request)).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(self.failed_snapshot("looking for", name, &status)),
        }
    }

    /// Asks for a place to unpack a layer into.
    pub(crate) async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Prepared> {
        let request = snapshots::PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        };
        let mut client = SnapshotsClient::new(self.channel.clone());
        match client.prepare(self.request(request)).await {
            Ok(made) => Ok(Prepared::Mounts(made.into_inner().mounts)),
            Err(status) if status.code() == Code::AlreadyExists => Ok(Prepared::Exists),
            Err(status) => Err(self.failed_snapshot("preparing", key, &status)),
        }
    }

    /// Makes a snapshot of what was unpacked. `false`: somebody else was faster.
    pub(crate) async fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<bool> {
        let request = snapshots::CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels,
        };
        let mut client = SnapshotsClient::new(self.channel.clone());
        match client.commit(self.request(request)).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::AlreadyExists => Ok(false),
            Err(status) => Err(self.failed_snapshot("committing", key, &status)),
        }
    }

    /// Removes a snapshot.
    pub(crate) async fn remove(&self, key: &str) -> Result<()> {
        let request = snapshots::RemoveSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        };
        let mut client = SnapshotsClient::new(self.channel.clone());
        let removed = client.remove(self.request(request)).await;
        removed.map_err(|status| self.failed_snapshot("removing", key, &status))?;
        Ok(())
    }

    /// Unpacks a blob of its content store, and answers the digest of the archive in it.
    pub(crate) async fn apply(
        &self,
        (digest, size, media_type): (Digest, u64, &str),
        mounts: Vec<Mount>,
    ) -> Result<String> {
        let request = diff::ApplyRequest {
            diff: Some(descriptor(digest, size, media_type)),
            mounts,
            payloads: HashMap::new(),
        };
        let mut client = DiffClient::new(self.channel.clone());
        let applied = client.apply(self.request(request)).await;
        let applied = applied.map_err(|status| failed(&format!("unpacking {digest}"), &status))?;
        Ok(applied.into_inner().applied.unwrap_or_default().digest)
    }

    /// From now on an image's name means this blob.
    pub(crate) async fn set_image(
        &self,
        name: &str,
        (digest, size, media_type): (Digest, u64, &str),
    ) -> Result<()> {
        let image = images::Image {
            name: name.to_owned(),
            target: Some(descriptor(digest, size, media_type)),
            ..Default::default()
        };
        let mut client = ImagesClient::new(self.channel.clone());
        let request = images::CreateImageRequest {
            image: Some(image.clone()),
        };
        let made = match client.create(self.request(request)).await {
            Err(status) if status.code() == Code::AlreadyExists => {
                // Its labels are somebody else's, and stay.
                let mask = FieldMask {
                    paths: vec!["target".to_owned()],
                };
                let request = images::UpdateImageRequest {
                    image: Some(image),
                    update_mask: Some(mask),
                };
                client.update(self.request(request)).await.map(drop)
            }
            made => made.map(drop),
        };
        made.map_err(|status| failed(&format!("naming the image {name}"), &status))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let headers = request.metadata_mut();
        headers.insert("containerd-namespace", self.namespace.clone());
        if let Some((_, lease)) = &self.lease {
            headers.insert("containerd-lease", lease.clone());
        }
        request
    }

    /// What a refusal of containerd's snapshots service means. It has a proxy for each plugin.
    fn failed_snapshot(&self, action: &str, key: &str, status: &Status) -> ContainerdError {
        let name = self.snapshotter.clone();
        match status.code() {
            // containerd, services/snapshots/service.go.
            Code::InvalidArgument if status.message().contains("snapshotter not loaded") => {
                ContainerdError::NoSnapshotter(name)
            }
            // One of our own connection has a source.
            Code::Unavailable if status.source().is_none() => ContainerdError::SnapshotterDown {
                name,
                reason: status.message().to_owned(),
            },
            _ => failed(&format!("{action} the snapshot {key}"), status),
        }
    }
}

async fn connect(address: &Path) -> Result<Channel> {
    let failed = |reason: String| ContainerdError::Unreachable {
        address: address.to_owned(),
        reason,
    };
    let endpoint = Endpoint::try_from(format!("unix://{}", address.display()))
        .map_err(|error| failed(error.to_string()))?;
    let connected = endpoint.connect().await;
    connected.map_err(|error| failed(deepest(&error)))
}

/// The last cause of an error of the transport, whose own words tell nobody anything.
fn deepest(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => deepest(source),
        None => error.to_string(),
    }
}

fn descriptor(digest: Digest, size: u64, media_type: &str) -> types::Descriptor {
    types::Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_string(),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        annotations: HashMap::new(),
    }
}

fn failed(action: &str, status: &Status) -> ContainerdError {
    ContainerdError::Call {
        action: action.to_owned(),
        reason: match status.source() {
            Some(source) => deepest(source),
            None => status.message().to_owned(),
        },
    }
}
