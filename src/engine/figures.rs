//! What the engine counts: decisions, how long they took, and what they took.

use std::time::Duration;

use super::Source;
use crate::counters::{Counters, Distribution, Histogram};
use crate::pdp::answer::Decision;

/// Bounds of durations, in nanoseconds: from 10 us up to 2.5 s.
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

/// Bounds of numbers of policies.
const CANDIDATE_BOUNDS: &[u64] = &[
    0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000,
];

/// What was decided since the start of the process.
#[derive(Debug)]
pub struct DecisionFigures {
    decisions: Counters<4>,
    from_cache: Histogram,
    decided: Histogram,
    candidates: Histogram,
    policy_errors: Counters<1>,
}

impl Default for DecisionFigures {
    fn default() -> Self {
        Self {
            decisions: Counters::default(),
            from_cache: Histogram::new(DURATION_BOUNDS),
            decided: Histogram::new(DURATION_BOUNDS),
            candidates: Histogram::new(CANDIDATE_BOUNDS),
            policy_errors: Counters::default(),
        }
    }
}

impl DecisionFigures {
    /// Counts an answer that was given.
    pub(super) fn answered(&self, decision: Decision, source: Source, took: Duration) {
        self.decisions.add_one(place(decision, source));
        self.histogram(source).observe(nanoseconds(took));
    }

    /// Counts what deciding took, whether or not the answer is then given again from memory.
    pub(super) fn decided(&self, candidates: usize, policy_errors: usize) {
        self.candidates.observe(candidates as u64);
        if policy_errors > 0 {
            self.policy_errors.add(0, policy_errors as u64);
        }
    }

    /// How many answers said so and were come by so.
    #[must_use]
    pub fn decisions(&self, decision: Decision, source: Source) -> u64 {
        self.decisions.sum(place(decision, source))
    }

    /// How long answers took that were come by so, in nanoseconds.
    #[must_use]
    pub fn durations(&self, source: Source) -> Distribution {
        self.histogram(source).distribution()
    }

    /// How many policies had a scope that matched, of each query that was decided.
    #[must_use]
    pub fn candidates(&self) -> (&'static [u64], Distribution) {
        (self.candidates.bounds(), self.candidates.distribution())
    }

    /// How many evaluations of a policy failed.
    #[must_use]
    pub fn policy_errors(&self) -> u64 {
        self.policy_errors.sum(0)
    }

    fn histogram(&self, source: Source) -> &Histogram {
        match source {
            Source::Cache => &self.from_cache,
            Source::Decided => &self.decided,
        }
    }
}

fn place(decision: Decision, source: Source) -> usize {
    match (decision, source) {
        (Decision::Allow, Source::Cache) => 0,
        (Decision::Deny, Source::Cache) => 1,
        (Decision::Allow, Source::Decided) => 2,
        (Decision::Deny, Source::Decided) => 3,
    }
}

/// Whole nanoseconds; of more than five centuries, five centuries.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
