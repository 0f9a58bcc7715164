//! Rules of one file with their scopes, bytecode and read sets.

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy::{EntityUid, SlotId};
use cedar_policy_core::ast;
use smol_str::SmolStr;

use super::findings::located;
use super::open_forbids::{OpenForbid, OpenForbidCheck};
use super::stack::depth;
use crate::pdp::diagnostic::{Diagnostic, Position};
use crate::pdp::entities::interner::{TooManyUids, UidInterner};
use crate::pdp::id::PolicyId;
use crate::pdp::policies::bytecode::BytecodeTable;
use crate::pdp::policies::policy::{Condition, Rule, without_first};
use crate::pdp::policies::read_set::{self, ReadSet};
use crate::pdp::policies::scope::Scope;
use crate::pdp::sources::scanner::{self, Language};

/// Rules of one file, with the fields by which they are indexed.
#[derive(Debug, Default)]
pub(in crate::pdp) struct RuleSet {
    pub(super) rules: Vec<Arc<Rule>>,
    /// The scopes of the rules, in their order, with the uid ids of `interner`.
    scopes: Vec<Scope>,
    /// The bytecode of the rules' remaining conditions, in the same order.
    pub(super) conditions: BytecodeTable,
    pub(super) interner: Arc<UidInterner>,
    /// The forbids among the rules that may not forbid where an entity is unknown.
    pub(super) open_forbids: Vec<OpenForbid>,
    /// Nesting depth of the deepest condition.
    pub(super) depth: usize,
    /// Memory that the rules hold, in bytes; estimated, since Cedar does not report it.
    pub(super) bytes: usize,
}

impl RuleSet {
    /// Returns the rules' scopes, and the conditions that remain once they match, with uids interned
    /// in `interner`.
    pub(super) fn interned(
        &self,
        interner: &mut Arc<UidInterner>,
    ) -> Result<(Vec<Scope>, BytecodeTable), TooManyUids> {
        let scopes = self.scopes.iter();
        let scopes = scopes
            .map(|scope| scope.reinterned(&self.interner, interner))
            .collect::<Result<_, _>>()?;
        let conditions = self.conditions.reinterned(&self.interner, interner)?;
        Ok((scopes, conditions))
    }

    /// Adds the rule of `policy`, which is defined at `origin`.
    pub(super) fn add(
        &mut self,
        policy: &ast::Policy,
        template: Option<&Template>,
        origin: &SourceLocation,
        (open_forbids, read_sets): (OpenForbidCheck<'_>, &mut ReadSetCache),
    ) -> Result<(), String> {
        let place = (&origin.file, origin.position);
        self.open_forbids.extend(open_forbids.check(policy, place));
        let scope =
            Scope::from_policy(policy, &mut self.interner).map_err(|error| error.to_string())?;
        let condition = policy.non_scope_constraints_arc();
        let absorbed = scope.absorbed_operands();
        let remainder = condition.and_then(|condition| without_first(condition, absorbed));
        self.conditions
            .add(remainder.as_deref(), &mut self.interner)
            .map_err(|error| error.to_string())?;
        for expr in condition.into_iter().chain(&remainder) {
            self.depth = self.depth.max(depth(expr));
        }
        // Links share the condition of their template.
        let own_condition = condition.filter(|_| template.is_none());
        let expressions = own_condition.map_or(0, |expr| expr.subexpressions().count());
        self.bytes += BYTES_PER_RULE + BYTES_PER_EXPRESSION * expressions;
        // Cedar's annotations are sorted by name.
        let annotations = policy.annotations();
        let annotations =
            annotations.map(|(name, value)| (SmolStr::from(name.to_string()), value.val.clone()));
        self.rules.push(Arc::new(Rule {
            id: PolicyId::new(policy.id().as_ref()),
            template: template.map(|template| template.id.clone()),
            file: Arc::clone(&origin.file),
            position: origin.position,
            template_file: Arc::clone(&template.map_or(origin, |template| &template.origin).file),
            loc: policy.template().loc().cloned(),
            effect: policy.effect(),
            annotations: annotations.collect(),
            slots: (!policy.env().is_empty()).then(|| Box::new(policy.env().clone())),
            condition: read_sets.condition(condition)?,
            remainder: read_sets.condition(remainder.as_ref())?,
        }));
        self.scopes.push(scope);
        Ok(())
    }
}

/// Memory that a rule holds without its condition, measured over generated policies, rounded up.
const BYTES_PER_RULE: usize = 1_024;

/// Memory that one expression of a condition holds, measured likewise.
const BYTES_PER_EXPRESSION: usize = 160;

/// The distinct read sets of many conditions, which are often alike.
#[derive(Default)]
pub(in crate::pdp) struct ReadSetCache(HashMap<ReadSet, Arc<ReadSet>>);

impl ReadSetCache {
    /// Returns a condition with its read set.
    fn condition(&mut self, expr: Option<&Arc<ast::Expr>>) -> Result<Condition, String> {
        let read_set = match expr {
            Some(expr) => read_set::analyze(expr).map_err(|error| error.to_string())?,
            None => ReadSet::nothing(),
        };
        let shared = self
            .0
            .entry(read_set)
            .or_insert_with_key(|read_set| Arc::new(read_set.clone()));
        Ok(Condition {
            expr: expr.cloned(),
            read_set: Arc::clone(shared),
        })
    }
}

/// A policy template of a file.
#[derive(Debug)]
pub(in crate::pdp) struct Template {
    pub(super) id: PolicyId,
    pub(super) template: cedar_policy::Template,
    pub(super) origin: SourceLocation,
}

/// A template link, to be linked once every template has been read.
#[derive(Debug)]
pub(in crate::pdp) struct Link {
    /// The id of the template.
    pub(super) template: String,
    pub(super) id: PolicyId,
    pub(super) args: HashMap<SlotId, EntityUid>,
    pub(super) origin: SourceLocation,
}

/// The first byte of a definition, in its file.
#[derive(Clone, Debug)]
pub(in crate::pdp) struct SourceLocation {
    pub(super) file: Arc<str>,
    pub(super) text: Arc<str>,
    /// Byte offset.
    pub(super) start: usize,
    pub(super) position: Position,
}

impl SourceLocation {
    /// Returns an error at this location.
    pub(super) fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(self.file.as_ref(), message).at(&self.text, self.start..self.start)
    }

    /// Converts Cedar's `error`: at its label in the file of `definition`, else at this location.
    pub(super) fn cedar_error(
        &self,
        definition: &Self,
        error: &dyn miette::Diagnostic,
    ) -> Diagnostic {
        let message = error.to_string();
        let mut labels = error.labels().into_iter().flatten();
        let diagnostic = match labels.next() {
            Some(_) => Diagnostic::error(definition.file.as_ref(), message),
            None => self.error(message),
        };
        let diagnostic = located(diagnostic, error, &definition.text);
        match &diagnostic.excerpt {
            // What concerns the whole policy is shown at its scope, not at its first annotation.
            Some(excerpt) if excerpt.span.start == definition.start => {
                let end = excerpt.span.end;
                let policy = definition.text.get(definition.start..end);
                let scope = scanner::first_word(policy.unwrap_or_default(), Language::Policies);
                let start = definition.start + scope.map_or(0, |scope| scope.start);
                diagnostic.at(&definition.text, start..end)
            }
            Some(_) | None => diagnostic,
        }
    }
}
