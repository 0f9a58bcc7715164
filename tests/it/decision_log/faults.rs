//! What becomes of the log when something goes wrong around it.

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

use super::setup::{House, POLICIES, allowed, lines, padded};
use crate::support::http2::{AUTHORIZE, Caller, Outcome};
use crate::support::{PATIENCE, Server, eventually, policy_directory};

/// Callers that ask without a pause until they are turned away or told to stop, and note the ids.
///
/// Each has one connection and no other: what becomes of a call is known, and one that is lost is not
/// taken for one that could not be sent again.
struct Load {
    stop: Arc<AtomicBool>,
    callers: JoinSet<BTreeSet<String>>,
}

impl Load {
    const CALLERS: usize = 8;

    /// Fails when a call ends with anything but an answer or a clean refusal.
    async fn start(server: &Server) -> Self {
        Self::start_with(server, Outcome::is_turned_away).await
    }

    /// Fails when a call ends with anything but an answer or `an_end`.
    async fn start_with(server: &Server, an_end: fn(&Outcome) -> bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut callers = JoinSet::new();
        for _ in 0..Self::CALLERS {
            let caller = Caller::connect(server.address()).await;
            let stop = Arc::clone(&stop);
            let question = allowed().encode_to_vec();
            callers.spawn(async move {
                let mut ids = BTreeSet::new();
                while !stop.load(Ordering::Relaxed) {
                    let outcome = caller.call(AUTHORIZE, &question).await;
                    if outcome.broken.is_some() || outcome.code() != Code::Ok {
                        assert!(an_end(&outcome), "{outcome:?}");
                        break;
                    }
                    ids.insert(outcome.message::<pb::AuthorizeResponse>().decision_id);
                }
                ids
            });
        }
        Self { stop, callers }
    }

    /// The ids of all decisions that were answered, `""` if one had none.
    async fn finish(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.ended().await
    }

    /// The same, once all callers were turned away.
    async fn ended(mut self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        while let Some(ids) = self.callers.join_next().await {
            all.extend(ids.unwrap());
        }
        all
    }
}

fn ids(lines: impl IntoIterator<Item = Json>) -> BTreeSet<String> {
    let id = |line: Json| line["id"].as_str().unwrap().to_owned();
    lines.into_iter().map(id).collect()
}

