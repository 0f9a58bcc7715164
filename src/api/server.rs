//! The gRPC server: listens on every address, and serves until the service has drained.

use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::auth::callers::Callers;
use super::auth::registry::CallersError;
use super::decision::admission::Admission;
use super::decision::decide::Decider;
use super::decision::large_requests::LargeRequestLimiter;
use super::decision::memory::MemoryBudget;
use super::grpc::call::GrpcService;
use super::grpc::dispatch::{Backend, Router};
use super::grpc::wire::encoded_answer::EncodedAnswer;
use super::transport::accept;
use super::transport::listener::{BoundAddress, ListenError, Listener};
use super::transport::server_state::ServerState;
use super::transport::tls::{Tls, TlsError};
use crate::config::api::{ApiSettings, ClientCertificates};
use crate::config::listen::Listen;

/// The reason why the server cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A listener cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system does not report the address of a listener.
    #[error("cannot read the bound address: {0}")]
    Address(#[source] io::Error),
    /// The TLS files cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The list of callers cannot be used.
    #[error(transparent)]
    Callers(#[from] CallersError),
    /// Plaintext is not allowed on an address that other machines can reach.
    #[error(
        "`{address}` can be reached from other machines and TLS is off: set `tls_cert` and `tls_key`, or `insecure` to allow plaintext"
    )]
    Exposed {
        /// The address.
        address: BoundAddress,
    },
    /// The descriptors that are compiled into the binary are invalid.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A task that runs beside the accept loops and never ends.
type BackgroundTask = BoxFuture<'static, ()>;

/// The server with open listeners. It serves once [`Server::run`] is polled.
pub struct Server {
    listeners: Vec<Listener>,
    addresses: Vec<BoundAddress>,
    state: Arc<ServerState<GrpcService>>,
    background_tasks: Vec<BackgroundTask>,
}

impl Server {
    /// Listens on every address.
    ///
    /// # Errors
    ///
    /// [`OpenError`]. All listeners are closed then.
    pub async fn open(
        listen: &[Listen],
        backend: &Backend,
        settings: &ApiSettings,
    ) -> Result<Self, OpenError> {
        let router = Router::new(decider(backend, settings), backend, settings)?;
        let admission = Admission::new(&settings.admission);
        let mut background_tasks: Vec<BackgroundTask> =
            vec![Box::pin(Arc::clone(&admission).report())];
        let tls = open_tls(settings, &mut background_tasks)?;
        let callers = open_callers(settings, &mut background_tasks)?;
        let mut listeners = Vec::with_capacity(listen.len());
        for address in listen {
            listeners.push(Listener::bind(address, settings.unix_socket_mode).await?);
        }
        let addresses: Vec<_> = listeners
            .iter()
            .map(Listener::address)
            .collect::<Result<_, _>>()
            .map_err(OpenError::Address)?;
        // Checked only now: a host name may resolve to any address. Nothing is served before `run`.
        if tls.is_none()
            && !settings.insecure
            && let Some(address) = addresses.iter().find(|address| !address.is_local())
        {
            return Err(OpenError::Exposed {
                address: address.clone(),
            });
        }
        let state = ServerState {
            service: Arc::new(GrpcService {
                router,
                admission: Arc::clone(&admission),
                max_call_time: settings.connection.max_call_time,
            }),
            tls,
            callers,
            limits: settings.connection.clone(),
            admission,
            connection_permits: Arc::new(Semaphore::new(settings.connection.max_connections)),
            readiness: backend.readiness.clone(),
            metrics: backend.metrics.clone(),
        };
        Ok(Self {
            listeners,
            addresses,
            state: Arc::new(state),
            background_tasks,
        })
    }

    /// Returns the bound addresses, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[BoundAddress] {
        &self.addresses
    }

    /// Returns the TLS of TCP connections, for its metrics; `None` if they are plaintext.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.state.tls.clone()
    }

    /// Returns the list of callers, for its metrics.
    #[must_use]
    pub fn callers(&self) -> Arc<Callers> {
        Arc::clone(&self.state.callers)
    }

    /// Returns the admission of calls, for its metrics and state.
    #[must_use]
    pub fn admission(&self) -> Arc<Admission> {
        Arc::clone(&self.state.admission)
    }

    /// Serves until draining begins and the last connection has ended.
    pub async fn run(self) {
        let mut background_tasks: JoinSet<()> = self.background_tasks.into_iter().collect();
        let (token, mut all_dropped) = mpsc::channel(1);
        let loops: Vec<_> = self
            .listeners
            .into_iter()
            .map(|listener| {
                tokio::spawn(accept::accept_loop(
                    listener,
                    Arc::clone(&self.state),
                    token.clone(),
                ))
            })
            .collect();
        for accept_loop in loops {
            if let Err(error) = accept_loop.await {
                tracing::error!(%error, "an accept loop panicked");
            }
        }
        drop(token);
        // Nothing is ever sent: this returns when the last connection drops its token.
        let _: Option<std::convert::Infallible> = all_dropped.recv().await;
        background_tasks.shutdown().await;
    }
}

/// Opens TLS, if it is on, and adds the task that reloads its files.
fn open_tls(
    settings: &ApiSettings,
    tasks: &mut Vec<BackgroundTask>,
) -> Result<Option<Arc<Tls>>, OpenError> {
    let Some(files) = &settings.tls else {
        return Ok(None);
    };
    let (tls, fingerprint) = Tls::open(files.clone())?;
    let reloading = Arc::clone(&tls).reload_on_change(settings.follow, fingerprint);
    tasks.push(Box::pin(reloading));
    Ok(Some(tls))
}

/// Opens the list of callers, if there is one, and adds the task that reloads it.
fn open_callers(
    settings: &ApiSettings,
    tasks: &mut Vec<BackgroundTask>,
) -> Result<Arc<Callers>, OpenError> {
    let Some(file) = &settings.callers else {
        return Ok(Arc::new(Callers::Anyone));
    };
    let (callers, fingerprint) = Callers::open(file)?;
    let callers = Arc::new(callers);
    tasks.push(Box::pin(
        Arc::clone(&callers).reload_on_change(settings.follow, fingerprint),
    ));
    let clients = settings.tls.as_ref().map(|tls| &tls.clients);
    if callers.uses_certificates() && matches!(clients, None | Some(ClientCertificates::None)) {
        tracing::warn!(
            "callers are listed by certificate, but client certificates are not requested: see tls_client_auth"
        );
    }
    Ok(callers)
}

/// Builds the decision path that all protocols share.
fn decider(backend: &Backend, settings: &ApiSettings) -> Decider<EncodedAnswer> {
    Decider {
        engine: Arc::clone(&backend.engine),
        tokens: backend.tokens.clone(),
        rules: Arc::new(settings.authorization.clone()),
        memory: MemoryBudget::new(
            settings.max_pending_bytes,
            settings.connection.max_call_time,
            backend.metrics.clone(),
        ),
        large_requests: LargeRequestLimiter::new(),
        readiness: backend.readiness.clone(),
        metrics: backend.metrics.clone(),
    }
}
