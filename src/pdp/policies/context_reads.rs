//! Which attributes of the context can matter to a request, by its action.
//!
//! A policy can read only those attributes of the context that its text names, unless it uses the
//! context as a whole; and only policies whose scope can match the action are evaluated. What no
//! such policy reads cannot change an answer. (The text of an evaluation's error can: it lists the
//! names of the attributes that there are. Names, not values.)

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use smol_str::SmolStr;

use super::index::Index;
use super::policy::Rule;
use crate::pdp::entities::interner::UidId;
use crate::pdp::entities::store::EntityStore;

/// The attributes of the context that policies can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextReads {
    /// Any: a policy uses the context as a whole.
    All,
    /// These and no others, sorted.
    Named(Vec<String>),
}

impl ContextReads {
    /// Whether the attribute `name` can matter.
    #[must_use]
    pub fn reads(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.binary_search_by(|n| n.as_str().cmp(name)).is_ok(),
        }
    }
}

/// The reads of the context by action.
#[derive(Debug)]
pub(in crate::pdp) struct ContextReadIndex {
    by_action: HashMap<UidId, ContextReads>,
    /// Of an action that no policy names and that is in none.
    others: ContextReads,
}

impl ContextReadIndex {
    /// What `rules`, which `index` has the scopes of, read.
    pub(in crate::pdp) fn new<'a>(
        rules: impl Iterator<Item = &'a Arc<Rule>>,
        index: &Index,
        entities: &EntityStore,
    ) -> Self {
        let mut any = NameSet::default();
        let mut named: HashMap<UidId, NameSet> = HashMap::new();
        for (number, rule) in (0..).zip(rules) {
            let reads = &rule.condition.read_set.context;
            match index.scope(number).and_then(|scope| scope.actions()) {
                None => any.add(reads.as_ref()),
                Some(actions) => {
                    for action in actions {
                        named.entry(action).or_default().add(reads.as_ref());
                    }
                }
            }
        }
        let actions: BTreeSet<UidId> = entities.actions().chain(named.keys().copied()).collect();
        let by_action = actions
            .into_iter()
            .map(|action| {
                let mut reads = any.clone();
                let ancestors = entities.ancestors(action);
                for uid in std::iter::once(&action).chain(&ancestors) {
                    if let Some(names) = named.get(uid) {
                        reads.join(names);
                    }
                }
                (action, reads.into())
            })
            .collect();
        Self {
            by_action,
            others: any.into(),
        }
    }

    /// The actions that are known, and what policies read of the context of a request for each.
    pub(in crate::pdp) fn iter(&self) -> impl Iterator<Item = (UidId, &ContextReads)> {
        self.by_action
            .iter()
            .map(|(action, reads)| (*action, reads))
    }

    /// What policies read of the context of a request for `action`.
    pub(in crate::pdp) fn of(&self, action: Option<UidId>) -> &ContextReads {
        let found = action.and_then(|action| self.by_action.get(&action));
        found.unwrap_or(&self.others)
    }
}

/// Names that are read; all when `None`.
#[derive(Clone, Debug)]
struct NameSet(Option<BTreeSet<SmolStr>>);

impl Default for NameSet {
    fn default() -> Self {
        Self(Some(BTreeSet::new()))
    }
}

impl NameSet {
    fn add(&mut self, more: Option<&BTreeSet<SmolStr>>) {
        match (&mut self.0, more) {
            (Some(names), Some(more)) => {
                for name in more {
                    if !names.contains(name) {
                        names.insert(name.clone());
                    }
                }
            }
            (_, None) => self.0 = None,
            (None, Some(_)) => {}
        }
    }

    fn join(&mut self, other: &Self) {
        self.add(other.0.as_ref());
    }
}

impl From<NameSet> for ContextReads {
    fn from(NameSet(names): NameSet) -> Self {
        match names {
            None => Self::All,
            Some(names) => Self::Named(names.into_iter().map(String::from).collect()),
        }
    }
}
