//! Traces of the running server: exported spans, and faulty collectors, which do no harm.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use crate::support::{
    Server, TIME_LIMIT, eventually, policy_directory, remove_variables, request, serve_command,
};
use cedar_pdp::api::grpc::pb;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tonic::metadata::MetadataMap;
use tonic::transport::{Identity, ServerTlsConfig};
use tonic::{Request, Response, Status};

const USERS_READ: &str = r#"
permit(principal is User, action == Action::"read", resource);
"#;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// A received span with its resource's attributes.
#[derive(Debug)]
struct ReceivedSpan {
    trace: String,
    parent: String,
    name: String,
    kind: i32,
    state: String,
    is_error: bool,
    takes_time: bool,
    attributes: BTreeMap<String, String>,
    resource: BTreeMap<String, String>,
}

/// A collector that keeps what it receives.
struct Collector {
    endpoint: String,
    requests: mpsc::UnboundedReceiver<(ExportTraceServiceRequest, String)>,
    received: Vec<ReceivedSpan>,
    authorization: String,
}

/// A certificate and its key.
type Certificate = rcgen::CertifiedKey<rcgen::KeyPair>;

fn certificate() -> Certificate {
    rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap()
}

fn acceptor(certificate: &Certificate) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = certificate.signing_key.serialize_der();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.cert.der().clone()],
            PrivatePkcs8KeyDer::from(key).into(),
        )
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

struct OverGrpc(mpsc::UnboundedSender<(ExportTraceServiceRequest, String)>);

#[tonic::async_trait]
impl TraceService for OverGrpc {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (headers, _, request) = request.into_parts();
        let authorization = text_of(&headers);
        let _ = self.0.send((request, authorization));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text_of(headers: &MetadataMap) -> String {
    let value = headers.get("authorization");
    value.map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
}

impl Collector {
    async fn over_grpc() -> Self {
        Self::over_grpc_with(None).await
    }

    /// Starts a gRPC collector; with a certificate it uses TLS.
    async fn over_grpc_with(tls: Option<&Certificate>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = format!("{scheme}://{}", listener.local_addr().unwrap());
        let (received, requests) = mpsc::unbounded_channel();
        let mut server = tonic::transport::Server::builder();
        if let Some(tls) = tls {
            let identity = Identity::from_pem(tls.cert.pem(), tls.signing_key.serialize_pem());
            let config = ServerTlsConfig::new().identity(identity);
            server = server.tls_config(config).unwrap();
        }
        let server_task = server
            .add_service(TraceServiceServer::new(OverGrpc(received)))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
        tokio::spawn(server_task);
        Self::at(endpoint, requests)
    }

    async fn over_http() -> Self {
        Self::over_http_with(None).await
    }

    async fn over_http_with(tls: Option<&Certificate>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = format!("{scheme}://{}", listener.local_addr().unwrap());
        let (received, requests) = mpsc::unbounded_channel();
        let tls = tls.map(acceptor);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let received = received.clone();
                let service = hyper::service::service_fn(
                    move |request: http::Request<hyper::body::Incoming>| {
                        let received = received.clone();
                        async move {
                            assert_eq!(request.uri().path(), "/v1/traces");
                            let authorization = request.headers().get("authorization");
                            let authorization =
                                authorization.map_or("", |value| value.to_str().unwrap());
                            let authorization = authorization.to_owned();
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let request = ExportTraceServiceRequest::decode(body).unwrap();
                            let _ = received.send((request, authorization));
                            let answer = Full::new(prost::bytes::Bytes::new());
                            Ok::<_, Infallible>(http::Response::new(answer))
                        }
                    },
                );
                let tls = tls.clone();
                tokio::spawn(async move {
                    let http1 = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => {
                            let stream = TokioIo::new(stream);
                            let _ = http1.serve_connection(stream, service).await;
                        }
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                let stream = TokioIo::new(stream);
                                let _ = http1.serve_connection(stream, service).await;
                            }
                        }
                    }
                });
            }
        });
        Self::at(endpoint, requests)
    }

    fn at(
        endpoint: String,
        requests: mpsc::UnboundedReceiver<(ExportTraceServiceRequest, String)>,
    ) -> Self {
        Self {
            endpoint,
            requests,
            received: Vec::new(),
            authorization: String::new(),
        }
    }

    /// Waits until this number of spans has arrived.
    async fn has(&mut self, spans: usize) -> &[ReceivedSpan] {
        while self.received.len() < spans {
            let next = tokio::time::timeout(TIME_LIMIT, self.requests.recv()).await;
            let (request, authorization) = next.expect("spans arrive").unwrap();
            self.authorization = authorization;
            self.take(request);
        }
        &self.received
    }

    fn take(&mut self, request: ExportTraceServiceRequest) {
        for of_resource in request.resource_spans {
            let resource = attributes(of_resource.resource.unwrap().attributes);
            for span in of_resource.scope_spans.into_iter().flat_map(|it| it.spans) {
                self.received.push(ReceivedSpan {
                    trace: hex(&span.trace_id),
                    parent: hex(&span.parent_span_id),
                    name: span.name,
                    kind: span.kind,
                    state: span.trace_state,
                    is_error: span
                        .status
                        .is_some_and(|status| status.code() == StatusCode::Error),
                    takes_time: span.end_time_unix_nano > span.start_time_unix_nano,
                    attributes: attributes(span.attributes),
                    resource: resource.clone(),
                });
            }
        }
    }
}

