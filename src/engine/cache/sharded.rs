//! The first cache tier: a hash table in shards, each with its own lock.
//!
//! A hit locks a shard, finds the key and sets a flag in the entry. moka also records each read for
//! its queues and its frequency sketch, which is most of a hit's cost with 100,000 keys.
//!
//! Entries are evicted by the CLOCK algorithm: a hand goes round the table, clears the flag of each
//! entry, and evicts the first entry whose flag is not set.

use std::cell::Cell;
use std::hash::BuildHasher as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use smallvec::SmallVec;

use super::super::{CacheEntry as _, CachedAnswer};
use super::CacheMetrics;
use crate::pdp::id::Revision;

/// Bytes of an entry besides key and answer, rounded up: its slot, the table's spare room, and the
/// allocator's overhead.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// Least capacity of a shard. More shards make threads wait less for one another, but an entry
/// must fit into one shard.
const MIN_SHARD_BYTES: u64 = 2 << 20;
const MAX_SHARDS: u64 = 16;
/// Keys of one batch lookup that usually fall into one shard, at most.
const BATCH_KEYS_PER_SHARD: usize = 16;

/// A hash table of answers by revision and key, bounded in bytes.
#[derive(Debug)]
pub(super) struct ShardedTable<A: CachedAnswer> {
    hasher: RandomState,
    /// The shards; their number is a power of two.
    shards: Box<[Mutex<Shard<A>>]>,
}

/// The choice of what happens to a new entry for which a shard has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// The new entry is rejected.
    Reject,
    /// Other entries are evicted.
    Evict,
}

#[derive(Debug)]
struct Shard<A: CachedAnswer> {
    /// The revision of all entries. An answer of another revision replaces them all.
    revision: Option<Revision>,
    table: HashTable<Slot<A>>,
    /// The bucket at which the next eviction begins.
    hand: usize,
    bytes: usize,
    capacity: usize,
    hits: u64,
    misses: u64,
    evictions: u64,
}

#[derive(Debug)]
struct Slot<A: CachedAnswer> {
    hash: u64,
    entry: A::Entry,
    /// Set by a hit, cleared by the hand.
    referenced: Cell<bool>,
}

impl<A: CachedAnswer> ShardedTable<A> {
    pub(super) fn new(capacity: u64) -> Self {
        let wanted = (capacity / MIN_SHARD_BYTES).clamp(1, MAX_SHARDS);
        // The largest power of two that is not above it.
        let shards = 1 << wanted.ilog2();
        let each = usize::try_from(capacity / shards).unwrap_or(usize::MAX);
        Self {
            hasher: RandomState::default(),
            shards: (0..shards).map(|_| Mutex::new(Shard::new(each))).collect(),
        }
    }

    /// Returns the hash that `get` and `insert` need. Entries are equal only if their keys are.
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Returns the answer for `key` that was decided on `revision`.
    pub(super) fn get(&self, revision: &Revision, hash: u64, key: &[u8]) -> Option<A> {
        let shard = &mut *self.shard(hash)?;
        if shard.revision.as_ref() == Some(revision)
            && let Some(slot) = shard.table.find(hash, |slot| slot.matches(hash, key))
        {
            slot.referenced.set(true);
            shard.hits += 1;
            return Some(slot.entry.answer());
        }
        shard.misses += 1;
        None
    }

    /// Returns the answers for `keys`, each given with its hash, that were decided on `revision`.
    ///
    /// Counts neither hits nor misses. If two keys have one hash, one of them may not be found.
    ///
    /// Most of a hit's time is waiting for memory: the slot, then the entry that it points to. So
    /// each pass below loads one of them for all keys of a shard, and the processor has these
    /// loads in flight together.
    pub(super) fn get_all(&self, revision: &Revision, keys: &[(u64, &[u8])]) -> Vec<Option<A>> {
        let mut answers: Vec<Option<A>> = keys.iter().map(|_| None).collect();
        let mut by_shard: Vec<(usize, usize)> = (keys.iter().enumerate())
            .map(|(index, (hash, _))| (self.shard_index(*hash), index))
            .collect();
        by_shard.sort_unstable();
        for group in by_shard.chunk_by(|(one, _), (next, _)| one == next) {
            let shard = group.first().and_then(|(index, _)| self.shards.get(*index));
            let Some(shard) = shard.map(lock) else {
                continue;
            };
            if shard.revision.as_ref() != Some(revision) {
                continue;
            }
            let slots: SmallVec<[_; BATCH_KEYS_PER_SHARD]> = (group.iter())
                .filter_map(|(_, index)| {
                    let (hash, key) = keys.get(*index)?;
                    let slot = shard.table.find(*hash, |slot| slot.hash == *hash)?;
                    Some((*index, *key, slot))
                })
                .collect();
            let entries: SmallVec<[_; BATCH_KEYS_PER_SHARD]> = (slots.iter())
                .map(|(index, key, slot)| (*index, *key, slot, slot.entry.key()))
                .collect();
            for (index, key, slot, stored_key) in entries {
                if stored_key == key
                    && let Some(answer) = answers.get_mut(index)
                {
                    slot.referenced.set(true);
                    *answer = Some(slot.entry.answer());
                }
            }
        }
        answers
    }

