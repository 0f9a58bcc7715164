//! One uncached decision in this process: on a large store against a small one, with and without
//! entities that the request brings.
//!
//! From the query, as parsed from the wire, to the answer. The stores take turns of some hundred
//! requests, and every request is another: little of a large store is in the processor's caches.
//!
//! Candidates are the policies that a decision evaluates, those whose scope matches the request.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Context as _;
use cedar_pdp::pdp::query::Query;
use cedar_pdp::pdp::{Snapshot, authorize, candidates};

use crate::loaded::Loaded;
use crate::support::Sizes;
use crate::support::figures::{Spread, print_table};
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

    let plain = |loaded: &Loaded| loaded.asks.iter().map(|ask| ask.query()).collect();
    let plain = Compared::measure(
        &small.snapshot,
        plain(&small),
        &large.snapshot,
        plain(&large),
    )?;
    plain.print("without entities of its own", &small, &large);
    let (few, many) = (candidates_of(&small)?, candidates_of(&large)?);
    print_table(
        "candidates of a request",
        ["", "p50", "p99", "most"],
        [(&small, &few), (&large, &many)].map(|(loaded, candidates)| {
            [
                size_of(loaded),
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

    // What is asked here is what the stored entities cost such a request, so the policies are as
    // many on both sides.
    let large = Loaded::new(12, entities, requests)?;
    let bringing = |loaded: &Loaded| {
        let bringing = |ask| loaded.dataset.bringing_entities(ask);
        loaded.asks.iter().map(bringing).collect()
    };
    let bringing = Compared::measure(
        &small.snapshot,
        bringing(&small),
        &large.snapshot,
        bringing(&large),
    )?;
    bringing.print("bringing 5 entities of its own", &small, &large);
    bringing.target(targets::REQUEST_ENTITIES, "");
    Ok(())
}

/// How many policies each request's decision evaluates.
pub(crate) fn candidates_of(loaded: &Loaded) -> anyhow::Result<Spread> {
    let counts = loaded
        .asks
        .iter()
        .map(|ask| Ok(candidates(&loaded.snapshot, &ask.query())? as f64))
        .collect::<anyhow::Result<Vec<f64>>>()?;
    Ok(Spread::of(counts))
}

fn size_of(loaded: &Loaded) -> String {
    format!(
        "{} policies, {} entities",
        thousands(loaded.dataset.policies()),
        thousands(loaded.dataset.entities())
    )
}

/// Microseconds of each decision, by turn.
struct Compared {
    small: Vec<Spread>,
    large: Vec<Spread>,
    of_small: Spread,
    of_large: Spread,
}

impl Compared {
    fn measure(
        small: &Snapshot,
        small_queries: Vec<Query>,
        large: &Snapshot,
        large_queries: Vec<Query>,
    ) -> anyhow::Result<Self> {
        let mut turns = (Vec::new(), Vec::new());
        let mut all = (Vec::new(), Vec::new());
        let per_turn = small_queries.len().div_ceil(TURNS);
        let chunks = small_queries
            .chunks(per_turn)
            .zip(large_queries.chunks(per_turn));
        for (small_queries, large_queries) in chunks {
            let measured = (
                time_each(small, small_queries)?,
                time_each(large, large_queries)?,
            );
            all.0.extend_from_slice(&measured.0);
            all.1.extend_from_slice(&measured.1);
            turns.0.push(Spread::of(measured.0));
            turns.1.push(Spread::of(measured.1));
        }
        Ok(Self {
            small: turns.0,
            large: turns.1,
            of_small: Spread::of(all.0),
            of_large: Spread::of(all.1),
        })
    }

    /// The ratio of the medians in each turn.
    fn ratio(&self) -> Spread {
        Spread::of(
            self.large
                .iter()
                .zip(&self.small)
                .map(|(large, small)| large.median() / small.median()),
        )
    }

    fn print(&self, title: &str, small: &Loaded, large: &Loaded) {
        let row = |loaded: &Loaded, spread: &Spread, ratio: String| {
            [
                size_of(loaded),
                format!("{:.2}", spread.median()),
                format!("{:.2}", spread.percentile(99)),
                ratio,
            ]
        };
        print_table(
            title,
            ["", "p50 us", "p99 us", "x small"],
            [
                row(small, &self.of_small, "1.00".to_owned()),
                row(large, &self.of_large, self.ratio().show(2)),
            ],
        );
    }

    fn target(&self, target: Target, besides: &str) {
        target.measured(&format!(
            "{:.2} x (p50 {:.2} us / {:.2} us, p99 {:.1} us / {:.1} us{besides})",
            self.ratio().median(),
            self.of_large.median(),
            self.of_small.median(),
            self.of_large.percentile(99),
            self.of_small.percentile(99)
        ));
    }
}

/// The microseconds of each decision.
pub(crate) fn time_each(snapshot: &Snapshot, queries: &[Query]) -> anyhow::Result<Vec<f64>> {
    queries
        .iter()
        .map(|query| {
            let begun = Instant::now();
            let answer = authorize(snapshot, black_box(query));
            let took = begun.elapsed();
            black_box(answer.context("a request cannot be decided")?);
            Ok(took.as_secs_f64() * 1e6)
        })
        .collect()
}
