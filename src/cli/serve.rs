//! `serve`: runs the service until SIGTERM or SIGINT.

use std::io::{self, Write as _};

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Outcome;
use crate::app::{self, App, BindError};
use crate::authoring::report;
use crate::config::Config;
use crate::config::decision_log::Destination;
use crate::config::otel::{self, Collectors};
use crate::config::sources::{self, ConfigArgs};
use crate::policy_store::ReloadHandle;
use crate::telemetry;
use crate::telemetry::log::LogFilter;

/// Serves until SIGTERM or SIGINT; a second one ends the process at once.
pub(super) fn run(args: ConfigArgs) -> anyhow::Result<Outcome> {
    let mut config = sources::merge(args)?.check()?;
    let log = telemetry::log::init(&config.log);
    limit_connections(&mut config);
    let sends_decisions = config.decision_log.destination == Destination::Otlp;
    let (collectors, warnings) = otel::from_environment(sends_decisions);
    for warning in warnings {
        tracing::warn!(warning, "invalid OpenTelemetry environment variable");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(serve(config, collectors, log));
    // The drain gave every task its time.
    runtime.shutdown_background();
    outcome
}

/// File descriptors reserved for other uses than callers' connections: policies and certificates
/// are read, and operators connect, even when `max_connections` is reached.
const OTHER_DESCRIPTORS: u64 = 160;

/// Raises the process's limit of file descriptors as far as allowed, and lowers `max_connections`
/// to what it has room for.
fn limit_connections(config: &mut Config) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let most = allowed
        .map(|allowed| allowed.saturating_sub(OTHER_DESCRIPTORS).max(1))
        .and_then(|most| usize::try_from(most).ok());
    let configured = config.api.connection.max_connections;
    if let Some(most) = most.filter(|most| *most < configured) {
        tracing::warn!(
            configured,
            most,
            "file descriptor limit is too low for `max_connections`, lowering `max_connections`"
        );
        config.api.connection.max_connections = most;
        config.in_force.max_connections = i64::try_from(most).ok();
    }
}

async fn serve(config: Config, collectors: Collectors, log: LogFilter) -> anyhow::Result<Outcome> {
    // First of all: a signal during a slow startup must stop the process, too.
    let mut stop = Stop::listen()?;
    // Without a listener SIGHUP would end the process. One during startup is handled after it.
    let hangup = listen_for(SignalKind::hangup())?;
    let app = tokio::select! {
        bound = app::bind(config, collectors, log) => match bound {
            Ok(app) => app,
            Err(error) => {
                if let BindError::Policies(rejected) = &error {
                    let diagnostics = report::diagnostics_text(&rejected.diagnostics, false);
                    let _ = writeln!(io::stderr(), "{diagnostics}");
                }
                return Err(error.into());
            }
        },
        () = stop.requested() => return Ok(Outcome::Good),
    };
    print_addresses(&app).context("cannot write to stdout")?;
    let reloading = tokio::spawn(reload_on_hangup(hangup, app.reloads()));
    let (drained, draining) = tokio::sync::oneshot::channel();
    let running = app.run(async move {
        stop.requested().await;
        // The receiver is alive while the service runs.
        let _ = drained.send(stop);
    });
    tokio::select! {
        () = running => {}
        () = second_signal(draining) => {
            tracing::warn!("second stop signal, exiting without draining");
            // Calls are cut off, hence the status. Socket files are gone since the first signal.
            std::process::exit(1);
        }
    }
    reloading.abort();
    Ok(Outcome::Good)
}

fn print_addresses(app: &App) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    for address in app.addresses() {
        writeln!(stdout, "listening on {address}")?;
    }
    if let Some(address) = app.admin_address() {
        writeln!(stdout, "admin on {address}")?;
    }
    stdout.flush()
}

/// Listener for SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: listen_for(SignalKind::terminate())?,
            interrupt: listen_for(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next of either signal.
    async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits for the drain to begin, and then for another signal.
async fn second_signal(draining: tokio::sync::oneshot::Receiver<Stop>) {
    match draining.await {
        Ok(mut stop) => stop.requested().await,
        Err(_) => std::future::pending().await,
    }
}

fn listen_for(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).context("cannot listen for signals")
}

/// Rereads the policy directory at each SIGHUP. The policy store logs the result.
async fn reload_on_hangup(mut hangup: Signal, reloads: ReloadHandle) {
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: rereading the policy directory");
        if let Err(error) = reloads.reload().await {
            tracing::warn!(%error, "cannot reload");
        }
    }
}
