//! Server CPU of a unary Authorize call: cached, uncached, and beside two echoes.
//!
//! Absolute times depend on the machine and the hour. So each figure stands beside that of an echo:
//! a server that decodes the same requests and returns recorded answers of the service, under the
//! same load and in the same round. The servers take turns within a round, so that a slow second of
//! the machine affects all of them.
//!
//! The load comes from another process, h2load, which repeats one body. The tables over different
//! requests, including their echo rows, use a generator of our own (`support/load.rs`): the shape
//! of the load is part of the figure.
//!
//! `cargo bench --bench calls [-- --quick]`
//!
//! Not measured here: latency, and the number of calls per second that a machine can answer.

mod support;

use anyhow::ensure;

use support::load::{self, CONNECTIONS, IN_FLIGHT, Load};
use support::processes::{Client, start_again_as};
use support::running::Server;
use support::statistics::{Rounds, print_table};
use support::targets::{self, Target, thousands};
use support::workload::{self, Workload, check_echo};
use support::{Sizes, echo};

/// The number of rounds. A round is one run against each server.
const ROUNDS: usize = 31;
/// The length of a run. Many short runs are better than few long ones: the servers of one round
/// share the state of the machine, and a disturbed run does not move the median.
const CALLS_PER_RUN: usize = 10_000;
const HOT_REQUESTS: usize = 1_000;
const DISTINCT_REQUESTS: usize = 100_000;

fn main() -> anyhow::Result<()> {
    let (sizes, arguments) = support::arguments();
    match arguments.split_first() {
        Some((role, rest)) if role == echo::ECHO => echo::serve(rest),
        Some((role, rest)) if role == echo::DEFAULT_ECHO => {
            echo::serve_as_the_guide_writes_it(rest)
        }
        Some((role, rest)) if role == load::GENERATOR => load::generate(rest),
        _ => measure(sizes),
    }
}

/// A server, and the name of its row.
struct Subject<'a> {
    name: &'static str,
    server: &'a Server,
}

/// The positions of the subjects.
const ECHO: usize = 0;
const DEFAULT_ECHO: usize = 1;
const CACHED: usize = 2;
const UNCACHED: usize = 3;

/// Returns the service and these echoes as subjects.
fn with_echoes<'a>(
    [echo, default_echo]: &'a [Server; 2],
    cached: &'a Server,
    uncached: &'a Server,
) -> [Subject<'a>; 4] {
    [
        ("echo", echo),
        ("default echo", default_echo),
        ("cached", cached),
        ("uncached", uncached),
    ]
    .map(|(name, server)| Subject { name, server })
}

