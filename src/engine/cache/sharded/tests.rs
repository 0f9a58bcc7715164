//! The first cache tier by itself.

use std::collections::BTreeSet;

use super::*;
use crate::decision_log::LoggableAnswer;
use crate::pdp::answer::{Answer, Decision};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Number(usize);

impl LoggableAnswer for Number {
    fn decision(&self) -> Decision {
        Decision::Deny
    }

    fn determining(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }

    fn errors(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::empty()
    }
}

impl CachedAnswer for Number {
    type Entry = (Box<[u8]>, Self);

    fn from_answer(_: Answer) -> Self {
        Self(0)
    }

    fn weight(&self) -> usize {
        0
    }
}

const KEY_BYTES: usize = 8;

fn key(n: usize) -> [u8; KEY_BYTES] {
    n.to_le_bytes()
}

fn revision(n: u8) -> Revision {
    Revision::from_digest(&[n; 32])
}

fn table(entries: usize) -> ShardedTable<Number> {
    ShardedTable::new(((ENTRY_OVERHEAD_BYTES + KEY_BYTES) * entries) as u64)
}

fn insert(table: &ShardedTable<Number>, n: usize, when_full: WhenFull) -> bool {
    let key = key(n);
    table.insert(&revision(1), table.hash(&key), &key, &Number(n), when_full)
}

fn get(table: &ShardedTable<Number>, n: usize) -> Option<usize> {
    let key = key(n);
    let found = table.get(&revision(1), table.hash(&key), &key);
    found.map(|Number(n)| n)
}

/// Returns which of `numbers` are in the table, without setting a flag.
fn present(table: &ShardedTable<Number>, numbers: impl Iterator<Item = usize>) -> BTreeSet<usize> {
    let all: BTreeSet<usize> = (table.shards.iter())
        .flat_map(|shard| {
            let shard = lock(shard);
            let entries = shard.table.iter();
            entries
                .map(|slot| slot.entry.answer().0)
                .collect::<Vec<_>>()
        })
        .collect();
    numbers.filter(|n| all.contains(n)).collect()
}

#[test]
fn recently_hit_entries_are_evicted_last() {
    let table = table(100);
    for n in 0..100 {
        assert!(insert(&table, n, WhenFull::Evict));
    }
    for n in 0..20 {
        assert_eq!(get(&table, n), Some(n));
    }
    // Entries without a hit are evicted first.
    for n in 200..240 {
        assert!(insert(&table, n, WhenFull::Evict));
    }
    let hit = present(&table, 0..20).len();
    let others = present(&table, 20..100).len();
    // Not all 20, if the table moves entries so that the hand meets one twice. New entries go, too.
    assert!(
        hit >= 17 && others <= 60,
        "{hit} hit entries and {others} others"
    );
    assert_eq!(table.metrics().evictions, 40);
}

#[test]
fn full_shard_evicts_only_on_request() {
    let table = table(3);
    for n in 0..3 {
        assert!(insert(&table, n, WhenFull::Reject));
    }
    assert!(!insert(&table, 3, WhenFull::Reject));
    assert_eq!(present(&table, 0..4), BTreeSet::from([0, 1, 2]));
    assert!(insert(&table, 3, WhenFull::Evict));
    assert_eq!(get(&table, 3), Some(3));
    assert_eq!(table.metrics().entries, 3);
}

#[test]
fn batch_lookup_finds_what_single_lookups_find() {
    let table: ShardedTable<Number> = ShardedTable::new(8 << 20);
    for n in (0..300).step_by(3) {
        insert(&table, n, WhenFull::Evict);
    }
    let keys: Vec<_> = (0..300).chain([3, 3]).map(|n| (n, key(n))).collect();
    let hashed: Vec<_> = (keys.iter())
        .map(|(_, key)| (table.hash(key), &key[..]))
        .collect();
    let found = table.get_all(&revision(1), &hashed);
    assert_eq!(found.len(), keys.len());
    for ((n, _), found) in keys.iter().zip(found) {
        let wanted = n.is_multiple_of(3).then_some(Number(*n));
        assert_eq!(found, wanted);
    }
    let other_revision = table.get_all(&revision(2), &hashed);
    assert!(other_revision.iter().all(Option::is_none));
    assert_eq!((table.metrics().hits, table.metrics().misses), (0, 0));
}

#[test]
fn batch_lookup_protects_entries_from_eviction() {
    let table = table(100);
    for n in 0..100 {
        insert(&table, n, WhenFull::Evict);
    }
    let hit = [7, 8, 9].map(key);
    let hashed = hit.each_ref().map(|key| (table.hash(key), &key[..]));
    let found = table.get_all(&revision(1), &hashed);
    assert!(found.iter().all(Option::is_some));
    insert(&table, 200, WhenFull::Evict);
    assert_eq!(present(&table, 7..10).len(), 3);
}

#[test]
fn colliding_hashes_do_not_mix_up_answers() {
    let table = table(3);
    let (one, other) = (key(1), key(2));
    table.insert(&revision(1), 7, &one, &Number(1), WhenFull::Evict);
    assert_eq!(table.get(&revision(1), 7, &other), None);
    table.insert(&revision(1), 7, &other, &Number(2), WhenFull::Evict);
    // A batch lookup may miss one of them, but never returns the other's answer.
    let both = [(7, &one[..]), (7, &other[..])];
    for (found, wanted) in table.get_all(&revision(1), &both).into_iter().zip(1..) {
        assert!(found.is_none_or(|found| found == Number(wanted)));
    }
    assert_eq!(table.get(&revision(1), 7, &one), Some(Number(1)));
    assert_eq!(table.get(&revision(1), 7, &other), Some(Number(2)));
}

#[test]
fn answers_are_found_only_under_their_revision() {
    let table = table(3);
    insert(&table, 1, WhenFull::Evict);
    let key = key(1);
    let hash = table.hash(&key);
    assert_eq!(table.get(&revision(2), hash, &key), None);
    table.insert(&revision(2), hash, &key, &Number(9), WhenFull::Evict);
    assert_eq!(get(&table, 1), None);
    assert_eq!(table.get(&revision(2), hash, &key), Some(Number(9)));
}

#[test]
fn bytes_are_bounded_and_all_entries_found() {
    let table: ShardedTable<Number> = ShardedTable::new(8 << 20);
    assert_eq!(table.shards.len(), 4);
    for n in 0..100_000 {
        assert!(insert(&table, n, WhenFull::Evict));
        if n % 7 == 0 {
            assert_eq!(get(&table, n), Some(n));
        }
    }
    let metrics = table.metrics();
    assert!(
        metrics.bytes <= 8 << 20 && metrics.bytes > 7 << 20,
        "{metrics:?}"
    );
    let held = present(&table, 0..100_000);
    assert_eq!(metrics.entries, held.len() as u64);
    assert_eq!(metrics.entries + metrics.evictions, 100_000);
    for n in 0..100_000 {
        assert_eq!(get(&table, n), held.contains(&n).then_some(n));
    }
    table.clear();
    assert_eq!((table.metrics().entries, table.metrics().bytes), (0, 0));
}

#[test]
fn entry_larger_than_a_shard_is_rejected() {
    let table = table(1);
    insert(&table, 1, WhenFull::Evict);
    let key = [0; 100];
    let hash = table.hash(&key);
    assert!(!table.insert(&revision(1), hash, &key, &Number(2), WhenFull::Evict));
    assert_eq!(get(&table, 1), Some(1));
}
