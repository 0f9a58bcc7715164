//! The attributes of the context that can affect a request's answer, by action.
//!
//! A policy reads only the context attributes that its text names, unless it uses the whole
//! context. Only policies whose scope can match the action are evaluated. So an attribute that none
//! of them reads cannot change an answer. (Except for the text of an evaluation error: it lists the
//! names of all attributes, though not their values.)

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
    /// All attributes, as a policy uses the context as a whole.
    All,
    /// Only the attributes with these names, sorted.
    Named(Vec<String>),
}

impl ContextReads {
    /// Returns whether the attribute `name` can affect an answer.
    #[must_use]
    pub fn reads(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.binary_search_by(|n| n.as_str().cmp(name)).is_ok(),
        }
    }
}

/// The context attributes that policies can read, by action.
#[derive(Debug)]
pub(in crate::pdp) struct ContextReadIndex {
    by_action: HashMap<UidId, ContextReads>,
    /// The reads for all other actions: no policy names them or one of their ancestors.
    others: ContextReads,
}

impl ContextReadIndex {
    /// Creates the index for `rules`, whose scopes are in `index`.
    pub(in crate::pdp) fn new<'a>(
        rules: impl Iterator<Item = &'a Arc<Rule>>,
        index: &Index,
        entities: &EntityStore,
    ) -> Self {
        let mut any = Some(BTreeSet::new());
        let mut named: HashMap<UidId, NameSet> = HashMap::new();
        for (rule_index, rule) in (0..).zip(rules) {
            let reads = &rule.condition.read_set.context;
            match index.scope(rule_index).and_then(|scope| scope.actions()) {
                None => add(&mut any, reads),
                Some(actions) => {
                    for action in actions {
                        let names = named.entry(action);
                        add(names.or_insert_with(|| Some(BTreeSet::new())), reads);
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
                        add(&mut reads, names);
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

    /// Returns the known actions, each with the context attributes that policies can read.
    pub(in crate::pdp) fn iter(&self) -> impl Iterator<Item = (UidId, &ContextReads)> {
        self.by_action
            .iter()
            .map(|(action, reads)| (*action, reads))
    }

    /// Returns the context attributes that policies can read for `action`.
    pub(in crate::pdp) fn for_action(&self, action: Option<UidId>) -> &ContextReads {
        let reads = action.and_then(|action| self.by_action.get(&action));
        reads.unwrap_or(&self.others)
    }
}

/// A set of attribute names; `None` is the set of all names.
type NameSet = Option<BTreeSet<SmolStr>>;

/// Adds the names in `more` to `names`.
fn add(names: &mut NameSet, more: &NameSet) {
    match (names.as_mut(), more) {
        (Some(names), Some(more)) => names.extend(more.iter().cloned()),
        (_, None) => *names = None,
        (None, Some(_)) => {}
    }
}

impl From<NameSet> for ContextReads {
    fn from(names: NameSet) -> Self {
        match names {
            None => Self::All,
            Some(names) => Self::Named(names.into_iter().map(String::from).collect()),
        }
    }
}
