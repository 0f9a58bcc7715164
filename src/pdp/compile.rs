//! Compiles policy sources to a snapshot, or reports everything that is wrong with them.
//!
//! A compilation succeeds or fails as a whole. Policies, schema, links and entities are checked
//! together, because each may be valid while their combination is not. Files are read in parallel.
//! Results by file are kept beside the snapshot, for the next compilation to reuse.

pub(in crate::pdp) mod combine;
pub(in crate::pdp) mod entities;
mod entity_json;
pub(in crate::pdp) mod findings;
mod misplaced;
mod open_forbids;
mod policies;
mod reuse;
mod rule_set;
mod rule_table;
mod schema;
pub(in crate::pdp) mod stack;
mod validator;

use std::collections::HashSet;
use std::sync::Arc;

use cedar_policy::Schema;
use cedar_policy_core::validator::ValidatorSchema;

use super::diagnostic::Diagnostic;
use super::entities::interner::UidInterner;
use super::entities::segment::Segment;
use super::entities::store::EntityStore;
use super::policies::context_reads::ContextReadIndex;
use super::schema::conformance::Conformance;
use super::settings::{KnownTypes, Settings, Validation};
use super::snapshot::{Counts, Snapshot};
use super::sources::{ContentDigest, FileKind, Sources};
use super::values::TypeNames;
use super::workers::Workers;
use entities::EntityReader;
use findings::{CompileError, DiagnosticSink};
use reuse::{ByFile, Reusable};
use rule_table::{PAUSE_INTERVAL, RuleTable, RuleTableBuilder};
use schema::InvalidSchema;
pub use schema::{JoinedSchema, joined_schema};
use stack::COMPILE_STACK_BYTES;
use validator::PolicyValidator;

/// Compiles `sources` to a snapshot under `settings`.
///
/// Pure, and safe to call on any thread: it allocates the stack that Cedar's parser needs.
/// Compiling 100,000 policies takes seconds, so threads that serve requests should not call it.
///
/// # Errors
///
/// [`CompileError`] with all diagnostics of all files.
pub fn compile(sources: &Sources, settings: &Settings) -> Result<Snapshot, CompileError> {
    run(None, sources, settings, &Workers::default()).map(|(snapshot, _)| snapshot)
}

/// A snapshot, with the results that the next compilation can reuse.
#[derive(Debug)]
pub struct Compiled {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    reusable: Reusable,
}

/// Compiles `sources` as [`compile`] does, but reuses `previous` results of unchanged files.
///
/// The snapshot is the same with and without `previous`.
///
/// # Errors
///
/// As [`compile`].
pub fn compile_from(
    previous: Option<&Compiled>,
    sources: &Sources,
    settings: &Settings,
    workers: &Workers,
) -> Result<Compiled, CompileError> {
    let (snapshot, reusable) = run(previous, sources, settings, workers)?;
    Ok(Compiled {
        snapshot: Arc::new(snapshot),
        reusable,
    })
}

/// Compiles on a stack that is large enough.
fn run(
    previous: Option<&Compiled>,
    sources: &Sources,
    settings: &Settings,
    workers: &Workers,
) -> Result<(Snapshot, Reusable), CompileError> {
    let workers = workers.scaled_to(sources.bytes());
    stacker::grow(COMPILE_STACK_BYTES, || {
        Compilation {
            previous,
            sources,
            settings,
            workers,
            diagnostics: DiagnosticSink::default(),
        }
        .run()
    })
}

/// A compilation in progress: its inputs, and the diagnostics so far.
struct Compilation<'a> {
    previous: Option<&'a Compiled>,
    sources: &'a Sources,
    settings: &'a Settings,
    workers: Workers,
    diagnostics: DiagnosticSink,
}