fn attributes(all: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Value| match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other @ (Value::BoolValue(_)
        | Value::DoubleValue(_)
        | Value::ArrayValue(_)
        | Value::KvlistValue(_)
        | Value::BytesValue(_)
        | Value::StringValueStrindex(_)) => panic!("no attribute is {other:?}"),
    };
    all.into_iter()
        .map(|it| (it.key, text(it.value.unwrap().value.unwrap())))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Starts a server with these variables and a short export interval.
fn start(variables: &[(&str, &str)], arguments: &[&str]) -> (tempfile::TempDir, Server) {
    let directory = policy_directory(&[("a.cedar", USERS_READ)]);
    let mut command = serve_command(directory.path(), arguments);
    remove_variables(&mut command, "OTEL_");
    command
        .env("OTEL_BSP_SCHEDULE_DELAY", "20")
        .envs(variables.iter().copied());
    let server = Server::spawn(command, 1);
    (directory, server)
}

fn read_request(user: &str) -> pb::AuthorizeRequest {
    request(
        &format!(r#"User::"{user}""#),
        r#"Action::"read""#,
        r#"Doc::"secret-plan""#,
    )
}

/// Adds the headers of a trace to `message`.
fn traced<T>(message: T, flags: &str) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{TRACE}-{SPAN}-{flags}");
    let headers = request.metadata_mut();
    headers.insert("traceparent", parent.parse().unwrap());
    headers.insert("tracestate", "vendor=x".parse().unwrap());
    request
}

