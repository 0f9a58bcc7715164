//! Reads policies, templates and links from all their files into one set with one space of ids.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr as _;
use std::sync::Arc;

use cedar_policy::{EntityUid, PolicySet, SlotId};
use cedar_policy_core::{ast, est};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Findings;
use super::schema::{json_offset, located};
use crate::pdp::diagnostic::{Diagnostic, Lines, Position};
use crate::pdp::explanation::Place;
use crate::pdp::id::PolicyId;
use crate::pdp::nesting::{self, Language};
use crate::pdp::snapshot::Rule;
use crate::pdp::sources::{FileKind, SourceFile, Sources};
use crate::pdp::values::with_causes;

/// Everything that was read, and where each id stands.
#[derive(Debug, Default)]
pub(super) struct PolicyCollection {
    set: PolicySet,
    origins: HashMap<PolicyId, Origin>,
    per_file: BTreeMap<String, usize>,
}

/// Where an id stands: its file, and its first byte there.
#[derive(Clone, Debug)]
struct Origin {
    file: String,
    text: Arc<str>,
    start: usize,
}

impl Origin {
    fn new(file: &SourceFile, text: &Arc<str>, start: usize) -> Self {
        Self {
            file: file.path.clone(),
            text: Arc::clone(text),
            start,
        }
    }

    fn place(&self) -> Place {
        Place {
            file: self.file.clone(),
            position: Some(Position::of(&self.text, self.start)),
        }
    }

    fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(&self.file, message).at(&self.text, self.start..self.start)
    }
}

/// A template link that waits until every template has been read.
struct Link {
    template: String,
    id: String,
    args: HashMap<SlotId, EntityUid>,
    origin: Origin,
}

/// Reads all policy and link files.
pub(super) fn read(sources: &Sources, findings: &mut Findings) -> PolicyCollection {
    let mut collection = PolicyCollection::default();
    let mut links = Vec::new();
    for file in sources.files() {
        match file.kind {
            FileKind::Policies => collection.read_cedar(file, findings),
            FileKind::PoliciesJson => collection.read_json(file, &mut links, findings),
            FileKind::Links => read_links(file, &mut links, findings),
            FileKind::Schema | FileKind::SchemaJson | FileKind::Entities | FileKind::Tests => {}
        }
    }
    // Templates may stand in any file, so links come last.
    for link in links {
        collection.link(link, findings);
    }
    collection
}

impl PolicyCollection {
    /// All of them, as Cedar validates them.
    pub(super) fn set(&self) -> &PolicySet {
        &self.set
    }

    /// Whether there is neither a policy nor a link.
    pub(super) fn is_empty(&self) -> bool {
        self.set.policies().next().is_none()
    }

    /// What Cedar says of the policy `id`, placed where Cedar says, else where the policy stands.
    pub(super) fn finding(
        &self,
        id: &cedar_policy::PolicyId,
        said: &dyn miette::Diagnostic,
    ) -> Diagnostic {
        let message = said.to_string();
        let Some(origin) = self.origins.get(&PolicyId::new(id.as_ref())) else {
            return Diagnostic::error("", message);
        };
        // A link is judged by its template's text, which may stand in another file.
        let template = self.set.policy(id).and_then(|policy| policy.template_id());
        let written = template
            .and_then(|template| self.origins.get(&PolicyId::new(template.as_ref())))
            .unwrap_or(origin);
        let has_place = said
            .labels()
            .is_some_and(|mut labels| labels.next().is_some());
        let base = if has_place {
            Diagnostic::error(&written.file, message)
        } else {
            origin.error(message)
        };
        located(base, said, &written.text)
    }

    /// The templates' number, the policies and templates in each file, and the rules sorted by id.
    pub(super) fn into_rules(self) -> (usize, BTreeMap<String, usize>, Vec<Rule>) {
        let templates = self.set.templates().count();
        let mut lines: HashMap<&str, Lines> = HashMap::new();
        let mut rules: Vec<Rule> = self
            .set
            .policies()
            .filter_map(|policy| {
                let id = PolicyId::new(policy.id().as_ref());
                let origin = self.origins.get(&id)?;
                let lines = lines
                    .entry(&origin.file)
                    .or_insert_with(|| Lines::of(&origin.text));
                let place = Place {
                    file: origin.file.clone(),
                    position: Some(lines.position(&origin.text, origin.start)),
                };
                let template = policy
                    .template_id()
                    .map(|template| PolicyId::new(template.as_ref()));
                let template_file = match &template {
                    Some(template) => self.origins.get(template)?.file.clone(),
                    None => place.file.clone(),
                };
                let policy: &ast::Policy = policy.as_ref();
                let (policy, condition) = (policy.clone(), policy.condition());
                Some(Rule {
                    id,
                    template,
                    place,
                    template_file,
                    policy,
                    condition,
                })
            })
            .collect();
        rules.sort_by(|a, b| a.id.cmp(&b.id));
        (templates, self.per_file, rules)
    }

