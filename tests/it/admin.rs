//! The admin server: metrics, readiness, status, and the log filter.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{Server, TIME_LIMIT, command, eventually, policy_directory, request};
use cedar_pdp::api::admin::metrics::{MAX_SERIES, METRICS};
use cedar_pdp::api::grpc::pb;

const USERS_READ: &str = r#"
permit(principal is User, action == Action::"read", resource);
"#;

/// An HTTP response.
#[derive(Debug)]
struct HttpResponse {
    status: u16,
    head: String,
    body: String,
}

/// Sends one request over its own connection.
fn send(
    stream: impl std::io::Read + std::io::Write,
    method: &str,
    path: &str,
    rest: &str,
) -> HttpResponse {
    let mut stream = stream;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{rest}"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    HttpResponse {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIME_LIMIT)).unwrap();
    stream
}

fn get(address: &str, path: &str) -> HttpResponse {
    send(connect(address), "GET", path, "\r\n")
}

fn put(address: &str, path: &str, fields: &str, body: &str) -> HttpResponse {
    let rest = format!("{fields}Content-Length: {}\r\n\r\n{body}", body.len());
    send(connect(address), "PUT", path, &rest)
}

fn start(arguments: &[&str]) -> (tempfile::TempDir, Server, String) {
    let directory = policy_directory(&[("a.cedar", USERS_READ)]);
    let mut all = vec!["--admin-listen", "127.0.0.1:0"];
    all.extend(arguments);
    let server = Server::start(directory.path(), &all);
    let admin = server.admin();
    (directory, server, admin)
}

