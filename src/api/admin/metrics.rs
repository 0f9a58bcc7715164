//! The list of all metrics, and the bound on the size of the metrics page.
//!
//! Each part declares its metrics beside its counters, by `counters::page`. Labels have few fixed
//! values, never a caller, a request or a policy.

use crate::api::transport::tls;
use crate::counters::page::Metric;
use crate::policy_store::metrics as policy_store;
use crate::telemetry::traces::metrics as traces;
use crate::{api, decision_log, engine, pip, readiness};

/// Most series on a page, whatever callers send.
pub const MAX_SERIES: usize = 600;

/// All metrics by part, in the order of the page.
pub const METRICS: &[&[Metric]] = &[
    super::process::METRICS,
    readiness::METRICS,
    engine::metrics::METRICS,
    api::metrics::METRICS,
    api::decision::admission::METRICS,
    tls::METRICS,
    api::auth::callers::METRICS,
    pip::metrics::METRICS,
    traces::METRICS,
    policy_store::METRICS,
    decision_log::metrics::METRICS,
];

#[cfg(test)]
mod tests;