    fn read_cedar(&mut self, file: &SourceFile, findings: &mut Findings) {
        self.per_file.insert(file.path.clone(), 0);
        let Some(text) = findings.bounded(file, Language::Policies) else {
            return;
        };
        let parsed = match PolicySet::from_str(&text) {
            Ok(parsed) => parsed,
            Err(errors) => {
                for error in errors.iter() {
                    findings.add(located(
                        Diagnostic::error(&file.path, error.to_string()),
                        error,
                        &text,
                    ));
                }
                return;
            }
        };
        for policy in parsed.policies() {
            let ast: &ast::Policy = policy.as_ref();
            let start = ast.loc().map_or(0, cedar_policy_core::parser::Loc::start);
            let origin = Origin::new(file, &text, start);
            let id = cedar_id(&origin, policy.id(), policy.annotation("id"), findings);
            if self.claim(&id, origin.clone(), findings) {
                self.add(
                    policy.new_id(cedar_policy::PolicyId::new(&id)),
                    &origin,
                    findings,
                );
            }
        }
        for template in parsed.templates() {
            let ast: &ast::Template = template.as_ref();
            let start = ast.loc().map_or(0, cedar_policy_core::parser::Loc::start);
            let origin = Origin::new(file, &text, start);
            let id = cedar_id(&origin, template.id(), template.annotation("id"), findings);
            if self.claim(&id, origin.clone(), findings) {
                self.add_template(
                    template.new_id(cedar_policy::PolicyId::new(&id)),
                    &origin,
                    findings,
                );
            }
        }
    }

    fn read_json(&mut self, file: &SourceFile, links: &mut Vec<Link>, findings: &mut Findings) {
        self.per_file.insert(file.path.clone(), 0);
        let Some(text) = findings.bounded(file, Language::Json) else {
            return;
        };
        let Some(json) = parse_json::<PolicySetJson<'_>>(file, &text, findings) else {
            return;
        };
        for (entries, is_template) in [(json.static_policies, false), (json.templates, true)] {
            for (id, raw) in entries.0 {
                let place = Origin::new(file, &text, offset_in(&text, raw.get()));
                if !self.claim(&id, place.clone(), findings) {
                    continue;
                }
                let parsed =
                    serde_json::from_str::<est::Policy>(raw.get()).map_err(|e| with_causes(&e));
                let core_id = Some(ast::PolicyID::from_string(&id));
                let added = parsed.and_then(|est| {
                    if is_template {
                        let template = est
                            .try_into_ast_template(core_id)
                            .map_err(|e| with_causes(&e))?;
                        self.add_template(template.into(), &place, findings);
                    } else {
                        let policy = est
                            .try_into_ast_policy(core_id)
                            .map_err(|e| with_causes(&e))?;
                        self.add(policy.into(), &place, findings);
                    }
                    Ok(())
                });
                if let Err(message) = added {
                    let kind = if is_template { "template" } else { "policy" };
                    findings.add(place.error(format!("{kind} `{id}`: {message}")));
                }
            }
        }
        for raw in json.template_links {
            let origin = Origin::new(file, &text, offset_in(&text, raw.get()));
            match serde_json::from_str::<est::TemplateLink>(raw.get()) {
                Ok(link) => links.push(Link {
                    template: AsRef::<str>::as_ref(&link.template_id).to_owned(),
                    id: AsRef::<str>::as_ref(&link.new_id).to_owned(),
                    args: link
                        .values
                        .into_iter()
                        .map(|(slot, uid)| (slot.into(), uid.into()))
                        .collect(),
                    origin,
                }),
                Err(error) => {
                    findings.add(origin.error(format!("template link: {}", with_causes(&error))))
                }
            }
        }
    }

    /// Takes `id` for what stands at `origin`, unless something else has it.
    fn claim(&mut self, id: &str, origin: Origin, findings: &mut Findings) -> bool {
        let id = PolicyId::new(id);
        if let Some(first) = self.origins.get(&id) {
            let Place { file, position } = first.place();
            let Position { line, column } = position.unwrap_or(Position { line: 1, column: 1 });
            findings.add(origin.error(format!(
                "policy id `{id}` is defined twice, here and at {file}:{line}:{column}"
            )));
            return false;
        }
        self.origins.insert(id, origin);
        true
    }

    fn add(&mut self, policy: cedar_policy::Policy, origin: &Origin, findings: &mut Findings) {
        match self.set.add(policy) {
            Ok(()) => self.count(&origin.file),
            Err(error) => findings.add(origin.error(with_causes(&error))),
        }
    }

    fn add_template(
        &mut self,
        template: cedar_policy::Template,
        origin: &Origin,
        findings: &mut Findings,
    ) {
        match self.set.add_template(template) {
            Ok(()) => self.count(&origin.file),
            Err(error) => findings.add(origin.error(with_causes(&error))),
        }
    }

    fn count(&mut self, file: &str) {
        *self.per_file.entry(file.to_owned()).or_default() += 1;
    }

    fn link(&mut self, link: Link, findings: &mut Findings) {
        if !self.claim(&link.id, link.origin.clone(), findings) {
            return;
        }
        let template = cedar_policy::PolicyId::new(&link.template);
        if self.set.template(&template).is_none() {
            findings.add(
                link.origin
                    .error(format!("there is no template `{}`", link.template)),
            );
            return;
        }
        if let Err(error) =
            self.set
                .link(template, cedar_policy::PolicyId::new(&link.id), link.args)
        {
            findings.add(link.origin.error(format!(
                "template link `{}`: {}",
                link.id,
                with_causes(&error)
            )));
        }
    }
}

