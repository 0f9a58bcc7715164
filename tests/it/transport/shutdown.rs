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

use super::overload::{numbered_request, slow_policies};
use crate::support::http2::{
    AUTHORIZE, BATCH, Http2Client, STREAM, post, read_outcome, wide_windows,
};
use crate::support::pki::Authority;
use crate::support::protobuf::framed;
use crate::support::{Server, TIME_LIMIT, channel, policy_directory};

/// Makes unary calls until one is rejected; returns the ids of the answered decisions.
async fn call_unary(client: Arc<Http2Client>, first: i64) -> Vec<String> {
    let mut ids = Vec::new();
    for n in first.. {
        let outcome = client
            .call(AUTHORIZE, &numbered_request(n).encode_to_vec())
            .await;
        if outcome.is_retryable_rejection() {
            break;
        }
        ids.push(outcome.message::<pb::AuthorizeResponse>().decision_id);
    }
    ids
}

/// Makes batch calls in the same way.
async fn call_batch(client: Arc<Http2Client>, first: i64) -> Vec<String> {
    use pb::batch_authorize_result::Result::{Error, Response};
    const ITEMS: i64 = 10;
    let mut ids = Vec::new();
    for n in (first..).step_by(ITEMS as usize) {
        let requests = (n..n + ITEMS).map(numbered_request).collect();
        let batch = pb::BatchAuthorizeRequest { requests };
        let outcome = client.call(BATCH, &batch.encode_to_vec()).await;
        if outcome.is_retryable_rejection() {
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
async fn call_stream(client: Arc<Http2Client>, first: i64) -> Vec<String> {
    use pb::stream_authorize_response::Result::{Error, Response};
    let mut call = client.open(post(STREAM).body(()).unwrap()).await.unwrap();
    let sending = async {
        for n in first.. {
            let item = pb::StreamAuthorizeRequest {
                correlation_id: n as u64,
                request: Some(numbered_request(n)),
            };
            // Sending fails once the service has ended the stream.
            let _ = call
                .body
                .send_data(framed(&item.encode_to_vec()).into(), false);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let outcome = tokio::select! {
        outcome = read_outcome(call.response) => outcome,
        () = sending => panic!("the items ended before the stream"),
    };
    // The stream ends with a status after all answers.
    assert!(outcome.h2_error.is_none(), "{outcome:?}");
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
    let tls = authority.tls_options(&authority.server());
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
            let builder = wide_windows();
            let client = match is_encrypted {
                true => {
                    Http2Client::from_stream(
                        authority.connect_tls(server.address()).await,
                        &builder,
                    )
                    .await
                }
                false => Http2Client::connect(server.address()).await,
            };
            let client = Arc::new(client);
            for _ in 0..16 {
                kinds[0].push(tokio::spawn(call_unary(Arc::clone(&client), next())));
            }
            for _ in 0..2 {
                kinds[1].push(tokio::spawn(call_batch(Arc::clone(&client), next())));
                kinds[2].push(tokio::spawn(call_stream(Arc::clone(&client), next())));
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        let mut answered = BTreeSet::new();
        let mut counts = Vec::new();
        for clients in kinds {
            let before = answered.len();
            for client in clients {
                let ids = tokio::time::timeout(TIME_LIMIT, client).await;
                for id in ids.expect("no call hangs").expect("its calls end cleanly") {
                    assert!(answered.insert(id), "an id is given twice");
                }
            }
            counts.push(answered.len() - before);
        }
        println!("answered alone, in batches and on streams: {counts:?}");
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
        let mut clients = JoinSet::new();
        for address in &listen {
            let mut client = AuthorizationServiceClient::new(channel(address).await);
            let answer = client
                .authorize(numbered_request(0))
                .await
                .unwrap()
                .into_inner();
            assert_eq!(answer.decision(), pb::Decision::Allow, "{address}");
            clients
                .spawn(async move { while client.authorize(numbered_request(1)).await.is_ok() {} });
        }
        // Connections that the service did not close remain in the system for a while.
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.signal("KILL");
        assert!(!server.wait().success());
        clients.shutdown().await;
        assert!(socket.exists(), "the unserved socket is left");
    }
    // A regular shutdown removes the socket.
    let listening: Vec<&str> = listen.iter().map(String::as_str).collect();
    let mut server = Server::start_listening(policies.path(), &listening, &[]);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(!socket.exists());
}
