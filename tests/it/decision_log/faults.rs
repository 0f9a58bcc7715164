//! The decision log under faults: full disk, missing directory, stalled reader, kill.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cedar_pdp::api::grpc::pb;
use prost::Message as _;
use serde_json::Value as Json;
use tokio::task::JoinSet;
use tonic::Code;

use super::setup::{LoggedService, POLICIES, allowed, lines, padded};
use crate::support::http2::{AUTHORIZE, Http2Client, Outcome};
use crate::support::{Server, TIME_LIMIT, eventually, policy_directory};

/// Clients that call without pause until they are rejected or stopped, and collect the decision
/// ids.
///
/// Each uses a single connection and does not reconnect, so the outcome of every call is known. A
/// lost call cannot be mistaken for one that may be retried.
/// taken for one that could not be sent again.
struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<BTreeSet<String>>,
}

impl Load {
    const CALLERS: usize = 8;

    /// Starts the clients. A call must end with an answer or a retryable rejection.
    async fn start(server: &Server) -> Self {
        Self::start_with(server, Outcome::is_retryable_rejection).await
    }

    /// Starts the clients. A call must end with an answer or an outcome accepted by `is_end`.
    async fn start_with(server: &Server, is_end: fn(&Outcome) -> bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for _ in 0..Self::CALLERS {
            let client = Http2Client::connect(server.address()).await;
            let stop = Arc::clone(&stop);
            let request = allowed().encode_to_vec();
            clients.spawn(async move {
                let mut ids = BTreeSet::new();
                while !stop.load(Ordering::Relaxed) {
                    let outcome = client.call(AUTHORIZE, &request).await;
                    if outcome.h2_error.is_some() || outcome.code() != Code::Ok {
                        assert!(is_end(&outcome), "{outcome:?}");
                        break;
                    }
                    ids.insert(outcome.message::<pb::AuthorizeResponse>().decision_id);
                }
                ids
            });
        }
        Self { stop, clients }
    }

    /// Stops the clients. Returns the ids of all answered decisions, with `""` for one without id.
    async fn finish(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.join().await
    }

    /// Waits until all clients end by themselves. Returns the same ids.
    async fn join(mut self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        while let Some(ids) = self.clients.join_next().await {
            all.extend(ids.unwrap());
        }
        all
    }
}

fn ids(lines: impl IntoIterator<Item = Json>) -> BTreeSet<String> {
    let id = |line: Json| line["id"].as_str().unwrap().to_owned();
    lines.into_iter().map(id).collect()
}

