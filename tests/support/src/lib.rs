//! Code that tests and benchmarks share: the real server process and its clients, raw HTTP/2,
//! certificates, tokens, and polling for a condition.

pub mod client;
pub mod files;
pub mod frames;
pub mod http2;
pub mod load;
pub mod pki;
pub mod protobuf;
pub mod replay;
pub mod server;
pub mod signer;
pub mod staff;
mod waiting;

pub use client::{Answer, channel, get, item_status, parse_uid, request, uid, value};
pub use files::{policy_directory, replace, repository, revision, shipped_policies};
pub use load::{BackgroundCalls, BackgroundClients};
pub use server::{
    Server, binary, command, remove_variables, serve_command, serve_command_of, wait_for_status,
    without_settings,
};
pub use waiting::{TIME_LIMIT, eventually, eventually_blocking};