impl<'a> Compilation<'a> {
    fn run(mut self) -> Result<(Snapshot, Reusable), CompileError> {
        let found = self.sources.problems().iter();
        self.diagnostics
            .0
            .extend(found.chain(self.sources.warnings()).cloned());
        let schema_files = self.schema_files();
        // Results under another schema cannot be reused.
        let reusable = self
            .previous
            .map(|previous| &previous.reusable)
            .filter(|reusable| reusable.schema_files == schema_files);
        let schema = match reusable {
            Some(reusable) => Ok(reusable.schema.clone()),
            None => schema::read(self.sources, &mut self.diagnostics),
        };
        let previous_interner = self.reusable_interner(reusable);
        let keeps_ids = previous_interner.is_some();
        let interner = previous_interner.unwrap_or_default();
        let (mut entities, segments) = self
            .read_entities(schema.as_ref(), reusable, interner)
            .unwrap_or_default();
        let schema = schema.ok().flatten();
        let (rule_table, policies) = RuleTableBuilder {
            validator: PolicyValidator {
                schema: schema.as_deref(),
                settings: self.settings,
            },
            reusable,
            keeps_ids,
            workers: self.workers,
            diagnostics: &mut self.diagnostics,
        }
        .build(self.sources, &mut entities.interner);

        self.warn_of_missing_parts(&rule_table, schema.is_some());
        self.warn_of_undeclared_types(schema.as_deref());
        let forbids = rule_table.combined.open_forbids.iter();
        let open_forbids = open_forbids::warning(forbids, &entities);
        self.diagnostics.0.extend(open_forbids);
        self.check_limits(&rule_table, &entities);
        let reusable = Reusable {
            schema,
            schema_files,
            policies,
            links: Arc::clone(&rule_table.combined.links),
            entities: segments,
        };
        let snapshot = self.finish(rule_table, entities, &reusable)?;
        Ok((snapshot, reusable))
    }

    fn schema_files(&self) -> Vec<(String, ContentDigest)> {
        let files = self.sources.files().iter();
        files
            .filter(|file| matches!(file.kind, FileKind::Schema | FileKind::SchemaJson))
            .map(|file| (file.path.clone(), file.digest))
            .collect()
    }

    /// Returns the uid ids of the previous snapshot, to be extended.
    ///
    /// Returns `None` when nothing can be reused, or when too many ids belong to no uid in use.
    fn reusable_interner(&self, reusable: Option<&Reusable>) -> Option<Arc<UidInterner>> {
        let entities = &self.previous?.snapshot.entities;
        let policy_uids = reusable?.policy_uid_count();
        (!entities.needs_compaction(policy_uids)).then(|| Arc::clone(&entities.interner))
    }

    /// Reads the stored entities; returns `None` when there are errors.
    fn read_entities(
        &mut self,
        schema: Result<&Option<Arc<Schema>>, &InvalidSchema>,
        reusable: Option<&Reusable>,
        interner: Arc<UidInterner>,
    ) -> Option<(EntityStore, ByFile<Segment>)> {
        let Ok(schema) = schema else {
            // Without a valid schema, entities can be neither accepted nor rejected.
            for file in self.sources.of_kind(FileKind::Entities) {
                entities::check_syntax(file, &mut self.diagnostics);
            }
            return None;
        };
        let schema = schema.as_ref().map(|schema| schema.as_ref().as_ref());
        let previous = self.previous.map(|previous| &previous.snapshot.entities);
        EntityReader::new(schema).read_all(
            self.sources,
            (previous, reusable),
            interner,
            self.workers,
            &mut self.diagnostics,
        )
    }

    /// Warns when there is no policy or no schema.
    fn warn_of_missing_parts(&mut self, rule_table: &RuleTable, has_schema: bool) {
        if self.diagnostics.has_errors() {
            return;
        }
        if rule_table.rules.is_empty() {
            let message = "there is no policy: every request is denied";
            self.diagnostics.add(Diagnostic::warning("", message));
        }
        if !has_schema && self.settings.validation != Validation::Off {
            let message = "there is no schema: neither policies nor requests are validated";
            let help = "add a `*.cedarschema` file, or set `--validation off`";
            self.diagnostics
                .add(Diagnostic::warning("", message).with_help(help));
        }
    }

    /// Warns when `require_known` names a type that the schema does not declare: a name without its
    /// namespace would require nothing.
    fn warn_of_undeclared_types(&mut self, schema: Option<&Schema>) {
        let (Some(schema), Some(KnownTypes::Named(names))) = (schema, &self.settings.require_known)
        else {
            return;
        };
        let declared: HashSet<String> = schema.entity_types().map(ToString::to_string).collect();
        let undeclared: Vec<_> = names
            .iter()
            .filter(|name| !declared.contains(*name))
            .collect();
        for name in undeclared {
            let message = format!(
                "`require_known` names the entity type `{name}`, which the schema does not declare"
            );
            let warning = Diagnostic::warning("", message);
            let suffix = format!("::{name}");
            let meant = declared.iter().filter(|full| full.ends_with(&suffix)).min();
            self.diagnostics.add(match meant {
                Some(full) => warning.with_help(format!("did you mean `{full}`?")),
                None => warning,
            });
        }
    }

