//! Export of decisions to a collector, as OTLP log records.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cedar_pdp::api::grpc::pb;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message as _;
use serde_json::Value as Json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::setup::{POLICIES, allowed, denied};
use crate::support::{Server, TIME_LIMIT, get, policy_directory, remove_variables, serve_command};

/// A collector that keeps what it receives.
struct Collector {
    messages: mpsc::UnboundedReceiver<ExportLogsServiceRequest>,
    /// Replies to the next messages; afterwards it accepts all.
    replies: Arc<Mutex<VecDeque<Reply>>>,
}

#[derive(Clone)]
enum Reply {
    Grpc(Box<Status>),
    Http(u16),
    /// Accepts the message except this number of records.
    PartialSuccess(i64),
}

/// The server side of the collector.
#[derive(Clone)]
struct CollectorService {
    messages: mpsc::UnboundedSender<ExportLogsServiceRequest>,
    authorization: &'static str,
    replies: Arc<Mutex<VecDeque<Reply>>>,
}

impl CollectorService {
    fn accept(
        &self,
        authorization: &[u8],
        message: ExportLogsServiceRequest,
    ) -> Result<ExportLogsServiceResponse, Reply> {
        assert_eq!(authorization, self.authorization.as_bytes());
        let answer = self.replies.lock().unwrap().pop_front();
        let rejected_log_records = match answer {
            None => 0,
            Some(Reply::PartialSuccess(rejected)) => rejected,
            Some(rejection) => return Err(rejection),
        };
        let _ = self.messages.send(message);
        let partial_success = ExportLogsPartialSuccess {
            rejected_log_records,
            error_message: "some are too old".to_owned(),
        };
        Ok(ExportLogsServiceResponse {
            partial_success: (rejected_log_records > 0).then_some(partial_success),
        })
    }
}

#[tonic::async_trait]
impl LogsService for CollectorService {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let header = request.metadata().get("authorization").cloned();
        let header = header.as_ref().map_or(&b""[..], |header| header.as_bytes());
        match self.accept(header, request.into_inner()) {
            Ok(answer) => Ok(Response::new(answer)),
            Err(Reply::Grpc(status)) => Err(*status),
            Err(Reply::Http(_) | Reply::PartialSuccess(_)) => panic!("no answer over gRPC"),
        }
    }
}

/// A received record.
#[derive(Debug)]
struct ReceivedRecord {
    line: Json,
    record: LogRecord,
    attributes: BTreeMap<String, String>,
    resource: BTreeMap<String, String>,
}

impl Collector {
    /// Creates both sides. Requests must carry this `authorization` header.
    fn new(authorization: &'static str) -> (Self, CollectorService) {
        let (sender, messages) = mpsc::unbounded_channel();
        let replies = Arc::default();
        let logs_service = CollectorService {
            messages: sender,
            authorization,
            replies: Arc::clone(&replies),
        };
        (Self { messages, replies }, logs_service)
    }

    fn over_grpc(listener: TcpListener, authorization: &'static str) -> Self {
        let (collector, logs_service) = Self::new(authorization);
        let server_task = tonic::transport::Server::builder()
            .add_service(LogsServiceServer::new(logs_service))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
        tokio::spawn(server_task);
        collector
    }

    fn over_http(listener: TcpListener, authorization: &'static str) -> Self {
        let (collector, logs_service) = Self::new(authorization);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let logs_service = logs_service.clone();
                let service = hyper::service::service_fn(
                    move |request: http::Request<hyper::body::Incoming>| {
                        let logs_service = logs_service.clone();
                        async move { Ok::<_, Infallible>(over_http(&logs_service, request).await) }
                    },
                );
                let http1 = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http1.serve_connection(TokioIo::new(stream), service));
            }
        });
        collector
    }

    /// Sets the replies to the next messages.
    fn replies(&self, replies: impl IntoIterator<Item = Reply>) {
        self.replies.lock().unwrap().extend(replies);
    }

    /// Waits for the next `count` records.
    async fn records(&mut self, count: usize) -> Vec<ReceivedRecord> {
        let mut all = Vec::new();
        while all.len() < count {
            let next = tokio::time::timeout(TIME_LIMIT, self.messages.recv()).await;
            for of_resource in next.expect("records arrive").unwrap().resource_logs {
                let resource = attributes(of_resource.resource.unwrap().attributes);
                for record in of_resource
                    .scope_logs
                    .into_iter()
                    .flat_map(|it| it.log_records)
                {
                    all.push(ReceivedRecord {
                        line: serde_json::from_str(&text(record.body.clone().unwrap())).unwrap(),
                        attributes: attributes(record.attributes.clone()),
                        record,
                        resource: resource.clone(),
                    });
                }
            }
        }
        all
    }
}

