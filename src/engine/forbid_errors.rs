//! Counts the evaluations of each forbid that failed, and logs the first of each.
//!
//! A forbid that fails does not forbid, unless `on_policy_error` is `deny`: an operator must learn
//! which one it is. Answers name it too, but to callers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::pdp::answer::{Answer, Decision, PolicyError};
use crate::pdp::explanation::Effect;
use crate::pdp::id::{PolicyId, Revision};

/// Most forbids that are counted apart, and most that are logged for one revision.
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
    /// The forbids whose failure is logged, by revision: of the last two, as calls on both overlap
    /// during a reload.
    logged: VecDeque<(Revision, BTreeSet<PolicyId>)>,
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
        let errors = std::iter::once(first).chain(forbids);
        let first_failures = errors.filter(|error| {
            state.count(&error.policy);
            state.log(&answer.revision, &error.policy)
        });
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
    fn count(&mut self, policy: &PolicyId) {
        let is_label = policy.as_str().len() <= MAX_LABEL_BYTES && policy.as_str() != OTHERS;
        let is_full = self.counts.len() == MAX_COUNTED;
        if let Some(count) = self.counts.get_mut(policy) {
            *count += 1;
        } else if is_label && !is_full {
            self.counts.insert(policy.clone(), 1);
        } else {
            self.others += 1;
        }
    }

    /// Returns whether a failure of `policy` is to be logged: the first on this revision.
    fn log(&mut self, revision: &Revision, policy: &PolicyId) -> bool {
        let is_known = self.logged.iter().any(|(known, _)| known == revision);
        if !is_known {
            self.logged.truncate(1);
            self.logged.push_front((revision.clone(), BTreeSet::new()));
        }
        let logged = self.logged.iter_mut().find(|(known, _)| known == revision);
        logged.is_some_and(|(_, logged)| {
            logged.len() < MAX_COUNTED && !logged.contains(policy) && logged.insert(policy.clone())
        })
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
        let mut state = State::default();
        let [old, new, newest] = [6, 7, 8].map(|byte| Revision::from_digest(&[byte; 32]));
        let long = "x".repeat(MAX_LABEL_BYTES + 1);
        for id in ["a", OTHERS, &long] {
            let id = PolicyId::new(id);
            // Calls on two revisions alternate during a reload.
            for (revision, is_logged) in [(&old, true), (&new, true), (&old, false), (&new, false)]
            {
                state.count(&id);
                assert_eq!(state.log(revision, &id), is_logged, "{id}");
            }
        }
        assert!(state.log(&newest, &PolicyId::new("a")));
        // However many were counted before, those of a new revision are logged.
        for policy in 0..MAX_COUNTED + 3 {
            state.count(&PolicyId::new(&format!("p{policy}")));
        }
        assert!(state.log(&newest, &PolicyId::new("late")));
        for policy in 0..MAX_COUNTED {
            state.log(&newest, &PolicyId::new(&format!("p{policy}")));
        }
        assert!(!state.log(&newest, &PolicyId::new("too many")));
    }
}