    /// Inserts `answer` for `key`. Returns `false` if there was no room: if `when_full` is
    /// `Reject` and the shard is full, or if the entry is larger than a shard.
    pub(super) fn insert(
        &self,
        revision: &Revision,
        hash: u64,
        key: &[u8],
        answer: &A,
        when_full: WhenFull,
    ) -> bool {
        let entry = A::Entry::new(key, answer);
        // Dropped entries are freed after the lock is released.
        let mut outdated = None;
        let mut evicted = Vec::new();
        let Some(mut shard) = self.shard(hash) else {
            return false;
        };
        if shard.revision.as_ref() != Some(revision) {
            outdated = Some(shard.clear());
            shard.revision = Some(revision.clone());
        }
        // Another thread may have decided the same query; its answer is the same.
        let is_present = (shard.table)
            .find(hash, |slot| slot.matches(hash, key))
            .is_some();
        let inserted = is_present || shard.insert(hash, entry, when_full, &mut evicted);
        drop(shard);
        drop((outdated, evicted));
        inserted
    }

    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let outdated = lock(shard).clear();
            drop(outdated);
        }
    }

    /// Returns the counts since startup, without the capacity.
    pub(super) fn metrics(&self) -> CacheMetrics {
        let mut sum = CacheMetrics::default();
        for shard in &self.shards {
            let shard = lock(shard);
            sum.hits += shard.hits;
            sum.misses += shard.misses;
            sum.evictions += shard.evictions;
            sum.entries += shard.table.len() as u64;
            sum.bytes += shard.bytes as u64;
        }
        sum
    }

    /// Locks the shard for `hash`. Never `None`.
    fn shard(&self, hash: u64) -> Option<MutexGuard<'_, Shard<A>>> {
        self.shards.get(self.shard_index(hash)).map(lock)
    }

    /// Returns the shard's index. The table inside the shard uses other bits of the hash.
    fn shard_index(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.shards.len() - 1)
    }
}

fn lock<A: CachedAnswer>(shard: &Mutex<Shard<A>>) -> MutexGuard<'_, Shard<A>> {
    // Under the lock only an allocation can fail half-way, which aborts the process: a poisoned
    // shard is still consistent.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the memory of `entry` in the table, in bytes.
fn weight<A: CachedAnswer>(entry: &A::Entry) -> usize {
    ENTRY_OVERHEAD_BYTES + entry.weight()
}

impl<A: CachedAnswer> Slot<A> {
    fn matches(&self, hash: u64, key: &[u8]) -> bool {
        self.hash == hash && self.entry.key() == key
    }
}

impl<A: CachedAnswer> Shard<A> {
    fn new(capacity: usize) -> Self {
        Self {
            revision: None,
            table: HashTable::new(),
            hand: 0,
            bytes: 0,
            capacity,
            hits: 0,
            misses: 0,
            evictions: 0,
        }
    }

    /// Inserts an entry that is not in the table, and moves what it evicts to `evicted`.
    fn insert(
        &mut self,
        hash: u64,
        entry: A::Entry,
        when_full: WhenFull,
        evicted: &mut Vec<A::Entry>,
    ) -> bool {
        let weight = weight::<A>(&entry);
        if weight > self.capacity {
            return false;
        }
        // INVARIANT: ends, as an empty shard has room for the entry.
        while self.bytes + weight > self.capacity {
            if when_full == WhenFull::Reject {
                return false;
            }
            evicted.extend(self.evict());
        }
        let slot = Slot {
            hash,
            entry,
            referenced: Cell::new(false),
        };
        self.table.insert_unique(hash, slot, |slot| slot.hash);
        self.bytes += weight;
        true
    }

    /// Removes the first entry from the hand on that was not hit since the hand last passed.
    fn evict(&mut self) -> Option<A::Entry> {
        if self.table.is_empty() {
            return None;
        }
        // INVARIANT: ends in the second round at the latest, as the first one clears all flags.
        loop {
            let bucket = self.hand;
            self.hand = (bucket + 1) % self.table.num_buckets();
            let Ok(slot) = self.table.get_bucket_entry(bucket) else {
                continue;
            };
            if slot.get().referenced.take() {
                continue;
            }
            let (Slot { entry, .. }, _) = slot.remove();
            self.bytes -= weight::<A>(&entry);
            self.evictions += 1;
            return Some(entry);
        }
    }

    /// Empties the shard. Returns the old content, to be freed after the lock is released.
    fn clear(&mut self) -> Self {
        let mut empty = Self::new(self.capacity);
        (empty.hits, empty.misses, empty.evictions) = (self.hits, self.misses, self.evictions);
        std::mem::replace(self, empty)
    }
}

#[cfg(test)]
mod tests;
