//! The proxy of the CRI's image service: a fake containerd behind it, a fake registry that wants a
//! login, and a call as kubelet makes it.

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use lamina_fusefs::blob::Digest;
use lamina_proto::Bytes;
use lamina_proto::raw::RawCodec;
use lamina_snapshotter::daemon::{self, ServeOptions};
use lamina_snapshotter::registry::blob::RemoteBlob;
use lamina_snapshotter::registry::{self, Registry, RegistryError, image};
use lamina_snapshotter::serve::testing::FakeMounter;
use lamina_snapshotter::{Error, cri};
use support::options;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Endpoint, Server};
use tonic::{Code, Request, Response, Status};

const PULL: &str = "/runtime.v1.ImageService/PullImage";
const LIST: &str = "/runtime.v1.ImageService/ListImages";

type Seen = Arc<Mutex<Vec<(String, Bytes, Option<String>)>>>;
type Answerer = Arc<dyn Fn(&str) -> Result<Bytes, Status> + Send + Sync>;

/// containerd's CRI: notes what comes, and answers as it is told.
#[derive(Clone)]
struct Backend {
    seen: Seen,
    answer: Answerer,
}

impl Backend {
    fn start(self, dir: &Path) {
        let listener = UnixListener::bind(dir.join("containerd.sock")).expect("bind");
        let incoming = UnixListenerStream::new(listener);
        let server = Server::builder().add_service(self);
        tokio::spawn(server.serve_with_incoming(incoming));
    }
}

struct BackendCall(Backend, String);

impl NamedService for Backend {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<http::Request<Body>> for Backend {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = BackendCall(self.clone(), request.uri().path().to_owned());
        Box::pin(async move {
            Ok(tonic::server::Grpc::new(RawCodec)
                .unary(call, request)
                .await)
        })
    }
}

impl UnaryService<Bytes> for BackendCall {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (backend, path) = (self.0.clone(), self.1.clone());
        Box::pin(async move {
            let trace = request.metadata().get("traceparent");
            let trace = trace.map(|value| value.to_str().expect("text").to_owned());
            let seen = (path.clone(), request.into_inner(), trace);
            backend.seen.lock().expect("lock").push(seen);
            // The answer may wait for a registry, as containerd does.
            let answer = tokio::task::spawn_blocking(move || (backend.answer)(&path));
            answer.await.expect("an answer").map(Response::new)
        })
    }
}

/// A daemon with a proxy, and a containerd behind it.
struct Node {
    dir: TempDir,
    backend: Backend,
    registry: registry::Options,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), Error>>,
}

impl Node {
    async fn start(
        answer: impl Fn(&registry::Options, &str) -> Result<Bytes, Status> + Send + Sync + 'static,
    ) -> Node {
        Node::start_with(true, answer).await
    }

    async fn start_with(
        is_up: bool,
        answer: impl Fn(&registry::Options, &str) -> Result<Bytes, Status> + Send + Sync + 'static,
    ) -> Node {
        let dir = TempDir::new().expect("tempdir");
        let registry = registry::Options {
            hosts: dir.path().join("hosts"),
            docker_config: Some(dir.path().join("config.json")),
            patience: Duration::from_secs(20),
            ..registry::Options::default()
        };
        let known = registry.clone();
        let backend = Backend {
            seen: Seen::default(),
            answer: Arc::new(move |path| answer(&known, path)),
        };
        if is_up {
            backend.clone().start(dir.path());
        }
        let mut options = options(dir.path());
        options.registry = Some(registry.clone());
        options.cri = Some(cri::Options {
            socket: socket(dir.path()),
            backend: dir.path().join("containerd.sock"),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            let ready = move |_: &ServeOptions| ready.send(()).expect("the test waits");
            let shutdown = async move { stopped.await.unwrap_or_default() };
            let mounter = Arc::new(FakeMounter::default());
            daemon::serve_with(options, mounter, ready, shutdown).await
        });
        is_ready.await.expect("the daemon starts");
        Node {
            dir,
            backend,
            registry,
            stop,
            served,
        }
    }

