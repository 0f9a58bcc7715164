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
use super::transport::http2::ServerState;
use super::transport::listener::{BoundAddress, ListenError, Listener};
use super::transport::tls::{Tls, TlsError};
use crate::config::api::{ApiSettings, ClientCertificates};
use crate::config::listen::Listen;

/// The reason why the server cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot read the bound address: {0}")]
    Address(#[source] io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Callers(#[from] CallersError),
    /// Plaintext is not allowed on an address that other machines can reach.
    #[error(
        "`{address}` can be reached from other machines and TLS is off: set `tls_cert` and `tls_key`, or `insecure` to allow plaintext"
    )]
    Exposed { address: BoundAddress },
    /// The descriptors that are compiled into the binary are invalid.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A task that runs beside the accept loops and never ends.
type BackgroundTask = BoxFuture<'static, ()>;

/// The server with open listeners. It serves once [`Server::run`] is polled.
pub(crate) struct Server {
    listeners: Vec<Listener>,
    addresses: Vec<BoundAddress>,
    state: Arc<ServerState<GrpcService>>,
    background_tasks: Vec<BackgroundTask>,
}

impl Server {
    /// Listens on every address. All listeners are closed on an error.
    pub(crate) async fn open(
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
            let address = address.clone();
            return Err(OpenError::Exposed { address });
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

    pub(crate) fn addresses(&self) -> &[BoundAddress] {
        &self.addresses
    }

    /// Returns the TLS of TCP connections; `None` if they are plaintext.
    pub(crate) fn tls(&self) -> Option<Arc<Tls>> {
        self.state.tls.clone()
    }

    pub(crate) fn callers(&self) -> Arc<Callers> {
        Arc::clone(&self.state.callers)
    }

    pub(crate) fn admission(&self) -> Arc<Admission> {
        Arc::clone(&self.state.admission)
    }

    /// Serves until draining begins and the last connection has ended.
    pub(crate) async fn run(self) {
        let mut background_tasks: JoinSet<()> = self.background_tasks.into_iter().collect();
        let (token, mut all_dropped) = mpsc::channel(1);
        let loops = self.listeners.into_iter().map(|listener| {
            let state = Arc::clone(&self.state);
            tokio::spawn(accept::accept_loop(listener, state, token.clone()))
        });
        for accept_loop in loops.collect::<Vec<_>>() {
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
    let reloading = Arc::clone(&callers).reload_on_change(settings.follow, fingerprint);
    tasks.push(Box::pin(reloading));
    let clients = settings.tls.as_ref().map(|tls| &tls.clients);
    if callers.uses_certificates() && matches!(clients, None | Some(ClientCertificates::None)) {
        tracing::warn!(
            "callers are listed by certificate, but client certificates are not requested: set `tls_client_auth`"
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
