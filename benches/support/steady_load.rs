//! A steady stream of calls to a server, and the latency of each.
//!
//! The calls begin at fixed times, independent of earlier answers: a server that pauses is late
//! with all calls of that time, not only with one.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cedar_pdp::api::grpc::pb;
use cedar_pdp::api::grpc::pb::authorization_service_client::AuthorizationServiceClient;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::MissedTickBehavior;

/// Calls in flight at which the server has failed.
const MOST_IN_FLIGHT: usize = 100_000;

/// The start and latency of one call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub started: Instant,
    pub took: Duration,
}

/// Calls on a thread of its own, until stopped.
pub struct Pressure {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Vec<Call>>>,
}

impl Pressure {
    /// Starts one call each `pause`, with the `requests` in turn, on one connection.
    pub fn start(address: &str, requests: Vec<pb::AuthorizeRequest>, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let uri = format!("http://{address}");
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            LocalSet::new().block_on(&runtime, call(uri, requests, pause, stopped))
        });
        Self { stop, thread }
    }

    /// Stops the calls. Fails if a call failed.
    pub fn finish(self) -> anyhow::Result<Vec<Call>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .ok()
            .context("the calling thread broke off")?
    }
}

async fn call(
    uri: String,
    requests: Vec<pb::AuthorizeRequest>,
    pause: Duration,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<Vec<Call>> {
    let client = AuthorizationServiceClient::connect(uri).await?;
    let requests = Rc::new(requests);
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut calls = Vec::new();
    let mut in_flight: JoinSet<anyhow::Result<Call>> = JoinSet::new();
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let mut client = client.clone();
        let requests = Rc::clone(&requests);
        in_flight.spawn_local(async move {
            let request = requests.get(turn % requests.len()).cloned();
            let request = request.context("there are requests")?;
            let started = Instant::now();
            client.authorize(request).await?;
            Ok(Call {
                started,
                took: started.elapsed(),
            })
        });
        turn += 1;
        while let Some(call) = in_flight.try_join_next() {
            calls.push(call??);
        }
        ensure!(
            in_flight.len() < MOST_IN_FLIGHT,
            "the server does not answer"
        );
    }
    while let Some(call) = in_flight.join_next().await {
        calls.push(call??);
    }
    Ok(calls)
}