async fn over_http(
    logs_service: &CollectorService,
    request: http::Request<hyper::body::Incoming>,
) -> http::Response<Full<prost::bytes::Bytes>> {
    assert_eq!(request.uri().path(), "/v1/logs");
    let kind = request.headers().get("content-type");
    assert_eq!(kind.unwrap(), "application/x-protobuf");
    let header = request.headers().get("authorization").cloned();
    let header = header.as_ref().map_or(&b""[..], |header| header.as_bytes());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut response = http::Response::<Full<prost::bytes::Bytes>>::default();
    match logs_service.accept(header, ExportLogsServiceRequest::decode(body).unwrap()) {
        Ok(answer) => *response.body_mut() = Full::from(answer.encode_to_vec()),
        Err(Reply::Http(status)) => {
            *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
        }
        Err(Reply::Grpc(_) | Reply::PartialSuccess(_)) => panic!("no answer over HTTP"),
    }
    response
}

fn text(value: AnyValue) -> String {
    let Some(Value::StringValue(text)) = value.value else {
        panic!("no text: {value:?}");
    };
    text
}

fn attributes(all: Vec<KeyValue>) -> BTreeMap<String, String> {
    all.into_iter()
        .map(|it| (it.key, text(it.value.unwrap())))
        .collect()
}

