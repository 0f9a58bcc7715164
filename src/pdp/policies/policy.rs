//! One policy or template link, ready to be evaluated.

use std::sync::{Arc, LazyLock};

use cedar_policy_core::ast::{self, SlotEnv};
use cedar_policy_core::parser::Loc;
use smol_str::SmolStr;

use super::read_set::ReadSet;
use crate::pdp::diagnostic::Position;
use crate::pdp::explanation::Place;
use crate::pdp::id::PolicyId;

/// A policy or link, ready to be evaluated: what is needed of it, since there can be very many.
#[derive(Debug)]
pub(in crate::pdp) struct Rule {
    pub(in crate::pdp) id: PolicyId,
    /// The template, for a link.
    pub(in crate::pdp) template: Option<PolicyId>,
    /// The file that the policy, or the link, is written in, and where.
    pub(in crate::pdp) file: Arc<str>,
    pub(in crate::pdp) position: Position,
    /// The file that holds the text: a link's template may stand in another file.
    pub(in crate::pdp) template_file: Arc<str>,
    /// Where in that text; a policy in JSON has none.
    pub(in crate::pdp) loc: Option<Loc>,
    pub(in crate::pdp) effect: ast::Effect,
    /// Sorted by name.
    pub(in crate::pdp) annotations: Box<[(SmolStr, SmolStr)]>,
    /// What a link puts in the slots.
    pub(in crate::pdp) slots: Option<Box<SlotEnv>>,
    pub(in crate::pdp) condition: Condition,
    /// What is left of the condition where the scope holds, as [`Index`](super::index::Index) reads it.
    pub(in crate::pdp) remainder: Condition,
}

/// What a policy asks besides its scope.
#[derive(Clone, Debug)]
pub(in crate::pdp) struct Condition {
    /// `None` always holds.
    pub(in crate::pdp) expr: Option<Arc<ast::Expr>>,
    /// What evaluating it can read.
    pub(in crate::pdp) read_set: Arc<ReadSet>,
}

impl Rule {
    /// What stands in the slots.
    pub(in crate::pdp) fn slots(&self) -> &SlotEnv {
        static NONE: LazyLock<SlotEnv> = LazyLock::new(SlotEnv::new);
        self.slots.as_deref().unwrap_or(&NONE)
    }

    /// Where the policy, or the link, is written.
    pub(in crate::pdp) fn place(&self) -> Place {
        Place {
            file: self.file.to_string(),
            position: Some(self.position),
        }
    }
}

/// The place of a policy among a snapshot's rules.
pub(in crate::pdp) type RuleIndex = u32;
