//! Reads policies, templates and links from all their files into rules with one space of ids.
//!
//! A file is read, checked and validated by itself, so that files can be read at the same time and
//! one that has not changed need not be read again. What concerns several files comes after: ids
//! that stand twice, and links, whose template may stand in any file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::str::FromStr as _;
use std::sync::Arc;

use cedar_policy::{EntityUid, PolicySet, Schema, SlotId, ValidationMode, Validator};
use cedar_policy_core::{ast, est};
use serde::Deserialize;
use serde_json::value::RawValue;
use smol_str::SmolStr;

use super::schema::{json_offset, located};
use super::{Findings, depth};
use crate::pdp::diagnostic::{Diagnostic, Lines, Position, Severity};
use crate::pdp::entities::interner::{TooManyUids, Uids};
use crate::pdp::id::PolicyId;
use crate::pdp::policies::bytecode::Shorthands;
use crate::pdp::policies::index::{self, Scope};
use crate::pdp::policies::read_set::{self, Reads, TooManyPaths};
use crate::pdp::snapshot::{Condition, Rule, Validation};
use crate::pdp::sources::scanner::{self, Language};
use crate::pdp::sources::{FileKind, SourceFile};
use crate::pdp::values::with_causes;
use crate::pdp::workers::Workers;

/// What one file of policies or links holds, good in itself.
#[derive(Debug, Default)]
pub(in crate::pdp) struct PolicyFile {
    pub(super) path: String,
    /// The static policies.
    pub(super) filed: Filed,
    templates: Vec<Template>,
    links: Vec<Link>,
    /// What the author should look at, though it is loaded.
    warnings: Vec<Diagnostic>,
}

/// Rules with what is needed to file them.
#[derive(Debug, Default)]
pub(super) struct Filed {
    pub(super) rules: Vec<Arc<Rule>>,
    /// In the order of the rules, and numbered in a table of their own.
    scopes: Vec<Scope>,
    /// What is left of their conditions; in the same order, and so numbered too.
    conditions: Shorthands,
    uids: Arc<Uids>,
    /// How many expressions stand within one another in the deepest condition.
    pub(super) depth: usize,
    /// The memory that the rules hold, in bytes: estimated, since Cedar does not tell.
    pub(super) bytes: usize,
}

impl Filed {
    /// The rules' scopes, numbered in `uids`.
    pub(super) fn scopes(&self, uids: &mut Arc<Uids>) -> Result<Vec<Scope>, TooManyUids> {
        let scopes = self.scopes.iter();
        scopes.map(|scope| scope.moved(&self.uids, uids)).collect()
    }

    /// What is left of the rules' conditions where their scopes hold, numbered in `uids`.
    pub(super) fn conditions(&self, uids: &mut Arc<Uids>) -> Result<Shorthands, TooManyUids> {
        self.conditions.moved(&self.uids, uids)
    }

    /// How many uids they name.
    pub(super) fn named(&self) -> usize {
        self.uids.len()
    }

    /// The memory that the conditions hold in shorthand, in bytes.
    pub(super) fn shorthand_bytes(&self) -> usize {
        self.conditions.bytes()
    }

    /// Adds the rule of `policy`, which stands at `origin`.
    fn add(
        &mut self,
        policy: &ast::Policy,
        template: Option<&Template>,
        origin: &Origin,
        known: &mut KnownReads,
    ) -> Result<(), String> {
        let scope = Scope::of(policy, &mut self.uids).map_err(|error| error.to_string())?;
        let condition = policy.non_scope_constraints_arc();
        let rest = condition.and_then(|condition| index::rest(condition, scope.operands_taken()));
        self.conditions
            .add(rest.as_deref(), &mut self.uids)
            .map_err(|error| error.to_string())?;
        for expr in condition.into_iter().chain(&rest) {
            self.depth = self.depth.max(depth(expr));
        }
        self.bytes += match template {
            Some(_) => BYTES_OF_A_RULE,
            None => {
                let parts = condition.map_or(0, |condition| condition.subexpressions().count());
                BYTES_OF_A_RULE + BYTES_OF_AN_EXPRESSION * parts
            }
        };
        let read = |expr: Option<&Arc<ast::Expr>>, known: &mut KnownReads| {
            Ok::<_, String>(Condition {
                expr: expr.cloned(),
                reads: known.of(expr).map_err(|error| error.to_string())?,
            })
        };
        let condition = read(condition, known)?;
        let rest = read(rest.as_ref(), known)?;
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
            rest,
        }));
        self.scopes.push(scope);
        Ok(())
    }
}

