//! The oracle: Cedar's own authorizer over the same files, read by Cedar's public API alone.
//!
//! Only plain values of cedar-pdp are used here (queries, settings). Rules that the contract adds
//! to Cedar's (ids, request entities, `--on-policy-error`) are implemented anew.

use std::collections::{BTreeMap, HashMap, HashSet};

use cedar_pdp::pdp::Settings;
use cedar_pdp::pdp::query::{Query, RequestEntity};
use cedar_pdp::pdp::settings::{OnPolicyError, Validation};
use cedar_policy::{
    AuthorizationError, Authorizer, Context, Decision, Effect, Entities, Entity, EntityUid, Policy,
    PolicyId, PolicySet, Request, Schema, SchemaFragment, SlotId, Template, ValidationMode,
    Validator,
};
use serde_json::Value as Json;

use crate::scenario::Files;
use crate::values::{cedar_uid, expressions};

/// A policy directory as Cedar parses it.
pub(crate) struct Plain {
    settings: Settings,
    schema: Option<Schema>,
    policies: PolicySet,
    entities: Entities,
    /// The stored entities with their direct parents only.
    direct: HashMap<EntityUid, Entity>,
}

/// Cedar's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The request is invalid, for this reason.
    Rejected(String),
    Answered {
        allow: bool,
        /// Ids, sorted.
        determining: Vec<String>,
        /// Ids and messages, sorted by id.
        errors: Vec<(String, String)>,
    },
}

/// The numbers of static policies, templates, links and entities, without the actions of the
/// schema.
pub(crate) type Counts = (usize, usize, usize, usize);

impl Plain {
    pub(crate) fn load(files: &Files, settings: &Settings) -> Result<Self, String> {
        let schema = schema(files)?;
        let policies = policies(files)?;
        if let Some(schema) = &schema
            && settings.validation == Validation::Strict
        {
            let result = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
            if let Some(error) = result.validation_errors().next() {
                return Err(error.to_string());
            }
        }
        let mut array: Vec<Json> = Vec::new();
        for (path, text) in files {
            if path.ends_with("entities.json") {
                array.extend(parse::<Vec<Json>>(text)?);
            }
        }
        let mut direct = HashMap::new();
        for json in &array {
            // The schema's own actions, which `from_entities` adds.
            if schema.is_some() && json["uid"]["type"].as_str().is_some_and(is_action_type) {
                continue;
            }
            let entity = Entity::from_json_value(json.clone(), schema.as_ref()).map_err(text)?;
            if direct.insert(entity.uid(), entity).is_some() {
                return Err(format!("stored twice: {json}"));
            }
        }
        let array = Json::Array(array).to_string();
        let entities = Entities::from_json_str(&array, schema.as_ref()).map_err(text)?;
        Ok(Self {
            settings: settings.clone(),
            schema,
            policies,
            entities,
            direct,
        })
    }

    pub(crate) fn counts(&self) -> Counts {
        let links = self
            .policies
            .policies()
            .filter(|policy| policy.template_id().is_some())
            .count();
        (
            self.policies.num_of_policies() - links,
            self.policies.num_of_templates(),
            links,
            self.direct.len(),
        )
    }

    pub(crate) fn authorize(&self, query: &Query) -> Expected {
        match self.answer(query) {
            Ok(answered) => answered,
            Err(reason) => Expected::Rejected(reason),
        }
    }

    fn answer(&self, query: &Query) -> Result<Expected, String> {
        let union;
        let entities = match query.entities.is_empty() {
            true => &self.entities,
            false => {
                union = self.union(&query.entities)?;
                &union
            }
        };
        let schema = match self.settings.validation {
            Validation::Strict | Validation::Warn => self.schema.as_ref(),
            Validation::Off => None,
        };
        let request = Request::new(
            cedar_uid(&query.principal)?,
            cedar_uid(&query.action)?,
            cedar_uid(&query.resource)?,
            Context::from_pairs(expressions(&query.context)?).map_err(text)?,
            schema,
        )
        .map_err(text)?;
        for uid in [&query.principal, &query.resource] {
            let required = self.settings.require_known.as_ref();
            if required.is_some_and(|types| types.include(&uid.type_name))
                && entities.get(&cedar_uid(uid)?).is_none()
            {
                return Err(format!("`{uid}` is not known"));
            }
        }
        let response = Authorizer::new().is_authorized(&request, &self.policies, entities);

        let mut allow = response.decision() == Decision::Allow;
        let mut determining: Vec<String> = response.diagnostics().reason().map(id_text).collect();
        let mut errors = Vec::new();
        let mut failed_forbids = Vec::new();
        for error in response.diagnostics().errors() {
            let AuthorizationError::PolicyEvaluationError(inner) = error;
            let id = inner.policy_id();
            errors.push((id_text(id), error.to_string()));
            let policy = self.policies.policy(id).expect("an error names a policy");
            if policy.effect() == Effect::Forbid {
                failed_forbids.push(id_text(id));
            }
        }
        if self.settings.on_policy_error == OnPolicyError::Deny && !failed_forbids.is_empty() {
            // Cedar's determining policies of a denial are satisfied forbids, or none.
            if allow {
                determining.clear();
            }
            allow = false;
            determining.extend(failed_forbids);
        }
        determining.sort();
        errors.sort();
        Ok(Expected::Answered {
            allow,
            determining,
            errors,
        })
    }

