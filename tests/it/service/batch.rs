//! Batches: order, failing items, limits.

use cedar_pdp::api::grpc::pb;
use pb::authorize_request::Identity;
use pb::batch_authorize_result::Result as BatchResult;
use pb::value::Kind;
use tonic::Code;
use tonic_types::RpcStatusExt as _;

use super::example::example;
use super::{ALL_ARE_PERMITTED, context, sample_request};
use crate::support::{Server, policy_directory, request, revision, shipped_policies, uid};

#[tokio::test]
async fn batch_keeps_order_and_isolates_errors() {
    let server = Server::start(&shipped_policies(), &[]);
    let mut client = server.authorization().await;
    let invalid = pb::AuthorizeRequest {
        context: context(&[("ip", Kind::Ip("300.1.1.1".to_owned()))]),
        ..example("felix.brandt", "readInvoice", "INV-2041")
    };
    let token = pb::AuthorizeRequest {
        identity: Some(Identity::PrincipalToken("x".to_owned())),
        ..example("felix.brandt", "readInvoice", "INV-2041")
    };
    let requests = vec![
        example("felix.brandt", "readInvoice", "INV-2041"),
        invalid,
        example("felix.brandt", "readInvoice", "INV-2044"),
        token,
        pb::AuthorizeRequest::default(),
    ];
    let batch = pb::BatchAuthorizeRequest { requests };
    let answered = client.batch_authorize(batch).await.unwrap().into_inner();
    let decisions: Vec<_> = answered
        .results
        .iter()
        .map(|result| match result.result.as_ref().unwrap() {
            BatchResult::Response(response) => {
                assert_eq!(response.revision, answered.revision);
                Ok(response.decision())
            }
            BatchResult::Error(error) => {
                assert!(!error.message.is_empty());
                let field = error
                    .get_details_bad_request()
                    .map(|details| details.field_violations[0].field.clone());
                let reason = error.get_details_error_info().map(|info| info.reason);
                Err((Code::from(error.code), field.or(reason)))
            }
        })
        .collect();
    let invalid = |field: &str| Err((Code::InvalidArgument, Some(field.to_owned())));
    assert_eq!(
        decisions,
        [
            Ok(pb::Decision::Allow),
            invalid(r#"context["ip"]"#),
            Ok(pb::Decision::Deny),
            Err((
                Code::Unauthenticated,
                Some("TOKENS_NOT_CONFIGURED".to_owned())
            )),
            invalid("principal"),
        ]
    );
}

/// Batch items equal unary answers, cached or not, in any combination.
#[tokio::test]
async fn long_batch_items_equal_unary_answers() {
    let policy =
        r#"permit(principal, action, resource) when { context.n == 7 || principal == User::"3" };"#;
    let directory = policy_directory(&[("a.cedar", policy)]);
    let server = Server::start(directory.path(), &[]);
    let mut client = server.authorization().await;
    // Some items occur twice, some cannot be decided, and some have parts that a plain request
    // lacks.
    let item = |n: i64| {
        let user = format!(r#"User::"{}""#, n % 40);
        let mut item = request(&user, r#"Action::"read""#, r#"Doc::"1""#);
        item.context = context(&[("n", Kind::Long(n % 90))]);
        match n {
            250 => item.resource = None,
            450 => item.context = context(&[("n", Kind::Ip("300.1.1.1".to_owned()))]),
            550 => item.identity = Some(Identity::PrincipalToken("x".to_owned())),
            _ => {}
        }
        item
    };
    // A separate server, which leaves this server's cache unchanged.
    let apart = Server::start(directory.path(), &["--cache-bytes", "0"]);
    let mut alone = apart.authorization().await;
    let mut wanted = Vec::new();
    for n in 0..600 {
        wanted.push(match alone.authorize(item(n)).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err((i32::from(status.code()), status.message().to_owned())),
        });
        if n > 100 && n % 7 != 0 {
            let _cached = client.authorize(item(n)).await;
        }
    }
    let batch = pb::BatchAuthorizeRequest {
        requests: (0..600).map(item).collect(),
    };
    for round in ["some are cached", "all are cached"] {
        let answered = client.batch_authorize(batch.clone()).await.unwrap();
        let results = answered.into_inner().results;
        assert_eq!(results.len(), wanted.len());
        for (n, (result, wanted)) in results.into_iter().zip(&wanted).enumerate() {
            let got = match result.result.unwrap() {
                BatchResult::Response(response) => Ok(response),
                BatchResult::Error(error) => Err((error.code, error.message)),
            };
            assert_eq!(got, *wanted, "item {n} when {round}");
        }
    }
    let mut store = server.policy_store().await;
    let store_status = store.get_status(pb::GetStatusRequest {}).await.unwrap();
    let cache = store_status.into_inner().cache.unwrap();
    // Every item is looked up once: 1,200 batch items and 428 unary calls, except two in each round
    // and in the unary calls that never become a query.
    assert_eq!(cache.hits + cache.misses, 1_200 + 428 - 3 * 2, "{cache:?}");
}

#[tokio::test]
async fn empty_batch_returns_the_revision() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let mut client = server.authorization().await;
    let answered = client
        .batch_authorize(pb::BatchAuthorizeRequest::default())
        .await;
    let answered = answered.unwrap().into_inner();
    assert_eq!(
        answered.revision,
        revision(&[("a.cedar", ALL_ARE_PERMITTED)])
    );
    assert!(answered.results.is_empty());
}

#[tokio::test]
async fn oversized_batch_is_rejected_whole() {
    // Too many items, or too many bytes.
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let limits = ["--max-batch-items", "10", "--max-message-bytes", "20000"];
    let server = Server::start(directory.path(), &limits);
    let mut client = server.authorization().await;
    let mut ask = async |count: usize, id: &str| {
        let request = pb::AuthorizeRequest {
            identity: Some(Identity::Principal(uid("User", id))),
            ..sample_request()
        };
        let batch = pb::BatchAuthorizeRequest {
            requests: vec![request; count],
        };
        client
            .batch_authorize(batch)
            .await
            .map(|answered| answered.into_inner().results.len())
    };
    assert_eq!(ask(10, "alice").await.unwrap(), 10);
    assert_eq!(
        ask(11, "alice").await.unwrap_err().code(),
        Code::ResourceExhausted
    );
    assert_eq!(
        ask(1, &"a".repeat(30_000)).await.unwrap_err().code(),
        Code::ResourceExhausted
    );
    assert_eq!(ask(10, "alice").await.unwrap(), 10);
}