/// What a rule and a part of its condition hold in memory; measured over generated policies,
/// rounded up.
const BYTES_OF_A_RULE: usize = 1_024;
const BYTES_OF_AN_EXPRESSION: usize = 160;

/// What conditions read, each kept once: conditions are many, and what they read is often alike.
#[derive(Default)]
struct KnownReads(HashMap<Reads, Arc<Reads>>);

impl KnownReads {
    fn of(&mut self, condition: Option<&Arc<ast::Expr>>) -> Result<Arc<Reads>, TooManyPaths> {
        let found = match condition {
            Some(condition) => read_set::of(condition)?,
            None => Reads::nothing(),
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
struct Template {
    id: PolicyId,
    template: cedar_policy::Template,
    origin: Origin,
}

/// A template link that waits until every template has been read.
#[derive(Debug)]
struct Link {
    template: String,
    id: PolicyId,
    args: HashMap<SlotId, EntityUid>,
    origin: Origin,
}

/// Where an id stands: its file, and its first byte there.
#[derive(Clone, Debug)]
struct Origin {
    file: Arc<str>,
    text: Arc<str>,
    start: usize,
    position: Position,
}

impl Origin {
    fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(self.file.as_ref(), message).at(&self.text, self.start..self.start)
    }

    /// What Cedar says of what stands here, placed where Cedar says in `written`, else here.
    fn finding(&self, written: &Self, said: &dyn miette::Diagnostic) -> Diagnostic {
        let message = said.to_string();
        let has_place = said
            .labels()
            .is_some_and(|mut labels| labels.next().is_some());
        let base = if has_place {
            Diagnostic::error(written.file.as_ref(), message)
        } else {
            self.error(message)
        };
        located(base, said, &written.text)
    }
}

/// The rules of all links, with what they were made of.
#[derive(Debug, Default)]
pub(in crate::pdp) struct Links {
    pub(super) filed: Filed,
    warnings: Vec<Diagnostic>,
    /// The files that hold templates or links.
    files: Vec<Arc<PolicyFile>>,
}

/// What several files come to together.
pub(super) struct Combined {
    pub(super) links: Arc<Links>,
    pub(super) templates: usize,
    pub(super) per_file: BTreeMap<String, usize>,
}

/// What policies are judged by.
#[derive(Clone, Copy)]
pub(super) struct Judge<'a> {
    pub(super) schema: Option<&'a Schema>,
    pub(super) validation: Validation,
}

impl Judge<'_> {
    /// The validator, and how bad a rejection is; `None` when nothing is validated.
    fn validator(self) -> Option<(Validator, Severity)> {
        let severity = match self.validation {
            Validation::Strict => Severity::Error,
            Validation::Warn => Severity::Warning,
            Validation::Off => return None,
        };
        Some((Validator::new(self.schema?.clone()), severity))
    }

    /// All that the validator finds, each with the id that it is found at.
    fn findings(
        self,
        set: &PolicySet,
        find: impl Fn(&cedar_policy::PolicyId, &dyn miette::Diagnostic) -> Option<Diagnostic>,
        findings: &mut Findings,
    ) {
        let Some((validator, severity)) = self.validator() else {
            return;
        };
        let result = validator.validate(set, ValidationMode::Strict);
        for error in result.validation_errors() {
            if let Some(finding) = find(error.policy_id(), error) {
                findings.add(Diagnostic {
                    severity,
                    ..finding
                });
            }
        }
        for warning in result.validation_warnings() {
            if let Some(finding) = find(warning.policy_id(), warning) {
                findings.add(Diagnostic {
                    severity: Severity::Warning,
                    ..finding
                });
            }
        }
    }
}