    async fn call(&self, path: &'static str, bytes: &[u8]) -> Result<Bytes, Status> {
        let address = format!("unix://{}", socket(self.dir.path()).display());
        let channel = Endpoint::try_from(address)
            .expect("address")
            .connect()
            .await;
        let mut client = tonic::client::Grpc::new(channel.expect("connect"));
        client.ready().await.expect("ready");
        let mut request = Request::new(Bytes::copy_from_slice(bytes));
        request
            .metadata_mut()
            .insert("traceparent", "00-ab-cd-01".parse().expect("value"));
        // As kubelet says it, though nobody here can do it.
        request
            .metadata_mut()
            .insert("grpc-accept-encoding", "gzip".parse().expect("value"));
        let path = http::uri::PathAndQuery::from_static(path);
        client
            .unary(request, path, RawCodec)
            .await
            .map(Response::into_inner)
    }

    async fn stop(self) -> TempDir {
        self.stop.send(()).expect("it runs");
        self.served
            .await
            .expect("no panic")
            .expect("an orderly end");
        self.dir
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("run/cri.sock")
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).expect("short");
    assert!(length < 128);
    [&[number << 3 | 2, length], bytes].concat()
}

/// A pull as kubelet sends it, with fields that Lamina does not know.
fn pull(image: &str, user: &str, password: &str) -> Vec<u8> {
    let image = [field(1, image.as_bytes()), field(13, b"later")].concat();
    let auth = [field(1, user.as_bytes()), field(2, password.as_bytes())].concat();
    [
        field(1, &image),
        field(2, &auth),
        field(3, b"sandbox"),
        field(15, b"new"),
    ]
    .concat()
}

/// A registry that wants a login; it answers with a part of a blob.
fn fake_registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let mut client = client;
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n")
                && client.read(&mut byte).is_ok_and(|count| count == 1)
            {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head);
            // me:pa55word
            let answer = if head.contains("Basic bWU6cGE1NXdvcmQ=")
                || head.contains("basic bWU6cGE1NXdvcmQ=")
            {
                "HTTP/1.1 206 x\r\ncontent-range: bytes 0-1/2\r\ncontent-length: 2\r\nconnection: close\r\n\r\nab"
            } else {
                "HTTP/1.1 401 x\r\nwww-authenticate: Basic realm=\"r\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            };
            let _ = client.write_all(answer.as_bytes());
        }
    });
    address
}

