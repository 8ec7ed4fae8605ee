//! gRPC in, a plain call, gRPC out. No rule is decided here, and nothing else that
//! containerd calls names tonic.
//!
//! A verb waits for disks and for other verbs, so each runs on a thread for blocking work.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use lamina_proto::containerd::services::snapshots::v1 as api;
use lamina_proto::containerd::types;
use lamina_proto::lamina::v1 as status_api;
use lamina_proto::lamina::v1::status_client::StatusClient;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::error::{Error, Result};
use crate::lazy::status::{CacheAction, CacheStatus, LayerStatus};
use crate::mounts::Mount;
use crate::snapshots::Snapshots;
use crate::status::SnapshotStatus;
use crate::store::records::{Info, Kind, Labels, Time};

/// How many snapshots one message of the status stream carries.
const STATUS_PAGE: usize = 100;

/// How many pages of a stream may wait for their reader.
const PAGES_AHEAD: usize = 4;

type Answer<T> = Result<Response<T>, Status>;
type Pages<T> = ReceiverStream<Result<T, Status>>;

/// The services of one snapshotter.
#[derive(Clone)]
struct Service {
    snapshots: Arc<Snapshots>,
}

/// Serves the snapshotter on a socket until `shutdown` is done and the calls under way have
/// ended.
pub(crate) async fn serve(
    snapshots: Arc<Snapshots>,
    listener: UnixListener,
    address: &Path,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    let service = Service { snapshots };
    let incoming = UnixListenerStream::new(listener);
    Server::builder()
        .add_service(api::snapshots_server::SnapshotsServer::new(service.clone()))
        .add_service(status_api::status_server::StatusServer::new(service))
        .serve_with_incoming_shutdown(incoming, shutdown)
        .await
        .map_err(|error| Error::Grpc {
            path: address.to_owned(),
            reason: error.to_string(),
        })
}

/// Connects to the daemon on a socket.
async fn connect(address: &Path) -> Result<StatusClient<Channel>> {
    let failed = failed_on(address);
    let endpoint = Endpoint::try_from(format!("unix://{}", address.display()))
        .map_err(|error| failed(error.to_string()))?;
    let channel = endpoint.connect().await;
    Ok(StatusClient::new(
        channel.map_err(|error| failed(error.to_string()))?,
    ))
}

fn failed_on(address: &Path) -> impl Fn(String) -> Error {
    |reason| Error::Grpc {
        path: address.to_owned(),
        reason,
    }
}

/// Asks the daemon on a socket for the layers that were not unpacked.
pub(crate) async fn fetch_layers(address: &Path) -> Result<Vec<LayerStatus>> {
    let mut client = connect(address).await?;
    let stream = client.layers(status_api::LayersRequest {}).await;
    let layers = |page: status_api::LayersResponse| page.layers.into_iter().map(layer_in);
    all_pages(address, stream, layers).await
}

/// Everything that a stream of pages brings.
async fn all_pages<P, T, I: Iterator<Item = T>>(
    address: &Path,
    stream: Result<Response<Streaming<P>>, Status>,
    items: impl Fn(P) -> I,
) -> Result<Vec<T>> {
    let failed = |status: Status| failed_on(address)(status.to_string());
    let mut stream = stream.map_err(failed)?.into_inner();
    let mut all = Vec::new();
    while let Some(page) = stream.message().await.map_err(failed)? {
        all.extend(items(page));
    }
    Ok(all)
}

/// Has the daemon on a socket do something about its cache.
pub(crate) async fn keep_cache(address: &Path, action: CacheAction) -> Result<CacheStatus> {
    let mut client = connect(address).await?;
    let request = status_api::KeepCacheRequest {
        prune_to_bytes: match action {
            CacheAction::Prune(bytes) => Some(bytes),
            CacheAction::Look | CacheAction::Verify => None,
        },
        verify: action == CacheAction::Verify,
    };
    let kept = client.keep_cache(request).await;
    let kept = kept
        .map_err(|status| failed_on(address)(status.to_string()))?
        .into_inner();
    Ok(CacheStatus {
        files: kept.files,
        bytes: kept.bytes,
        removed_files: kept.removed_files,
        removed_bytes: kept.removed_bytes,
        unfinished_bytes: kept.unfinished_bytes,
    })
}

/// Asks the daemon on a socket for its status.
pub(crate) async fn fetch_status(address: &Path) -> Result<Vec<SnapshotStatus>> {
    let mut client = connect(address).await?;
    let stream = client.snapshots(status_api::SnapshotsRequest {}).await;
    let snapshots = |page: status_api::SnapshotsResponse| page.snapshots.into_iter().map(status_in);
    all_pages(address, stream, snapshots).await
}

