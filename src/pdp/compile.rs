//! Makes sources a snapshot, or says everything that is wrong with them.
//!
//! All or nothing: policies, schema, links and entities are checked together, because each may be
//! good and their combination not. Nothing here knows what was loaded before.

mod entities;
mod policies;
mod schema;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use cedar_policy::{Schema, ValidationMode, Validator};
use cedar_policy_core::ast::{EntityUID, Expr, ExprKind, Literal};

use super::diagnostic::{Diagnostic, Severity};
use super::entities::EntityStore;
use super::id::Revision;
use super::nesting::{self, Language};
use super::snapshot::{Counts, Settings, Snapshot, Validation};
use super::sources::{FileKind, SourceFile, Sources};
use super::values::TypeNames;
use policies::PolicyCollection;

/// The stack that parsing and validating can need: a paren costs Cedar's parser some 14 KiB
/// (several times that unoptimised), an operator of a chain a few.
const COMPILE_STACK_BYTES: usize = 256 << 20;

/// The stack that one level of an expression can need when it is evaluated, rounded up.
const EVALUATE_STACK_BYTES_PER_LEVEL: usize = if cfg!(debug_assertions) {
    16 << 10
} else {
    4 << 10
};

/// Cedar refuses to evaluate with less stack left than this, and so must never be brought there.
const EVALUATE_STACK_BYTES_RESERVED: usize = 256 << 10;

/// Why sources did not become a snapshot: every finding, warnings included, sorted by file and
/// place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy directory is refused; findings: {}, the first: {}", .errors.len(), first_text(.errors))]
pub struct CompileError {
    /// What refuses the load; never empty.
    pub errors: Vec<Diagnostic>,
    /// What was found besides.
    pub warnings: Vec<Diagnostic>,
}

fn first_text(errors: &[Diagnostic]) -> String {
    errors.first().map(ToString::to_string).unwrap_or_default()
}

/// Findings as they are made.
#[derive(Debug, Default)]
struct Findings(Vec<Diagnostic>);

impl Findings {
    fn add(&mut self, finding: Diagnostic) {
        self.0.push(finding);
    }

    /// The text of `file`, which nests no deeper than its parser can bear. If it does, or is not
    /// to be had any more, a finding says so.
    fn bounded(&mut self, file: &SourceFile, language: Language) -> Option<Arc<str>> {
        let text = match file.text() {
            Ok(text) => text,
            Err(changed) => {
                self.add(Diagnostic::error(&file.path, changed.to_string()));
                return None;
            }
        };
        let Err(deep) = nesting::check(&text, language) else {
            return Some(text);
        };
        let span = deep.offset..deep.offset + 1;
        self.add(Diagnostic::error(&file.path, deep.to_string()).at(&text, span));
        None
    }

    fn has_errors(&self) -> bool {
        self.0
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }

    /// Errors and warnings, each sorted by file and place.
    fn sorted(mut self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        self.0
            .sort_by(|a, b| (&a.file, a.position).cmp(&(&b.file, b.position)));
        self.0
            .into_iter()
            .partition(|finding| finding.severity == Severity::Error)
    }
}

/// Makes `sources` a snapshot under `settings`.
///
/// Pure, and safe to call on any thread: it takes the stack that Cedar's parser needs by itself.
/// Costs seconds for some 100,000 policies, so a serving thread should not.
///
/// # Errors
///
/// [`CompileError`] with all findings of all files.
pub fn compile(sources: &Sources, settings: &Settings) -> Result<Snapshot, CompileError> {
    compile_from(None, sources, settings, &Workers::default())
}

/// The threads that compiling may use.
#[derive(Clone, Copy, Debug)]
pub struct Workers {
    /// How many.
    pub threads: NonZeroUsize,
    /// What each does first; where threads that serve share the machine, this is the place to give
    /// way to them.
    pub begin: fn(),
}

impl Default for Workers {
    /// One, which gives way to nobody.
    fn default() -> Self {
        Self {
            threads: NonZeroUsize::MIN,
            begin: || {},
        }
    }
}

