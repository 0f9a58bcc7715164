//! cedar-pdp: a policy decision point. It answers, over gRPC, "may this principal do this action
//! on this resource?" from Cedar policies in a directory, and reloads them when they change.
//!
//! There are two paths through this crate. To follow one, read its modules in this order.
//!
//! **The core**, which both paths use:
//! - [`pdp`]: compiles sources to a snapshot, and decides queries on it. No I/O, no clock.
//!
//! **The path of a policy file**, from an author's save to the current snapshot:
//! - [`watch`]: reports that files may have changed.
//! - [`policy_store`]: reads the directory, waits until it settles, and replaces the snapshot.
//!
//! **The path of a request**, from a caller's bytes to the answer:
//! - [`api`]: accepts connections and calls, parses requests, encodes answers.
//! - [`pip`]: verifies tokens, and maps each to a principal.
//! - [`engine`]: answers queries for every protocol, with the current snapshot and the cache.
//!
//! **Shared parts:**
//! - [`config`]: settings, as text and as checked values.
//! - [`decision_log`]: one record for each decision.
//! - [`readiness`]: whether the service is ready for calls.
//! - [`counters`]: cheap counters and histograms, and the metrics page.
//! - [`versioned`]: a value that is replaced as a whole while other threads read it.
//! - [`telemetry`]: log lines, traces, and connections to collectors.
//! - [`app`]: opens all parts, runs them and shuts them down.
//! - [`authoring`]: test cases for policies, and reports.
//! - [`cli`]: the commands.
//!
//! The crate has one cargo feature, `switches`, for `cargo bench --bench worth` only: it lets each
//! fast path be turned off. It changes no answer, and costs nothing when it is off.

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