fn has(span: &ReceivedSpan, wanted: &[(&str, &str)]) {
    for (name, value) in wanted {
        let found = span.attributes.get(*name).map(String::as_str);
        assert_eq!(found, Some(*value), "{name} of {span:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_export_continues_the_callers_trace() {
    let mut collector = Collector::over_grpc().await;
    let (_directory, server) = start(
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x"),
            ("OTEL_SERVICE_NAME", "pdp-of-orders"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "deployment.environment.name=test",
            ),
        ],
        &[],
    );
    let mut client = server.authorization().await;
    client
        .authorize(traced(read_request("ann"), "01"))
        .await
        .unwrap();
    client
        .authorize(traced(read_request("ann"), "01"))
        .await
        .unwrap();
    let bad = pb::AuthorizeRequest::default();
    client.authorize(traced(bad, "01")).await.unwrap_err();
    let requests = vec![
        read_request("ann"),
        request(r#"User::"ann""#, r#"Action::"write""#, r#"Doc::"1""#),
        pb::AuthorizeRequest::default(),
    ];
    let batch = pb::BatchAuthorizeRequest { requests };
    client.batch_authorize(traced(batch, "01")).await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(server.channel().await);
    let check = tonic_health::pb::HealthCheckRequest::default();
    health.check(traced(check, "01")).await.unwrap();

    let revision = crate::support::revision(&[("a.cedar", USERS_READ)]);
    let spans = collector.has(4).await;
    assert_eq!(spans.len(), 4, "a health check is not traced");
    for span in spans {
        assert_eq!((&*span.trace, &*span.parent), (TRACE, SPAN));
        assert_eq!(
            (span.kind, &*span.state),
            (SpanKind::Server as i32, "vendor=x")
        );
        assert!(!span.is_error && span.takes_time, "{span:?}");
        assert_eq!(span.resource["service.name"], "pdp-of-orders");
        assert_eq!(span.resource["deployment.environment.name"], "test");
        assert_eq!(span.resource["service.version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(span.attributes["rpc.system.name"], "grpc");
        let all = format!("{span:?}");
        assert!(
            !all.contains("ann") && !all.contains("secret-plan"),
            "{all}"
        );
    }
    let [first, second, rejected, batch] = spans else {
        panic!("four spans")
    };
    assert_eq!(first.name, "pdp.v1.AuthorizationService/Authorize");
    has(
        first,
        &[
            ("rpc.method", "pdp.v1.AuthorizationService/Authorize"),
            ("rpc.response.status_code", "OK"),
            ("cedar_pdp.allowed", "1"),
            ("cedar_pdp.principal.type", "User"),
            ("cedar_pdp.action", r#"Action::"read""#),
            ("cedar_pdp.resource.type", "Doc"),
            ("cedar_pdp.revision", &revision),
        ],
    );
    assert!(!first.attributes.contains_key("cedar_pdp.remembered"));
    has(
        second,
        &[("cedar_pdp.allowed", "1"), ("cedar_pdp.remembered", "1")],
    );
    has(
        rejected,
        &[
            ("rpc.response.status_code", "INVALID_ARGUMENT"),
            ("cedar_pdp.refused", "1"),
        ],
    );
    has(
        batch,
        &[
            ("rpc.method", "pdp.v1.AuthorizationService/BatchAuthorize"),
            ("cedar_pdp.allowed", "1"),
            ("cedar_pdp.denied", "1"),
            ("cedar_pdp.remembered", "1"),
            ("cedar_pdp.refused", "1"),
        ],
    );
    assert!(!batch.attributes.contains_key("cedar_pdp.action"));
    assert_eq!(collector.authorization, "Bearer x");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_export_flushes_at_shutdown() {
    let mut collector = Collector::over_http().await;
    let (_directory, mut server) = start(
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x"),
            ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
        ],
        &[],
    );
    let mut client = server.authorization().await;
    client.authorize(read_request("ann")).await.unwrap();
    client
        .authorize(traced(read_request("ann"), "01"))
        .await
        .unwrap();
    drop(client);
    server.signal("TERM");
    assert!(server.wait().success());
    let spans = collector.has(2).await;
    let [root, child] = spans else {
        panic!("two spans")
    };
    assert_eq!((&*root.parent, root.trace.len()), ("", 32));
    assert_eq!((&*child.trace, &*child.parent), (TRACE, SPAN));
    assert_eq!(collector.authorization, "Bearer x");
}

#[tokio::test(flavor = "multi_thread")]
async fn decision_log_has_the_trace_id() {
    // A call without a parent trace has one too.
    let mut collector = Collector::over_grpc().await;
    let place = tempfile::tempdir().unwrap();
    let log = place.path().join("decisions");
    let (_directory, mut server) = start(
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ],
        &[
            "--decision-log",
            &format!("file:{}", log.display()),
            "--decision-log-allow-sample",
            "1",
        ],
    );
    let mut client = server.authorization().await;
    client.authorize(read_request("ann")).await.unwrap();
    drop(client);
    server.signal("TERM");
    assert!(server.wait().success());
    let trace = collector.has(1).await[0].trace.clone();
    let logged = std::fs::read_to_string(log).unwrap();
    let record: serde_json::Value = serde_json::from_str(logged.trim()).unwrap();
    assert_eq!(record["trace_id"], trace);
}

#[tokio::test(flavor = "multi_thread")]
async fn collector_certificate_is_verified() {
    let (good, other) = (certificate(), certificate());
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("ca.pem");
    for protocol in ["grpc", "http/protobuf"] {
        let mut collector = match protocol {
            "grpc" => Collector::over_grpc_with(Some(&good)).await,
            _ => Collector::over_http_with(Some(&good)).await,
        };
        for authority in [&other, &good] {
            std::fs::write(&file, authority.cert.pem()).unwrap();
            let (_directory, server) = start(
                &[
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint),
                    ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                    ("OTEL_EXPORTER_OTLP_CERTIFICATE", file.to_str().unwrap()),
                    ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000"),
                ],
                &[],
            );
            let mut client = server.authorization().await;
            client.authorize(read_request("ann")).await.unwrap();
            if std::ptr::eq(authority, &other) {
                server.wait_for_log("cannot send spans");
                assert!(collector.requests.try_recv().is_err());
            } else {
                assert_eq!(collector.has(1).await.len(), 1);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unsampled_spans_are_not_sent() {
    for (sampler, ratio, sent) in [
        ("parentbased_always_on", "", &["child", "root"][..]),
        ("parentbased_always_off", "", &["child"]),
        ("parentbased_traceidratio", "0", &["child"]),
        ("always_on", "", &["child", "child", "root"]),
        ("always_off", "", &[]),
    ] {
        let mut collector = Collector::over_grpc().await;
        let (_directory, mut server) = start(
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
                ("OTEL_TRACES_SAMPLER", sampler),
                ("OTEL_TRACES_SAMPLER_ARG", ratio),
            ],
            &[],
        );
        let mut client = server.authorization().await;
        client
            .authorize(traced(read_request("ann"), "00"))
            .await
            .unwrap();
        client
            .authorize(traced(read_request("ann"), "01"))
            .await
            .unwrap();
        client.authorize(read_request("ann")).await.unwrap();
        drop(client);
        server.signal("TERM");
        assert!(server.wait().success());
        while let Ok((request, _)) = collector.requests.try_recv() {
            collector.take(request);
        }
        let kind = |span: &ReceivedSpan| match span.parent.is_empty() {
            true => "root",
            false => "child",
        };
        let received: Vec<_> = collector.received.iter().map(kind).collect();
        assert_eq!(received, sent, "{sampler}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_collector_does_no_harm() {
    // A collector that accepts connections and never answers is harmless too.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_endpoint = format!("http://{}", silent.local_addr().unwrap());
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed_endpoint = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    for protocol in ["grpc", "http/protobuf"] {
        for endpoint in [&silent_endpoint, &closed_endpoint] {
            let (_directory, mut server) = start(
                &[
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
                    ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                    ("OTEL_EXPORTER_OTLP_TIMEOUT", "200"),
                    ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
                ],
                &["--admin-listen", "127.0.0.1:0"],
            );
            let mut client = server.authorization().await;
            for n in 0..200 {
                let user = format!("u{n}");
                client.authorize(read_request(&user)).await.unwrap();
            }
            server.wait_for_log("cannot send spans");
            let admin = server.admin();
            let spans_total = |spans_total: &str| {
                let page = crate::support::get(&admin, "/metrics");
                let name = format!(r#"cedar_pdp_spans_total{{result="{spans_total}"}} "#);
                let line = page.lines().find_map(|line| line.strip_prefix(&name));
                line.unwrap().parse::<u64>().unwrap()
            };
            eventually("a failed span is counted", async || {
                spans_total("failed") != 0
            })
            .await;
            assert_eq!(spans_total("sent"), 0);
            if endpoint == &silent_endpoint {
                assert!(spans_total("dropped") > 0, "the queue holds 10 spans");
            }
            client.authorize(read_request("ann")).await.unwrap();
            drop(client);
            server.signal("TERM");
            assert!(server.wait().success(), "{}", server.log());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_otel_variables_do_not_prevent_startup() {
    for (name, text, message) in [
        (
            "OTEL_TRACES_SAMPLER",
            "mine",
            "OTEL_TRACES_SAMPLER is `mine`",
        ),
        (
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
            "/no/such/file",
            "calls are not traced",
        ),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "no url",
            "calls are not traced",
        ),
    ] {
        let endpoint = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1");
        let variables = [endpoint, (name, text)];
        let skip = usize::from(name == "OTEL_EXPORTER_OTLP_ENDPOINT");
        let (_directory, server) = start(&variables[skip..], &[]);
        server.wait_for_log(message);
        let mut client = server.authorization().await;
        client.authorize(read_request("ann")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_variables_nothing_is_traced() {
    let mut collector = Collector::over_grpc().await;
    let (_directory, mut server) = start(
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_SDK_DISABLED", "true"),
        ],
        &[],
    );
    let mut client = server.authorization().await;
    client
        .authorize(traced(read_request("ann"), "01"))
        .await
        .unwrap();
    drop(client);
    server.signal("TERM");
    assert!(server.wait().success());
    assert!(collector.requests.try_recv().is_err());
    assert!(!server.log().contains("traced"), "{}", server.log());
}
