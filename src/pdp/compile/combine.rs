//! Combines the policies of all files: unique ids, and template links.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use cedar_policy::PolicySet;
use cedar_policy_core::ast;

use super::findings::{DiagnosticSink, duplicate_id_message};
use super::policies::PolicyFile;
use super::rule_set::{Link, ReadSetCache, RuleSet, Template};
use super::validator::PolicyValidator;
use crate::pdp::diagnostic::{Diagnostic, Lines, Position, Severity};
use crate::pdp::id::PolicyId;
use crate::pdp::sources::FileKind;
use crate::pdp::values::with_causes;
use crate::pdp::workers::Workers;

/// The rules of all links, with what they were made of.
#[derive(Debug, Default)]
pub(in crate::pdp) struct Links {
    pub(super) rule_set: RuleSet,
    pub(super) warnings: Vec<Diagnostic>,
    /// The files that hold templates or links.
    pub(super) files: Vec<Arc<PolicyFile>>,
}

/// What several files come to together.
pub(in crate::pdp) struct CombinedFiles {
    pub(super) links: Arc<Links>,
    pub(super) templates: usize,
    pub(super) per_file: BTreeMap<String, usize>,
}

/// Puts files together: one space of ids, and the links, taken over from `previous` when no file
/// with a link or a template has changed.
pub(in crate::pdp) fn combine(
    files: &[Arc<PolicyFile>],
    texts: impl Fn(&str) -> Option<Arc<str>>,
    (validator, workers): (PolicyValidator<'_>, Workers),
    previous: Option<&Arc<Links>>,
    findings: &mut DiagnosticSink,
) -> CombinedFiles {
    for warning in files.iter().flat_map(|file| &file.warnings) {
        findings.add(warning.clone());
    }
    let statics = files.iter().map(|file| file.rule_set.rules.len());
    let statics: usize = statics.sum();
    let templates = files.iter().map(|file| file.templates.len()).sum();
    let links: usize = files.iter().map(|file| file.links.len()).sum();

    let mut ids = IdRegistry {
        seen: HashMap::with_capacity(statics + templates + links),
        texts,
    };
    for file in files {
        (workers.pause)();
        for rule in &file.rule_set.rules {
            ids.register(&rule.id, &rule.file, rule.position, findings);
        }
        for Template { id, origin, .. } in &file.templates {
            ids.register(id, &origin.file, origin.position, findings);
        }
    }
    let mut clashing: HashSet<&PolicyId> = HashSet::new();
    for Link { id, origin, .. } in files.iter().flat_map(|file| &file.links) {
        if !ids.register(id, &origin.file, origin.position, findings) {
            clashing.insert(id);
        }
    }

    let of_links: Vec<Arc<PolicyFile>> = files
        .iter()
        .filter(|file| !file.links.is_empty() || !file.templates.is_empty())
        .cloned()
        .collect();
    let same = |links: &&Arc<Links>| {
        links.files.len() == of_links.len()
            && links
                .files
                .iter()
                .zip(&of_links)
                .all(|(one, other)| Arc::ptr_eq(one, other))
    };
    let links = match previous.filter(same) {
        Some(links) => Arc::clone(links),
        None => Arc::new(link_all(of_links, &clashing, validator, findings)),
    };
    for warning in &links.warnings {
        findings.add(warning.clone());
    }

    let count = |file: &Arc<PolicyFile>| file.rule_set.rules.len() + file.templates.len();
    CombinedFiles {
        links,
        templates,
        per_file: files
            .iter()
            .filter(|file| FileKind::of(&file.path) != Some(FileKind::Links))
            .map(|file| (file.path.clone(), count(file)))
            .collect(),
    }
}

/// The ids of all files.
pub(in crate::pdp) struct IdRegistry<'a, T> {
    seen: HashMap<&'a PolicyId, (&'a Arc<str>, Position)>,
    texts: T,
}

impl<'a, T: Fn(&str) -> Option<Arc<str>>> IdRegistry<'a, T> {
    /// Takes `id` for what stands here, unless something else has it, which is then a finding.
    fn register(
        &mut self,
        id: &'a PolicyId,
        file: &'a Arc<str>,
        position: Position,
        findings: &mut DiagnosticSink,
    ) -> bool {
        let Some((first_file, first)) = self.seen.insert(id, (file, position)) else {
            return true;
        };
        // Two of one file are told when it is read, but for its links.
        let message = duplicate_id_message(id.as_str(), first_file, first);
        let finding = Diagnostic::error(file.as_ref(), message);
        findings.add(match (self.texts)(file) {
            Some(text) => {
                let at = Lines::of(&text).offset(&text, position);
                finding.at(&text, at..at)
            }
            None => finding,
        });
        false
    }
}

/// Links all links of `files`, but for those whose ids clash, to the templates in them, and
/// validates what comes of it.
pub(in crate::pdp) fn link_all(
    files: Vec<Arc<PolicyFile>>,
    clashing: &HashSet<&PolicyId>,
    validator: PolicyValidator<'_>,
    findings: &mut DiagnosticSink,
) -> Links {
    let mut set = PolicySet::new();
    let mut templates: HashMap<&str, &Template> = HashMap::new();
    for template in files.iter().flat_map(|file| &file.templates) {
        // A double id was told above.
        if set.add_template(template.template.clone()).is_ok() {
            templates.insert(template.id.as_str(), template);
        }
    }
    let mut links: HashMap<&str, &Link> = HashMap::new();
    let mut rule_set = RuleSet::default();
    let mut reads = ReadSetCache::default();
    for link in files.iter().flat_map(|file| &file.links) {
        let Some(template) = templates.get(link.template.as_str()) else {
            findings.add(
                link.origin
                    .error(format!("there is no template `{}`", link.template)),
            );
            continue;
        };
        if clashing.contains(&link.id) {
            continue;
        }
        let id = cedar_policy::PolicyId::new(link.id.as_str());
        let linked = set.link(
            cedar_policy::PolicyId::new(&link.template),
            id.clone(),
            link.args.clone(),
        );
        match linked {
            Ok(()) => {
                links.insert(link.id.as_str(), link);
                if let Some(policy) = set.policy(&id) {
                    let policy: &ast::Policy = policy.as_ref();
                    let added = rule_set.add(policy, Some(template), &link.origin, &mut reads);
                    if let Err(message) = added {
                        findings.add(link.origin.error(message));
                    }
                }
            }
            Err(error) => findings.add(link.origin.error(format!(
                "template link `{}`: {}",
                link.id,
                with_causes(&error)
            ))),
        }
    }

    let mut found = DiagnosticSink::default();
    let at = |id: &cedar_policy::PolicyId, error: &dyn miette::Diagnostic| {
        // What is found at a template was found when its file was read.
        let link = links.get(AsRef::<str>::as_ref(id))?;
        let written = &templates.get(link.template.as_str())?.origin;
        Some(link.origin.finding(written, error))
    };
    validator.findings(&set, at, &mut found);
    let mut seen = HashSet::new();
    let mut warnings = Vec::new();
    for finding in found.0 {
        match finding.severity {
            Severity::Error => findings.add(finding),
            Severity::Warning => {
                if seen.insert(finding.to_string()) {
                    warnings.push(finding);
                }
            }
        }
    }
    drop((templates, links));
    Links {
        rule_set,
        warnings,
        files,
    }
}
