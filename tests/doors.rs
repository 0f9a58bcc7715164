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
#[path = "doors/ending.rs"]
mod ending;
#[allow(dead_code, reason = "a part of it is used here")]
#[path = "hostile/frames.rs"]
mod frames;
#[path = "doors/limits.rs"]
mod limits;
#[path = "doors/overload.rs"]
mod overload;
#[path = "doors/pki.rs"]
mod pki;
#[allow(dead_code, reason = "a part of it is used here")]
#[path = "hostile/raw.rs"]
mod raw;
#[path = "doors/tls.rs"]
mod tls;
#[allow(dead_code, reason = "a part of it is used here")]
#[path = "hostile/wire.rs"]
mod wire;
