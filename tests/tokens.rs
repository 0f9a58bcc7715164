//! `principal_token`, from the outside: the real process, real keys, and the attacks.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what must hold in the shortest way"
)]

mod support;

#[path = "support/replay.rs"]
mod replay;
#[path = "support/signer.rs"]
mod signer;
mod tokens {
    pub(crate) mod attacks;
    pub(crate) mod house;
    pub(crate) mod keys;
    pub(crate) mod mapping;
    pub(crate) mod replay;
    pub(crate) mod revocation;
    pub(crate) mod server;
}
