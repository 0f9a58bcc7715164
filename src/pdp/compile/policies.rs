//! Reads one file of policies, templates or links.
//!
//! A file is parsed, checked and validated by itself, so that files can be read in parallel and an
//! unchanged file need not be read again. Checks that concern several files follow in
//! [`combine`](super::combine): duplicate ids, and links to templates of other files.

mod literal_types;

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr as _;
use std::sync::Arc;

use cedar_policy::{EntityUid, PolicySet, SlotId};
use cedar_policy_core::parser::Loc;
use cedar_policy_core::{ast, est};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::findings::{
    DiagnosticSink, Entries, duplicate_id_message, json_error, offset_in, parse_json, syntax_error,
};
use super::misplaced;
use super::open_forbids::OpenForbidCheck;
use super::rule_set::{Link, ReadSetCache, RuleSet, SourceLocation, Template};
use super::validator::PolicyValidator;
use crate::pdp::diagnostic::{Diagnostic, LineStarts};
use crate::pdp::id::PolicyId;
use crate::pdp::json_object::Object;
use crate::pdp::sources::scanner::Language;
use crate::pdp::sources::{FileKind, SourceFile, scanner};
use crate::pdp::values::with_causes;

/// The content of one file of policies or links.
#[derive(Debug, Default)]
pub(in crate::pdp) struct PolicyFile {
    pub(super) path: String,
    pub(super) holds_links_alone: bool,
    /// The static policies.
    pub(super) rule_set: RuleSet,
    pub(super) templates: Vec<Template>,
    pub(super) links: Vec<Link>,
    pub(super) warnings: Vec<Diagnostic>,
}

/// Reads one file of policies or links, and validates its policies.
///
/// Errors go to `diagnostics`. The content of a file with errors is incomplete, and is used only to
/// find more errors.
pub(super) fn read(
    file: &SourceFile,
    text: &Arc<str>,
    validator: PolicyValidator<'_>,
    diagnostics: &mut DiagnosticSink,
) -> PolicyFile {
    let mut reader = PolicyFileReader {
        path: Arc::from(file.path.as_str()),
        text,
        line_starts: LineStarts::new(text),
        policies: PolicySet::new(),
        origins: HashMap::new(),
        open_forbids: validator.open_forbid_check(),
        is_untyped: !validator.compares_types(),
        read_sets: ReadSetCache::default(),
        file: PolicyFile {
            path: file.path.clone(),
            holds_links_alone: file.kind == FileKind::Links,
            ..PolicyFile::default()
        },
        diagnostics: DiagnosticSink::default(),
    };
    match file.kind {
        FileKind::Policies => reader.read_cedar(),
        FileKind::PoliciesJson => reader.read_json(),
        FileKind::Links => reader.read_links(),
        FileKind::Schema | FileKind::SchemaJson | FileKind::Entities | FileKind::Tests => {}
    }
    let PolicyFileReader {
        policies,
        origins,
        file: mut policy_file,
        diagnostics: mut found,
        ..
    } = reader;
    let locate = |id: &cedar_policy::PolicyId, error: &dyn miette::Diagnostic| {
        let origin = origins.get(AsRef::<str>::as_ref(id))?;
        Some(origin.cedar_error(origin, error))
    };
    validator.validate(&policies, locate, &mut found);
    let (errors, warnings) = found.by_severity();
    diagnostics.0.extend(errors);
    policy_file.warnings = warnings;
    policy_file
}

/// A file that is being read.
struct PolicyFileReader<'a> {
    path: Arc<str>,
    text: &'a Arc<str>,
    line_starts: LineStarts,
    /// All policies and templates, as Cedar validates them.
    policies: PolicySet,
    origins: HashMap<PolicyId, SourceLocation>,
    open_forbids: OpenForbidCheck<'a>,
    /// Set if Cedar compares no types, because there is no schema or no validation.
    is_untyped: bool,
    read_sets: ReadSetCache,
    file: PolicyFile,
    diagnostics: DiagnosticSink,
}

