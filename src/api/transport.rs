//! Connections: accepting, TLS, the HTTP/2 preface, running calls, and closing.

pub(crate) mod accept;
pub(crate) mod call_queue;
pub mod connection_task;
pub(crate) mod http2;
pub mod lifetime;
pub mod listener;
pub(crate) mod preface;
pub(crate) mod server_state;
pub(crate) mod stream;
pub mod tls;
