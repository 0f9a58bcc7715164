//! Log lines, traces, metrics, and the connections to OpenTelemetry collectors.
//!
//! Nothing here decides what is reported: other parts log through `tracing`, count, or record spans.

pub mod collector;
pub mod log;
pub mod otlp_logs;
pub mod traces;
