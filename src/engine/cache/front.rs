//! The tier in front of moka: a table in shards, each under a lock of its own, evicting by second
//! chance.
//!
//! A hit takes the lock, finds the key and notes that it was asked, where moka also writes down
//! the read for its queues and frequencies. Over 100,000 keys that is the most of what a hit costs.

use std::hash::BuildHasher as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use hashbrown::HashTable;

use super::Rendered;
use crate::pdp::id::Revision;

/// What the allocator and the table need for an entry besides key and answer: its slot, with room
/// to grow, and the heads of its allocations. Rounded up.
const ENTRY_BYTES: usize = 160;

/// As many shards as there are of these in the capacity, up to the most: fewer threads than that
/// meet at one, and an entry may take up a shard.
const SHARD_BYTES: u64 = 2 << 20;
const MOST_SHARDS: u64 = 16;

/// Answers by revision and key.
#[derive(Debug)]
pub(super) struct Front<A> {
    hasher: RandomState,
    /// A power of two of them.
    shards: Box<[Mutex<Shard<A>>]>,
}

/// What the front did since the start of the process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FrontFigures {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// An entry that had to make room, under the revision that it was decided on.
type Fallen<A> = (Revision, Box<[u8]>, A);

#[derive(Debug)]
struct Shard<A> {
    /// Of all entries here; they go when an answer of another comes.
    revision: Option<Revision>,
    table: HashTable<Slot<A>>,
    /// The bucket of the table whose entry is next to lose its place.
    hand: usize,
    bytes: usize,
    capacity: usize,
    hits: u64,
    misses: u64,
}

#[derive(Debug)]
struct Slot<A> {
    hash: u64,
    key: Box<[u8]>,
    answer: A,
    /// Whether it was asked since the hand last came by.
    asked: bool,
}

impl<A: Rendered> Front<A> {
    /// Holds at most `capacity` bytes.
    pub(super) fn new(capacity: u64) -> Self {
        let shards = (capacity / SHARD_BYTES).clamp(1, MOST_SHARDS);
        let shards = if shards.is_power_of_two() {
            shards
        } else {
            shards.next_power_of_two() / 2
        };
        let each = usize::try_from(capacity / shards).unwrap_or(usize::MAX);
        Self {
            hasher: RandomState::default(),
            shards: (0..shards).map(|_| Mutex::new(Shard::new(each))).collect(),
        }
    }

    /// What `get` and `insert` find `key` by; equality is on the key.
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The answer under `key`, if it was decided on `revision`.
    pub(super) fn get(&self, revision: &Revision, hash: u64, key: &[u8]) -> Option<A> {
        let shard = &mut *self.shard(hash)?;
        if shard.revision.as_ref() == Some(revision)
            && let Some(slot) = shard.table.find_mut(hash, |slot| slot.is_of(hash, key))
        {
            slot.asked = true;
            shard.hits += 1;
            return Some(slot.answer.clone());
        }
        shard.misses += 1;
        None
    }

    /// Puts `answer` under `key`, and returns what had to make room: entries that were not asked
    /// for a while, or itself when it is larger than a shard.
    pub(super) fn insert(
        &self,
        revision: &Revision,
        hash: u64,
        key: &[u8],
        answer: &A,
    ) -> Vec<Fallen<A>> {
        let mut fallen = Vec::new();
        // Freed after the lock is given back, like what is returned.
        let mut _outdated = None;
        let Some(mut shard) = self.shard(hash) else {
            return fallen;
        };
        if shard.revision.as_ref() != Some(revision) {
            _outdated = Some(shard.clear());
            shard.revision = Some(revision.clone());
        }
        let weight = weight(key, answer);
        if weight > shard.capacity {
            fallen.push((revision.clone(), key.into(), answer.clone()));
            return fallen;
        }
        // Two threads may have decided the same; their answers are the same, too.
        if (shard.table.find(hash, |slot| slot.is_of(hash, key))).is_some() {
            return fallen;
        }
        while shard.bytes + weight > shard.capacity {
            match shard.evict() {
                Some((key, answer)) => fallen.push((revision.clone(), key, answer)),
                None => break,
            }
        }
        let slot = Slot {
            hash,
            key: key.into(),
            answer: answer.clone(),
            // The hand may be just before it: a newcomer has its chance, too.
            asked: true,
        };
        shard.table.insert_unique(hash, slot, |slot| slot.hash);
        shard.bytes += weight;
        fallen
    }

    /// Drops everything.
    pub(super) fn forget(&self) {
        for shard in &self.shards {
            let outdated = lock(shard).clear();
            drop(outdated);
        }
    }

    pub(super) fn figures(&self) -> FrontFigures {
        let mut sum = FrontFigures::default();
        for shard in &self.shards {
            let shard = lock(shard);
            sum.hits += shard.hits;
            sum.misses += shard.misses;
            sum.entries += shard.table.len() as u64;
            sum.bytes += shard.bytes as u64;
        }
        sum
    }

    /// `None` never: there is a power of two of shards. The table uses the hash's other bits.
    fn shard(&self, hash: u64) -> Option<MutexGuard<'_, Shard<A>>> {
        let at = (hash >> 32) as usize & (self.shards.len() - 1);
        self.shards.get(at).map(lock)
    }
}

fn lock<A>(shard: &Mutex<Shard<A>>) -> MutexGuard<'_, Shard<A>> {
    // Nothing that is done under the lock can fail half way but for want of memory, which ends
    // the process.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The memory that an entry holds, in bytes.
fn weight<A: Rendered>(key: &[u8], answer: &A) -> usize {
    ENTRY_BYTES + key.len() + answer.weight()
}

