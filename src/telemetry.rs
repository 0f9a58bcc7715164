//! What the service tells of itself while it runs: log lines, and figures.
//!
//! Nothing here decides what is worth telling; each part of the house says it through `tracing`,
//! or counts it.

pub mod collector;
pub mod decisions;
pub mod log;
pub mod traces;
