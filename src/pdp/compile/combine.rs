//! Combines the policies of all files: unique ids, and template links.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use cedar_policy::{Effect, PolicySet};
use cedar_policy_core::ast;

use super::findings::{DiagnosticSink, duplicate_id_message};
use super::open_forbids::{OpenForbid, OpenForbidCheck};
use super::policies::PolicyFile;
use super::rule_set::{Link, ReadSetCache, RuleSet, SourceLocation, Template};
use super::validator::PolicyValidator;
use crate::pdp::diagnostic::{Diagnostic, LineStarts, Position};
use crate::pdp::id::PolicyId;
use crate::pdp::values::with_causes;
use crate::pdp::workers::Workers;

/// The rules of all template links, with the files that they come from.
#[derive(Debug, Default)]
pub(in crate::pdp) struct Links {
    pub(super) rule_set: RuleSet,
    pub(super) warnings: Vec<Diagnostic>,
    /// The files that hold templates or links.
    pub(super) files: Vec<Arc<PolicyFile>>,
}

/// The combined result of all policy files.
pub(super) struct CombinedFiles {
    pub(super) links: Arc<Links>,
    pub(super) templates: usize,
    pub(super) open_forbids: Vec<OpenForbid>,
    /// Number of policies and templates by path.
    pub(super) per_file: BTreeMap<String, usize>,
}

/// Combines files: checks that ids are unique, and links templates.
///
/// The `previous` links are reused when no file with a link or a template has changed.
pub(super) fn combine(
    files: &[Arc<PolicyFile>],
    text_of: impl Fn(&str) -> Option<Arc<str>>,
    (validator, workers): (PolicyValidator<'_>, Workers),
    previous: Option<&Arc<Links>>,
    diagnostics: &mut DiagnosticSink,
) -> CombinedFiles {
    let warnings = files.iter().flat_map(|file| &file.warnings);
    diagnostics.0.extend(warnings.cloned());
    let duplicate_links = check_ids(files, text_of, workers, diagnostics);
    let linking_files: Vec<Arc<PolicyFile>> = files
        .iter()
        .filter(|file| !file.links.is_empty() || !file.templates.is_empty())
        .cloned()
        .collect();
    let is_unchanged = |links: &&Arc<Links>| {
        links.files.len() == linking_files.len()
            && links
                .files
                .iter()
                .zip(&linking_files)
                .all(|(one, other)| Arc::ptr_eq(one, other))
    };
    let links = match previous.filter(is_unchanged) {
        Some(links) => Arc::clone(links),
        None => Arc::new(link_all(
            linking_files,
            &duplicate_links,
            validator,
            diagnostics,
        )),
    };
    diagnostics.0.extend(links.warnings.iter().cloned());
    let rule_sets = files.iter().map(|file| &file.rule_set);
    let rule_sets = rule_sets.chain([&links.rule_set]);
    let open_forbids = rule_sets
        .flat_map(|rules| &rules.open_forbids)
        .cloned()
        .collect();
    let count = |file: &Arc<PolicyFile>| file.rule_set.rules.len() + file.templates.len();
    CombinedFiles {
        links,
        templates: files.iter().map(|file| file.templates.len()).sum(),
        open_forbids,
        per_file: files
            .iter()
            .filter(|file| !file.holds_links_alone)
            .map(|file| (file.path.clone(), count(file)))
            .collect(),
    }
}

/// Reports ids that are defined twice, and returns the links among them.
fn check_ids<'a>(
    files: &'a [Arc<PolicyFile>],
    text_of: impl Fn(&str) -> Option<Arc<str>>,
    workers: Workers,
    diagnostics: &mut DiagnosticSink,
) -> HashSet<&'a PolicyId> {
    let count = |file: &Arc<PolicyFile>| {
        file.rule_set.rules.len() + file.templates.len() + file.links.len()
    };
    let mut ids = IdRegistry {
        seen: HashMap::with_capacity(files.iter().map(count).sum()),
        text_of,
    };
    for file in files {
        (workers.pause)();
        for rule in &file.rule_set.rules {
            ids.register(&rule.id, &rule.file, rule.position, diagnostics);
        }
        for Template { id, origin, .. } in &file.templates {
            ids.register(id, &origin.file, origin.position, diagnostics);
        }
    }
    let mut duplicate_links = HashSet::new();
    for Link { id, origin, .. } in files.iter().flat_map(|file| &file.links) {
        if !ids.register(id, &origin.file, origin.position, diagnostics) {
            duplicate_links.insert(id);
        }
    }
    duplicate_links
}

/// The ids of all files, each with the position of its definition.
struct IdRegistry<'a, T> {
    seen: HashMap<&'a PolicyId, (&'a Arc<str>, Position)>,
    text_of: T,
}

impl<'a, T: Fn(&str) -> Option<Arc<str>>> IdRegistry<'a, T> {
    /// Registers `id`; returns false and adds an error when it is in use already.
    ///
    /// Duplicates within a file, except links, were reported when the file was read.
    fn register(
        &mut self,
        id: &'a PolicyId,
        file: &'a Arc<str>,
        position: Position,
        diagnostics: &mut DiagnosticSink,
    ) -> bool {
        let Some((first_file, first)) = self.seen.insert(id, (file, position)) else {
            return true;
        };
        let message = duplicate_id_message(id.as_str(), first_file, first);
        let diagnostic = Diagnostic::error(file.as_ref(), message);
        diagnostics.add(match (self.text_of)(file) {
            Some(text) => {
                let offset = LineStarts::new(&text).offset(&text, position);
                diagnostic.at(&text, offset..offset)
            }
            None => diagnostic,
        });
        false
    }
}