/// Returns the value of a series on the metrics page.
fn value(page: &str, series: &str) -> f64 {
    page.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
        .unwrap_or_else(|| panic!("`{series}` is not on the page:\n{page}"))
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_page_counts_calls_and_decisions() {
    let (_directory, server, admin) = start(&["--max-batch-items", "3"]);
    let mut client = server.authorization().await;
    let read = request(r#"User::"ann""#, r#"Action::"read""#, r#"Doc::"1""#);
    let write = request(r#"User::"ann""#, r#"Action::"write""#, r#"Doc::"1""#);
    for asked in [&read, &read, &write] {
        client.authorize((*asked).clone()).await.unwrap();
    }
    let batch = pb::BatchAuthorizeRequest {
        requests: vec![read.clone(), write, pb::AuthorizeRequest::default()],
    };
    client.batch_authorize(batch).await.unwrap();
    let batch = pb::BatchAuthorizeRequest {
        requests: vec![read.clone(); 4],
    };
    client.batch_authorize(batch).await.unwrap_err();
    client
        .authorize(pb::AuthorizeRequest::default())
        .await
        .unwrap_err();
    let (items, sent) = tokio::sync::mpsc::channel(1);
    let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
    let mut answers = client.stream_authorize(sent).await.unwrap().into_inner();
    let item = pb::StreamAuthorizeRequest {
        correlation_id: 1,
        request: Some(read),
    };
    items.send(item).await.unwrap();
    answers.message().await.unwrap().unwrap();
    drop(items);
    assert_eq!(answers.message().await.unwrap(), None);

    let page = get(&admin, "/metrics");
    assert_eq!(page.status, 200);
    assert!(
        page.head
            .contains("content-type: text/plain; version=0.0.4"),
        "{}",
        page.head
    );
    let method = "pdp.v1.AuthorizationService";
    let wanted = [
        (
            r#"decisions_total{decision="allow",source="decided"}"#.to_owned(),
            1.0,
        ),
        (
            r#"decisions_total{decision="allow",source="cache"}"#.to_owned(),
            3.0,
        ),
        (
            r#"decisions_total{decision="deny",source="decided"}"#.to_owned(),
            1.0,
        ),
        (
            r#"decisions_total{decision="deny",source="cache"}"#.to_owned(),
            1.0,
        ),
        (
            r#"decision_duration_seconds_count{source="cache"}"#.to_owned(),
            4.0,
        ),
        (
            r#"decision_duration_seconds_count{source="decided"}"#.to_owned(),
            2.0,
        ),
        ("decision_candidates_sum".to_owned(), 1.0),
        ("decision_candidates_count".to_owned(), 2.0),
        (
            r#"requests_refused_total{reason="invalid"}"#.to_owned(),
            2.0,
        ),
        (
            r#"requests_refused_total{reason="too_many"}"#.to_owned(),
            1.0,
        ),
        (
            format!(r#"grpc_calls_total{{method="{method}/Authorize",code="OK"}}"#),
            3.0,
        ),
        (
            format!(r#"grpc_calls_total{{method="{method}/Authorize",code="INVALID_ARGUMENT"}}"#),
            1.0,
        ),
        (
            format!(r#"grpc_calls_total{{method="{method}/BatchAuthorize",code="OK"}}"#),
            1.0,
        ),
        (
            format!(r#"grpc_calls_total{{method="{method}/StreamAuthorize",code="OK"}}"#),
            1.0,
        ),
        (
            format!(r#"grpc_call_duration_seconds_count{{method="{method}/Authorize"}}"#),
            4.0,
        ),
        (r#"connections_total{transport="tcp"}"#.to_owned(), 1.0),
        (r#"reloads_total{result="reloaded"}"#.to_owned(), 1.0),
        ("policies".to_owned(), 1.0),
        ("ready".to_owned(), 1.0),
        ("cache_hits_total".to_owned(), 4.0),
        ("cache_misses_total".to_owned(), 2.0),
        ("cache_entries".to_owned(), 2.0),
    ];
    // A call is counted when it ends, which may be shortly after the client has the answer.
    let started = std::time::Instant::now();
    loop {
        let page = get(&admin, "/metrics").body;
        let of = |series: &str| value(&page, &format!("cedar_pdp_{series}"));
        let other = wanted.iter().find(|(series, wanted)| of(series) != *wanted);
        let Some((series, wanted)) = other else {
            return;
        };
        assert!(
            started.elapsed() < TIME_LIMIT,
            "{series} is not {wanted}:\n{page}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_page_shows_only_enabled_features() {
    let (_directory, _server, admin) = start(&[]);
    let page = crate::support::get(&admin, "/metrics");
    for off in [
        "cedar_pdp_tls_",
        "cedar_pdp_caller_",
        "cedar_pdp_token",
        "cedar_pdp_issuer",
    ] {
        assert!(!page.contains(off), "{off}:\n{page}");
    }

    let place = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let pair = rcgen::generate_simple_self_signed(vec!["pdp".to_owned()]).unwrap();
    file("secret", &"s".repeat(32));
    let issuers = "[[issuer]]\nissuer = 'https://issuer'\naudiences = ['pdp']\n\
                   algorithms = ['HS256']\nsecret_file = 'secret'\n\
                   [issuer.principal]\ntype = 'User'\nstored = 'replace'\n";
    let list = format!(
        "[[caller]]\nname = 'self'\nuid = [{}]\nrights = ['authorize']\n",
        rustix::process::getuid().as_raw()
    );
    let list = file("callers.toml", &list);
    let socket = format!("unix:{}", place.path().join("pdp.sock").display());
    let directory = policy_directory(&[("a.cedar", USERS_READ)]);
    let server = Server::start_listening(
        directory.path(),
        &["127.0.0.1:0", &socket],
        &[
            "--admin-listen=127.0.0.1:0",
            "--tls-cert",
            &file("tls.crt", &pair.cert.pem()),
            "--tls-key",
            &file("tls.key", &pair.signing_key.serialize_pem()),
            "--tokens",
            &file("issuers.toml", issuers),
            "--callers",
            &list,
            "--decision-log",
            &format!("file:{}", place.path().join("log").display()),
        ],
    );
    // An invalid list is rejected and logged.
    std::fs::write(&list, "nonsense").unwrap();
    server.wait_for_log("new list of callers rejected");
    let channel = crate::support::channel(&socket).await;
    let mut client = pb::authorization_service_client::AuthorizationServiceClient::new(channel);
    let token = pb::AuthorizeRequest {
        identity: Some(pb::authorize_request::Identity::PrincipalToken(
            "x".to_owned(),
        )),
        ..request(r#"User::"ann""#, r#"Action::"read""#, r#"Doc::"1""#)
    };
    client.authorize(token).await.unwrap_err();
    let admin = server.admin();
    let page = crate::support::get(&admin, "/metrics");
    let of = |series: &str| value(&page, &format!("cedar_pdp_{series}"));
    assert_eq!(of(r#"tokens_refused_total{reason="TOKEN_MALFORMED"}"#), 1.0);
    assert_eq!(of(r#"tokens_refused_total{reason="TOKEN_EXPIRED"}"#), 0.0);
    assert_eq!(of("issuers_without_keys"), 0.0);
    assert_eq!(of(r#"tls_certificates_total{result="taken"}"#), 1.0);
    assert_eq!(of(r#"caller_lists_total{result="taken"}"#), 1.0);
    assert_eq!(of(r#"caller_lists_total{result="refused"}"#), 1.0);
    assert!(of("tls_certificate_expiry_timestamp_seconds") > 1.7e9);
    assert_eq!(of(r#"connections_total{transport="unix"}"#), 1.0);
    check_by_promtool(&page);
    let status: serde_json::Value =
        serde_json::from_str(&crate::support::get(&admin, "/status")).unwrap();
    assert_eq!(status["issuers"][0]["issuer"], "https://issuer");
    assert_eq!(status["issuers"][0]["keys"], 1);
    assert!(!status.to_string().contains("ssss"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_calls_and_unknown_methods_are_counted() {
    // A cancelled call counts as `cancelled`, an unknown method as `other`.
    let (_directory, server, admin) = start(&[]);
    let mut store = server.policy_store().await;
    let watch = store.watch_status(pb::WatchStatusRequest {}).await.unwrap();
    drop((watch, store));
    let wanted = [
        r#"cedar_pdp_grpc_calls_total{method="pdp.v1.PolicyStoreService/WatchStatus",code="CANCELLED"} 1"#,
        r#"cedar_pdp_grpc_calls_total{method="other",code="UNIMPLEMENTED"} 1"#,
    ];
    let mut unknown = tonic::client::Grpc::new(server.channel().await);
    unknown.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/no.Such/Method");
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let rejected = unknown.unary(tonic::Request::new(()), path, codec).await;
    assert_eq!(rejected.unwrap_err().code(), tonic::Code::Unimplemented);
    eventually("both calls are counted", async || {
        let page = get(&admin, "/metrics").body;
        wanted.iter().all(|line| page.lines().any(|it| it == *line))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_page_size_is_independent_of_principals() {
    let (_directory, server, admin) = start(&[]);
    let before = get(&admin, "/metrics").body;
    let mut client = server.authorization().await;
    for chunk in 0..10 {
        let ask = |n: u32| {
            let principal = format!(r#"User::"u{}""#, chunk * 1_000 + n);
            let resource = format!(r#"Doc::"{n}""#);
            request(&principal, r#"Action::"read""#, &resource)
        };
        let batch = pb::BatchAuthorizeRequest {
            requests: (0..1_000).map(ask).collect(),
        };
        client.batch_authorize(batch).await.unwrap();
    }
    let page = get(&admin, "/metrics").body;
    let series = |page: &str| {
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(
        value(
            &page,
            r#"cedar_pdp_decisions_total{decision="allow",source="decided"}"#
        ),
        10_000.0
    );
    assert_eq!(series(&page), series(&before));
    assert!(series(&page).len() <= MAX_SERIES);
    assert!(!page.contains("u1") && !page.contains("Doc"), "{page}");
}

/// Returns the command `promtool`, if it is installed. Debian's package `prometheus` contains it;
/// CI names it in `PROMTOOL`.
fn promtool() -> Option<Command> {
    let named = std::env::var_os("PROMTOOL");
    let command = || Command::new(named.clone().unwrap_or_else(|| "promtool".into()));
    let found = command()
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    assert!(found || named.is_none(), "promtool does not run");
    if !found {
        println!("skipped: there is no promtool here (Debian's package `prometheus` has it)");
    }
    found.then(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_wrong_with_the_page() {
    let (_directory, server, admin) = start(&[]);
    let mut client = server.authorization().await;
    let read = request(r#"User::"ann""#, r#"Action::"read""#, r#"Doc::"1""#);
    client.authorize(read).await.unwrap();
    let page = get(&admin, "/metrics").body;
    check_by_promtool(&page);
}

/// Checks `page` with promtool, if it is installed.
fn check_by_promtool(page: &str) {
    let Some(mut promtool) = promtool() else {
        return;
    };
    let mut checking = promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    checking
        .stdin
        .take()
        .unwrap()
        .write_all(page.as_bytes())
        .unwrap();
    let checked = checking.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&checked.stdout) + String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && text.is_empty(), "{text}");
}

#[test]
fn alerts_name_existing_metrics() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/alerts.yaml");
    let rules = std::fs::read_to_string(rules).unwrap();
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let mut named = 0;
    for word in words.filter(|word| word.starts_with("cedar_pdp_")) {
        let of_histogram = word.strip_suffix("_bucket").unwrap_or(word);
        let mut metrics = METRICS.iter().copied().flatten();
        let is_one = metrics.any(|metric| metric.name == of_histogram);
        assert!(is_one, "{word}");
        named += 1;
    }
    assert!(named > 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_requests_leave_capacity_for_calls() {
    // Many clients request the page continuously: calls are still answered, and the number of pages
    // per second is bounded.
    let (_directory, server, admin) = start(&[]);
    let started = std::time::Instant::now();
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..40)
        .map(|_| {
            let (admin, is_over) = (admin.clone(), Arc::clone(&is_over));
            std::thread::spawn(move || {
                let mut pages = 0;
                while !is_over.load(Ordering::Relaxed) {
                    assert_eq!(get(&admin, "/metrics").status, 200);
                    pages += 1;
                }
                pages
            })
        })
        .collect();
    let mut client = server.authorization().await;
    for n in 0..500 {
        let user = format!(r#"User::"u{n}""#);
        let read = request(&user, r#"Action::"read""#, r#"Doc::"1""#);
        client.authorize(read).await.unwrap();
    }
    while started.elapsed() < Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    is_over.store(true, Ordering::Relaxed);
    let pages: u128 = clients.into_iter().map(|it| it.join().unwrap()).sum();
    // One page per five milliseconds.
    assert!(pages <= started.elapsed().as_millis() / 5 + 2, "{pages}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_the_reason() {
    let directory = policy_directory(&[("a.cedar", "permit(")]);
    let arguments = ["--admin-listen", "127.0.0.1:0", "--start-unready"];
    let mut server = Server::start(directory.path(), &arguments);
    let admin = server.admin();
    let ready = get(&admin, "/readyz");
    assert_eq!(ready.status, 503);
    assert_eq!(ready.body, "not ready: no policies have been loaded yet\n");
    assert_eq!(get(&admin, "/livez").status, 200);
    let metrics = get(&admin, "/metrics").body;
    assert_eq!(value(&metrics, "cedar_pdp_ready"), 0.0);
    assert_eq!(value(&metrics, "cedar_pdp_store_refused"), 1.0);
    assert!(
        !metrics.contains("cedar_pdp_revision_age_seconds"),
        "there is no revision"
    );

    std::fs::write(directory.path().join("a.cedar"), USERS_READ).unwrap();
    crate::support::wait_for_status(&server, "the policies", |status| status.policies == 1).await;
    // The status changes before readiness.
    eventually("ready", async || get(&admin, "/readyz").body == "ready\n").await;

    // A call whose message never ends delays the shutdown.
    let channel = server.channel().await;
    let (started, has_started) = tokio::sync::oneshot::channel();
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    let _unfinished = tokio::spawn(async move {
        grpc.ready().await.unwrap();
        let message = futures_util::stream::once(async {
            started.send(()).unwrap();
            std::future::pending::<()>().await;
        });
        let path = http::uri::PathAndQuery::from_static("/pdp.v1.AuthorizationService/Authorize");
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let request = tonic::Request::new(message);
        grpc.client_streaming::<_, (), (), _>(request, path, codec)
            .await
            .map(drop)
    });
    has_started.await.unwrap();
    let mut client = pb::authorization_service_client::AuthorizationServiceClient::new(channel);
    let read = request(r#"User::"ann""#, r#"Action::"read""#, r#"Doc::"1""#);
    client.authorize(read).await.unwrap();
    server.signal("TERM");
    server.wait_for_log("draining");
    let draining = get(&admin, "/readyz");
    assert_eq!(draining.status, 503);
    assert_eq!(draining.body, "not ready: the service is shutting down\n");
    server.signal("TERM");
    server.wait();
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_policies_in_force_and_settings() {
    let (_directory, server, admin) = start(&["--max-batch-items", "77"]);
    let page = get(&admin, "/status");
    assert!(
        page.head.contains("content-type: application/json"),
        "{}",
        page.head
    );
    let status: serde_json::Value = serde_json::from_str(&page.body).unwrap();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["ready"], true);
    assert_eq!(status["not_ready"], serde_json::json!([]));
    assert_eq!(status["loaded"]["policies"], 1);
    assert_eq!(
        status["loaded"]["revision"],
        crate::support::revision(&[("a.cedar", USERS_READ)])
    );
    assert_eq!(status["refused"], serde_json::Value::Null);
    assert_eq!(status["reloads"]["reloaded"], 1);
    assert_eq!(status["settings"]["max_batch_items"], 77);
    assert_eq!(status["log"], "info");
    assert!(status["uptime_seconds"].is_u64());
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn log_filter_changes_at_run_time() {
    let (directory, server, admin) = start(&["--log", "off"]);
    assert_eq!(get(&admin, "/log").body, "off\n");
    let put_log = |filter: &str| put(&admin, "/log", "", filter);
    let changed = put_log("warn,cedar_pdp::policy_store=info\n");
    assert_eq!(
        (changed.status, &*changed.body),
        (200, "warn,cedar_pdp::policy_store=info\n")
    );
    std::fs::write(directory.path().join("b.cedar"), "// more\n").unwrap();
    server.wait_for_log("cedar_pdp::policy_store");

    let rejected = put_log("cedar_pdp=loud");
    assert_eq!(rejected.status, 400);
    assert!(
        rejected.body.contains("`cedar_pdp=loud`"),
        "{}",
        rejected.body
    );
    assert_eq!(put_log("").status, 400);
    assert_eq!(put_log(&"x".repeat(5_000)).status, 413);
    let by_a_web_page = put(&admin, "/log", "Origin: http://evil.example\r\n", "trace");
    assert_eq!(by_a_web_page.status, 403);
    for by_a_proxy in [
        "Forwarded: for=10.0.0.1",
        "X-Forwarded-For: 10.0.0.1",
        "Via: 1.1 x",
    ] {
        let fields = format!("{by_a_proxy}\r\n");
        assert_eq!(
            put(&admin, "/log", &fields, "trace").status,
            403,
            "{fields}"
        );
    }
    assert_eq!(
        get(&admin, "/log").body,
        "warn,cedar_pdp::policy_store=info\n"
    );
    // The last change is logged although it turns the log off.
    assert_eq!(put_log("off").status, 200);
    server.wait_for_log(r#"old="warn,cedar_pdp::policy_store=info" new="off""#);
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_host_name_changes_nothing() {
    // A browser that a foreign DNS name leads to this address must not change the log filter.
    let (_directory, _server, admin) = start(&[]);
    let mut stream = connect(&admin);
    let request = "PUT /log HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\
                   Content-Length: 3\r\n\r\noff";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(get(&admin, "/log").body, "info\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_local_requests_may_change_the_filter() {
    let directory = policy_directory(&[("a.cedar", USERS_READ)]);
    let server = Server::start(directory.path(), &["--admin-listen", "0.0.0.0:0"]);
    let admin = server.admin();
    let port = admin.rsplit_once(':').unwrap().1;
    assert_eq!(
        put(&format!("127.0.0.1:{port}"), "/log", "", "warn").status,
        200
    );
    // From this machine, but not from the loopback address: a service mesh forwards requests like
    // this.
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    let from: std::net::SocketAddrV4 = "127.0.0.6:0".parse().unwrap();
    rustix::net::bind(&socket, &from).unwrap();
    let to: std::net::SocketAddrV4 = format!("127.0.0.1:{port}").parse().unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    let rejected = send(
        TcpStream::from(socket),
        "PUT",
        "/log",
        "Content-Length: 5\r\n\r\ntrace",
    );
    assert_eq!(rejected.status, 403);
    assert_eq!(get(&format!("127.0.0.1:{port}"), "/log").body, "warn\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_server_may_use_a_unix_socket() {
    let directory = policy_directory(&[("a.cedar", USERS_READ)]);
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("admin.sock");
    let admin = format!("unix:{}", path.display());
    let server = Server::start(directory.path(), &["--admin-listen", &admin]);
    assert_eq!(server.admin(), admin);
    let page = send(UnixStream::connect(&path).unwrap(), "GET", "/livez", "\r\n");
    assert_eq!(page.status, 200);
}

#[test]
fn occupied_admin_address_error_names_the_key() {
    let directory = policy_directory(&[("a.cedar", USERS_READ)]);
    let holding = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let occupied = holding.local_addr().unwrap().to_string();
    let ended = command()
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            &occupied,
        ])
        .arg("--policies")
        .arg(directory.path())
        .output()
        .unwrap();
    drop(holding);
    let text = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{text}");
    assert!(text.contains("`admin_listen`: cannot listen on"), "{text}");
    assert!(text.contains("or `off`"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_admin_requests_are_rejected() {
    // The admin server keeps answering after each of them.
    let (_directory, _server, admin) = start(&[]);
    assert_eq!(get(&admin, "/nothing").status, 404);
    assert_eq!(
        send(connect(&admin), "POST", "/metrics", "\r\n").status,
        405
    );
    assert_eq!(send(connect(&admin), "DELETE", "/log", "\r\n").status, 405);
    let long = format!("X: {}\r\n\r\n", "x".repeat(20_000));
    assert_eq!(
        send_all(&admin, &format!("GET / HTTP/1.1\r\n{long}")),
        Some(431)
    );
    let many = "X: y\r\n".repeat(200);
    assert_eq!(
        send_all(&admin, &format!("GET / HTTP/1.1\r\n{many}\r\n")),
        Some(431)
    );
    assert_eq!(send_all(&admin, "no request\r\n\r\n"), Some(400));
    assert!(get(&admin, "/").body.contains("/metrics"));
}

/// Sends `text`; returns the HTTP status, or `None` if the connection ends without one.
fn send_all(admin: &str, text: &str) -> Option<u16> {
    let mut stream = connect(admin);
    // The server may close before it has read everything.
    let _ = stream.write_all(text.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.split(' ').nth(1)?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_block_no_request() {
    let (_directory, server, admin) = start(&[]);
    let idle: Vec<_> = (0..300).map(|_| connect(&admin)).collect();
    for mut half in idle.iter().take(50) {
        let _ = half.write_all(b"GET /metrics HT");
    }
    assert_eq!(get(&admin, "/livez").status, 200);
    let mut client = server.authorization().await;
    let read = request(r#"User::"ann""#, r#"Action::"read""#, r#"Doc::"1""#);
    client.authorize(read).await.unwrap();
    // The server keeps only a bounded number of connections.
    let fds = value(&get(&admin, "/metrics").body, "process_open_fds");
    assert!(fds < 150.0, "{fds}");
}
