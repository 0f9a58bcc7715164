//! Rules of one file with their scopes, bytecode and read sets.

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy::{EntityUid, SlotId};
use cedar_policy_core::ast;
use smol_str::SmolStr;

use super::findings::located;
use super::stack::depth;
use crate::pdp::diagnostic::{Diagnostic, Position};
use crate::pdp::entities::interner::{TooManyUids, UidInterner};
use crate::pdp::id::PolicyId;
use crate::pdp::policies::bytecode::BytecodeTable;
use crate::pdp::policies::policy::{Condition, Rule};
use crate::pdp::policies::read_set::{ReadSet, TooManyPaths};
use crate::pdp::policies::scope::Scope;
use crate::pdp::policies::{conjunction, read_set};

/// Rules with what is needed to file them.
#[derive(Debug, Default)]
pub(in crate::pdp) struct RuleSet {
    pub(super) rules: Vec<Arc<Rule>>,
    /// In the order of the rules, and numbered in a table of their own.
    pub(super) scopes: Vec<Scope>,
    /// What is left of their conditions; in the same order, and so numbered too.
    pub(super) conditions: BytecodeTable,
    pub(super) interner: Arc<UidInterner>,
    /// How many expressions stand within one another in the deepest condition.
    pub(super) depth: usize,
    /// The memory that the rules hold, in bytes: estimated, since Cedar does not tell.
    pub(super) bytes: usize,
}

impl RuleSet {
    /// The rules' scopes, numbered in `interner`.
    pub(super) fn scopes(
        &self,
        interner: &mut Arc<UidInterner>,
    ) -> Result<Vec<Scope>, TooManyUids> {
        let scopes = self.scopes.iter();
        scopes
            .map(|scope| scope.reinterned(&self.interner, interner))
            .collect()
    }

    /// What is left of the rules' conditions where their scopes hold, numbered in `interner`.
    pub(super) fn conditions(
        &self,
        interner: &mut Arc<UidInterner>,
    ) -> Result<BytecodeTable, TooManyUids> {
        self.conditions.reinterned(&self.interner, interner)
    }

    /// How many uids they name.
    pub(super) fn uid_count(&self) -> usize {
        self.interner.len()
    }

    /// The memory that the conditions hold in shorthand, in bytes.
    pub(super) fn bytecode_bytes(&self) -> usize {
        self.conditions.bytes()
    }

    /// Adds the rule of `policy`, which stands at `origin`.
    pub(super) fn add(
        &mut self,
        policy: &ast::Policy,
        template: Option<&Template>,
        origin: &SourceLocation,
        known: &mut ReadSetCache,
    ) -> Result<(), String> {
        let scope =
            Scope::from_policy(policy, &mut self.interner).map_err(|error| error.to_string())?;
        let condition = policy.non_scope_constraints_arc();
        let remainder = condition
            .and_then(|condition| conjunction::without_first(condition, scope.absorbed_operands()));
        self.conditions
            .add(remainder.as_deref(), &mut self.interner)
            .map_err(|error| error.to_string())?;
        for expr in condition.into_iter().chain(&remainder) {
            self.depth = self.depth.max(depth(expr));
        }
        self.bytes += match template {
            Some(_) => BYTES_PER_RULE,
            None => {
                let parts = condition.map_or(0, |condition| condition.subexpressions().count());
                BYTES_PER_RULE + BYTES_PER_EXPRESSION * parts
            }
        };
        let read = |expr: Option<&Arc<ast::Expr>>, known: &mut ReadSetCache| {
            Ok::<_, String>(Condition {
                expr: expr.cloned(),
                read_set: known.of(expr).map_err(|error| error.to_string())?,
            })
        };
        let condition = read(condition, known)?;
        let remainder = read(remainder.as_ref(), known)?;
        let mut annotations: Vec<(SmolStr, SmolStr)> = policy
            .annotations()
            .map(|(name, value)| (SmolStr::from(name.to_string()), value.val.clone()))
            .collect();
        annotations.sort();
        self.rules.push(Arc::new(Rule {
            id: PolicyId::new(policy.id().as_ref()),
            template: template.map(|template| template.id.clone()),
            file: Arc::clone(&origin.file),
            position: origin.position,
            template_file: Arc::clone(&template.map_or(origin, |template| &template.origin).file),
            loc: policy.template().loc().cloned(),
            effect: policy.effect(),
            annotations: annotations.into(),
            slots: (!policy.env().is_empty()).then(|| Box::new(policy.env().clone())),
            condition,
            remainder,
        }));
        self.scopes.push(scope);
        Ok(())
    }
}

/// What a rule and a part of its condition hold in memory; measured over generated policies,
/// rounded up.
pub(in crate::pdp) const BYTES_PER_RULE: usize = 1_024;

pub(in crate::pdp) const BYTES_PER_EXPRESSION: usize = 160;

/// What conditions read, each kept once: conditions are many, and what they read is often alike.
#[derive(Default)]
pub(in crate::pdp) struct ReadSetCache(pub(super) HashMap<ReadSet, Arc<ReadSet>>);

impl ReadSetCache {
    pub(super) fn of(
        &mut self,
        condition: Option<&Arc<ast::Expr>>,
    ) -> Result<Arc<ReadSet>, TooManyPaths> {
        let found = match condition {
            Some(condition) => read_set::analyze(condition)?,
            None => ReadSet::nothing(),
        };
        if let Some(known) = self.0.get(&found) {
            return Ok(Arc::clone(known));
        }
        let shared = Arc::new(found.clone());
        self.0.insert(found, Arc::clone(&shared));
        Ok(shared)
    }
}

#[derive(Debug)]
pub(in crate::pdp) struct Template {
    pub(super) id: PolicyId,
    pub(super) template: cedar_policy::Template,
    pub(super) origin: SourceLocation,
}

/// A template link that waits until every template has been read.
#[derive(Debug)]
pub(in crate::pdp) struct Link {
    pub(super) template: String,
    pub(super) id: PolicyId,
    pub(super) args: HashMap<SlotId, EntityUid>,
    pub(super) origin: SourceLocation,
}

/// Where an id stands: its file, and its first byte there.
#[derive(Clone, Debug)]
pub(in crate::pdp) struct SourceLocation {
    pub(super) file: Arc<str>,
    pub(super) text: Arc<str>,
    pub(super) start: usize,
    pub(super) position: Position,
}

impl SourceLocation {
    pub(super) fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(self.file.as_ref(), message).at(&self.text, self.start..self.start)
    }

    /// What Cedar says of what stands here, placed where Cedar says in `written`, else here.
    pub(super) fn finding(&self, written: &Self, error: &dyn miette::Diagnostic) -> Diagnostic {
        let message = error.to_string();
        let has_place = error
            .labels()
            .is_some_and(|mut labels| labels.next().is_some());
        let base = if has_place {
            Diagnostic::error(written.file.as_ref(), message)
        } else {
            self.error(message)
        };
        located(base, error, &written.text)
    }
}
