//! Signals, draining, and passed deadlines.

use std::time::Duration;

use cedar_pdp::api::grpc::pb;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;

use super::health::{wait_for_health, watch_health};
use super::stream::{item, open_stream};
use super::{ALL_ARE_PERMITTED, authorize, next, sample_request};
use crate::support::{Server, TIME_LIMIT, policy_directory, request, shipped_policies};

/// A call that the server has begun to read, and that lasts until it is released.
struct CallInFlight {
    release: oneshot::Sender<()>,
    answer: tokio::task::JoinHandle<Result<pb::AuthorizeResponse, Status>>,
}

impl CallInFlight {
    async fn begin(server: &Server) -> Self {
        let channel = server.channel().await;
        let (started, has_started) = oneshot::channel();
        let (release, released) = oneshot::channel::<()>();
        // A client-streaming request can stay without an end.
        let messages = futures_util::stream::once(async move {
            let _ = started.send(());
            let _ = released.await;
            sample_request()
        });
        let answer = tokio::spawn({
            let channel = channel.clone();
            async move {
                let mut client = tonic::client::Grpc::new(channel);
                client.ready().await.expect("the connection is open");
                let path =
                    http::uri::PathAndQuery::from_static("/pdp.v1.AuthorizationService/Authorize");
                let codec =
                    tonic_prost::ProstCodec::<pb::AuthorizeRequest, pb::AuthorizeResponse>::default(
                    );
                let request = tonic::Request::new(messages);
                client
                    .client_streaming(request, path, codec)
                    .await
                    .map(tonic::Response::into_inner)
            }
        });
        has_started.await.unwrap();
        // Frames keep their order: an answer on the same connection proves that the call has
        // arrived.
        let mut client =
            pb::authorization_service_client::AuthorizationServiceClient::<Channel>::new(channel);
        client.authorize(sample_request()).await.unwrap();
        Self { release, answer }
    }

    async fn finish(self) -> Result<pb::AuthorizeResponse, Status> {
        // The receiver is gone if the connection has ended.
        let _ = self.release.send(());
        tokio::time::timeout(TIME_LIMIT, self.answer)
            .await
            .expect("an answer in time")
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_calls_and_ends_streams() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let mut server = Server::start(directory.path(), &[]);
    let mut health = watch_health(&server, "").await;
    wait_for_health(&mut health, ServingStatus::Serving).await;
    let mut store = server.policy_store().await;
    let mut status = store
        .watch_status(pb::WatchStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    next(&mut status).await.unwrap();
    let (items, mut answers) = open_stream(&server).await;
    items.send(item(1, Some(sample_request()))).await.unwrap();
    next(&mut answers).await.unwrap();
    let call = CallInFlight::begin(&server).await;

    server.signal("TERM");
    wait_for_health(&mut health, ServingStatus::NotServing).await;
    assert_eq!(
        next(&mut health).await.unwrap_err().code(),
        Code::Unavailable
    );
    assert_eq!(
        next(&mut answers).await.unwrap_err().code(),
        Code::Unavailable
    );
    assert_eq!(
        next(&mut status).await.unwrap_err().code(),
        Code::Unavailable
    );
    assert!(server.is_alive(), "a call is still in flight");
    assert_eq!(call.finish().await.unwrap().decision(), pb::Decision::Allow);
    assert_eq!(server.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_stops_as_sigterm_does() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let mut server = Server::start(directory.path(), &[]);
    authorize(&server, sample_request()).await.unwrap();
    server.signal("INT");
    assert_eq!(server.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn second_signal_ends_the_process_immediately() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let mut server = Server::start(directory.path(), &["--drain-timeout", "1h"]);
    let call = CallInFlight::begin(&server).await;
    server.signal("TERM");
    server.wait_for_log("draining");
    assert!(server.is_alive());
    server.signal("INT");
    server.wait();
    assert!(call.finish().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_timeout_cuts_off_unfinished_calls() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let mut server = Server::start(directory.path(), &["--drain-timeout", "200ms"]);
    let call = CallInFlight::begin(&server).await;
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.log().contains("drain timeout"), "{}", server.log());
    assert!(call.finish().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn passed_deadline_has_its_status() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let (_items, sent) = mpsc::channel(1);
    let mut request = tonic::Request::new(ReceiverStream::new(sent));
    request.set_timeout(Duration::from_millis(50));
    let mut client = server.authorization().await;
    let status = match client.stream_authorize(request).await {
        Ok(answers) => next(&mut answers.into_inner()).await.unwrap_err(),
        Err(status) => status,
    };
    // The client may notice first, and reports another code.
    assert!(
        matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{status:?}"
    );
    assert_eq!(
        authorize(&server, sample_request())
            .await
            .unwrap()
            .decision(),
        pb::Decision::Allow
    );
}

#[tokio::test]
async fn idle_connections_do_not_delay_shutdown() {
    let mut server = Server::start(&shipped_policies(), &["--drain-timeout", "1h"]);
    let silent = std::net::TcpStream::connect(server.address()).unwrap();
    let mut greeting = std::net::TcpStream::connect(server.address()).unwrap();
    std::io::Write::write_all(
        &mut greeting,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    )
    .unwrap();
    // A call on another connection shows that the two earlier ones were accepted.
    server
        .authorization()
        .await
        .authorize(request(
            r#"Platform::User::"felix.brandt""#,
            r#"Invoicing::Action::"readInvoice""#,
            r#"Invoicing::Invoice::"INV-2041""#,
        ))
        .await
        .unwrap();
    server.signal("TERM");
    assert!(server.wait().success());
    drop((silent, greeting));
}