impl PolicyFileReader<'_> {
    fn location(&self, start: usize) -> SourceLocation {
        SourceLocation {
            file: Arc::clone(&self.path),
            text: Arc::clone(self.text),
            start,
            position: self.line_starts.position(self.text, start),
        }
    }

    fn read_cedar(&mut self) {
        let text = self.text;
        let diagnostics = &mut self.diagnostics;
        if !diagnostics.check_nesting(&self.path, text, Language::Policies) {
            return;
        }
        let parsed =
            match PolicySet::from_str(text) {
                Ok(parsed) => parsed,
                Err(errors) => {
                    match misplaced::in_policy_file(&self.path, text) {
                        Some(misplaced) => diagnostics.add(misplaced),
                        None => diagnostics.0.extend(errors.iter().map(|error| {
                            syntax_error(&self.path, error, (text, Language::Policies))
                        })),
                    }
                    return;
                }
            };
        if parsed.is_empty() {
            let message = "the file holds no policy";
            diagnostics.add(Diagnostic::warning(self.path.as_ref(), message));
        }
        for policy in parsed.policies() {
            let ast: &ast::Policy = policy.as_ref();
            let start = ast.loc().map_or(0, Loc::start);
            let id = self.cedar_id(number(policy.id()), policy.annotation("id"), start);
            if let Some(origin) = self.register(&id, start) {
                self.add(policy.new_id(cedar_policy::PolicyId::new(&id)), origin);
            }
        }
        for template in parsed.templates() {
            let ast: &ast::Template = template.as_ref();
            let start = ast.loc().map_or(0, Loc::start);
            let id = self.cedar_id(number(template.id()), template.annotation("id"), start);
            if let Some(origin) = self.register(&id, start) {
                self.add_template(template.new_id(cedar_policy::PolicyId::new(&id)), origin);
            }
        }
    }

    fn read_json(&mut self) {
        let text = self.text;
        let Some(fields) = parse_json::<Entries<'_>>(&self.path, text, &mut self.diagnostics)
        else {
            return;
        };
        if fields.0.iter().any(|(name, _)| name == "effect") {
            return self.read_single_json();
        }
        let Some(json) = parse_json::<PolicySetJson<'_>>(&self.path, text, &mut self.diagnostics)
        else {
            return;
        };
        for (entries, is_template) in [(json.static_policies, false), (json.templates, true)] {
            for (id, raw) in entries.0 {
                self.add_json(&id, raw.get(), Some(is_template));
            }
        }
        for raw in json.template_links {
            self.add_link(raw, cedar_json_link);
        }
    }

    /// Reads a file that is a single policy or template, as Cedar's tools export it.
    fn read_single_json(&mut self) {
        #[derive(Deserialize)]
        struct Annotations {
            id: Option<String>,
        }
        #[derive(Deserialize)]
        struct Annotated {
            annotations: Option<Annotations>,
        }
        let text = self.text;
        let annotated: Option<Annotated> = serde_json::from_str(text).ok();
        let annotation = annotated.and_then(|policy| policy.annotations?.id);
        let start = text.len() - text.trim_start().len();
        let id = self.cedar_id("0", annotation.as_deref(), start);
        self.add_json(&id, text, None);
    }

    /// Adds the policy or template `id` that `json`, a part of the file, defines in Cedar's format.
    ///
    /// What is no template by its place may be one by its slots.
    fn add_json(&mut self, id: &str, json: &str, is_template: Option<bool>) {
        let Some(origin) = self.register(id, offset_in(self.text, json)) else {
            return;
        };
        let kind = match is_template {
            Some(true) => "template",
            Some(false) | None => "policy",
        };
        let policy: est::Policy = match serde_json::from_str(json) {
            Ok(policy) => policy,
            Err(error) => {
                let mut diagnostic = json_error(&self.path, self.text, json, &error);
                diagnostic.message = format!("{kind} `{id}`: {}", diagnostic.message);
                return self.diagnostics.add(diagnostic);
            }
        };
        let ast_id = Some(ast::PolicyID::from_string(id));
        let template = policy.clone().try_into_ast_template(ast_id.clone());
        let has_slots = |template: &ast::Template| template.slots().next().is_some();
        let added = match template {
            Ok(template) if is_template.unwrap_or_else(|| has_slots(&template)) => {
                self.add_template(template.into(), origin.clone());
                Ok(())
            }
            Err(error) if is_template == Some(true) => Err(with_causes(&error)),
            Ok(_) | Err(_) => match policy.try_into_ast_policy(ast_id) {
                Ok(policy) => {
                    self.add(policy.into(), origin.clone());
                    Ok(())
                }
                Err(error) => Err(with_causes(&error)),
            },
        };
        if let Err(message) = added {
            let error = origin.error(format!("{kind} `{id}`: {message}"));
            self.diagnostics.add(error);
        }
    }

    fn read_links(&mut self) {
        let text = self.text;
        let links = parse_json::<Vec<&RawValue>>(&self.path, text, &mut self.diagnostics);
        for raw in links.unwrap_or_default() {
            self.add_link(raw, links_file_link);
        }
    }

    /// Adds the link that `parse` reads from `raw`.
    fn add_link(
        &mut self,
        raw: &RawValue,
        parse: impl Fn(&RawValue, SourceLocation) -> Result<Link, LinkError>,
    ) {
        let origin = self.location(offset_in(self.text, raw.get()));
        match parse(raw, origin) {
            Ok(link) => self.file.links.push(link),
            Err(error) => {
                let mut diagnostic = match error {
                    LinkError::Json(error) => json_error(&self.path, self.text, raw.get(), &error),
                    LinkError::Invalid(message) => self
                        .location(offset_in(self.text, raw.get()))
                        .error(message),
                };
                diagnostic.message = format!("template link: {}", diagnostic.message);
                self.diagnostics.add(diagnostic);
            }
        }
    }

    /// Registers `id` for the definition at byte `start`, and returns its location.
    ///
    /// Returns `None` and adds an error when the file defines `id` already.
    fn register(&mut self, id: &str, start: usize) -> Option<SourceLocation> {
        let origin = self.location(start);
        if let Some(first) = self.origins.get(id) {
            let message = duplicate_id_message(id, &first.file, first.position);
            self.diagnostics.add(origin.error(message));
            return None;
        }
        self.origins.insert(PolicyId::new(id), origin.clone());
        Some(origin)
    }

    fn add(&mut self, policy: cedar_policy::Policy, origin: SourceLocation) {
        let ast: &ast::Policy = policy.as_ref();
        let ast = ast.clone();
        self.warn_of_types(ast.id(), ast.non_scope_constraints(), &origin);
        if let Err(error) = self.policies.add(policy) {
            return self.diagnostics.add(origin.error(with_causes(&error)));
        }
        let added = self.file.rule_set.add(
            &ast,
            None,
            &origin,
            (self.open_forbids, &mut self.read_sets),
        );
        if let Err(message) = added {
            self.diagnostics.add(origin.error(message));
        }
    }

    fn add_template(&mut self, template: cedar_policy::Template, origin: SourceLocation) {
        if let Err(error) = self.policies.add_template(template.clone()) {
            return self.diagnostics.add(origin.error(with_causes(&error)));
        }
        let ast: &ast::Template = template.as_ref();
        self.warn_of_types(ast.id(), ast.non_scope_constraints(), &origin);
        self.file.templates.push(Template {
            id: PolicyId::new(ast.id().as_ref()),
            origin,
            template,
        });
    }

    /// Warns of the first operation in a condition whose types cannot match, where Cedar does not.
    fn warn_of_types(
        &mut self,
        id: &ast::PolicyID,
        condition: Option<&ast::Expr>,
        origin: &SourceLocation,
    ) {
        let condition = condition.filter(|_| self.is_untyped);
        let Some(found) = condition.and_then(literal_types::mismatch) else {
            return;
        };
        let message = format!("policy `{id}`: {}", found.message);
        let diagnostic = Diagnostic::warning(self.path.as_ref(), message);
        let span = match found.expr.source_loc() {
            Some(loc) => loc.start()..loc.end(),
            None => origin.start..origin.start,
        };
        let diagnostic = diagnostic.at(self.text, span);
        self.diagnostics.add(match found.help {
            Some(help) => diagnostic.with_help(help),
            None => diagnostic,
        });
    }

    /// Returns the id of a policy or template: its `@id`, or the path and its number in the file.
    fn cedar_id(&mut self, number: &str, annotation: Option<&str>, start: usize) -> String {
        if let Some(id) = annotation.filter(|id| !id.is_empty()) {
            return id.to_owned();
        }
        let id = format!("{}#{number}", self.path);
        if annotation.is_some() {
            let message = format!("`@id` is empty; the id is `{id}`");
            let diagnostic = Diagnostic::warning(self.path.as_ref(), message);
            self.diagnostics.add(diagnostic.at(self.text, start..start));
        }
        id
    }
}

