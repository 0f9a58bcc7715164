//! The scope index: finds the policies whose scope matches a request.
//!
//! A policy's condition is its scope, then its `when` and `unless`, joined by a short-circuiting
//! `&&`; a scope cannot fail. So a policy whose scope does not match adds nothing to decision,
//! determining policies or errors, and is skipped. The same holds for leading operands of the `&&`
//! that have the form of a scope (`principal in Group::"x"`, `resource is Doc`): they cannot fail
//! either, and are evaluated first. The scope absorbs them.
//!
//! A policy is posted under the keys of one of its constraints: a uid that a variable must be or be
//! in, or a type. Of its constraints, the one whose keys the fewest policies share is used. A
//! request looks up all keys that it has, and compares the postings with the whole scope.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::policy::RuleIndex;
use super::postings::{PAUSE_EACH, Posting, PostingList, Postings, PostingsTooLarge};
use super::scope::{Key, RequestVariables, Scope, Variable};
use crate::pdp::workers::Workers;

/// An index of policies by scope.
#[derive(Debug, Default)]
pub(in crate::pdp) struct Index {
    scopes: Vec<Scope>,
    postings: Postings,
    /// The policies without constraints, which every request must evaluate.
    pub(in crate::pdp) unconstrained: Vec<RuleIndex>,
    /// The policies of the longest posting list, except the list of those without constraints.
    pub(in crate::pdp) longest: Vec<RuleIndex>,
}

/// Most candidates for which memory is reserved in advance.
const EXPECTED_CANDIDATES: usize = 64;

/// The error that more policies match than one request may evaluate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pdp) struct TooManyCandidates;

impl Index {
    /// Indexes policies by these scopes, with the bytecode of their remaining conditions.
    ///
    /// A policy's index is its position in `scopes`. Pauses as `workers` says.
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
        for (index, scope) in workers.pausing(scopes.iter(), PAUSE_EACH).enumerate() {
            // INVARIANT: fewer policies than 2³² fit in memory.
            let rule = u32::try_from(index).unwrap_or(u32::MAX);
            match scope.keys().min_by_key(popular) {
                Some(keys) => pairs.extend(keys.into_iter().map(|key| (key, rule))),
                None => pairs.push((Key::Any, rule)),
            }
        }
        pairs.sort_unstable();
        // `principal in [A, A]` has the same key twice.
        pairs.dedup();
        let lists = || pairs.chunk_by(|(one, _), (other, _)| one == other);
        let rules = |list: Option<&[(Key, RuleIndex)]>| {
            let list = list.unwrap_or_default().iter();
            list.map(|(_, rule)| *rule).collect()
        };
        let is_unconstrained = |list: &&[(Key, RuleIndex)]| matches!(list, [(Key::Any, _), ..]);
        let constrained = lists().filter(|list| !is_unconstrained(list));
        Ok(Self {
            postings: Postings::new(&pairs, &scopes, conditions, workers)?,
            unconstrained: rules(lists().find(is_unconstrained)),
            longest: rules(constrained.max_by_key(|list| list.len())),
            scopes,
        })
    }

    /// Returns the postings of the policies whose scope matches a request, in no particular order.
    ///
    /// A policy that is posted under several keys may be returned several times. Fails if more than
    /// `limit` policies match.
    pub(in crate::pdp) fn candidates(
        &self,
        variables: &RequestVariables,
        limit: usize,
    ) -> Result<Vec<Posting<'_>>, TooManyCandidates> {
        let keys = variables
            .principal
            .keys(Variable::Principal)
            .chain(variables.action.keys(Variable::Action))
            .chain(variables.resource.keys(Variable::Resource))
            .chain(std::iter::once(Key::Any));
        // The lists of all keys are looked up first, so that their memory accesses overlap.
        let lists: Vec<PostingList<'_>> = keys.filter_map(|key| self.postings.list(key)).collect();
        let count: usize = lists.iter().map(|list| list.len()).sum();
        let matching = lists.into_iter().flatten();
        let matching = matching.filter(|posting| posting.is_match(variables));
        collect(matching, count.min(EXPECTED_CANDIDATES), limit)
    }

    /// Returns the policies whose written scope matches a request, in order.
    ///
    /// Absorbed operands do not count here. So the postings cannot be used, and every policy is
    /// checked.
    pub(in crate::pdp) fn matching_scope<'a>(
        &'a self,
        variables: &'a RequestVariables,
    ) -> impl Iterator<Item = RuleIndex> + 'a {
        let is_match = |scope: &Scope| {
            let constraints = scope.constraints.get(..scope.scope_len).unwrap_or_default();
            variables.satisfy(constraints)
        };
        let rules = (0..).zip(&self.scopes);
        rules
            .filter(move |(_, scope)| is_match(scope))
            .map(|(rule, _)| rule)
    }

    pub(in crate::pdp) fn scope(&self, rule: RuleIndex) -> Option<&Scope> {
        self.scopes.get(rule as usize)
    }

    /// Returns the heap memory in bytes.
    pub(in crate::pdp) fn bytes(&self) -> usize {
        self.scopes.capacity() * size_of::<Scope>()
            + self.postings.bytes()
            + (self.unconstrained.capacity() + self.longest.capacity()) * size_of::<RuleIndex>()
    }
}

/// Collects the `matching` postings, and fails as soon as they are of more than `limit` policies.
fn collect<'a>(
    matching: impl Iterator<Item = Posting<'a>>,
    capacity: usize,
    limit: usize,
) -> Result<Vec<Posting<'a>>, TooManyCandidates> {
    let mut found: Vec<Posting<'a>> = Vec::with_capacity(capacity);
    // A policy that is posted under several keys is found several times. Only when the postings
    // reach the limit are the distinct policies counted.
    let mut distinct: Option<hashbrown::HashSet<RuleIndex>> = None;
    for posting in matching {
        if found.len() >= limit {
            let rules = || found.iter().map(|posting| posting.rule).collect();
            let distinct = distinct.get_or_insert_with(rules);
            if !distinct.insert(posting.rule) {
                continue;
            }
            if distinct.len() > limit {
                return Err(TooManyCandidates);
            }
        }
        found.push(posting);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
