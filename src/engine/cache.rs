//! Remembers answers, bounded in bytes.
//!
//! Only answers are kept: what fails or is cancelled leaves nothing behind. An answer is kept
//! under the revision it was decided on, so a reload needs no flush to be exact; and it is found
//! by the whole of its key, never by a digest.
//!
//! There are two tiers. What is asked now stands in `front`, where a hit is a fraction of what it
//! costs in moka. What falls out there for want of room goes to moka, which keeps it if it is
//! asked more often than what it would take the place of, and gives it back when it is asked
//! again. No answer stands in both.

mod front;

use std::cell::RefCell;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use foldhash::quality::RandomState;
use moka::notification::RemovalCause;

use super::key;
use super::query_ref::QueryRef;
use super::{Answered, Entry, Rendered};
pub use crate::config::CacheSettings;
use crate::figures::Counters;
use crate::pdp::NoAnswer;
use crate::pdp::Snapshot;
use crate::pdp::answer::{Answer, PolicyError};
use crate::pdp::explanation::{Clause, ExplainedPolicy, Explanation, UnsatisfiedPermit};
use front::Front;

/// What the cache did since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheFigures {
    /// Queries answered from memory.
    pub hits: u64,
    /// Queries that had to be decided.
    pub misses: u64,
    /// Answers dropped to make room.
    pub evictions: u64,
    /// Answers held now.
    pub entries: u64,
    /// What they weigh, in bytes.
    pub bytes: u64,
    /// The most that they may weigh, in bytes.
    pub capacity_bytes: u64,
}

/// Revision and key of a query, one after the other. All revisions are of one length.
type Key = Box<[u8]>;

/// Answers by revision and query.
#[derive(Debug)]
pub(super) struct Cache<A: Rendered> {
    front: Front<A>,
    /// What has fallen out of the front.
    kept: moka::sync::Cache<Key, A, RandomState>,
    /// Whether anything has since the last reload: else there is no need to look.
    has_kept: AtomicBool,
    kept_hits: AtomicU64,
    /// Of those that were looked up many at once.
    hits_of_many: Counters<1>,
    capacity_bytes: NonZeroU64,
    evictions: Arc<AtomicU64>,
}

/// The most memory that a thread keeps for writing keys between two lookups.
const LARGEST_KEPT_KEY_BYTES: usize = 64 << 10;

