//! The doors: each parses what its wire carries, asks the engine, and answers.
//!
//! Only this module names tonic, http and the generated messages.

pub mod admin;
mod admission;
mod answer;
mod authorization;
mod backlog;
mod call;
mod callers;
pub mod client;
mod clock;
mod codec;
pub mod connection;
mod deadline;
pub mod figures;
mod from_proto;
mod greeting;
mod health;
mod heavy;
mod identity;
mod lifetime;
mod linger;
pub mod listen;
mod message;
mod parts;
pub mod pb;
mod pending;
mod policy_store;
mod scan;
mod serve;
mod status;
mod tls;
mod to_proto;
mod turn;

use std::future::Future;
use std::io;
use std::sync::Arc;

use futures_util::future::{BoxFuture, Either};
use hyper::body::Incoming;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

pub use answer::EncodedAnswer;
pub use callers::{Caller, Callers, CallersError, CallersFigures, IdentityKind, Right};
use serve::Entrance;
pub use status::ERROR_DOMAIN;
use status::Rejection;
pub use tls::{Tls, TlsError, TlsFigures};

use crate::config::api::{ApiSettings, ClientCertificates};
use crate::config::listen::Listen;
use crate::engine::Engine;
use crate::pip::Tokens;
use crate::policy_store::{Reloads, StatusReader};
use crate::readiness::ReadinessReader;
use crate::telemetry::traces::{CallSpan, Traces};
use admission::Admission;
use answer::AnswerBody;
use authorization::Authorization;
use call::Call;
use figures::{CallFigures, Method};
use listen::{BoundAddress, ListenError, Listener};
use pb::policy_store_service_server::PolicyStoreServiceServer;
use pending::PendingBytes;

/// The largest message of `grpc.health.v1`, which names a service, in bytes.
const MAX_HEALTH_BYTES: usize = 4 << 10;

/// What stands behind the doors.
#[derive(Debug)]
pub struct House {
    /// Decides.
    pub engine: Arc<Engine<EncodedAnswer>>,
    /// Verifies tokens; `None` where none is believed.
    pub tokens: Option<Arc<Tokens>>,
    /// Tells what is in force.
    pub status: StatusReader,
    /// Rereads on demand.
    pub reloads: Reloads,
    /// Whether calls are welcome, and whether the end has begun.
    pub readiness: ReadinessReader,
    /// Where calls are counted, if they are.
    pub figures: Option<Arc<CallFigures>>,
    /// Traces calls, if they are traced.
    pub traces: Option<Traces>,
}

/// Every service, one match away from a call's path.
struct Doors {
    engine: Arc<Engine<EncodedAnswer>>,
    authorization: Authorization,
    /// The services that are not on the hot path, and UNIMPLEMENTED for all other paths.
    others: Routes,
    pending: PendingBytes,
    figures: Option<Arc<CallFigures>>,
    traces: Option<Traces>,
}

impl Doors {
    fn new(house: &House, settings: &ApiSettings) -> Result<Self, tonic_reflection::server::Error> {
        let House {
            engine,
            tokens,
            status,
            reloads,
            readiness,
            figures,
            traces,
        } = house;
        let pending = PendingBytes::new(
            settings.max_pending_bytes,
            settings.connection.max_call_time,
            figures.clone(),
        );
        let authorization = Authorization::new(
            Arc::clone(engine),
            tokens.clone(),
            settings.authorization.clone(),
            settings.max_message_bytes,
            pending.clone(),
            readiness.clone(),
            figures.clone(),
        );
        let health = health::HealthDoor::new(readiness.clone(), settings.services.policy_store);
        let health = HealthServer::new(health).max_decoding_message_size(MAX_HEALTH_BYTES);
        let mut others = Routes::new(health);
        if settings.services.policy_store {
            let store = policy_store::PolicyStore::new(
                Arc::clone(engine),
                status.clone(),
                reloads.clone(),
                readiness.clone(),
                figures.clone(),
            );
            others = others.add_service(PolicyStoreServiceServer::new(store));
        }
        if settings.services.reflection {
            let reflection = || {
                tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            };
            others = others
                .add_service(reflection().build_v1()?)
                .add_service(reflection().build_v1alpha()?);
        }
        Ok(Self {
            engine: Arc::clone(engine),
            authorization,
            others: others.prepare(),
            pending,
            figures: figures.clone(),
            traces: traces.clone(),
        })
    }

