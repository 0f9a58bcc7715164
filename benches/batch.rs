//! What a cached decision costs the server in a batch of 100: decisions per second of server CPU.
//!
//! Over 100,000 distinct requests, all in the cache, beside an echo that decodes the same batches
//! and answers with as many answers of the same size; from our own generator, in rounds, as in
//! `calls`.
//!
//! `cargo bench --bench batch [-- --quick]`

mod support;

use anyhow::{Context as _, ensure};
use cedar_pdp::api::pb;

use support::figures::{Spread, print_table};
use support::load::{self, CONNECTIONS, IN_FLIGHT, Load};
use support::processes::{Caller, CpuMeter, start_again_as};
use support::running::Server;
use support::{Sizes, echo, targets, world};

const ROUNDS: usize = 31;
const BATCHES_PER_RUN: usize = 500;
const BATCH: usize = 100;
const DISTINCT_REQUESTS: usize = 100_000;

fn main() -> anyhow::Result<()> {
    let (sizes, arguments) = support::arguments();
    match arguments.first().map(String::as_str) {
        Some(echo::ECHO) => echo::serve(),
        Some(load::GENERATOR) => load::generate(arguments.get(1..).unwrap_or_default()),
        _ => measure(sizes),
    }
}

fn measure(sizes: Sizes) -> anyhow::Result<()> {
    let policies = world::policy_directory()?;
    let requests: Vec<_> = (0..DISTINCT_REQUESTS).map(world::request).collect();
    let bodies = tempfile::tempdir()?;
    let load = Load::own_batches(bodies.path().join("batches"), &requests, BATCH)?;
    let echo = start_again_as(echo::ECHO)?;
    let service = Server::start(policies.path(), &[]);
    for server in [&echo, &service] {
        check(server, requests.get(..BATCH).unwrap_or_default())?;
        load.run(server.address(), DISTINCT_REQUESTS / BATCH)?;
    }

    let mut caller = Caller::of(&service)?;
    let before = caller.cache()?;
    let rounds = sizes.of(ROUNDS, 3);
    let mut measured = Vec::new();
    for _ in 0..rounds {
        measured.push((
            microseconds_per_item(&echo, &load)?,
            microseconds_per_item(&service, &load)?,
        ));
    }
    let after = caller.cache()?;
    ensure!(
        after.misses == before.misses,
        "not every answer was in the cache: {before:?}, then {after:?}"
    );

    println!(
        "Cached decisions in batches of {BATCH} over {DISTINCT_REQUESTS} distinct requests, per second of server CPU.\n\
         {CONNECTIONS} TCP connections with {IN_FLIGHT} batches in flight on each; {BATCHES_PER_RUN} batches a run; \
         median of {rounds} interleaved rounds (least to most)."
    );
    let row = |name: &str, items: Spread, over_echo: Spread| {
        let per_second = 1e6 / items.median();
        [
            name.to_owned(),
            format!("{per_second:.0}"),
            items.show(3),
            over_echo.show(2),
        ]
    };
    let echoes = measured.iter().map(|(echo, _)| *echo);
    let ours = || Spread::of(measured.iter().map(|(_, service)| *service));
    let over_echo = || Spread::of(measured.iter().map(|(echo, service)| service / echo));
    print_table(
        "batches of 100",
        ["", "decisions/s", "us a decision", "x echo"],
        [
            row(
                "echo",
                Spread::of(echoes.clone()),
                Spread::of(measured.iter().map(|_| 1.0)),
            ),
            row("cached", ours(), over_echo()),
        ],
    );
    targets::BATCHES.measured(&format!(
        "{:.0}/s ({:.3} us a decision, echo {:.3} us; {:.2} x)",
        1e6 / ours().median(),
        ours().median(),
        Spread::of(echoes).median(),
        over_echo().median()
    ));
    targets::print_rows(sizes);
    Ok(())
}

/// One batch, to see what the generator does not look at: the answers.
fn check(server: &Server, requests: &[pb::AuthorizeRequest]) -> anyhow::Result<()> {
    let answers = Caller::of(server)?.authorize_batch(requests.to_vec())?;
    ensure!(
        answers.results.len() == requests.len(),
        "not every item is answered"
    );
    for result in answers.results {
        match result.result.context("an item without a result")? {
            pb::batch_authorize_result::Result::Response(answer) => ensure!(
                answer.decision() == world::answer().decision(),
                "it says {answer:?}"
            ),
            pb::batch_authorize_result::Result::Error(error) => {
                anyhow::bail!("an item fails: {error:?}")
            }
        }
    }
    Ok(())
}

fn microseconds_per_item(server: &Server, load: &Load) -> anyhow::Result<f64> {
    let meter = CpuMeter::start(server.pid())?;
    load.run(server.address(), BATCHES_PER_RUN)?;
    Ok(meter.used()?.as_secs_f64() * 1e6 / (BATCHES_PER_RUN * BATCH) as f64)
}
