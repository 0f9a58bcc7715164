//! cedar-pdp: a policy decision point. It answers, over gRPC, "may this principal do this action
//! on this resource?" from Cedar policies in a directory, and follows their edits.
//!
//! Two stories run through this crate, and both can be read by opening modules in this order.
//!
//! **The ground** both stand on:
//! - [`pdp`]: sources in, snapshot out; snapshot and query in, answer out. No I/O, no clock.
//!
//! **The life of a policy file**, from an author's save to the snapshot in force:
//! - [`watch`]: something changed, perhaps.
//! - [`policy_store`]: what the directory holds, whether it has come to rest, whether it may
//!   replace what is in force.
//!
//! **The life of a request**, from a caller's bytes to the answer:
//! - [`api`]: the doors: bytes to queries, answers to bytes.
//! - [`engine`]: the one function that every door calls: snapshot, cache, decision.
//! - [`pip`]: verifies tokens: a token becomes a principal.
//!
//! **Beside them:**
//! - [`config`]: settings, as text and as checked values.
//! - [`decision_log`]: what was decided, a line each.
//! - [`readiness`]: whether callers are welcome.
//! - [`counters`]: counters that cost next to nothing.
//! - [`versioned`]: a value that is replaced as a whole while others read it.
//! - [`telemetry`]: what the service tells of itself: log lines, metrics.
//! - [`app`]: assembles the service.
//! - [`authoring`]: test cases of policies, and reports.
//! - [`cli`]: the commands.
//!
//! The crate has no cargo features.

pub mod pdp;

pub mod policy_store;
pub mod watch;

pub mod api;
pub mod engine;
pub mod pip;

pub mod app;
pub mod authoring;
pub mod cli;
pub mod config;
pub mod counters;
pub mod decision_log;
pub mod readiness;
pub mod telemetry;
pub mod versioned;