fn start(variables: &[(&str, &str)], arguments: &[&str]) -> (TempDir, Server) {
    let policies = policy_directory(&[("policies.cedar", POLICIES)]);
    let mut command = serve_command(policies.path(), arguments);
    remove_variables(&mut command, "OTEL_");
    command.envs(variables.iter().copied()).args([
        "--decision-log",
        "otlp",
        "--decision-log-allow-sample",
        "1",
    ]);
    let server = Server::spawn(command, 1);
    (policies, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn otlp_record_body_is_the_log_line() {
    for protocol in ["grpc", "http/protobuf"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let mut collector = match protocol {
            "grpc" => Collector::over_grpc(listener, "Bearer x"),
            _ => Collector::over_http(listener, "Bearer x"),
        };
        let (_policies, mut server) = start(
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
                ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x"),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                ("OTEL_SERVICE_NAME", "pdp-of-orders"),
                ("OTEL_TRACES_EXPORTER", "none"),
            ],
            &[],
        );
        let mut client = server.authorization().await;
        let mut traced = Request::new(allowed());
        traced.metadata_mut().insert(
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
                .parse()
                .unwrap(),
        );
        let first = client.authorize(traced).await.unwrap().into_inner();
        let second = client.authorize(denied()).await.unwrap().into_inner();
        client
            .authorize(pb::AuthorizeRequest::default())
            .await
            .unwrap_err();
        // Queued records are sent before the process exits.
        server.signal("TERM");
        assert!(server.wait().success());
        let records = collector.records(3).await;
        for (received, answer) in records.iter().zip([&first, &second]) {
            assert_eq!(received.line["id"], answer.decision_id.as_str());
            assert_eq!(
                received.attributes["cedar_pdp.decision_id"],
                answer.decision_id
            );
            assert_eq!(received.attributes["cedar_pdp.revision"], answer.revision);
            assert_eq!(received.record.event_name, "cedar_pdp.decision");
            assert!(received.record.time_unix_nano > 0);
            assert_eq!(received.resource["service.name"], "pdp-of-orders");
        }
        let [allow, deny, rejected] = records.as_slice() else {
            panic!("{records:?}");
        };
        assert_eq!(allow.attributes["cedar_pdp.decision"], "ALLOW");
        assert_eq!(allow.record.trace_id[..2], [0x4b, 0xf9]);
        assert_eq!(deny.attributes["cedar_pdp.decision"], "DENY");
        assert_eq!(deny.record.trace_id, [] as [u8; 0]);
        assert_eq!(rejected.attributes["cedar_pdp.refused"], "INVALID_REQUEST");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_collector_delays_records_only() {
    // Calls are answered meanwhile, and the collector receives every record later.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let endpoint = format!("http://{address}");
    let (_policies, server) = start(
        &[
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
        ],
        &[],
    );
    let mut client = server.authorization().await;
    for _ in 0..1_000 {
        client.authorize(allowed()).await.unwrap();
    }
    server.wait_for_log("cannot write the decision log");
    let mut collector = Collector::over_grpc(TcpListener::bind(address).await.unwrap(), "");
    let mut ids: Vec<_> = collector
        .records(1_000)
        .await
        .into_iter()
        .map(|received| received.line["id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 1_000);
    server.wait_for_log("the decision log is written again");
    let log = server.log();
    let warnings = log.matches("cannot write the decision log").count();
    assert_eq!(warnings, 1, "{log}");
}

/// A service that exports its decision log to a collector.
struct Exporter {
    server: Server,
    admin: String,
    collector: Collector,
    _policies: TempDir,
}

/// Starts a service that exports over `protocol`. Its calls wait when the log is full.
async fn start_exporting(protocol: &str) -> Exporter {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector = match protocol {
        "grpc" => Collector::over_grpc(listener, ""),
        _ => Collector::over_http(listener, ""),
    };
    let (policies, server) = start(
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_TRACES_EXPORTER", "none"),
        ],
        &[
            "--admin-listen",
            "127.0.0.1:0",
            "--decision-log-when-full",
            "block",
        ],
    );
    Exporter {
        admin: server.admin(),
        server,
        collector,
        _policies: policies,
    }
}

impl Exporter {
    /// Waits until the metrics page counts this number of records with this `result`.
    async fn wait_for_count(&self, result: &str, count: u64) {
        let line = format!(r#"cedar_pdp_decision_log_records_total{{result="{result}"}} {count}"#);
        let is_there = async || self.metrics().lines().any(|it| it == line);
        self.server.eventually(&line, is_there).await;
    }

    fn metrics(&self) -> String {
        get(&self.admin, "/metrics")
    }

    /// Makes one call; returns the id of its decision.
    async fn call(&self) -> String {
        let mut client = self.server.authorization().await;
        let answer = client.authorize(allowed()).await.unwrap();
        answer.into_inner().decision_id
    }

    /// Returns the id in the next received record.
    async fn next_record_id(&mut self) -> String {
        let [record] = &self.collector.records(1).await[..] else {
            panic!("one record");
        };
        record.line["id"].as_str().unwrap().to_owned()
    }
}

fn grpc(code: Code) -> Reply {
    Reply::Grpc(Box::new(Status::new(code, "rejected by the collector")))
}

#[tokio::test(flavor = "multi_thread")]
async fn permanently_rejected_records_are_dropped() {
    // Later records are sent.
    for (protocol, rejections) in [
        (
            "grpc",
            // Without retry information, RESOURCE_EXHAUSTED is permanent.
            [grpc(Code::InvalidArgument), grpc(Code::ResourceExhausted)],
        ),
        ("http/protobuf", [Reply::Http(400), Reply::Http(413)]),
    ] {
        let mut exporter = start_exporting(protocol).await;
        exporter.collector.replies(rejections.clone());
        for count in 1..=2 {
            exporter.call().await;
            exporter.wait_for_count("refused", count).await;
        }
        let id = exporter.call().await;
        assert_eq!(exporter.next_record_id().await, id);
        exporter
            .server
            .wait_for_log("the decision log is written again");
        let log = exporter.server.log();
        let warnings = log.matches("rejected records permanently").count();
        assert_eq!(warnings, 1, "{log}");
        exporter.wait_for_count("written", 1).await;
        exporter.wait_for_count("dropped", 0).await;

        // A new series of rejections is logged again.
        exporter.collector.replies([rejections[0].clone()]);
        exporter.call().await;
        exporter.wait_for_count("refused", 3).await;
        // The counter changes before the log line is written.
        let warnings = || {
            let log = exporter.server.log();
            log.matches("rejected records permanently").count()
        };
        exporter
            .server
            .eventually("a second warning", async || warnings() >= 2)
            .await;
        assert_eq!(warnings(), 2);
        let log = exporter.server.log();
        assert!(!log.contains("cannot write"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn temporarily_rejected_records_are_sent_again() {
    let soon = ErrorDetails::with_retry_info(Some(Duration::from_millis(1)));
    let full = Status::with_error_details(Code::ResourceExhausted, "full", soon);
    for (protocol, rejections) in [
        (
            "grpc",
            vec![
                grpc(Code::Unavailable),
                grpc(Code::Unauthenticated),
                Reply::Grpc(Box::new(full)),
            ],
        ),
        ("http/protobuf", [503, 429, 404].map(Reply::Http).into()),
    ] {
        let mut exporter = start_exporting(protocol).await;
        exporter.collector.replies(rejections);
        let id = exporter.call().await;
        assert_eq!(exporter.next_record_id().await, id);
        exporter.wait_for_count("written", 1).await;
        exporter.wait_for_count("refused", 0).await;
        let metrics = exporter.metrics();
        let failed = "cedar_pdp_decision_log_write_failures_total 3";
        assert!(metrics.lines().any(|line| line == failed), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partially_rejected_records_are_counted() {
    for protocol in ["grpc", "http/protobuf"] {
        let mut exporter = start_exporting(protocol).await;
        exporter.collector.replies([Reply::PartialSuccess(1)]);
        let id = exporter.call().await;
        assert_eq!(exporter.next_record_id().await, id);
        exporter.wait_for_count("refused", 1).await;
        exporter.wait_for_count("written", 0).await;
        exporter.server.wait_for_log("some are too old");
    }
}
