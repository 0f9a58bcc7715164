//! Limits on connections.

use std::time::Duration;

use super::lifetime::LifetimeLimits;

/// What a connection may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// The most calls at once on one connection.
    pub max_concurrent_streams: u32,
    /// How long a connection may be silent before it is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// How long it has to give one.
    pub keepalive_timeout: Duration,
    /// How long a new connection may take to shake hands and to say that it speaks HTTP/2.
    pub handshake_timeout: Duration,
    /// The most connections.
    pub max_connections: usize,
    /// How long one may last.
    pub lifetime: LifetimeLimits,
    /// The most that the headers of a call may take, as HTTP/2 counts them: 32 bytes for each, and
    /// its name and value.
    pub max_header_bytes: u32,
    /// The longest that a unary call may take; `None` leaves it to its caller.
    pub max_call_time: Option<Duration>,
}
