//! Wires the backend: opens the policy store, the engine and the router, and takes them down again.
//!
//! The only place that knows all the parts. Nothing here decides or parses.

use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinSet;

use crate::api::admin::metrics;
use crate::api::admin::{AdminError, AdminServer, AdminState};
use crate::api::metrics::CallFigures;
use crate::api::transport::listener::BoundAddress;
use crate::api::{
    AdmissionLimits, ApiSettings, AuthorizationRules, Backend, ClientCertificates,
    ConnectionLimits, EncodedAnswer, LifetimeLimits, OpenError, RequestRules, Server, Services,
    TlsSettings,
};
use crate::config::decision_log::Destination;
use crate::config::otel::{CollectorConfig, Collectors, TracesConfig};
use crate::config::{Config, RawConfig, TlsConfig, WatchMode};
use crate::decision_log::{self, DecisionLog, Sink};
use crate::engine::Engine;
use crate::engine::cache::CacheSettings;
use crate::engine::metrics::DecisionMetrics;
use crate::pip::{self, TokenSettings};
use crate::policy_store::{
    self, OpenedStore, Reader, Reloader, SourceLimits, StatusReader, StoreOpenError, StoreSettings,
};
use crate::readiness::{Readiness, Reason, UnreadyGuard};
use crate::telemetry::collector::{self, CollectorError};
use crate::telemetry::log::LogFilter;
use crate::telemetry::otlp_logs;
use crate::telemetry::traces::{SpanMetrics, Traces};
use crate::watch::{self, WatchSettings};

