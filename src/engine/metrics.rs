//! Counters and histograms of decisions: how many, how long they took, how much was evaluated.

use std::fmt;
use std::time::Duration;

use super::Source;
use super::cache::CacheMetrics;
use super::forbid_errors::ForbidErrors;
use crate::counters::page::{Export, NANOSECONDS, Page, metrics};
use crate::counters::{Counters, Histogram};
use crate::pdp::answer::{Answer, Decision};

metrics! {
    DECISIONS = Counter "cedar_pdp_decisions_total" ["decision", "source"]
        "Answers to requests and items of batches and streams, by source (cache, decided)";
    DECISION_SECONDS = Histogram "cedar_pdp_decision_duration_seconds" ["source"]
        "Time to answer a parsed request, by source (cache, decided)";
    CANDIDATES = Histogram "cedar_pdp_decision_candidates" []
        "Policies whose scope matched, per request that was not answered from the cache";
    POLICY_ERRORS = Counter "cedar_pdp_policy_errors_total" []
        "Policy evaluations that failed; cached answers are not counted again";
    FORBID_ERRORS = Counter "cedar_pdp_forbid_errors_total" ["policy"]
        "Failed evaluations of forbids, by policy; after the first 100, as `others`";
    CACHE_HITS = Counter "cedar_pdp_cache_hits_total" []
        "Requests answered from the cache";
    CACHE_MISSES = Counter "cedar_pdp_cache_misses_total" []
        "Requests whose answer was not in the cache";
    CACHE_EVICTIONS = Counter "cedar_pdp_cache_evictions_total" []
        "Answers evicted because the cache was full";
    CACHE_ENTRIES = Gauge "cedar_pdp_cache_entries" []
        "Answers in the cache";
    CACHE_BYTES = Gauge "cedar_pdp_cache_bytes" []
        "Memory of the answers in the cache, in bytes";
    CACHE_CAPACITY = Gauge "cedar_pdp_cache_capacity_bytes" []
        "Most memory for cached answers, in bytes; 0 if the cache is off";
}

/// Bucket bounds of durations in nanoseconds, from 10 us to 2.5 s.
pub const DURATION_BOUNDS: &[u64] = &[
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
];

/// Bucket bounds of candidate policies per evaluated query.
const CANDIDATE_BOUNDS: &[u64] = &[
    0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000,
];

/// Counts and durations of decisions since startup.
#[derive(Debug)]
pub struct DecisionMetrics {
    decisions: Counters<4>,
    cached_durations: Histogram,
    decided_durations: Histogram,
    candidates: Histogram,
    policy_errors: Counters<1>,
    forbid_errors: ForbidErrors,
}

impl Default for DecisionMetrics {
    fn default() -> Self {
        Self {
            decisions: Counters::default(),
            cached_durations: Histogram::new(DURATION_BOUNDS),
            decided_durations: Histogram::new(DURATION_BOUNDS),
            candidates: Histogram::new(CANDIDATE_BOUNDS),
            policy_errors: Counters::default(),
            forbid_errors: ForbidErrors::default(),
        }
    }
}

impl DecisionMetrics {
    /// Counts an answer that a caller gets.
    pub(super) fn count_answer(&self, decision: Decision, source: Source, took: Duration) {
        self.decisions.add_one(counter_index(decision, source));
        self.durations_of(source).observe(nanoseconds(took));
    }

    /// Counts an evaluation: the policies whose scope matched, and those that failed.
    pub(super) fn count_evaluation(&self, candidates: usize, answer: &Answer) {
        self.candidates.observe(candidates as u64);
        let policy_errors = answer.diagnostics.errors.len();
        if policy_errors > 0 {
            self.policy_errors.add(0, policy_errors as u64);
            self.forbid_errors.record(answer);
        }
    }

    fn durations_of(&self, source: Source) -> &Histogram {
        match source {
            Source::Cache => &self.cached_durations,
            Source::Decided => &self.decided_durations,
        }
    }
}

impl Export for DecisionMetrics {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        let sources = [(Source::Cache, "cache"), (Source::Decided, "decided")];
        let decisions = [(Decision::Allow, "allow"), (Decision::Deny, "deny")];
        let counts = decisions.iter().flat_map(|(decision, decision_label)| {
            sources.iter().map(move |(source, source_label)| {
                let count = self.decisions.sum(counter_index(*decision, *source));
                ([*decision_label, *source_label], count)
            })
        });
        page.counter(&DECISIONS, counts)?;
        let durations =
            sources.map(|(source, label)| ([label], self.durations_of(source).distribution()));
        page.histogram(&DECISION_SECONDS, DURATION_BOUNDS, NANOSECONDS, durations)?;
        let candidates = [([], self.candidates.distribution())];
        page.histogram(&CANDIDATES, CANDIDATE_BOUNDS, 1.0, candidates)?;
        page.counter(&POLICY_ERRORS, [([], self.policy_errors.sum(0))])?;
        let forbid_errors = self.forbid_errors.counts();
        let forbid_errors = forbid_errors.iter();
        page.counter(
            &FORBID_ERRORS,
            forbid_errors.map(|(policy, count)| ([policy.as_str()], *count)),
        )
    }
}

impl Export for CacheMetrics {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        page.counter(&CACHE_HITS, [([], self.hits)])?;
        page.counter(&CACHE_MISSES, [([], self.misses)])?;
        page.counter(&CACHE_EVICTIONS, [([], self.evictions)])?;
        page.value(&CACHE_ENTRIES, self.entries as f64)?;
        page.value(&CACHE_BYTES, self.bytes as f64)?;
        page.value(&CACHE_CAPACITY, self.capacity_bytes as f64)
    }
}

fn counter_index(decision: Decision, source: Source) -> usize {
    match (decision, source) {
        (Decision::Allow, Source::Cache) => 0,
        (Decision::Deny, Source::Cache) => 1,
        (Decision::Allow, Source::Decided) => 2,
        (Decision::Deny, Source::Decided) => 3,
    }
}

/// Returns whole nanoseconds, at most `u64::MAX` (584 years).
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