/// Links the templates of `files`, except for links with duplicate ids, and validates the result.
fn link_all(
    files: Vec<Arc<PolicyFile>>,
    duplicate_links: &HashSet<&PolicyId>,
    validator: PolicyValidator<'_>,
    diagnostics: &mut DiagnosticSink,
) -> Links {
    let mut linker = Linker::new(validator.open_forbid_check());
    for template in files.iter().flat_map(|file| &file.templates) {
        linker.add_template(template);
    }
    for link in files.iter().flat_map(|file| &file.links) {
        let linked = linker.link(link, duplicate_links);
        if let Err(message) = linked {
            diagnostics.add(link.origin.error(message));
        }
    }
    let mut warnings = linker.validate(validator, diagnostics);
    let linked: HashSet<&str> = files
        .iter()
        .flat_map(|file| &file.links)
        .map(|link| link.template.as_str())
        .collect();
    let templates = files.iter().flat_map(|file| &file.templates);
    let unlinked = templates.filter(|template| !linked.contains(template.id.as_str()));
    warnings.extend(unlinked.map(unlinked_warning));
    Links {
        rule_set: linker.rule_set,
        warnings,
        files,
    }
}

/// Returns the warning about a template that no link applies.
fn unlinked_warning(template: &Template) -> Diagnostic {
    let effect = match template.template.effect() {
        Effect::Permit => "permits",
        Effect::Forbid => "forbids",
    };
    let message = format!(
        "template `{}` has no link and {effect} nothing",
        template.id
    );
    let help = "add a link in a `*.links.json` file, or remove the template";
    let origin = &template.origin;
    Diagnostic::warning(origin.file.as_ref(), message)
        .at(&origin.text, origin.start..origin.start)
        .with_help(help)
}

/// Templates and links that are being combined to rules.
struct Linker<'a> {
    open_forbids: OpenForbidCheck<'a>,
    policies: PolicySet,
    templates: HashMap<&'a str, &'a Template>,
    links: HashMap<&'a str, &'a Link>,
    rule_set: RuleSet,
    read_sets: ReadSetCache,
}

impl<'a> Linker<'a> {
    fn new(open_forbids: OpenForbidCheck<'a>) -> Self {
        Self {
            open_forbids,
            policies: PolicySet::new(),
            templates: HashMap::new(),
            links: HashMap::new(),
            rule_set: RuleSet::default(),
            read_sets: ReadSetCache::default(),
        }
    }

    fn add_template(&mut self, template: &'a Template) {
        // Duplicate ids have been reported already.
        let added = self.policies.add_template(template.template.clone());
        if added.is_ok() {
            self.templates.insert(template.id.as_str(), template);
        }
    }

    fn link(&mut self, link: &'a Link, duplicate_links: &HashSet<&PolicyId>) -> Result<(), String> {
        let Some(template) = self.templates.get(link.template.as_str()) else {
            return Err(format!("there is no template `{}`", link.template));
        };
        if duplicate_links.contains(&link.id) {
            return Ok(());
        }
        let id = cedar_policy::PolicyId::new(link.id.as_str());
        let template_id = cedar_policy::PolicyId::new(&link.template);
        self.policies
            .link(template_id, id.clone(), link.args.clone())
            .map_err(|error| {
                let Position { line, column } = template.origin.position;
                let (id, file) = (&link.template, &template.origin.file);
                let error = with_causes(&error);
                format!(
                    "template link `{}`: {error} (template `{id}` at {file}:{line}:{column})",
                    link.id
                )
            })?;
        self.links.insert(link.id.as_str(), link);
        let Some(policy) = self.policies.policy(&id) else {
            return Ok(());
        };
        let policy: &ast::Policy = policy.as_ref();
        let analysis = (self.open_forbids, &mut self.read_sets);
        self.rule_set
            .add(policy, Some(template), &link.origin, analysis)
    }

    /// Validates the linked policies, and returns the distinct warnings.
    fn validate(
        &self,
        validator: PolicyValidator<'_>,
        diagnostics: &mut DiagnosticSink,
    ) -> Vec<Diagnostic> {
        let mut found = DiagnosticSink::default();
        let locate = |id: &cedar_policy::PolicyId, error: &dyn miette::Diagnostic| {
            // Errors in a template were reported when its file was read.
            let link = self.links.get(AsRef::<str>::as_ref(id))?;
            let template: &SourceLocation = &self.templates.get(link.template.as_str())?.origin;
            Some(link.origin.cedar_error(template, error))
        };
        validator.validate(&self.policies, locate, &mut found);
        let (errors, mut warnings) = found.by_severity();
        diagnostics.0.extend(errors);
        let mut seen = HashSet::new();
        warnings.retain(|warning| seen.insert(warning.to_string()));
        warnings
    }
}
