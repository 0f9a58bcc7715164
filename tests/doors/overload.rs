//! More calls than can be answered, and the end of the service while they come.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cedar_pdp::api::pb;
use cedar_pdp::api::pb::authorization_service_client::AuthorizationServiceClient;
use prost::Message as _;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::pki::Authority;
use crate::raw::{AUTHORIZE, BATCH, Caller, STREAM, outcome_of, post, with_wide_windows};
use crate::support::{PATIENCE, Server, policy_directory, request};
use crate::wire::framed;

/// How long it is asked too much: long enough here to see it, and a minute with
/// `CEDAR_PDP_OVERLOAD_SECONDS=60`.
fn duration() -> Duration {
    let seconds = std::env::var("CEDAR_PDP_OVERLOAD_SECONDS").ok();
    let seconds = seconds.map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(3))
}

/// Policies that take a while: all of them match, and none is told by its scope.
fn slow_policies() -> String {
    (0..400)
        .map(|n| format!("permit(principal, action, resource) when {{ context.n * {n} == -1 }};\n"))
        .chain(["permit(principal, action, resource);\n".to_owned()])
        .collect()
}

/// A request that nobody has asked before, so that it has to be decided.
fn ask(n: i64) -> pb::AuthorizeRequest {
    let mut request = request(r#"User::"a""#, r#"Action::"read""#, r#"Doc::"1""#);
    let n = crate::support::value(pb::value::Kind::Long(n));
    request.context.insert("n".to_owned(), n);
    request
}

/// What calls ended with, and how often.
type Ends = BTreeMap<String, u64>;

fn end_of(answered: Result<tonic::Response<pb::AuthorizeResponse>, Status>) -> String {
    match answered {
        Ok(answer) => {
            assert_eq!(answer.into_inner().decision(), pb::Decision::Allow);
            "OK".to_owned()
        }
        Err(status) => {
            let details = status.get_error_details();
            match details.error_info() {
                Some(info) if info.reason == "OVERLOADED" => {
                    assert_eq!(status.code(), Code::ResourceExhausted);
                    let retry = details.retry_info().and_then(|retry| retry.retry_delay);
                    assert!(retry.is_some(), "{status:?}");
                    let pushback = status.metadata().get("grpc-retry-pushback-ms");
                    assert!(pushback.is_some(), "{status:?}");
                    "OVERLOADED".to_owned()
                }
                Some(_) | None => {
                    let mut text = format!("{:?}: {}", status.code(), status.message());
                    let mut cause = std::error::Error::source(&status);
                    while let Some(error) = cause {
                        text = format!("{text}: {error}");
                        cause = error.source();
                    }
                    text
                }
            }
        }
    }
}

/// Callers that ask without waiting for answers, up to `at_once` calls each.
async fn flood(
    channels: &[Channel],
    at_once: i64,
    stop: &Arc<AtomicBool>,
) -> Vec<tokio::task::JoinHandle<Ends>> {
    let mut callers = Vec::new();
    for (number, channel) in channels.iter().enumerate() {
        for place in 0..at_once {
            let (channel, stop) = (channel.clone(), Arc::clone(stop));
            callers.push(tokio::spawn(async move {
                let mut client = AuthorizationServiceClient::new(channel);
                let mut ends = Ends::new();
                let mut n = (number as i64 * at_once + place) * 1_000_000;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let end = end_of(client.authorize(ask(n)).await);
                    *ends.entry(end).or_default() += 1;
                }
                ends
            }));
        }
    }
    callers
}

