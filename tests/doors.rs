//! Who is let in and how: certificates, keys, users of a socket; what is spoken; what is bounded.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, and should say where"
)]

mod support;

#[path = "doors/callers.rs"]
mod callers;
#[path = "doors/pki.rs"]
mod pki;
#[path = "doors/tls.rs"]
mod tls;
