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
use crate::support::{PATIENCE, Server, get, policy_directory, serving};

/// A collector that keeps what it receives.
struct Collector {
    taken: mpsc::UnboundedReceiver<ExportLogsServiceRequest>,
    /// Replies to the next messages; afterwards it accepts all.
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

#[derive(Clone)]
enum Answer {
    Grpc(Box<Status>),
    Http(u16),
    /// Accepts the message except this number of records.
    Partly(i64),
}

/// The server side of the collector.
#[derive(Clone)]
struct Desk {
    taken: mpsc::UnboundedSender<ExportLogsServiceRequest>,
    authorization: &'static str,
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

impl Desk {
    fn take(
        &self,
        authorization: &[u8],
        message: ExportLogsServiceRequest,
    ) -> Result<ExportLogsServiceResponse, Answer> {
        assert_eq!(authorization, self.authorization.as_bytes());
        let answer = self.answers.lock().unwrap().pop_front();
        let rejected_log_records = match answer {
            None => 0,
            Some(Answer::Partly(rejected)) => rejected,
            Some(refusal) => return Err(refusal),
        };
        let _ = self.taken.send(message);
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
impl LogsService for Desk {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let shown = request.metadata().get("authorization").cloned();
        let shown = shown.as_ref().map_or(&b""[..], |shown| shown.as_bytes());
        match self.take(shown, request.into_inner()) {
            Ok(answer) => Ok(Response::new(answer)),
            Err(Answer::Grpc(status)) => Err(*status),
            Err(Answer::Http(_) | Answer::Partly(_)) => panic!("no answer over gRPC"),
        }
    }
}

/// A received record.
#[derive(Debug)]
struct Arrived {
    line: Json,
    record: LogRecord,
    attributes: BTreeMap<String, String>,
    resource: BTreeMap<String, String>,
}

impl Collector {
    /// Creates both sides. Requests must carry this `authorization` header.
    fn new(authorization: &'static str) -> (Self, Desk) {
        let (sender, taken) = mpsc::unbounded_channel();
        let answers = Arc::default();
        let desk = Desk {
            taken: sender,
            authorization,
            answers: Arc::clone(&answers),
        };
        (Self { taken, answers }, desk)
    }

    fn over_grpc(listener: TcpListener, authorization: &'static str) -> Self {
        let (collector, desk) = Self::new(authorization);
        let serving = tonic::transport::Server::builder()
            .add_service(LogsServiceServer::new(desk))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
        tokio::spawn(serving);
        collector
    }