impl Service {
    /// Runs a verb where it may block.
    async fn run<T: Send + 'static>(
        &self,
        verb: &'static str,
        call: impl FnOnce(&Snapshots) -> Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let snapshots = Arc::clone(&self.snapshots);
        let span = tracing::debug_span!("verb", verb);
        let done = tokio::task::spawn_blocking(move || {
            let _entered = span.enter();
            call(&snapshots).map_err(|error| status_of(verb, &error))
        });
        done.await
            .map_err(|error| status_of(verb, &Error::Broken(error.to_string())))?
    }

    /// Runs a verb that answers in pages.
    fn stream<T: Send + 'static>(
        &self,
        verb: &'static str,
        call: impl FnOnce(&Snapshots, &mut dyn FnMut(T) -> Result<()>) -> Result<()> + Send + 'static,
    ) -> Pages<T> {
        let (sender, receiver) = mpsc::channel(PAGES_AHEAD);
        let snapshots = Arc::clone(&self.snapshots);
        tokio::task::spawn_blocking(move || {
            let gone = |_| Error::Broken("the client went away".to_owned());
            let mut page = |page| sender.blocking_send(Ok(page)).map_err(gone);
            if let Err(error) = call(&snapshots, &mut page) {
                // Nobody reads it if the client went away.
                drop(sender.blocking_send(Err(status_of(verb, &error))));
            }
        });
        ReceiverStream::new(receiver)
    }
}

