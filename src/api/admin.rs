//! The admin server: metrics, liveness, readiness, status and the log filter, by HTTP/1.1 on its
//! own address.
//!
//! It shares nothing with the gRPC server but the process. Connections, sizes, times and the rate
//! of pages are bounded, so that its clients cannot slow down calls. Changes are accepted only from
//! this machine, or with the key of a caller with the right `administer`.

mod access;
mod connections;
pub mod metrics;
pub mod process;
mod service;
mod state;
mod status;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::api::transport::listener::{BoundAddress, ListenError, Listener};
use crate::config::listen::Listen;
use connections::{Activity, OpenConnections};
use service::AdminService;
pub use state::AdminState;

/// Pause after a failed accept, which fails while the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The admin server with an open listener. It serves once [`run`](Self::run) is polled.
pub struct AdminServer {
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
    ///
    /// # Errors
    ///
    /// [`AdminError`]. The listener is closed then.
    pub async fn open(
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

    /// Returns the bound address.
    #[must_use]
    pub fn address(&self) -> &BoundAddress {
        &self.address
    }

    /// Serves until dropped. Draining does not end it: operators look at a draining service too.
    pub async fn run(self) {
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