    fn over_http(listener: TcpListener, authorization: &'static str) -> Self {
        let (collector, desk) = Self::new(authorization);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let desk = desk.clone();
                let service = hyper::service::service_fn(
                    move |request: http::Request<hyper::body::Incoming>| {
                        let desk = desk.clone();
                        async move { Ok::<_, Infallible>(over_http(&desk, request).await) }
                    },
                );
                let http1 = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http1.serve_connection(TokioIo::new(stream), service));
            }
        });
        collector
    }

    /// Sets the replies to the next messages.
    fn answers(&self, answers: impl IntoIterator<Item = Answer>) {
        self.answers.lock().unwrap().extend(answers);
    }

    /// Waits for the next `count` records.
    async fn records(&mut self, count: usize) -> Vec<Arrived> {
        let mut all = Vec::new();
        while all.len() < count {
            let next = tokio::time::timeout(PATIENCE, self.taken.recv()).await;
            for of_resource in next.expect("records arrive").unwrap().resource_logs {
                let resource = attributes(of_resource.resource.unwrap().attributes);
                for record in of_resource
                    .scope_logs
                    .into_iter()
                    .flat_map(|it| it.log_records)
                {
                    all.push(Arrived {
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
    desk: &Desk,
    request: http::Request<hyper::body::Incoming>,
) -> http::Response<Full<prost::bytes::Bytes>> {
    assert_eq!(request.uri().path(), "/v1/logs");
    let kind = request.headers().get("content-type");
    assert_eq!(kind.unwrap(), "application/x-protobuf");
    let shown = request.headers().get("authorization").cloned();
    let shown = shown.as_ref().map_or(&b""[..], |shown| shown.as_bytes());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut response = http::Response::<Full<prost::bytes::Bytes>>::default();
    match desk.take(shown, ExportLogsServiceRequest::decode(body).unwrap()) {
        Ok(answer) => *response.body_mut() = Full::from(answer.encode_to_vec()),
        Err(Answer::Http(status)) => {
            *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
        }
        Err(Answer::Grpc(_) | Answer::Partly(_)) => panic!("no answer over HTTP"),
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
    let mut command = serving(policies.path(), arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OTEL_") {
            command.env_remove(name);
        }
    }
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
        for (arrived, answer) in records.iter().zip([&first, &second]) {
            assert_eq!(arrived.line["id"], answer.decision_id.as_str());
            assert_eq!(
                arrived.attributes["cedar_pdp.decision_id"],
                answer.decision_id
            );
            assert_eq!(arrived.attributes["cedar_pdp.revision"], answer.revision);
            assert_eq!(arrived.record.event_name, "cedar_pdp.decision");
            assert!(arrived.record.time_unix_nano > 0);
            assert_eq!(arrived.resource["service.name"], "pdp-of-orders");
        }
        let [allow, deny, refused] = records.as_slice() else {
            panic!("{records:?}");
        };
        assert_eq!(allow.attributes["cedar_pdp.decision"], "ALLOW");
        assert_eq!(allow.record.trace_id[..2], [0x4b, 0xf9]);
        assert_eq!(deny.attributes["cedar_pdp.decision"], "DENY");
        assert_eq!(deny.record.trace_id, [] as [u8; 0]);
        assert_eq!(refused.attributes["cedar_pdp.refused"], "INVALID_REQUEST");
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
        .map(|arrived| arrived.line["id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 1_000);
    server.wait_for_log("the decision log is written again");
    let told = server.log();
    let warnings = told.matches("cannot write the decision log").count();
    assert_eq!(warnings, 1, "{told}");
}

/// A service that exports its decision log to a collector.
struct Sending {
    server: Server,
    admin: String,
    collector: Collector,
    _policies: TempDir,
}

/// Starts a service that exports over `protocol`. Its calls wait when the log is full.
async fn with_collector(protocol: &str) -> Sending {
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
    Sending {
        admin: server.admin(),
        server,
        collector,
        _policies: policies,
    }
}

impl Sending {
    /// Waits until the metrics page counts this number of records with this `result`.
    async fn has_records(&self, result: &str, count: u64) {
        let line = format!(r#"cedar_pdp_decision_log_records_total{{result="{result}"}} {count}"#);
        let is_there = async || self.page().lines().any(|it| it == line);
        self.server.eventually(&line, is_there).await;
    }

    fn page(&self) -> String {
        get(&self.admin, "/metrics")
    }

    /// Makes one call; returns the id of its decision.
    async fn asked(&self) -> String {
        let mut client = self.server.authorization().await;
        let answer = client.authorize(allowed()).await.unwrap();
        answer.into_inner().decision_id
    }

    /// Returns the id in the next received record.
    async fn arrived(&mut self) -> String {
        let [record] = &self.collector.records(1).await[..] else {
            panic!("one record");
        };
        record.line["id"].as_str().unwrap().to_owned()
    }
}

fn grpc(code: Code) -> Answer {
    Answer::Grpc(Box::new(Status::new(code, "says the collector")))
}

#[tokio::test(flavor = "multi_thread")]
async fn permanently_rejected_records_are_dropped() {
    // Later records are sent.
    for (protocol, refusals) in [
        (
            "grpc",
            // Without retry information, RESOURCE_EXHAUSTED is permanent.
            [grpc(Code::InvalidArgument), grpc(Code::ResourceExhausted)],
        ),
        ("http/protobuf", [Answer::Http(400), Answer::Http(413)]),
    ] {
        let mut sending = with_collector(protocol).await;
        sending.collector.answers(refusals.clone());
        for count in 1..=2 {
            sending.asked().await;
            sending.has_records("refused", count).await;
        }
        let id = sending.asked().await;
        assert_eq!(sending.arrived().await, id);
        sending
            .server
            .wait_for_log("the decision log is written again");
        let told = sending.server.log();
        let warnings = told.matches("rejected records permanently").count();
        assert_eq!(warnings, 1, "{told}");
        sending.has_records("written", 1).await;
        sending.has_records("dropped", 0).await;

        // A new series of rejections is logged again.
        sending.collector.answers([refusals[0].clone()]);
        sending.asked().await;
        sending.has_records("refused", 3).await;
        // The counter changes before the log line is written.
        let warnings = || {
            let told = sending.server.log();
            told.matches("rejected records permanently").count()
        };
        sending
            .server
            .eventually("a second warning", async || warnings() >= 2)
            .await;
        assert_eq!(warnings(), 2);
        let told = sending.server.log();
        assert!(!told.contains("cannot write"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn temporarily_rejected_records_are_sent_again() {
    let soon = ErrorDetails::with_retry_info(Some(Duration::from_millis(1)));
    let full = Status::with_error_details(Code::ResourceExhausted, "full", soon);
    for (protocol, refusals) in [
        (
            "grpc",
            vec![
                grpc(Code::Unavailable),
                grpc(Code::Unauthenticated),
                Answer::Grpc(Box::new(full)),
            ],
        ),
        ("http/protobuf", [503, 429, 404].map(Answer::Http).into()),
    ] {
        let mut sending = with_collector(protocol).await;
        sending.collector.answers(refusals);
        let id = sending.asked().await;
        assert_eq!(sending.arrived().await, id);
        sending.has_records("written", 1).await;
        sending.has_records("refused", 0).await;
        let page = sending.page();
        let failed = "cedar_pdp_decision_log_write_failures_total 3";
        assert!(page.lines().any(|line| line == failed), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partial_success_counts_as_refused() {
    for protocol in ["grpc", "http/protobuf"] {
        let mut sending = with_collector(protocol).await;
        sending.collector.answers([Answer::Partly(1)]);
        let id = sending.asked().await;
        assert_eq!(sending.arrived().await, id);
        sending.has_records("refused", 1).await;
        sending.has_records("written", 0).await;
        sending.server.wait_for_log("some are too old");
    }
}
