//! Makes sources a snapshot, or says everything that is wrong with them.
//!
//! All or nothing: policies, schema, links and entities are checked together, because each may be
//! good and their combination not. Files are read one by one, at the same time; what was made of a
//! file is kept beside the snapshot, for the next one to be made from.

pub(in crate::pdp) mod combine;
mod entities;
mod entity_json;
pub(in crate::pdp) mod findings;
mod json_text;
mod policies;
mod reuse;
mod rule_set;
mod schema;
pub(in crate::pdp) mod stack;
pub(in crate::pdp) mod stored_entities;
mod validator;

use std::sync::Arc;

use cedar_policy::Schema;
use cedar_policy_core::validator::ValidatorSchema;

use super::diagnostic::Diagnostic;
use super::entities::interner::UidInterner;
use super::entities::segment::Segment;
use super::entities::store::EntityStore;
use super::policies::bytecode::BytecodeTable;
use super::policies::context_reads::ContextReadIndex;
use super::policies::index::Index;
use super::policies::policy::Rule;
use super::policies::scope::Scope;
use super::schema::conformance::Conformance;
use super::settings::{Settings, Validation};
use super::snapshot::{Counts, Snapshot};
use super::sources::{ContentDigest, FileKind, SourceFile, Sources};
use super::values::TypeNames;
use super::workers::Workers;
use entities::{EntityFile, EntityReader};
use findings::{CompileError, DiagnosticSink};
use policies::PolicyFile;
use reuse::{ByFile, InternedPolicies, Reusable};
use rule_set::RuleSet;
use stack::COMPILE_STACK_BYTES;
use validator::PolicyValidator;

/// Of what takes some ten to a hundred nanoseconds, so many are done between two pauses.
const PAUSE_EACH: usize = 1_000;

/// Makes `sources` a snapshot under `settings`.
///
/// Pure, and safe to call on any thread: it takes the stack that Cedar's parser needs by itself.
/// Costs seconds for some 100,000 policies, so a serving thread should not.
///
/// # Errors
///
/// [`CompileError`] with all findings of all files.
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

/// Makes `sources` a snapshot as [`compile`] does, taking over from `previous` what was made of
/// files that have not changed since. The snapshot is the same with and without.
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

fn run(
    previous: Option<&Compiled>,
    sources: &Sources,
    settings: &Settings,
    workers: &Workers,
) -> Result<(Snapshot, Reusable), CompileError> {
    let workers = workers.scaled_to(sources.bytes());
    stacker::grow(COMPILE_STACK_BYTES, || {
        Compiler {
            previous,
            sources,
            settings,
            workers: &workers,
            findings: DiagnosticSink::default(),
        }
        .run()
    })
}

/// One snapshot being made.
struct Compiler<'a> {
    previous: Option<&'a Compiled>,
    sources: &'a Sources,
    settings: &'a Settings,
    workers: &'a Workers,
    findings: DiagnosticSink,
}

/// A rule with what it is filed by.
struct IndexEntry<'a> {
    rule: &'a Arc<Rule>,
    scope: &'a Scope,
    /// What is left of its condition, in shorthand.
    condition: &'a [u8],
}

/// Policies of all files, filed.
struct CombinedPolicies {
    /// Sorted by id.
    rules: Vec<Arc<Rule>>,
    index: Index,
    combined: combine::CombinedFiles,
    depth: usize,
    bytes: usize,
    reusable: ByFile<InternedPolicies>,
}

