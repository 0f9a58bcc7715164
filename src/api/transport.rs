//! Connections: accepting, TLS, the HTTP/2 preface, running calls, and closing.

pub(crate) mod accept;
mod call_queue;
pub mod connection_task;
pub(crate) mod http2;
pub(crate) mod lifetime;
pub(crate) mod listener;
mod stream;
pub(crate) mod tls;
