//! The tier in front of moka: a table in shards, each under a lock of its own, evicting by second
//! chance.
//!
//! A hit takes the lock, finds the key and notes that it was asked, where moka also writes down
//! the read for its queues and frequencies. Over 100,000 keys that is the most of what a hit costs.

use std::cell::Cell;
use std::hash::BuildHasher as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use smallvec::SmallVec;

use super::{Entry as _, Rendered};
use crate::pdp::id::Revision;

/// What the allocator and the table need for an entry besides key and answer: its slot, with room
/// to grow, and what the allocator rounds up. Rounded up.
const ENTRY_BYTES: usize = 128;

/// As many shards as there are of these in the capacity, up to the most: fewer threads than that
/// meet at one, and an entry may take up a shard.
const SHARD_BYTES: u64 = 2 << 20;
const MOST_SHARDS: u64 = 16;
/// As many keys of one lookup commonly fall to one shard, at most.
const KEYS_OF_A_SHARD: usize = 16;

/// Answers by revision and key.
#[derive(Debug)]
pub(super) struct Front<A: Rendered> {
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
type Fallen<A> = (Revision, <A as Rendered>::Entry);

#[derive(Debug)]
struct Shard<A: Rendered> {
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
struct Slot<A: Rendered> {
    hash: u64,
    entry: A::Entry,
    /// Whether it was asked since the hand last came by.
    asked: Cell<bool>,
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
            && let Some(slot) = shard.table.find(hash, |slot| slot.is_of(hash, key))
        {
            slot.asked.set(true);
            shard.hits += 1;
            return Some(slot.entry.answer());
        }
        shard.misses += 1;
        None
    }

