//! The decision log of the running service, read as an operator reads it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what must hold in the shortest way"
)]

mod support;

#[path = "decision_log/collector.rs"]
mod collector;
#[path = "decision_log/faults.rs"]
mod faults;
#[path = "decision_log/house.rs"]
mod house;
#[allow(dead_code, reason = "a part of it is used here")]
#[path = "hostile/raw.rs"]
mod raw;
#[path = "decision_log/records.rs"]
mod records;
#[path = "support/replay.rs"]
mod replay;
#[path = "decision_log/replay.rs"]
mod replaying;
#[allow(dead_code, reason = "a part of it is used here")]
#[path = "hostile/wire.rs"]
mod wire;