/// The id of a policy or template in Cedar syntax: its `@id`, else its file and its number there.
fn cedar_id(
    origin: &Origin,
    generated: &cedar_policy::PolicyId,
    annotation: Option<&str>,
    findings: &mut Findings,
) -> String {
    // Cedar numbers the policies and templates of a text in order: `policy0`, `policy1`, …
    let generated: &str = generated.as_ref();
    let number = generated.strip_prefix("policy").unwrap_or(generated);
    let numbered = || format!("{}#{number}", origin.file);
    match annotation {
        None => numbered(),
        Some("") => {
            findings.add(
                Diagnostic::warning(
                    &origin.file,
                    format!("`@id` is empty; the id is `{}`", numbered()),
                )
                .at(&origin.text, origin.start..origin.start),
            );
            numbered()
        }
        Some(id) => id.to_owned(),
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

fn read_links(file: &SourceFile, links: &mut Vec<Link>, findings: &mut Findings) {
    let Some(text) = findings.bounded(file, Language::Json) else {
        return;
    };
    for raw in parse_json::<Vec<&RawValue>>(file, &text, findings).unwrap_or_default() {
        let origin = Origin::new(file, &text, offset_in(&text, raw.get()));
        match read_link(raw, origin.clone()) {
            Ok(link) => links.push(link),
            Err(message) => findings.add(origin.error(format!("template link: {message}"))),
        }
    }
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
            nesting::check(uid, Language::Policies).map_err(|error| error.to_string())?;
            // Not `cedar_policy::EntityUid`: that one refuses `User::"it's"`.
            let uid = ast::EntityUID::from_str(uid)
                .map(EntityUid::from)
                .map_err(|error| format!("`{uid}` is no entity uid: {error}"))?;
            Ok((slot, uid))
        })
        .collect::<Result<_, String>>()?;
    Ok(Link {
        template: json.template_id,
        id: json.link_id,
        args,
        origin,
    })
}

/// Reads the JSON text of `file`, which is bounded, or adds a finding at the place it breaks.
pub(super) fn parse_json<'a, T: Deserialize<'a>>(
    file: &SourceFile,
    text: &'a Arc<str>,
    findings: &mut Findings,
) -> Option<T> {
    match serde_json::from_str(text) {
        Ok(value) => Some(value),
        Err(error) => {
            let finding = Diagnostic::error(&file.path, error.to_string());
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