    /// The span of a call that begins with these headers, if it is traced.
    fn span(&self, method: Method, headers: &http::HeaderMap) -> Option<Arc<CallSpan>> {
        let traces = self.traces.as_ref().filter(|_| method.is_traced())?;
        traces.begin(|name| headers.get(name)?.to_str().ok())
    }

    /// Answers the call by its service.
    ///
    /// What most calls do not need is boxed: each call has room for all that is not.
    fn call<'a>(
        &'a self,
        method: Method,
        request: http::Request<Incoming>,
        call: &'a Call,
    ) -> impl Future<Output = http::Response<AnswerBody>> + use<'a> {
        let door = &self.authorization;
        let other: BoxFuture<'a, _> = match method {
            Method::Authorize => return Either::Left(door.authorize(request, call)),
            Method::BatchAuthorize => Box::pin(door.batch_authorize(request, call)),
            Method::StreamAuthorize => Box::pin(door.stream_authorize(request, call)),
            Method::GetStatus
            | Method::WatchStatus
            | Method::ListPolicies
            | Method::Reload
            | Method::HealthCheck
            | Method::HealthWatch
            | Method::Reflection
            | Method::OldReflection
            | Method::Other => Box::pin(self.others(request, call)),
        };
        Either::Right(other)
    }

    /// The whole answer to a call that gets none.
    fn refuse(&self, rejection: Rejection) -> http::Response<AnswerBody> {
        self.count(&rejection);
        serve::refused(rejection)
    }

    fn count(&self, rejection: &Rejection) {
        if let Some(figures) = &self.figures {
            figures.refused(rejection);
        }
    }

    async fn others(
        &self,
        request: http::Request<Incoming>,
        call: &Call,
    ) -> http::Response<AnswerBody> {
        let request = call.put_with(request.map(|body| Body::new(self.pending.counting(body))));
        // INVARIANT: the routes' error type is `Infallible`.
        match self.others.clone().call(request).await {
            Ok(response) => response.map(AnswerBody::tonic),
            Err(never) => match never {},
        }
    }
}

/// tonic refuses a message beyond the size limit as OUT_OF_RANGE; the contract says
/// RESOURCE_EXHAUSTED. No method of ours has a use for OUT_OF_RANGE.
fn by_contract(mut response: http::Response<AnswerBody>) -> http::Response<AnswerBody> {
    if let AnswerBody::Encoded(_) = response.body() {
        return response;
    }
    const OUT_OF_RANGE: i32 = Code::OutOfRange as i32;
    if let Some(status) = response.headers_mut().get_mut("grpc-status")
        && status.to_str().ok().and_then(|code| code.parse().ok()) == Some(OUT_OF_RANGE)
    {
        *status = http::HeaderValue::from(Code::ResourceExhausted as i32);
    }
    response
}

/// Why the doors could not be opened.
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
    entrance: Arc<Entrance>,
    tls: Option<Arc<Tls>>,
    callers: Arc<Callers>,
    /// What keeps the doors' own files in view. None of it ends by itself.
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
        house: &House,
        settings: &ApiSettings,
    ) -> Result<Self, OpenError> {
        let doors = Doors::new(house, settings)?;
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
                    Arc::clone(&callers).follow(settings.follow, trace),
                ));
                callers
            }
        };
        let asks_for_certificates = settings
            .tls
            .as_ref()
            .is_some_and(|tls| tls.clients != ClientCertificates::None);
        if callers.show_certificates() && !asks_for_certificates {
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
        let entrance = Entrance {
            doors,
            tls: tls.clone(),
            callers: Arc::clone(&callers),
            limits: settings.connection.clone(),
            admission: Admission::new(settings.admission.clone()),
            seats: Arc::new(Semaphore::new(settings.connection.max_connections)),
            readiness: house.readiness.clone(),
        };
        Ok(Self {
            listeners,
            addresses,
            entrance: Arc::new(entrance),
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

    /// What is spoken on TCP, to tell figures of.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }

    /// Who may call, to tell figures of.
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
                tokio::spawn(serve::accept_loop(
                    listener,
                    Arc::clone(&self.entrance),
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
