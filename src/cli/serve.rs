//! `serve`: runs the service until it is told to stop.

use std::io::Write as _;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Outcome, directory};
use crate::app::{self, BindError};
use crate::config::Config;
use crate::config::decision_log::Destination;
use crate::config::otel::{self, Collectors};
use crate::policy_store::ReloadHandle;
use crate::telemetry;
use crate::telemetry::log::LogFilter;

/// Serves with `config` until SIGTERM or SIGINT; a second one ends the process at once.
pub(super) fn run(mut config: Config) -> anyhow::Result<Outcome> {
    let log = telemetry::log::init(&config.log);
    let limits = &mut config.limits;
    limits.max_connections = connections_within_descriptors(limits.max_connections);
    let sends_decisions = config.decision_log.destination == Destination::Otlp;
    let (collectors, warnings) = otel::from_environment(sends_decisions);
    for warning in warnings {
        tracing::warn!(warning, "invalid OpenTelemetry variable, using the default");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(serve(config, collectors, log));
    // What still runs was given its time by the drain.
    runtime.shutdown_background();
    outcome
}

/// Descriptors that are kept for everything that is no connection of a caller: policies and
/// certificates are read, and operators connect, while all connections are taken.
const OTHER_DESCRIPTORS: u64 = 160;

/// As many connections as wanted, or as the system has descriptors for, of which this process takes
/// all that it may.
fn connections_within_descriptors(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let for_connections = allowed
        .map(|allowed| allowed.saturating_sub(OTHER_DESCRIPTORS).max(1))
        .and_then(|most| usize::try_from(most).ok());
    match for_connections {
        Some(most) if most < wanted => {
            tracing::warn!(
                wanted,
                most,
                "the limit of descriptors allows fewer connections than `max_connections`"
            );
            most
        }
        Some(_) | None => wanted,
    }
}

async fn serve(config: Config, collectors: Collectors, log: LogFilter) -> anyhow::Result<Outcome> {
    // Before anything else: a signal during a slow start must stop it too.
    let mut stop = Stop::listen()?;
    // Unheard, a SIGHUP would end the process; one that comes early is answered by a reread.
    let hangup = listen_for(SignalKind::hangup())?;
    let app = tokio::select! {
        bound = app::bind(config, collectors, log) => match bound {
            Ok(app) => app,
            Err(BindError::Policies(refused)) => {
                let drawn = directory::render(&refused.diagnostics, false);
                let _ = writeln!(std::io::stderr(), "{drawn}");
                return Err(refused.into());
            }
            Err(
                error @ (BindError::Tokens(_)
                | BindError::Server(_)
                | BindError::Admin(_)
                | BindError::DecisionLog(_)
                | BindError::Collector(_)
                | BindError::Thread(_)),
            ) => return Err(error.into()),
        },
        () = stop.requested() => return Ok(Outcome::Good),
    };
    {
        let mut stdout = std::io::stdout().lock();
        for address in app.addresses() {
            writeln!(stdout, "listening on {address}").context("cannot write to stdout")?;
        }
        if let Some(address) = app.admin_address() {
            writeln!(stdout, "admin on {address}").context("cannot write to stdout")?;
        }
        stdout.flush().context("cannot write to stdout")?;
    }
    let reloading = tokio::spawn(reload_on_hangup(hangup, app.reloads()));
    let (drained, draining) = tokio::sync::oneshot::channel();
    let running = app.run(async move {
        stop.requested().await;
        // The receiver waits for as long as the service runs.
        let _ = drained.send(stop);
    });
    tokio::select! {
        () = running => {}
        () = second_signal(draining) => {
            tracing::warn!("told to stop twice, stopping at once");
            // Calls are cut off, which is not a good end. Socket files are gone since the first.
            std::process::exit(1);
        }
    }
    reloading.abort();
    Ok(Outcome::Good)
}

/// SIGTERM and SIGINT.
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

    /// Returns at the next of either.
    async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn second_signal(draining: tokio::sync::oneshot::Receiver<Stop>) {
    match draining.await {
        Ok(mut stop) => stop.requested().await,
        Err(_) => std::future::pending().await,
    }
}

fn listen_for(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).context("cannot listen for signals")
}

/// Rereads the policy directory at each SIGHUP. What became of it is logged by the store.
async fn reload_on_hangup(mut hangup: Signal, reloads: ReloadHandle) {
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: rereading the policy directory");
        if let Err(error) = reloads.reload().await {
            tracing::warn!(%error, "cannot reload");
        }
    }
}
