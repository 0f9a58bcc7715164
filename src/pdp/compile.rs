//! Makes sources a snapshot, or says everything that is wrong with them.
//!
//! All or nothing: policies, schema, links and entities are checked together, because each may be
//! good and their combination not. Files are read one by one, at the same time; what was made of a
//! file is kept in the snapshot, for the next one to be made from.

mod entities;
mod entity_json;
mod policies;
mod schema;

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy::Schema;
use cedar_policy_core::ast::{Expr, ExprKind};
use cedar_policy_core::validator::ValidatorSchema;

use super::diagnostic::{Diagnostic, Severity};
use super::entities::interner::Uids;
use super::entities::segment::Segment;
use super::entities::store::EntityStore;
use super::policies::bytecode::Shorthands;
use super::policies::context_reads::Projections;
use super::policies::index::{Index, Scope};
use super::schema::conformance::DeclaredTypes;
use super::schema::request_conformance::Fit;
use super::snapshot::{Counts, Rule, Settings, Snapshot, Validation};
use super::sources::scanner::{self, Language};
use super::sources::{ContentDigest, FileKind, SourceFile, Sources};
use super::values::TypeNames;
use super::workers::Workers;
use entities::{EntityReader, Read};
use policies::{Filed, Judge, Links, PolicyFile};

/// The stack that parsing and validating can need: a paren costs Cedar's parser some 14 KiB
/// (several times that unoptimised), an operator of a chain a few.
pub(in crate::pdp) const COMPILE_STACK_BYTES: usize = 256 << 20;

/// The stack that one level of an expression can need when it is evaluated, rounded up.
const EVALUATE_STACK_BYTES_PER_LEVEL: usize = if cfg!(debug_assertions) {
    16 << 10
} else {
    4 << 10
};

/// Of what takes some ten to a hundred nanoseconds, so many are done between two pauses.
const PAUSE_EACH: usize = 1_000;

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

    /// Whether the text of the file at `path` nests no deeper than its parser can bear. If not, a finding says
    /// where.
    fn bounded(&mut self, path: &str, text: &Arc<str>, language: Language) -> bool {
        let Err(deep) = scanner::check(text, language) else {
            return true;
        };
        let span = deep.offset..deep.offset + 1;
        self.add(Diagnostic::error(path, deep.to_string()).at(text, span));
        false
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
    let workers = workers.worth(sources.bytes());
    stacker::grow(COMPILE_STACK_BYTES, || {
        Compilation {
            previous,
            sources,
            settings,
            workers: &workers,
            findings: Findings::default(),
        }
        .run()
    })
}

/// What a snapshot was made of, by file, for the next one to be made from.
#[derive(Debug, Default)]
pub(super) struct Made {
    schema: Option<Arc<Schema>>,
    schema_files: Vec<(String, ContentDigest)>,
    policies: MadeFiles<ReadPolicies>,
    links: Arc<Links>,
    entities: MadeFiles<Segment>,
}

impl Made {
    /// How many uids policies and links name; one that several files name counts for each.
    fn named_by_policies(&self) -> usize {
        let files = self.policies.values();
        let by_files: usize = files.map(|(_, read)| read.file.filed.named()).sum();
        by_files + self.links.filed.named()
    }
}

/// By path: what was made of a file, and of which content.
type MadeFiles<T> = HashMap<String, (ContentDigest, Arc<T>)>;

/// A file of policies, with the scopes of its rules.
#[derive(Debug)]
struct ReadPolicies {
    file: Arc<PolicyFile>,
    /// In the order of the file's rules; numbered in the snapshot's table of uids.
    scopes: Vec<Scope>,
    /// What is left of their conditions, likewise.
    conditions: Shorthands,
}

/// One snapshot being made.
struct Compilation<'a> {
    previous: Option<&'a Snapshot>,
    sources: &'a Sources,
    settings: &'a Settings,
    workers: &'a Workers,
    findings: Findings,
}

/// A rule with what it is filed by.
struct Filing<'a> {
    rule: &'a Arc<Rule>,
    scope: &'a Scope,
    /// What is left of its condition, in shorthand.
    condition: &'a [u8],
}

/// Policies of all files, filed.
struct CompiledPolicies {
    /// Sorted by id.
    rules: Vec<Arc<Rule>>,
    index: Index,
    combined: policies::Combined,
    depth: usize,
    bytes: usize,
    made: MadeFiles<ReadPolicies>,
}

