//! The running service with real clients.

mod batch;
mod example;
mod explain;
mod health;
mod listen;
mod reflection;
mod shutdown;
mod status_and_list;
mod stream;
mod validation;

use std::collections::BTreeMap;

use cedar_pdp::api::grpc::pb;
use pb::value::Kind;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::support::{Server, TIME_LIMIT, request, value};

const ALL_ARE_PERMITTED: &str = "permit (principal, action, resource);";

fn sample_request() -> pb::AuthorizeRequest {
    request(r#"User::"alice""#, r#"Action::"read""#, r#"Doc::"1""#)
}

fn context(fields: &[(&str, Kind)]) -> BTreeMap<String, pb::Value> {
    fields
        .iter()
        .map(|(name, kind)| ((*name).to_owned(), value(kind.clone())))
        .collect()
}

async fn authorize(
    server: &Server,
    request: pb::AuthorizeRequest,
) -> Result<pb::AuthorizeResponse, Status> {
    let mut client = server.authorization().await;
    client
        .authorize(request)
        .await
        .map(tonic::Response::into_inner)
}

/// Returns the field that an INVALID_ARGUMENT status names.
#[track_caller]
fn field(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_details_bad_request().expect("a BadRequest");
    details.field_violations[0].field.clone()
}

/// Returns the next message of a stream, within the time limit.
async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    let next = tokio::time::timeout(TIME_LIMIT, stream.message()).await;
    next.expect("the stream continues or ends in time")
}
