//! Reads one file of policies, templates or links.
//!
//! A file is parsed, checked and validated by itself, so that files can be read in parallel and an
//! unchanged file need not be read again. Checks that concern several files follow in
//! [`combine`](super::combine): duplicate ids, and links to templates of other files.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr as _;
use std::sync::Arc;

use cedar_policy::{EntityUid, PolicySet, SlotId};
use cedar_policy_core::parser::Loc;
use cedar_policy_core::{ast, est};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::findings::{DiagnosticSink, duplicate_id_message, located, offset_in, parse_json};
use super::rule_set::{Link, ReadSetCache, RuleSet, SourceLocation, Template};
use super::validator::PolicyValidator;
use crate::pdp::diagnostic::{Diagnostic, LineStarts};
use crate::pdp::id::PolicyId;
use crate::pdp::sources::scanner::Language;
use crate::pdp::sources::{FileKind, SourceFile, scanner};
use crate::pdp::values::with_causes;

/// The content of one file of policies or links.
#[derive(Debug, Default)]
pub(in crate::pdp) struct PolicyFile {
    pub(super) path: String,
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
        read_sets: ReadSetCache::default(),
        file: PolicyFile {
            path: file.path.clone(),
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
        let parsed = match PolicySet::from_str(text) {
            Ok(parsed) => parsed,
            Err(errors) => {
                for error in errors.iter() {
                    let diagnostic = Diagnostic::error(self.path.as_ref(), error.to_string());
                    diagnostics.add(located(diagnostic, error, text));
                }
                return;
            }
        };
        for policy in parsed.policies() {
            let ast: &ast::Policy = policy.as_ref();
            let start = ast.loc().map_or(0, Loc::start);
            let id = self.cedar_id(policy.id(), policy.annotation("id"), start);
            if let Some(origin) = self.register(&id, start) {
                self.add(policy.new_id(cedar_policy::PolicyId::new(&id)), origin);
            }
        }
        for template in parsed.templates() {
            let ast: &ast::Template = template.as_ref();
            let start = ast.loc().map_or(0, Loc::start);
            let id = self.cedar_id(template.id(), template.annotation("id"), start);
            if let Some(origin) = self.register(&id, start) {
                self.add_template(template.new_id(cedar_policy::PolicyId::new(&id)), origin);
            }
        }
    }

    fn read_json(&mut self) {
        let text = self.text;
        let Some(json) = parse_json::<PolicySetJson<'_>>(&self.path, text, &mut self.diagnostics)
        else {
            return;
        };
        for (entries, is_template) in [(json.static_policies, false), (json.templates, true)] {
            for (id, raw) in entries.0 {
                if let Some(origin) = self.register(&id, offset_in(text, raw.get()))
                    && let Err(message) = self.add_json(&id, raw, is_template, origin.clone())
                {
                    let kind = if is_template { "template" } else { "policy" };
                    self.diagnostics
                        .add(origin.error(format!("{kind} `{id}`: {message}")));
                }
            }
        }
        for raw in json.template_links {
            self.add_link(raw, cedar_json_link);
        }
    }

    /// Adds the policy or template `id` that `raw` defines in Cedar's JSON format.
    fn add_json(
        &mut self,
        id: &str,
        raw: &RawValue,
        is_template: bool,
        origin: SourceLocation,
    ) -> Result<(), String> {
        let policy: est::Policy =
            serde_json::from_str(raw.get()).map_err(|error| with_causes(&error))?;
        let id = Some(ast::PolicyID::from_string(id));
        if is_template {
            let template = policy.try_into_ast_template(id);
            self.add_template(
                template.map_err(|error| with_causes(&error))?.into(),
                origin,
            );
        } else {
            let policy = policy.try_into_ast_policy(id);
            self.add(policy.map_err(|error| with_causes(&error))?.into(), origin);
        }
        Ok(())
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
        parse: impl Fn(&RawValue, SourceLocation) -> Result<Link, String>,
    ) {
        let origin = self.location(offset_in(self.text, raw.get()));
        match parse(raw, origin.clone()) {
            Ok(link) => self.file.links.push(link),
            Err(message) => self
                .diagnostics
                .add(origin.error(format!("template link: {message}"))),
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
        if let Err(error) = self.policies.add(policy) {
            return self.diagnostics.add(origin.error(with_causes(&error)));
        }
        let added = self
            .file
            .rule_set
            .add(&ast, None, &origin, &mut self.read_sets);
        if let Err(message) = added {
            self.diagnostics.add(origin.error(message));
        }
    }

    fn add_template(&mut self, template: cedar_policy::Template, origin: SourceLocation) {
        if let Err(error) = self.policies.add_template(template.clone()) {
            return self.diagnostics.add(origin.error(with_causes(&error)));
        }
        let ast: &ast::Template = template.as_ref();
        self.file.templates.push(Template {
            id: PolicyId::new(ast.id().as_ref()),
            origin,
            template,
        });
    }

    /// Returns the id of a policy or template in Cedar syntax: its `@id`, or path and number.
    fn cedar_id(
        &mut self,
        generated: &cedar_policy::PolicyId,
        annotation: Option<&str>,
        start: usize,
    ) -> String {
        if let Some(id) = annotation.filter(|id| !id.is_empty()) {
            return id.to_owned();
        }
        // Cedar numbers the policies and templates of a text in order: `policy0`, `policy1`, …
        let generated: &str = generated.as_ref();
        let number = generated.strip_prefix("policy").unwrap_or(generated);
        let id = format!("{}#{number}", self.path);
        if annotation.is_some() {
            let message = format!("`@id` is empty; the id is `{id}`");
            let diagnostic = Diagnostic::warning(self.path.as_ref(), message);
            self.diagnostics.add(diagnostic.at(self.text, start..start));
        }
        id
    }
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

/// The entries of a JSON object in order, duplicate names included.
///
/// A map would silently keep the last of two entries with the same name.
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

fn cedar_json_link(raw: &RawValue, origin: SourceLocation) -> Result<Link, String> {
    let link: est::TemplateLink =
        serde_json::from_str(raw.get()).map_err(|error| with_causes(&error))?;
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

fn links_file_link(raw: &RawValue, origin: SourceLocation) -> Result<Link, String> {
    let json: LinkJson = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
    let args = json.args.iter().map(|(slot, uid)| link_arg(slot, uid));
    Ok(Link {
        template: json.template_id,
        id: PolicyId::new(&json.link_id),
        args: args.collect::<Result<_, String>>()?,
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
