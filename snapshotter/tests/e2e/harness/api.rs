//! The snapshots API spoken directly, where `ctr` is too slow or has no flag for it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lamina_proto::containerd::services::snapshots::v1 as snapshots;
pub use lamina_proto::containerd::services::snapshots::v1::Kind;
use lamina_proto::containerd::types::Mount;
use lamina_proto::tonic::metadata::MetadataValue;
use lamina_proto::tonic::transport::{Channel, Endpoint};
use lamina_proto::tonic::{Request, Status};
use snapshots::snapshots_client::SnapshotsClient;
use tokio::runtime::{Builder, Runtime};

/// No call takes this long; one that does hangs.
const CALL_LIMIT: Duration = Duration::from_mins(1);

/// One connection to the snapshots service of Lamina or of containerd.
pub struct Api {
    runtime: Runtime,
    client: SnapshotsClient<Channel>,
    snapshotter: String,
    headers: Vec<(&'static str, String)>,
}

impl Api {
    /// Connects to `socket`. `headers` carry what containerd wants: a namespace, perhaps a lease.
    pub fn connect(
        socket: &Path,
        snapshotter: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display()))?;
        let channel = runtime
            .block_on(endpoint.timeout(CALL_LIMIT).connect())
            .with_context(|| format!("cannot connect to {}", socket.display()))?;
        Ok(Self {
            runtime,
            client: SnapshotsClient::new(channel),
            snapshotter: snapshotter.to_owned(),
            headers: headers
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
        })
    }

    /// A writable snapshot `key` on top of `parent` (empty: none).
    pub fn prepare(&mut self, key: &str, parent: &str) -> Result<(), Status> {
        let request = self.request(snapshots::PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..Default::default()
        })?;
        self.runtime
            .block_on(self.client.prepare(request))
            .map(drop)
    }

    /// The same with labels.
    pub fn prepare_labelled(
        &mut self,
        key: &str,
        parent: &str,
        labels: &[(&str, &str)],
    ) -> Result<(), Status> {
        let labels = labels.iter();
        let request = self.request(snapshots::PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: labels
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        })?;
        self.runtime
            .block_on(self.client.prepare(request))
            .map(drop)
    }

    /// How the snapshot `key` reaches its user.
    pub fn mounts(&mut self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = self.request(snapshots::MountsRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        })?;
        let answer = self.runtime.block_on(self.client.mounts(request))?;
        Ok(answer.into_inner().mounts)
    }

    /// A read-only snapshot `key` of `parent`.
    pub fn view(&mut self, key: &str, parent: &str) -> Result<(), Status> {
        let request = self.request(snapshots::ViewSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..Default::default()
        })?;
        self.runtime.block_on(self.client.view(request)).map(drop)
    }

    /// Makes the committed snapshot `name` of the active one `key`.
    pub fn commit(&mut self, name: &str, key: &str) -> Result<(), Status> {
        let request = self.request(snapshots::CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            ..Default::default()
        })?;
        self.runtime.block_on(self.client.commit(request)).map(drop)
    }

    /// Removes the snapshot `key`.
    pub fn remove(&mut self, key: &str) -> Result<(), Status> {
        let request = self.request(snapshots::RemoveSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        })?;
        self.runtime.block_on(self.client.remove(request)).map(drop)
    }

    /// All snapshots: kind and parent by name.
    pub fn list(&mut self) -> Result<BTreeMap<String, (Kind, String)>, Status> {
        let request = self.request(snapshots::ListSnapshotsRequest {
            snapshotter: self.snapshotter.clone(),
            ..Default::default()
        })?;
        self.runtime.block_on(async {
            let mut stream = self.client.list(request).await?.into_inner();
            let mut all = BTreeMap::new();
            while let Some(page) = stream.message().await? {
                for info in page.info {
                    let kind = info.kind();
                    all.insert(info.name, (kind, info.parent));
                }
            }
            Ok(all)
        })
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        for (name, value) in &self.headers {
            let value = MetadataValue::try_from(value)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            request.metadata_mut().insert(*name, value);
        }
        Ok(request)
    }
}
