//! Cedar's own authorizer on the same directory, as a service would use it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use cedar_policy::{
    Authorizer, Context, Decision, Entities, EntityId, EntityTypeName, EntityUid, PolicyId,
    PolicySet, Request, RestrictedExpression, Schema, SlotId,
};
use serde_json::Value;

use crate::support::dataset::DrawnRequest;

/// Policies, schema and entities, parsed once, and parsed entity types.
pub(crate) struct Plain {
    policies: PolicySet,
    schema: Schema,
    entities: Entities,
    types: HashMap<String, EntityTypeName>,
}

impl Plain {
    pub(crate) fn load(directory: &Path) -> anyhow::Result<Self> {
        let schema = fs::read_to_string(directory.join("schema.cedarschema"))?;
        let (schema, _) = Schema::from_cedarschema_str(&schema)?;
        let entities: Vec<String> = texts(&directory.join("entities"), ".entities.json")?
            .iter()
            .map(|text| text.trim().trim_matches(['[', ']']).to_owned())
            .collect();
        let entities =
            Entities::from_json_str(&format!("[{}]", entities.join(",")), Some(&schema))?;
        let types = schema
            .entity_types()
            .cloned()
            .chain([EntityTypeName::from_str("Action")?])
            .map(|name| (name.to_string(), name))
            .collect();
        Ok(Self {
            policies: policies(&directory.join("policies"))?,
            schema,
            entities,
            types,
        })
    }

    /// Decides `request`; returns the time in microseconds, from names to decision.
    pub(crate) fn time(&self, drawn: &DrawnRequest) -> anyhow::Result<f64> {
        let started = Instant::now();
        let context = Context::from_pairs([
            (
                "channel".to_owned(),
                RestrictedExpression::new_string(drawn.channel.to_owned()),
            ),
            ("mfa".to_owned(), RestrictedExpression::new_bool(drawn.mfa)),
            (
                "amount".to_owned(),
                RestrictedExpression::new_long(drawn.amount),
            ),
        ])?;
        let request = Request::new(
            self.uid(&drawn.principal.type_name, &drawn.principal.id)?,
            self.uid("Action", &drawn.action)?,
            self.uid(&drawn.resource.type_name, &drawn.resource.id)?,
            context,
            Some(&self.schema),
        )?;
        let response = Authorizer::new().is_authorized(&request, &self.policies, &self.entities);
        let took = started.elapsed();
        ensure!(
            (response.decision() == Decision::Allow) == drawn.is_allowed,
            "Cedar decides {drawn:?} otherwise"
        );
        Ok(took.as_secs_f64() * 1e6)
    }

    fn uid(&self, type_name: &str, id: &str) -> anyhow::Result<EntityUid> {
        let name = self.types.get(type_name).context("a type of the schema")?;
        Ok(EntityUid::from_type_name_and_id(
            name.clone(),
            EntityId::new(id),
        ))
    }
}

/// Parses all policies and links. Static policies keep the ids that Cedar numbers them by.
fn policies(directory: &Path) -> anyhow::Result<PolicySet> {
    let templates_file = "templates.cedar";
    let texts_of_policies: Vec<String> = texts(directory, ".cedar")?;
    let templates = fs::read_to_string(directory.join(templates_file))?;
    let statics: String = texts_of_policies
        .iter()
        .filter(|text| **text != templates)
        .flat_map(|text| [text.as_str(), "\n"])
        .collect();
    let mut set = PolicySet::from_str(&statics)?;
    for template in PolicySet::from_str(&templates)?.templates() {
        let id = template.annotation("id").context("templates have an id")?;
        set.add_template(template.new_id(PolicyId::new(id)))?;
    }
    for text in texts(directory, ".links.json")? {
        let links: Vec<Value> = serde_json::from_str(&text)?;
        for link in links {
            let text = |pointer: &str| {
                link.pointer(pointer)
                    .and_then(Value::as_str)
                    .with_context(|| format!("a link without `{pointer}`"))
            };
            let slots = HashMap::from([
                (
                    SlotId::principal(),
                    EntityUid::from_str(text("/args/?principal")?)?,
                ),
                (
                    SlotId::resource(),
                    EntityUid::from_str(text("/args/?resource")?)?,
                ),
            ]);
            set.link(
                PolicyId::new(text("/template_id")?),
                PolicyId::new(text("/link_id")?),
                slots,
            )?;
        }
    }
    Ok(set)
}

/// Reads the files with this ending, in the order of their names.
fn texts(directory: &Path, ending: &str) -> anyhow::Result<Vec<String>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(ending) {
            files.push(path);
        }
    }
    files.sort();
    files
        .iter()
        .map(|file| Ok(fs::read_to_string(file)?))
        .collect()
}
