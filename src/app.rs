//! Wires the house: opens the policy store, the engine and the doors, and takes them down again.
//!
//! The only place that knows all the parts. Nothing here decides or parses.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::api::listen::BoundAddress;
use crate::api::{
    ApiSettings, AuthorizationRules, ClientCertificates, ConnectionLimits, EncodedAnswer, House,
    OpenError, RequestRules, Server, TlsSettings,
};
use crate::config::{Config, TlsConfig, WatchMode};
use crate::engine::Engine;
use crate::engine::cache::CacheSettings;
use crate::followed::FollowSettings;
use crate::policy_store::{
    self, OpenRefused, Opened, Reader, Reloader, SourceLimits, StatusReader, StoreSettings,
};
use crate::readiness::{Pending, Readiness};
use crate::watch;

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The policy directory is bad, and `--start-unready` was not given.
    #[error(transparent)]
    Policies(#[from] OpenRefused),
    /// A door could not be opened.
    #[error(transparent)]
    Doors(#[from] OpenError),
}

/// The service, bound to its addresses and not yet answering.
pub struct App {
    server: Server,
    reloader: Reloader,
    reloads: policy_store::Reloads,
    snapshots: Reader,
    status: StatusReader,
    engine: Arc<Engine<EncodedAnswer>>,
    readiness: Readiness,
    /// Holds readiness back until a snapshot is in force.
    nothing_loaded: Option<Pending>,
    drain_timeout: Duration,
}

/// Wires everything that `config` asks for and binds its addresses.
///
/// # Errors
///
/// [`BindError`]; then nothing is left behind.
pub async fn bind(config: Config) -> Result<App, BindError> {
    let readiness = Readiness::new();
    let nothing_loaded = readiness.pending();
    let opened = policy_store::open(store_settings(&config)).await?;
    let Opened {
        reader,
        status,
        reloads,
        reloader,
    } = opened;
    let nothing_loaded = reader.load().is_none().then_some(nothing_loaded);
    let engine = Arc::new(Engine::new(
        reader.clone(),
        CacheSettings {
            capacity_bytes: config.cache.bytes,
        },
    ));
    let house = House {
        engine: Arc::clone(&engine),
        status: status.clone(),
        reloads: reloads.clone(),
        readiness: readiness.reader(),
    };
    let server = Server::open(&config.listen, &house, &api_settings(&config)).await?;
    if config.callers_are_unknown()
        && let Some(address) = server.addresses().iter().find(|it| !it.is_local())
    {
        tracing::warn!(%address, "listening beyond this machine, for whoever can connect");
    }
    let drain_timeout = config.drain_timeout;
    Ok(App {
        server,
        reloader,
        reloads,
        snapshots: reader,
        status,
        engine,
        readiness,
        nothing_loaded,
        drain_timeout,
    })
}

impl App {
    /// Where callers find the service, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[BoundAddress] {
        self.server.addresses()
    }

    /// The read side of the policy store's status.
    #[must_use]
    pub fn status(&self) -> StatusReader {
        self.status.clone()
    }

    /// Forces a reread of the policy directory.
    #[must_use]
    pub fn reloads(&self) -> policy_store::Reloads {
        self.reloads.clone()
    }

    /// Serves until `shutdown` completes, then drains: health turns NOT_SERVING, no call is taken
    /// any more, calls in flight finish, streams and watches are told, and all ends at the latest
    /// after the drain timeout.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let Self {
            server,
            reloader,
            snapshots,
            engine,
            readiness,
            nothing_loaded,
            drain_timeout,
            ..
        } = self;
        let mut tasks = JoinSet::new();
        let mut stopping = readiness.reader();
        tasks.spawn(async move { reloader.run(async move { stopping.draining().await }).await });
        tasks.spawn(follow_snapshots(snapshots, engine, nothing_loaded));

        let drained = async {
            shutdown.await;
            tracing::info!(timeout = ?drain_timeout, "draining");
            readiness.drain();
            tokio::time::sleep(drain_timeout).await;
        };
        tokio::select! {
            () = server.run() => tracing::info!("stopped"),
            () = drained => tracing::warn!("calls were still in flight when the drain timeout passed"),
        }
        tasks.shutdown().await;
    }
}

/// Lets callers in at the first snapshot; at each later one, frees what only the old one needed.
async fn follow_snapshots(
    mut snapshots: Reader,
    engine: Arc<Engine<EncodedAnswer>>,
    mut nothing_loaded: Option<Pending>,
) {
    while snapshots.changed().await.is_ok() {
        if nothing_loaded.take().is_none() {
            engine.forget();
        }
    }
}

fn store_settings(config: &Config) -> StoreSettings {
    let store = &config.store;
    StoreSettings {
        directory: config.policies.clone(),
        limits: SourceLimits {
            file_bytes: store.max_file_bytes,
            total_bytes: store.max_total_bytes,
            ..SourceLimits::default()
        },
        deciding: config.pdp.clone(),
        watch: watch_mode(config),
        poll: store.poll_interval,
        quiet: store.quiet_period,
        longest_delay: store.max_reload_delay,
        allow_empty: store.allow_empty,
        start_unready: store.start_unready,
    }
}

fn watch_mode(config: &Config) -> watch::Mode {
    match config.store.watch {
        WatchMode::Events => watch::Mode::Events,
        WatchMode::Poll => watch::Mode::Poll,
    }
}

fn tls_settings(tls: &TlsConfig) -> TlsSettings {
    TlsSettings {
        certificate: tls.certificate.clone(),
        key: tls.key.clone(),
        clients: match (&tls.client_authorities, tls.is_client_optional) {
            (None, _) => ClientCertificates::None,
            (Some(file), true) => ClientCertificates::Optional(file.clone()),
            (Some(file), false) => ClientCertificates::Required(file.clone()),
        },
    }
}

fn api_settings(config: &Config) -> ApiSettings {
    let limits = &config.limits;
    ApiSettings {
        tls: config.tls.as_ref().map(tls_settings),
        insecure: config.insecure,
        follow: FollowSettings {
            watch: watch_mode(config),
            poll: config.store.poll_interval,
        },
        authorization: AuthorizationRules {
            request: RequestRules {
                anonymous_principal: config.anonymous_principal.clone(),
                max_request_entities: limits.max_request_entities,
                max_value_depth: limits.max_value_depth,
            },
            max_batch_items: limits.max_batch_items,
        },
        connection: ConnectionLimits {
            max_concurrent_streams: limits.max_concurrent_streams,
            handshake_timeout: limits.handshake_timeout,
            keepalive_interval: limits.keepalive_interval,
            keepalive_timeout: limits.keepalive_timeout,
        },
        max_message_bytes: limits.max_message_bytes,
    }
}