/// Waits for the result of `call`, within the time limit.
async fn join_in_time<T>(call: tokio::task::JoinHandle<T>) -> T {
    let ended = tokio::time::timeout(TIME_LIMIT, call).await;
    ended.expect("the call ends in time").unwrap()
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// Repeats a call until `condition` accepts its decision id.
async fn call_until(server: &Server, what: &str, mut condition: impl FnMut(&str) -> bool) {
    let mut client = server.authorization().await;
    let condition_holds = async || {
        let answer = client.authorize(allowed()).await.unwrap().into_inner();
        condition(&answer.decision_id)
    };
    server.eventually(what, condition_holds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_no_log_line() {
    for when_full in ["block", "drop"] {
        let mut service = LoggedService::start(&["--decision-log-when-full", when_full]);
        let load = Load::start(&service.server).await;
        pause().await;
        service.server.signal("TERM");
        let answered = load.join().await;
        assert!(service.server.wait().success());
        let logged = ids(service.all_lines().into_values());
        assert!(answered.len() > 100, "{}", answered.len());
        assert!(
            answered == logged,
            "{} answered, {} logged:\n{}",
            answered.len(),
            logged.len(),
            service.server.log()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_under_load_loses_no_line() {
    let mut service = LoggedService::start(&[
        "--decision-log-max-file-bytes",
        "30000",
        "--decision-log-max-files",
        "1000",
        "--decision-log-when-full",
        "block",
    ]);
    let load = Load::start(&service.server).await;
    eventually("the file is rotated some times", async || {
        fs::read_dir(service.logs.path()).unwrap().count() > 3
    })
    .await;
    let answered = load.finish().await;
    service.server.signal("TERM");
    assert!(service.server.wait().success());
    for entry in fs::read_dir(service.logs.path()).unwrap() {
        let size = entry.unwrap().metadata().unwrap().len();
        assert!((1..=30_000).contains(&size), "{size} bytes");
    }
    assert_eq!(ids(service.all_lines().into_values()), answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn logrotate_may_rename_the_file_under_load() {
    let service = LoggedService::start(&["--decision-log-max-file-bytes", "0"]);
    let load = Load::start(&service.server).await;
    for n in 0..5 {
        pause().await;
        fs::rename(service.file(), service.logs.path().join(format!("old-{n}"))).unwrap();
    }
    pause().await;
    let answered = load.finish().await;
    // The last lines are written although no later call causes a write.
    eventually("the last lines are written", async || {
        ids(service.all_lines().into_values()) == answered
    })
    .await;
    assert!(!lines(&service.logs.path().join("old-4")).is_empty());
    assert!(!lines(&service.file()).is_empty());
}

#[tokio::test]
async fn missing_log_directory_blocks_no_call() {
    // Logging resumes in the directory when it is back.
    let service = LoggedService::start(&[]);
    let file = service.file();
    let logs = service.logs.path().to_owned();
    call_until(&service.server, "written", |_| !lines(&file).is_empty()).await;
    fs::remove_dir_all(&logs).unwrap();
    call_until(&service.server, "the warning", |_| {
        let log = service.server.log();
        log.contains("cannot write the decision log")
    })
    .await;
    fs::create_dir(&logs).unwrap();
    // Records were queued in the meantime.
    service
        .server
        .wait_for_log("the decision log is written again");
    assert!(!service.lines_now().is_empty());
    let log = service.server.log();
    let warnings = log.matches("cannot write the decision log").count();
    assert_eq!(warnings, 1, "{log}");
}

/// Starts a service on a full disk, with a queue for about ten large records.
fn start_on_full_disk(arguments: &[&str]) -> LoggedService {
    let logs = tempfile::tempdir().unwrap();
    symlink("/dev/full", logs.path().join("decisions")).unwrap();
    let mut all = vec![
        "--decision-log-attributes",
        "*",
        "--decision-log-queue-bytes",
        "1048576",
    ];
    all.extend(arguments);
    LoggedService::start_with(logs, &all)
}

#[tokio::test]
async fn full_disk_drops_lines_until_space_returns() {
    let mut service = start_on_full_disk(&["--admin-listen", "127.0.0.1:0"]);
    let mut client = service.server.authorization().await;
    let mut answered = BTreeSet::new();
    let mut dropped = 0;
    // Every call is answered; the queue has space for about ten records.
    for _ in 0..30 {
        let answer = client.authorize(padded(100_000)).await.unwrap();
        let id = answer.into_inner().decision_id;
        match id.is_empty() {
            true => dropped += 1,
            false => {
                answered.insert(id);
            }
        }
    }
    assert!((15..=21).contains(&dropped), "{dropped}");
    service.server.wait_for_log("dropping records");
    assert!(service.server.log().contains("No space left"));
    fs::remove_file(service.file()).unwrap();
    service.server.wait_for_log("is no longer full");
    let log = service.server.log();
    assert!(log.contains(&format!("dropped={dropped}")), "{log}");
    assert_eq!(
        log.matches("decision log queue is full").count(),
        1,
        "{log}"
    );
    let metric = format!(r#"cedar_pdp_decision_log_records_total{{result="dropped"}} {dropped}"#);
    let page = service.metrics();
    assert!(page.contains(&metric), "{page}");
    let last = client.authorize(allowed()).await.unwrap();
    answered.insert(last.into_inner().decision_id);
    service.server.signal("TERM");
    assert!(service.server.wait().success());
    assert_eq!(ids(service.all_lines().into_values()), answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn blocking_log_loses_nothing_on_full_disk() {
    // Calls wait while the disk is full.
    let mut service = start_on_full_disk(&["--decision-log-when-full", "block"]);
    let mut client = service.server.authorization().await;
    let mut answered = BTreeSet::new();
    // A call with a deadline ends at it.
    let rejected = loop {
        let mut request = tonic::Request::new(padded(100_000));
        request.set_timeout(Duration::from_millis(500));
        match client.authorize(request).await {
            Ok(answer) => assert!(answered.insert(answer.into_inner().decision_id)),
            Err(status) => break status,
        }
    };
    // The client or the service notices the deadline first.
    let deadline = [Code::DeadlineExceeded, Code::Cancelled];
    assert!(deadline.contains(&rejected.code()), "{rejected:?}");
    assert!((8..=12).contains(&answered.len()), "{}", answered.len());
    service.server.wait_for_log("blocking calls");
    // Every kind of call waits, and none blocks other calls on its connection.
    let one = tokio::spawn({
        let mut client = client.clone();
        async move { client.authorize(padded(100_000)).await }
    });
    let batch = tokio::spawn({
        let mut client = client.clone();
        let requests = vec![padded(100_000); 20];
        async move {
            let batch = pb::BatchAuthorizeRequest { requests };
            client.batch_authorize(batch).await
        }
    });
    let items = tokio_stream::iter((0..20).map(|n| pb::StreamAuthorizeRequest {
        correlation_id: n,
        request: Some(padded(100_000)),
    }));
    let stream = tokio::spawn({
        let mut client = client.clone();
        async move {
            let mut stream = client.stream_authorize(items).await.unwrap().into_inner();
            let mut ids = BTreeSet::new();
            while let Some(item) = stream.message().await.unwrap() {
                use pb::stream_authorize_response::Result::Response;
                match item.result.unwrap() {
                    Response(answer) => assert!(ids.insert(answer.decision_id)),
                    other => panic!("{other:?}"),
                }
            }
            ids
        }
    });
    pause().await;
    assert!(!one.is_finished() && !batch.is_finished() && !stream.is_finished());
    let mut store = service.server.policy_store().await;
    store.get_status(pb::GetStatusRequest {}).await.unwrap();

    fs::remove_file(service.file()).unwrap();
    answered.insert(join_in_time(one).await.unwrap().into_inner().decision_id);
    for result in join_in_time(batch).await.unwrap().into_inner().results {
        use pb::batch_authorize_result::Result::Response;
        match result.result.unwrap() {
            Response(answer) => assert!(answered.insert(answer.decision_id)),
            other => panic!("{other:?}"),
        }
    }
    answered.extend(join_in_time(stream).await);
    service.server.signal("TERM");
    assert!(service.server.wait().success());
    assert!(!answered.contains(""));
    assert_eq!(ids(service.all_lines().into_values()), answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_rejects_calls_waiting_for_the_log() {
    let mut service =
        start_on_full_disk(&["--drain-timeout", "5s", "--decision-log-when-full", "block"]);
    let client = service.server.authorization().await;
    let mut calls = JoinSet::new();
    for _ in 0..30 {
        let mut client = client.clone();
        calls.spawn(async move { client.authorize(padded(100_000)).await });
    }
    service.server.wait_for_log("blocking calls");
    pause().await;
    service.server.signal("TERM");
    let mut rejected = 0;
    while let Some(ended) = calls.join_next().await {
        if let Err(status) = ended.unwrap() {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert_eq!(status.message(), "the service is shutting down");
            rejected += 1;
        }
    }
    assert!(rejected > 10, "{rejected}");
    assert!(service.server.wait().success());
}

#[tokio::test]
async fn unwritten_lines_at_shutdown_are_counted() {
    let mut service = start_on_full_disk(&["--drain-timeout", "100ms"]);
    let mut client = service.server.authorization().await;
    for _ in 0..3 {
        client.authorize(allowed()).await.unwrap();
    }
    service.server.signal("TERM");
    assert!(service.server.wait().success());
    let log = service.server.log();
    assert!(
        log.contains("decision log ended, dropping unwritten records"),
        "{log}"
    );
    assert!(log.contains("decisions=3"), "{log}");
}

#[tokio::test]
async fn stalled_stdout_reader_blocks_no_call() {
    let policies = policy_directory(&[("policies.cedar", POLICIES)]);
    let mut command = crate::support::serve_command(policies.path(), &[]);
    command
        .args([
            "--decision-log",
            "stdout",
            "--decision-log-allow-sample",
            "1",
        ])
        .args(["--decision-log-attributes", "*"])
        .args(["--decision-log-queue-bytes", "1048576"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut stderr = child.stderr.take().unwrap();
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("listening on ").unwrap();
    let mut client = pb::authorization_service_client::AuthorizationServiceClient::new(
        crate::support::channel(address).await,
    );
    // Nobody reads: the pipe holds 64 KiB, the queue ten records.
    let mut logged = BTreeSet::new();
    let mut dropped = 0;
    for _ in 0..40 {
        let answer = client.authorize(padded(100_000)).await.unwrap();
        let id = answer.into_inner().decision_id;
        match id.is_empty() {
            true => dropped += 1,
            false => assert!(logged.insert(id)),
        }
    }
    assert!((25..=31).contains(&dropped), "{dropped}");
    // Once the reader resumes, all queued records and the next one arrive.
    let reader = std::thread::spawn(move || {
        let mut ids = BTreeSet::new();
        for line in stdout.lines() {
            let line: Json = serde_json::from_str(&line.unwrap()).unwrap();
            ids.insert(line["id"].as_str().unwrap().to_owned());
        }
        ids
    });
    eventually("decisions are logged again", async || {
        let answer = client.authorize(allowed()).await.unwrap();
        let id = answer.into_inner().decision_id;
        !id.is_empty() && logged.insert(id)
    })
    .await;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(reader.join().unwrap(), logged);
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    assert_eq!(
        log.matches("decision log queue is full").count(),
        1,
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_leaves_whole_log_lines() {
    // All lines but the last are whole, and the next start begins a new line.
    let mut service = LoggedService::start(&[]);
    let load = Load::start_with(&service.server, |_| true).await;
    pause().await;
    service.server.signal("KILL");
    load.join().await;
    service.server.wait();
    let before = fs::read(service.file()).unwrap();
    let (whole, _torn) = before.split_at(end_of_lines(&before));
    assert!(!whole.is_empty());
    let count = lines(&service.file()).len();
    // Simulates a kill during a write.
    let torn = [whole, br#"{"v":1,"time":"2026"#].concat();
    fs::write(service.file(), torn).unwrap();

    let service = LoggedService::start_with(service.logs, &[]);
    let mut client = service.server.authorization().await;
    client.authorize(allowed()).await.unwrap();
    let file = service.file();
    call_until(&service.server, "written", |_| {
        text(&file).lines().count() > count + 1
    })
    .await;
    let text = text(&file);
    let unread: Vec<_> = text
        .lines()
        .filter(|line| serde_json::from_str::<Json>(line).is_err())
        .collect();
    assert_eq!(unread, [r#"{"v":1,"time":"2026"#]);
}

fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap()
}

fn end_of_lines(text: &[u8]) -> usize {
    text.iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1)
}

#[test]
fn unopenable_log_file_fails_the_start() {
    let policies = policy_directory(&[("policies.cedar", POLICIES)]);
    let to_nowhere = ["--decision-log", "file:/nonexistent/decisions"];
    let output = crate::support::serve_command(policies.path(), &to_nowhere)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(
        log.contains("cannot open the decision log `/nonexistent/decisions`: No such file"),
        "{log}"
    );
}
