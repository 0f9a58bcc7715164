//! Which policies a request must evaluate: those whose scope matches it, and no others.
//!
//! A policy's condition is its scope, then its `when` and `unless`, joined by a short-circuiting
//! `&&`; a scope cannot fail. So a policy whose scope does not match adds nothing to decision,
//! determining policies or errors, and is left out. The same holds for the first operands of the
//! `&&` that are of the same kind as a scope (`principal in Group::"x"`, `resource is Doc`): they
//! cannot fail either, and stand first. They are taken into the scope here.
//!
//! Every policy is filed under one key that a request must have for the policy to match: a uid
//! that its principal or resource must be or be in, an action, or a type; of those that it has,
//! the one that the fewest policies have. A request looks under all keys that it has, and
//! compares what it finds there with the whole scope.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::policy::RuleIndex;
use super::postings::{PAUSE_EACH, Posting, PostingList, Postings, PostingsTooLarge};
use super::scope::{Key, RequestVariables, Scope, Variable};
use crate::pdp::workers::Workers;

/// The policies by what they demand.
#[derive(Debug, Default)]
pub(in crate::pdp) struct Index {
    scopes: Vec<Scope>,
    postings: Postings,
    /// The policies that demand nothing.
    unconstrained: Vec<RuleIndex>,
    /// The policies under the key that has the most, of those that demand something.
    largest: Vec<RuleIndex>,
}

/// Room for so many candidates is made at once.
const EXPECTED_CANDIDATES: usize = 64;

/// More policies match than may be evaluated for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pdp) struct TooManyCandidates;

impl Index {
    /// Files policies with these scopes, each under the number of its place among them, with what
    /// is left of its condition in shorthand; with the pauses of `workers`.
    ///
    /// # Errors
    ///
    /// [`PostingsTooLarge`].
    pub(in crate::pdp) fn new(
        scopes: Vec<Scope>,
        conditions: &[&[u8]],
        workers: Workers,
    ) -> Result<Self, PostingsTooLarge> {
        let mut popularity: HashMap<Key, u32> = HashMap::new();
        let pausing = workers.pausing(scopes.iter(), PAUSE_EACH);
        for key in pausing.flat_map(Scope::keys).flatten() {
            *popularity.entry(key).or_default() += 1;
        }
        let popular = |keys: &SmallVec<[Key; 2]>| -> u64 {
            keys.iter()
                .map(|key| u64::from(popularity.get(key).copied().unwrap_or(0)))
                .sum()
        };
        let mut pairs: Vec<(Key, RuleIndex)> = Vec::with_capacity(scopes.len());
        for (number, scope) in workers.pausing(scopes.iter(), PAUSE_EACH).enumerate() {
            // INVARIANT: fewer policies than 2³² fit in memory.
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            match scope.keys().min_by_key(popular) {
                Some(keys) => pairs.extend(keys.into_iter().map(|key| (key, number))),
                None => pairs.push((Key::Any, number)),
            }
        }
        pairs.sort_unstable();
        // `principal in [A, A]` has one key twice.
        pairs.dedup();
        let buckets = || pairs.chunk_by(|(one, _), (other, _)| one == other);
        let rules = |bucket: Option<&[(Key, RuleIndex)]>| {
            let bucket = bucket.unwrap_or_default().iter();
            bucket.map(|(_, number)| *number).collect()
        };
        let is_unconstrained = |bucket: &&[(Key, RuleIndex)]| matches!(bucket, [(Key::Any, _), ..]);
        let constrained = buckets().filter(|bucket| !is_unconstrained(bucket));
        Ok(Self {
            postings: Postings::new(&pairs, &scopes, conditions, workers)?,
            unconstrained: rules(buckets().find(is_unconstrained)),
            largest: rules(constrained.max_by_key(|bucket| bucket.len())),
            scopes,
        })
    }

    /// The policies whose scope a request meets, as they stand in memory: in no order that means
    /// anything, and one that is filed under several keys perhaps several times.
    ///
    /// # Errors
    ///
    /// [`TooManyCandidates`] when they are more than `most`.
    pub(in crate::pdp) fn candidates(
        &self,
        variables: &RequestVariables,
        most: usize,
    ) -> Result<Vec<Posting<'_>>, TooManyCandidates> {
        let keys = variables
            .principal
            .keys(Variable::Principal)
            .chain(variables.action.keys(Variable::Action))
            .chain(variables.resource.keys(Variable::Resource))
            .chain(std::iter::once(Key::Any));
        // Where they stand is found for all keys first, and how many they are: what is fetched
        // from memory for one key does not wait for that of another.
        let buckets: Vec<PostingList<'_>> =
            keys.filter_map(|key| self.postings.bucket(key)).collect();
        let count: usize = buckets.iter().map(|bucket| bucket.len()).sum();
        let room = count.min(EXPECTED_CANDIDATES);
        let found = buckets.into_iter().flatten();
        collect(
            found.filter(|posting| posting.is_match(variables)),
            room,
            most,
        )
    }

    /// The policies whose scope alone a request meets, in order, whatever their conditions say.
    ///
    /// Looks at every policy there is: they are filed by what their conditions demand, too.
    pub(in crate::pdp) fn matching_scope<'a>(
        &'a self,
        variables: &'a RequestVariables,
    ) -> impl Iterator<Item = RuleIndex> + 'a {
        let meets = |scope: &Scope| {
            let constraints = scope.constraints.get(..scope.scope_len).unwrap_or_default();
            variables.satisfy(constraints)
        };
        let numbered = (0..).zip(&self.scopes);
        numbered
            .filter(move |(_, scope)| meets(scope))
            .map(|(number, _)| number)
    }

    /// The scope of a policy.
    pub(in crate::pdp) fn scope(&self, number: RuleIndex) -> Option<&Scope> {
        self.scopes.get(number as usize)
    }

    /// The policies that every request must evaluate.
    pub(in crate::pdp) fn unconstrained(&self) -> &[RuleIndex] {
        &self.unconstrained
    }

    /// The most policies that are filed under one key, of those that demand something.
    pub(in crate::pdp) fn largest_bucket(&self) -> &[RuleIndex] {
        &self.largest
    }

    /// The memory that it holds, in bytes.
    pub(in crate::pdp) fn bytes(&self) -> usize {
        self.scopes.capacity() * size_of::<Scope>()
            + self.postings.bytes()
            + (self.unconstrained.capacity() + self.largest.capacity()) * size_of::<RuleIndex>()
    }
}

/// The policies that are `matching`, with room for so many at first; stops at the first that is one
/// too many.
fn collect<'a>(
    matching: impl Iterator<Item = Posting<'a>>,
    room: usize,
    most: usize,
) -> Result<Vec<Posting<'a>>, TooManyCandidates> {
    let mut found: Vec<Posting<'a>> = Vec::with_capacity(room);
    // Where so many are found that they may be too many, each is counted once: one that is filed
    // under several keys comes several times.
    let mut counted: Option<hashbrown::HashSet<RuleIndex>> = None;
    for posting in matching {
        if found.len() >= most {
            let rules = || found.iter().map(|posting| posting.rule).collect();
            let counted = counted.get_or_insert_with(rules);
            if !counted.insert(posting.rule) {
                continue;
            }
            if counted.len() > most {
                return Err(TooManyCandidates);
            }
        }
        found.push(posting);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
