//! Builds the rules of all policy files, sorted by id and indexed by scope.

use std::sync::Arc;

use super::combine::{CombinedFiles, combine};
use super::findings::{DiagnosticSink, read_files};
use super::policies::{self, PolicyFile};
use super::reuse::{ByFile, InternedPolicies, Reusable};
use super::rule_set::RuleSet;
use super::validator::PolicyValidator;
use crate::pdp::entities::interner::UidInterner;
use crate::pdp::policies::bytecode::BytecodeTable;
use crate::pdp::policies::index::Index;
use crate::pdp::policies::policy::Rule;
use crate::pdp::policies::scope::Scope;
use crate::pdp::sources::{FileKind, SourceFile, Sources};
use crate::pdp::workers::Workers;

/// Items handled between two pauses; each takes between ten and a hundred nanoseconds.
pub(super) const PAUSE_INTERVAL: usize = 1_000;

/// The rules of all policy files, with their index.
pub(super) struct RuleTable {
    /// Static policies and links, sorted by id.
    pub(super) rules: Vec<Arc<Rule>>,
    /// The rules by scope; each is numbered by its position in `rules`.
    pub(super) index: Index,
    pub(super) combined: CombinedFiles,
    /// Nesting depth of the deepest condition.
    pub(super) depth: usize,
    /// Memory that the rules hold, in bytes; estimated.
    rule_bytes: usize,
}

impl RuleTable {
    /// Returns the memory that rules and index hold, in bytes.
    pub(super) fn total_bytes(&self) -> usize {
        self.rule_bytes + self.index.bytes()
    }
}

/// The inputs of a [`RuleTable`], beside the files themselves.
pub(super) struct RuleTableBuilder<'a, 'd> {
    pub(super) validator: PolicyValidator<'a>,
    /// Results of the previous compilation.
    pub(super) reusable: Option<&'a Reusable>,
    /// Set when uids keep the ids of the previous compilation.
    pub(super) keeps_ids: bool,
    pub(super) workers: Workers,
    pub(super) diagnostics: &'d mut DiagnosticSink,
}

/// A rule with the fields by which it is indexed.
struct IndexEntry<'a> {
    rule: &'a Arc<Rule>,
    scope: &'a Scope,
    /// Bytecode of the condition that remains once the scope matches.
    condition: &'a [u8],
}

impl RuleTableBuilder<'_, '_> {
    /// Builds the table of all files in `sources`, and returns it with the results by file.
    ///
    /// Uids are interned in `interner`. With errors in the diagnostics the table may be incomplete.
    pub(super) fn build(
        mut self,
        sources: &Sources,
        interner: &mut Arc<UidInterner>,
    ) -> (RuleTable, ByFile<InternedPolicies>) {
        let files = policy_files(sources);
        let interned = self.read_all(&files, interner);
        let policy_files = interned.iter().map(|policies| Arc::clone(&policies.file));
        let policy_files: Vec<Arc<PolicyFile>> = policy_files.collect();
        let text_of = |path: &str| {
            let file = files.iter().find(|file| file.path == path)?;
            file.text().ok()
        };
        let combined = combine(
            &policy_files,
            text_of,
            (self.validator, self.workers),
            self.reusable.map(|reusable| &reusable.links),
            self.diagnostics,
        );
        let rule_table = self.index(&interned, combined, interner);
        let by_file = files
            .iter()
            .zip(interned)
            .map(|(file, policies)| (file.path.clone(), (file.digest, policies)))
            .collect();
        (rule_table, by_file)
    }

