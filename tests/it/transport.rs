//! Connections and callers: identification, protocols and limits.

mod callers;
mod limits;
mod overload;
mod shutdown;
mod tls;

use cedar_pdp::api::grpc::pb;

use crate::support::request;

/// Policies that allow everything.
const OPEN: &[(&str, &str)] = &[("open.cedar", "permit(principal, action, resource);")];

/// Returns a request that [`OPEN`] allows.
fn sample_request() -> pb::AuthorizeRequest {
    request(r#"User::"a""#, r#"Action::"read""#, r#"Doc::"1""#)
}