    /// Rejects a snapshot above the memory limit, and warns of requests with too many candidates.
    fn check_limits(&mut self, rule_table: &RuleTable, entities: &EntityStore) {
        let bytes = rule_table.total_bytes() + entities.bytes();
        let limit = self.settings.max_store_bytes;
        if bytes as u64 > limit {
            let message =
                format!("policies and entities need {bytes} bytes; at most {limit} are allowed");
            let help = "raise `--max-store-bytes`, if the machine has the memory";
            self.diagnostics
                .add(Diagnostic::error("", message).with_help(help));
        }
        // One request can match the largest bucket and all policies without constraints.
        let index = &rule_table.index;
        let (largest, unconstrained) = (&index.longest, &index.unconstrained);
        let count = largest.len() + unconstrained.len();
        let limit = self.settings.max_candidates;
        if count > limit
            && let Some(first) = largest.iter().chain(unconstrained).next()
            && let Some(first) = rule_table.rules.get(*first as usize)
        {
            let message = format!(
                "one request may match {count} policies, such as `{}`; requests that match more than \
                 {limit} are rejected",
                first.id,
            );
            let diagnostic = Diagnostic::warning(first.file.as_ref(), message);
            let help = "narrow the scopes of these policies, or raise `--max-candidates`";
            self.diagnostics.add(diagnostic.with_help(help));
        }
    }

    /// Builds the snapshot, unless there are errors.
    fn finish(
        mut self,
        rule_table: RuleTable,
        entities: EntityStore,
        reusable: &Reusable,
    ) -> Result<Snapshot, CompileError> {
        let revision = self.diagnostics.ok("", self.sources.revision());
        let (errors, warnings) = self.diagnostics.sorted();
        let (Some(revision), true) = (revision, errors.is_empty()) else {
            return Err(CompileError { errors, warnings });
        };
        let schema = reusable.schema.as_deref();
        let schema = schema.map(|schema| AsRef::<ValidatorSchema>::as_ref(schema).clone());
        Ok(Snapshot {
            revision,
            settings: self.settings.clone(),
            counts: counts(&rule_table, &entities, schema.as_ref()),
            warnings,
            bytes: rule_table.total_bytes() + entities.bytes(),
            stack_bytes: stack::evaluation_bytes(rule_table.depth),
            type_names: type_names(&entities, schema.as_ref()),
            conformance: Conformance::new(schema.as_ref()),
            context_reads: ContextReadIndex::new(
                self.workers
                    .pausing(rule_table.rules.iter(), PAUSE_INTERVAL),
                &rule_table.index,
                &entities,
            ),
            policies_per_file: rule_table.combined.per_file,
            index: rule_table.index,
            rules: rule_table.rules,
            schema,
            entities,
        })
    }
}

fn counts(
    rule_table: &RuleTable,
    entities: &EntityStore,
    schema: Option<&ValidatorSchema>,
) -> Counts {
    let links = rule_table.combined.links.rule_set.rules.len();
    let schema_actions = schema.into_iter().flat_map(ValidatorSchema::action_ids);
    let stored_schema_actions = schema_actions.filter(|action| {
        let uid = entities.interner.find_uid(action.name());
        uid.is_some_and(|uid| entities.location(uid).is_some())
    });
    Counts {
        policies: rule_table.rules.len() - links,
        templates: rule_table.combined.templates,
        links,
        entities: entities.len() - stored_schema_actions.count(),
    }
}

/// Returns the entity types that entities, policies or the schema name.
fn type_names(entities: &EntityStore, schema: Option<&ValidatorSchema>) -> TypeNames {
    let declared = schema.into_iter().flat_map(ValidatorSchema::entity_types);
    let interned = entities.interner.types().iter().cloned();
    TypeNames::new(interned.chain(declared.map(|ty| ty.name().clone())))
}

#[cfg(test)]
mod tests;