/// How long the decision log may take to write what waits, however long the calls took to end.
const LEAST_FOR_DECISION_LOG: Duration = Duration::from_secs(2);

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The policy directory is bad, and `--start-unready` was not given.
    #[error(transparent)]
    Policies(#[from] StoreOpenError),
    /// Decisions are to be logged, and there is nowhere to.
    #[error(transparent)]
    DecisionLog(#[from] decision_log::OpenError),
    /// Decisions are to be sent to a collector, and cannot be.
    #[error("cannot send the decision log: {0}")]
    Collector(#[from] CollectorError),
    /// There is no thread to write the decision log with.
    #[error("cannot start the thread that writes the decision log: {0}")]
    Thread(#[source] io::Error),
    /// Tokens cannot be verified as the operator said.
    #[error(transparent)]
    Tokens(#[from] pip::OpenError),
    /// A door could not be opened.
    #[error(transparent)]
    Server(#[from] OpenError),
    /// The operators' door could not be opened.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

/// The service, bound to its addresses and not yet answering.
pub struct App {
    server: Server,
    admin: Option<AdminServer>,
    traces: Option<Traces>,
    reloader: Reloader,
    reloads: policy_store::ReloadHandle,
    snapshots: Reader,
    status: StatusReader,
    engine: Arc<Engine<EncodedAnswer>>,
    decision_log: Option<decision_log::Writer>,
    token_refresh: Option<pip::Refresh>,
    readiness: Readiness,
    /// Holds readiness back until a snapshot is in force.
    nothing_loaded: Option<UnreadyGuard>,
    winding_down: WindingDown,
}

/// How long the end may take.
#[derive(Clone, Copy, Debug)]
struct WindingDown {
    /// Calls are still taken while health says NOT_SERVING.
    delay: Duration,
    /// Those in flight may finish.
    drain_timeout: Duration,
}

/// Wires everything that `config` and `traces` ask for and binds its addresses; operators may change
/// `log`.
///
/// # Errors
///
/// [`BindError`]; then nothing is left behind.
pub async fn bind(
    config: Config,
    collectors: Collectors,
    log: LogFilter,
) -> Result<App, BindError> {
    let started_at = SystemTime::now();
    let readiness = Readiness::new();
    let nothing_loaded = readiness.block(Reason::NoPolicies);
    let opened = policy_store::open(store_settings(&config)).await?;
    let OpenedStore {
        mut reader,
        status,
        reloads,
        reloader,
    } = opened;
    // Else the first answers would be forgotten when it is noticed that there is a snapshot.
    reader.mark_seen();
    let nothing_loaded = reader.load().is_none().then_some(nothing_loaded);
    // What nobody can read is not counted.
    let counted = config.admin_listen.as_ref().map(|_| Counted::default());
    let engine = Engine::new(
        reader.clone(),
        CacheSettings {
            capacity_bytes: config.cache.bytes,
        },
    );
    let engine = match &counted {
        Some(counted) => engine.with_metrics(Arc::clone(&counted.decisions)),
        None => engine,
    };
    let Collectors { traces, decisions } = collectors;
    let (log_of_decisions, log_writer) = open_decision_log(&config, decisions)?.unzip();
    let engine = Arc::new(match &log_of_decisions {
        Some(log) => engine.with_log(log.clone()),
        None => engine,
    });
    let (tokens, token_refresh) = match token_settings(&config) {
        None => (None, None),
        Some(settings) => {
            let pip::Opened { tokens, refresh } = pip::open(&settings)?;
            (Some(tokens), Some(refresh))
        }
    };
    let token_figures = tokens.clone();
    let token_figures = move || token_figures.as_ref().map(|tokens| tokens.metrics());
    let spans = Arc::<SpanMetrics>::default();
    let traces = traces.and_then(|config| open_traces(&config, Arc::clone(&spans)));
    let backend = Backend {
        engine: Arc::clone(&engine),
        tokens,
        status: status.clone(),
        reloads: reloads.clone(),
        readiness: readiness.reader(),
        figures: counted.as_ref().map(|counted| Arc::clone(&counted.calls)),
        traces: traces.clone(),
    };
    let server = Server::open(&config.listen, &backend, &api_settings(&config)).await?;
    if config.callers_are_unknown()
        && let Some(address) = server.addresses().iter().find(|it| !it.is_local())
    {
        tracing::warn!(%address, "listening beyond this machine, for whoever can connect");
    }
    let admin = match (&config.admin_listen, counted) {
        (Some(address), Some(Counted { decisions, calls })) => {
            let of_cache = Arc::clone(&engine);
            let tls = server.tls();
            let callers = server.callers();
            let page = metrics::Page::new(metrics::Sources {
                decisions,
                calls,
                tls: Box::new(move || tls.as_ref().map(|tls| tls.figures())),
                callers: Box::new(move || callers.figures()),
                tokens: Box::new(token_figures.clone()),
                spans,
                store: status.clone(),
                readiness: readiness.reader(),
                cache: Box::new(move || of_cache.cache_metrics()),
                decision_log: log_of_decisions,
                started_at,
            });
            let admin_state = AdminState {
                metrics: Box::new(move || page.text()),
                metrics_type: metrics::CONTENT_TYPE,
                log,
                status: status.clone(),
                engine: Arc::clone(&engine),
                callers: server.callers(),
                tokens: Box::new(token_figures),
                readiness: readiness.reader(),
                started_at,
                settings: settings(&config),
            };
            Some(AdminServer::open(address, config.unix_socket_mode, admin_state).await?)
        }
        (Some(_) | None, None) | (None, Some(_)) => None,
    };
    let winding_down = WindingDown {
        delay: config.shutdown_delay,
        drain_timeout: config.drain_timeout,
    };
    Ok(App {
        server,
        admin,
        traces,
        reloader,
        reloads,
        snapshots: reader,
        status,
        engine,
        decision_log: log_writer,
        token_refresh,
        readiness,
        nothing_loaded,
        winding_down,
    })
}

impl App {
    /// Where callers find the service, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[BoundAddress] {
        self.server.addresses()
    }

    /// Where operators find it, if they do.
    #[must_use]
    pub fn admin_address(&self) -> Option<&BoundAddress> {
        self.admin.as_ref().map(AdminServer::address)
    }

    /// The read side of the policy store's status.
    #[must_use]
    pub fn status(&self) -> StatusReader {
        self.status.clone()
    }

    /// Forces a reread of the policy directory.
    #[must_use]
    pub fn reloads(&self) -> policy_store::ReloadHandle {
        self.reloads.clone()
    }

    /// Serves until `shutdown` completes, then drains: health turns NOT_SERVING, after the shutdown
    /// delay no call is taken any more, calls in flight finish, streams and watches are told, and all ends at the latest
    /// after the drain timeout.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let Self {
            server,
            admin,
            traces,
            reloader,
            snapshots,
            engine,
            decision_log,
            token_refresh,
            readiness,
            nothing_loaded,
            winding_down,
            ..
        } = self;
        let mut tasks = JoinSet::new();
        let mut stopping = readiness.reader();
        tasks.spawn(async move { reloader.run(async move { stopping.draining().await }).await });
        tasks.spawn(follow_snapshots(snapshots, engine, nothing_loaded));
        // To the end: a service that drains is looked at, too.
        if let Some(admin) = admin {
            tasks.spawn(admin.run());
        }
        let drain_ends = OnceLock::new();
        if let Some(refresh) = token_refresh {
            tasks.spawn(refresh.run());
        }

        let drained = async {
            shutdown.await;
            let WindingDown {
                delay,
                drain_timeout,
            } = winding_down;
            // Who asks is sent elsewhere; who has not asked since is still served.
            readiness.stop_serving();
            if !delay.is_zero() {
                tracing::info!(?delay, "not serving any more, and still taking calls");
                tokio::time::sleep(delay).await;
            }
            tracing::info!(timeout = ?drain_timeout, "draining");
            readiness.drain();
            let _ = drain_ends.set(Instant::now() + drain_timeout);
            tokio::time::sleep(drain_timeout).await;
        };
        tokio::select! {
            () = server.run() => tracing::info!("stopped"),
            () = drained => tracing::warn!("calls were still in flight when the drain timeout passed"),
        }
        if let Some(writer) = decision_log {
            // What the calls left of the drain timeout, and something if they left nothing: every
            // decision that was answered should be in the log.
            let left = drain_ends.get().map_or(Duration::ZERO, |end: &Instant| {
                end.saturating_duration_since(Instant::now())
            });
            writer.finish(left.max(LEAST_FOR_DECISION_LOG)).await;
        }
        if let Some(traces) = traces {
            traces.shutdown().await;
        }
        tasks.shutdown().await;
    }
}

/// The log of decisions, if there is to be one; `collector` is where it goes if it goes to one.
fn open_decision_log(
    config: &Config,
    collector: Option<CollectorConfig>,
) -> Result<Option<(DecisionLog, decision_log::Writer)>, BindError> {
    let log = &config.decision_log;
    let lines = match (&log.destination, collector) {
        (Destination::Off, _) => return Ok(None),
        (Destination::Stdout, _) => Sink::to_stdout()?,
        (Destination::File(path), _) => Sink::to_file(path, log.max_file_bytes, log.max_files)?,
        (Destination::Otlp, collector) => {
            let collector = collector.unwrap_or_default();
            Sink::to_collector(Box::new(otlp_logs::open(&collector)?))
        }
    };
    decision_log::open(log, config.pdp.on_policy_error, lines)
        .map(Some)
        .map_err(BindError::Thread)
}

/// Traces, unless they cannot be had: those who ask for decisions must not go without them because
/// of a setting that is about something else.
fn open_traces(config: &TracesConfig, metrics: Arc<SpanMetrics>) -> Option<Traces> {
    match Traces::open(config, metrics) {
        Ok(traces) => {
            let address = collector::redacted_endpoint(&config.collector);
            let protocol = config.collector.protocol;
            tracing::info!(collector = address, ?protocol, "calls are traced");
            Some(traces)
        }
        Err(error) => {
            tracing::warn!(%error, "calls are not traced");
            None
        }
    }
}

/// Where is counted what happens.
#[derive(Default)]
struct Counted {
    decisions: Arc<DecisionMetrics>,
    calls: Arc<CallFigures>,
}

/// Every setting in force. None of them is a secret: those stand in files, which settings name.
fn settings(config: &Config) -> serde_json::Value {
    // Text, lists of text, switches and whole numbers are JSON.
    serde_json::to_value(RawConfig::from(config)).unwrap_or_default()
}

/// Lets callers in at the first snapshot; at each later one, frees what only the old one needed.
async fn follow_snapshots(
    mut snapshots: Reader,
    engine: Arc<Engine<EncodedAnswer>>,
    mut nothing_loaded: Option<UnreadyGuard>,
) {
    while snapshots.changed().await.is_ok() {
        if nothing_loaded.take().is_none() {
            engine.clear_cache();
        }
    }
}

fn token_settings(config: &Config) -> Option<TokenSettings> {
    let tokens = &config.tokens;
    Some(TokenSettings {
        issuers: tokens.issuers.clone()?,
        revocations: tokens.revocations.clone(),
        cache_bytes: tokens.cache_bytes,
        following: watch_settings(config),
    })
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
        pdp: config.pdp.clone(),
        watch: watch_settings(config),
        quiet_period: store.quiet_period,
        max_reload_delay: store.max_reload_delay,
        allow_empty: store.allow_empty,
        start_unready: store.start_unready,
    }
}

fn watch_settings(config: &Config) -> WatchSettings {
    WatchSettings {
        mode: match config.store.watch {
            WatchMode::Events => watch::Mode::Events,
            WatchMode::Poll => watch::Mode::Poll,
        },
        poll: config.store.poll_interval,
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
        unix_socket_mode: config.unix_socket_mode,
        callers: config.callers.clone(),
        services: Services {
            reflection: config.services.reflection,
            policy_store: config.services.policy_store,
        },
        follow: watch_settings(config),
        authorization: AuthorizationRules {
            request: RequestRules {
                anonymous_principal: config.anonymous_principal.clone(),
                max_request_entities: limits.max_request_entities,
                max_values: limits.max_request_values,
                max_value_depth: limits.max_value_depth,
            },
            max_batch_items: limits.max_batch_items,
            explain: config.services.explanations,
        },
        connection: ConnectionLimits {
            max_concurrent_streams: limits.max_concurrent_streams,
            handshake_timeout: limits.handshake_timeout,
            max_connections: limits.max_connections,
            lifetime: LifetimeLimits {
                age: limits.max_connection_age,
                age_grace: limits.max_connection_age_grace,
                idle: limits.max_connection_idle,
                // Its answer belongs to a call.
                unread: limits.max_call_time,
            },
            max_header_bytes: limits.max_header_bytes,
            max_call_time: limits.max_call_time,
            keepalive_interval: limits.keepalive_interval,
            keepalive_timeout: limits.keepalive_timeout,
        },
        admission: AdmissionLimits {
            delay: limits.overload_delay,
            calls: limits.max_concurrent_calls,
        },
        max_message_bytes: limits.max_message_bytes,
        max_pending_bytes: limits.max_pending_bytes,
    }
}
