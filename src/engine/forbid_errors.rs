//! Counts the evaluations of each forbid that failed, and logs the first of each.
//!
//! A forbid that fails does not forbid, unless `on_policy_error` is `deny`: an operator must learn
//! which one it is. Answers name it too, but to callers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::pdp::answer::{Answer, Decision, PolicyError};
use crate::pdp::explanation::Effect;
use crate::pdp::id::{PolicyId, Revision};

/// Most forbids that are counted apart.
const MAX_COUNTED: usize = 100;

/// Longest id that is a label, in bytes.
const MAX_LABEL_BYTES: usize = 200;

/// The label for all other forbids.
const OTHERS: &str = "others";

/// Failed evaluations by forbid.
#[derive(Debug, Default)]
pub(super) struct ForbidErrors(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<PolicyId, u64>,
    others: u64,
    /// The forbids whose failure is logged for this revision.
    logged: BTreeSet<PolicyId>,
    revision: Option<Revision>,
}

impl ForbidErrors {
    /// Counts and logs the forbids among the errors of `answer`, which was not cached.
    pub(super) fn record(&self, answer: &Answer) {
        let errors = answer.diagnostics.errors.iter();
        let mut forbids = errors.filter(|error| error.effect == Effect::Forbid);
        // Most answers have none, and need no lock.
        let Some(first) = forbids.next() else {
            return;
        };
        let mut state = self.state();
        if state.revision.as_ref() != Some(&answer.revision) {
            state.revision = Some(answer.revision.clone());
            state.logged.clear();
        }
        let errors = std::iter::once(first).chain(forbids);
        let first_failures = errors.filter(|error| state.count(&error.policy));
        let first_failures: Vec<&PolicyError> = first_failures.collect();
        // A slow log must not hold up other threads.
        drop(state);
        for PolicyError { policy, .. } in first_failures {
            // Not its message, which quotes values.
            tracing::warn!(
                policy = policy.as_str(),
                revision = answer.revision.as_str(),
                denies = is_denied_by(answer, policy),
                "forbid failed to evaluate"
            );
        }
    }

    /// Returns the number of failures of each forbid, and of all others together.
    pub(super) fn counts(&self) -> Vec<(String, u64)> {
        let state = self.state();
        let counts = state.counts.iter();
        let counts = counts.map(|(policy, count)| (policy.to_string(), *count));
        counts.chain([(OTHERS.to_owned(), state.others)]).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counts are valid even if a thread panicked between two of them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts a failure of `policy`. Returns whether it is to be logged.
    fn count(&mut self, policy: &PolicyId) -> bool {
        let is_listed = self.counts.contains_key(policy);
        let is_full = self.counts.len() == MAX_COUNTED;
        let is_label = policy.as_str().len() <= MAX_LABEL_BYTES && policy.as_str() != OTHERS;
        if !is_label || (is_full && !is_listed) {
            self.others += 1;
            return false;
        }
        *self.counts.entry(policy.clone()).or_default() += 1;
        self.logged.insert(policy.clone())
    }
}

fn is_denied_by(answer: &Answer, policy: &PolicyId) -> bool {
    answer.decision == Decision::Deny && answer.diagnostics.determining.contains(policy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdp::answer::Diagnostics;

    fn answer(effect: Effect, policy: &str) -> Answer {
        Answer {
            decision: Decision::Deny,
            diagnostics: Diagnostics {
                determining: Vec::new(),
                errors: vec![PolicyError {
                    policy: PolicyId::new(policy),
                    effect,
                    message: "why".to_owned(),
                }],
            },
            revision: Revision::from_digest(&[7; 32]),
            explanation: None,
        }
    }

    #[test]
    fn only_failed_forbids_are_counted() {
        let errors = ForbidErrors::default();
        errors.record(&answer(Effect::Permit, "a"));
        errors.record(&answer(Effect::Forbid, "b"));
        errors.record(&answer(Effect::Forbid, "b"));
        assert_eq!(
            errors.counts(),
            [("b".to_owned(), 2), (OTHERS.to_owned(), 0)]
        );
    }

    #[test]
    fn forbids_beyond_the_limit_share_a_count() {
        let errors = ForbidErrors::default();
        for policy in 0..MAX_COUNTED + 3 {
            errors.record(&answer(Effect::Forbid, &format!("p{policy:03}")));
        }
        errors.record(&answer(Effect::Forbid, "p000"));
        // These ids make no label of their own.
        errors.record(&answer(Effect::Forbid, OTHERS));
        errors.record(&answer(Effect::Forbid, &"x".repeat(MAX_LABEL_BYTES + 1)));
        let counts = errors.counts();
        assert_eq!(counts.len(), MAX_COUNTED + 1);
        assert_eq!(counts.first(), Some(&("p000".to_owned(), 2)));
        assert_eq!(counts.last(), Some(&(OTHERS.to_owned(), 5)));
    }

    #[test]
    fn each_forbid_is_logged_once_per_revision() {
        let errors = ForbidErrors::default();
        let failed = answer(Effect::Forbid, "a");
        let logged = |errors: &ForbidErrors| errors.state().logged.len();
        errors.record(&failed);
        errors.record(&failed);
        assert_eq!(logged(&errors), 1);
        errors.record(&answer(Effect::Forbid, "b"));
        assert_eq!(logged(&errors), 2);
        errors.record(&Answer {
            revision: Revision::from_digest(&[8; 32]),
            ..failed
        });
        assert_eq!(logged(&errors), 1);
    }
}
