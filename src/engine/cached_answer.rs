//! The forms in which answers are cached.

use std::fmt::Debug;
use std::sync::Arc;

use crate::decision_log::LoggableAnswer;
use crate::pdp::answer::{Answer, Decision, PolicyError};
use crate::pdp::explanation::{
    Clause, ExplainedPolicy, Explanation, OperandValue, ScopeMismatch, UnsatisfiedPermit,
};
use crate::pdp::id::PolicyId;

/// An answer in the form that a protocol sends and the cache holds.
pub trait CachedAnswer: LoggableAnswer + Clone + Debug + Send + Sync + 'static {
    /// The form of a key with its answer in the cache.
    type Entry: CacheEntry<Self>;

    /// Converts an answer, once for each evaluation.
    fn from_answer(answer: Answer) -> Self;

    /// Returns the memory of one answer, in bytes.
    fn weight(&self) -> usize;
}

/// A cache key with its answer.
///
/// One allocation for both is fastest: comparing the key then loads the answer, too.
pub trait CacheEntry<A>: Debug + Send + Sync + 'static {
    /// Combines `key` with `answer`.
    fn new(key: &[u8], answer: &A) -> Self;

    /// Returns the key.
    fn key(&self) -> &[u8];

    /// Returns the answer.
    fn answer(&self) -> A;

    /// Returns the memory of key and answer, in bytes.
    fn weight(&self) -> usize;
}

/// The entry for answers of any type: two allocations.
impl<A: CachedAnswer> CacheEntry<A> for (Box<[u8]>, A) {
    fn new(key: &[u8], answer: &A) -> Self {
        (key.into(), answer.clone())
    }

    fn key(&self) -> &[u8] {
        &self.0
    }

    fn answer(&self) -> A {
        self.1.clone()
    }

    fn weight(&self) -> usize {
        self.0.len() + self.1.weight()
    }
}

impl LoggableAnswer for Arc<Answer> {
    fn decision(&self) -> Decision {
        self.decision
    }

    fn determining(&self) -> impl Iterator<Item = &str> {
        self.diagnostics.determining.iter().map(PolicyId::as_str)
    }

    fn errors(&self) -> impl Iterator<Item = (&str, &str)> {
        let errors = self.diagnostics.errors.iter();
        errors.map(|error| (error.policy.as_str(), error.message.as_str()))
    }
}

impl CachedAnswer for Arc<Answer> {
    type Entry = (Box<[u8]>, Self);

    fn from_answer(answer: Answer) -> Self {
        Self::new(answer)
    }

    fn weight(&self) -> usize {
        // The snapshot shares ids and revision: the pointers count, the text does not.
        let determining = self.diagnostics.determining.capacity() * size_of::<PolicyId>();
        let errors = self.diagnostics.errors.iter();
        let errors: usize = errors
            .map(|error| size_of::<PolicyError>() + error.message.capacity())
            .sum();
        let explanation = self.explanation.as_deref().map_or(0, explanation_weight);
        size_of::<Answer>() + determining + errors + explanation
    }
}

fn explanation_weight(explanation: &Explanation) -> usize {
    let policies: usize = explanation.determining.iter().map(policy_weight).sum();
    let permits: usize = explanation.unsatisfied.iter().map(permit_weight).sum();
    let nearest = explanation.nearest.as_ref().map_or(0, |nearest| {
        let mismatches = nearest.mismatches.iter();
        let mismatches: usize = mismatches
            .map(|ScopeMismatch { constraint, actual }| pair_weight(constraint, actual))
            .sum();
        policy_weight(&nearest.policy) + mismatches
    });
    size_of::<Explanation>() + policies + permits + nearest
}

/// Returns the memory of two texts in a list.
fn pair_weight(one: &String, other: &String) -> usize {
    size_of::<(String, String)>() + one.capacity() + other.capacity()
}

fn permit_weight(permit: &UnsatisfiedPermit) -> usize {
    let Clause {
        kind: _,
        text,
        operand,
        place,
        values,
    } = &permit.clause;
    let texts = text.capacity() + operand.capacity() + place.file.capacity();
    let values: usize = values
        .iter()
        .map(|OperandValue { expression, value }| pair_weight(expression, value))
        .sum();
    size_of::<UnsatisfiedPermit>() + policy_weight(&permit.policy) + texts + values
}

fn policy_weight(policy: &ExplainedPolicy) -> usize {
    let annotations = policy.annotations.iter();
    let annotations: usize = annotations
        .map(|(name, value)| pair_weight(name, value))
        .sum();
    size_of::<ExplainedPolicy>() + annotations + policy.place.file.capacity()
}