/// Reads one file of policies or links, and validates the policies in it. Errors are findings; a
/// file that has any is good for nothing but further findings.
pub(super) fn read(
    file: &SourceFile,
    text: &Arc<str>,
    judge: Judge<'_>,
    findings: &mut Findings,
) -> PolicyFile {
    let mut own = Findings::default();
    let mut reading = FileReading {
        path: &file.path,
        text,
        shown: Arc::from(file.path.as_str()),
        lines: Lines::of(text),
        set: PolicySet::new(),
        origins: HashMap::new(),
        reads: KnownReads::default(),
        templates: Vec::new(),
        filed: Filed::default(),
        links: Vec::new(),
        findings: &mut own,
    };
    match file.kind {
        FileKind::Policies => reading.cedar(),
        FileKind::PoliciesJson => reading.json(),
        FileKind::Links => reading.links(),
        FileKind::Schema | FileKind::SchemaJson | FileKind::Entities | FileKind::Tests => {}
    }
    let FileReading {
        set,
        origins,
        templates,
        filed,
        links,
        ..
    } = reading;
    let at = |id: &cedar_policy::PolicyId, said: &dyn miette::Diagnostic| {
        let origin = origins.get(AsRef::<str>::as_ref(id))?;
        Some(origin.finding(origin, said))
    };
    judge.findings(&set, at, &mut own);
    let (errors, warnings): (Vec<_>, Vec<_>) = own
        .0
        .into_iter()
        .partition(|finding| finding.severity == Severity::Error);
    for error in errors {
        findings.add(error);
    }
    PolicyFile {
        path: file.path.clone(),
        filed,
        templates,
        links,
        warnings,
    }
}

/// One file while it is read.
struct FileReading<'a> {
    path: &'a str,
    text: &'a Arc<str>,
    shown: Arc<str>,
    lines: Lines,
    /// All policies and templates, as Cedar validates them.
    set: PolicySet,
    origins: HashMap<PolicyId, Origin>,
    reads: KnownReads,
    filed: Filed,
    templates: Vec<Template>,
    links: Vec<Link>,
    findings: &'a mut Findings,
}

impl FileReading<'_> {
    fn origin(&self, start: usize) -> Origin {
        Origin {
            file: Arc::clone(&self.shown),
            text: Arc::clone(self.text),
            start,
            position: self.lines.position(self.text, start),
        }
    }

    fn cedar(&mut self) {
        if !self
            .findings
            .bounded(self.path, self.text, Language::Policies)
        {
            return;
        }
        let parsed = match PolicySet::from_str(self.text) {
            Ok(parsed) => parsed,
            Err(errors) => {
                for error in errors.iter() {
                    self.findings.add(located(
                        Diagnostic::error(self.path, error.to_string()),
                        error,
                        self.text,
                    ));
                }
                return;
            }
        };
        for policy in parsed.policies() {
            let ast: &ast::Policy = policy.as_ref();
            let start = ast.loc().map_or(0, cedar_policy_core::parser::Loc::start);
            let id = self.cedar_id(policy.id(), policy.annotation("id"), start);
            if let Some(origin) = self.claim(&id, start) {
                self.add(policy.new_id(cedar_policy::PolicyId::new(&id)), origin);
            }
        }
        for template in parsed.templates() {
            let ast: &ast::Template = template.as_ref();
            let start = ast.loc().map_or(0, cedar_policy_core::parser::Loc::start);
            let id = self.cedar_id(template.id(), template.annotation("id"), start);
            if let Some(origin) = self.claim(&id, start) {
                self.add_template(template.new_id(cedar_policy::PolicyId::new(&id)), origin);
            }
        }
    }

    fn json(&mut self) {
        let text = self.text;
        let Some(json) = parse_json::<PolicySetJson<'_>>(self.path, text, self.findings) else {
            return;
        };
        for (entries, is_template) in [(json.static_policies, false), (json.templates, true)] {
            for (id, raw) in entries.0 {
                let Some(origin) = self.claim(&id, offset_in(text, raw.get())) else {
                    continue;
                };
                let parsed =
                    serde_json::from_str::<est::Policy>(raw.get()).map_err(|e| with_causes(&e));
                let core_id = Some(ast::PolicyID::from_string(&id));
                let place = origin.clone();
                let added = parsed.and_then(|est| {
                    if is_template {
                        let template = est
                            .try_into_ast_template(core_id)
                            .map_err(|e| with_causes(&e))?;
                        self.add_template(template.into(), origin);
                    } else {
                        let policy = est
                            .try_into_ast_policy(core_id)
                            .map_err(|e| with_causes(&e))?;
                        self.add(policy.into(), origin);
                    }
                    Ok(())
                });
                if let Err(message) = added {
                    let kind = if is_template { "template" } else { "policy" };
                    self.findings
                        .add(place.error(format!("{kind} `{id}`: {message}")));
                }
            }
        }
        for raw in json.template_links {
            let origin = self.origin(offset_in(text, raw.get()));
            match serde_json::from_str::<est::TemplateLink>(raw.get()) {
                Ok(link) => self.links.push(Link {
                    template: AsRef::<str>::as_ref(&link.template_id).to_owned(),
                    id: PolicyId::new(link.new_id.as_ref()),
                    args: link
                        .values
                        .into_iter()
                        .map(|(slot, uid)| (slot.into(), uid.into()))
                        .collect(),
                    origin,
                }),
                Err(error) => self
                    .findings
                    .add(origin.error(format!("template link: {}", with_causes(&error)))),
            }
        }
    }

    fn links(&mut self) {
        let text = self.text;
        let raws = parse_json::<Vec<&RawValue>>(self.path, text, self.findings);
        for raw in raws.unwrap_or_default() {
            let origin = self.origin(offset_in(text, raw.get()));
            match read_link(raw, origin.clone()) {
                Ok(link) => self.links.push(link),
                Err(message) => self
                    .findings
                    .add(origin.error(format!("template link: {message}"))),
            }
        }
    }

    /// Takes `id` for what begins at `start`, unless something else in this file has it.
    fn claim(&mut self, id: &str, start: usize) -> Option<Origin> {
        let origin = self.origin(start);
        match self.origins.get(id) {
            Some(first) => {
                let message = defined_twice(id, &first.file, first.position);
                self.findings.add(origin.error(message));
                None
            }
            None => {
                self.origins.insert(PolicyId::new(id), origin.clone());
                Some(origin)
            }
        }
    }

    fn add(&mut self, policy: cedar_policy::Policy, origin: Origin) {
        let ast: &ast::Policy = policy.as_ref();
        let ast = ast.clone();
        if let Err(error) = self.set.add(policy) {
            return self.findings.add(origin.error(with_causes(&error)));
        }
        if let Err(message) = self.filed.add(&ast, None, &origin, &mut self.reads) {
            self.findings.add(origin.error(message));
        }
    }

    fn add_template(&mut self, template: cedar_policy::Template, origin: Origin) {
        if let Err(error) = self.set.add_template(template.clone()) {
            return self.findings.add(origin.error(with_causes(&error)));
        }
        let ast: &ast::Template = template.as_ref();
        self.templates.push(Template {
            id: PolicyId::new(ast.id().as_ref()),
            origin,
            template,
        });
    }

    /// The id of a policy or template in Cedar syntax: its `@id`, else its file and its number
    /// there.
    fn cedar_id(
        &mut self,
        generated: &cedar_policy::PolicyId,
        annotation: Option<&str>,
        start: usize,
    ) -> String {
        // Cedar numbers the policies and templates of a text in order: `policy0`, `policy1`, …
        let generated: &str = generated.as_ref();
        let number = generated.strip_prefix("policy").unwrap_or(generated);
        let numbered = || format!("{}#{number}", self.path);
        match annotation {
            None => numbered(),
            Some("") => {
                self.findings.add(
                    Diagnostic::warning(
                        self.path,
                        format!("`@id` is empty; the id is `{}`", numbered()),
                    )
                    .at(self.text, start..start),
                );
                numbered()
            }
            Some(id) => id.to_owned(),
        }
    }
}