impl Compiler<'_> {
    fn run(mut self) -> Result<(Snapshot, Reusable), CompileError> {
        let sources = self.sources;
        for finding in sources.problems().iter().chain(sources.warnings()) {
            self.findings.add(finding.clone());
        }
        let schema_files =
            self.files(|kind| matches!(kind, FileKind::Schema | FileKind::SchemaJson));
        let schema_files: Vec<(String, ContentDigest)> = schema_files
            .iter()
            .map(|file| (file.path.clone(), file.digest))
            .collect();
        // What was made under another schema is made anew.
        let reusable = self
            .previous
            .map(|previous| &previous.reusable)
            .filter(|reusable| reusable.schema_files == schema_files);
        let schema = match reusable {
            Some(reusable) => match &reusable.schema {
                Some(schema) => schema::SchemaFiles::Valid(Arc::clone(schema)),
                None => schema::SchemaFiles::None,
            },
            None => schema::read(sources, &mut self.findings),
        };
        // Numbers go on from snapshot to snapshot until too many of them stand for nothing.
        let known = reusable.zip(self.previous).filter(|(reusable, previous)| {
            !previous
                .snapshot
                .entities
                .needs_compaction(reusable.policy_uid_count())
        });
        let interner = known.map_or_else(Arc::default, |(_, previous)| {
            Arc::clone(&previous.snapshot.entities.interner)
        });

        let entities = match &schema {
            schema::SchemaFiles::None => self.entities(None, reusable, interner),
            schema::SchemaFiles::Valid(schema) => {
                self.entities(Some(schema.as_ref().as_ref()), reusable, interner)
            }
            // Judged by no schema, entities would be found wrong, or right, for no reason.
            schema::SchemaFiles::Invalid => {
                for file in sources.of_kind(FileKind::Entities) {
                    entities::check_syntax(file, &mut self.findings);
                }
                None
            }
        };
        let schema = match schema {
            schema::SchemaFiles::Valid(schema) => Some(schema),
            schema::SchemaFiles::None | schema::SchemaFiles::Invalid => None,
        };
        let (entities, segments) = entities.unzip();
        let mut entities = entities.unwrap_or_default();
        let policies = self.policies(
            schema.as_deref(),
            reusable,
            known.is_some(),
            &mut entities.interner,
        );

        if policies.rules.is_empty() && !self.findings.has_errors() {
            self.findings.add(Diagnostic::warning(
                "",
                "there is no policy: every request is denied",
            ));
        }
        if schema.is_none()
            && self.settings.validation != Validation::Off
            && !self.findings.has_errors()
        {
            self.findings.add(
                Diagnostic::warning(
                    "",
                    "there is no schema: neither policies nor requests are validated",
                )
                .with_help("add a `*.cedarschema` file, or say `--validation off`"),
            );
        }
        let revision = sources.revision();
        if let Err(error) = &revision {
            self.findings.add(Diagnostic::error("", error.to_string()));
        }
        let reusable = Reusable {
            schema,
            schema_files,
            policies: policies.reusable,
            links: Arc::clone(&policies.combined.links),
            entities: segments.unwrap_or_default(),
        };
        let index = policies.index;
        let bytes = entities.bytes() + index.bytes() + policies.bytes;
        self.check_bounds(bytes, &index, &policies.rules);

        let (errors, warnings) = self.findings.sorted();
        let (Ok(revision), true) = (revision, errors.is_empty()) else {
            return Err(CompileError { errors, warnings });
        };
        let schema: Option<ValidatorSchema> = reusable
            .schema
            .as_deref()
            .map(|schema| AsRef::<ValidatorSchema>::as_ref(schema).clone());
        let rules = policies.rules;
        let links = policies.combined.links.rule_set.rules.len();
        let snapshot = Snapshot {
            revision,
            settings: self.settings.clone(),
            counts: Counts {
                policies: rules.len() - links,
                templates: policies.combined.templates,
                links,
                entities: count_entities(&entities, schema.as_ref()),
            },
            warnings,
            policies_per_file: policies.combined.per_file,
            type_names: TypeNames::new(
                entities.interner.types().iter().cloned().chain(
                    schema
                        .iter()
                        .flat_map(|schema| schema.entity_types().map(|ty| ty.name().clone())),
                ),
            ),
            conformance: Conformance::new(schema.as_ref()),
            projections: ContextReadIndex::new(
                self.workers.pausing(rules.iter(), PAUSE_EACH),
                &index,
                &entities,
            ),
            index,
            schema,
            rules,
            entities,
            bytes,
            stack_bytes: stack::evaluation_bytes(policies.depth),
        };
        Ok((snapshot, reusable))
    }

    fn files(&self, of: impl Fn(FileKind) -> bool) -> Vec<&'_ SourceFile> {
        let files = self.sources.files().iter();
        files.filter(|file| of(file.kind)).collect()
    }

    fn entities(
        &mut self,
        schema: Option<&ValidatorSchema>,
        reusable: Option<&Reusable>,
        mut interner: Arc<UidInterner>,
    ) -> Option<(EntityStore, ByFile<Segment>)> {
        let sources = self.sources;
        let files: Vec<&SourceFile> = sources.of_kind(FileKind::Entities).collect();
        let reader = EntityReader::new(schema);
        let known = |file: &SourceFile| {
            let (digest, segment) = reusable?.entities.get(&file.path)?;
            (*digest == file.digest).then_some(segment)
        };
        let new: Vec<&SourceFile> = files
            .iter()
            .copied()
            .filter(|file| known(file).is_none())
            .collect();
        let mut drafts = self
            .workers
            .map_with(
                &new,
                COMPILE_STACK_BYTES,
                || (),
                |(), file| {
                    let mut findings = DiagnosticSink::default();
                    let draft = reader.read(file, &mut findings);
                    (draft, findings)
                },
            )
            .into_iter();
        let mut read = Vec::with_capacity(files.len());
        let mut is_good = true;
        for file in &files {
            if let Some(segment) = known(file) {
                let old = self
                    .previous
                    .map(|previous| &previous.snapshot.entities.interner);
                let reinterned = match old.filter(|old| !old.is_ancestor_of(&interner)) {
                    None => Ok(Arc::clone(segment)),
                    Some(old) => segment.reinterned(old, &mut interner).map(Arc::new),
                };
                match reinterned {
                    Ok(segment) => read.push(EntityFile::Reused(segment)),
                    Err(error) => {
                        self.findings
                            .add(Diagnostic::error(&file.path, error.to_string()));
                        is_good = false;
                    }
                }
                continue;
            }
            if let Some((draft, findings)) = drafts.next() {
                self.findings.0.extend(findings.0);
                match draft {
                    Some(draft) => read.push(EntityFile::Draft(Box::new(draft))),
                    None => is_good = false,
                }
            }
        }
        if !is_good {
            return None;
        }
        let previous = self.previous.map(|previous| &previous.snapshot.entities);
        let (store, segments) = reader.assemble(
            &files,
            read,
            interner,
            (previous, *self.workers),
            &mut self.findings,
        )?;
        let reusable = files
            .iter()
            .zip(segments)
            .map(|(file, segment)| (file.path.clone(), (file.digest, segment)))
            .collect();
        Some((store, reusable))
    }

    fn policies(
        &mut self,
        schema: Option<&Schema>,
        reusable: Option<&Reusable>,
        keeps_ids: bool,
        interner: &mut Arc<UidInterner>,
    ) -> CombinedPolicies {
        let validator = PolicyValidator {
            schema,
            validation: self.settings.validation,
        };
        let sources = self.sources;
        let files: Vec<&SourceFile> = sources
            .files()
            .iter()
            .filter(|file| match file.kind {
                FileKind::Policies | FileKind::PoliciesJson | FileKind::Links => true,
                FileKind::Schema | FileKind::SchemaJson | FileKind::Entities | FileKind::Tests => {
                    false
                }
            })
            .collect();
        let known = |file: &SourceFile| {
            let (digest, read) = reusable?.policies.get(&file.path)?;
            (*digest == file.digest).then_some(read)
        };
        let new: Vec<&SourceFile> = files
            .iter()
            .copied()
            .filter(|file| known(file).is_none())
            .collect();
        let mut read_now = self
            .workers
            .map_with(
                &new,
                COMPILE_STACK_BYTES,
                || (),
                |(), file| {
                    let mut findings = DiagnosticSink::default();
                    let read = match file.text() {
                        Ok(text) => policies::read(file, &text, validator, &mut findings),
                        Err(error) => {
                            findings.add(Diagnostic::error(&file.path, error.to_string()));
                            PolicyFile::default()
                        }
                    };
                    (Arc::new(read), findings)
                },
            )
            .into_iter();
        let mut all: Vec<Arc<InternedPolicies>> = Vec::with_capacity(files.len());
        for file in &files {
            let read = match known(file) {
                Some(read) if keeps_ids => Arc::clone(read),
                Some(read) => self.intern_file(&read.file, interner),
                None => {
                    let Some((read, findings)) = read_now.next() else {
                        continue;
                    };
                    self.findings.0.extend(findings.0);
                    self.intern_file(&read, interner)
                }
            };
            all.push(read);
        }

        let in_files: Vec<Arc<PolicyFile>> =
            all.iter().map(|read| Arc::clone(&read.file)).collect();
        let texts = |path: &str| {
            let file = files.iter().find(|file| file.path == path)?;
            file.text().ok()
        };
        let previous = reusable.map(|reusable| &reusable.links);
        let combined = combine::combine(
            &in_files,
            texts,
            (validator, *self.workers),
            previous,
            &mut self.findings,
        );
        let links = &combined.links.rule_set;
        let (link_scopes, link_conditions) = self.intern_rules(links, interner);
        let rule_set = || in_files.iter().map(|file| &file.rule_set).chain([links]);
        let scopes = all.iter().flat_map(|read| &read.scopes).chain(&link_scopes);
        let conditions = all.iter().map(|read| &read.conditions);
        let conditions = conditions
            .chain([&link_conditions])
            .flat_map(BytecodeTable::iter);
        let rules = rule_set().flat_map(|rule_set| &rule_set.rules);
        let mut index_entries: Vec<IndexEntry<'_>> = self
            .workers
            .pausing(rules, PAUSE_EACH)
            .zip(scopes)
            .zip(conditions)
            .map(|((rule, scope), condition)| IndexEntry {
                rule,
                scope,
                condition,
            })
            .collect();
        // Mostly they come in long runs that are sorted, which this sort makes use of.
        index_entries.sort_by(|a, b| a.rule.id.cmp(&b.rule.id));
        (self.workers.pause)();
        let scopes = index_entries.iter().map(|entry| entry.scope.clone());
        let conditions: Vec<&[u8]> = index_entries.iter().map(|entry| entry.condition).collect();
        let index = Index::new(scopes.collect(), &conditions, *self.workers);
        let index = index.unwrap_or_else(|error| {
            self.findings.add(Diagnostic::error("", error.to_string()));
            Index::default()
        });
        let rules = self.workers.pausing(index_entries.iter(), PAUSE_EACH);
        let rules = rules.map(|entry| Arc::clone(entry.rule));
        CombinedPolicies {
            rules: rules.collect(),
            index,
            depth: rule_set().map(|rule_set| rule_set.depth).max().unwrap_or(0),
            bytes: rule_set()
                .map(|rule_set| rule_set.bytes + 2 * rule_set.bytecode_bytes())
                .sum(),
            reusable: files
                .iter()
                .zip(&all)
                .map(|(file, read)| (file.path.clone(), (file.digest, Arc::clone(read))))
                .collect(),
            combined,
        }
    }

    fn intern_file(
        &mut self,
        file: &Arc<PolicyFile>,
        interner: &mut Arc<UidInterner>,
    ) -> Arc<InternedPolicies> {
        let (scopes, conditions) = self.intern_rules(&file.rule_set, interner);
        Arc::new(InternedPolicies {
            scopes,
            conditions,
            file: Arc::clone(file),
        })
    }

    /// The scopes and conditions of `rule_set`, numbered in `interner`.
    fn intern_rules(
        &mut self,
        rule_set: &RuleSet,
        interner: &mut Arc<UidInterner>,
    ) -> (Vec<Scope>, BytecodeTable) {
        let scopes = rule_set.scopes(interner);
        let interned = scopes.and_then(|scopes| Ok((scopes, rule_set.conditions(interner)?)));
        interned.unwrap_or_else(|error| {
            self.findings.add(Diagnostic::error("", error.to_string()));
            Default::default()
        })
    }

    /// Refuses what would take more memory than it may, and warns of what no request could ask.
    fn check_bounds(&mut self, bytes: usize, index: &Index, rules: &[Arc<Rule>]) {
        let most = self.settings.max_store_bytes;
        if bytes as u64 > most {
            self.findings.add(
                Diagnostic::error(
                    "",
                    format!("policies and entities take {bytes} bytes, and {most} are allowed"),
                )
                .with_help("raise `--max-store-bytes`, if the machine has the memory"),
            );
        }
        // One request may have the key that the most are filed under, and meets those that are open.
        let (largest, open) = (index.longest_list(), index.unconstrained());
        let count = largest.len() + open.len();
        let most = self.settings.max_candidates;
        if count > most
            && let Some(first) = largest.iter().chain(open).next()
            && let Some(first) = rules.get(*first as usize)
        {
            self.findings.add(
                Diagnostic::warning(
                    first.file.as_ref(),
                    format!(
                        "{count} policies, `{}` among them, may match one and the same request, \
                         which is refused when more than {most} do",
                        first.id,
                    ),
                )
                .with_help("narrow their scopes, or raise `--max-candidates`"),
            );
        }
    }
}

/// How many entities there are, without the actions that the schema supplies.
fn count_entities(entities: &EntityStore, schema: Option<&ValidatorSchema>) -> usize {
    let all = entities.len();
    match schema {
        None => all,
        Some(schema) => {
            let supplied = schema.action_ids().filter(|action| {
                let number = entities.interner.find_uid(action.name());
                number.is_some_and(|number| entities.location(number).is_some())
            });
            all - supplied.count()
        }
    }
}

#[cfg(test)]
mod tests;
