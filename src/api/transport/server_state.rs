//! State that all connections of the server share.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::tls::Tls;
use crate::api::auth::callers::Callers;
use crate::api::decision::admission::Admission;
use crate::api::metrics::{CallMetrics, Closing};
use crate::config::api::ConnectionLimits;
use crate::readiness::ReadinessReader;

/// State that all connections share.
pub(crate) struct ServerState<S> {
    /// The service that answers calls.
    pub(crate) service: Arc<S>,
    /// TLS on TCP; `None` is plaintext.
    pub(crate) tls: Option<Arc<Tls>>,
    /// The programs that may call.
    pub(crate) callers: Arc<Callers>,
    pub(crate) limits: ConnectionLimits,
    pub(crate) admission: Arc<Admission>,
    /// One permit for each open connection.
    pub(crate) connection_permits: Arc<Semaphore>,
    pub(crate) readiness: ReadinessReader,
    /// `None` if metrics are off.
    pub(crate) metrics: Option<Arc<CallMetrics>>,
}

impl<S> ServerState<S> {
    /// Counts a connection that the service closes.
    pub(crate) fn count_closed(&self, reason: Closing) {
        if let Some(metrics) = &self.metrics {
            metrics.count_closing(reason);
        }
    }
}
