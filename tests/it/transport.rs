//! Who is let in and how: certificates, keys, users of a socket; what is spoken; what is bounded.

mod callers;
mod limits;
mod overload;
mod shutdown;
mod tls;
