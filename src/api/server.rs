//! The server: listens on every address, and serves until the service drains.

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
use super::transport::accept::{self, ServerState};
use super::transport::listener::{BoundAddress, ListenError, Listener};
use super::transport::tls::{Tls, TlsError};
use crate::config::api::{ApiSettings, ClientCertificates};
use crate::config::listen::Listen;

/// Why the router could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An address could not be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The address that the system gave could not be read back.
    #[error("cannot tell the address that was bound: {0}")]
    Address(#[source] io::Error),
    /// There is nothing to speak TLS with.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nobody is known to be let in.
    #[error(transparent)]
    Callers(#[from] CallersError),
    /// Other machines would be served in the clear, and nobody said that they should be.
    #[error(
        "`{address}` can be reached from other machines and would be served without TLS: set `tls_cert` and `tls_key`, or `insecure` if that is meant"
    )]
    Exposed {
        /// The address.
        address: BoundAddress,
    },
    /// The descriptors that this program was built with are not sound.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Open listeners, which answer once [`Server::run`] is polled.
pub struct Server {
    listeners: Vec<Listener>,
    addresses: Vec<BoundAddress>,
    state: Arc<ServerState<GrpcService>>,
    tls: Option<Arc<Tls>>,
    callers: Arc<Callers>,
    /// What keeps the router' own files in view. None of it ends by itself.
    following: Vec<BoxFuture<'static, ()>>,
}

impl Server {
    /// Listens on every address.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; then no address is held.
    pub async fn open(
        listen: &[Listen],
        backend: &Backend,
        settings: &ApiSettings,
    ) -> Result<Self, OpenError> {
        let router = Router::new(decider(backend, settings), backend, settings)?;
        let admission = Admission::new(settings.admission.clone());
        let mut following: Vec<BoxFuture<'static, ()>> = Vec::new();
        let tls = match &settings.tls {
            None => None,
            Some(files) => {
                let (tls, trace) = Tls::open(files.clone())?;
                following.push(Box::pin(Arc::clone(&tls).follow(settings.follow, trace)));
                Some(tls)
            }
        };
        let callers = match &settings.callers {
            None => Arc::new(Callers::Anyone),
            Some(file) => {
                let (callers, trace) = Callers::open(file)?;
                let callers = Arc::new(callers);
                following.push(Box::pin(
                    Arc::clone(&callers).reload_on_change(settings.follow, trace),
                ));
                callers
            }
        };
        let asks_for_certificates = settings
            .tls
            .as_ref()
            .is_some_and(|tls| tls.clients != ClientCertificates::None);
        if callers.uses_certificates() && !asks_for_certificates {
            tracing::warn!(
                "callers are listed by what certificates say, and no certificate is asked for: see tls_client_auth"
            );
        }
        let mut listeners = Vec::with_capacity(listen.len());
        for address in listen {
            listeners.push(Listener::bind(address, settings.unix_socket_mode).await?);
        }
        let addresses: Vec<_> = listeners
            .iter()
            .map(Listener::address)
            .collect::<Result<_, _>>()
            .map_err(OpenError::Address)?;
        // A name may stand for any address, so this is known only now. Nobody is served before
        // `run`.
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
            tls: tls.clone(),
            callers: Arc::clone(&callers),
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
            tls,
            callers,
            following,
        })
    }

    /// Where callers find it, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[BoundAddress] {
        &self.addresses
    }

    /// What is spoken on TCP, to tell metrics of.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }

    /// Who may call, to tell metrics of.
    #[must_use]
    pub fn callers(&self) -> Arc<Callers> {
        Arc::clone(&self.callers)
    }

    /// Serves until draining begins and the last connection has ended.
    pub async fn run(self) {
        let mut following = JoinSet::new();
        for files in self.following {
            following.spawn(files);
        }
        let (alive, mut all_gone) = mpsc::channel(1);
        let loops: Vec<_> = self
            .listeners
            .into_iter()
            .map(|listener| {
                tokio::spawn(accept::accept_loop(
                    listener,
                    Arc::clone(&self.state),
                    alive.clone(),
                ))
            })
            .collect();
        for accepting in loops {
            if let Err(error) = accepting.await {
                tracing::error!(%error, "an accept loop failed");
            }
        }
        drop(alive);
        // Nothing is ever sent: this returns when the last connection drops its sender.
        let _: Option<std::convert::Infallible> = all_gone.recv().await;
        following.shutdown().await;
    }
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