/// Reads a blob of an image as a lazy layer does.
fn read(options: &registry::Options, image: &str) -> Result<Vec<u8>, RegistryError> {
    let registry = Arc::new(Registry::new(options));
    let reference = image::parse(image).expect("name");
    RemoteBlob::new(registry, reference, Digest::of(b"ab"), 2).part(0..2)
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_pass_unchanged_both_ways() {
    let answer = [
        field(1, b"sha256:00"),
        field(14, b"unknown"),
        vec![0xa0, 0x06, 0x01],
    ]
    .concat();
    let sent = answer.clone();
    let node = Node::start(move |_, _| Ok(Bytes::from(sent.clone()))).await;
    let request = pull("r.example/app:1", "me", "pa55word");
    // No protobuf at all: nothing looks into it.
    for (path, bytes) in [
        (PULL, &request[..]),
        (LIST, b"\xff\xfe"),
        (PULL, b"\xff"),
        (LIST, b""),
    ] {
        assert_eq!(node.call(path, bytes).await.expect("an answer"), answer);
        let (seen_path, seen, trace) = node
            .backend
            .seen
            .lock()
            .expect("lock")
            .pop()
            .expect("a call");
        assert_eq!((seen_path.as_str(), &seen[..]), (path, bytes));
        assert_eq!(trace.as_deref(), Some("00-ab-cd-01"));
    }
    let mode = fs::metadata(socket(node.dir.path()))
        .expect("socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let other = node.call("/runtime.v1.RuntimeService/Version", b"").await;
    assert_eq!(
        other.expect_err("another service").code(),
        Code::Unimplemented
    );
    let dir = node.stop().await;
    assert!(!socket(dir.path()).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_passes_with_its_code_message_and_details() {
    let node = Node::start(|_, _| {
        let details = Bytes::from_static(b"\x08\x05details");
        Err(Status::with_details(
            Code::NotFound,
            "no such image: ä",
            details,
        ))
    })
    .await;
    let status = node.call(LIST, b"").await.expect_err("a failure");
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "no such image: ä")
    );
    assert_eq!(status.details(), b"\x08\x05details");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_may_start_later() {
    let node = Node::start_with(false, |_, _| Ok(Bytes::from_static(b"here"))).await;
    let status = node.call(LIST, b"").await.expect_err("nobody there");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    node.backend.clone().start(node.dir.path());
    assert_eq!(node.call(LIST, b"").await.expect("an answer"), "here");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_login_of_a_pull_reaches_the_registry_of_its_image_alone() {
    let address = fake_registry();
    let image = format!("{address}/team/app:1");
    let wanted = image.clone();
    // containerd asks for the layers while the pull is under way.
    let node = Node::start(move |options, _| match read(options, &wanted) {
        Ok(bytes) => Ok(Bytes::from(bytes)),
        Err(error) => Err(Status::unauthenticated(error.to_string())),
    })
    .await;
    let options = node.registry.clone();
    let reads = move |image: String| {
        let options = options.clone();
        let read = tokio::task::spawn_blocking(move || read(&options, &image).is_ok());
        async { read.await.expect("read") }
    };
    assert!(!reads(image.clone()).await, "nobody has said a login");
    let status = node
        .call(PULL, &pull(&image, "me", "wrong"))
        .await
        .expect_err("wrong");
    assert_eq!(status.code(), Code::Unauthenticated);
    let answer = node.call(PULL, &pull(&image, "me", "pa55word")).await;
    assert_eq!(answer.expect("a pull"), "ab");
    assert!(reads(image.clone()).await, "after the pull too");
    // Somebody else's wrong one comes first while it is tried, and takes nothing away.
    let answer = node.call(PULL, &pull(&image, "other", "wrong")).await;
    assert_eq!(answer.expect("the next login is good"), "ab");
    assert!(reads(image).await);
    assert!(
        !reads(format!("{address}/team/other:1")).await,
        "another repository"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_s_login_is_asked_where_that_of_the_pull_is_wrong() {
    let address = fake_registry();
    let image = format!("{address}/app:1");
    let wanted = image.clone();
    let node = Node::start(move |options, _| match read(options, &wanted) {
        Ok(bytes) => Ok(Bytes::from(bytes)),
        Err(error) => Err(Status::unauthenticated(error.to_string())),
    })
    .await;
    let config = format!(r#"{{"auths":{{"{address}":{{"auth":"bWU6cGE1NXdvcmQ="}}}}}}"#);
    fs::write(node.dir.path().join("config.json"), config).expect("write");
    let answer = node.call(PULL, &pull(&image, "me", "wrong")).await;
    assert_eq!(answer.expect("a pull"), "ab");
    node.stop().await;
}

/// Where the log of a test goes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log is that of all crates at the most detailed level.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_the_log_or_below_the_root() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .init();
    let address = fake_registry();
    let image = format!("{address}/team/app:1");
    let wanted = image.clone();
    let node = Node::start(move |options, _| match read(options, &wanted) {
        Ok(bytes) => Ok(Bytes::from(bytes)),
        Err(error) => Err(Status::unauthenticated(error.to_string())),
    })
    .await;
    let password = "pa55word";
    node.call(PULL, &pull(&image, "me", password))
        .await
        .expect("a pull");
    node.call(PULL, &pull(&image, "me", "wr0ng-one"))
        .await
        .expect("a pull");
    let dir = node.stop().await;
    let log = String::from_utf8_lossy(&log.0.lock().expect("lock")).into_owned();
    for part in ["the root is in order", "TRACE", "h2::"] {
        assert!(log.contains(part), "{part}");
    }
    let secrets = [password, "bWU6cGE1NXdvcmQ", "wr0ng-one", "bWU6d3Iwbmctb25l"];
    for secret in secrets {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
    let mut files = 0;
    let mut dirs = vec![dir.path().join("root")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("list") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            files += 1;
            let bytes = fs::read(&path).expect("read");
            for secret in secrets {
                let found = bytes
                    .windows(secret.len())
                    .any(|part| part == secret.as_bytes());
                assert!(!found, "{secret} in {}", path.display());
            }
        }
    }
    assert!(files > 0, "there is a root");
}