    /// Reads the changed files, and returns the policies of all files in order.
    fn read_all(
        &mut self,
        files: &[&SourceFile],
        interner: &mut Arc<UidInterner>,
    ) -> Vec<Arc<InternedPolicies>> {
        let reusable = self.reusable;
        let unchanged = |file: &SourceFile| reusable?.policies(file);
        let changed: Vec<&SourceFile> = files
            .iter()
            .copied()
            .filter(|file| unchanged(file).is_none())
            .collect();
        let validator = self.validator;
        let read = |file: &SourceFile, diagnostics: &mut DiagnosticSink| {
            let text = diagnostics.text(file);
            let read = text.map(|text| policies::read(file, &text, validator, diagnostics));
            read.unwrap_or_default()
        };
        let mut read = read_files(&changed, self.workers, self.diagnostics, read).into_iter();
        let policies = files.iter().filter_map(|file| match unchanged(file) {
            Some(policies) if self.keeps_ids => Some(Arc::clone(policies)),
            Some(policies) => Some(self.intern(&policies.file, interner)),
            None => read
                .next()
                .map(|file| self.intern(&Arc::new(file), interner)),
        });
        policies.collect()
    }

    fn intern(
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

    /// Returns the scopes and conditions of `rule_set`, with uids interned in `interner`.
    fn intern_rules(
        &mut self,
        rule_set: &RuleSet,
        interner: &mut Arc<UidInterner>,
    ) -> (Vec<Scope>, BytecodeTable) {
        let interned = self.diagnostics.ok("", rule_set.interned(interner));
        interned.unwrap_or_default()
    }

    /// Sorts and indexes the rules of all files and links.
    fn index(
        &mut self,
        all: &[Arc<InternedPolicies>],
        combined: CombinedFiles,
        interner: &mut Arc<UidInterner>,
    ) -> RuleTable {
        let links = &combined.links.rule_set;
        let (link_scopes, link_conditions) = self.intern_rules(links, interner);
        let rule_sets = || {
            let rule_sets = all.iter().map(|policies| &policies.file.rule_set);
            rule_sets.chain([links])
        };
        let rules = rule_sets().flat_map(|rule_set| &rule_set.rules);
        let scopes = all.iter().flat_map(|policies| &policies.scopes);
        let scopes = scopes.chain(&link_scopes);
        let conditions = all.iter().map(|policies| &policies.conditions);
        let conditions = conditions.chain([&link_conditions]);
        let conditions = conditions.flat_map(BytecodeTable::iter);
        let mut entries: Vec<IndexEntry<'_>> = self
            .workers
            .pausing(rules, PAUSE_INTERVAL)
            .zip(scopes)
            .zip(conditions)
            .map(|((rule, scope), condition)| IndexEntry {
                rule,
                scope,
                condition,
            })
            .collect();
        // The entries mostly consist of long sorted runs, which this sort makes use of.
        entries.sort_by(|a, b| a.rule.id.cmp(&b.rule.id));
        (self.workers.pause)();
        let index = self.scope_index(&entries);
        let entries = self.workers.pausing(entries.iter(), PAUSE_INTERVAL);
        RuleTable {
            rules: entries.map(|entry| Arc::clone(entry.rule)).collect(),
            index,
            depth: rule_sets().map(|rules| rules.depth).max().unwrap_or(0),
            // Files and index each hold the bytecode.
            rule_bytes: rule_sets()
                .map(|rules| rules.bytes + 2 * rules.conditions.bytes())
                .sum(),
            combined,
        }
    }

    fn scope_index(&mut self, entries: &[IndexEntry<'_>]) -> Index {
        let scopes = entries.iter().map(|entry| entry.scope.clone()).collect();
        let conditions: Vec<&[u8]> = entries.iter().map(|entry| entry.condition).collect();
        let index = Index::new(scopes, &conditions, self.workers);
        self.diagnostics.ok("", index).unwrap_or_default()
    }
}

/// Returns the files that hold policies, templates or links.
fn policy_files(sources: &Sources) -> Vec<&SourceFile> {
    let kinds = [FileKind::Policies, FileKind::PoliciesJson, FileKind::Links];
    let files = sources.files().iter();
    files.filter(|file| kinds.contains(&file.kind)).collect()
}
