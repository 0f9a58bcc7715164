//! The APIs. Each protocol parses its requests, calls the decision path, and encodes the answers.

pub mod admin;
pub mod auth;
pub mod decision;
pub mod grpc;
pub mod metrics;
mod server;
pub mod transport;

pub use auth::caller::{Caller, IdentityKind, Right};
pub use auth::callers::{Callers, CallersMetrics};
pub use auth::registry::CallersError;
pub use grpc::dispatch::Backend;
pub use grpc::status::ERROR_DOMAIN;
pub use grpc::wire::encoded_answer::EncodedAnswer;
pub use server::{OpenError, Server};
pub use transport::tls::{Tls, TlsError, TlsMetrics};
