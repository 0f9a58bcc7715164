//! Connections: accepting, TLS, the preface, HTTP/2, and the life of each.

pub(crate) mod accept;
pub(crate) mod call_queue;
pub mod connection_task;
pub(crate) mod http2;
pub mod lifetime;
pub mod listener;
pub(crate) mod preface;
pub(crate) mod stream;
pub mod tls;
