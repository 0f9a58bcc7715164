//! The gRPC services: each decodes a request, calls the decision path or the policy store, and encodes the answer.

pub(crate) mod authorization;
pub(crate) mod authorize;
pub(crate) mod batch;
pub(crate) mod call;
pub(crate) mod client;
pub(crate) mod decode;
pub(crate) mod dispatch;
pub(crate) mod health;
pub mod pb;
pub(crate) mod policy_store;
pub(crate) mod status;
pub(crate) mod stream;
pub(crate) mod wire;
