//! What an author should know of how policies are decided: which ones every request must evaluate,
//! and which attributes of the context keep answers from being remembered.

use crate::pdp::explanation::Place;
use crate::pdp::id::PolicyId;
use crate::pdp::policies::context_reads::ContextReads;
use crate::pdp::snapshot::Snapshot;

/// What an author should know of how a snapshot decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// The policies that every request must evaluate, sorted by id.
    pub broad_policies: Vec<BroadPolicy>,
    /// The policies that use the context as a whole, sorted by id: for the actions that they
    /// apply to, an answer is remembered for one context only, and any attribute that changes
    /// with each request keeps it from being used again.
    pub whole_context: Vec<PolicyRef>,
    /// What policies read of the context, by action, sorted: an answer is remembered for each
    /// combination of these values.
    pub cache_key_reads: Vec<CacheKeyReads>,
}

/// A policy, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRef {
    /// The policy or link.
    pub policy: PolicyId,
    /// Where it is written.
    pub place: Place,
}

/// A policy that every request must evaluate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BroadPolicy {
    /// Which.
    pub policy: PolicyRef,
    /// The first operand of its condition, which is nothing that policies can be looked up by;
    /// `None` when it has no condition.
    pub begins_with: Option<String>,
}

/// What answers for an action are remembered by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheKeyReads {
    /// The action.
    pub action: String,
    /// The attributes of the context, sorted; `None` is the whole context.
    pub attributes: Option<Vec<String>>,
}

/// The longest operand that is shown, in characters.
const MAX_OPERAND_CHARS: usize = 100;

/// What the author of `snapshot`'s policies should know.
#[must_use]
pub fn advice(snapshot: &Snapshot) -> Advice {
    let broad_policies = snapshot
        .index
        .unconstrained()
        .iter()
        .filter_map(|number| snapshot.rules.get(*number as usize))
        .map(|rule| BroadPolicy {
            policy: PolicyRef {
                policy: rule.id.clone(),
                place: rule.place(),
            },
            begins_with: rule
                .condition
                .expr
                .as_ref()
                .and_then(|condition| {
                    crate::pdp::policies::conjunction::operands(condition)
                        .first()
                        .copied()
                })
                .map(|operand| {
                    let written = operand.source_loc().and_then(|loc| loc.snippet());
                    shortened(&written.map_or_else(|| operand.to_string(), str::to_owned))
                }),
        })
        .collect();
    let whole_context = snapshot
        .rules
        .iter()
        .filter(|rule| rule.condition.read_set.context.is_none())
        .map(|rule| PolicyRef {
            policy: rule.id.clone(),
            place: rule.place(),
        })
        .collect();
    let mut cache_key_reads: Vec<CacheKeyReads> = snapshot
        .projections
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

/// `text` on one line and no longer than people read.
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
    fn an_author_is_told_what_every_request_costs_and_what_answers_are_remembered_by() {
        let text = r#"
@id("open") permit(principal, action, resource) when { context.amount < 9 };
@id("narrow") permit(principal, action, resource) when { principal in Group::"g" && context.amount < 9 };
@id("bare") forbid(principal, action == Action::"pay", resource) when { resource.limits == context };
@id("read") permit(principal, action == Action::"read", resource) when { context.mfa };
"#;
        let file = SourceFile::held("p.cedar".to_owned(), FileKind::Policies, Arc::from(text));
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
        let remembered: Vec<_> = advice
            .cache_key_reads
            .iter()
            .map(|by| (by.action.as_str(), by.attributes.clone()))
            .collect();
        let names = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect());
        assert_eq!(
            remembered,
            [
                (r#"Action::"pay""#, None),
                (r#"Action::"read""#, names(&["amount", "mfa"])),
            ]
        );
    }
}
