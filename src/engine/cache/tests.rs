//! The cache as its engine uses it.

use super::*;
use crate::pdp::answer::{Decision, Diagnostics};
use crate::pdp::query::{InvalidQuery, Problem, Query, Record, Uid};
use crate::pdp::sources::{FileKind, SourceFile, Sources};
use crate::pdp::{Settings, compile};

type Answers = Cache<Arc<Answer>>;

fn cache(capacity_bytes: u64) -> Answers {
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

/// One of several snapshots, each of its own revision.
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

fn ask(cache: &Answers, snapshot: &Snapshot, query: &Query, otherwise: Decision) -> Decision {
    cache
        .get_or_decide(snapshot, &query.into(), || Ok(answer(snapshot, otherwise)))
        .unwrap()
        .answer
        .decision
}

#[test]
fn an_answer_is_found_again_under_its_revision_and_no_other() {
    let cache = cache(1 << 20);
    let asked = |n, decision| ask(&cache, &snapshot(n), &query("alice"), decision);
    assert_eq!(asked(1, Decision::Allow), Decision::Allow);
    assert_eq!(asked(1, Decision::Deny), Decision::Allow);
    assert_eq!(asked(2, Decision::Deny), Decision::Deny);
    // Who still holds the old snapshot is answered on it.
    assert_eq!(asked(1, Decision::Allow), Decision::Allow);
    let figures = cache.figures();
    assert_eq!((figures.hits, figures.misses, figures.entries), (1, 3, 1));
}

#[test]
fn a_query_that_cannot_be_decided_leaves_nothing_behind() {
    let cache = cache(1 << 20);
    let invalid = NoAnswer::from(InvalidQuery::field("context", Problem::Missing));
    let query = query("alice");
    let refused = cache.get_or_decide(&snapshot(1), &(&query).into(), || Err(invalid.clone()));
    assert_eq!(refused.unwrap_err(), invalid);
    assert_eq!(cache.figures().entries, 0);
}

#[test]
fn memory_is_bounded_by_evicting() {
    let cache = cache(100_000);
    let snapshot = snapshot(1);
    for n in 0..10_000 {
        ask(&cache, &snapshot, &query(&n.to_string()), Decision::Deny);
    }
    let figures = cache.figures();
    assert!(figures.bytes <= figures.capacity_bytes, "{figures:?}");
    assert!(figures.evictions > 0 && figures.entries > 0, "{figures:?}");
}

#[test]
fn what_falls_out_of_the_front_is_found_in_moka_and_stands_in_one_of_them() {
    let cache = cache(1 << 20);
    let snapshot = snapshot(1);
    let weight = cache_weight(&cache, &snapshot);
    // A little more than the front holds.
    let count = (3 << 18) / weight + 200;
    for n in 0..count {
        ask(
            &cache,
            &snapshot,
            &query(&format!("{n:08}")),
            Decision::Allow,
        );
    }
    assert_eq!(cache.figures().entries, count as u64);
    for n in 0..count {
        let query = query(&format!("{n:08}"));
        assert_eq!(
            ask(&cache, &snapshot, &query, Decision::Deny),
            Decision::Allow
        );
    }
    let figures = cache.figures();
    assert_eq!(figures.entries, count as u64, "{figures:?}");
    // One more was asked to be weighed.
    let count = count as u64;
    assert_eq!((figures.hits, figures.misses), (count, count + 1));
    assert_eq!(figures.evictions, 0);
    cache.forget();
    let figures = cache.figures();
    assert_eq!((figures.entries, figures.bytes), (0, 0));
}

/// What an entry weighs.
fn cache_weight(cache: &Answers, snapshot: &Snapshot) -> usize {
    ask(cache, snapshot, &query("00000000"), Decision::Allow);
    let bytes = cache.figures().bytes;
    cache.forget();
    bytes as usize
}

#[test]
fn without_capacity_there_is_no_cache() {
    assert!(
        Answers::new(CacheSettings {
            capacity_bytes: None
        })
        .is_none()
    );
}
