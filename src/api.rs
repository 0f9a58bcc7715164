//! The doors: each parses what its wire carries, asks the engine, and answers.
//!
//! Only this module names tonic, http and the generated messages.

mod authorization;
pub mod client;
mod codec;
pub mod connection;
mod deadline;
mod from_proto;
mod health;
pub mod listen;
pub mod pb;
mod policy_store;
mod serve;
mod status;
mod to_proto;
mod turn;

use std::io;
use std::sync::Arc;

use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

pub use authorization::AuthorizationRules;
pub use from_proto::RequestRules;
pub use serve::ConnectionLimits;
pub use status::ERROR_DOMAIN;

use crate::config::listen::Listen;
use crate::engine::Engine;
use crate::policy_store::{Reloads, StatusReader};
use crate::readiness::ReadinessReader;
use authorization::Authorization;
use listen::{BoundAddress, ListenError, Listener};
use pb::authorization_service_server::AuthorizationServiceServer;
use pb::policy_store_service_server::PolicyStoreServiceServer;

/// What callers may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiSettings {
    /// What a call to `AuthorizationService` may hold.
    pub authorization: AuthorizationRules,
    /// What a connection may do.
    pub connection: ConnectionLimits,
    /// The largest message that is taken, in bytes.
    pub max_message_bytes: usize,
}

/// What stands behind the doors.
#[derive(Debug)]
pub struct House {
    /// Decides.
    pub engine: Arc<Engine>,
    /// Tells what is in force.
    pub status: StatusReader,
    /// Rereads on demand.
    pub reloads: Reloads,
    /// Whether calls are welcome, and whether the end has begun.
    pub readiness: ReadinessReader,
}

/// Every service, one match away from a call's path.
struct Doors {
    authorization: AuthorizationServiceServer<Authorization>,
    /// The services that are not on the hot path, and UNIMPLEMENTED for all other paths.
    others: Routes,
}

impl Doors {
    fn new(house: &House, settings: &ApiSettings) -> Result<Self, tonic_reflection::server::Error> {
        let House {
            engine,
            status,
            reloads,
            readiness,
        } = house;
        let authorization = Authorization::new(
            Arc::clone(engine),
            settings.authorization.clone(),
            readiness.clone(),
        );
        let store = policy_store::PolicyStore::new(
            Arc::clone(engine),
            status.clone(),
            reloads.clone(),
            readiness.clone(),
        );
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let others = Routes::new(PolicyStoreServiceServer::new(store))
            .add_service(HealthServer::new(health::HealthDoor::new(
                readiness.clone(),
            )))
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .prepare();
        Ok(Self {
            authorization: AuthorizationServiceServer::new(authorization)
                .max_decoding_message_size(settings.max_message_bytes),
            others,
        })
    }

    async fn call(&self, request: http::Request<Body>) -> http::Response<Body> {
        let answered = if request
            .uri()
            .path()
            .starts_with("/pdp.v1.AuthorizationService/")
        {
            self.authorization.clone().call(request).await
        } else {
            self.others.clone().call(request).await
        };
        // INVARIANT: both services' error type is `Infallible`.
        match answered {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
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
    /// The descriptors that this program was built with are not sound.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Open listeners, which answer once [`Server::run`] is polled.
pub struct Server {
    listeners: Vec<Listener>,
    addresses: Vec<BoundAddress>,
    doors: Arc<Doors>,
    limits: ConnectionLimits,
    readiness: ReadinessReader,
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
        let doors = Arc::new(Doors::new(house, settings)?);
        let mut listeners = Vec::with_capacity(listen.len());
        for address in listen {
            listeners.push(Listener::bind(address).await?);
        }
        let addresses = listeners
            .iter()
            .map(Listener::address)
            .collect::<Result<_, _>>()
            .map_err(OpenError::Address)?;
        let readiness = house.readiness.clone();
        Ok(Self {
            listeners,
            addresses,
            doors,
            limits: settings.connection.clone(),
            readiness,
        })
    }

    /// Where callers find it, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[BoundAddress] {
        &self.addresses
    }

    /// Serves until draining begins and the last connection has ended.
    pub async fn run(self) {
        let (alive, mut all_gone) = mpsc::channel(1);
        let loops: Vec<_> = self
            .listeners
            .into_iter()
            .map(|listener| {
                tokio::spawn(serve::accept_loop(
                    listener,
                    Arc::clone(&self.doors),
                    self.limits.clone(),
                    self.readiness.clone(),
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
    }
}
