//! Server CPU of a cached decision in a batch of 100, as decisions per second of CPU.
//!
//! Uses 100,000 distinct requests, all cached. The baseline is an echo that decodes the same
//! batches and returns as many of the service's answers. Load comes from our own generator, in
//! rounds, as in `calls`.
//!
//! `cargo bench --bench batch [-- --quick]`

mod support;

use anyhow::ensure;

use support::load::{self, CONNECTIONS, IN_FLIGHT, Load};
use support::processes::{Client, start_again_as};
use support::running::Server;
use support::statistics::{Rounds, Spread, print_table};
use support::workload::{Workload, check_echo};
use support::{Sizes, echo, targets};

const ROUNDS: usize = 31;
const BATCHES_PER_RUN: usize = 500;
const BATCH: usize = 100;
const DISTINCT_REQUESTS: usize = 100_000;

fn main() -> anyhow::Result<()> {
    let (sizes, arguments) = support::arguments();
    match arguments.split_first() {
        Some((role, rest)) if role == echo::ECHO => echo::serve(rest),
        Some((role, rest)) if role == load::GENERATOR => load::generate(rest),
        _ => measure(sizes),
    }
}

fn measure(sizes: Sizes) -> anyhow::Result<()> {
    let workload = Workload::new(DISTINCT_REQUESTS)?;
    let files = tempfile::tempdir()?;
    let load = Load::own_batches(files.path().join("batches"), &workload.requests(), BATCH)?;
    let service = Server::start(workload.policies(), &[]);
    let answers = files.path().join("answers");
    workload.write_answers(&service, DISTINCT_REQUESTS, &answers)?;
    let echo = start_again_as(echo::ECHO, Some(&answers))?;
    check_echo(&echo, &answers)?;
    // All at once, the uncached calls would exceed the service's capacity.
    workload.check_batches(&service, BATCH)?;
    for server in [&echo, &service] {
        load.run(server.address(), DISTINCT_REQUESTS / BATCH)?;
    }

    let mut client = Client::of(&service)?;
    let before = client.cache()?;
    let rounds = sizes.of(ROUNDS, 3);
    let measured = Rounds::measure(rounds, &[&echo, &service], |server| {
        let each = load.microseconds_per_call(server, BATCHES_PER_RUN)?;
        Ok(each / BATCH as f64)
    })?;
    let after = client.cache()?;
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
    let (echo_row, our_row) = (0, 1);
    let ours = || measured.of(our_row);
    let over_echo = || measured.over(our_row, echo_row);
    print_table(
        "batches of 100",
        ["", "decisions/s", "us a decision", "x echo"],
        [
            row(
                "echo",
                measured.of(echo_row),
                measured.over(echo_row, echo_row),
            ),
            row("cached", ours(), over_echo()),
        ],
    );
    targets::BATCHES.measured(&format!(
        "{:.0}/s ({:.3} us a decision, echo {:.3} us; {:.2} x)",
        1e6 / ours().median(),
        ours().median(),
        measured.of(echo_row).median(),
        over_echo().median()
    ));
    targets::print_rows(sizes);
    Ok(())
}