    /// The answers under `keys`, each of which stands behind its hash, if they were decided on
    /// `revision`. Counts nothing, and takes one of two keys of one hash for absent.
    ///
    /// Nearly all of a hit is waiting for memory that is far away: the place in the table, then
    /// what it points to. Here each round asks for one such piece for every key of a shard, and a
    /// processor that does not wait for one before it asks for the next has them all under way.
    pub(super) fn get_all(&self, revision: &Revision, keys: &[(u64, &[u8])]) -> Vec<Option<A>> {
        let mut answers: Vec<Option<A>> = keys.iter().map(|_| None).collect();
        let mut by_shard: Vec<(usize, usize)> = (keys.iter().enumerate())
            .map(|(place, (hash, _))| (self.shard_of(*hash), place))
            .collect();
        by_shard.sort_unstable();
        for of_one in by_shard.chunk_by(|(one, _), (next, _)| one == next) {
            let Some((at, _)) = of_one.first() else {
                continue;
            };
            let Some(shard) = self.shards.get(*at).map(lock) else {
                continue;
            };
            if shard.revision.as_ref() != Some(revision) {
                continue;
            }
            let wanted = of_one.iter().filter_map(|(_, place)| keys.get(*place));
            let found: SmallVec<[_; KEYS_OF_A_SHARD]> = wanted
                .clone()
                .map(|(hash, _)| shard.table.find(*hash, |slot| slot.hash == *hash))
                .collect();
            let held: SmallVec<[_; KEYS_OF_A_SHARD]> = (found.iter())
                .map(|slot| slot.map(|slot| slot.entry.key()))
                .collect();
            for (((_, place), (_, key)), (slot, held)) in
                of_one.iter().zip(wanted).zip(found.iter().zip(&held))
            {
                if let Some(slot) = slot
                    && *held == Some(*key)
                    && let Some(answer) = answers.get_mut(*place)
                {
                    slot.asked.set(true);
                    *answer = Some(slot.entry.answer());
                }
            }
        }
        answers
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
        let entry = A::Entry::of(key, answer);
        // Freed after the lock is given back, like what is returned.
        let mut _outdated = None;
        let Some(mut shard) = self.shard(hash) else {
            return fallen;
        };
        if shard.revision.as_ref() != Some(revision) {
            _outdated = Some(shard.clear());
            shard.revision = Some(revision.clone());
        }
        // Two threads may have decided the same; their answers are the same, too.
        if (shard.table.find(hash, |slot| slot.is_of(hash, key))).is_some() {
            return fallen;
        }
        let weight = weight::<A>(&entry);
        if weight > shard.capacity {
            fallen.push((revision.clone(), entry));
            return fallen;
        }
        while shard.bytes + weight > shard.capacity {
            match shard.evict() {
                Some(entry) => fallen.push((revision.clone(), entry)),
                None => break,
            }
        }
        let slot = Slot {
            hash,
            entry,
            // The hand may be just before it: a newcomer has its chance, too.
            asked: Cell::new(true),
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

    /// `None` never.
    fn shard(&self, hash: u64) -> Option<MutexGuard<'_, Shard<A>>> {
        self.shards.get(self.shard_of(hash)).map(lock)
    }

    /// There is a power of two of shards. The table uses the hash's other bits.
    fn shard_of(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.shards.len() - 1)
    }
}

fn lock<A: Rendered>(shard: &Mutex<Shard<A>>) -> MutexGuard<'_, Shard<A>> {
    // Nothing that is done under the lock can fail half way but for want of memory, which ends
    // the process.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The memory that `entry` takes up here, in bytes.
fn weight<A: Rendered>(entry: &A::Entry) -> usize {
    ENTRY_BYTES + entry.weight()
}

impl<A: Rendered> Slot<A> {
    fn is_of(&self, hash: u64, key: &[u8]) -> bool {
        self.hash == hash && self.entry.key() == key
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
    fn evict(&mut self) -> Option<A::Entry> {
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
            let Ok(slot) = self.table.get_bucket_entry(at) else {
                continue;
            };
            if slot.get().asked.take() {
                continue;
            }
            let (Slot { entry, .. }, _) = slot.remove();
            self.bytes -= weight::<A>(&entry);
            return Some(entry);
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
        type Entry = (Box<[u8]>, Self);

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
            .map(|(_, entry)| entry.answer().0)
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
    fn many_at_once_are_found_as_one_by_one() {
        let front: Front<Number> = Front::new(8 << 20);
        for n in (0..300).step_by(3) {
            insert(&front, n);
        }
        let keys: Vec<_> = (0..300).chain([3, 3]).map(|n| (n, key(n))).collect();
        let hashed: Vec<_> = (keys.iter())
            .map(|(_, key)| (front.hash(key), &key[..]))
            .collect();
        let found = front.get_all(&revision(1), &hashed);
        assert_eq!(found.len(), keys.len());
        for ((n, _), found) in keys.iter().zip(found) {
            let wanted = n.is_multiple_of(3).then_some(Number(*n));
            assert_eq!(found, wanted);
        }
        let of_another = front.get_all(&revision(2), &hashed);
        assert!(of_another.iter().all(Option::is_none));
        assert_eq!((front.figures().hits, front.figures().misses), (0, 0));
    }

    #[test]
    fn what_was_found_among_many_gets_a_second_chance_too() {
        let front = front(100);
        let fallen: Vec<usize> = (0..=100).flat_map(|n| insert(&front, n)).collect();
        assert_eq!(fallen.len(), 1);
        let asked = [7, 8, 9].map(key);
        let held: Vec<_> = (asked.iter())
            .filter(|key| {
                front.get_all(&revision(1), &[(front.hash(&key[..]), &key[..])])[0].is_some()
            })
            .collect();
        let fallen = insert(&front, 200);
        assert!(
            held.iter()
                .all(|key| !fallen.iter().any(|n| self::key(*n) == **key))
        );
    }

    #[test]
    fn keys_of_one_hash_are_told_apart() {
        let front = front(3);
        let (one, other) = (key(1), key(2));
        front.insert(&revision(1), 7, &one, &Number(1));
        assert_eq!(front.get(&revision(1), 7, &other), None);
        front.insert(&revision(1), 7, &other, &Number(2));
        // Among many, one may stand in the other's way, but is not taken for it.
        let both = [(7, &one[..]), (7, &other[..])];
        for (found, wanted) in front.get_all(&revision(1), &both).into_iter().zip(1..) {
            assert!(found.is_none_or(|found| found == Number(wanted)));
        }
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
