//! Caches answers, bounded in bytes.
//!
//! Only answers are cached: a failed or cancelled evaluation leaves nothing behind. An answer is
//! cached under its revision, so a reload needs no flush for correctness. Lookups compare the whole
//! key, never a digest.
//!
//! There are two tiers. While there is room, answers go to the `hot` table, where a hit costs a
//! fraction of a hit in moka. Once it is full, a new answer goes to `candidates` (moka), which
//! keeps it if it is requested more often than what it would replace. The next request for it
//! moves it to the hot table, which then evicts an entry without a recent hit. So an answer
//! that is requested only once never replaces one that is requested often.

mod sharded;

use std::cell::RefCell;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use foldhash::quality::RandomState;
use moka::notification::RemovalCause;

use super::{CachedAnswer, Source, key};
pub use crate::config::CacheSettings;
use crate::counters::Counters;
use crate::pdp::query_ref::QueryRef;
use crate::pdp::switches;
use crate::pdp::{NoAnswer, Snapshot};
use sharded::{ShardedTable, WhenFull};

/// Counts of the cache since startup, and its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CacheMetrics {
    /// Queries answered from the cache.
    pub hits: u64,
    /// Queries that had to be decided.
    pub misses: u64,
    /// Answers dropped for lack of room.
    pub evictions: u64,
    /// Answers in the cache now.
    pub entries: u64,
    /// Memory of these answers, in bytes.
    pub bytes: u64,
    /// Most memory for answers, in bytes.
    pub capacity_bytes: u64,
}

/// Revision and key of a query, concatenated. All revisions have the same length.
type CandidateKey = Box<[u8]>;

/// The part of the capacity that candidates get. Enough that an answer is still there when it is
/// requested again; more would take room from the hot table, which needs less for each answer.
const CANDIDATES_SHARE: u64 = 8;

/// Bytes of an entry in moka besides key and answer: its node, its place in the queues, its share
/// of the table and of the frequency sketch. Measured, rounded up.
const CANDIDATE_OVERHEAD_BYTES: usize = 256;

/// Most memory that a thread keeps for keys between two lookups, in bytes.
const MAX_IDLE_KEY_BUFFER_BYTES: usize = 64 << 10;