async fn ends_of(callers: Vec<tokio::task::JoinHandle<Ends>>) -> Ends {
    let mut all = Ends::new();
    for caller in callers {
        for (end, count) in caller.await.expect("a caller's assertions hold") {
            *all.entry(end).or_default() += count;
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waits_behind_others_for_longer_than_its_deadline_is_not_decided() {
    let policies = policy_directory(&[("slow.cedar", &slow_policies())]);
    let server = Server::start(policies.path(), &["--overload-delay", "0s"]);
    let caller = Caller::connect(server.address()).await;
    let mut calls = Vec::new();
    for n in 0..250 {
        let request = match n {
            249 => post(AUTHORIZE).header("grpc-timeout", "1m"),
            _ => post(AUTHORIZE),
        };
        let mut call = caller.open(request.body(()).unwrap()).await.unwrap();
        let body = framed(&ask(n).encode_to_vec());
        call.body.send_data(body.into(), true).unwrap();
        calls.push(call);
    }
    let last = calls.pop().unwrap().outcome().await;
    let code = last.status.map(|status| status.code());
    assert_eq!(code, Some(Code::DeadlineExceeded));
    for call in calls {
        let code = call.outcome().await.status.map(|status| status.code());
        assert_eq!(code, Some(Code::Ok));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_is_shed_with_a_hint_and_the_rest_is_answered() {
    let policies = policy_directory(&[("slow.cedar", &slow_policies())]);
    let server = Server::start(
        policies.path(),
        &["--overload-delay", "5ms", "--max-call-time", "0s"],
    );
    let mut channels = Vec::new();
    for _ in 0..8 {
        channels.push(server.channel().await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let callers = flood(&channels, 100, &stop).await;
    // Health is told in the midst of it.
    let begun = Instant::now();
    let mut health = tonic_health::pb::health_client::HealthClient::new(server.channel().await);
    while begun.elapsed() < duration() {
        let asked = health.check(tonic_health::pb::HealthCheckRequest::default());
        assert_eq!(asked.await.unwrap().into_inner().status, 1);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let ends = ends_of(callers).await;
    println!("{ends:?}");
    let count = |end: &str| ends.get(end).copied().unwrap_or_default();
    assert!(count("OK") > 0 && count("OVERLOADED") > 0, "{ends:?}");
    assert_eq!(ends.len(), 2, "calls end in no other way: {ends:?}");

    // Once it is over, everything is answered.
    let mut client = AuthorizationServiceClient::new(server.channel().await);
    let begun = Instant::now();
    while end_of(client.authorize(ask(-1)).await) != "OK" {
        assert!(begun.elapsed() < PATIENCE, "it is never over");
    }
}

/// Asks one by one until it is turned away; gives the ids of the decisions that were answered.
async fn one_by_one(caller: Arc<Caller>, first: i64) -> Vec<String> {
    let mut ids = Vec::new();
    for n in first.. {
        let outcome = caller.call(AUTHORIZE, &ask(n).encode_to_vec()).await;
        if outcome.is_turned_away() {
            break;
        }
        ids.push(outcome.message::<pb::AuthorizeResponse>().decision_id);
    }
    ids
}

/// The same in batches.
async fn in_batches(caller: Arc<Caller>, first: i64) -> Vec<String> {
    use pb::batch_authorize_result::Result::{Error, Response};
    const ITEMS: i64 = 10;
    let mut ids = Vec::new();
    for n in (first..).step_by(ITEMS as usize) {
        let requests = (n..n + ITEMS).map(ask).collect();
        let batch = pb::BatchAuthorizeRequest { requests };
        let outcome = caller.call(BATCH, &batch.encode_to_vec()).await;
        if outcome.is_turned_away() {
            break;
        }
        let answered: pb::BatchAuthorizeResponse = outcome.message();
        assert_eq!(answered.results.len(), ITEMS as usize);
        for result in answered.results {
            match result.result.unwrap() {
                Response(answer) => ids.push(answer.decision_id),
                Error(error) => panic!("{error:?}"),
            }
        }
    }
    ids
}

/// The same on one stream, without waiting for answers.
async fn on_a_stream(caller: Arc<Caller>, first: i64) -> Vec<String> {
    use pb::stream_authorize_response::Result::{Error, Response};
    let mut call = caller.open(post(STREAM).body(()).unwrap()).await.unwrap();
    let asking = async {
        for n in first.. {
            let item = pb::StreamAuthorizeRequest {
                correlation_id: n as u64,
                request: Some(ask(n)),
            };
            // Once the service has ended the stream it takes no more.
            let _ = call
                .body
                .send_data(framed(&item.encode_to_vec()).into(), false);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let outcome = tokio::select! {
        outcome = outcome_of(call.response) => outcome,
        () = asking => panic!("there is no end of what can be asked"),
    };
    // A stream that stood is told of the end by a status, after all the answers.
    assert!(outcome.broken.is_none(), "{outcome:?}");
    assert_eq!(outcome.code(), Code::Unavailable, "{outcome:?}");
    let answers = outcome.messages::<pb::StreamAuthorizeResponse>();
    let id = |answer: pb::StreamAuthorizeResponse| match answer.result.unwrap() {
        Response(answer) => answer.decision_id,
        Error(error) => panic!("{error:?}"),
    };
    answers.into_iter().map(id).collect()
}

/// The ids of all lines in the files of a decision log.
fn logged(logs: &Path) -> Vec<String> {
    let files = std::fs::read_dir(logs).unwrap();
    let texts = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    let texts: String = texts.collect();
    let id = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["id"].as_str().unwrap().to_owned()
    };
    texts.lines().map(id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_no_call_and_every_decision_that_was_answered_is_logged() {
    let policies = policy_directory(&[("slow.cedar", &slow_policies())]);
    let authority = Authority::new();
    let tls = authority.serve_with(&authority.server());
    for is_encrypted in [false, true] {
        let logs = tempfile::tempdir().unwrap();
        let log = format!("file:{}", logs.path().join("decisions").display());
        let mut arguments = vec!["--overload-delay", "0s", "--decision-log", &log];
        arguments.extend(["--decision-log-allow-sample", "1"]);
        arguments.extend(["--decision-log-when-full", "block"]);
        if is_encrypted {
            arguments.extend(tls.iter().map(String::as_str));
        }
        let mut server = Server::start(policies.path(), &arguments);
        let mut kinds = [Vec::new(), Vec::new(), Vec::new()];
        let mut numbers = (0..).step_by(1_000_000);
        let mut next = || numbers.next().unwrap();
        for _ in 0..4 {
            // One that does not connect again: what becomes of its calls is all there is to know.
            let builder = with_wide_windows();
            let caller = match is_encrypted {
                true => Caller::over(authority.shake_hands(server.address()).await, &builder).await,
                false => Caller::connect(server.address()).await,
            };
            let caller = Arc::new(caller);
            for _ in 0..16 {
                kinds[0].push(tokio::spawn(one_by_one(Arc::clone(&caller), next())));
            }
            for _ in 0..2 {
                kinds[1].push(tokio::spawn(in_batches(Arc::clone(&caller), next())));
                kinds[2].push(tokio::spawn(on_a_stream(Arc::clone(&caller), next())));
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        let mut answered = BTreeSet::new();
        let mut counts = Vec::new();
        for callers in kinds {
            let before = answered.len();
            for caller in callers {
                let ids = tokio::time::timeout(PATIENCE, caller).await;
                for id in ids.expect("no call hangs").expect("its calls end cleanly") {
                    assert!(answered.insert(id), "an id is given twice");
                }
            }
            counts.push(answered.len() - before);
        }
        println!("answered one by one, in batches and on streams: {counts:?}");
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
        let logged = logged(logs.path());
        let lines = logged.len();
        assert_eq!(logged.into_iter().collect::<BTreeSet<_>>(), answered);
        assert_eq!(lines, answered.len(), "a decision is logged twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_sigkill_under_load_it_serves_again_on_the_same_port_and_socket() {
    let policies = policy_directory(&[("open.cedar", "permit(principal, action, resource);")]);
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("pdp.sock");
    let mut listen = vec![
        "127.0.0.1:0".to_owned(),
        format!("unix:{}", socket.display()),
    ];
    // More than once: what a killed process leaves must not outlast the next one either.
    for _ in 0..3 {
        let listening: Vec<&str> = listen.iter().map(String::as_str).collect();
        let mut server = Server::start_listening(policies.path(), &listening, &[]);
        // The port that it got at first is the one that is wanted again.
        listen.clone_from(&server.addresses);
        let mut channels = Vec::new();
        for address in &listen {
            let channel = crate::support::channel(address).await;
            let mut client = AuthorizationServiceClient::new(channel.clone());
            assert_eq!(end_of(client.authorize(ask(0)).await), "OK", "{address}");
            channels.push(channel);
        }
        // Connections that it did not close by itself stay behind in the system for a while.
        let stop = Arc::new(AtomicBool::new(false));
        let callers = flood(&channels, 10, &stop).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.signal("KILL");
        assert!(!server.wait().success());
        stop.store(true, Ordering::Relaxed);
        for caller in callers {
            caller.abort();
        }
        assert!(socket.exists(), "a socket that nobody serves is left");
    }
    // And the end that is wanted clears it away.
    let listening: Vec<&str> = listen.iter().map(String::as_str).collect();
    let mut server = Server::start_listening(policies.path(), &listening, &[]);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(!socket.exists());
}
