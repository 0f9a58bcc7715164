//! One uncached decision in this process: on a large store compared with a small one, with and
//! without request entities.
//!
//! Measured from the parsed query to the answer. The stores take turns of some hundred different
//! requests, so that little of a large store is in the CPU's caches.
//!
//! Candidates are the policies that a decision evaluates because their scope matches the request.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Context as _;
use cedar_pdp::pdp::query::Query;
use cedar_pdp::pdp::{NoAnswer, authorize, candidates};

use crate::loaded::Loaded;
use crate::support::Sizes;
use crate::support::statistics::{Spread, print_table};
use crate::support::targets::{self, Target, thousands};

const REQUESTS: usize = 20_000;
const TURNS: usize = 40;

pub(crate) fn measure(sizes: Sizes) -> anyhow::Result<()> {
    let requests = sizes.of(REQUESTS, 2_000);
    let small = Loaded::new(12, 1_000, requests)?;
    let (policies, entities) = sizes.of((100_000, 1_000_000), (1_000, 10_000));
    let large = Loaded::new(policies, entities, requests)?;
    println!(
        "One uncached decision in process, {} different requests in {TURNS} turns with the other store's. ALLOW: {:.1} % and {:.1} %.",
        thousands(requests),
        100.0 * small.allowed(),
        100.0 * large.allowed()
    );

    let plain = Compared::measure(
        (small.queries(), &|query| authorize(&small.snapshot, query)),
        (large.queries(), &|query| authorize(&large.snapshot, query)),
    )?;
    plain.print("without entities of its own", &small, &large);
    let (few, many) = (candidates_of(&small)?, candidates_of(&large)?);
    print_table(
        "candidates of a request",
        ["", "p50", "p99", "most"],
        [(&small, &few), (&large, &many)].map(|(loaded, candidates)| {
            [
                loaded.size(),
                format!("{:.0}", candidates.median()),
                format!("{:.0}", candidates.percentile(99)),
                format!("{:.0}", candidates.most()),
            ]
        }),
    );
    plain.target(
        targets::DECIDE_AT_SCALE,
        &format!(
            "; candidates p50 {:.0} / {:.0}, p99 {:.0} / {:.0}",
            many.median(),
            few.median(),
            many.percentile(99),
            few.percentile(99)
        ),
    );

    // Measures the effect of stored entities, so both sides have the same number of policies.
    let large = Loaded::new(12, entities, requests)?;
    let add_entities = |loaded: &Loaded| {
        let add_entities = |drawn| loaded.dataset.with_entities(drawn);
        loaded.drawn_requests.iter().map(add_entities).collect()
    };
    let add_entities = Compared::measure(
        (add_entities(&small), &|query| {
            authorize(&small.snapshot, query)
        }),
        (add_entities(&large), &|query| {
            authorize(&large.snapshot, query)
        }),
    )?;
    add_entities.print("bringing 5 entities of its own", &small, &large);
    add_entities.target(targets::REQUEST_ENTITIES, "");
    Ok(())
}

/// Counts the policies that each request's decision evaluates.
pub(crate) fn candidates_of(loaded: &Loaded) -> anyhow::Result<Spread> {
    let counts = loaded
        .drawn_requests
        .iter()
        .map(|drawn| Ok(candidates(&loaded.snapshot, &drawn.query())? as f64))
        .collect::<anyhow::Result<Vec<f64>>>()?;
    Ok(Spread::of(counts))
}

/// Queries, and the function that is measured for each.
type Side<'a, T> = (Vec<Query>, &'a dyn Fn(&Query) -> Result<T, NoAnswer>);

/// Microseconds of each query on two sides that take turns, by turn.
pub(crate) struct Compared {
    baseline: Vec<Vec<f64>>,
    subject: Vec<Vec<f64>>,
}

impl Compared {
    pub(crate) fn measure<T, U>(
        (baseline_queries, baseline): Side<'_, T>,
        (subject_queries, subject): Side<'_, U>,
    ) -> anyhow::Result<Self> {
        let per_turn = baseline_queries.len().div_ceil(TURNS);
        let turns = baseline_queries
            .chunks(per_turn)
            .zip(subject_queries.chunks(per_turn))
            .map(|(of_baseline, of_subject)| {
                Ok((
                    time_each(of_baseline, baseline)?,
                    time_each(of_subject, subject)?,
                ))
            });
        let (baseline, subject) = turns.collect::<anyhow::Result<_>>()?;
        Ok(Self { baseline, subject })
    }

    pub(crate) fn baseline(&self) -> Spread {
        Spread::of(self.baseline.iter().flatten().copied())
    }

    pub(crate) fn subject(&self) -> Spread {
        Spread::of(self.subject.iter().flatten().copied())
    }

    /// Returns the ratio of the medians in each turn.
    pub(crate) fn ratio(&self) -> Spread {
        let median = |turn: &Vec<f64>| Spread::of(turn.iter().copied()).median();
        let turns = self.subject.iter().zip(&self.baseline);
        Spread::of(turns.map(|(subject, baseline)| median(subject) / median(baseline)))
    }

    fn print(&self, title: &str, small: &Loaded, large: &Loaded) {
        let row = |loaded: &Loaded, spread: &Spread, ratio: String| {
            [
                loaded.size(),
                format!("{:.2}", spread.median()),
                format!("{:.2}", spread.percentile(99)),
                ratio,
            ]
        };
        print_table(
            title,
            ["", "p50 us", "p99 us", "x small"],
            [
                row(small, &self.baseline(), "1.00".to_owned()),
                row(large, &self.subject(), self.ratio().show(2)),
            ],
        );
    }

    fn target(&self, target: Target, besides: &str) {
        target.measured(&format!(
            "{:.2} x (p50 {:.2} us / {:.2} us, p99 {:.1} us / {:.1} us{besides})",
            self.ratio().median(),
            self.subject().median(),
            self.baseline().median(),
            self.subject().percentile(99),
            self.baseline().percentile(99)
        ));
    }
}

/// Measures `answer` for each query, in microseconds.
pub(crate) fn time_each<T>(
    queries: &[Query],
    answer: &dyn Fn(&Query) -> Result<T, NoAnswer>,
) -> anyhow::Result<Vec<f64>> {
    queries
        .iter()
        .map(|query| {
            let started = Instant::now();
            let answered = answer(black_box(query));
            let took = started.elapsed();
            black_box(answered.context("a request cannot be decided")?);
            Ok(took.as_secs_f64() * 1e6)
        })
        .collect()
}
