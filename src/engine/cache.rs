//! Remembers answers, bounded in bytes.
//!
//! Only answers are kept: what fails or is cancelled leaves nothing behind. An answer is kept
//! under the revision it was decided on, so a reload needs no flush to be exact.

use std::cell::RefCell;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moka::notification::RemovalCause;

use super::key;
use crate::pdp::NoAnswer;
use crate::pdp::answer::{Answer, PolicyError};
use crate::pdp::explanation::{Clause, ExplainedPolicy, Explanation, UnsatisfiedPermit};
use crate::pdp::id::Revision;
use crate::pdp::query::Query;

/// How much is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// The most memory that remembered answers take, in bytes; `None` turns the cache off.
    pub capacity_bytes: Option<NonZeroU64>,
}

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

/// Revision and query as bytes.
type Key = Box<[u8]>;

/// Answers by revision and query.
#[derive(Debug)]
pub(super) struct Cache {
    answers: moka::sync::Cache<Key, Arc<Answer>>,
    capacity_bytes: NonZeroU64,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: Arc<AtomicU64>,
}

/// The most memory that a thread keeps for writing keys between two lookups.
const LARGEST_KEPT_KEY_BYTES: usize = 64 << 10;

thread_local! {
    /// Where keys are written for lookup; only a miss copies its key.
    static KEY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Cache {
    /// A cache, unless `settings` turn it off.
    pub(super) fn new(settings: CacheSettings) -> Option<Self> {
        let capacity_bytes = settings.capacity_bytes?;
        let evictions = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&evictions);
        let answers = moka::sync::Cache::builder()
            .max_capacity(capacity_bytes.get())
            .weigher(|key: &Key, answer: &Arc<Answer>| {
                u32::try_from(weight(key, answer)).unwrap_or(u32::MAX)
            })
            .eviction_listener(move |_, _, cause| match cause {
                RemovalCause::Size => {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                RemovalCause::Explicit | RemovalCause::Replaced | RemovalCause::Expired => {}
            })
            .build();
        Some(Self {
            answers,
            capacity_bytes,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            evictions,
        })
    }

    /// The answer to `query` under `revision`, from memory or else from `decide`.
    pub(super) fn get_or_decide(
        &self,
        revision: &Revision,
        query: &Query,
        decide: impl FnOnce() -> Result<Answer, NoAnswer>,
    ) -> Result<Arc<Answer>, NoAnswer> {
        KEY.with_borrow_mut(|key| {
            // One huge request must not hold its key's memory on every thread for ever.
            key.clear();
            key.shrink_to(LARGEST_KEPT_KEY_BYTES);
            key::encode(key, revision, query);
            if let Some(answer) = self.answers.get(key.as_slice()) {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(answer);
            }
            self.misses.fetch_add(1, Ordering::Relaxed);
            let answer = Arc::new(decide()?);
            self.answers
                .insert(key.as_slice().into(), Arc::clone(&answer));
            Ok(answer)
        })
    }

    /// Drops everything that is held now.
    pub(super) fn forget(&self) {
        self.answers.invalidate_all();
    }

    /// What it did so far.
    pub(super) fn figures(&self) -> CacheFigures {
        // What was just inserted or dropped is counted when moka gets round to it; whoever asks
        // for figures wants them true.
        self.answers.run_pending_tasks();
        CacheFigures {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
            entries: self.answers.entry_count(),
            bytes: self.answers.weighted_size(),
            capacity_bytes: self.capacity_bytes.get(),
        }
    }
}

/// What moka and the allocator need for an entry besides key and answer: its node, its place in
/// the queues, its share of the table and of the frequency sketch. Measured, rounded up.
const ENTRY_BYTES: usize = 256;

/// The memory that an entry holds, in bytes.
fn weight(key: &[u8], answer: &Answer) -> usize {
    let Answer {
        decision: _,
        diagnostics,
        revision: _,
        explanation,
    } = answer;
    // The ids and the revision are shared with the snapshot: the pointers count, not the text.
    let determining = diagnostics.determining.capacity() * size_of::<crate::pdp::id::PolicyId>();
    let errors: usize = diagnostics
        .errors
        .iter()
        .map(|error| size_of::<PolicyError>() + error.message.capacity())
        .sum();
    let explained = explanation.as_deref().map_or(0, explanation_weight);
    ENTRY_BYTES + key.len() + size_of::<Answer>() + determining + errors + explained
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
mod tests {
    use super::*;
    use crate::pdp::answer::{Decision, Diagnostics};
    use crate::pdp::query::{InvalidQuery, Problem, Record, Uid};

    fn cache(capacity_bytes: u64) -> Cache {
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
            explain: false,
        }
    }

    fn answer(decision: Decision) -> Answer {
        Answer {
            decision,
            diagnostics: Diagnostics::default(),
            revision: revision(1),
            explanation: None,
        }
    }

    fn revision(n: u8) -> Revision {
        Revision::from_digest(&[n; 32])
    }

    #[test]
    fn an_answer_is_found_again_under_its_revision_and_no_other() {
        let cache = cache(1 << 20);
        let asked = |revision: Revision, decision| {
            cache
                .get_or_decide(&revision, &query("alice"), || Ok(answer(decision)))
                .unwrap()
                .decision
        };
        assert_eq!(asked(revision(1), Decision::Allow), Decision::Allow);
        assert_eq!(asked(revision(1), Decision::Deny), Decision::Allow);
        assert_eq!(asked(revision(2), Decision::Deny), Decision::Deny);
        let figures = cache.figures();
        assert_eq!((figures.hits, figures.misses, figures.entries), (1, 2, 2));
    }

    #[test]
    fn a_query_that_cannot_be_decided_leaves_nothing_behind() {
        let cache = cache(1 << 20);
        let invalid = NoAnswer::from(InvalidQuery::field("context", Problem::Missing));
        let refused = cache.get_or_decide(&revision(1), &query("alice"), || Err(invalid.clone()));
        assert_eq!(refused.unwrap_err(), invalid);
        assert_eq!(cache.figures().entries, 0);
    }

    #[test]
    fn memory_is_bounded_by_evicting() {
        let cache = cache(100_000);
        for n in 0..10_000 {
            cache
                .get_or_decide(&revision(1), &query(&n.to_string()), || {
                    Ok(answer(Decision::Deny))
                })
                .unwrap();
        }
        let figures = cache.figures();
        assert!(figures.bytes <= figures.capacity_bytes, "{figures:?}");
        assert!(figures.evictions > 0 && figures.entries > 0, "{figures:?}");
    }

    #[test]
    fn without_capacity_there_is_no_cache() {
        assert!(
            Cache::new(CacheSettings {
                capacity_bytes: None
            })
            .is_none()
        );
    }
}