fn measure(sizes: Sizes) -> anyhow::Result<()> {
    load::find_h2load()?;
    let workload = Workload::new(DISTINCT_REQUESTS)?;
    let requests = workload.requests();
    let files = tempfile::tempdir()?;
    let one = Load::h2load(
        files.path().join("one"),
        requests.get(..1).unwrap_or_default(),
    )?;
    let hot = requests.get(..HOT_REQUESTS).unwrap_or_default();
    let hot_load = Load::own(files.path().join("hot"), hot)?;
    let distinct_load = Load::own(files.path().join("distinct"), &requests)?;

    let cached = Server::start(workload.policies(), &[]);
    let uncached = Server::start(workload.policies(), &["--cache-bytes", "0"]);
    workload.answers_of(&uncached)?;
    // A single request has a single answer, also from the echoes.
    let echoes = |answers: usize| {
        let file = files.path().join(format!("{answers} answers"));
        workload.write_answers(&cached, answers, &file)?;
        let echoes = [
            start_again_as(echo::ECHO, Some(&file))?,
            start_again_as(echo::DEFAULT_ECHO, Some(&file))?,
        ];
        for echo in &echoes {
            check_echo(echo, &file)?;
        }
        anyhow::Ok(echoes)
    };
    let [echoes_of_one, echoes_of_many] = [echoes(1)?, echoes(HOT_REQUESTS)?];

    let rounds = sizes.of(ROUNDS, 3);
    println!(
        "Server CPU, user and system, of one unary Authorize call.\n\
         {CONNECTIONS} TCP connections with {IN_FLIGHT} calls in flight on each; {CALLS_PER_RUN} calls a run; \
         median of {rounds} interleaved rounds (least to most).\n\
         \n\
         echo          decodes the request, gives one of the service's answers: generated code on hyper's HTTP/2 and the runtime we serve on\n\
         default echo  the same service as the tonic guide writes it: `tonic::transport::Server` on the default runtime\n\
         cached        `cedar-pdp serve` with its default settings, every answer in the cache\n\
         uncached      `cedar-pdp serve --cache-bytes 0`: {} policies, {} entities, 3 context attributes",
        workload::POLICIES,
        thousands(workload::ENTITIES),
    );
    let subjects = with_echoes(&echoes_of_one, &cached, &uncached);
    warm_up(&one, &subjects, CALLS_PER_RUN)?;
    rows(
        "one request again and again, from h2load",
        &one,
        &subjects,
        rounds,
    )?;

    let subjects = with_echoes(&echoes_of_many, &cached, &uncached);
    warm_up(&hot_load, &subjects, CALLS_PER_RUN)?;
    let hot = rows(
        &format!(
            "{} different requests in turn, from our own generator",
            thousands(HOT_REQUESTS)
        ),
        &hot_load,
        &subjects,
        rounds,
    )?;

    warm_up(&distinct_load, &subjects, DISTINCT_REQUESTS)?;
    let mut client = Client::of(&cached)?;
    let before = client.cache()?;
    let distinct = rows(
        &format!(
            "{} different requests in turn, from our own generator",
            thousands(DISTINCT_REQUESTS)
        ),
        &distinct_load,
        &subjects,
        rounds,
    )?;
    let after = client.cache()?;
    ensure!(
        after.misses == before.misses && after.entries as usize >= DISTINCT_REQUESTS,
        "the cache does not hold {DISTINCT_REQUESTS} answers: {before:?}, then {after:?}"
    );
    println!(
        "  The cache: {} answers, {:.1} MiB by its own count, no miss while measured.",
        after.entries,
        after.bytes as f64 / f64::from(1 << 20)
    );

    target(&hot, targets::CACHED_HOT, CACHED, ECHO);
    target(&distinct, targets::CACHED_MANY, CACHED, ECHO);
    target(&hot, targets::CACHED_DEFAULT_ECHO, CACHED, DEFAULT_ECHO);
    target(
        &distinct,
        targets::CACHED_MANY_DEFAULT_ECHO,
        CACHED,
        DEFAULT_ECHO,
    );
    target(&distinct, targets::UNCACHED, UNCACHED, ECHO);
    targets::print_rows(sizes);
    Ok(())
}

fn warm_up(load: &Load, subjects: &[Subject<'_>], calls: usize) -> anyhow::Result<()> {
    for Subject { server, .. } in subjects {
        load.run(server.address(), calls)?;
    }
    Ok(())
}

/// Measures the microseconds per call of each subject, and prints its row.
fn rows(
    title: &str,
    load: &Load,
    subjects: &[Subject<'_>],
    rounds: usize,
) -> anyhow::Result<Rounds> {
    let measured = Rounds::measure(rounds, subjects, |subject| {
        load.microseconds_per_call(subject.server, CALLS_PER_RUN)
    })?;
    let rows = subjects.iter().enumerate().map(|(at, subject)| {
        [
            subject.name.to_owned(),
            measured.of(at).show(2),
            measured.over(at, ECHO).show(2),
            measured.over(at, DEFAULT_ECHO).show(2),
        ]
    });
    print_table(title, ["", "us a call", "x echo", "x default echo"], rows);
    Ok(measured)
}

fn target(measured: &Rounds, target: Target, subject: usize, baseline: usize) {
    target.measured(&format!(
        "{:.2} x ({:.2} us / {:.2} us)",
        measured.over(subject, baseline).median(),
        measured.of(subject).median(),
        measured.of(baseline).median()
    ));
}
