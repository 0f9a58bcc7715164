//! Repeats one stage in a function of its own, for callgrind to count its instructions.
//!
//! ```sh
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*stage*cached_hit*' \
//!   target/dist/deps/scale-… stage cached_hit 1000
//! ```
//!
//! The instructions collected, divided by the count, are those of one request.

use std::hint::black_box;
use std::num::NonZeroU64;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use cedar_pdp::decision_log::Origin;
use cedar_pdp::engine::Engine;
use cedar_pdp::engine::cache::CacheSettings;
use cedar_pdp::pdp::query::Query;
use cedar_pdp::pdp::query_ref::QueryRef;
use cedar_pdp::pdp::{Snapshot, authorize};
use cedar_pdp::policy_store::snapshots;

use crate::loaded::Loaded;

/// The number of requests that a stage repeats in turn.
const REQUESTS: usize = 1_000;

/// Repeats the stage `name` `count` times, on 12 policies and 1,000 entities or on the given
/// `size`.
pub(crate) fn repeat(name: &str, count: usize, size: &[&str]) -> anyhow::Result<()> {
    let (policies, entities) = match size {
        [] => (12, 1_000),
        [policies, entities] => (policies.parse()?, entities.parse()?),
        _ => bail!("a size is a number of policies and one of entities"),
    };
    let loaded = Loaded::new(policies, entities, REQUESTS)?;
    match name {
        "uncached" => uncached(&loaded.snapshot, loaded.queries(), count),
        "bringing_entities" => {
            let add_entities = |drawn| loaded.dataset.with_entities(drawn);
            let queries = loaded.drawn_requests.iter().map(add_entities).collect();
            uncached(&loaded.snapshot, queries, count)
        }
        "cached_hit" => {
            let queries = loaded.queries();
            let (mut publisher, reader) = snapshots();
            publisher.publish(Arc::clone(&loaded.snapshot));
            let engine = Engine::new(
                reader,
                CacheSettings {
                    capacity_bytes: NonZeroU64::new(64 << 20),
                },
            );
            let snapshot = engine.snapshot().context("a snapshot was published")?;
            // Outside the function whose instructions count.
            for query in &queries {
                decide(&engine, &snapshot, query)?;
            }
            for query in queries.iter().cycle().take(count) {
                cached_hit(&engine, &snapshot, query)?;
            }
            let statistics = engine.cache_metrics().context("the cache is on")?;
            ensure!(
                statistics.hits >= count as u64 && statistics.misses == queries.len() as u64,
                "not every lookup was a hit: {statistics:?}"
            );
            Ok(())
        }
        _ => bail!("`{name}` is none of: cached_hit, uncached, bringing_entities"),
    }
}

fn uncached(snapshot: &Snapshot, queries: Vec<Query>, count: usize) -> anyhow::Result<()> {
    for query in queries.iter().cycle().take(count) {
        uncached_decision(snapshot, query)?;
    }
    Ok(())
}

#[inline(never)]
fn uncached_decision(snapshot: &Snapshot, query: &Query) -> anyhow::Result<()> {
    black_box(authorize(snapshot, query)?);
    Ok(())
}

#[inline(never)]
fn cached_hit(engine: &Engine, snapshot: &Snapshot, query: &Query) -> anyhow::Result<()> {
    decide(engine, snapshot, query)
}

fn decide(engine: &Engine, snapshot: &Snapshot, query: &Query) -> anyhow::Result<()> {
    let leave = engine.try_log_permit().context("nothing is logged")?;
    black_box(engine.authorize(snapshot, &QueryRef::from(query), &Origin::default(), &leave)?);
    Ok(())
}
