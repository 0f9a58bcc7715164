//! The end of the service while calls come: the one that is wanted, and the one that is not.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cedar_pdp::api::grpc::pb;
use cedar_pdp::api::grpc::pb::authorization_service_client::AuthorizationServiceClient;
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::Code;

use super::overload::{ask, slow_policies};
use crate::support::http2::{
    AUTHORIZE, BATCH, Caller, STREAM, outcome_of, post, with_wide_windows,
};
use crate::support::pki::Authority;
use crate::support::protobuf::framed;
use crate::support::{PATIENCE, Server, channel, policy_directory};

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
async fn sigterm_under_load_loses_no_call() {
    // Every decision that was answered is logged.
    let policies = policy_directory(&[("slow.cedar", &slow_policies(400))]);
    let authority = Authority::generate();
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
async fn restart_after_sigkill_reuses_port_and_socket() {
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
        let mut callers = JoinSet::new();
        for address in &listen {
            let mut client = AuthorizationServiceClient::new(channel(address).await);
            let answer = client.authorize(ask(0)).await.unwrap().into_inner();
            assert_eq!(answer.decision(), pb::Decision::Allow, "{address}");
            callers.spawn(async move { while client.authorize(ask(1)).await.is_ok() {} });
        }
        // Connections that it does not close by itself stay behind in the system for a while.
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.signal("KILL");
        assert!(!server.wait().success());
        callers.shutdown().await;
        assert!(socket.exists(), "a socket that nobody serves is left");
    }
    // And the end that is wanted clears it away.
    let listening: Vec<&str> = listen.iter().map(String::as_str).collect();
    let mut server = Server::start_listening(policies.path(), &listening, &[]);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(!socket.exists());
}