/// What is said of an id that something else has already.
fn defined_twice(id: &str, first_file: &str, first: Position) -> String {
    let Position { line, column } = first;
    format!("policy id `{id}` is defined twice, here and at {first_file}:{line}:{column}")
}

/// Puts files together: one space of ids, and the links, taken over from `previous` when no file
/// with a link or a template has changed.
pub(super) fn combine(
    files: &[Arc<PolicyFile>],
    texts: impl Fn(&str) -> Option<Arc<str>>,
    (judge, workers): (Judge<'_>, Workers),
    previous: Option<&Arc<Links>>,
    findings: &mut Findings,
) -> Combined {
    for warning in files.iter().flat_map(|file| &file.warnings) {
        findings.add(warning.clone());
    }
    let statics = files.iter().map(|file| file.filed.rules.len());
    let statics: usize = statics.sum();
    let templates = files.iter().map(|file| file.templates.len()).sum();
    let links: usize = files.iter().map(|file| file.links.len()).sum();

    let mut ids = Ids {
        taken: HashMap::with_capacity(statics + templates + links),
        texts,
    };
    for file in files {
        (workers.pause)();
        for rule in &file.filed.rules {
            ids.claim(&rule.id, &rule.file, rule.position, findings);
        }
        for Template { id, origin, .. } in &file.templates {
            ids.claim(id, &origin.file, origin.position, findings);
        }
    }
    let mut clashing: HashSet<&PolicyId> = HashSet::new();
    for Link { id, origin, .. } in files.iter().flat_map(|file| &file.links) {
        if !ids.claim(id, &origin.file, origin.position, findings) {
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
        None => Arc::new(link_all(of_links, &clashing, judge, findings)),
    };
    for warning in &links.warnings {
        findings.add(warning.clone());
    }

    let count = |file: &Arc<PolicyFile>| file.filed.rules.len() + file.templates.len();
    Combined {
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
struct Ids<'a, T> {
    taken: HashMap<&'a PolicyId, (&'a Arc<str>, Position)>,
    texts: T,
}

impl<'a, T: Fn(&str) -> Option<Arc<str>>> Ids<'a, T> {
    /// Takes `id` for what stands here, unless something else has it, which is then a finding.
    fn claim(
        &mut self,
        id: &'a PolicyId,
        file: &'a Arc<str>,
        position: Position,
        findings: &mut Findings,
    ) -> bool {
        let Some((first_file, first)) = self.taken.insert(id, (file, position)) else {
            return true;
        };
        // Two of one file are told when it is read, but for its links.
        let message = defined_twice(id.as_str(), first_file, first);
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
fn link_all(
    files: Vec<Arc<PolicyFile>>,
    clashing: &HashSet<&PolicyId>,
    judge: Judge<'_>,
    findings: &mut Findings,
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
    let mut filed = Filed::default();
    let mut reads = KnownReads::default();
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
                    let added = filed.add(policy, Some(template), &link.origin, &mut reads);
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

    let mut found = Findings::default();
    let at = |id: &cedar_policy::PolicyId, said: &dyn miette::Diagnostic| {
        // What is found at a template was found when its file was read.
        let link = links.get(AsRef::<str>::as_ref(id))?;
        let written = &templates.get(link.template.as_str())?.origin;
        Some(link.origin.finding(written, said))
    };
    judge.findings(&set, at, &mut found);
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
        filed,
        warnings,
        files,
    }
}

/// A Cedar JSON policy set, its entries still text so that each knows where it stands.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PolicySetJson<'a> {
    #[serde(borrow, default)]
    static_policies: Entries<'a>,
    #[serde(borrow, default)]
    templates: Entries<'a>,
    #[serde(borrow, default)]
    template_links: Vec<&'a RawValue>,
}

/// The entries of a JSON object in order, a name that stands twice included: a map would keep
/// the last one and say nothing.
#[derive(Default)]
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of policies by id")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// One link of a `*.links.json` file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkJson {
    template_id: String,
    link_id: String,
    #[serde(default)]
    args: BTreeMap<String, String>,
}

fn read_link(raw: &RawValue, origin: Origin) -> Result<Link, String> {
    let json: LinkJson = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
    let args = json
        .args
        .iter()
        .map(|(slot, uid)| {
            let slot = match slot.as_str() {
                "?principal" => SlotId::principal(),
                "?resource" => SlotId::resource(),
                other => {
                    return Err(format!(
                        "`{other}` is no slot; slots are `?principal` and `?resource`"
                    ));
                }
            };
            scanner::check(uid, Language::Policies).map_err(|error| error.to_string())?;
            // Not `cedar_policy::EntityUid`: that one refuses `User::"it's"`.
            let uid = ast::EntityUID::from_str(uid)
                .map(EntityUid::from)
                .map_err(|error| format!("`{uid}` is no entity uid: {error}"))?;
            Ok((slot, uid))
        })
        .collect::<Result<_, String>>()?;
    Ok(Link {
        template: json.template_id,
        id: PolicyId::new(&json.link_id),
        args,
        origin,
    })
}

/// Reads the JSON `text` of the file at `path`, bounded in depth, or adds a finding at the place it breaks.
pub(super) fn parse_json<'a, T: Deserialize<'a>>(
    path: &str,
    text: &'a Arc<str>,
    findings: &mut Findings,
) -> Option<T> {
    if !findings.bounded(path, text, Language::Json) {
        return None;
    }
    match serde_json::from_str(text) {
        Ok(value) => Some(value),
        Err(error) => {
            let finding = Diagnostic::error(path, error.to_string());
            findings.add(match json_offset(&error, text) {
                Some(at) => finding.at(text, at..at),
                None => finding,
            });
            None
        }
    }
}

/// The byte at which `part` begins in `text`, of which it is a slice.
pub(super) fn offset_in(text: &str, part: &str) -> usize {
    (part.as_ptr() as usize)
        .saturating_sub(text.as_ptr() as usize)
        .min(text.len())
}