impl<A> Slot<A> {
    fn is_of(&self, hash: u64, key: &[u8]) -> bool {
        self.hash == hash && *self.key == *key
    }
}

impl<A: Rendered> Shard<A> {
    fn new(capacity: usize) -> Self {
        Self {
            revision: None,
            table: HashTable::new(),
            hand: 0,
            bytes: 0,
            capacity,
            hits: 0,
            misses: 0,
        }
    }

    /// Takes out the first entry from the hand on that was not asked since the hand came by.
    fn evict(&mut self) -> Option<(Box<[u8]>, A)> {
        if self.table.is_empty() {
            return None;
        }
        // INVARIANT: ends in the second round at the latest, for the first one leaves none asked.
        loop {
            let at = self.hand;
            self.hand = if at + 1 < self.table.num_buckets() {
                at + 1
            } else {
                0
            };
            let Ok(mut slot) = self.table.get_bucket_entry(at) else {
                continue;
            };
            if std::mem::take(&mut slot.get_mut().asked) {
                continue;
            }
            let (Slot { key, answer, .. }, _) = slot.remove();
            self.bytes -= weight(&key, &answer);
            return Some((key, answer));
        }
    }

    /// Empties it; dropping what it held is for when its lock is free again.
    fn clear(&mut self) -> Self {
        let mut empty = Self::new(self.capacity);
        (empty.hits, empty.misses) = (self.hits, self.misses);
        std::mem::replace(self, empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdp::answer::Decision;

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Number(usize);

    impl crate::decision_log::Answers for Number {
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

    impl Rendered for Number {
        fn render(_: crate::pdp::answer::Answer) -> Self {
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

    fn front(entries: usize) -> Front<Number> {
        Front::new(((ENTRY_BYTES + KEY_BYTES) * entries) as u64)
    }

    fn insert(front: &Front<Number>, n: usize) -> Vec<usize> {
        let key = key(n);
        front
            .insert(&revision(1), front.hash(&key), &key, &Number(n))
            .into_iter()
            .map(|(_, _, Number(n))| n)
            .collect()
    }

    fn get(front: &Front<Number>, n: usize) -> Option<usize> {
        let key = key(n);
        front
            .get(&revision(1), front.hash(&key), &key)
            .map(|Number(n)| n)
    }

    #[test]
    fn what_was_asked_gets_a_second_chance() {
        const ROUNDS: usize = 20;
        let (mut asked_lost, mut others_lost) = (0, 0);
        for _ in 0..ROUNDS {
            let front = front(100);
            // The last one finds no room, and what falls for it is the first that the hand meets.
            let fallen: Vec<usize> = (0..=100).flat_map(|n| insert(&front, n)).collect();
            assert_eq!(fallen.len(), 1);
            let asked: Vec<usize> = (0..20).filter(|n| get(&front, *n).is_some()).collect();
            let fallen: Vec<usize> = (200..250).flat_map(|n| insert(&front, n)).collect();
            assert_eq!(fallen.len(), 50);
            asked_lost += fallen.iter().filter(|n| asked.contains(n)).count();
            others_lost += fallen.iter().filter(|n| (20..=100).contains(*n)).count();
        }
        // Not none of them: the table may move its entries about, and the hand meet one twice.
        // A fifth was asked; were that nothing, a fifth of what fell would be of them.
        assert!(
            asked_lost * 12 < others_lost,
            "{asked_lost} of those asked, {others_lost} of the others"
        );
    }

    #[test]
    fn keys_of_one_hash_are_told_apart() {
        let front = front(3);
        let (one, other) = (key(1), key(2));
        front.insert(&revision(1), 7, &one, &Number(1));
        assert_eq!(front.get(&revision(1), 7, &other), None);
        front.insert(&revision(1), 7, &other, &Number(2));
        assert_eq!(front.get(&revision(1), 7, &one), Some(Number(1)));
        assert_eq!(front.get(&revision(1), 7, &other), Some(Number(2)));
    }

    #[test]
    fn no_answer_is_met_under_another_revision() {
        let front = front(3);
        insert(&front, 1);
        let key = key(1);
        let hash = front.hash(&key);
        assert_eq!(front.get(&revision(2), hash, &key), None);
        front.insert(&revision(2), hash, &key, &Number(9));
        assert_eq!(get(&front, 1), None);
        assert_eq!(front.get(&revision(2), hash, &key), Some(Number(9)));
    }

    #[test]
    fn it_holds_what_it_may_and_finds_all_that_it_holds() {
        let front: Front<Number> = Front::new(8 << 20);
        assert_eq!(front.shards.len(), 4);
        let mut held = std::collections::BTreeSet::new();
        for n in 0..100_000 {
            held.insert(n);
            for fallen in insert(&front, n) {
                assert!(held.remove(&fallen));
            }
            if n % 7 == 0 {
                assert_eq!(get(&front, n), Some(n));
            }
        }
        let figures = front.figures();
        assert!(
            figures.bytes <= 8 << 20 && figures.bytes > 7 << 20,
            "{figures:?}"
        );
        assert_eq!(figures.entries, held.len() as u64);
        for n in 0..100_000 {
            assert_eq!(get(&front, n), held.contains(&n).then_some(n));
        }
        front.forget();
        assert_eq!((front.figures().entries, front.figures().bytes), (0, 0));
    }

    #[test]
    fn what_is_larger_than_a_shard_is_passed_on() {
        let front = front(1);
        insert(&front, 1);
        let key = [0; 100];
        let fallen = front.insert(&revision(1), front.hash(&key), &key, &Number(2));
        assert_eq!(fallen.len(), 1);
        assert_eq!(get(&front, 1), Some(1));
    }
}
