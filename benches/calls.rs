//! What a unary Authorize call costs the server in CPU: cached, uncached, and beside two echoes.
//!
//! A microsecond here is a microsecond of this machine in this hour, so each figure stands beside
//! that of an echo, a server that decodes the same request and answers with a message of the same
//! size, under the same load and in the same round. Rounds take the servers in turn: what slows
//! the machine for a second slows them all.
//!
//! Load comes from outside, from h2load. It sends one body over and over, so the rows over 1,000
//! different requests, and the echoes they are compared with, have a generator of our own
//! (`support/load.rs`): the shape of the load is part of the figure.
//!
//! Not measured here: latency, and how many calls a second a machine can answer.

mod support;

use anyhow::{Context as _, ensure};
use cedar_pdp::api::pb::AuthorizeRequest;
use prost::Message as _;

use support::echo;
use support::figures::{Spread, print_table};
use support::load::{self, CONNECTIONS, IN_FLIGHT, Load};
use support::processes::{Caller, CpuMeter, start_again_as};
use support::running::Server;
use support::world;

/// The echoes run on the allocator of the service.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A round is one run against each server.
const ROUNDS: usize = 31;
/// Many short runs rather than few long ones: the servers of one round meet the same machine, and
/// a run that was disturbed does not move the median.
const CALLS_PER_RUN: usize = 10_000;
const HOT_REQUESTS: usize = 1_000;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(echo::ECHO) => echo::serve(),
        Some(echo::DEFAULT_ECHO) => echo::serve_as_the_guide_writes_it(),
        Some(load::GENERATOR) => load::generate(arguments),
        _ => measure(),
    }
}

/// A server, and what its row is called.
struct Subject {
    name: &'static str,
    server: Server,
}

fn measure() -> anyhow::Result<()> {
    load::find_h2load()?;
    let policies = world::policy_directory()?;
    let requests: Vec<_> = (0..HOT_REQUESTS).map(world::request).collect();
    let bodies = tempfile::tempdir()?;
    let one = Load::h2load(
        bodies.path().join("one"),
        requests.get(..1).unwrap_or_default(),
    )?;
    let many = Load::own(bodies.path().join("many"), &requests)?;

    // The echoes come first: the ratios are over their columns.
    let subjects = [
        Subject {
            name: "echo",
            server: start_again_as(echo::ECHO)?,
        },
        Subject {
            name: "default echo",
            server: start_again_as(echo::DEFAULT_ECHO)?,
        },
        Subject {
            name: "cached",
            server: Server::start(policies.path(), &[]),
        },
        Subject {
            name: "uncached",
            server: Server::start(policies.path(), &["--cache-bytes", "0"]),
        },
    ];
    for Subject { name, server } in &subjects {
        check(server, &requests)
            .with_context(|| format!("`{name}` does not answer as it should"))?;
    }

    println!(
        "Server CPU, user and system, of one unary Authorize call.\n\
         {CONNECTIONS} TCP connections with {IN_FLIGHT} calls in flight on each; {CALLS_PER_RUN} calls a run; \
         median of {ROUNDS} interleaved rounds (least to most).\n\
         \n\
         echo          decodes the request, answers a constant: generated code on hyper's HTTP/2 and the runtime we serve on\n\
         default echo  the same service as the tonic guide writes it: `tonic::transport::Server` on the default runtime\n\
         cached        `cedar-pdp serve` with its default settings, every answer in the cache\n\
         uncached      `cedar-pdp serve --cache-bytes 0`: {} policies, {} entities, 3 context attributes",
        world::POLICIES,
        world::ENTITIES,
    );
    measure_under("one request again and again, from h2load", &one, &subjects)?;
    measure_under(
        &format!("{HOT_REQUESTS} different requests in turn, from our own generator"),
        &many,
        &subjects,
    )
}

/// One call for each request, to see what h2load does not look at: the answer.
fn check(server: &Server, requests: &[AuthorizeRequest]) -> anyhow::Result<()> {
    let mut caller = Caller::of(server)?;
    let expected = world::answer();
    for request in requests {
        let answer = caller.authorize(request.clone())?;
        ensure!(
            answer.decision() == expected.decision(),
            "it says {answer:?}"
        );
        // Else the echo would be spared bytes that we have to write.
        ensure!(
            answer.encoded_len() == expected.encoded_len(),
            "its answer is not of the echo's size: {answer:?}"
        );
    }
    Ok(())
}

fn measure_under(title: &str, load: &Load, subjects: &[Subject]) -> anyhow::Result<()> {
    for Subject { server, .. } in subjects {
        load.run(server.address(), CALLS_PER_RUN)?;
    }
    // By round, then by subject.
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let round: anyhow::Result<Vec<f64>> = subjects
            .iter()
            .map(|subject| microseconds_per_call(&subject.server, load))
            .collect();
        rounds.push(round?);
    }
    let column = |subject: usize| {
        rounds
            .iter()
            .filter_map(move |round| round.get(subject).copied())
    };
    let over = |subject, baseline| {
        Spread::of(
            column(subject)
                .zip(column(baseline))
                .map(|(ours, theirs)| ours / theirs),
        )
    };
    let rows = subjects
        .iter()
        .enumerate()
        .map(|(subject, Subject { name, .. })| {
            [
                (*name).to_owned(),
                Spread::of(column(subject)).show(2),
                over(subject, 0).show(2),
                over(subject, 1).show(2),
            ]
        });
    print_table(title, ["", "us a call", "x echo", "x default echo"], rows);
    Ok(())
}

fn microseconds_per_call(server: &Server, load: &Load) -> anyhow::Result<f64> {
    let meter = CpuMeter::start(server.pid())?;
    load.run(server.address(), CALLS_PER_RUN)?;
    Ok(meter.used()?.as_secs_f64() * 1e6 / CALLS_PER_RUN as f64)
}