/// What `call` comes to, which must not take for ever.
async fn in_time<T>(call: tokio::task::JoinHandle<T>) -> T {
    let ended = tokio::time::timeout(PATIENCE, call).await;
    ended.expect("the call goes on").unwrap()
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// Asks until `holds`, which must come true.
async fn ask_until(server: &Server, what: &str, mut holds: impl FnMut(&str) -> bool) {
    let mut client = server.authorization().await;
    let asking = async || {
        let answer = client.authorize(allowed()).await.unwrap().into_inner();
        holds(&answer.decision_id)
    };
    server.eventually(what, asking).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_no_log_line() {
    for when_full in ["block", "drop"] {
        let mut house = House::start(&["--decision-log-when-full", when_full]);
        let load = Load::start(&house.server).await;
        pause().await;
        house.server.signal("TERM");
        let answered = load.ended().await;
        assert!(house.server.wait().success());
        let logged = ids(house.all_lines().into_values());
        assert!(answered.len() > 100, "{}", answered.len());
        assert!(
            answered == logged,
            "{} answered, {} logged:\n{}",
            answered.len(),
            logged.len(),
            house.server.log()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_under_load_loses_no_line() {
    let mut house = House::start(&[
        "--decision-log-max-file-bytes",
        "30000",
        "--decision-log-max-files",
        "1000",
        "--decision-log-when-full",
        "block",
    ]);
    let load = Load::start(&house.server).await;
    pause().await;
    let answered = load.finish().await;
    house.server.signal("TERM");
    assert!(house.server.wait().success());
    let files = fs::read_dir(house.logs.path()).unwrap().count();
    assert!(files > 3, "{files} files");
    for entry in fs::read_dir(house.logs.path()).unwrap() {
        let size = entry.unwrap().metadata().unwrap().len();
        assert!((1..=30_000).contains(&size), "{size} bytes");
    }
    assert_eq!(ids(house.all_lines().into_values()), answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn logrotate_may_rename_the_file_under_load() {
    let house = House::start(&["--decision-log-max-file-bytes", "0"]);
    let load = Load::start(&house.server).await;
    for n in 0..5 {
        pause().await;
        fs::rename(house.file(), house.logs.path().join(format!("old-{n}"))).unwrap();
    }
    pause().await;
    let answered = load.finish().await;
    // Also without another line to write, the last ones come.
    eventually("the last lines are written", async || {
        ids(house.all_lines().into_values()) == answered
    })
    .await;
    assert!(!lines(&house.logs.path().join("old-4")).is_empty());
    assert!(!lines(&house.file()).is_empty());
}

#[tokio::test]
async fn missing_log_directory_blocks_no_call() {
    // The log goes on in the directory when it is back.
    let house = House::start(&[]);
    let file = house.file();
    let logs = house.logs.path().to_owned();
    ask_until(&house.server, "written", |_| !lines(&file).is_empty()).await;
    fs::remove_dir_all(&logs).unwrap();
    ask_until(&house.server, "told", |_| {
        let log = house.server.log();
        log.contains("cannot write the decision log")
    })
    .await;
    fs::create_dir(&logs).unwrap();
    // What came in the meantime waited.
    house
        .server
        .wait_for_log("the decision log is written again");
    assert!(!house.lines_now().is_empty());
    let told = house.server.log();
    let warnings = told.matches("cannot write the decision log").count();
    assert_eq!(warnings, 1, "{told}");
}

/// A service whose log has no room but its queue, in which some ten large records fit.
fn with_a_full_disk(arguments: &[&str]) -> House {
    let logs = tempfile::tempdir().unwrap();
    symlink("/dev/full", logs.path().join("decisions")).unwrap();
    let mut all = vec![
        "--decision-log-attributes",
        "*",
        "--decision-log-queue-bytes",
        "1048576",
    ];
    all.extend(arguments);
    House::start_with(logs, &all)
}

#[tokio::test]
async fn full_disk_drops_lines_until_space_returns() {
    let mut house = with_a_full_disk(&["--admin-listen", "127.0.0.1:0"]);
    let mut client = house.server.authorization().await;
    let mut answered = BTreeSet::new();
    let mut dropped = 0;
    // Each answer is given; the queue has room for some ten records.
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
    house.server.wait_for_log("dropping records");
    assert!(house.server.log().contains("No space left"));
    fs::remove_file(house.file()).unwrap();
    house.server.wait_for_log("is no longer full");
    let told = house.server.log();
    assert!(told.contains(&format!("dropped={dropped}")), "{told}");
    assert_eq!(
        told.matches("decision log queue is full").count(),
        1,
        "{told}"
    );
    let metric = format!(r#"cedar_pdp_decision_log_records_total{{result="dropped"}} {dropped}"#);
    let page = house.metrics();
    assert!(page.contains(&metric), "{page}");
    let last = client.authorize(allowed()).await.unwrap();
    answered.insert(last.into_inner().decision_id);
    house.server.signal("TERM");
    assert!(house.server.wait().success());
    assert_eq!(ids(house.all_lines().into_values()), answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn blocking_log_loses_nothing_on_full_disk() {
    // Calls wait while the disk is full.
    let mut house = with_a_full_disk(&["--decision-log-when-full", "block"]);
    let mut client = house.server.authorization().await;
    let mut answered = BTreeSet::new();
    // One that cannot wait gives up by its own deadline.
    let refused = loop {
        let mut request = tonic::Request::new(padded(100_000));
        request.set_timeout(Duration::from_millis(500));
        match client.authorize(request).await {
            Ok(answer) => assert!(answered.insert(answer.into_inner().decision_id)),
            Err(status) => break status,
        }
    };
    // Whether the client or the service sees it first.
    let deadline = [Code::DeadlineExceeded, Code::Cancelled];
    assert!(deadline.contains(&refused.code()), "{refused:?}");
    assert!((8..=12).contains(&answered.len()), "{}", answered.len());
    house.server.wait_for_log("blocking calls");
    // Every kind of call waits, and none holds up the others' connection.
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
    let mut store = house.server.policy_store().await;
    store.get_status(pb::GetStatusRequest {}).await.unwrap();

    fs::remove_file(house.file()).unwrap();
    answered.insert(in_time(one).await.unwrap().into_inner().decision_id);
    for result in in_time(batch).await.unwrap().into_inner().results {
        use pb::batch_authorize_result::Result::Response;
        match result.result.unwrap() {
            Response(answer) => assert!(answered.insert(answer.decision_id)),
            other => panic!("{other:?}"),
        }
    }
    answered.extend(in_time(stream).await);
    house.server.signal("TERM");
    assert!(house.server.wait().success());
    assert!(!answered.contains(""));
    assert_eq!(ids(house.all_lines().into_values()), answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_rejects_calls_waiting_for_the_log() {
    let mut house =
        with_a_full_disk(&["--drain-timeout", "5s", "--decision-log-when-full", "block"]);
    let client = house.server.authorization().await;
    let mut calls = JoinSet::new();
    for _ in 0..30 {
        let mut client = client.clone();
        calls.spawn(async move { client.authorize(padded(100_000)).await });
    }
    house.server.wait_for_log("blocking calls");
    pause().await;
    house.server.signal("TERM");
    let mut refused = 0;
    while let Some(ended) = calls.join_next().await {
        if let Err(status) = ended.unwrap() {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert_eq!(status.message(), "the service is shutting down");
            refused += 1;
        }
    }
    assert!(refused > 10, "{refused}");
    assert!(house.server.wait().success());
}

#[tokio::test]
async fn unwritten_lines_at_shutdown_are_counted() {
    let mut house = with_a_full_disk(&["--drain-timeout", "100ms"]);
    let mut client = house.server.authorization().await;
    for _ in 0..3 {
        client.authorize(allowed()).await.unwrap();
    }
    house.server.signal("TERM");
    assert!(house.server.wait().success());
    let told = house.server.log();
    assert!(
        told.contains("decision log ended, dropping unwritten records"),
        "{told}"
    );
    assert!(told.contains("decisions=3"), "{told}");
}

#[tokio::test]
async fn stalled_stdout_reader_blocks_no_call() {
    let policies = policy_directory(&[("policies.cedar", POLICIES)]);
    let mut command = crate::support::serving(policies.path(), &[]);
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
    // The pipe takes 64 KiB, the queue ten records; nobody reads.
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
    // Now somebody does, and all that was kept comes, and what is decided next.
    let reader = std::thread::spawn(move || {
        let mut ids = BTreeSet::new();
        for line in stdout.lines() {
            let line: Json = serde_json::from_str(&line.unwrap()).unwrap();
            ids.insert(line["id"].as_str().unwrap().to_owned());
        }
        ids
    });
    let begun = std::time::Instant::now();
    loop {
        let answer = client.authorize(allowed()).await.unwrap();
        let id = answer.into_inner().decision_id;
        if !id.is_empty() {
            logged.insert(id);
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "it never recovers");
        pause().await;
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(reader.join().unwrap(), logged);
    let mut told = String::new();
    stderr.read_to_string(&mut told).unwrap();
    assert_eq!(
        told.matches("decision log queue is full").count(),
        1,
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_leaves_whole_log_lines() {
    // All lines but the last are whole, and the next start begins a new line.
    let mut house = House::start(&[]);
    let load = Load::start_with(&house.server, |_| true).await;
    pause().await;
    house.server.signal("KILL");
    load.ended().await;
    house.server.wait();
    let before = fs::read(house.file()).unwrap();
    let (whole, _torn) = before.split_at(end_of_lines(&before));
    assert!(!whole.is_empty());
    let count = lines(&house.file()).len();
    // As if the kill had come in the middle of a write.
    let torn = [whole, br#"{"v":1,"time":"2026"#].concat();
    fs::write(house.file(), torn).unwrap();

    let house = House::start_with(house.logs, &[]);
    let mut client = house.server.authorization().await;
    client.authorize(allowed()).await.unwrap();
    let file = house.file();
    ask_until(&house.server, "written", |_| {
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
    let output = crate::support::serving(policies.path(), &to_nowhere)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("cannot open the decision log `/nonexistent/decisions`: No such file"),
        "{told}"
    );
}
