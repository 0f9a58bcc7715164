//! Remembers tokens that were verified, bounded in bytes, so that the next request with the same
//! token costs no signature check.
//!
//! What is remembered is what does not change: that the signature was good under one set of keys,
//! and what the claims say. Whether the keys are still those, whether the time has come or passed
//! and whether the token was revoked is for the reader to ask each time. Only tokens that were
//! good get in, so nobody without one can fill it.
//!
//! Each shard has two tables, a young and an old one. When the young one is full it becomes the old
//! one, whose entries are dropped but for those that were asked for meanwhile.

use std::hash::BuildHasher as _;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use hashbrown::HashTable;

use super::weight::Weighed;

/// As many locks: requests on as many threads seldom meet at one.
const SHARDS: usize = 32;

/// What an entry needs besides its token and what its value holds, rounded up: its places in a table
/// that is half full, and what allocations cost.
const ENTRY_BYTES: usize = 512;

/// Values by token.
#[derive(Debug)]
pub(super) struct Remembered<V> {
    hasher: RandomState,
    shards: Box<[Mutex<Shard<V>>]>,
    /// The most that one table holds, in bytes.
    most: usize,
}

#[derive(Debug)]
struct Shard<V> {
    young: HashTable<Entry<V>>,
    young_bytes: usize,
    old: HashTable<Entry<V>>,
}

#[derive(Debug)]
struct Entry<V> {
    hash: u64,
    token: Box<str>,
    value: Arc<V>,
    bytes: usize,
}

impl<V: Weighed> Entry<V> {
    fn new(hash: u64, token: &str, value: Arc<V>) -> Self {
        Self {
            hash,
            bytes: ENTRY_BYTES + size_of::<V>() + token.len() + value.heap_bytes(),
            token: token.into(),
            value,
        }
    }
}

impl<V: Weighed> Remembered<V> {
    /// Room for about so many bytes.
    pub(super) fn new(capacity_bytes: NonZeroU64) -> Self {
        let capacity = usize::try_from(capacity_bytes.get()).unwrap_or(usize::MAX);
        Self {
            hasher: RandomState::default(),
            shards: (0..SHARDS)
                .map(|_| {
                    Mutex::new(Shard {
                        young: HashTable::new(),
                        young_bytes: 0,
                        old: HashTable::new(),
                    })
                })
                .collect(),
            most: capacity / SHARDS / 2,
        }
    }

    /// What is remembered of `token`.
    pub(super) fn get(&self, token: &str) -> Option<Arc<V>> {
        let hash = self.hasher.hash_one(token);
        let mut shard = self.shard(hash)?;
        let is_it = |entry: &Entry<V>| *entry.token == *token;
        if let Some(entry) = shard.young.find(hash, is_it) {
            return Some(Arc::clone(&entry.value));
        }
        let entry = shard.old.find_entry(hash, is_it).ok()?.remove().0;
        let value = Arc::clone(&entry.value);
        shard.put(entry, self.most);
        Some(value)
    }

    /// Remembers `value` of `token`, in place of what was remembered before.
    pub(super) fn put(&self, token: &str, value: Arc<V>) {
        let hash = self.hasher.hash_one(token);
        let Some(mut shard) = self.shard(hash) else {
            return;
        };
        let is_it = |entry: &Entry<V>| *entry.token == *token;
        if let Ok(young) = shard.young.find_entry(hash, is_it) {
            let replaced = young.remove().0;
            shard.young_bytes -= replaced.bytes;
        }
        if let Ok(old) = shard.old.find_entry(hash, is_it) {
            old.remove();
        }
        let entry = Entry::new(hash, token, value);
        if entry.bytes <= self.most {
            shard.put(entry, self.most);
        }
    }

    fn shard(&self, hash: u64) -> Option<MutexGuard<'_, Shard<V>>> {
        // The tables take the low bits.
        let shard = self.shards.get((hash >> 40) as usize % SHARDS)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many tokens are remembered.
    pub(super) fn len(&self) -> usize {
        let shards = self.shards.iter();
        shards
            .map(|shard| {
                let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                shard.young.len() + shard.old.len()
            })
            .sum()
    }
}

impl<V> Shard<V> {
    fn put(&mut self, entry: Entry<V>, most: usize) {
        if self.young_bytes + entry.bytes > most {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += entry.bytes;
        self.young
            .insert_unique(entry.hash, entry, |entry| entry.hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weighed for usize {
        fn heap_bytes(&self) -> usize {
            0
        }
    }

    impl Weighed for Vec<u8> {
        fn heap_bytes(&self) -> usize {
            self.capacity()
        }
    }

    fn room(entries: usize) -> Remembered<usize> {
        let bytes = SHARDS * 2 * entries * (ENTRY_BYTES + size_of::<usize>() + 8);
        Remembered::new(NonZeroU64::new(bytes as u64).unwrap())
    }

    fn token(number: usize) -> String {
        format!("{number:08}")
    }

    #[test]
    fn a_token_is_found_by_the_whole_of_its_text() {
        let remembered = room(10);
        remembered.put("one", Arc::new(1));
        assert_eq!(remembered.get("one").as_deref(), Some(&1));
        assert_eq!(remembered.get("on"), None);
        remembered.put("one", Arc::new(2));
        assert_eq!(remembered.get("one").as_deref(), Some(&2));
        assert_eq!(remembered.len(), 1);
    }

    #[test]
    fn however_many_come_there_is_a_bound_and_what_is_asked_for_stays() {
        let remembered = room(20);
        remembered.put("kept", Arc::new(usize::MAX));
        for number in 0..20_000 {
            remembered.put(&token(number), Arc::new(number));
            assert!(remembered.get("kept").is_some());
        }
        assert!(remembered.len() <= SHARDS * 2 * 20, "{}", remembered.len());
        assert_eq!(remembered.get(&token(19_999)).as_deref(), Some(&19_999));
        assert_eq!(remembered.get(&token(0)), None);
    }

    #[test]
    fn what_a_value_holds_counts_and_not_its_token_alone() {
        let capacity = 1 << 20;
        let remembered = Remembered::new(NonZeroU64::new(capacity).unwrap());
        for number in 0..10_000 {
            remembered.put(&token(number), Arc::new(vec![0_u8; 4_096]));
        }
        assert!(remembered.len() > 0);
        assert!(
            remembered.len() as u64 * 4_096 <= capacity,
            "{}",
            remembered.len()
        );
        // One that takes the place of another gives back what that took.
        let remembered = Remembered::new(NonZeroU64::new(capacity).unwrap());
        remembered.put("kept", Arc::new(vec![0_u8; 4_096]));
        for _ in 0..1_000 {
            remembered.put("replaced", Arc::new(vec![0_u8; 4_096]));
        }
        assert_eq!(remembered.len(), 2);
    }

    #[test]
    fn what_is_larger_than_the_room_is_not_remembered() {
        let remembered = room(1);
        remembered.put(&"x".repeat(1_000), Arc::new(1));
        assert_eq!(remembered.len(), 0);
    }
}
