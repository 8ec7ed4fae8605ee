//! A daemon on a root of its own, and an independent client of it.

// Each test binary uses its part.
#![allow(dead_code, unreachable_pub)]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_snapshots::api::snapshots::v1::snapshots_client::SnapshotsClient;
use containerd_snapshots::api::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest,
    UsageRequest, ViewSnapshotRequest,
};
use containerd_snapshots::api::types::Mount;
use containerd_snapshots::tonic::Status;
use containerd_snapshots::tonic::transport::{Channel, Endpoint, Uri};
use lamina_snapshotter::Error;
use lamina_snapshotter::check::check;
use lamina_snapshotter::daemon::{self, ServeOptions};
use lamina_snapshotter::hold::{self, Keeper};
use lamina_snapshotter::lazy::keeper;
use lamina_snapshotter::serve::Mounter;
use lamina_snapshotter::serve::testing::FakeMounter;
use lamina_snapshotter::upper_mode::UpperMode;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A daemon on a root of its own.
pub struct Daemon {
    pub dir: TempDir,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), Error>>,
}

pub fn options(dir: &Path) -> ServeOptions {
    ServeOptions {
        root: dir.join("root"),
        address: dir.join("run/lamina.sock"),
        threads: 2,
        passthrough: true,
        no_open: true,
        upper: UpperMode::default(),
        index: true,
        metacopy: true,
        partial_copy_up: true,
        registry: None,
        cache: keeper::Limits::default(),
        limits: lamina_fusefs::blob::Limits::default(),
        cri: None,
        holder: hold::Options {
            keeper: Keeper::None,
            ..hold::Options::default()
        },
    }
}

impl Daemon {
    pub async fn start(dir: TempDir, mounter: Arc<dyn Mounter>) -> Daemon {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = oneshot::channel::<()>();
        let options = options(dir.path());
        let served = tokio::spawn(async move {
            let ready = move |_: &ServeOptions| ready.send(()).expect("the test waits");
            let shutdown = async move { stopped.await.unwrap_or_default() };
            daemon::serve_with(options, mounter, ready, shutdown).await
        });
        is_ready.await.expect("the daemon starts");
        Daemon {
            dir,
            stop: Some(stop),
            served,
        }
    }

    pub async fn fake() -> Daemon {
        Daemon::start(
            TempDir::new().expect("tempdir"),
            Arc::new(FakeMounter::default()),
        )
        .await
    }

    pub fn root(&self) -> PathBuf {
        options(self.dir.path()).root
    }

    pub fn address(&self) -> PathBuf {
        options(self.dir.path()).address
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.address()).await
    }

    /// Stops it cleanly, and checks what it leaves.
    pub async fn stop(mut self) -> TempDir {
        drop(self.stop.take());
        self.served
            .await
            .expect("join")
            .expect("the daemon ends well");
        assert!(
            !options(self.dir.path()).address.exists(),
            "the socket is gone"
        );
        let root = options(self.dir.path()).root;
        assert_eq!(check(&root).expect("check"), [], "the root is in order");
        assert_eq!(fs::read_dir(root.join("mounts")).expect("list").count(), 0);
        self.dir
    }
}

#[derive(Clone)]
pub struct Client(SnapshotsClient<Channel>);

pub type Answer<T> = Result<T, Status>;

pub fn text(text: &str) -> String {
    text.to_owned()
}

pub fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| (text(name), text(value)))
        .collect()
}

impl Client {
    /// A client of whoever listens there.
    pub async fn connect(address: PathBuf) -> Client {
        let connect = tower::service_fn(move |_: Uri| UnixStream::connect(address.clone()));
        let endpoint = Endpoint::from_static("http://socket.invalid");
        let channel = endpoint
            .connect_with_connector(connect)
            .await
            .expect("connect");
        Client(SnapshotsClient::new(channel))
    }

    pub async fn prepare(&mut self, key: &str, parent: &str) -> Answer<Vec<Mount>> {
        self.prepare_with(key, parent, &[]).await
    }

