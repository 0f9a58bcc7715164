//! Connections and callers: identification, protocols and limits.

mod callers;
mod limits;
mod overload;
mod shutdown;
mod tls;
