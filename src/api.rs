//! The APIs. Each protocol parses its requests, calls the decision path, and encodes the answers.

pub mod admin;
pub(crate) mod auth;
pub(crate) mod decision;
pub mod grpc;
pub(crate) mod metrics;
mod server;
pub mod transport;

pub(crate) use grpc::dispatch::Backend;
pub use grpc::status::{ERROR_DOMAIN, ListedReason, listed_reasons};
pub(crate) use grpc::wire::encoded_answer::EncodedAnswer;
pub(crate) use server::{OpenError, Server};