/// Returns the number of a policy or template in its text, which Cedar's own id ends with.
fn number(generated: &cedar_policy::PolicyId) -> &str {
    let generated: &str = generated.as_ref();
    generated.strip_prefix("policy").unwrap_or(generated)
}

/// A Cedar JSON policy set; entries stay text, so that their offsets are known.
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

/// The reason why an element of a list is no template link.
enum LinkError {
    Json(serde_json::Error),
    Invalid(String),
}

fn cedar_json_link(raw: &RawValue, origin: SourceLocation) -> Result<Link, LinkError> {
    let Object(link): Object<est::TemplateLink> =
        serde_json::from_str(raw.get()).map_err(LinkError::Json)?;
    let args = link.values.into_iter();
    Ok(Link {
        template: AsRef::<str>::as_ref(&link.template_id).to_owned(),
        id: PolicyId::new(link.new_id.as_ref()),
        args: args.map(|(slot, uid)| (slot.into(), uid.into())).collect(),
        origin,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkJson {
    template_id: String,
    link_id: String,
    #[serde(default)]
    args: BTreeMap<String, String>,
}

fn links_file_link(raw: &RawValue, origin: SourceLocation) -> Result<Link, LinkError> {
    let Object(json): Object<LinkJson> =
        serde_json::from_str(raw.get()).map_err(LinkError::Json)?;
    let args = json.args.iter().map(|(slot, uid)| link_arg(slot, uid));
    Ok(Link {
        template: json.template_id,
        id: PolicyId::new(&json.link_id),
        args: args
            .collect::<Result<_, String>>()
            .map_err(LinkError::Invalid)?,
        origin,
    })
}

/// Parses the name and the uid of one slot of a link.
fn link_arg(slot: &str, uid: &str) -> Result<(SlotId, EntityUid), String> {
    let slot = match slot {
        "?principal" => SlotId::principal(),
        "?resource" => SlotId::resource(),
        other => {
            let slots = "slots are `?principal` and `?resource`";
            return Err(format!("`{other}` is not a slot; {slots}"));
        }
    };
    scanner::check(uid, Language::Policies).map_err(|error| error.to_string())?;
    // `cedar_policy::EntityUid` would reject `User::"it's"`.
    let uid = ast::EntityUID::from_str(uid)
        .map(EntityUid::from)
        .map_err(|error| format!("`{uid}` is not an entity uid: {error}"))?;
    Ok((slot, uid))
}