impl Compilation<'_> {
    fn run(mut self) -> Result<Snapshot, CompileError> {
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
        let made = self
            .previous
            .map(|previous| &previous.made)
            .filter(|made| made.schema_files == schema_files);
        let schema = match made {
            Some(made) => match &made.schema {
                Some(schema) => schema::Read::Schema(Arc::clone(schema)),
                None => schema::Read::None,
            },
            None => schema::read(sources, &mut self.findings),
        };
        // Numbers go on from snapshot to snapshot until too many of them stand for nothing.
        let known = made
            .zip(self.previous)
            .filter(|(made, previous)| !previous.entities.is_littered(made.named_by_policies()));
        let uids = known.map_or_else(Arc::default, |(_, previous)| {
            Arc::clone(&previous.entities.uids)
        });

        let entities = match &schema {
            schema::Read::None => self.entities(None, made, uids),
            schema::Read::Schema(schema) => {
                self.entities(Some(schema.as_ref().as_ref()), made, uids)
            }
            // Judged by no schema, entities would be found wrong, or right, for no reason.
            schema::Read::Broken => {
                for file in sources.of_kind(FileKind::Entities) {
                    entities::check_syntax(file, &mut self.findings);
                }
                None
            }
        };
        let schema = match schema {
            schema::Read::Schema(schema) => Some(schema),
            schema::Read::None | schema::Read::Broken => None,
        };
        let (entities, segments) = entities.unzip();
        let mut entities = entities.unwrap_or_default();
        let policies = self.policies(schema.as_deref(), made, known.is_some(), &mut entities.uids);

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
        let made = Made {
            schema,
            schema_files,
            policies: policies.made,
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
        let schema: Option<ValidatorSchema> = made
            .schema
            .as_deref()
            .map(|schema| AsRef::<ValidatorSchema>::as_ref(schema).clone());
        let rules = policies.rules;
        let links = policies.combined.links.filed.rules.len();
        Ok(Snapshot {
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
                entities.uids.types().iter().cloned().chain(
                    schema
                        .iter()
                        .flat_map(|schema| schema.entity_types().map(|ty| ty.name().clone())),
                ),
            ),
            fit: Fit::of(schema.as_ref()),
            declared: DeclaredTypes::of(schema.as_ref()),
            projections: Projections::new(
                self.workers.pausing(rules.iter(), PAUSE_EACH),
                &index,
                &entities,
            ),
            index,
            schema,
            rules,
            entities,
            bytes,
            made,
            stack_bytes: EVALUATE_STACK_BYTES_RESERVED
                + policies.depth * EVALUATE_STACK_BYTES_PER_LEVEL,
        })
    }

    fn files(&self, of: impl Fn(FileKind) -> bool) -> Vec<&'_ SourceFile> {
        let files = self.sources.files().iter();
        files.filter(|file| of(file.kind)).collect()
    }

    fn entities(
        &mut self,
        schema: Option<&ValidatorSchema>,
        made: Option<&Made>,
        mut uids: Arc<Uids>,
    ) -> Option<(EntityStore, MadeFiles<Segment>)> {
        let sources = self.sources;
        let files: Vec<&SourceFile> = sources.of_kind(FileKind::Entities).collect();
        let reader = EntityReader::new(schema);
        let known = |file: &SourceFile| {
            let (digest, segment) = made?.entities.get(&file.path)?;
            (*digest == file.digest).then_some(segment)
        };
        let new: Vec<&SourceFile> = files
            .iter()
            .copied()
            .filter(|file| known(file).is_none())
            .collect();
        let mut drafts = self
            .workers
            .each(&new, |file| {
                let mut findings = Findings::default();
                let draft = reader.read(file, &mut findings);
                (draft, findings)
            })
            .into_iter();
        let mut read = Vec::with_capacity(files.len());
        let mut is_good = true;
        for file in &files {
            if let Some(segment) = known(file) {
                let old = self.previous.map(|previous| &previous.entities.uids);
                let moved = match old.filter(|old| !old.is_ancestor_of(&uids)) {
                    None => Ok(Arc::clone(segment)),
                    Some(old) => segment.moved(old, &mut uids).map(Arc::new),
                };
                match moved {
                    Ok(segment) => read.push(Read::Known(segment)),
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
                    Some(draft) => read.push(Read::Draft(Box::new(draft))),
                    None => is_good = false,
                }
            }
        }
        if !is_good {
            return None;
        }
        let previous = self.previous.map(|previous| &previous.entities);
        let (store, segments) = reader.assemble(
            &files,
            read,
            uids,
            (previous, *self.workers),
            &mut self.findings,
        )?;
        let made = files
            .iter()
            .zip(segments)
            .map(|(file, segment)| (file.path.clone(), (file.digest, segment)))
            .collect();
        Some((store, made))
    }

    fn policies(
        &mut self,
        schema: Option<&Schema>,
        made: Option<&Made>,
        numbers_go_on: bool,
        uids: &mut Arc<Uids>,
    ) -> CompiledPolicies {
        let judge = Judge {
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
            let (digest, read) = made?.policies.get(&file.path)?;
            (*digest == file.digest).then_some(read)
        };
        let new: Vec<&SourceFile> = files
            .iter()
            .copied()
            .filter(|file| known(file).is_none())
            .collect();
        let mut fresh = self
            .workers
            .each(&new, |file| {
                let mut findings = Findings::default();
                let read = match file.text() {
                    Ok(text) => policies::read(file, &text, judge, &mut findings),
                    Err(error) => {
                        findings.add(Diagnostic::error(&file.path, error.to_string()));
                        PolicyFile::default()
                    }
                };
                (Arc::new(read), findings)
            })
            .into_iter();
        let mut all: Vec<Arc<ReadPolicies>> = Vec::with_capacity(files.len());
        for file in &files {
            let read = match known(file) {
                Some(read) if numbers_go_on => Arc::clone(read),
                Some(read) => self.numbered(&read.file, uids),
                None => {
                    let Some((read, findings)) = fresh.next() else {
                        continue;
                    };
                    self.findings.0.extend(findings.0);
                    self.numbered(&read, uids)
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
        let previous = made.map(|made| &made.links);
        let combined = policies::combine(
            &in_files,
            texts,
            (judge, *self.workers),
            previous,
            &mut self.findings,
        );
        let links = &combined.links.filed;
        let (link_scopes, link_conditions) = self.renumbered(links, uids);
        let filed = || in_files.iter().map(|file| &file.filed).chain([links]);
        let scopes = all.iter().flat_map(|read| &read.scopes).chain(&link_scopes);
        let conditions = all.iter().map(|read| &read.conditions);
        let conditions = conditions
            .chain([&link_conditions])
            .flat_map(Shorthands::each);
        let rules = filed().flat_map(|filed| &filed.rules);
        let mut filings: Vec<Filing<'_>> = self
            .workers
            .pausing(rules, PAUSE_EACH)
            .zip(scopes)
            .zip(conditions)
            .map(|((rule, scope), condition)| Filing {
                rule,
                scope,
                condition,
            })
            .collect();
        // Mostly they come in long runs that are sorted, which this sort makes use of.
        filings.sort_by(|a, b| a.rule.id.cmp(&b.rule.id));
        (self.workers.pause)();
        let scopes = filings.iter().map(|filing| filing.scope.clone());
        let conditions: Vec<&[u8]> = filings.iter().map(|filing| filing.condition).collect();
        let index = Index::new(scopes.collect(), &conditions, *self.workers);
        let index = index.unwrap_or_else(|error| {
            self.findings.add(Diagnostic::error("", error.to_string()));
            Index::default()
        });
        let rules = self.workers.pausing(filings.iter(), PAUSE_EACH);
        let rules = rules.map(|filing| Arc::clone(filing.rule));
        CompiledPolicies {
            rules: rules.collect(),
            index,
            depth: filed().map(|filed| filed.depth).max().unwrap_or(0),
            bytes: filed()
                .map(|filed| filed.bytes + 2 * filed.shorthand_bytes())
                .sum(),
            made: files
                .iter()
                .zip(&all)
                .map(|(file, read)| (file.path.clone(), (file.digest, Arc::clone(read))))
                .collect(),
            combined,
        }
    }

    fn numbered(&mut self, file: &Arc<PolicyFile>, uids: &mut Arc<Uids>) -> Arc<ReadPolicies> {
        let (scopes, conditions) = self.renumbered(&file.filed, uids);
        Arc::new(ReadPolicies {
            scopes,
            conditions,
            file: Arc::clone(file),
        })
    }

    /// The scopes and conditions of `filed`, numbered in `uids`.
    fn renumbered(&mut self, filed: &Filed, uids: &mut Arc<Uids>) -> (Vec<Scope>, Shorthands) {
        let scopes = filed.scopes(uids);
        let renumbered = scopes.and_then(|scopes| Ok((scopes, filed.conditions(uids)?)));
        renumbered.unwrap_or_else(|error| {
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
        let (largest, open) = (index.largest_bucket(), index.open());
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
                let number = entities.uids.number_of_uid(action.name());
                number.is_some_and(|number| entities.location(number).is_some())
            });
            all - supplied.count()
        }
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
    let reader = EntityReader::new(snapshot.schema.as_ref());
    let store = stacker::grow(COMPILE_STACK_BYTES, || {
        let draft = reader.read(file, &mut findings)?;
        // Numbered on top of the snapshot's, so that its index means the same uids.
        let uids = Arc::clone(&snapshot.entities.uids);
        let read = vec![Read::Draft(Box::new(draft))];
        let beside = (None, Workers::default());
        let (store, _) = reader.assemble(&[file], read, uids, beside, &mut findings)?;
        Some(store)
    });
    store.map(StoredEntities).ok_or(findings.0)
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
