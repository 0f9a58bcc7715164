//! Streams: correlation ids, failing items, reloads, and too many matching policies.

use std::fs;

use cedar_pdp::api::grpc::pb;
use pb::batch_authorize_result::Result as BatchResult;
use pb::stream_authorize_response::Result as StreamResult;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use tonic_types::RpcStatusExt as _;

use super::{ALL_ARE_PERMITTED, authorize, next, sample_request};
use crate::support::{Server, policy_directory, request, revision};

/// Opens a stream; returns its sender and its answers.
pub(super) async fn open_stream(
    server: &Server,
) -> (
    mpsc::Sender<pb::StreamAuthorizeRequest>,
    Streaming<pb::StreamAuthorizeResponse>,
) {
    let (items, sent) = mpsc::channel(8);
    let mut client = server.authorization().await;
    let answers = client
        .stream_authorize(ReceiverStream::new(sent))
        .await
        .unwrap();
    (items, answers.into_inner())
}

pub(super) fn item(
    correlation_id: u64,
    request: Option<pb::AuthorizeRequest>,
) -> pb::StreamAuthorizeRequest {
    pb::StreamAuthorizeRequest {
        correlation_id,
        request,
    }
}

#[tokio::test]
async fn stream_answers_carry_correlation_ids() {
    // After half-close the stream ends with OK.
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let (items, mut answers) = open_stream(&server).await;
    // The service does not interpret the client's numbers: duplicates are fine.
    let ids = [7, 0, u64::MAX, 7];
    for id in ids {
        items.send(item(id, Some(sample_request()))).await.unwrap();
    }
    drop(items);
    let mut answered = Vec::new();
    while let Some(answer) = next(&mut answers).await.unwrap() {
        assert!(matches!(answer.result, Some(StreamResult::Response(_))));
        answered.push(answer.correlation_id);
    }
    answered.sort_unstable();
    assert_eq!(answered, [0, 7, 7, u64::MAX]);
}

#[tokio::test]
async fn failed_item_leaves_the_stream_open() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let (items, mut answers) = open_stream(&server).await;
    items.send(item(1, None)).await.unwrap();
    let answer = next(&mut answers).await.unwrap().unwrap();
    assert_eq!(answer.correlation_id, 1);
    let Some(StreamResult::Error(error)) = answer.result else {
        panic!("{answer:?}");
    };
    assert_eq!(Code::from(error.code), Code::InvalidArgument);
    let details = error.get_details_bad_request().unwrap();
    assert_eq!(details.field_violations[0].field, "principal");
    items.send(item(2, Some(sample_request()))).await.unwrap();
    let answer = next(&mut answers).await.unwrap().unwrap();
    assert!(matches!(answer.result, Some(StreamResult::Response(_))));
}

#[tokio::test]
async fn open_stream_sees_every_reload() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let (items, mut answers) = open_stream(&server).await;
    let mut store = server.policy_store().await;
    for text in [ALL_ARE_PERMITTED, "forbid (principal, action, resource);"] {
        fs::write(directory.path().join("a.cedar"), text).unwrap();
        store.reload(pb::ReloadRequest {}).await.unwrap();
        items.send(item(1, Some(sample_request()))).await.unwrap();
        let answer = next(&mut answers).await.unwrap().unwrap();
        let Some(StreamResult::Response(answer)) = answer.result else {
            panic!("{answer:?}");
        };
        assert_eq!(answer.revision, revision(&[("a.cedar", text)]));
        assert_eq!(
            answer.decision() == pb::Decision::Allow,
            text == ALL_ARE_PERMITTED
        );
    }
}

/// Returns a request of the user `id` to read.
fn of_user(id: &str) -> pb::AuthorizeRequest {
    request(&format!("User::{id:?}"), r#"Action::"read""#, r#"Doc::"1""#)
}

#[tokio::test]
async fn too_many_matching_policies_reject_the_request() {
    // Other requests are answered.
    let to = |id: &str, count: usize| {
        format!("permit (principal == User::{id:?}, action, resource);\n").repeat(count)
    };
    let policies = [ALL_ARE_PERMITTED, "\n", &to("few", 4), &to("crowd", 6)].concat();
    let directory = policy_directory(&[("a.cedar", &policies)]);
    let server = Server::start(directory.path(), &["--max-candidates", "5"]);
    server.wait_for_log("one request may match 7 policies, such as `a.cedar#10`");
    server.wait_for_log("raise `--max-candidates`");
    let message = "more than 5 policies match this principal, action and resource; `max_candidates` \
                allows no more";

    // Five policies match the user `few`, which is the limit.
    for (id, determining) in [("alice", 1), ("few", 5)] {
        let answer = authorize(&server, of_user(id)).await.unwrap();
        assert_eq!(answer.decision(), pb::Decision::Allow);
        assert_eq!(answer.determining_policies.len(), determining, "{answer:?}");
    }
    for explain in [false, true] {
        let request = pb::AuthorizeRequest {
            explain,
            ..of_user("crowd")
        };
        // The rejection is not cached as another result.
        for _ in 0..2 {
            let rejected = authorize(&server, request.clone()).await.unwrap_err();
            assert_eq!(rejected.code(), Code::ResourceExhausted, "{rejected:?}");
            assert_eq!(rejected.message(), message);
        }

        let mut client = server.authorization().await;
        let requests = vec![of_user("few"), request.clone(), of_user("alice")];
        let batch = pb::BatchAuthorizeRequest { requests };
        let answered = client.batch_authorize(batch).await.unwrap().into_inner();
        let results: Vec<_> = answered
            .results
            .into_iter()
            .map(|result| result.result.unwrap())
            .collect();
        let [
            BatchResult::Response(few),
            BatchResult::Error(rejected),
            BatchResult::Response(alice),
        ] = &results[..]
        else {
            panic!("{results:?}");
        };
        assert_eq!(few.decision(), pb::Decision::Allow);
        assert_eq!(alice.decision(), pb::Decision::Allow);
        assert_eq!(Code::from(rejected.code), Code::ResourceExhausted);
        assert_eq!(rejected.message, message);

        let (items, mut answers) = open_stream(&server).await;
        for (id, request) in [(1, request), (2, of_user("few"))] {
            items.send(item(id, Some(request))).await.unwrap();
        }
        let answer = next(&mut answers).await.unwrap().unwrap();
        assert_eq!(answer.correlation_id, 1);
        let Some(StreamResult::Error(rejected)) = answer.result else {
            panic!("{answer:?}");
        };
        assert_eq!(Code::from(rejected.code), Code::ResourceExhausted);
        assert_eq!(rejected.message, message);
        let answer = next(&mut answers).await.unwrap().unwrap();
        assert_eq!(answer.correlation_id, 2);
        let Some(StreamResult::Response(few)) = answer.result else {
            panic!("{answer:?}");
        };
        assert_eq!(few.decision(), pb::Decision::Allow);
    }
}
