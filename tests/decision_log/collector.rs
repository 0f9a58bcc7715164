//! Decisions that go to a collector, as OTLP log records.

use std::collections::BTreeMap;
use std::convert::Infallible;

use cedar_pdp::api::pb;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message as _;
use serde_json::Value as Json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::house::{POLICIES, allowed, denied};
use crate::support::{PATIENCE, Server, command, policy_directory};

/// A collector that a test looks into.
struct Collector(mpsc::UnboundedReceiver<ExportLogsServiceRequest>);

struct OverGrpc(mpsc::UnboundedSender<ExportLogsServiceRequest>);

#[tonic::async_trait]
impl LogsService for OverGrpc {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

/// A record as it arrived.
#[derive(Debug)]
struct Arrived {
    line: Json,
    record: LogRecord,
    attributes: BTreeMap<String, String>,
    resource: BTreeMap<String, String>,
}

impl Collector {
    fn over_grpc(listener: TcpListener) -> Self {
        let (arrived, requests) = mpsc::unbounded_channel();
        let serving = tonic::transport::Server::builder()
            .add_service(LogsServiceServer::new(OverGrpc(arrived)))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
        tokio::spawn(serving);
        Self(requests)
    }

    fn over_http(listener: TcpListener) -> Self {
        let (arrived, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let arrived = arrived.clone();
                let service = hyper::service::service_fn(
                    move |request: http::Request<hyper::body::Incoming>| {
                        let arrived = arrived.clone();
                        async move {
                            assert_eq!(request.uri().path(), "/v1/logs");
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let _ = arrived.send(ExportLogsServiceRequest::decode(body).unwrap());
                            let answer = Full::new(prost::bytes::Bytes::new());
                            Ok::<_, Infallible>(http::Response::new(answer))
                        }
                    },
                );
                let http1 = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http1.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self(requests)
    }

    /// The first so many records, once they have arrived.
    async fn records(&mut self, count: usize) -> Vec<Arrived> {
        let mut all = Vec::new();
        while all.len() < count {
            let next = tokio::time::timeout(PATIENCE, self.0.recv()).await;
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
    let mut command = command();
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OTEL_") {
            command.env_remove(name);
        }
    }
    command
        .envs(variables.iter().copied())
        .args(["serve", "--listen", "127.0.0.1:0", "--policies"])
        .arg(policies.path())
        .args(["--decision-log", "otlp", "--decision-log-allow-sample", "1"])
        .args(arguments);
    let server = Server::spawn(command, 1);
    (policies, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_a_log_record_whose_body_is_the_line() {
    for protocol in ["grpc", "http/protobuf"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let mut collector = match protocol {
            "grpc" => Collector::over_grpc(listener),
            _ => Collector::over_http(listener),
        };
        let (_policies, mut server) = start(
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
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
        // What waits is sent before the end.
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
async fn a_collector_that_is_down_holds_nobody_up_and_has_it_all_when_it_is_back() {
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
    let mut collector = Collector::over_grpc(TcpListener::bind(address).await.unwrap());
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
