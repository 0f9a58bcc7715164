//! Assembles the service: opens the policy store, the engine and the servers, and shuts them down.
//!
//! This is the only place that knows all parts. Nothing here decides or parses.

use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinSet;

use crate::api::admin::process::ProcessMetrics;
use crate::api::admin::{AdminError, AdminServer, AdminState};
use crate::api::metrics::CallMetrics;
use crate::api::transport::listener::BoundAddress;
use crate::api::{Backend, EncodedAnswer, OpenError, Server};
use crate::config::decision_log::Destination;
use crate::config::otel::{CollectorConfig, Collectors, TracesConfig};
use crate::config::{Config, ShutdownSettings};
use crate::counters::page::{Export, Exporters};
use crate::decision_log::{self, DecisionLog, Sink};
use crate::engine::Engine;
use crate::engine::metrics::DecisionMetrics;
use crate::pip;
use crate::policy_store::{self, Reader, Reloader, StoreOpenError};
use crate::readiness::{Readiness, Reason, UnreadyGuard};
use crate::telemetry::collector::{self, CollectorError};
use crate::telemetry::log::LogFilter;
use crate::telemetry::otlp_logs;
use crate::telemetry::traces::{SpanMetrics, Traces};

/// Least time for the decision log to write its queue at shutdown, even if calls used up the drain
/// timeout.
const MIN_DECISION_LOG_DRAIN: Duration = Duration::from_secs(2);