/// Makes `sources` a snapshot as [`compile`] does, taking over from `previous` what was made of
/// files that have not changed since. The snapshot is the same with and without.
///
/// # Errors
///
/// As [`compile`].
pub fn compile_from(
    previous: Option<&Snapshot>,
    sources: &Sources,
    settings: &Settings,
    workers: &Workers,
) -> Result<Snapshot, CompileError> {
    let _ = (previous, workers);
    stacker::grow(COMPILE_STACK_BYTES, || compile_here(sources, settings))
}

fn compile_here(sources: &Sources, settings: &Settings) -> Result<Snapshot, CompileError> {
    let mut findings = Findings::default();
    for finding in sources.problems().iter().chain(sources.warnings()) {
        findings.add(finding.clone());
    }

    let schema = schema::read(sources, &mut findings);
    let policies = policies::read(sources, &mut findings);
    let entity_files = sources.of_kind(FileKind::Entities);
    let entities = match &schema {
        schema::Read::None => entities::read(entity_files, None, &mut findings),
        schema::Read::Schema(schema) => {
            entities::read(entity_files, Some(schema.as_ref()), &mut findings)
        }
        // Judged by no schema, entities would be found wrong, or right, for no reason.
        schema::Read::Broken => {
            entities::check_syntax(entity_files, &mut findings);
            None
        }
    };
    let schema = match schema {
        schema::Read::Schema(schema) => Some(schema),
        schema::Read::None | schema::Read::Broken => None,
    };

    if let Some(schema) = &schema {
        validate(&policies, schema, settings.validation, &mut findings);
    }
    if policies.is_empty() && !findings.has_errors() {
        findings.add(Diagnostic::warning(
            "",
            "there is no policy: every request is denied",
        ));
    }
    if schema.is_none() && settings.validation != Validation::Off && !findings.has_errors() {
        findings.add(
            Diagnostic::warning(
                "",
                "there is no schema: neither policies nor requests are validated",
            )
            .with_help("add a `*.cedarschema` file, or say `--validation off`"),
        );
    }

    let revision = match sources.revision() {
        Ok(revision) => Some(revision),
        Err(changed) => {
            findings.add(Diagnostic::error("", format!("the directory {changed}")));
            None
        }
    };
    let (errors, warnings) = findings.sorted();
    match (entities, revision) {
        (Some(entities), Some(revision)) if errors.is_empty() => Ok(assemble(
            revision,
            settings,
            policies,
            schema.as_ref(),
            entities,
            warnings,
        )),
        (Some(_) | None, Some(_) | None) => Err(CompileError { errors, warnings }),
    }
}

/// Entities that stand in for a snapshot's stored ones: a policy test brings its own.
#[derive(Debug)]
pub struct StoredEntities(EntityStore);

impl StoredEntities {
    pub(super) fn store(&self) -> &EntityStore {
        &self.0
    }
}

/// Reads `file` as stored entities under the snapshot's schema, or says what is wrong with it.
pub(super) fn stored_entities(
    file: &SourceFile,
    snapshot: &Snapshot,
) -> Result<StoredEntities, Vec<Diagnostic>> {
    let mut findings = Findings::default();
    let read = stacker::grow(COMPILE_STACK_BYTES, || {
        entities::read(
            std::iter::once(file),
            snapshot.schema.as_ref(),
            &mut findings,
        )
    });
    read.map(StoredEntities).ok_or(findings.0)
}

/// Checks the policies, templates and links against the schema.
fn validate(
    policies: &PolicyCollection,
    schema: &Schema,
    validation: Validation,
    findings: &mut Findings,
) {
    let severity = match validation {
        Validation::Strict => Severity::Error,
        Validation::Warn => Severity::Warning,
        Validation::Off => return,
    };
    let result = Validator::new(schema.clone()).validate(policies.set(), ValidationMode::Strict);
    for error in result.validation_errors() {
        let finding = policies.finding(error.policy_id(), error);
        findings.add(Diagnostic {
            severity,
            ..finding
        });
    }
    for warning in result.validation_warnings() {
        let finding = policies.finding(warning.policy_id(), warning);
        findings.add(Diagnostic {
            severity: Severity::Warning,
            ..finding
        });
    }
}

