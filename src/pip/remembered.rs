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

/// As many locks: requests on as many threads seldom meet at one.
const SHARDS: usize = 32;

/// What an entry needs besides its token and what stands in its claims, rounded up.
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
}

impl<V> Entry<V> {
    /// Claims are about as long as they were in the token.
    fn bytes(&self) -> usize {
        ENTRY_BYTES + 2 * self.token.len()
    }
}

impl<V> Remembered<V> {
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
        if let Some(entry) = shard.young.find_mut(hash, is_it) {
            entry.value = value;
            return;
        }
        if let Ok(old) = shard.old.find_entry(hash, is_it) {
            old.remove();
        }
        let entry = Entry {
            hash,
            token: token.into(),
            value,
        };
        if entry.bytes() <= self.most {
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
        if self.young_bytes + entry.bytes() > most {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += entry.bytes();
        self.young
            .insert_unique(entry.hash, entry, |entry| entry.hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(entries: usize) -> Remembered<usize> {
        let bytes = SHARDS * 2 * entries * (ENTRY_BYTES + 2 * 8);
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
    fn what_is_larger_than_the_room_is_not_remembered() {
        let remembered = room(1);
        remembered.put(&"x".repeat(1_000), Arc::new(1));
        assert_eq!(remembered.len(), 0);
    }
}
