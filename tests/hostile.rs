//! Bad input over raw connections: each has its status and field, and the service goes on.
//!
//! Bytes that no typed client would send are written by hand. After every case the process must
//! be alive and the next good call answered, and in the end nothing in the log may have panicked.
//! `CEDAR_PDP_TEST_BINARY` runs all of it against another binary, such as the release build.
//! `CEDAR_PDP_HOSTILE_SEED` sets the seed of the mutations.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, and should say where"
)]

mod support;

#[path = "hostile/calls.rs"]
mod calls;
#[path = "hostile/connections.rs"]
mod connections;
#[path = "hostile/costs.rs"]
mod costs;
#[path = "hostile/fields.rs"]
mod fields;
#[path = "hostile/frames.rs"]
mod frames;
#[path = "hostile/house.rs"]
mod house;
#[path = "hostile/mutations.rs"]
mod mutations;
#[path = "hostile/nesting.rs"]
mod nesting;
#[allow(dead_code, reason = "a part of it is used here")]
#[path = "hostile/raw.rs"]
mod raw;
#[path = "hostile/requests.rs"]
mod requests;
#[path = "hostile/wire.rs"]
mod wire;
