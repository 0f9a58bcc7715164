//! Both tiers together.

use super::*;
use crate::pdp::answer::{Answer, Decision, Diagnostics};
use crate::pdp::query::{InvalidQuery, Problem, Query, Record, Uid};
use crate::pdp::sources::{FileKind, SourceFile, Sources};
use crate::pdp::{Settings, compile};

type AnswerCache = Cache<Arc<Answer>>;

fn cache(capacity_bytes: u64) -> AnswerCache {
    Cache::new(CacheSettings {
        capacity_bytes: NonZeroU64::new(capacity_bytes),
    })
    .unwrap()
}

fn query(id: &str) -> Query {
    Query {
        principal: Uid::new("User", id),
        action: Uid::new("Action", "read"),
        resource: Uid::new("Doc", "1"),
        context: Record::default(),
        entities: Vec::new(),
        claimed: None,
        explain: false,
    }
}

/// Returns a snapshot with a revision of its own.
fn snapshot(n: u8) -> Snapshot {
    let text = format!("// {n}");
    let file = SourceFile::in_memory("some.cedar".to_owned(), FileKind::Policies, text.into());
    compile(
        &Sources::new(vec![file], Vec::new(), Vec::new()),
        &Settings::default(),
    )
    .unwrap()
}

fn answer(snapshot: &Snapshot, decision: Decision) -> Arc<Answer> {
    Arc::new(Answer {
        decision,
        diagnostics: Diagnostics::default(),
        revision: snapshot.revision().clone(),
        explanation: None,
    })
}

/// Returns the cached decision, or else caches and returns `decided`.
fn get(cache: &AnswerCache, snapshot: &Snapshot, query: &Query, decided: Decision) -> Decision {
    let decide = || Ok(answer(snapshot, decided));
    let (answer, _) = cache
        .get_or_decide(snapshot, &query.into(), decide)
        .unwrap();
    answer.decision
}

#[test]
fn answers_are_found_only_under_their_revision() {
    let cache = cache(1 << 20);
    let get = |n, decision| get(&cache, &snapshot(n), &query("alice"), decision);
    assert_eq!(get(1, Decision::Allow), Decision::Allow);
    assert_eq!(get(1, Decision::Deny), Decision::Allow);
    assert_eq!(get(2, Decision::Deny), Decision::Deny);
    // A request on the old snapshot is still answered on it.
    assert_eq!(get(1, Decision::Allow), Decision::Allow);
    let metrics = cache.metrics();
    assert_eq!((metrics.hits, metrics.misses, metrics.entries), (1, 3, 1));
}

#[test]
fn failed_evaluations_are_not_cached() {
    let cache = cache(1 << 20);
    let invalid = NoAnswer::from(InvalidQuery::field("context", Problem::Missing));
    let query = query("alice");
    let result = cache.get_or_decide(&snapshot(1), &(&query).into(), || Err(invalid.clone()));
    assert_eq!(result.unwrap_err(), invalid);
    assert_eq!(cache.metrics().entries, 0);
}

#[test]
fn memory_is_bounded_by_eviction() {
    let cache = cache(100_000);
    let snapshot = snapshot(1);
    for n in 0..10_000 {
        get(&cache, &snapshot, &query(&n.to_string()), Decision::Deny);
    }
    let metrics = cache.metrics();
    assert!(metrics.bytes <= metrics.capacity_bytes, "{metrics:?}");
    assert!(metrics.evictions > 0 && metrics.entries > 0, "{metrics:?}");
}

#[test]
fn second_request_moves_answer_to_full_table() {
    let cache = cache(1 << 20);
    let snapshot = snapshot(1);
    let mut count = 0;
    let mut last = query("none");
    while cache.metrics().entries == cache.hot.metrics().entries {
        last = query(&format!("{count:08}"));
        get(&cache, &snapshot, &last, Decision::Allow);
        count += 1;
    }
    let before = cache.metrics();
    assert_eq!((before.entries, before.evictions), (count, 0));
    for _ in 0..2 {
        let decision = get(&cache, &snapshot, &last, Decision::Deny);
        assert_eq!(decision, Decision::Allow);
    }
    // One hit was a candidate's, the other one the table's, which evicted an entry in between.
    let after = cache.metrics();
    assert_eq!((after.hits, after.misses), (2, count));
    assert_eq!(after.evictions, 1);
    assert_eq!(after.entries, count - 1, "{after:?}");
    cache.clear();
    let metrics = cache.metrics();
    assert_eq!((metrics.entries, metrics.bytes), (0, 0));
}

#[test]
fn frequent_answers_survive_a_flood_of_others() {
    let cache = cache(200_000);
    let snapshot = snapshot(1);
    let frequent: Vec<Query> = (0..50).map(|n| query(&format!("frequent{n}"))).collect();
    for n in 0..10_000 {
        let query = query(&format!("{n:08}"));
        get(&cache, &snapshot, &query, Decision::Deny);
        get(&cache, &snapshot, &frequent[n % 50], Decision::Deny);
    }
    let hits = cache.metrics().hits;
    assert!(hits > 9_500, "{hits}");
    assert!(cache.metrics().bytes <= 200_000);
}

#[test]
fn zero_capacity_turns_the_cache_off() {
    assert!(
        AnswerCache::new(CacheSettings {
            capacity_bytes: None
        })
        .is_none()
    );
}