#[tonic::async_trait]
impl api::snapshots_server::Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Answer<api::PrepareSnapshotResponse> {
        let api::PrepareSnapshotRequest {
            key,
            parent,
            labels,
            ..
        } = request.into_inner();
        let call = move |all: &Snapshots| all.prepare(&key, &parent, &labels_in(labels));
        let mounts = mounts_out(self.run("prepare", call).await?);
        Ok(Response::new(api::PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Answer<api::ViewSnapshotResponse> {
        let api::ViewSnapshotRequest {
            key,
            parent,
            labels,
            ..
        } = request.into_inner();
        let call = move |all: &Snapshots| all.view(&key, &parent, &labels_in(labels));
        let mounts = mounts_out(self.run("view", call).await?);
        Ok(Response::new(api::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Answer<api::MountsResponse> {
        let key = request.into_inner().key;
        let mounts = mounts_out(self.run("mounts", move |all| all.mounts(&key)).await?);
        Ok(Response::new(api::MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Answer<()> {
        let api::CommitSnapshotRequest {
            name, key, labels, ..
        } = request.into_inner();
        let call = move |all: &Snapshots| all.commit(&name, &key, &labels_in(labels));
        self.run("commit", call).await.map(Response::new)
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        self.run("remove", move |all| all.remove(&key))
            .await
            .map(Response::new)
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Answer<api::StatSnapshotResponse> {
        let key = request.into_inner().key;
        let info = Some(info_out(self.run("stat", move |all| all.stat(&key)).await?));
        Ok(Response::new(api::StatSnapshotResponse { info }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Answer<api::UpdateSnapshotResponse> {
        let api::UpdateSnapshotRequest {
            info, update_mask, ..
        } = request.into_inner();
        let paths = update_mask.unwrap_or_default().paths;
        let call = move |all: &Snapshots| {
            let api::Info { name, labels, .. } = info.ok_or(Error::Incomplete("info"))?;
            all.update(&name, &labels_in(labels), &paths)
        };
        let info = Some(info_out(self.run("update", call).await?));
        Ok(Response::new(api::UpdateSnapshotResponse { info }))
    }

    type ListStream = Pages<api::ListSnapshotsResponse>;

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = request.into_inner().filters;
        Ok(Response::new(self.stream("list", move |all, page| {
            all.list(&filters, &mut |infos| {
                let info = infos.into_iter().map(info_out).collect();
                page(api::ListSnapshotsResponse { info })
            })
        })))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Answer<api::UsageResponse> {
        let key = request.into_inner().key;
        let usage = self.run("usage", move |all| all.usage(&key)).await?;
        Ok(Response::new(api::UsageResponse {
            size: i64::try_from(usage.size).unwrap_or(i64::MAX),
            inodes: i64::try_from(usage.inodes).unwrap_or(i64::MAX),
        }))
    }

    async fn cleanup(&self, _request: Request<api::CleanupRequest>) -> Answer<()> {
        self.run("cleanup", Snapshots::cleanup)
            .await
            .map(Response::new)
    }
}

#[tonic::async_trait]
impl status_api::status_server::Status for Service {
    type SnapshotsStream = Pages<status_api::SnapshotsResponse>;

    async fn snapshots(
        &self,
        _request: Request<status_api::SnapshotsRequest>,
    ) -> Answer<Self::SnapshotsStream> {
        Ok(Response::new(self.stream("status", |all, page| {
            for part in all.status()?.chunks(STATUS_PAGE) {
                let snapshots = part.iter().map(status_out).collect();
                page(status_api::SnapshotsResponse { snapshots })?;
            }
            Ok(())
        })))
    }

    type LayersStream = Pages<status_api::LayersResponse>;

    async fn layers(
        &self,
        _request: Request<status_api::LayersRequest>,
    ) -> Answer<Self::LayersStream> {
        Ok(Response::new(self.stream("layers", |all, page| {
            for part in all.lazy_layers().chunks(STATUS_PAGE) {
                let layers = part.iter().map(layer_out).collect();
                page(status_api::LayersResponse { layers })?;
            }
            Ok(())
        })))
    }

    async fn keep_cache(
        &self,
        request: Request<status_api::KeepCacheRequest>,
    ) -> Answer<status_api::KeepCacheResponse> {
        let request = request.into_inner();
        let action = match request.prune_to_bytes {
            Some(bytes) => CacheAction::Prune(bytes),
            None if request.verify => CacheAction::Verify,
            None => CacheAction::Look,
        };
        let kept = self
            .run("keep-cache", move |all| all.keep_cache(action))
            .await?;
        Ok(Response::new(status_api::KeepCacheResponse {
            files: kept.files,
            bytes: kept.bytes,
            removed_files: kept.removed_files,
            removed_bytes: kept.removed_bytes,
            unfinished_bytes: kept.unfinished_bytes,
        }))
    }
}

fn layer_out(layer: &LayerStatus) -> status_api::Layer {
    status_api::Layer {
        id: layer.id,
        reference: layer.reference.clone(),
        digest: layer.digest.clone(),
        format: layer.format.clone(),
        verdict: layer.verdict.clone(),
        blob_bytes: layer.blob_bytes,
        file_bytes: layer.file_bytes,
        cached_bytes: layer.cached_bytes,
        fetched_bytes: layer.fetched_bytes,
        opened: layer.opened,
        waited: layer.waited,
        slowest_us: layer.slowest_us,
    }
}

fn layer_in(layer: status_api::Layer) -> LayerStatus {
    LayerStatus {
        id: layer.id,
        reference: layer.reference,
        digest: layer.digest,
        format: layer.format,
        verdict: layer.verdict,
        blob_bytes: layer.blob_bytes,
        file_bytes: layer.file_bytes,
        cached_bytes: layer.cached_bytes,
        fetched_bytes: layer.fetched_bytes,
        opened: layer.opened,
        waited: layer.waited,
        slowest_us: layer.slowest_us,
    }
}

fn status_of(verb: &'static str, error: &Error) -> Status {
    let code = error.code();
    tracing::debug!(verb, ?code, %error, "refused or failed");
    Status::new((code as i32).into(), format!("{verb}: {error}"))
}

fn labels_in(labels: HashMap<String, String>) -> Labels {
    labels.into_iter().collect()
}

fn mounts_out(mounts: Vec<Mount>) -> Vec<types::Mount> {
    let out = |mount: Mount| lamina_proto::mount(mount.kind, mount.source, mount.options);
    mounts.into_iter().map(out).collect()
}

fn info_out(info: Info) -> api::Info {
    let time = |time: Time| Some(lamina_proto::timestamp(time.secs, time.nanos));
    let kind = match info.record.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: info.key,
        parent: info.record.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: time(info.record.created),
        updated_at: time(info.record.updated),
        labels: info.record.labels.into_iter().collect(),
    }
}

fn status_out(status: &SnapshotStatus) -> status_api::Snapshot {
    let mount = status
        .mount
        .as_ref()
        .map(|at| at.to_string_lossy().into_owned());
    status_api::Snapshot {
        key: status.key.clone(),
        id: status.id,
        kind: status.kind.clone(),
        parent: status.parent.clone().unwrap_or_default(),
        size_bytes: status.size_bytes,
        inodes: status.inodes,
        mount: mount.unwrap_or_default(),
        upper: status.upper.clone().unwrap_or_default(),
        created: status.created.clone(),
        indexed: status.indexed,
    }
}

fn status_in(snapshot: status_api::Snapshot) -> SnapshotStatus {
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    SnapshotStatus {
        key: snapshot.key,
        id: snapshot.id,
        kind: snapshot.kind,
        parent: some(snapshot.parent),
        size_bytes: snapshot.size_bytes,
        inodes: snapshot.inodes,
        mount: some(snapshot.mount).map(Into::into),
        upper: some(snapshot.upper),
        indexed: snapshot.indexed,
        created: snapshot.created,
    }
}