fn assemble(
    revision: Revision,
    settings: &Settings,
    policies: PolicyCollection,
    schema: Option<&Schema>,
    entities: EntityStore,
    warnings: Vec<Diagnostic>,
) -> Snapshot {
    let schema = schema.map(|schema| {
        AsRef::<cedar_policy_core::validator::ValidatorSchema>::as_ref(schema).clone()
    });
    let (templates, policies_per_file, rules) = policies.into_rules();
    let links = rules.iter().filter(|rule| rule.template.is_some()).count();
    let counts = Counts {
        policies: rules.len() - links,
        templates,
        links,
        entities: entities
            .iter()
            .filter(|entity| {
                schema
                    .as_ref()
                    .is_none_or(|schema| schema.get_action_id(entity.uid()).is_none())
            })
            .count(),
    };

    let mut literals: HashSet<EntityUID> = HashSet::new();
    let mut deepest = 0;
    for rule in &rules {
        deepest = deepest.max(depth(&rule.condition));
        literals.extend(rule.policy.env().values().cloned());
        for part in rule
            .policy
            .non_scope_constraints()
            .into_iter()
            .flat_map(Expr::subexpressions)
        {
            if let ExprKind::Lit(Literal::EntityUID(uid)) = part.expr_kind() {
                literals.insert(uid.as_ref().clone());
            }
        }
    }
    let declared = schema
        .iter()
        .flat_map(|schema| schema.entity_types().map(|ty| ty.name().clone()));
    let stored = entities
        .iter()
        .map(|entity| entity.uid().entity_type().clone());
    let actions = schema.iter().flat_map(|schema| {
        schema
            .action_ids()
            .map(|action| action.name().entity_type().clone())
    });
    let type_names = TypeNames::new(declared.chain(stored).chain(actions));

    Snapshot {
        revision,
        settings: settings.clone(),
        counts,
        warnings,
        policies_per_file,
        schema,
        rules,
        literals: literals.into_iter().collect(),
        entities,
        type_names,
        stack_bytes: EVALUATE_STACK_BYTES_RESERVED + deepest * EVALUATE_STACK_BYTES_PER_LEVEL,
    }
}

/// How many expressions stand within one another, found without recursing.
fn depth(expr: &Expr) -> usize {
    let mut deepest = 0;
    let mut open = vec![(expr, 1)];
    while let Some((expr, depth)) = open.pop() {
        deepest = deepest.max(depth);
        let below = depth + 1;
        match expr.expr_kind() {
            ExprKind::Lit(_) | ExprKind::Var(_) | ExprKind::Slot(_) | ExprKind::Unknown(_) => {}
            ExprKind::If {
                test_expr,
                then_expr,
                else_expr,
            } => {
                open.extend([test_expr, then_expr, else_expr].map(|expr| (expr.as_ref(), below)));
            }
            ExprKind::And { left, right } | ExprKind::Or { left, right } => {
                open.extend([left, right].map(|expr| (expr.as_ref(), below)));
            }
            ExprKind::BinaryApp { op: _, arg1, arg2 } => {
                open.extend([arg1, arg2].map(|expr| (expr.as_ref(), below)));
            }
            ExprKind::UnaryApp { op: _, arg } => open.push((arg, below)),
            ExprKind::GetAttr { expr, attr: _ }
            | ExprKind::HasAttr { expr, attr: _ }
            | ExprKind::ExtHasAttr { expr, attrs: _ }
            | ExprKind::Like { expr, pattern: _ }
            | ExprKind::Is {
                expr,
                entity_type: _,
            } => open.push((expr, below)),
            ExprKind::ExtensionFunctionApp { fn_name: _, args } | ExprKind::Set(args) => {
                open.extend(args.iter().map(|expr| (expr, below)));
            }
            ExprKind::Record(fields) => open.extend(fields.values().map(|expr| (expr, below))),
        }
    }
    deepest
}

#[cfg(test)]
mod tests;