thread_local! {
    /// The buffer that lookups write their keys to: only a miss copies its key.
    static KEY_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls `use_buffer` with this thread's key buffer, emptied.
fn with_key_buffer<T>(use_buffer: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    KEY_BUFFER.with_borrow_mut(|buffer| {
        // Otherwise one huge request would leave its key's memory on every thread for ever.
        buffer.clear();
        buffer.shrink_to(MAX_IDLE_KEY_BUFFER_BYTES);
        use_buffer(buffer)
    })
}

/// Appends the key of `query` on `snapshot` to `out`.
fn encode_key(out: &mut Vec<u8>, snapshot: &Snapshot, query: &QueryRef<'_>) {
    let reads = snapshot.context_reads(query.action.type_name, query.action.id);
    key::encode(out, reads, query);
}

/// A cache of answers by revision and query.
#[derive(Debug)]
pub struct Cache<A: CachedAnswer> {
    hot: ShardedTable<A>,
    /// Answers that found the hot table full, until they are requested again.
    candidates: moka::sync::Cache<CandidateKey, A, RandomState>,
    /// Set by the first candidate after a `clear`; until then lookups skip moka.
    has_candidates: AtomicBool,
    candidate_hits: AtomicU64,
    candidate_evictions: Arc<AtomicU64>,
    /// Hits of batch lookups.
    batch_hits: Counters<1>,
    capacity_bytes: NonZeroU64,
}

impl<A: CachedAnswer> Cache<A> {
    /// Creates a cache, or returns `None` if `settings` turn it off.
    #[must_use]
    pub fn new(settings: CacheSettings) -> Option<Self> {
        let capacity_bytes = settings.capacity_bytes?;
        let candidate_bytes = capacity_bytes.get() / CANDIDATES_SHARE;
        let candidate_evictions = Arc::new(AtomicU64::new(0));
        let evictions = Arc::clone(&candidate_evictions);
        let candidates = moka::sync::Cache::builder()
            .max_capacity(candidate_bytes)
            .weigher(|key: &CandidateKey, answer: &A| {
                let weight = CANDIDATE_OVERHEAD_BYTES + key.len() + answer.weight();
                u32::try_from(weight).unwrap_or(u32::MAX)
            })
            .eviction_listener(move |_, _, cause| match cause {
                RemovalCause::Size => {
                    evictions.fetch_add(1, Ordering::Relaxed);
                }
                RemovalCause::Explicit | RemovalCause::Replaced | RemovalCause::Expired => {}
            })
            .build_with_hasher(RandomState::default());
        Some(Self {
            hot: ShardedTable::new(capacity_bytes.get() - candidate_bytes),
            candidates,
            has_candidates: AtomicBool::new(false),
            candidate_hits: AtomicU64::new(0),
            candidate_evictions,
            batch_hits: Counters::default(),
            capacity_bytes,
        })
    }

    /// Returns the answers to `queries` on `snapshot` that are in the hot table.
    ///
    /// Counts nothing: [`count_hit`](Self::count_hit) counts an answer when it is used. A query
    /// without an answer here may still have one among the candidates.
    #[must_use]
    pub fn look_up(&self, snapshot: &Snapshot, queries: &[QueryRef<'_>]) -> Vec<Option<A>> {
        with_key_buffer(|buffer| {
            let ends: Vec<usize> = (queries.iter())
                .map(|query| {
                    encode_key(buffer, snapshot, query);
                    buffer.len()
                })
                .collect();
            let mut start = 0;
            let keys: Vec<(u64, &[u8])> = (ends.into_iter())
                .map(|end| {
                    let key = buffer.get(start..end).unwrap_or_default();
                    start = end;
                    (self.hot.hash(key), key)
                })
                .collect();
            self.hot.get_all(snapshot.revision(), &keys)
        })
    }

    /// Counts an answer that was looked up and is used.
    pub fn count_hit(&self) {
        self.batch_hits.add_one(0);
    }

    /// Returns the answer to `query` on `snapshot`, from the cache or else from `decide`. An error
    /// of `decide` is not cached.
    pub fn get_or_decide(
        &self,
        snapshot: &Snapshot,
        query: &QueryRef<'_>,
        decide: impl FnOnce() -> Result<A, NoAnswer>,
    ) -> Result<(A, Source), NoAnswer> {
        let revision = snapshot.revision();
        with_key_buffer(|buffer| {
            buffer.extend_from_slice(revision.as_str().as_bytes());
            encode_key(buffer, snapshot, query);
            let key = buffer.get(revision.as_str().len()..).unwrap_or_default();
            let hash = self.hot.hash(key);
            if switches::sharded_table()
                && let Some(answer) = self.hot.get(revision, hash, key)
            {
                return Ok((answer, Source::Cache));
            }
            let insert = |answer, when_full| {
                let hot = &self.hot;
                switches::sharded_table() && hot.insert(revision, hash, key, answer, when_full)
            };
            if let Some(answer) = self.candidate(buffer) {
                if insert(&answer, WhenFull::Evict) {
                    self.candidates.invalidate(buffer.as_slice());
                }
                return Ok((answer, Source::Cache));
            }
            let answer = decide()?;
            if !insert(&answer, WhenFull::Reject) {
                self.has_candidates.store(true, Ordering::Relaxed);
                (self.candidates).insert(buffer.as_slice().into(), answer.clone());
            }
            Ok((answer, Source::Decided))
        })
    }

    /// Returns the answer for `key` if it is a candidate.
    ///
    /// moka counts the request also if it has no answer: that decides which answers it keeps.
    fn candidate(&self, key: &[u8]) -> Option<A> {
        if !self.has_candidates.load(Ordering::Relaxed) {
            return None;
        }
        let answer = self.candidates.get(key)?;
        self.candidate_hits.fetch_add(1, Ordering::Relaxed);
        Some(answer)
    }

    /// Drops all answers.
    pub fn clear(&self) {
        self.has_candidates.store(false, Ordering::Relaxed);
        self.hot.clear();
        self.candidates.invalidate_all();
    }

    /// Returns the counts since startup.
    #[must_use]
    pub fn metrics(&self) -> CacheMetrics {
        // moka counts inserts and removals with a delay; this makes the counts exact.
        self.candidates.run_pending_tasks();
        let hot = self.hot.metrics();
        let candidate_hits = self.candidate_hits.load(Ordering::Relaxed);
        CacheMetrics {
            hits: hot.hits + candidate_hits + self.batch_hits.sum(0),
            // A hit on a candidate is a miss of the hot table.
            misses: hot.misses.saturating_sub(candidate_hits),
            evictions: hot.evictions + self.candidate_evictions.load(Ordering::Relaxed),
            entries: hot.entries + self.candidates.entry_count(),
            bytes: hot.bytes + self.candidates.weighted_size(),
            capacity_bytes: self.capacity_bytes.get(),
        }
    }
}

#[cfg(test)]
mod tests;