    pub async fn prepare_with(
        &mut self,
        key: &str,
        parent: &str,
        pairs: &[(&str, &str)],
    ) -> Answer<Vec<Mount>> {
        let request = PrepareSnapshotRequest {
            snapshotter: text("lamina"),
            key: text(key),
            parent: text(parent),
            labels: labels(pairs),
        };
        Ok(self.0.prepare(request).await?.into_inner().mounts)
    }

    pub async fn view(&mut self, key: &str, parent: &str) -> Answer<Vec<Mount>> {
        let request = ViewSnapshotRequest {
            key: text(key),
            parent: text(parent),
            ..ViewSnapshotRequest::default()
        };
        Ok(self.0.view(request).await?.into_inner().mounts)
    }

    pub async fn mounts(&mut self, key: &str) -> Answer<Vec<Mount>> {
        let request = MountsRequest {
            key: text(key),
            ..MountsRequest::default()
        };
        Ok(self.0.mounts(request).await?.into_inner().mounts)
    }

    pub async fn commit(&mut self, name: &str, key: &str, pairs: &[(&str, &str)]) -> Answer<()> {
        let request = CommitSnapshotRequest {
            name: text(name),
            key: text(key),
            labels: labels(pairs),
            ..CommitSnapshotRequest::default()
        };
        self.0.commit(request).await.map(drop)
    }

    pub async fn remove(&mut self, key: &str) -> Answer<()> {
        let request = RemoveSnapshotRequest {
            key: text(key),
            ..RemoveSnapshotRequest::default()
        };
        self.0.remove(request).await.map(drop)
    }

    pub async fn stat(&mut self, key: &str) -> Answer<Info> {
        let request = StatSnapshotRequest {
            key: text(key),
            ..StatSnapshotRequest::default()
        };
        Ok(self.0.stat(request).await?.into_inner().info.expect("info"))
    }

    pub async fn update(&mut self, info: Option<Info>, paths: &[&str]) -> Answer<Info> {
        let mut request = UpdateSnapshotRequest {
            info,
            ..UpdateSnapshotRequest::default()
        };
        let paths = paths.iter().map(|path| text(path)).collect();
        request.update_mask.get_or_insert_default().paths = paths;
        Ok(self
            .0
            .update(request)
            .await?
            .into_inner()
            .info
            .expect("info"))
    }

    /// The names, and the sizes of the pages in which they came.
    pub async fn list(&mut self, filters: &[&str]) -> Answer<(BTreeSet<String>, Vec<usize>)> {
        let filters = filters.iter().map(|filter| text(filter)).collect();
        let request = ListSnapshotsRequest {
            filters,
            ..ListSnapshotsRequest::default()
        };
        let mut stream = self.0.list(request).await?.into_inner();
        let (mut names, mut pages) = (BTreeSet::new(), Vec::new());
        while let Some(page) = stream.message().await? {
            pages.push(page.info.len());
            names.extend(page.info.into_iter().map(|info| info.name));
        }
        Ok((names, pages))
    }

    pub async fn usage(&mut self, key: &str) -> Answer<(i64, i64)> {
        let request = UsageRequest {
            key: text(key),
            ..UsageRequest::default()
        };
        let usage = self.0.usage(request).await?.into_inner();
        Ok((usage.size, usage.inodes))
    }

    pub async fn cleanup(&mut self) -> Answer<()> {
        self.0
            .cleanup(CleanupRequest {
                snapshotter: text("lamina"),
            })
            .await
            .map(drop)
    }

    /// A committed snapshot.
    pub async fn layer(&mut self, name: &str, parent: &str, pairs: &[(&str, &str)]) {
        let key = format!("extract-1 {name}");
        self.prepare(&key, parent).await.expect("prepare");
        self.commit(name, &key, pairs).await.expect("commit");
    }
}

/// Waits a moment for what happens after the last user of a mount is gone.
pub async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..200 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

pub fn lamina_mounts(root: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let root = root.to_str().expect("utf-8");
    table
        .lines()
        .filter(|line| line.starts_with("lamina ") && line.contains(root))
        .count()
}
