//! Reads policies, templates and links from all their files into rules with one space of ids.
//!
//! A file is read, checked and validated by itself, so that files can be read at the same time and
//! one that has not changed need not be read again. What concerns several files comes after: ids
//! that stand twice, and links, whose template may stand in any file.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr as _;
use std::sync::Arc;

use cedar_policy::{EntityUid, PolicySet, SlotId};
use cedar_policy_core::{ast, est};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::findings::{DiagnosticSink, duplicate_id_message, located};
use super::json_text::{offset_in, parse_json};
use super::rule_set::{Link, ReadSetCache, RuleSet, SourceLocation, Template};
use super::validator::PolicyValidator;
use crate::pdp::diagnostic::{Diagnostic, Lines, Severity};
use crate::pdp::id::PolicyId;
use crate::pdp::sources::scanner::Language;
use crate::pdp::sources::{FileKind, SourceFile, scanner};
use crate::pdp::values::with_causes;

/// What one file of policies or links holds, good in itself.
#[derive(Debug, Default)]
pub(in crate::pdp) struct PolicyFile {
    pub(super) path: String,
    /// The static policies.
    pub(super) rule_set: RuleSet,
    pub(super) templates: Vec<Template>,
    pub(super) links: Vec<Link>,
    /// What the author should look at, though it is loaded.
    pub(super) warnings: Vec<Diagnostic>,
}

/// Reads one file of policies or links, and validates the policies in it. Errors are findings; a
/// file that has any is good for nothing but further findings.
pub(super) fn read(
    file: &SourceFile,
    text: &Arc<str>,
    validator: PolicyValidator<'_>,
    findings: &mut DiagnosticSink,
) -> PolicyFile {
    let mut own = DiagnosticSink::default();
    let mut reader = PolicyFileReader {
        path: &file.path,
        text,
        shown: Arc::from(file.path.as_str()),
        lines: Lines::of(text),
        set: PolicySet::new(),
        origins: HashMap::new(),
        reads: ReadSetCache::default(),
        templates: Vec::new(),
        rule_set: RuleSet::default(),
        links: Vec::new(),
        findings: &mut own,
    };
    match file.kind {
        FileKind::Policies => reader.read_cedar(),
        FileKind::PoliciesJson => reader.read_json(),
        FileKind::Links => reader.read_links(),
        FileKind::Schema | FileKind::SchemaJson | FileKind::Entities | FileKind::Tests => {}
    }
    let PolicyFileReader {
        set,
        origins,
        templates,
        rule_set,
        links,
        ..
    } = reader;
    let at = |id: &cedar_policy::PolicyId, error: &dyn miette::Diagnostic| {
        let origin = origins.get(AsRef::<str>::as_ref(id))?;
        Some(origin.finding(origin, error))
    };
    validator.findings(&set, at, &mut own);
    let (errors, warnings): (Vec<_>, Vec<_>) = own
        .0
        .into_iter()
        .partition(|finding| finding.severity == Severity::Error);
    for error in errors {
        findings.add(error);
    }
    PolicyFile {
        path: file.path.clone(),
        rule_set,
        templates,
        links,
        warnings,
    }
}

/// One file while it is read.
struct PolicyFileReader<'a> {
    path: &'a str,
    text: &'a Arc<str>,
    shown: Arc<str>,
    lines: Lines,
    /// All policies and templates, as Cedar validates them.
    set: PolicySet,
    origins: HashMap<PolicyId, SourceLocation>,
    reads: ReadSetCache,
    rule_set: RuleSet,
    templates: Vec<Template>,
    links: Vec<Link>,
    findings: &'a mut DiagnosticSink,
}

impl PolicyFileReader<'_> {
    fn origin(&self, start: usize) -> SourceLocation {
        SourceLocation {
            file: Arc::clone(&self.shown),
            text: Arc::clone(self.text),
            start,
            position: self.lines.position(self.text, start),
        }
    }

    fn read_cedar(&mut self) {
        if !self
            .findings
            .check_nesting(self.path, self.text, Language::Policies)
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
            if let Some(origin) = self.register(&id, start) {
                self.add(policy.new_id(cedar_policy::PolicyId::new(&id)), origin);
            }
        }
        for template in parsed.templates() {
            let ast: &ast::Template = template.as_ref();
            let start = ast.loc().map_or(0, cedar_policy_core::parser::Loc::start);
            let id = self.cedar_id(template.id(), template.annotation("id"), start);
            if let Some(origin) = self.register(&id, start) {
                self.add_template(template.new_id(cedar_policy::PolicyId::new(&id)), origin);
            }
        }
    }

    fn read_json(&mut self) {
        let text = self.text;
        let Some(json) = parse_json::<PolicySetJson<'_>>(self.path, text, self.findings) else {
            return;
        };
        for (entries, is_template) in [(json.static_policies, false), (json.templates, true)] {
            for (id, raw) in entries.0 {
                let Some(origin) = self.register(&id, offset_in(text, raw.get())) else {
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

    fn read_links(&mut self) {
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
    fn register(&mut self, id: &str, start: usize) -> Option<SourceLocation> {
        let origin = self.origin(start);
        match self.origins.get(id) {
            Some(first) => {
                let message = duplicate_id_message(id, &first.file, first.position);
                self.findings.add(origin.error(message));
                None
            }
            None => {
                self.origins.insert(PolicyId::new(id), origin.clone());
                Some(origin)
            }
        }
    }

    fn add(&mut self, policy: cedar_policy::Policy, origin: SourceLocation) {
        let ast: &ast::Policy = policy.as_ref();
        let ast = ast.clone();
        if let Err(error) = self.set.add(policy) {
            return self.findings.add(origin.error(with_causes(&error)));
        }
        if let Err(message) = self.rule_set.add(&ast, None, &origin, &mut self.reads) {
            self.findings.add(origin.error(message));
        }
    }

    fn add_template(&mut self, template: cedar_policy::Template, origin: SourceLocation) {
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

fn read_link(raw: &RawValue, origin: SourceLocation) -> Result<Link, String> {
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
