//! Counters and histograms of decisions: how many, how long they took, how much was evaluated.

use std::time::Duration;

use super::Source;
use crate::counters::{Counters, Distribution, Histogram};
use crate::pdp::answer::Decision;

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
}

impl Default for DecisionMetrics {
    fn default() -> Self {
        Self {
            decisions: Counters::default(),
            cached_durations: Histogram::new(DURATION_BOUNDS),
            decided_durations: Histogram::new(DURATION_BOUNDS),
            candidates: Histogram::new(CANDIDATE_BOUNDS),
            policy_errors: Counters::default(),
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
    pub(super) fn count_evaluation(&self, candidates: usize, policy_errors: usize) {
        self.candidates.observe(candidates as u64);
        if policy_errors > 0 {
            self.policy_errors.add(0, policy_errors as u64);
        }
    }

    /// Returns the number of answers with this decision and source.
    #[must_use]
    pub fn decisions(&self, decision: Decision, source: Source) -> u64 {
        self.decisions.sum(counter_index(decision, source))
    }

    /// Returns the time that answers of this source took, in nanoseconds.
    #[must_use]
    pub fn durations(&self, source: Source) -> Distribution {
        self.durations_of(source).distribution()
    }

    /// Returns the number of policies whose scope matched, per evaluated query.
    #[must_use]
    pub fn candidates(&self) -> (&'static [u64], Distribution) {
        (self.candidates.bounds(), self.candidates.distribution())
    }

    /// Returns the number of policy evaluations that failed.
    #[must_use]
    pub fn policy_errors(&self) -> u64 {
        self.policy_errors.sum(0)
    }

    fn durations_of(&self, source: Source) -> &Histogram {
        match source {
            Source::Cache => &self.cached_durations,
            Source::Decided => &self.decided_durations,
        }
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
