//! The baseline: servers that decode a request, and answer independently of it.
//!
//! Each runs in a process of its own, so that its CPU time is separate: the benchmark's program,
//! started with the server's name as its argument. A further argument may name a file of answers,
//! which the server returns in turn; without it there is one answer.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use cedar_pdp::api::grpc::pb;
use cedar_pdp::api::grpc::pb::authorization_service_server::{
    AuthorizationService, AuthorizationServiceServer,
};
use cedar_pdp::api::transport::connection_task::ConnectionExecutor;
use futures_util::stream::Empty;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::workload::read_answers;

/// The echo with the runtime, HTTP/2 and socket settings of `cedar-pdp serve`. Keep both in step.
pub const ECHO: &str = "echo";
/// The echo as written in tonic's guide.
pub const DEFAULT_ECHO: &str = "default-echo";

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[derive(Clone)]
struct Echo(Arc<Answers>);

struct Answers {
    all: Vec<pb::AuthorizeResponse>,
    given: AtomicUsize,
}

impl Echo {
    /// Loads the answers of the file that `arguments` name.
    fn of(arguments: &[String]) -> anyhow::Result<Self> {
        let all = match arguments {
            [] => vec![pb::AuthorizeResponse {
                decision: pb::Decision::Allow.into(),
                determining_policies: vec!["public.cedar#policy0".to_owned()],
                revision: "0".repeat(64),
                ..pb::AuthorizeResponse::default()
            }],
            [file] => read_answers(Path::new(file))?,
            _ => anyhow::bail!("an echo takes one file"),
        };
        Ok(Self(Arc::new(Answers {
            all,
            given: AtomicUsize::new(0),
        })))
    }

    /// Returns copies of the next `count` answers, in a circle.
    fn next(&self, count: usize) -> impl Iterator<Item = pb::AuthorizeResponse> {
        let Answers { all, given } = &*self.0;
        let first = given.fetch_add(count, Relaxed) % all.len();
        (first..first + count).filter_map(|n| all.get(n % all.len()).cloned())
    }
}

#[tonic::async_trait]
impl AuthorizationService for Echo {
    async fn authorize(
        &self,
        request: Request<pb::AuthorizeRequest>,
    ) -> Result<Response<pb::AuthorizeResponse>, Status> {
        // The request is decoded; the compiler must not remove that.
        std::hint::black_box(request.into_inner());
        let answer = self.next(1).next();
        answer.map(Response::new).ok_or_else(no_answer)
    }

    async fn batch_authorize(
        &self,
        request: Request<pb::BatchAuthorizeRequest>,
    ) -> Result<Response<pb::BatchAuthorizeResponse>, Status> {
        let requests = std::hint::black_box(request.into_inner().requests);
        let result = |answer| pb::BatchAuthorizeResult {
            result: Some(pb::batch_authorize_result::Result::Response(answer)),
        };
        let revision = self.0.all.first().ok_or_else(no_answer)?.revision.clone();
        Ok(Response::new(pb::BatchAuthorizeResponse {
            results: self.next(requests.len()).map(result).collect(),
            revision,
        }))
    }

    type StreamAuthorizeStream = Empty<Result<pb::StreamAuthorizeResponse, Status>>;

    async fn stream_authorize(
        &self,
        _: Request<Streaming<pb::StreamAuthorizeRequest>>,
    ) -> Result<Response<Self::StreamAuthorizeStream>, Status> {
        Err(Status::unimplemented("an echo of Authorize only"))
    }
}

fn no_answer() -> Status {
    Status::internal("an echo without answers")
}

/// Serves [`ECHO`] until killed; `arguments` follow its name.
pub fn serve(arguments: &[String]) -> anyhow::Result<()> {
    let service = AuthorizationServiceServer::new(Echo::of(arguments)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(ANY_PORT).await?;
        say_address(listener.local_addr()?)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let service = service.clone();
            tokio::spawn(async move {
                let call = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let mut service = service.clone();
                    async move {
                        Ok::<_, Infallible>(
                            service
                                .call(request.map(Body::new))
                                .await
                                .unwrap_or_else(|never| match never {}),
                        )
                    }
                });
                // A client that disconnects is no error here: the client counts its answers.
                let executor = ConnectionExecutor::default();
                let serving = http2::Builder::new(executor.clone())
                    .timer(TokioTimer::new())
                    .auto_date_header(false)
                    .serve_connection(TokioIo::new(stream), call);
                let _ = executor.drive(serving).await;
            });
        }
    })
}

/// Serves [`DEFAULT_ECHO`] until killed; `arguments` follow its name.
#[tokio::main]
pub async fn serve_as_the_guide_writes_it(arguments: &[String]) -> anyhow::Result<()> {
    let service = AuthorizationServiceServer::new(Echo::of(arguments)?);
    // The guide's `serve(address)` does the same, but does not return the port.
    let incoming = TcpIncoming::bind(ANY_PORT)?.with_nodelay(Some(true));
    say_address(incoming.local_addr()?)?;
    tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

/// Prints the address as `cedar-pdp serve` does.
fn say_address(address: SocketAddr) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()?;
    Ok(())
}
