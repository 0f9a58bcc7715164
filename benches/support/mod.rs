//! What the benchmarks share.
//!
//! A benchmark that cannot measure what it says must end with an error, never with a figure.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each benchmark is a program of its own, and uses a part of this"
)]

pub mod dataset;
pub mod echo;
pub mod figures;
pub mod load;
pub mod processes;
/// Servers as the tests start and ask them.
#[path = "../../tests/support/mod.rs"]
pub mod running;
pub mod world;
