//! Kubernetes' image pull secrets: a proxy of the CRI's image service.
//!
//! kubelet sends the login of a pull to the CRI, and to nobody else: containerd tells a snapshotter
//! which image it pulls, but not as whom. So kubelet's image service can be this one
//! (`--image-service-endpoint`). Each call goes on to containerd as the bytes it came as, and
//! containerd's answer back. Only of `PullImage` the image and the login are read, and kept in memory
//! for the registry ([`crate::registry::pulled`]).

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};

use lamina_proto::raw::RawCodec;
use lamina_proto::{Bytes, pull_image_request};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Extensions, Request, Response, Status};

use crate::error::{Error, Result};
use crate::registry::pulled::{PullAuth, PulledLogins, Trial};

/// The one call that is looked into.
const PULL_IMAGE: &str = "/runtime.v1.ImageService/PullImage";

/// The most bytes of a message, as with kubelet and containerd.
const MOST: usize = 16 << 20;

/// What one hop says to the next about compression; there is none here.
const HOP: [&str; 2] = ["grpc-encoding", "grpc-accept-encoding"];

/// Where the proxy listens, and whom it asks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// The proxy's socket, for kubelet's `--image-service-endpoint`.
    pub socket: PathBuf,
    /// The socket of containerd's CRI.
    pub backend: PathBuf,
}

/// The image service, as kubelet sees it.
#[derive(Clone)]
struct Proxy {
    backend: Channel,
    /// `None`: nobody asks for logins, so none are kept.
    logins: Option<Arc<PulledLogins>>,
}

/// One call.
struct Call {
    proxy: Proxy,
    path: http::uri::PathAndQuery,
}

/// Serves the proxy until `shutdown` is done and the calls under way have ended.
pub(crate) async fn serve(
    listener: UnixListener,
    options: &Options,
    logins: Option<Arc<PulledLogins>>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    let failed = |path: &Path, reason: String| Error::Grpc {
        path: path.to_owned(),
        reason,
    };
    let backend = Endpoint::try_from(format!("unix://{}", options.backend.display()))
        .map_err(|error| failed(&options.backend, error.to_string()))?;
    // containerd may start later, and again.
    let backend = backend.connect_lazy();
    Server::builder()
        .add_service(Proxy { backend, logins })
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown)
        .await
        .map_err(|error| failed(&options.socket, error.to_string()))
}

impl NamedService for Proxy {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<http::Request<Body>> for Proxy {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let proxy = self.clone();
        Box::pin(async move {
            let Some(path) = request.uri().path_and_query().cloned() else {
                return Ok(Status::unimplemented("a call without a path").into_http());
            };
            let mut server = tonic::server::Grpc::new(RawCodec)
                .max_decoding_message_size(MOST)
                .max_encoding_message_size(MOST);
            Ok(server.unary(Call { proxy, path }, request).await)
        })
    }
}

impl UnaryService<Bytes> for Call {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (proxy, path) = (self.proxy.clone(), self.path.clone());
        Box::pin(async move {
            // Before the call goes on: containerd asks for the layers while it is under way.
            let is_pull = path.path() == PULL_IMAGE;
            let trial = is_pull.then(|| proxy.note(request.get_ref())).flatten();
            let answer = proxy.pass_on(path, request).await?;
            if let Some(trial) = trial {
                trial.succeeded();
            }
            Ok(answer)
        })
    }
}

impl Proxy {
    /// Notes the login of a pull.
    fn note(&self, bytes: &[u8]) -> Option<Trial> {
        let logins = self.logins.as_ref()?;
        let pull = pull_image_request(bytes)?;
        let (image, auth) = (pull.image?, pull.auth?);
        logins.begin(
            &image.image,
            PullAuth {
                user: &auth.username,
                password: &auth.password,
                pair: &auth.auth,
                server: &auth.server_address,
                identity_token: &auth.identity_token,
            },
        )
    }

    async fn pass_on(
        &self,
        path: http::uri::PathAndQuery,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Status> {
        let mut client = tonic::client::Grpc::new(self.backend.clone())
            .max_decoding_message_size(MOST)
            .max_encoding_message_size(MOST);
        let ready = client.ready().await;
        ready.map_err(|error| Status::unavailable(format!("containerd's CRI: {error}")))?;
        let (mut metadata, _, bytes) = request.into_parts();
        for name in HOP {
            metadata.remove(name);
        }
        let request = Request::from_parts(metadata, Extensions::default(), bytes);
        let mut answer = client.unary(request, path, RawCodec).await?;
        for name in HOP {
            answer.metadata_mut().remove(name);
        }
        Ok(answer)
    }
}