thread_local! {
    /// Where keys are written for lookup; only a miss copies its key.
    static KEYS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls `write` with an empty list for keys, the same for each lookup of a thread.
fn with_room_for_keys<T>(write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    KEYS.with_borrow_mut(|bytes| {
        // One huge request must not hold its key's memory on every thread for ever.
        bytes.clear();
        bytes.shrink_to(LARGEST_KEPT_KEY_BYTES);
        write(bytes)
    })
}

impl<A: Rendered> Cache<A> {
    /// A cache, unless `settings` turn it off.
    pub(super) fn new(settings: CacheSettings) -> Option<Self> {
        let capacity_bytes = settings.capacity_bytes?;
        let evictions = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&evictions);
        let of_moka = capacity_bytes.get() / 4;
        let kept = moka::sync::Cache::builder()
            .max_capacity(of_moka)
            .weigher(|key: &Key, answer: &A| {
                let weight = MOKA_ENTRY_BYTES + key.len() + answer.weight();
                u32::try_from(weight).unwrap_or(u32::MAX)
            })
            .eviction_listener(move |_, _, cause| match cause {
                RemovalCause::Size => {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                RemovalCause::Explicit | RemovalCause::Replaced | RemovalCause::Expired => {}
            })
            .build_with_hasher(RandomState::default());
        Some(Self {
            front: Front::new(capacity_bytes.get() - of_moka),
            kept,
            has_kept: AtomicBool::new(false),
            kept_hits: AtomicU64::new(0),
            hits_of_many: Counters::default(),
            capacity_bytes,
            evictions,
        })
    }

    /// The answers to `queries` on `snapshot`, as far as they are at hand.
    ///
    /// None is counted until it is used; and one that is not at hand may be remembered all the
    /// same.
    pub(super) fn look_up(&self, snapshot: &Snapshot, queries: &[QueryRef<'_>]) -> Vec<Option<A>> {
        with_room_for_keys(|bytes| {
            let ends: Vec<usize> = (queries.iter())
                .map(|query| {
                    let (action, id) = (query.action.type_name, query.action.id);
                    key::encode(bytes, snapshot.context_reads(action, id), query);
                    bytes.len()
                })
                .collect();
            let mut begin = 0;
            let keys: Vec<(u64, &[u8])> = (ends.into_iter())
                .map(|end| {
                    let key = bytes.get(begin..end).unwrap_or_default();
                    begin = end;
                    (self.front.hash(key), key)
                })
                .collect();
            self.front.get_all(snapshot.revision(), &keys)
        })
    }

    /// Counts an answer that was looked up and is used.
    pub(super) fn count_hit(&self) {
        self.hits_of_many.add_one(0);
    }

    /// The answer to `query` on `snapshot`, from memory or else from `decide`.
    pub(super) fn get_or_decide(
        &self,
        snapshot: &Snapshot,
        query: &QueryRef<'_>,
        decide: impl FnOnce() -> Result<A, NoAnswer>,
    ) -> Result<Answered<A>, NoAnswer> {
        let revision = snapshot.revision();
        let action = query.action;
        let reads = snapshot.context_reads(action.type_name, action.id);
        with_room_for_keys(|bytes| {
            bytes.extend_from_slice(revision.as_str().as_bytes());
            key::encode(bytes, reads, query);
            let key = bytes.get(revision.as_str().len()..).unwrap_or_default();
            let hash = self.front.hash(key);
            if let Some(answer) = self.front.get(revision, hash, key) {
                return Ok(Answered::remembered(answer));
            }
            let answered = match self.take_kept(bytes) {
                Some(answer) => Answered::remembered(answer),
                None => Answered::decided(decide()?),
            };
            let fallen = self.front.insert(revision, hash, key, &answered.answer);
            for (revision, entry) in fallen {
                self.has_kept.store(true, Ordering::Relaxed);
                let key = [revision.as_str().as_bytes(), entry.key()].concat();
                self.kept.insert(key.into(), entry.answer());
            }
            Ok(answered)
        })
    }

    fn take_kept(&self, key: &[u8]) -> Option<A> {
        if !self.has_kept.load(Ordering::Relaxed) {
            return None;
        }
        let answer = self.kept.remove(key)?;
        self.kept_hits.fetch_add(1, Ordering::Relaxed);
        Some(answer)
    }

    /// Drops everything that is held now.
    pub(super) fn forget(&self) {
        self.has_kept.store(false, Ordering::Relaxed);
        self.front.forget();
        self.kept.invalidate_all();
    }

    /// What it did so far.
    pub(super) fn figures(&self) -> CacheFigures {
        // What was just inserted or dropped is counted when moka gets round to it; whoever asks
        // for figures wants them true.
        self.kept.run_pending_tasks();
        let front = self.front.figures();
        let kept_hits = self.kept_hits.load(Ordering::Relaxed);
        CacheFigures {
            hits: front.hits + kept_hits + self.hits_of_many.sum(0),
            // The front counts whatever it did not have.
            misses: front.misses.saturating_sub(kept_hits),
            evictions: self.evictions.load(Ordering::Relaxed),
            entries: front.entries + self.kept.entry_count(),
            bytes: front.bytes + self.kept.weighted_size(),
            capacity_bytes: self.capacity_bytes.get(),
        }
    }
}

/// What moka and the allocator need for an entry besides key and answer: its node, its place in
/// the queues, its share of the table and of the frequency sketch. Measured, rounded up.
const MOKA_ENTRY_BYTES: usize = 256;

impl Rendered for Arc<Answer> {
    type Entry = (Box<[u8]>, Self);

    fn render(answer: Answer) -> Self {
        Self::new(answer)
    }

    fn weight(&self) -> usize {
        let Answer {
            decision: _,
            diagnostics,
            revision: _,
            explanation,
        } = &**self;
        // The ids and the revision are shared with the snapshot: the pointers count, not the text.
        let determining =
            diagnostics.determining.capacity() * size_of::<crate::pdp::id::PolicyId>();
        let errors: usize = diagnostics
            .errors
            .iter()
            .map(|error| size_of::<PolicyError>() + error.message.capacity())
            .sum();
        let explained = explanation.as_deref().map_or(0, explanation_weight);
        size_of::<Answer>() + determining + errors + explained
    }
}

fn explanation_weight(explanation: &Explanation) -> usize {
    let Explanation {
        determining,
        unsatisfied,
        unsatisfied_total: _,
    } = explanation;
    let policies: usize = determining.iter().map(policy_weight).sum();
    let permits: usize = unsatisfied
        .iter()
        .map(
            |UnsatisfiedPermit {
                 policy,
                 clause,
                 outcome: _,
             }| {
                let Clause {
                    kind: _,
                    text,
                    operand,
                    place,
                } = clause;
                size_of::<UnsatisfiedPermit>()
                    + policy_weight(policy)
                    + text.capacity()
                    + operand.capacity()
                    + place.file.capacity()
            },
        )
        .sum();
    size_of::<Explanation>() + policies + permits
}

fn policy_weight(policy: &ExplainedPolicy) -> usize {
    let ExplainedPolicy {
        policy: _,
        template: _,
        effect: _,
        annotations,
        place,
    } = policy;
    let annotations: usize = annotations
        .iter()
        .map(|(name, value)| size_of::<(String, String)>() + name.capacity() + value.capacity())
        .sum();
    size_of::<ExplainedPolicy>() + annotations + place.file.capacity()
}

#[cfg(test)]
mod tests;
