//! Advice for policy authors: expensive policies, and context attributes in cache keys.

use crate::pdp::explanation::Place;
use crate::pdp::id::PolicyId;
use crate::pdp::policies::context_reads::ContextReads;
use crate::pdp::policies::policy::{Rule, operands};
use crate::pdp::snapshot::Snapshot;

/// Facts that a policy author should know about the cost of decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// The policies that every request must evaluate, sorted by id.
    pub broad_policies: Vec<BroadPolicy>,
    /// The policies that use the context as a whole, sorted by id.
    ///
    /// For the actions that they apply to, a cached answer serves only the same context. So an
    /// attribute that changes with each request prevents cache hits.
    pub whole_context: Vec<PolicyRef>,
    /// The context attributes that policies read, by action, sorted: one answer is cached for each
    /// combination of their values.
    pub cache_key_reads: Vec<CacheKeyReads>,
}

/// A policy with its location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRef {
    /// The id of the policy or link.
    pub policy: PolicyId,
    /// The location in the policy directory.
    pub place: Place,
}

/// A policy that every request must evaluate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BroadPolicy {
    /// The policy, with its location.
    pub policy: PolicyRef,
    /// The first operand of its condition, by which no index is possible; `None` without condition.
    pub begins_with: Option<String>,
}

/// The part of the context in the cache key of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheKeyReads {
    /// The action.
    pub action: String,
    /// The attributes of the context, sorted; `None` is the whole context.
    pub attributes: Option<Vec<String>>,
}

/// The maximum length of an operand that is shown, in characters.
const MAX_OPERAND_CHARS: usize = 100;

/// Returns the advice for the author of `snapshot`'s policies.
#[must_use]
pub fn advice(snapshot: &Snapshot) -> Advice {
    let unconstrained = snapshot.index.unconstrained.iter();
    let broad_policies = unconstrained
        .filter_map(|number| snapshot.rules.get(*number as usize))
        .map(|rule| BroadPolicy {
            policy: policy_ref(rule),
            begins_with: first_operand(rule),
        })
        .collect();
    let whole_context = snapshot
        .rules
        .iter()
        .filter(|rule| rule.condition.read_set.context.is_none())
        .map(|rule| policy_ref(rule))
        .collect();
    let mut cache_key_reads: Vec<CacheKeyReads> = snapshot
        .context_reads
        .iter()
        .map(|(action, reads)| CacheKeyReads {
            action: snapshot.entities.interner.uid(action).to_string(),
            attributes: match reads {
                ContextReads::All => None,
                ContextReads::Named(names) => Some(names.clone()),
            },
        })
        .collect();
    cache_key_reads.sort_by(|a, b| a.action.cmp(&b.action));
    Advice {
        broad_policies,
        whole_context,
        cache_key_reads,
    }
}

fn policy_ref(rule: &Rule) -> PolicyRef {
    PolicyRef {
        policy: rule.id.clone(),
        place: rule.place(),
    }
}

/// Returns the text of the first operand of the rule's condition.
fn first_operand(rule: &Rule) -> Option<String> {
    let operands = operands(rule.condition.expr.as_ref()?);
    let operand = operands.first()?;
    let source = operand.source_loc().and_then(|loc| loc.snippet());
    Some(shortened(
        &source.map_or_else(|| operand.to_string(), str::to_owned),
    ))
}

/// Returns `text` on one line, shortened to [`MAX_OPERAND_CHARS`].
fn shortened(text: &str) -> String {
    let line: Vec<&str> = text.split_whitespace().collect();
    let line = line.join(" ");
    match line.char_indices().nth(MAX_OPERAND_CHARS) {
        None => line,
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pdp::sources::{FileKind, SourceFile, Sources};
    use crate::pdp::{Settings, compile};

    #[test]
    fn advice_names_broad_policies_and_cache_keys() {
        let text = r#"
@id("open") permit(principal, action, resource) when { context.amount < 9 };
@id("narrow") permit(principal, action, resource) when { principal in Group::"g" && context.amount < 9 };
@id("bare") forbid(principal, action == Action::"pay", resource) when { resource.limits == context };
@id("read") permit(principal, action == Action::"read", resource) when { context.mfa };
"#;
        let file = SourceFile::in_memory("p.cedar".to_owned(), FileKind::Policies, Arc::from(text));
        let sources = Sources::new(vec![file], vec![], vec![]);
        let advice = advice(&compile(&sources, &Settings::default()).unwrap());
        let [open] = advice.broad_policies.as_slice() else {
            panic!("{advice:?}")
        };
        assert_eq!(open.policy.policy.as_str(), "open");
        assert_eq!(open.begins_with.as_deref(), Some("context.amount < 9"));
        let [bare] = advice.whole_context.as_slice() else {
            panic!("{advice:?}")
        };
        assert_eq!(bare.policy.as_str(), "bare");
        let cache_keys: Vec<_> = advice
            .cache_key_reads
            .iter()
            .map(|reads| (reads.action.as_str(), reads.attributes.clone()))
            .collect();
        let names = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect());
        assert_eq!(
            cache_keys,
            [
                (r#"Action::"pay""#, None),
                (r#"Action::"read""#, names(&["amount", "mfa"])),
            ]
        );
    }
}
