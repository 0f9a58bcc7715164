//! The table `[issuer.principal]` as it is written, and the checks that turn it into a [`Mapping`].

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::pdp::is_type_name;
use crate::pdp::query::StoredPrincipal;
use crate::pip::mapping::{
    AttributeMapping, ClaimKind, ClaimPath, ClaimRef, Mapping, ParentMapping,
};

#[derive(Debug)]
pub(super) struct InvalidValue {
    pub(super) key: String,
    pub(super) problem: String,
}

impl InvalidValue {
    pub(super) fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            problem: problem.into(),
        }
    }
}

/// The table `[issuer.principal]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPrincipal {
    r#type: String,
    id: Option<RawClaimPath>,
    id_prefix: Option<String>,
    stored: Option<String>,
    #[serde(default)]
    attributes: BTreeMap<String, RawAttribute>,
    #[serde(default)]
    parents: Vec<RawParent>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a claim: \"name\", \"outer.inner\", or a list of names"
)]
enum RawClaimPath {
    Text(String),
    Names(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "an attribute: a kind such as \"string\", or a table with `kind`, `claim`, `entity_type`, `optional`"
)]
enum RawAttribute {
    Kind(String),
    Table(RawAttributeTable),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAttributeTable {
    kind: String,
    claim: Option<RawClaimPath>,
    entity_type: Option<String>,
    optional: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawParent {
    claim: RawClaimPath,
    r#type: String,
    prefix: Option<String>,
    optional: Option<bool>,
}

impl RawPrincipal {
    pub(super) fn check(self) -> Result<Mapping, InvalidValue> {
        let invalid = |key: &'static str| move |problem| InvalidValue::new(key, problem);
        let mut attributes = BTreeMap::new();
        for (name, raw) in self.attributes {
            let key = format!("principal.attributes.{name}");
            let attribute = raw.check(&name);
            let attribute = attribute.map_err(|problem| InvalidValue::new(key, problem))?;
            attributes.insert(name, attribute);
        }
        let parents = self.parents.into_iter().map(RawParent::check);
        let parents: Result<_, _> = parents.collect();
        let parents = parents.map_err(invalid("principal.parents"))?;
        let id = match self.id {
            None => ClaimPath(vec!["sub".to_owned()]),
            Some(raw) => raw.check().map_err(invalid("principal.id"))?,
        };
        let stored = match self.stored.as_deref() {
            None | Some("join") => StoredPrincipal::Join,
            Some("replace") => StoredPrincipal::Replace,
            Some("require") => StoredPrincipal::Require,
            Some(other) => {
                let problem = format!("is `{other}`; allowed: join, replace, require");
                return Err(InvalidValue::new("principal.stored", problem));
            }
        };
        Ok(Mapping {
            type_name: check_entity_type(self.r#type).map_err(invalid("principal.type"))?,
            id,
            id_prefix: self.id_prefix.unwrap_or_default(),
            attributes,
            parents,
            stored,
        })
    }
}

fn check_entity_type(text: String) -> Result<String, String> {
    if !is_type_name(&text) {
        return Err(format!(
            "is `{text}`, which is not an entity type such as `Shop::Order`"
        ));
    }
    if text == "Action" || text.ends_with("::Action") {
        return Err("must not be an action type".to_owned());
    }
    Ok(text)
}

impl RawClaimPath {
    fn check(self) -> Result<ClaimPath, String> {
        let names = match self {
            Self::Names(names) => names,
            // A URL is one claim name: its dots do not separate names.
            Self::Text(text) if text.contains(['/', ':']) => {
                return Err(format!("must be written as `[\"{text}\"]`"));
            }
            Self::Text(text) => text.split('.').map(ToOwned::to_owned).collect(),
        };
        match names.is_empty() || names.iter().any(String::is_empty) {
            true => Err("must name a claim".to_owned()),
            false => Ok(ClaimPath(names)),
        }
    }
}

impl RawAttribute {
    fn check(self, name: &str) -> Result<AttributeMapping, String> {
        let RawAttributeTable {
            kind,
            claim,
            entity_type,
            optional,
        } = match self {
            Self::Table(table) => table,
            Self::Kind(kind) => RawAttributeTable {
                kind,
                ..RawAttributeTable::default()
            },
        };
        let path = match claim {
            Some(raw) => raw.check()?,
            None => ClaimPath(vec![name.to_owned()]),
        };
        Ok(AttributeMapping {
            claim: ClaimRef {
                path,
                optional: optional.unwrap_or(false),
            },
            kind: parse_kind(&kind, entity_type)?,
        })
    }
}

fn parse_kind(kind: &str, entity_type: Option<String>) -> Result<ClaimKind, String> {
    let checked = |entity_type: Option<String>| {
        check_entity_type(entity_type.ok_or("needs an `entity_type`")?)
    };
    Ok(match (kind, entity_type) {
        ("entity", entity_type) => ClaimKind::Entity(checked(entity_type)?),
        ("entities", entity_type) => ClaimKind::Entities(checked(entity_type)?),
        (_, Some(_)) => return Err("has an `entity_type` and is not an entity".to_owned()),
        ("bool", None) => ClaimKind::Bool,
        ("long", None) => ClaimKind::Long,
        ("string", None) => ClaimKind::String,
        ("strings", None) => ClaimKind::Strings,
        ("words", None) => ClaimKind::Words,
        ("decimal", None) => ClaimKind::Decimal,
        ("ip", None) => ClaimKind::Ip,
        ("datetime", None) => ClaimKind::Datetime,
        ("duration", None) => ClaimKind::Duration,
        (other, None) => {
            return Err(format!(
                "is of kind `{other}`; allowed: bool, long, string, strings, words, entity, entities, decimal, ip, datetime, duration"
            ));
        }
    })
}

impl RawParent {
    fn check(self) -> Result<ParentMapping, String> {
        Ok(ParentMapping {
            claim: ClaimRef {
                path: self.claim.check()?,
                optional: self.optional.unwrap_or(false),
            },
            type_name: check_entity_type(self.r#type)?,
            prefix: self.prefix.unwrap_or_default(),
        })
    }
}
