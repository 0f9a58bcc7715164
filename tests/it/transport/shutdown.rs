//! The end of the service under load, by SIGTERM and by SIGKILL.

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

/// Makes unary calls until one is rejected; returns the ids of the answered decisions.
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

/// Makes batch calls in the same way.
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

/// Makes calls on one stream in the same way, without waiting for answers.
async fn on_a_stream(caller: Arc<Caller>, first: i64) -> Vec<String> {
    use pb::stream_authorize_response::Result::{Error, Response};
    let mut call = caller.open(post(STREAM).body(()).unwrap()).await.unwrap();
    let asking = async {
        for n in first.. {
            let item = pb::StreamAuthorizeRequest {
                correlation_id: n as u64,
                request: Some(ask(n)),
            };
            // Sending fails once the service has ended the stream.
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
    // The stream ends with a status after all answers.
    assert!(outcome.broken.is_none(), "{outcome:?}");
    assert_eq!(outcome.code(), Code::Unavailable, "{outcome:?}");
    let answers = outcome.messages::<pb::StreamAuthorizeResponse>();
    let id = |answer: pb::StreamAuthorizeResponse| match answer.result.unwrap() {
        Response(answer) => answer.decision_id,
        Error(error) => panic!("{error:?}"),
    };
    answers.into_iter().map(id).collect()
}

/// Returns the ids of all lines in the files of a decision log.
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
    // Every answered decision is logged.
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
            // A client that does not reconnect, so that the outcome of all its calls is known.
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
    // Repeated, because the remains of a killed process must not affect a later start either.
    for _ in 0..3 {
        let listening: Vec<&str> = listen.iter().map(String::as_str).collect();
        let mut server = Server::start_listening(policies.path(), &listening, &[]);
        // Later starts use the port of the first one.
        listen.clone_from(&server.addresses);
        let mut callers = JoinSet::new();
        for address in &listen {
            let mut client = AuthorizationServiceClient::new(channel(address).await);
            let answer = client.authorize(ask(0)).await.unwrap().into_inner();
            assert_eq!(answer.decision(), pb::Decision::Allow, "{address}");
            callers.spawn(async move { while client.authorize(ask(1)).await.is_ok() {} });
        }
        // Connections that the service did not close remain in the system for a while.
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.signal("KILL");
        assert!(!server.wait().success());
        callers.shutdown().await;
        assert!(socket.exists(), "a socket that nobody serves is left");
    }
    // A regular shutdown removes the socket.
    let listening: Vec<&str> = listen.iter().map(String::as_str).collect();
    let mut server = Server::start_listening(policies.path(), &listening, &[]);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(!socket.exists());
}
