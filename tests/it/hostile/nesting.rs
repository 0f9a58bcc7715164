//! Nested values, and nested messages.

use cedar_pdp::api::grpc::pb;
use pb::value::Kind;
use prost::Message as _;
use tonic::Code;

use super::requests::{WITHOUT_SCHEMA, attribute, context, good, record, set, tag};
use super::target::Target;
use crate::support::http2::{BATCH, STREAM};
use crate::support::protobuf;
use crate::support::value;

/// Nests a value to this number of levels; a plain value counts as one.
fn nested_value(levels: usize, outer: impl Fn(pb::Value) -> Kind) -> Kind {
    let mut inner = value(Kind::Bool(true));
    for _ in 1..levels {
        inner = value(outer(inner));
    }
    inner.kind.unwrap()
}

fn sets(levels: usize) -> Kind {
    nested_value(levels, |inner| set(vec![inner]))
}

fn records(levels: usize) -> Kind {
    nested_value(levels, |inner| record("x", inner))
}

#[tokio::test(flavor = "multi_thread")]
async fn values_nest_to_32_levels_and_no_further() {
    let mut target = Target::open(WITHOUT_SCHEMA, &[]).await;
    for (kind, depth) in [(sets as fn(usize) -> Kind, "sets"), (records, "records")] {
        for place in [
            context as fn(&str, Kind) -> pb::AuthorizeRequest,
            attribute,
            tag,
        ] {
            let request = place("v", kind(32));
            target.assert_answered(depth, &request).await;
            let batch = pb::BatchAuthorizeRequest {
                requests: vec![request.clone()],
            };
            let batch: pb::BatchAuthorizeResponse = target
                .client
                .call(BATCH, &batch.encode_to_vec())
                .await
                .message();
            assert!(
                matches!(
                    batch.results[0].result,
                    Some(pb::batch_authorize_result::Result::Response(_))
                ),
                "32 levels of {depth} in a batch: {batch:?}"
            );
            let item = pb::StreamAuthorizeRequest {
                correlation_id: 7,
                request: Some(request),
            };
            let item: pb::StreamAuthorizeResponse = target
                .client
                .call(STREAM, &item.encode_to_vec())
                .await
                .message();
            assert!(
                matches!(
                    item.result,
                    Some(pb::stream_authorize_response::Result::Response(_))
                ),
                "32 levels of {depth} in a stream: {item:?}"
            );
        }
    }
    let path = ".set[0]".repeat(32);
    for levels in [33, 34, 40] {
        target
            .assert_rejected(
                "sets",
                Code::InvalidArgument,
                &format!(r#"context["v"]{path}"#),
                &context("v", sets(levels)),
            )
            .await;
        let field = format!(r#"entities[0].attributes["v"]{path}"#);
        target
            .assert_rejected(
                "sets",
                Code::InvalidArgument,
                &field,
                &attribute("v", sets(levels)),
            )
            .await;
        let field = format!(r#"entities[0].tags["v"]{path}"#);
        target
            .assert_rejected(
                "sets",
                Code::InvalidArgument,
                &field,
                &tag("v", sets(levels)),
            )
            .await;
    }
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nesting_beyond_32_levels_is_rejected() {
    // The limit applies whether or not the message decodes.
    let mut target = Target::open(WITHOUT_SCHEMA, &[]).await;
    for levels in [33, 34, 50, 100] {
        for place in [
            context as fn(&str, Kind) -> pb::AuthorizeRequest,
            attribute,
            tag,
        ] {
            let message = place("v", records(levels)).encode_to_vec();
            for (path, message) in [
                (crate::support::http2::AUTHORIZE, message.clone()),
                (BATCH, protobuf::field(1, &message)),
                (STREAM, protobuf::field(2, &message)),
            ] {
                let outcome = target.client.call(path, &message).await;
                // A message that decodes is rejected as an item.
                let rejected = if outcome.code() != Code::Ok {
                    outcome.code() == Code::InvalidArgument
                } else if path == BATCH {
                    use pb::batch_authorize_result::Result;
                    let batch: pb::BatchAuthorizeResponse = outcome.message();
                    matches!(&batch.results[0].result, Some(Result::Error(e)) if e.code == 3)
                } else {
                    use pb::stream_authorize_response::Result;
                    let item: pb::StreamAuthorizeResponse = outcome.message();
                    matches!(&item.result, Some(Result::Error(e)) if e.code == 3)
                };
                assert!(rejected, "{levels} levels of records, {path}: {outcome:?}");
                target.assert_alive("deep records").await;
            }
        }
    }
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lower_nesting_limit_holds() {
    let mut target = Target::open(WITHOUT_SCHEMA, &["--max-value-depth", "2"]).await;
    target
        .assert_answered("2 levels", &context("v", sets(2)))
        .await;
    let case = r#"context["v"].set[0].set[0]"#;
    target
        .assert_rejected(
            "3 levels",
            Code::InvalidArgument,
            case,
            &context("v", sets(3)),
        )
        .await;
    let case = r#"context["v"].record["x"].record["x"]"#;
    target
        .assert_rejected(
            "3 levels",
            Code::InvalidArgument,
            case,
            &context("v", records(3)),
        )
        .await;
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn message_depth_of_100_000_is_harmless() {
    let mut target = Target::open(WITHOUT_SCHEMA, &[]).await;
    let leaf = [0x08, 0x01];
    let good = good().encode_to_vec();
    let with_field = |number: u64, content: &[u8]| {
        let mut message = good.clone();
        message.extend(protobuf::field(number, content));
        message
    };
    let in_context = |value: &[u8]| {
        with_field(
            5,
            &[protobuf::field(1, b"v"), protobuf::field(2, value)].concat(),
        )
    };
    for levels in [60, 1_000, 100_000] {
        let case = format!("{levels} messages within one another");
        let sets = protobuf::nested(&[5, 1], levels, &leaf);
        let records = protobuf::nested(&[6, 1, 2], levels, &leaf);
        target
            .assert_rejected_bytes(&case, Code::InvalidArgument, &in_context(&sets))
            .await;
        target
            .assert_rejected_bytes(&case, Code::InvalidArgument, &in_context(&records))
            .await;
        let attribute = protobuf::field(
            2,
            &[protobuf::field(1, b"v"), protobuf::field(2, &sets)].concat(),
        );
        target
            .assert_rejected_bytes(&case, Code::InvalidArgument, &with_field(6, &attribute))
            .await;
    }
    // Nested groups of an unknown field.
    for closed in [true, false] {
        let mut groups = protobuf::key(99, 3).repeat(100_000);
        if closed {
            groups.extend(protobuf::key(99, 4).repeat(100_000));
        }
        let message = [good.clone(), groups].concat();
        target
            .assert_rejected_bytes("groups", Code::InvalidArgument, &message)
            .await;
    }
    target.close().await;
}
