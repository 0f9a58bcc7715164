//! The ground: sources in, snapshot out; snapshot and query in, answer out.
//!
//! No I/O, no clock, no async, no logging. The same snapshot and query always give the same
//! answer: that is what makes answers cacheable, replayable and testable.

pub mod answer;
pub mod diagnostic;
pub mod explain;
pub mod query;
pub mod snapshot;
pub mod sources;
