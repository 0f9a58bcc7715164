//! The admin server: metrics, liveness, readiness, status and the log filter, by HTTP/1.1 on its
//! own address.
//!
//! It shares nothing with the gRPC server but the process. Connections, sizes, times and the rate
//! of pages are bounded, so that its clients cannot slow down calls. Changes are accepted only from
//! this machine, or with the key of a caller with the right `administer`.

mod access;
mod connections;
pub mod metrics;
pub(crate) mod process;
mod service;
mod status;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::api::auth::callers::Callers;
use crate::api::decision::admission::Admission;
use crate::api::grpc::wire::encoded_answer::EncodedAnswer;
use crate::api::transport::listener::{BoundAddress, ListenError, Listener};
use crate::config::listen::Listen;
use crate::counters::page::Exporters;
use crate::engine::Engine;
use crate::pip::Tokens;
use crate::policy_store::StatusReader;
use crate::readiness::ReadinessReader;
use crate::telemetry::log::LogFilter;
use connections::{Activity, OpenConnections};
use service::AdminService;

/// Pause after a failed accept, which fails while the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The parts of the service that the pages show or change.
pub(crate) struct AdminState {
    /// The metrics page.
    pub(crate) metrics: Exporters,
    pub(crate) log: LogFilter,
    pub(crate) status: StatusReader,
    /// The engine, for the counts of its cache.
    pub(crate) engine: Arc<Engine<EncodedAnswer>>,
    /// The callers, which may have the right to change the log filter.
    pub(crate) callers: Arc<Callers>,
    pub(crate) admission: Arc<Admission>,
    /// The token verifier; `None` without issuers.
    pub(crate) tokens: Option<Arc<Tokens>>,
    pub(crate) readiness: ReadinessReader,
    pub(crate) started_at: SystemTime,
    /// All settings in force, as JSON. None is a secret.
    pub(crate) settings: serde_json::Value,
}

/// The admin server with an open listener. It serves once [`run`](Self::run) is polled.
pub(crate) struct AdminServer {
    listener: Listener,
    address: BoundAddress,
    service: Arc<AdminService>,
}

/// The reason why the admin server cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The listener cannot be opened.
    #[error("`admin_listen`: {0}; give another address, or `off`")]
    Listen(#[from] ListenError),
    /// The system does not report the address of the listener.
    #[error("`admin_listen`: cannot read the bound address: {0}")]
    Address(#[source] io::Error),
}

impl AdminServer {
    /// Listens on `address`. `socket_mode` is the mode of the file of a Unix socket.
    pub(crate) async fn open(
        address: &Listen,
        socket_mode: u32,
        state: AdminState,
    ) -> Result<Self, AdminError> {
        let listener = Listener::bind(address, socket_mode).await?;
        let address = listener.address().map_err(AdminError::Address)?;
        Ok(Self {
            listener,
            address,
            service: Arc::new(AdminService::new(state)),
        })
    }

    pub(crate) fn address(&self) -> &BoundAddress {
        &self.address
    }

    /// Serves until dropped. Draining does not end it: operators look at a draining service too.
    pub(crate) async fn run(self) {
        let mut open = OpenConnections::default();
        let mut is_failing = false;
        loop {
            match self.listener.accept().await {
                Ok(connection) => {
                    is_failing = false;
                    let activity = Arc::new(Activity::default());
                    let service = Arc::clone(&self.service);
                    let serving = connections::serve(connection, service, Arc::clone(&activity));
                    open.push(tokio::spawn(serving).abort_handle(), activity);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !is_failing {
                        tracing::warn!(%error, "cannot accept connections to the admin server");
                    }
                    is_failing = true;
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}