/// The reason why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The policy directory is invalid, and `--start-unready` is not set.
    #[error(transparent)]
    Policies(#[from] StoreOpenError),
    /// The destination of the decision log cannot be opened.
    #[error(transparent)]
    DecisionLog(#[from] decision_log::OpenError),
    /// The client of the decision log's collector cannot be created.
    #[error("cannot send the decision log: {0}")]
    Collector(#[from] CollectorError),
    /// The thread that writes the decision log cannot be started.
    #[error("cannot start the decision log writer thread: {0}")]
    Thread(#[source] io::Error),
    /// A file of token verification cannot be read or is invalid.
    #[error(transparent)]
    Tokens(#[from] pip::OpenError),
    /// The gRPC server cannot be started.
    #[error(transparent)]
    Server(#[from] OpenError),
    /// The admin server cannot be started.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

/// The service, bound to its addresses and not yet serving.
pub struct App {
    server: Server,
    admin: Option<AdminServer>,
    traces: Option<Traces>,
    reloader: Reloader,
    reloads: policy_store::ReloadHandle,
    snapshots: Reader,
    engine: Arc<Engine<EncodedAnswer>>,
    decision_log: Option<decision_log::Writer>,
    token_refresh: Option<pip::Refresh>,
    readiness: Readiness,
    /// Holds readiness back until a snapshot is in force.
    first_snapshot: Option<UnreadyGuard>,
    shutdown_settings: ShutdownSettings,
}

/// Opens all parts of the service and binds its addresses. The admin server can change the filter
/// of `log`.
///
/// # Errors
///
/// [`BindError`]; everything that was opened is closed again.
pub async fn bind(
    config: Config,
    collectors: Collectors,
    log: LogFilter,
) -> Result<App, BindError> {
    let started_at = SystemTime::now();
    let readiness = Readiness::new();
    let first_snapshot = readiness.block(Reason::NoPolicies);
    let mut store = policy_store::open(config.store.clone()).await?;
    // Otherwise the first snapshot would count as a change and clear the cache.
    store.reader.mark_seen();
    let first_snapshot = store.reader.load().is_none().then_some(first_snapshot);
    let has_admin = config.admin_listen.is_some();
    let metrics = PartMetrics {
        decisions: has_admin.then(Arc::default),
        calls: has_admin.then(Arc::default),
        spans: Arc::default(),
    };
    let (decision_log, log_writer) = open_decision_log(&config, collectors.decisions)?.unzip();
    let engine = Engine::new(store.reader.clone(), config.cache)
        .observed_by(metrics.decisions.clone(), decision_log.clone());
    let engine = Arc::new(engine);
    let opened = config.tokens.as_ref().map(pip::open).transpose()?;
    let (tokens, token_refresh) = opened.unzip();
    let traces = collectors
        .traces
        .and_then(|config| open_traces(&config, Arc::clone(&metrics.spans)));
    let backend = Backend {
        engine: Arc::clone(&engine),
        tokens: tokens.clone(),
        status: store.status.clone(),
        reloads: store.reloads.clone(),
        readiness: readiness.reader(),
        metrics: metrics.calls.clone(),
        traces: traces.clone(),
    };
    let server = Server::open(&config.listen, &backend, &config.api).await?;
    if config.api.accepts_unknown_callers()
        && let Some(address) = server.addresses().iter().find(|it| !it.is_local())
    {
        tracing::warn!(%address, "unauthenticated callers are accepted on a non-loopback address");
    }
    let admin = match &config.admin_listen {
        Some(address) => {
            let state = AdminState {
                metrics: exporters(&backend, &server, &metrics, decision_log, started_at),
                log,
                status: store.status.clone(),
                engine: Arc::clone(&engine),
                callers: server.callers(),
                admission: server.admission(),
                tokens,
                readiness: readiness.reader(),
                started_at,
                // Text, lists of text, switches and whole numbers are valid JSON. None is a secret:
                // settings name files of secrets.
                settings: serde_json::to_value(&config.in_force).unwrap_or_default(),
            };
            Some(AdminServer::open(address, config.api.unix_socket_mode, state).await?)
        }
        None => None,
    };
    Ok(App {
        server,
        admin,
        traces,
        reloader: store.reloader,
        reloads: store.reloads,
        snapshots: store.reader,
        engine,
        decision_log: log_writer,
        token_refresh,
        readiness,
        first_snapshot,
        shutdown_settings: config.shutdown,
    })
}

/// The counters that parts of the service are opened with. Without an admin server nobody can read
/// metrics, so decisions and calls are not counted.
struct PartMetrics {
    decisions: Option<Arc<DecisionMetrics>>,
    calls: Option<Arc<CallMetrics>>,
    spans: Arc<SpanMetrics>,
}

/// Returns the metrics page, with the parts in the order of [`METRICS`](crate::api::admin::metrics::METRICS).
fn exporters(
    backend: &Backend,
    server: &Server,
    metrics: &PartMetrics,
    decision_log: Option<DecisionLog>,
    started_at: SystemTime,
) -> Exporters {
    let parts: [Option<Arc<dyn Export>>; 11] = [
        Some(Arc::new(ProcessMetrics { started_at })),
        Some(Arc::new(backend.readiness.clone())),
        Some(Arc::clone(&backend.engine) as _),
        metrics.calls.clone().map(|it| it as _),
        Some(server.admission()),
        server.tls().map(|it| it as _),
        Some(server.callers()),
        backend.tokens.clone().map(|it| it as _),
        Some(Arc::clone(&metrics.spans) as _),
        Some(Arc::new(backend.status.clone())),
        Some(Arc::new(decision_log)),
    ];
    Exporters::new(parts.into_iter().flatten().collect())
}

impl App {
    /// Returns the addresses of the gRPC server, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[BoundAddress] {
        self.server.addresses()
    }

    /// Returns the address of the admin server, if there is one.
    #[must_use]
    pub fn admin_address(&self) -> Option<&BoundAddress> {
        self.admin.as_ref().map(AdminServer::address)
    }

    /// Returns the handle that forces a reread of the policy directory.
    #[must_use]
    pub fn reloads(&self) -> policy_store::ReloadHandle {
        self.reloads.clone()
    }

    /// Serves until `shutdown` completes, then drains.
    ///
    /// Health turns NOT_SERVING at once. After the shutdown delay no call is accepted any more;
    /// calls in flight finish, streams and watches are ended. Returns at the latest when the drain
    /// timeout has passed.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let mut tasks = JoinSet::new();
        let mut stopping = self.readiness.reader();
        let stopping = async move { stopping.draining().await };
        tasks.spawn(self.reloader.run(stopping));
        tasks.spawn(follow_snapshots(
            self.snapshots,
            self.engine,
            self.first_snapshot,
        ));
        // Until the end: operators look at a draining service, too.
        if let Some(admin) = self.admin {
            tasks.spawn(admin.run());
        }
        if let Some(refresh) = self.token_refresh {
            tasks.spawn(refresh.run());
        }
        let drain_ends = OnceLock::new();
        let drained = async {
            shutdown.await;
            drain(&self.readiness, self.shutdown_settings, &drain_ends).await;
        };
        tokio::select! {
            () = self.server.run() => tracing::info!("stopped"),
            () = drained => tracing::warn!("drain timeout passed with calls in flight, closing all connections"),
        }
        if let Some(writer) = self.decision_log {
            // The rest of the drain timeout, or the minimum: every decision that was answered
            // should be in the log.
            let left = drain_ends.get().map_or(Duration::ZERO, |end: &Instant| {
                end.saturating_duration_since(Instant::now())
            });
            writer.finish(left.max(MIN_DECISION_LOG_DRAIN)).await;
        }
        if let Some(traces) = self.traces {
            traces.shutdown().await;
        }
        tasks.shutdown().await;
    }
}

/// Drains: sets health to NOT_SERVING, waits for the delay, starts the drain and sets `drain_ends`.
/// Returns when the drain timeout has passed.
async fn drain(readiness: &Readiness, settings: ShutdownSettings, drain_ends: &OnceLock<Instant>) {
    let (delay, drain_timeout) = (settings.delay, settings.drain_timeout);
    // Load balancers stop sending; calls that still arrive are served.
    readiness.stop_serving();
    if !delay.is_zero() {
        tracing::info!(?delay, "health is NOT_SERVING, calls are still accepted");
        tokio::time::sleep(delay).await;
    }
    tracing::info!(timeout = ?drain_timeout, "draining");
    readiness.drain();
    let _ = drain_ends.set(Instant::now() + drain_timeout);
    tokio::time::sleep(drain_timeout).await;
}

/// Opens the decision log, unless it is off; `collector` receives the records of `otlp`.
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
    decision_log::open(log, config.store.pdp.on_policy_error, lines)
        .map(Some)
        .map_err(BindError::Thread)
}

/// Opens the export of traces. A failure is only logged: decisions must not depend on tracing.
fn open_traces(config: &TracesConfig, metrics: Arc<SpanMetrics>) -> Option<Traces> {
    match Traces::open(config, metrics) {
        Ok(traces) => {
            let address = collector::redacted_endpoint(&config.collector);
            let protocol = config.collector.protocol;
            tracing::info!(collector = address, ?protocol, "calls are traced");
            Some(traces)
        }
        Err(error) => {
            tracing::warn!(%error, "cannot export traces, calls are not traced");
            None
        }
    }
}

/// Ends `first_snapshot` at the first snapshot, and clears the cache at each later one.
async fn follow_snapshots(
    mut snapshots: Reader,
    engine: Arc<Engine<EncodedAnswer>>,
    mut first_snapshot: Option<UnreadyGuard>,
) {
    while snapshots.changed().await.is_ok() {
        if first_snapshot.take().is_none() {
            engine.clear_cache();
        }
    }
}
