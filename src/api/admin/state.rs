//! The parts of the service that the admin pages show or change.

use std::sync::Arc;
use std::time::SystemTime;

use crate::api::auth::callers::Callers;
use crate::api::decision::admission::Admission;
use crate::api::grpc::wire::encoded_answer::EncodedAnswer;
use crate::counters::page::Exporters;
use crate::engine::Engine;
use crate::pip::Tokens;
use crate::policy_store::StatusReader;
use crate::readiness::ReadinessReader;
use crate::telemetry::log::LogFilter;

/// The parts of the service that the pages show or change.
pub struct AdminState {
    /// The metrics page.
    pub metrics: Exporters,
    /// The filter of log lines.
    pub log: LogFilter,
    /// The status of the policy store.
    pub status: StatusReader,
    /// The engine, for the counts of its cache.
    pub engine: Arc<Engine<EncodedAnswer>>,
    /// The callers, which may have the right to change the log filter.
    pub callers: Arc<Callers>,
    /// The admission of calls, for its state.
    pub admission: Arc<Admission>,
    /// The token verifier; `None` without issuers.
    pub tokens: Option<Arc<Tokens>>,
    /// The readiness of the service.
    pub readiness: ReadinessReader,
    /// The start time of the process.
    pub started_at: SystemTime,
    /// All settings in force, as JSON. None is a secret.
    pub settings: serde_json::Value,
}