    /// Returns the stored entities, replaced and extended by those of the request.
    fn union(&self, sent: &[RequestEntity]) -> Result<Entities, String> {
        let mut union = self.direct.clone();
        let mut seen = HashSet::new();
        for entity in sent {
            let uid = cedar_uid(&entity.uid)?;
            if !seen.insert(uid.clone()) {
                return Err(format!("`{uid}` is sent twice"));
            }
            if is_action_type(&entity.uid.type_name) {
                return Err(format!("`{uid}` is an action"));
            }
            if let Some(accepted) = &self.settings.request_entity_types
                && !accepted.contains(&entity.uid.type_name)
            {
                return Err(format!("`{uid}` is of a type that is not accepted"));
            }
            let parents = entity
                .parents
                .iter()
                .map(cedar_uid)
                .collect::<Result<Vec<_>, _>>()?;
            let entity = Entity::new_with_tags(
                uid.clone(),
                expressions(&entity.attributes)?,
                parents,
                expressions(&entity.tags)?,
            )
            .map_err(text)?;
            union.insert(uid, entity);
        }
        Entities::from_entities(union.into_values(), self.schema.as_ref()).map_err(text)
    }
}

fn is_action_type(type_name: &str) -> bool {
    type_name == "Action" || type_name.ends_with("::Action")
}

/// Returns the id without the escapes of its `Display`.
fn id_text(id: &PolicyId) -> String {
    AsRef::<str>::as_ref(id).to_owned()
}

fn text(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn parse<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, String> {
    serde_json::from_str(json).map_err(text)
}

fn schema(files: &Files) -> Result<Option<Schema>, String> {
    let mut fragments = Vec::new();
    for (path, source) in files {
        if path.ends_with(".cedarschema") {
            let (fragment, _) = SchemaFragment::from_cedarschema_str(source).map_err(text)?;
            fragments.push(fragment);
        } else if path.ends_with(".cedarschema.json") {
            fragments.push(SchemaFragment::from_json_str(source).map_err(text)?);
        }
    }
    match fragments.is_empty() {
        true => Ok(None),
        false => Schema::from_schema_fragments(fragments)
            .map(Some)
            .map_err(text),
    }
}

fn policies(files: &Files) -> Result<PolicySet, String> {
    let mut all = PolicySet::new();
    let mut links: Vec<(String, String, BTreeMap<SlotId, EntityUid>)> = Vec::new();
    for (path, source) in files {
        if path.ends_with(".cedar") {
            let set: PolicySet = source.parse().map_err(text)?;
            for policy in set.policies() {
                let ordinal = policy.annotation("ordinal");
                let id = contract_id(path, policy.id(), policy.annotation("id"), ordinal);
                all.add(policy.new_id(id)).map_err(text)?;
            }
            for template in set.templates() {
                let ordinal = template.annotation("ordinal");
                let id = contract_id(path, template.id(), template.annotation("id"), ordinal);
                all.add_template(template.new_id(id)).map_err(text)?;
            }
        } else if path.ends_with(".cedar.json") {
            let mut json: Json = parse(source)?;
            // A separate policy set cannot link a template of another file.
            for link in json["templateLinks"]
                .take()
                .as_array()
                .into_iter()
                .flatten()
            {
                let argument = |json: &Json| EntityUid::from_json(json.clone()).map_err(text);
                links.push(link_of(link, "templateId", "newId", "values", argument)?);
            }
            json["templateLinks"] = Json::Array(Vec::new());
            let set = PolicySet::from_json_value(json).map_err(text)?;
            let owned: Vec<Policy> = set.policies().cloned().collect();
            for policy in owned {
                all.add(policy).map_err(text)?;
            }
            let owned: Vec<Template> = set.templates().cloned().collect();
            for template in owned {
                all.add_template(template).map_err(text)?;
            }
        } else if path.ends_with(".links.json") {
            for link in &parse::<Vec<Json>>(source)? {
                let argument = |json: &Json| {
                    let source = json.as_str().ok_or("no text")?;
                    source.parse::<EntityUid>().map_err(text)
                };
                links.push(link_of(link, "template_id", "link_id", "args", argument)?);
            }
        }
    }
    for (template, id, slots) in links {
        all.link(
            PolicyId::new(template),
            PolicyId::new(id),
            slots.into_iter().collect(),
        )
        .map_err(text)?;
    }
    Ok(all)
}

/// Returns the id by the contract's rule: `@id`, else the path and the number in the file.
fn contract_id(
    path: &str,
    numbered: &PolicyId,
    id: Option<&str>,
    ordinal: Option<&str>,
) -> PolicyId {
    let numbered = id_text(numbered);
    let number = numbered.strip_prefix("policy").expect("Cedar's numbering");
    // The generator annotates the number; hand-written cases need not.
    if let Some(ordinal) = ordinal {
        assert_eq!(number, ordinal, "in `{path}`");
    }
    match id {
        Some(id) => PolicyId::new(id),
        None => PolicyId::new(format!("{path}#{number}")),
    }
}

fn link_of(
    link: &Json,
    template: &str,
    id: &str,
    arguments: &str,
    argument: impl Fn(&Json) -> Result<EntityUid, String>,
) -> Result<(String, String, BTreeMap<SlotId, EntityUid>), String> {
    let text = |key: &str| link[key].as_str().map(str::to_owned).ok_or(key.to_owned());
    let mut slots = BTreeMap::new();
    for (slot, uid) in link[arguments].as_object().into_iter().flatten() {
        let slot = match slot.as_str() {
            "?principal" => SlotId::principal(),
            "?resource" => SlotId::resource(),
            other => return Err(format!("no slot: {other}")),
        };
        slots.insert(slot, argument(uid)?);
    }
    Ok((text(template)?, text(id)?, slots))
}
